"""Recordings of real robots through our embodiment files; the folder is given by IMAGINE_REAL_DATA.

``agibot_g1_starts`` is from AgibotTech/GE-Sim-V2 (CC BY-NC-SA 4.0): three starts of a real AgiBot G1 and what it was
commanded afterwards. ``unitree_g1_bottle`` is from YifanTian07/G1-policy-train (MIT): 93 teleoperated episodes.
"""

from __future__ import annotations

import os
from importlib.resources import files
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from imagine.data.check import check_dataset
from imagine.data.draft import draft
from imagine.data.read import LeRobotDataset
from imagine.data.windows import Windows, build_cache
from imagine.embodiment import Embodiment
from imagine.types import ShapeError

G1 = Embodiment.load(str(files("imagine.policy.robots") / "agibot_g1.yaml"))
UNITREE = Path(__file__).parents[1] / "examples/unitree/unitree_g1.yaml"
EFFECTOR_RANGE = 120.0  # what the gripper reports when it is closed; a command of 1 closes it, 0 opens it


def real(name: str) -> Path:
    """A folder of real recordings, or skip the test."""
    folder = os.environ.get("IMAGINE_REAL_DATA")
    if not folder:
        pytest.skip("IMAGINE_REAL_DATA is not set; it names a folder of real recordings, which are not ours to ship")
    if not (Path(folder) / name).is_dir():
        pytest.skip(f"IMAGINE_REAL_DATA holds no {name}")
    return Path(folder) / name


@pytest.fixture(params=["demo_000", "demo_001", "demo_002"])
def demo(request: pytest.FixtureRequest) -> Path:
    return real("agibot_g1_starts") / request.param


def parts(demo: Path, *, effector_range: float = EFFECTOR_RANGE) -> tuple[dict[str, np.ndarray], dict[str, np.ndarray]]:
    """State and action by the names of the embodiment's slices, (T, d) each, in rad, m and 0 to 1."""
    s, a = np.load(demo / "state_joints_0.npy"), np.load(demo / "actions_0.npy")
    state = {"left_arm_joint_position": s[:, :7], "right_arm_joint_position": s[:, 7:14]}
    state |= {f"{side}_effector_position": s[:, [i]] / effector_range for side, i in (("left", 14), ("right", 15))}
    state |= {"head_position": s[:, 16:18], "waist_position": s[:, 18:20]}
    action = {"left_arm_joint_position": a[:, :7], "left_effector_position": a[:, 7:8]}
    action |= {"right_arm_joint_position": a[:, 8:15], "right_effector_position": a[:, 15:16]}
    held = {name: state[name] for name in ("head_position", "waist_position")}  # not commanded: they stand still
    return state, action | held | {"robot_velocity": np.zeros((len(a), 2), np.float32)}


def rows(state: dict[str, np.ndarray], action: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Dataset features as the embodiment file orders them."""
    out = {}
    for key, slices, values in (("observation.state", G1.state, state), ("action", G1.action, action)):
        out[key] = np.zeros((len(state["head_position"]), max(s.stop for s in slices)), np.float32)
        for s in slices:
            out[key][:, s.start : s.stop] = values[s.name]
    return out


def chunks(row: dict[str, np.ndarray]) -> np.ndarray:
    """Every chunk of the episode as the model would have to predict it, (n, K, A)."""
    start = np.arange(0, len(row["action"]) - G1.chunk_actions)
    absolute = G1.action_of(row)[start[:, None] + np.arange(G1.chunk_actions)]
    return absolute - G1.anchor_of(row)[start, None]


def test_the_cameras_of_a_real_agibot_g1_lie_where_its_embodiment_says(demo: Path) -> None:
    files = {"top_head": "cur_head", "hand_left": "cur_left", "hand_right": "cur_right"}
    views = {}
    for view in G1.views:
        image = Image.open(demo / f"{files[view.name]}.png").convert("RGB")
        assert image.size == (512, 384)
        views[view.name] = np.asarray(image.resize((view.width, view.height), Image.Resampling.BOX))
    canvas = G1.tile(views)
    assert canvas.shape == (352, 640, 3) and not canvas[176:, 320:].any()  # DreamZero's last quadrant stays black
    for name, where in {
        "top_head": np.s_[:176, :320],
        "hand_right": np.s_[:176, 320:],
        "hand_left": np.s_[176:, :320],
    }.items():
        np.testing.assert_array_equal(canvas[where], views[name])
    # Which wrist camera is which: extrinsics (head, left, right) place each beside its own hand.
    camera = np.load(demo / "extrinsic_alignstate_0.npy")[1:, 0, :3, 3]
    hand = np.load(demo / "state_eef_poses_0.npy")[0][[[0, 1, 2], [7, 8, 9]]]
    distance = np.linalg.norm(camera[:, None] - hand[None], axis=-1)
    assert (np.diag(distance) < 0.15).all() and (distance[[0, 1], [1, 0]] > 0.4).all()


def test_state_and_actions_of_a_real_agibot_g1_have_our_order_and_units(demo: Path) -> None:
    state, action = parts(demo)
    row = rows(state, action)
    proprio = G1.proprio_of(row)
    assert proprio.shape == (len(row["action"]), 20) and np.isfinite(proprio).all()
    np.testing.assert_array_equal(
        proprio[:, 14:16], np.concatenate([state[f"{s}_effector_position"] for s in ("left", "right")], 1)
    )
    sides = ("left", "right")
    for side, other in (sides, sides[::-1]):  # a command follows its own arm within 0.06 rad, and never the other's
        command, arm = f"{side}_arm_joint_position", f"{other}_arm_joint_position"
        assert np.abs(action[command] - state[command]).max() < 0.06
        assert np.abs(action[command] - state[arm]).max(1).min() > 1
    moved = {side: np.ptp(state[f"{side}_arm_joint_position"], 0).max() for side in sides}
    busy = "left" if "left arm" in (demo / "task.txt").read_text().lower() else "right"
    assert moved[busy] > 1 > 0.1 > moved["left" if busy == "right" else "right"]
    assert 0 <= state[f"{busy}_effector_position"].min() < 0.05 < 0.9 < state[f"{busy}_effector_position"].max() <= 1
    pitch, lift = state["waist_position"].T
    assert (pitch > 0).all() and (pitch < np.pi / 2).all() and (lift >= 0).all() and (lift <= 0.55).all()  # rad and m


def test_every_chunk_of_a_real_agibot_g1_lies_within_our_bounds(demo: Path) -> None:
    row = rows(*parts(demo))
    relative = chunks(row)
    checked = G1.check_action(relative)
    assert np.abs(checked - relative).max() < 0.05  # grippers reach 1.04, and little else is clipped
    back = checked[0] + G1.anchor_of(row)[:1]
    np.testing.assert_allclose(back, G1.action_of(row)[: G1.chunk_actions], atol=0.05)


def test_grippers_in_the_robots_own_units_are_refused(demo: Path) -> None:
    with pytest.raises(ShapeError, match=r"_effector_position.*are the units right"):
        G1.check_action(chunks(rows(*parts(demo, effector_range=1.0))))


def test_real_episodes_of_a_unitree_g1_become_windows(tmp_path: Path) -> None:
    body = Embodiment.load(UNITREE)
    two = LeRobotDataset.open(f"{real('unitree_g1_bottle')}@80:82")
    windows = Windows(build_cache(two, body, None, tmp_path / "cache", workers=0), body, context_frames=2)
    batch = windows.batch(windows.rows("all")[::20])
    assert batch.video.shape[1:] == (6, 64, 96, 3) and batch.instructions == (
        "Pick up the yellow bottle on the table.",
    )
    assert 20 < float(batch.video.float().std()) < 100  # a picture, not one colour
    relative = batch.action.numpy()[batch.action_valid.numpy()]
    outside = (relative < body.action_low) | (relative > body.action_high)
    assert outside.mean() < 0.001


def test_a_drafted_embodiment_fits_the_unitree_recordings() -> None:
    dataset = LeRobotDataset.open(real("unitree_g1_bottle"))
    body, _ = draft(dataset)
    assert [(a.name, a.size, a.kind, a.mode) for a in body.action] == [
        ("left_arm", 7, "joint", "relative"),
        ("right_arm", 7, "joint", "relative"),
        ("left_hand", 6, "gripper", "absolute"),
        ("right_hand", 6, "gripper", "absolute"),
    ]
    assert (body.chunk_actions, body.chunk_frames, body.control_hz) == (24, 4, 30)
    for which in (body, Embodiment.load(UNITREE)):
        report = check_dataset(dataset, which)
        assert not report.errors and {w.split(" (")[0] for w in report.warnings} == {
            "there is no feature next.success",
            "there is no feature is_expert",
        }
