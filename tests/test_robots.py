"""Robots are found by name, module or file, and answer what the library asks of them."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml

from imagine.embodiment import Embodiment
from imagine.model.model import WorldActionModel
from imagine.policy.robots.plugin import RobotPlugin
from imagine.policy.robots.registry import DEFAULT, RecordedRobot, load_robot, remember, robot_of, spec_of
from imagine.rewards.rules import check_actions
from imagine.types import Chunk, ImagineError

OWN = """
from imagine.policy.robots.plugin import RobotPlugin

class Arm(RobotPlugin):
    name = "arm"

made = Arm()
nothing = 3
"""


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    (tmp_path / "my_lab_robot.py").write_text(OWN)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_an_installed_robot_is_found_by_its_name() -> None:
    assert load_robot(DEFAULT).name == DEFAULT and load_robot(load_robot(DEFAULT)) is load_robot(DEFAULT)


@pytest.mark.parametrize("what", ["Arm", "made"])
def test_a_robot_of_the_working_directory_is_found(what: str, project: Path) -> None:
    assert load_robot(f"my_lab_robot:{what}").name == "arm"


@pytest.mark.parametrize(
    ("spec", "expected"),
    [
        ("g1_tabel", "did you mean 'g1_table'"),
        ("zzz", "installed are"),
        ("my_lab_robot:nothing", "expected a RobotPlugin"),
        ("my_lab_robot:lost", "cannot be imported"),
        ("lost.yaml", "does not exist"),
    ],
)
def test_what_is_no_robot_is_refused_in_one_sentence(spec: str, expected: str, project: Path) -> None:
    with pytest.raises(ImagineError, match=expected) as caught:
        load_robot(spec)
    assert "\n" not in str(caught.value)


def test_a_bare_embodiment_is_a_robot_without_a_simulator(tmp_path: Path) -> None:
    body = load_robot(DEFAULT).embodiment()
    assert body is not None
    path = tmp_path / "mine.yaml"
    path.write_text(yaml.safe_dump(body.model_dump(mode="json")))
    robot = load_robot(path)
    assert isinstance(robot, RecordedRobot) and robot.embodiment() == body and not robot.has_env
    with pytest.raises(ImagineError, match="no environment to act in"):
        robot.make_env(body, horizon=1)
    assert robot.task_of("fold the towel") == "fold the towel" and robot.distractor("fold", 0, {}) is None


def test_a_model_folder_remembers_its_robot_and_can_travel(tmp_path: Path) -> None:
    body = load_robot(DEFAULT).embodiment()
    assert isinstance(body, Embodiment)
    (tmp_path / "away").mkdir()
    assert spec_of(tmp_path / "away") is None and robot_of(tmp_path / "away", body).name == body.name
    remember(DEFAULT, tmp_path / "away")
    assert robot_of(tmp_path / "away", body).name == DEFAULT
    file = tmp_path / "mine.yaml"
    file.write_text(yaml.safe_dump(body.model_dump(mode="json")))
    remember(file, tmp_path / "away")
    file.unlink()
    assert robot_of(tmp_path / "away", body).embodiment() == body
    (tmp_path / "away/robot.json").write_text(json.dumps([1]))
    with pytest.raises(ImagineError, match=r"robot.json is damaged"):
        spec_of(tmp_path / "away")


@pytest.mark.parametrize("seed", [0, 1, 2, 3])
def test_what_the_table_says_of_its_tasks_is_true(seed: int) -> None:
    robot = load_robot(DEFAULT)
    body = robot.embodiment()
    assert body is not None and robot.has_env
    env = robot.make_env(body, horizon=2)
    options = robot.options()
    _, info = env.reset(seed=seed)
    instruction, before = info["instruction"], robot.truth(env)
    assert before is not None and robot.task_of(instruction) == info["task_family"]
    possible = [text for text in robot.instructions() if robot.answers(before, before, text)["possible"]]
    assert instruction in possible and robot.distractor(instruction, seed, options) not in possible
    for what in robot.swaps():
        other = robot.other_instruction(what, instruction, seed, options)
        assert other in possible and other != instruction
    for text in possible:
        assert bool(robot.answers(before, before, text)["success"]) == robot.carried_out(env, text)
    chunk = robot.expert(env)
    assert chunk is not None and chunk.shape == env.action_space.shape and np.isfinite(chunk).all()


def test_a_plug_in_that_knows_nothing_says_so() -> None:
    robot = RobotPlugin()
    nothing = (robot.embodiment(), robot.limits, robot.recorder(), robot.swaps(), robot.options())
    assert nothing[0] is None and nothing[2] is None and nothing[3] == () and nothing[4] == {}


def body_of(*action: dict, state: tuple[dict, ...] = ()) -> Embodiment:
    """A small embodiment of these slices, which are laid out one after another."""
    return Embodiment.model_validate(
        {
            "name": "arm", "robot_type": "arm", "control_hz": 10, "chunk_actions": 4, "chunk_frames": 2,
            "canvas_height": 16, "canvas_width": 16, "proprio": [s["name"] for s in state],
            "views": [{"name": "top", "key": "top", "height": 16, "width": 16}],
            "state": [{"key": "state", **s} for s in state], "action": [{"key": "action", **a} for a in action],
        }
    )  # fmt: skip


YAW = {"name": "yaw", "start": 0, "stop": 1, "unit": "rad"}


@pytest.mark.parametrize("kind", [None, "rotation"])
@pytest.mark.parametrize("seed", [0, 1, 2, 3])
def test_angles_go_the_short_way_round_and_come_back(kind: str | None, seed: int) -> None:
    body = body_of(
        {**YAW, "kind": kind, "relative_to": "yaw", "low": -0.8, "high": 0.8}, state=({**YAW, "kind": kind},)
    )
    rng = np.random.default_rng(seed)
    anchor = rng.uniform(-np.pi, np.pi, (50, 1)).astype(np.float32)
    turned = rng.uniform(-0.8, 0.8, (50, 1)).astype(np.float32)
    target = body.absolute_action(turned, anchor)
    assert (np.abs(target) <= np.pi + 1e-6).all()
    np.testing.assert_allclose(np.exp(1j * target), np.exp(1j * (anchor + turned)), atol=1e-5)
    np.testing.assert_allclose(body.relative_action(target, anchor), turned, atol=1e-5)


def test_joints_count_on_beyond_a_whole_turn() -> None:
    joint = {**YAW, "kind": "joint"}
    body = body_of({**joint, "relative_to": "yaw", "low": -9, "high": 9}, state=(joint,))
    assert body.relative_action(np.array([[7.0]]), np.array([[1.0]])) == np.float32(6)
    assert body.absolute_action(np.array([[6.0]]), np.array([[1.0]])) == np.float32(7)


@pytest.mark.parametrize("unit", ["quaternion_wxyz", "quaternion_xyzw"])
@pytest.mark.parametrize("seed", [0, 1, 2, 3])
def test_both_quaternions_of_a_rotation_are_one_action(unit: str, seed: int) -> None:
    part = {"name": "turn", "start": 0, "stop": 4, "unit": unit, "kind": "rotation"}
    body = body_of({**part, "relative_to": "turn", "low": -1, "high": 1}, state=(part,))
    q = np.random.default_rng(seed).normal(size=(2, 4)).astype(np.float32)
    q /= np.linalg.norm(q, axis=1, keepdims=True)
    near = q[0] + 0.01 * q[1]
    near /= np.linalg.norm(near)
    anchors = [body.anchor_of({"state": s * q[:1]}) for s in (1, -1)]
    np.testing.assert_array_equal(*anchors)
    moves = [body.relative_action(body.action_of({"action": s * near[None]}), anchors[0]) for s in (1, -1)]
    np.testing.assert_array_equal(*moves)
    assert np.abs(moves[0]).max() < 0.02
    back = body.absolute_action(moves[0], anchors[0])[0]
    np.testing.assert_allclose(np.abs(back @ near), 1, atol=1e-5)


def test_what_stands_still_depends_on_the_mode_of_each_slice() -> None:
    state = ({"name": "grip", "start": 0, "stop": 1, "unit": "1"}, {"name": "hand", "start": 1, "stop": 2, "unit": "m"})
    body = body_of(
        {"name": "grip", "start": 0, "stop": 1, "unit": "1", "low": 0, "high": 1},
        {"name": "hand", "start": 1, "stop": 2, "unit": "m", "relative_to": "hand", "low": -1, "high": 1},
        {"name": "slide", "start": 2, "stop": 3, "unit": "m", "mode": "delta", "low": -1, "high": 3},
        {"name": "lamp", "start": 3, "stop": 4, "unit": "1", "low": 0, "high": 3},
        state=state,
    )
    chunk = body.hold(np.array([[0.3, 7.0], [9.0, 7.0]]))
    assert chunk.shape == (2, 4, 4) and (chunk == chunk[:, :1]).all()
    np.testing.assert_allclose(chunk[:, 0], [[0.3, 0, 0, 1.5], [1, 0, 0, 1.5]], rtol=1e-6)
    assert body.is_difference.tolist() == [False, True, True, False]


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        ({"mode": "relative"}, "relative_to"),
        ({"mode": "delta", "relative_to": "yaw"}, "relative_to"),
        ({"low": 1, "high": -1}, "low < high"),
        ({"stop": 0}, "stop above start"),
        ({"unit": "quaternion_wxyz"}, "expected 4"),
        ({"stop": 2, "relative_to": "yaw"}, "another number"),
    ],
)
def test_a_slice_that_makes_no_sense_is_refused(change: dict, expected: str) -> None:
    with pytest.raises(ValueError, match=expected):
        body_of({**YAW, "low": -1, "high": 1, **change}, state=(YAW,))


def test_an_action_commands_the_state_of_its_name_size_and_unit() -> None:
    state = ({"name": "hand", "start": 0, "stop": 2, "unit": "m"}, {"name": "grip", "start": 2, "stop": 3, "unit": "1"})
    hand = {"name": "hand", "start": 0, "stop": 2, "unit": "cm", "mode": "delta", "low": -1, "high": 1}
    grip = {"name": "grip", "start": 2, "stop": 3, "unit": "1", "low": 0, "high": 1}
    move = {"name": "move", "start": 3, "stop": 5, "unit": "m", "relative_to": "hand", "low": -1, "high": 1}
    body = body_of(hand, grip, move, state=state)
    assert body.commanded_in_proprio() == [(-1, True), (-1, True), (2, False), (0, True), (1, True)]
    assert body.anchors_in_proprio() == [-1, -1, -1, 0, 1]


def test_robots_without_limits_of_their_own_may_not_jump() -> None:
    state = ({"name": "hand", "start": 0, "stop": 1, "unit": "m"}, {**YAW, "start": 1, "stop": 2})
    hand = {"name": "hand", "start": 0, "stop": 1, "unit": "m", "relative_to": "hand", "low": -0.2, "high": 0.2}
    yaw = {**YAW, "start": 1, "stop": 2, "kind": "rotation", "low": -1, "high": 1}
    body = body_of({**hand, "kind": "position"}, yaw, state=state)
    limits = RobotPlugin().limits(body)
    assert limits is not None and limits.velocity == (pytest.approx(2.0), None) and limits.control_hz == 10
    jump = torch.tensor([[[0.0, 0], [0, 0], [0.3, 0], [0.3, 0]], [[0.0, 0], [0.1, 0], [0.2, 3], [0.3, -3]]])
    assert (check_actions(jump, torch.zeros(2, 2), limits)["velocity"] > 0).tolist() == [True, False]
    assert RobotPlugin().limits(body_of(hand, yaw, state=state)) is None, "of what has no kind nothing is known"


def test_how_far_a_command_must_lead_to_be_seen_depends_on_its_unit() -> None:
    table = load_robot(DEFAULT).embodiment()
    assert table is not None and table.visible_motion == pytest.approx([0.03] * table.action_dim)
    state = ({"name": "hand", "start": 0, "stop": 1, "unit": "px"},)
    hand = {"name": "hand", "start": 0, "stop": 1, "unit": "px", "relative_to": "hand", "low": -200, "high": 200}
    push = {"name": "push", "start": 1, "stop": 2, "unit": "cm", "mode": "delta", "low": -1, "high": 1}
    body = body_of(hand, push, state=state)
    assert body.visible_motion == pytest.approx([12, 0.06 * body.chunk_actions])


def test_the_tables_limits_need_no_kinds() -> None:
    robot = load_robot(DEFAULT)
    body = robot.embodiment()
    assert body is not None
    old = body.model_dump()
    for part in (*old["state"], *old["action"]):
        del part["kind"]
    assert robot.limits(Embodiment.model_validate(old)) == robot.limits(body)


@torch.no_grad()
def test_imagined_states_follow_actions_of_every_mode(tiny_model: WorldActionModel) -> None:
    other = {"name": "c", "start": 2, "stop": 3, "unit": "1"}
    state = ({"name": "a", "start": 0, "stop": 1, "unit": "m"}, {**YAW, "start": 1, "stop": 2}, other)
    a = {"name": "a", "start": 0, "stop": 1, "unit": "m", "mode": "delta", "low": -1, "high": 1}
    yaw = {**YAW, "start": 1, "stop": 2, "relative_to": "yaw", "low": -1, "high": 1}
    model = tiny_model
    model.body = body_of(a, yaw, state=state)
    k, frames = model.chunk_shapes["action"][0], model.chunk_shapes["video"][0]
    action = torch.full((1, k, 2), 0.1)
    now = torch.tensor([[[0.5, 3.1, 0.2]]])
    context = model.context(
        torch.zeros(1, 1, *model.chunk_shapes["video"][1:]), model.normalise_proprio(now), ["reach"]
    )
    chunk = Chunk(action=model.normalise_action(action))
    then = model.restore_proprio(model.integrate_proprio(context, chunk))
    assert then.shape == (1, frames, 3)
    torch.testing.assert_close(then[0, -1], torch.tensor([0.5 + 0.1 * k, 3.2 - 2 * torch.pi, 0.2]))
    torch.testing.assert_close(model.displacements(action)[0, :, 0], 0.1 * torch.arange(1, k + 1))
    assert (model.displacements(action)[..., 1] == action[..., 1]).all()
