"""Small recordings as foreign robots bring them: read rightly where they can be, refused in one sentence where not."""

from __future__ import annotations

import io
import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import av
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml
from PIL import Image

from imagine.agents.collect import collect
from imagine.configs import cli
from imagine.configs.commands.finetuning import checked
from imagine.configs.runfolder import RunFolder
from imagine.data import video
from imagine.data.cache import fingerprint
from imagine.data.check import Report, check_dataset
from imagine.data.draft import draft
from imagine.data.read import LeRobotDataset
from imagine.data.windows import Windows, build_cache
from imagine.embodiment import Embodiment
from imagine.model.codec import CodecConfig, FrameCodec
from imagine.model.dit import DiTConfig
from imagine.model.sizes import fitted
from imagine.policy.robots.registry import DEFAULT, load_robot, spec_of
from imagine.train.joint import build_model
from imagine.train.losses import JointConfig
from imagine.types import DatasetError, ImagineError

CAMERA, ROWS = "observation.images.top", 24
Columns = dict[str, Any]


def arm(**changes: Any) -> dict[str, Any]:
    """An embodiment of two joints and one camera."""
    both = {"key": "observation.state", "start": 0, "stop": 2}
    return {
        "name": "arm",
        "robot_type": "arm",
        "control_hz": 30,
        "chunk_actions": 4,
        "chunk_frames": 2,
        "canvas_height": 16,
        "canvas_width": 16,
        "views": [{"name": "top", "key": CAMERA, "height": 16, "width": 16}],
        "proprio": ["arm"],
        "state": [{"name": "arm", **both, "unit": "m"}],
        "action": [{"name": "arm", **both, "key": "action", "unit": "m", "low": -9, "high": 9}],
        **changes,
    }


def in_radians() -> dict[str, Any]:
    """The same arm, moved by joint angles relative to where it is."""
    body = arm()
    body["state"][0] |= {"unit": "rad", "kind": "joint"}
    body["action"][0] |= {"unit": "rad", "kind": "joint", "relative_to": "arm", "low": -0.8, "high": 0.8}
    return body


def record(
    root: Path, change: Callable[[Columns], Columns] = lambda c: c, *, task: str = "pick it up", episodes: int = 1
) -> Path:
    """Write a LeRobot v2.1 dataset; row i of every episode shows the grey level 40 + 8 i."""
    for folder in ("data", "meta"):
        (root / folder).mkdir(parents=True)
    vector = {"dtype": "float32", "shape": [2], "names": None}
    features = {CAMERA: {"dtype": "video", "shape": [16, 16, 3]}, "observation.state": vector, "action": vector}
    info = {"codebase_version": "v2.1", "robot_type": "arm", "fps": 30, "chunks_size": 1000, "features": features}
    info |= {"data_path": "data/{episode_index}.parquet", "video_path": "{episode_index}.mp4"}
    (root / "meta/info.json").write_text(json.dumps(info))
    (root / "meta/tasks.jsonl").write_text(json.dumps({"task_index": 0, "task": task}) + "\n")
    lines = [{"episode_index": e, "tasks": [], "length": ROWS} for e in range(episodes)]
    (root / "meta/episodes.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    for e in range(episodes):
        x = np.random.default_rng(e).normal(size=(ROWS, 2)).astype(np.float32)
        columns = {"observation.state": list(x), "action": list(x), "frame_index": np.arange(ROWS)}
        columns |= {"episode_index": np.full(ROWS, e), "task_index": np.zeros(ROWS, int)}
        pq.write_table(pa.table(change(columns)), root / f"data/{e}.parquet")
        film(root / f"{e}.mp4", ROWS)
    return root


def film(path: Path, frames: int) -> None:
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=30)
        stream.width = stream.height = 16
        stream.pix_fmt = "yuv420p"
        for i in range(frames):
            grey = np.full((16, 16, 3), 40 + 8 * i, np.uint8)
            container.mux(stream.encode(av.VideoFrame.from_ndarray(grey, format="rgb24")))
        container.mux(stream.encode(None))


def declare(root: Path, **features: dict[str, Any]) -> None:
    """Add features to a dataset's description, or replace them."""
    path = root / "meta/info.json"
    info = json.loads(path.read_text())
    info["features"] |= {name.replace("__", "."): feature for name, feature in features.items()}
    path.write_text(json.dumps(info))


def windows(root: Path, body: dict[str, Any] | None = None) -> Windows:
    parsed, dataset = Embodiment.model_validate(body or arm()), LeRobotDataset.open(root)
    return Windows(build_cache(dataset, parsed, None, root / "cache", workers=0), parsed, 1)


def check(root: Path, body: dict[str, Any] | None = None) -> Report:
    return check_dataset(LeRobotDataset.open(root), Embodiment.model_validate(body or arm()))


def in_degrees(columns: Columns) -> Columns:
    degrees = np.cumsum(np.random.default_rng(0).normal(size=(ROWS + 1, 2)) * 5, 0).astype(np.float32)
    return {**columns, "observation.state": list(degrees[:-1]), "action": list(degrees[1:])}


# ---------------------------------------------------------------------- what can be read
def test_a_feature_of_one_number_is_a_plain_column(tmp_path: Path) -> None:
    root = record(tmp_path / "d", lambda c: {**c, "action.grip": np.linspace(0, 1, ROWS).astype(np.float32)})
    declare(root, action__grip={"dtype": "float32", "shape": [1], "names": None})
    grip = {"name": "grip", "key": "action.grip", "start": 0, "stop": 1, "unit": "1", "low": 0, "high": 1}
    action = windows(root, arm(action=[*arm()["action"], grip]))._a["tick_action"]
    assert action.shape == (ROWS, 3)
    np.testing.assert_allclose(action[:, 2], np.linspace(0, 1, ROWS), rtol=1e-6)


def test_rows_are_read_in_the_order_of_their_frame_index(tmp_path: Path) -> None:
    order = np.random.default_rng(0).permutation(ROWS)
    sorted_ = windows(record(tmp_path / "a"))
    mixed = record(tmp_path / "b", lambda c: {name: [column[i] for i in order] for name, column in c.items()})
    np.testing.assert_array_equal(windows(mixed)._a["tick_action"], sorted_._a["tick_action"])
    assert any("order of frame_index in episode 0" in w for w in check(mixed).warnings)


def test_pictures_in_the_data_files_are_read_as_frames(tmp_path: Path) -> None:
    def pictures(columns: Columns) -> Columns:
        cells = []
        for i in range(ROWS):
            file = io.BytesIO()
            Image.fromarray(np.full((16, 16, 3), 40 + 8 * i, np.uint8)).save(file, "PNG")
            cells.append({"bytes": file.getvalue(), "path": None})
        return {name: column[::-1] for name, column in {**columns, CAMERA: cells}.items()}

    root = record(tmp_path / "d", pictures, episodes=2)
    declare(root, **{CAMERA.replace(".", "__"): {"dtype": "image", "shape": [16, 16, 3]}})
    for file in root.glob("*.mp4"):
        file.unlink()
    video = windows(root).video
    assert video.shape == (2 * ROWS // 2, 16, 16, 3)
    np.testing.assert_array_equal(video[:12, 0, 0, 0], 40 + 16 * np.arange(12))


def test_a_camera_without_its_pictures_is_refused(tmp_path: Path) -> None:
    root = record(tmp_path / "d")
    declare(root, **{CAMERA.replace(".", "__"): {"dtype": "image", "shape": [16, 16, 3]}})
    with pytest.raises(DatasetError, match=r"\(episode 0\) holds no usable images in column"):
        windows(root)


def test_pictures_that_claim_an_unreasonable_size_are_not_decoded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(video, "MOST_PIXELS", 255)
    with pytest.raises(
        DatasetError, match=r"0.mp4 \(episode 0\) cannot be decoded \(its pictures are 16x16, expected at most 255"
    ):
        windows(record(tmp_path / "d"))


def test_a_cache_follows_relabelled_tasks(tmp_path: Path) -> None:
    root = record(tmp_path / "d", task="pick up teh blok", episodes=2)
    assert windows(root).instructions == ("pick up teh blok",)
    tasks = root / "meta/tasks.jsonl"
    tasks.write_text(tasks.read_text().replace("teh blok", "the block"))
    assert windows(root).instructions == ("pick up the block",)


def test_a_long_instruction_is_read_word_by_word(tmp_path: Path) -> None:
    text = "pick up the red block on the left and put it into the bowl"
    root = record(tmp_path / "d", task=text, episodes=2)
    codec = FrameCodec(CodecConfig(channels=4, widths=(8, 8, 8)))
    dit = DiTConfig(layers=1, heads=2, head_dim=16, ffn_dim=32, action_patch=2)
    model = build_model(windows(root), codec, dit, JointConfig(), name="x")
    assert model.cfg.text.length == 14  # type: ignore[union-attr]
    assert model.embed_text([text]).shape[1] == 14


# ---------------------------------------------------------------------- what is refused
def test_degrees_in_a_file_that_says_radians_are_refused(tmp_path: Path) -> None:
    root = record(tmp_path / "d", in_degrees)
    report = check(root, in_radians())
    assert len(report.errors) == 1 and "are outside low -0.8 and high 0.8 rad" in report.errors[0]
    assert any("arm (action, 0:2) reaches" in w and "looks like degrees" in w for w in report.warnings)
    dit = DiTConfig(layers=1, heads=2, head_dim=16, ffn_dim=32, action_patch=2)
    with pytest.raises(DatasetError, match="are the units right"):
        build_model(windows(root, in_radians()), FrameCodec(CodecConfig()), dit, JointConfig(), name="x")


def test_a_number_that_is_not_finite_is_named_by_column_and_episode(tmp_path: Path) -> None:
    def spoil(columns: Columns) -> Columns:
        state = [row.copy() for row in columns["observation.state"]]
        if columns["episode_index"][0] == 3:
            state[4][0] = np.nan
        return {**columns, "observation.state": state}

    report = check(record(tmp_path / "d", spoil, episodes=5))
    assert len(report.errors) == 1
    assert "'observation.state' holds NaN or infinity in episode 3 (" in report.errors[0]


def test_a_video_that_ends_too_soon_is_named(tmp_path: Path) -> None:
    root = record(tmp_path / "d", episodes=3)
    film(root / "1.mp4", ROWS - 4)
    (error,) = check(root).errors
    assert "1.mp4 ends after 0.67 s, but the rows of episode 1 go on until 0.77 s" in error


def test_lost_rows_and_angles_that_jump_are_found(tmp_path: Path) -> None:
    def jump(columns: Columns) -> Columns:
        angle = (np.linspace(0, 9, ROWS) + np.pi) % (2 * np.pi) - np.pi
        state = np.stack([angle, angle], 1).astype(np.float32)
        frame = columns["frame_index"] + (columns["frame_index"] > 9)
        return {**columns, "observation.state": list(state), "action": list(state), "frame_index": frame}

    report = check(record(tmp_path / "d", jump), in_radians())
    assert any("frame_index does not count up by 1 in episode 0" in e for e in report.errors)
    assert any("jumps by about 2 pi in episode 0" in w for w in report.warnings)


def test_labels_are_explained_where_they_are_missing(tmp_path: Path) -> None:
    root = record(tmp_path / "d")
    assert {w.split(" (")[0] for w in check(root).warnings} == {
        "there is no feature next.success",
        "there is no feature is_expert",
    }
    never = record(tmp_path / "e", lambda c: {**c, "next.success": np.zeros(ROWS, bool)})
    declare(never, next__success={"dtype": "bool", "shape": [1], "names": None})
    assert any("next.success is False in every row" in w for w in check(never).warnings)


def test_instructions_that_say_nothing_or_too_much_are_refused(tmp_path: Path) -> None:
    assert "expected words" in check(record(tmp_path / "a", task="...")).errors[0]
    assert "has 601 bytes, expected at most 512" in check(record(tmp_path / "b", task="word " * 120 + "x")).errors[0]
    dataset, body = LeRobotDataset.open(record(tmp_path / "c")), Embodiment.model_validate(arm())
    assert "holds 'pick'" in check_dataset(dataset, body, known_words={"it", "up"}).errors[0]


# ---------------------------------------------------------------------- sizes
@pytest.mark.parametrize(
    ("dit", "change", "key"),
    [
        ({}, {"canvas_height": 72}, "canvas_height is 72, expected a multiple of 16"),
        ({}, {"chunk_frames": 1}, "chunk_frames is 1, expected a multiple of 2"),
        ({"action_patch": 6}, {"chunk_actions": 16, "chunk_frames": 4}, r"dit.action_patch is 6, expected one of \[1"),
    ],
)
def test_sizes_that_do_not_fit_are_refused_by_key(dit: dict[str, Any], change: dict[str, Any], key: str) -> None:
    with pytest.raises(ImagineError, match=key):
        fitted(DiTConfig.model_validate(dit), Embodiment.model_validate(arm(**change)), 8)


@pytest.mark.parametrize(("actions", "frames", "patch"), [(24, 4, 6), (16, 4, 8), (12, 4, 6), (4, 4, 2), (14, 2, 7)])
def test_the_action_patch_follows_from_the_chunk(actions: int, frames: int, patch: int) -> None:
    body = Embodiment.model_validate(arm(chunk_actions=actions, chunk_frames=frames))
    dit = fitted(DiTConfig(steer_tokens=1), body, 8)
    assert dit.action_patch == patch and dit.steer_tokens == actions * 2 // (frames * patch)


# ---------------------------------------------------------------------- the draft
def two_arms(columns: Columns) -> Columns:
    """State follows the commanded joints; the gripper opens from 0 to 1."""
    rng = np.random.default_rng(int(columns["episode_index"][0]))
    joints = np.cumsum(rng.normal(size=(ROWS + 1, 6)) * 0.05, 0)
    grip = rng.uniform(size=(ROWS + 1, 1))
    rows = np.concatenate([joints, grip], 1).astype(np.float32)
    return {**columns, "observation.state": list(rows[:-1]), "action": list(rows[1:])}


def drafted(root: Path) -> tuple[Embodiment, str]:
    return draft(LeRobotDataset.open(root))


def test_a_draft_groups_by_name_and_reads_the_values(tmp_path: Path) -> None:
    root = record(tmp_path / "d", two_arms, episodes=4)
    names = [f"{side}_shoulder_{i}" for side in ("left", "right") for i in range(3)] + ["right_gripper"]
    vector = {"dtype": "float32", "shape": [7], "names": {"motors": names}}
    declare(root, action=vector, observation__state=vector)
    body, text = drafted(root)
    got = [(a.name, a.start, a.stop, a.kind, a.mode, a.relative_to) for a in body.action]
    assert got == [
        ("left_arm", 0, 3, "joint", "relative", "left_arm"),
        ("right_arm", 3, 6, "joint", "relative", "right_arm"),
        ("right_gripper", 6, 7, "gripper", "absolute", None),
    ]
    assert (body.chunk_actions, body.chunk_frames, body.canvas_height, body.canvas_width) == (24, 4, 16, 16)
    assert (body.action[2].low, body.action[2].high) == (0, 1)
    (tmp_path / "draft.yaml").write_text(text)
    assert Embodiment.load(tmp_path / "draft.yaml") == body
    assert not check_dataset(LeRobotDataset.open(root), body).errors
    fitted(DiTConfig(), body, 8)


def test_a_draft_tells_displacements_from_targets(tmp_path: Path) -> None:
    def displaced(columns: Columns) -> Columns:
        step = np.random.default_rng(1).uniform(-1, 1, size=(ROWS, 2)).astype(np.float32)
        state = np.cumsum(np.concatenate([np.zeros((1, 2)), step[:-1] * 0.02]), 0).astype(np.float32)
        return {**columns, "observation.state": list(state), "action": list(step)}

    body, text = drafted(record(tmp_path / "d", displaced))
    assert [(a.mode, a.relative_to) for a in body.action] == [("delta", None)]
    assert "next displacement" in text


@pytest.mark.parametrize(
    ("source", "views", "size"), [((96, 128), 1, (64, 80)), ((240, 320), 3, (48, 64)), ((16, 16), 2, (16, 16))]
)
def test_a_draft_lays_views_on_a_canvas_that_patches_fill(
    source: tuple[int, int], views: int, size: tuple[int, int], tmp_path: Path
) -> None:
    root = record(tmp_path / "d")
    path = root / "meta/info.json"
    info = json.loads(path.read_text())
    del info["features"][CAMERA]
    path.write_text(json.dumps(info))
    declare(root, **{f"observation__images__c{i}": {"dtype": "image", "shape": [*source, 3]} for i in range(views)})
    body, _ = drafted(root)
    assert {(v.height, v.width) for v in body.views} == {size}
    assert (body.canvas_height, body.canvas_width) == (size[0], size[1] * views)


def test_a_draft_fits_what_collect_writes(tmp_path: Path) -> None:
    robot = load_robot(DEFAULT)
    recorder = robot.recorder()
    assert recorder is not None
    options = {**recorder.options, "families": ("pick_up",)}
    collect(
        tmp_path / "d", recorder.episode, 3, 0, 1, options=options, names=recorder.names,
        robot_type=recorder.robot_type, fps=recorder.fps, progress=lambda *_: None,
    )  # fmt: skip
    dataset = LeRobotDataset.open(tmp_path / "d")
    body, _ = draft(dataset)
    assert {a.name: a.mode for a in body.action if a.size > 1 and a.kind} == {
        "left_arm": "relative",
        "right_arm": "relative",
        "left_eef_position": "relative",
        "right_eef_position": "relative",
    }
    assert {a.name for a in body.action if a.kind == "gripper"} == {"left_gripper", "right_gripper"}
    fitted(DiTConfig(steer_tokens=1, decoder={"blocks": 1, "memory": 8}), body, 8)  # type: ignore[arg-type]
    for which in (body, robot.embodiment()):
        report = check_dataset(dataset, which)  # type: ignore[arg-type]
        assert not report.errors, report


# ---------------------------------------------------------------------- the commands
RECIPE = {
    "codec": {"channels": 4, "widths": [8, 8, 8]},
    "codec_fit": {"steps": 2, "batch": 4},
    "model_fit": {"steps": 2, "batch": 4},
    "dit": {"layers": 1, "heads": 2, "head_dim": 16, "ffn_dim": 32},
}


def command(*words: str, out: Path) -> int:
    return cli.main([*words, "--out", str(out)])


def test_from_recordings_to_a_model_with_a_drafted_embodiment(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    root = record(tmp_path / "d", two_arms, episodes=16)
    vector = {"dtype": "float32", "shape": [7], "names": None}
    declare(root, action=vector, observation__state=vector)
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(RECIPE))
    body, run = tmp_path / "arm.yaml", tmp_path / "run"
    words = ["--dataset", str(root), "--embodiment", str(body), "--preset", str(tmp_path / "recipe.yaml")]
    assert command("embodiment", "--dataset", str(root), out=body) == 0
    assert command("embodiment", "--dataset", str(root), out=body) == 2
    assert command("check", *words, out=tmp_path / "check") == 0
    assert command("train", *words, out=run) == 0
    said = capfd.readouterr().err
    assert "arm.yaml exists" in said and "no success head: the dataset has no feature next.success" in said
    assert spec_of(run / "model") == str(run / "model/robot.yaml") and (run / "model/dream.json").is_file()

    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(RECIPE | {"model_fit": {"steps": 3, "batch": 4}}))
    assert command("train", *words, out=run) == 2
    assert "model_fit.steps was 2, is 3" in capfd.readouterr().err
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(RECIPE))
    body.write_text(body.read_text().replace("control_hz: 30", "control_hz: 15"))
    assert command("train", *words, out=run) == 2
    assert "control_hz was 30, is 15" in capfd.readouterr().err


def test_a_run_goes_on_with_its_own_dataset_only(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    root = record(tmp_path / "d", episodes=3)
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(RECIPE | {"joint": {"video_only": 0.05}}))
    (tmp_path / "arm.yaml").write_text(yaml.safe_dump(arm()))
    words = ["--dataset", str(root), "--embodiment", str(tmp_path / "arm.yaml"), "--stages", "codec"]
    words += ["--preset", str(tmp_path / "recipe.yaml")]
    assert command("train", *words, out=tmp_path / "run") == 0
    shutil.rmtree(root)
    record(root, episodes=4)
    assert command("train", *words, out=tmp_path / "run") == 2
    error = capfd.readouterr().err
    assert "the dataset is not the one that run folder" in error and "episodes was 3, is 4" in error


@pytest.mark.parametrize(
    ("change", "key"),
    [({"canvas_width": 24}, "canvas_width is 24"), ({"chunk_actions": 6, "chunk_frames": 3}, "chunk_frames is 3")],
)
def test_train_refuses_before_it_decodes(
    change: dict[str, Any], key: str, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    root = record(tmp_path / "d")
    (tmp_path / "arm.yaml").write_text(yaml.safe_dump(arm(**change)))
    words = ["--dataset", str(root), "--embodiment", str(tmp_path / "arm.yaml"), "--preset", "nano"]
    assert command("train", *words, out=tmp_path / "run") == 2
    assert key in capfd.readouterr().err
    assert not (tmp_path / "run/cache").exists()


# ---------------------------------------------------------------------- what is written by strangers
def rewrite(root: Path, name: str, **changes: Any) -> None:
    path = root / name
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


@pytest.mark.parametrize(
    "change",
    [
        {"data_path": "../secret/{episode_index}.parquet"},
        {"video_path": "/etc/{episode_index}.mp4"},
        {"data_path": "{episode_index.__class__.__mro__}.parquet"},
        {"data_path": "data/{episode_index:0999999999d}.parquet"},
        {"video_path": "{episode_index!r}.mp4"},
        {"video_path": "{0}.mp4"},
        {"video_path": None},
    ],
)
def test_a_template_leads_to_files_of_the_dataset_only(change: dict[str, Any], tmp_path: Path) -> None:
    root = record(tmp_path / "d", episodes=2)
    (tmp_path / "secret").mkdir()
    for e in range(2):
        shutil.copy(root / f"data/{e}.parquet", tmp_path / "secret")
    rewrite(root, "meta/info.json", **change)
    with pytest.raises(DatasetError, match=r"outside of its folder|path template") as error:
        LeRobotDataset.open(root)
    assert len(str(error.value)) < 600


def test_a_link_may_lead_out_of_a_dataset_to_the_blobs_of_its_hub_snapshot_only(tmp_path: Path) -> None:
    repo = tmp_path / "datasets--someone--arm"
    root = record(repo / "snapshots/0123abc", episodes=2)
    for folder in (repo / "blobs", tmp_path / "elsewhere"):
        folder.mkdir()
        blob = shutil.copy(root / "data/1.parquet", folder / "5f3e")
        (root / "data/1.parquet").unlink()
        (root / "data/1.parquet").symlink_to(blob)
        if folder.name == "blobs":
            assert len(LeRobotDataset.open(root).features(1)["action"]) == ROWS
    with pytest.raises(DatasetError, match=r"data/1.parquet.*outside of its folder"):
        LeRobotDataset.open(root)


def test_a_line_of_tasks_ends_where_json_lines_end(tmp_path: Path) -> None:
    text = "pick it up\u2028then put it\u0085down"
    root = record(tmp_path / "d")
    (root / "meta/tasks.jsonl").write_text(json.dumps({"task_index": 0, "task": text}, ensure_ascii=False) + "\n")
    assert set(LeRobotDataset.open(root).instructions(0)) == {text}


@pytest.mark.parametrize(
    ("name", "rows", "says"),
    [
        ("episodes", [{"episode_index": 0, "tasks": "pick", "length": ROWS}] * 2, "episode 0 more than once"),
        ("episodes", [{"episode_index": 0, "tasks": [3], "length": ROWS}], "episode 0 is unusable .*no texts"),
        ("episodes", [{"episode_index": 0, "tasks": []}], "episode 0 lacks 'length'"),
        ("episodes", [{"episode_index": 0, "tasks": [], "length": "many"}], "episode 0 is unusable"),
        ("episodes", [[]], "no JSON object"),
        ("tasks", [{"task_index": 0, "task": None}], "gives task 0 as 'None'"),
        ("tasks", [{"task_index": 0, "task": "a"}, {"task_index": 0, "task": "b"}], "expected one text for each"),
    ],
)
def test_a_description_that_contradicts_itself_is_refused(
    name: str, rows: list[Any], says: str, tmp_path: Path
) -> None:
    root = record(tmp_path / "d")
    (root / f"meta/{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    with pytest.raises(DatasetError, match=says):
        LeRobotDataset.open(root)


def test_lost_episodes_and_deep_or_odd_descriptions_are_refused(tmp_path: Path) -> None:
    root = record(tmp_path / "d", episodes=2)
    rewrite(root, "meta/info.json", total_episodes=3)
    with pytest.raises(DatasetError, match="lists 2 episodes, expected 3"):
        LeRobotDataset.open(root)
    rewrite(root, "meta/info.json", total_episodes=2, fps="often")
    with pytest.raises(DatasetError, match=r"info.json: fps: "):
        LeRobotDataset.open(root)
    (root / "meta/info.json").write_text("[" * 100_000 + "]" * 100_000)
    with pytest.raises(DatasetError, match=r"info.json is corrupt"):
        LeRobotDataset.open(root)


def test_one_task_given_as_a_text_is_one_instruction(tmp_path: Path) -> None:
    root = record(tmp_path / "d", lambda c: {name: column for name, column in c.items() if name != "task_index"})
    row = {"episode_index": 0, "tasks": "pick it up", "length": ROWS}
    (root / "meta/episodes.jsonl").write_text(json.dumps(row) + "\n")
    assert LeRobotDataset.open(root).instructions(0) == ["pick it up"] * ROWS


def test_columns_that_nothing_uses_may_hold_anything(tmp_path: Path) -> None:
    def clutter(columns: Columns) -> Columns:
        odd = [None if i % 3 else i for i in range(ROWS)]
        return {
            **columns,
            "observation.tactile": [[1.0] * (i % 3) for i in range(ROWS)],
            "note": odd,
            "text": ["x"] * ROWS,
        }

    w = windows(record(tmp_path / "d", clutter))
    np.testing.assert_array_equal(w._a["tick_action"], windows(record(tmp_path / "e"))._a["tick_action"])
    assert set(LeRobotDataset.open(tmp_path / "d").features(0)) >= {"action", "task_index"}


@pytest.mark.parametrize(
    ("spoil", "says"),
    [
        (lambda action: [None, *action[1:]], "no usable column 'action': it has empty cells"),
        (lambda action: [[1.0], [1.0, 2.0, 3.0], *action[2:]], "its lists have 1 to 3 numbers"),
        (lambda action: [[*row, 0.0] for row in action], "holds 3 numbers of 'action' in a row, expected 2"),
        (lambda action: ["left"] * len(action), "no usable column 'action'"),
    ],
)
def test_a_column_that_is_used_is_read_whole_or_not_at_all(
    spoil: Callable[[list[Any]], list[Any]], says: str, tmp_path: Path
) -> None:
    root = record(tmp_path / "d", lambda c: {**c, "action": spoil([row.tolist() for row in c["action"]])})
    assert len(check(root).errors) == 1 and says in check(root).errors[0] and "episode 0" in check(root).errors[0]
    with pytest.raises(DatasetError, match=says):
        windows(root)


def test_rows_that_are_lost_are_refused_without_a_check(tmp_path: Path) -> None:
    def lose(columns: Columns) -> Columns:
        return {**columns, "frame_index": columns["frame_index"] + (columns["frame_index"] > 9)}

    with pytest.raises(DatasetError, match=r"\(episode 0\) lost rows or has some twice"):
        windows(record(tmp_path / "d", lose))


# ---------------------------------------------------------------------- what was made of other data
def test_a_cache_follows_data_that_changed_within_its_file(tmp_path: Path) -> None:
    root, plain = record(tmp_path / "d"), {"compression": "none", "use_dictionary": False, "write_statistics": False}
    file = root / "data/0.parquet"
    table = pq.read_table(file)
    pq.write_table(table, file, **plain)
    before, stat = windows(root)._a["tick_action"].copy(), file.stat()
    rows = [[-a, b] for a, b in table["action"].to_pylist()]
    pq.write_table(table.set_column(1, "action", pa.array(rows, table["action"].type)), file, **plain)
    os.utime(file, ns=(stat.st_atime_ns, stat.st_mtime_ns))
    assert file.stat().st_size == stat.st_size
    np.testing.assert_array_equal(windows(root)._a["tick_action"], before * [-1, 1])


def test_a_fingerprint_tells_what_a_model_would_learn_otherwise(tmp_path: Path) -> None:
    def of(root: Path) -> object:
        return fingerprint(LeRobotDataset.open(root))["digest"]

    root = record(tmp_path / "d", episodes=2)
    first = of(root)
    shutil.copytree(root, tmp_path / "copy")
    assert of(tmp_path / "copy") == first
    rewrite(root, "meta/info.json", fps=31)
    assert of(root) != first
    rewrite(root, "meta/info.json", fps=30)
    assert of(root) == first
    film(root / "1.mp4", ROWS + 1)
    assert of(root) != first


def test_a_fine_tuning_goes_on_with_its_own_dataset_only(tmp_path: Path) -> None:
    root = record(tmp_path / "d", episodes=2)
    model: Any = SimpleNamespace(body=Embodiment.model_validate(arm()), cfg=SimpleNamespace(text=None))
    folder = RunFolder(tmp_path / "run", {})
    assert len(checked(folder, [str(root)], model)[0]) == 2
    (folder / "fit").mkdir()
    checked(folder, [str(root)], model)
    tasks = root / "meta/tasks.jsonl"
    tasks.write_text(tasks.read_text().replace("pick", "take"))
    with pytest.raises(ImagineError, match="the dataset is not the one"):
        checked(folder, [str(root)], model)


def test_a_cache_of_numbers_that_are_not_finite_is_never_built(tmp_path: Path) -> None:
    root = record(tmp_path / "d", lambda c: {**c, "action": [[None, 1.0], *c["action"][1:]]})
    with pytest.raises(DatasetError, match="episode 0 holds NaN or infinity in what becomes tick_action"):
        windows(root)
    assert not (root / "cache").exists()


# ---------------------------------------------------------------------- what is told beside
def test_the_share_of_actions_outside_the_bounds_is_told(tmp_path: Path) -> None:
    report = check(record(tmp_path / "d"), arm(action=[arm()["action"][0] | {"low": -1, "high": 1}]))
    normal = np.random.default_rng(0).normal(size=(ROWS, 2)).astype(np.float32)
    assert 0.15 < report.outside["arm"] < 0.5
    assert abs(report.outside["arm"] - (np.abs(normal) > 1.02).mean()) < 0.05


def test_degrees_that_jump_and_tasks_that_contradict_are_told(tmp_path: Path) -> None:
    def spin(columns: Columns) -> Columns:
        angle = (np.linspace(0, 500, ROWS) + 180) % 360 - 180
        rows = np.stack([angle, angle], 1).astype(np.float32)
        return {**columns, "observation.state": list(rows), "action": list(rows)}

    root = record(tmp_path / "d", spin)
    row = {"episode_index": 0, "tasks": ["something else"], "length": ROWS}
    (root / "meta/episodes.jsonl").write_text(json.dumps(row) + "\n")
    body = arm(state=[arm()["state"][0] | {"unit": "deg"}], action=[arm()["action"][0] | {"low": -200, "high": 200}])
    found = check(root, body)
    assert any("jumps by about 2 pi in episode 0" in w for w in found.warnings)
    assert any("lists other tasks for episode 0 than their rows name" in w for w in found.warnings)
    assert not found.errors


def test_a_name_in_a_data_file_that_is_no_text_is_a_damaged_file(tmp_path: Path) -> None:
    root = record(tmp_path / "d")
    file = root / "data/0.parquet"
    file.write_bytes(file.read_bytes().replace(b"frame_index", b"frame\xf3\xf3ndex"))
    with pytest.raises(DatasetError, match=r"0.parquet \(episode 0\) is truncated or corrupt"):
        LeRobotDataset.open(root)
