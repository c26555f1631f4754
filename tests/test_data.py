"""Datasets survive crashes, bad files are named, and windows hold what a slow reading of the episode says."""

from __future__ import annotations

import json
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from imagine.agents.collect import collect, episode_data
from imagine.agents.collect_cache import caches_in, collect_cache
from imagine.data import cache as cache_module
from imagine.data.batches import WindowSampler
from imagine.data.episode_cache import write_cache
from imagine.data.read import LeRobotDataset
from imagine.data.shard import marker_path
from imagine.data.stats import array_stats, image_stats, merge_stats
from imagine.data.video import VideoWriter, decode
from imagine.data.windows import WindowBatch, Windows, build_cache, statistics
from imagine.data.write import DatasetWriter, EpisodeData
from imagine.embodiment import Embodiment
from imagine.types import DatasetError, ImagineError, ShapeError
from imagine.world.starts import DatasetStarts

EPISODES, SHARD, STRIDE, K, F, T = 7, 3, 2, 6, 3, 3
CAMERAS = {"head": 16, "hand": 8}


@dataclass
class Episode:
    state: np.ndarray
    action: np.ndarray
    is_expert: np.ndarray
    success: np.ndarray
    task: list[str]
    failure_mode: str
    seed: int
    views: dict[str, np.ndarray]
    view_index: np.ndarray


def random_episode(seed: int, fail_at: int = -1, takes: float = 0.0) -> Episode:
    """A tiny random episode of 9 to 16 ticks whose instruction changes midway for odd seeds."""
    time.sleep(takes)
    if seed == fail_at:
        raise RuntimeError("the robot fell over")
    rng = np.random.default_rng(seed)
    n = int(rng.integers(9, 17))
    index = np.arange(n) // STRIDE
    views = {}
    for name, size in CAMERAS.items():
        # Smooth grey pictures: what chroma subsampling and compression leave nearly alone.
        ramp = np.linspace(0, 60, size)[:, None] + rng.uniform(40, 180, (index.max() + 1, 1, 1))
        views[name] = np.repeat(np.broadcast_to(ramp, (len(ramp), size, size))[..., None], 3, -1).astype(np.uint8)
    return Episode(
        state=rng.normal(size=(n, 5)).astype(np.float32),
        action=rng.normal(size=(n, 4)).astype(np.float32),
        is_expert=rng.uniform(size=n) > 0.15,
        success=np.arange(n) > n - 4,
        task=["pick it up"] * (n // 2) + ["put it down" if seed % 2 else "pick it up"] * (n - n // 2),
        failure_mode="miss" if seed % 3 == 0 else "",
        seed=seed,
        views=views,
        view_index=index,
    )


def embodiment(**changes: object) -> Embodiment:
    return Embodiment.model_validate(
        {
            "name": "tiny",
            "robot_type": "tiny",
            "control_hz": 30,
            "chunk_actions": K,
            "chunk_frames": F,
            "canvas_height": 16,
            "canvas_width": 24,
            "views": [
                {"name": "head", "key": "observation.images.head", "height": 16, "width": 16},
                {"name": "hand", "key": "observation.images.hand", "height": 8, "width": 8, "top": 8, "left": 16},
            ],
            "state": [
                {"name": "hand", "key": "observation.state", "start": 0, "stop": 3, "unit": "m"},
                {"name": "grip", "key": "observation.state", "start": 4, "stop": 5, "unit": "1"},
            ],
            "proprio": ["hand", "grip"],
            "action": [
                {"name": "hand", "key": "action", "start": 1, "stop": 4, "unit": "m", "relative_to": "hand"}
                | {"low": -1, "high": 1},
                {"name": "grip", "key": "action", "start": 0, "stop": 1, "unit": "1", "low": 0, "high": 1},
            ],
            **changes,
        }
    )


def record(out: Path, episodes: int = EPISODES, workers: int = 2, **options: object) -> dict[str, object]:
    path = f"{__name__}:random_episode"
    return collect(
        out,
        path,
        episodes,
        0,
        workers,
        shard_size=SHARD,
        options=options,
        robot_type="tiny",
        progress=lambda a, b: None,
    )


def written(out: Path, episodes: int = EPISODES, **changes: object) -> DatasetWriter:
    """The same dataset without processes."""
    writer = DatasetWriter(out, "tiny", 30, SHARD)
    for shard in range(-(-episodes // SHARD)):
        seeds = range(shard * SHARD, min(episodes, (shard + 1) * SHARD))
        data = [episode_data(random_episode(s)) for s in seeds]
        writer.write_shard(shard, [EpisodeData(**{**vars(d), **changes}) for d in data])
    return writer


def test_a_yaw_that_turns_over_pi_moves_a_little_at_a_time(tmp_path: Path) -> None:
    n, tick = 24, 0.02
    yaw = ((3.0 + tick * np.arange(n + 1) + np.pi) % (2 * np.pi) - np.pi).astype(np.float32)[:, None]
    episode = random_episode(2)
    views = {f"observation.images.{name}": frames for name, frames in episode.views.items()}
    features = {"observation.state": yaw[:-1], "action": yaw[1:]}
    writer = DatasetWriter(tmp_path, "tiny", 30, SHARD)
    index = np.minimum(np.arange(n) // STRIDE, len(episode.views["head"]) - 1)
    writer.write_shard(0, [EpisodeData(features, ["turn"] * n, views, index)])
    writer.finalize()
    part = {"name": "yaw", "key": "observation.state", "start": 0, "stop": 1, "unit": "rad", "kind": "rotation"}
    action = {**part, "key": "action", "relative_to": "yaw", "low": -0.8, "high": 0.8}
    body = embodiment(state=[part], proprio=["yaw"], action=[action])
    windows = Windows(build_cache(LeRobotDataset.open(tmp_path), body, None, tmp_path / "cache", workers=0), body, 1)
    moved, valid = windows.actions(np.arange(len(windows)))
    expected = np.broadcast_to(tick * np.arange(1, K + 1, dtype=np.float32)[:, None], moved.shape)
    np.testing.assert_allclose(moved[valid], expected[valid], atol=1e-5)
    known = statistics(windows)["action"]
    assert tick <= known["mean"][0] <= K * tick and known["std"][0] < K * tick


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> LeRobotDataset:
    out = tmp_path_factory.mktemp("data") / "tiny"
    written(out).finalize()
    return LeRobotDataset.open(out)


@pytest.fixture()
def copy(dataset: LeRobotDataset, tmp_path: Path) -> Path:
    import shutil

    return Path(shutil.copytree(dataset.root, tmp_path / "copy"))


@pytest.fixture(scope="module")
def windows(dataset: LeRobotDataset, tmp_path_factory: pytest.TempPathFactory) -> Windows:
    folder = tmp_path_factory.mktemp("cache") / "latents"
    return Windows(build_cache(dataset, embodiment(), encode, folder, workers=0), embodiment(), T)


def encode(canvas: torch.Tensor) -> torch.Tensor:
    return torch.nn.functional.avg_pool2d(canvas.permute(0, 3, 1, 2).float() / 255, 4)


def check_equal(dataset: LeRobotDataset, i: int, episode: Episode) -> None:
    got = dataset.features(i)
    for key, want in {
        "observation.state": episode.state,
        "action": episode.action,
        "is_expert": episode.is_expert,
        "next.success": episode.success,
        "frame_index": np.arange(len(episode.task)),
        "timestamp": np.arange(len(episode.task), dtype=np.float32) / np.float32(30),
    }.items():
        np.testing.assert_array_equal(got[key], want)
        assert got[key].dtype == want.dtype
    assert dataset.instructions(i) == episode.task
    assert (dataset[i].seed, dataset[i].failure_mode) == (episode.seed, episode.failure_mode)
    rows = np.arange(0, len(episode.task), 3)
    for name, frames in episode.views.items():
        seen = dataset.frames(i, f"observation.images.{name}", rows)
        assert np.abs(seen.astype(int) - frames[episode.view_index[rows]]).max() <= 6


# --- writing -------------------------------------------------------------------------------------------------------


def test_what_two_processes_write_is_read_back(tmp_path: Path) -> None:
    info = record(tmp_path / "d")
    dataset = LeRobotDataset.open(tmp_path / "d")
    assert info["collected"] == len(dataset) == EPISODES
    for i in range(EPISODES):
        check_equal(dataset, i, random_episode(i))
    index = np.concatenate([dataset.features(i, ["index"])["index"] for i in range(EPISODES)])
    np.testing.assert_array_equal(index, np.arange(int(info["total_frames"])))  # type: ignore[call-overload]


def test_a_killed_collection_goes_on_where_it_stopped(tmp_path: Path) -> None:
    out = tmp_path / "d"
    written(out)  # never finalized
    marker_path(out, 1).unlink()  # killed before shard 1 was complete, with a file half written
    left = out / "data/chunk-000/.file-001.parquet.4194305-0123abcd.tmp"
    left.write_bytes(b"half")
    (out / "videos/observation.images.hand/chunk-000/file-002.mp4").write_bytes(b"")  # and shard 2 lost a video
    with pytest.raises(DatasetError, match="unfinished"):
        LeRobotDataset.open(out)
    info = record(out, workers=1)
    assert info["collected"] == SHARD + 1 and not left.exists()
    dataset = LeRobotDataset.open(out)
    for i in range(EPISODES):
        check_equal(dataset, i, random_episode(i))


def test_a_dataset_can_grow_and_finalizing_twice_changes_nothing(tmp_path: Path) -> None:
    written(tmp_path / "d", episodes=4).finalize()
    writer = written(tmp_path / "d")
    first = writer.finalize()
    before = {p: p.read_bytes() for p in (tmp_path / "d").rglob("*.parquet")}
    assert writer.finalize() == first
    assert before == {p: p.read_bytes() for p in before}
    dataset = LeRobotDataset.open(tmp_path / "d")
    check_equal(dataset, EPISODES - 1, random_episode(EPISODES - 1))


def test_a_dataset_that_others_have_added_to_is_not_written_over(tmp_path: Path) -> None:
    written(tmp_path / "d", episodes=4).finalize()
    path = tmp_path / "d/meta/info.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"total_episodes": 5}))
    with pytest.raises(DatasetError, match="has 5 episodes, expected the 4 that were collected"):
        record(tmp_path / "d", workers=1)


def test_seeds_that_cannot_be_read_are_refused_and_foreign_ones_left(copy: Path) -> None:
    path = copy / "meta/seeds.parquet"
    table = pq.read_table(path)
    lengths = pa.array([n + 1 for n in table["length"].to_pylist()])
    pq.write_table(table.set_column(1, "length", lengths), path)  # of episodes that are numbered anew
    assert {e.seed for e in LeRobotDataset.open(copy).layout.episodes} == {None}
    pq.write_table(table.drop_columns(["episode_index"]), path)
    with pytest.raises(DatasetError, match=r"seeds.parquet: episode None lacks 'episode_index'"):
        LeRobotDataset.open(copy)


def test_a_feature_of_one_number_is_written_as_lerobot_keeps_it(tmp_path: Path) -> None:
    grip = np.linspace(0, 1, 30, dtype=np.float32)[:, None]
    views = {"observation.images.c": np.zeros((1, 16, 16, 3), np.uint8)}
    writer = DatasetWriter(tmp_path, "tiny", 30, SHARD)
    writer.write_shard(0, [EpisodeData({"action": grip}, ["close"] * 30, views, np.zeros(30, int))])
    writer.finalize()
    assert pq.read_schema(tmp_path / "data/chunk-000/file-000.parquet").field("action").type == pa.float32()
    np.testing.assert_array_equal(LeRobotDataset.open(tmp_path).features(0)["action"], grip)


def test_a_failing_episode_is_named_and_other_shards_are_kept(tmp_path: Path) -> None:
    with pytest.raises(ImagineError, match="seed 4 failed: RuntimeError: the robot fell over"):
        record(tmp_path / "d", workers=1, fail_at=4)
    assert [marker_path(tmp_path / "d", i).exists() for i in range(3)] == [True, False, True]
    assert not list((tmp_path / "d").rglob("*.tmp"))


def test_other_settings_than_the_dataset_was_started_with_are_refused(tmp_path: Path) -> None:
    written(tmp_path / "d", episodes=3)
    with pytest.raises(DatasetError, match="expected 5 to 7"):
        DatasetWriter(tmp_path / "d", "tiny", 30, SHARD).is_complete(0, range(5, 8))
    (tmp_path / "d/meta/collection.json").write_text('{"options": {"blocks": 2}}')
    with pytest.raises(DatasetError, match="blocks"):
        record(tmp_path / "d", episodes=3)


def test_evaluation_seeds_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ImagineError, match="900000"):
        collect(tmp_path, f"{__name__}:random_episode", 2, 899_999, 1)
    with pytest.raises(ImagineError, match="module:function"):
        collect(tmp_path, f"{__name__}:nothing", 2, 0, 1)


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"view_index": np.zeros(3, int)}, "view_index"),
        (
            {"features": {"action": np.full((40, 2), np.nan)}, "task": ["a"] * 40, "view_index": np.zeros(40, int)},
            "NaN",
        ),
        ({"views": {"c": np.zeros((99, 15, 16, 3), np.uint8)}}, "even"),
        ({"task": [], "features": {}}, "0 ticks"),
    ],
)
def test_malformed_episodes_are_refused(tmp_path: Path, changes: dict[str, object], says: str) -> None:
    with pytest.raises(ShapeError, match=says):
        written(tmp_path / "d", episodes=1, **changes)
    assert not [p for p in (tmp_path / "d").rglob("*") if p.is_file()]


def test_metadata_follow_the_layout_of_lerobot(dataset: LeRobotDataset) -> None:
    info = json.loads((dataset.root / "meta/info.json").read_text())
    assert info["codebase_version"] == "v3.0" and info["splits"] == {"train": f"0:{EPISODES}"}
    assert info["features"]["observation.images.head"]["dtype"] == "video"
    assert info["features"]["observation.state"] == {"dtype": "float32", "shape": [5], "names": None}
    tasks = pq.read_table(dataset.root / "meta/tasks.parquet").to_pandas()
    assert tasks.index.name == "task" and tasks.loc["put it down", "task_index"] == 1
    episodes = pq.read_table(dataset.root / "meta/episodes/chunk-000/file-000.parquet").to_pylist()
    assert [e["dataset_to_index"] for e in episodes[:-1]] == [e["dataset_from_index"] for e in episodes[1:]]
    kinds = dict.fromkeys(name.partition("/")[0] for name in episodes[0])  # in LeRobot's order, and nothing of ours
    first = ["episode_index", "tasks", "length", "data", "dataset_from_index", "dataset_to_index", "videos"]
    assert list(kinds) == [*first, "stats", "meta"]
    counted = {name.split("/")[1] for name in episodes[0] if name.startswith("stats/")}
    assert counted == set(info["features"]) >= {"index", "task_index", "timestamp"}
    assert episodes[3]["stats/episode_index/min"] == [3.0] and episodes[3]["stats/index/count"] == [
        episodes[3]["length"]
    ]
    stats = json.loads((dataset.root / "meta/stats.json").read_text())
    state = np.concatenate([random_episode(i).state for i in range(EPISODES)])
    np.testing.assert_allclose(stats["observation.state"]["mean"], state.mean(0), atol=1e-6)
    np.testing.assert_allclose(stats["observation.state"]["std"], state.std(0), atol=1e-6)
    np.testing.assert_allclose(stats["observation.state"]["q99"], np.quantile(state, 0.99, 0), atol=1e-6)
    assert np.shape(stats["observation.images.head"]["q50"]) == (3, 1, 1)


def test_merged_statistics_are_those_of_the_whole() -> None:
    x = np.random.default_rng(0).normal(size=(90, 3))
    merged, whole = merge_stats([array_stats(x[:20]), array_stats(x[20:])]), array_stats(x)
    for name in ("min", "max", "mean", "std", "count"):
        np.testing.assert_allclose(merged[name], whole[name])


def test_image_statistics_are_those_of_the_pixels() -> None:
    frames = np.random.default_rng(0).integers(0, 256, (3, 8, 8, 3), dtype=np.uint8)
    pixels = frames[:, ::2, ::2].reshape(-1, 3) / 255
    got = image_stats(frames)
    for name in ("min", "max", "mean", "std"):
        np.testing.assert_allclose(got[name][:, 0, 0], getattr(pixels, name)(0), atol=1e-9)


# --- reading -------------------------------------------------------------------------------------------------------

DATA = "data/chunk-000/file-001.parquet"
VIDEO = "videos/observation.images.hand/chunk-000/file-001.mp4"


@pytest.mark.parametrize("name", [DATA, VIDEO])
@pytest.mark.parametrize("damage", ["missing", "truncated", "empty"])
def test_a_bad_file_is_named_with_its_episode(copy: Path, name: str, damage: str) -> None:
    path = copy / name
    if damage == "missing":
        path.unlink()
    else:
        path.write_bytes(path.read_bytes()[: path.stat().st_size * 2 // 3 if damage == "truncated" else 0])
    with pytest.raises(DatasetError) as error:
        LeRobotDataset.open(copy)
    assert str(path) in str(error.value) and f"episode {SHARD}" in str(error.value)


def test_a_damaged_page_or_picture_is_named_when_it_is_read(copy: Path) -> None:
    good = LeRobotDataset.open(copy)
    raw = bytearray((copy / VIDEO).read_bytes())
    at = raw.index(b"mdat") + 4
    raw[at : raw.index(b"moov") - 8] = b"\xff" * (raw.index(b"moov") - 8 - at)
    (copy / VIDEO).write_bytes(raw)
    with pytest.raises(DatasetError, match=rf"hand/chunk-000/file-001.mp4 \(episode {SHARD + 1}\)"):
        good.frames(SHARD + 1, "observation.images.hand", [0, 5])
    data = bytearray((copy / DATA).read_bytes())
    data[4:400] = b"\xff" * 396
    (copy / DATA).write_bytes(data)
    with pytest.raises(DatasetError, match=rf"file-001.parquet \(episode {SHARD}\)"):
        good.features(SHARD)


def test_a_short_video_is_named_with_the_episode_that_needs_it(copy: Path) -> None:
    episode = random_episode(SHARD)
    with VideoWriter(copy / VIDEO, 30, 8, 8) as video:
        video.add(episode.views["hand"], episode.view_index)
    short = LeRobotDataset.open(copy)
    short.frames(SHARD, "observation.images.hand", [0])
    with pytest.raises(DatasetError, match=rf"\(episode {SHARD + 1}\) cannot be decoded"):
        short.frames(SHARD + 1, "observation.images.hand", [0])


@pytest.mark.parametrize(
    ("name", "content", "says"),
    [
        ("meta/info.json", None, "missing"),
        ("meta/info.json", b"{", "corrupt"),
        ("meta/info.json", b'{"codebase_version": "v1.6", "features": {}}', "v1.6"),
        ("meta/tasks.parquet", b"PAR1", "corrupt"),
        ("meta/episodes/chunk-000/file-000.parquet", None, "no parquet file"),
    ],
)
def test_bad_metadata_are_named(copy: Path, name: str, content: bytes | None, says: str) -> None:
    (copy / "meta/shards").rename(copy / "elsewhere")
    (copy / name).unlink()
    if content is not None:
        (copy / name).write_bytes(content)
    with pytest.raises(DatasetError, match=says):
        LeRobotDataset.open(copy)
    with pytest.raises(DatasetError, match="does not exist"):
        LeRobotDataset.open(copy / "nothing")


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"views": [{"name": "x", "key": "observation.images.x", "height": 2, "width": 2}]}, "observation.images.x"),
        (
            {"state": [{"name": "hand", "key": "observation.state", "start": 3, "stop": 6, "unit": "m"}]},
            "expected at least 6",
        ),
        (
            {"state": [{"name": "hand", "key": "observation.pose", "start": 0, "stop": 3, "unit": "m"}]},
            "observation.pose",
        ),
    ],
)
def test_another_robot_is_refused(dataset: LeRobotDataset, changes: dict[str, object], says: str) -> None:
    if "state" in changes:
        changes = {**changes, "proprio": ["hand"]}
    with pytest.raises(DatasetError, match=says):
        dataset.check_embodiment(embodiment(**changes))


def test_decoding_holds_the_newest_frame_where_a_stream_has_a_gap(tmp_path: Path) -> None:
    grey = np.repeat(np.array([40, 90, 200], np.uint8), 8 * 8 * 3).reshape(3, 8, 8, 3)
    with VideoWriter(tmp_path / "v.mp4", 10, 8, 8) as video:
        video.add(grey, np.arange(3))
    got = [int(f.mean()) for f in decode(tmp_path / "v.mp4", 30, [0, 2, 3, 5, 6])]  # 10 fps read at 30
    np.testing.assert_allclose(got, [40, 40, 90, 90, 200], atol=3)


def version_2(root: Path, episodes: int, features: tuple[str, ...], fps: int = 30) -> None:
    """Write a v2.1 folder by hand: one parquet and one video per camera and episode."""
    cameras = [f"observation.images.{name}" for name in CAMERAS]
    described: dict[str, dict[str, object]] = {key: {"dtype": "video", "shape": [8, 8, 3]} for key in cameras}
    rows, tasks = [], ["pick it up", "put it down"]
    for i in range(episodes):
        e = random_episode(i)
        columns = {"observation.state": e.state, "action": e.action}
        described |= {k: {"dtype": "float32", "shape": [columns[k].shape[1]]} for k in features}
        table = {k: pa.array(columns[k].tolist(), pa.list_(pa.float32())) for k in features}
        table |= {
            "episode_index": pa.array([i] * len(e.task)),
            "task_index": pa.array([tasks.index(t) for t in e.task]),
        }
        path = root / f"data/chunk-000/episode_{i:06d}.parquet"
        path.parent.mkdir(parents=True, exist_ok=True)
        pq.write_table(pa.table(table), path)
        for name, size in CAMERAS.items():
            path = root / f"videos/chunk-000/observation.images.{name}/episode_{i:06d}.mp4"
            path.parent.mkdir(parents=True, exist_ok=True)
            with VideoWriter(path, fps, size, size) as video:
                video.add(e.views[name], e.view_index)
        rows.append({"episode_index": i, "tasks": sorted(set(e.task)), "length": len(e.task)})
    info = {"codebase_version": "v2.1", "robot_type": "tiny", "fps": fps, "chunks_size": 1000, "features": described}
    info["data_path"] = "data/chunk-{episode_chunk:03d}/episode_{episode_index:06d}.parquet"
    info["video_path"] = "videos/chunk-{episode_chunk:03d}/{video_key}/episode_{episode_index:06d}.mp4"
    (root / "meta").mkdir()
    (root / "meta/info.json").write_text(json.dumps(info))
    (root / "meta/episodes.jsonl").write_text("\n".join(map(json.dumps, rows)))
    lines = [json.dumps({"task_index": i, "task": t}) for i, t in enumerate(tasks)]
    (root / "meta/tasks.jsonl").write_text("\n".join(lines))


def test_version_2_is_read(tmp_path: Path) -> None:
    version_2(tmp_path, 3, ("observation.state", "action"))
    dataset = LeRobotDataset.open(tmp_path)
    assert dataset.layout.version == "v2.1" and dataset[1].seed is None
    for i in range(3):
        e = random_episode(i)
        np.testing.assert_array_equal(dataset.features(i)["action"], e.action)
        assert dataset.instructions(i) == e.task
        seen = dataset.frames(i, "observation.images.head", [0, 7])
        assert np.abs(seen.astype(int) - e.views["head"][e.view_index[[0, 7]]]).max() <= 6
    (tmp_path / "videos/chunk-000/observation.images.hand/episode_000002.mp4").unlink()
    with pytest.raises(DatasetError, match=r"episode_000002.mp4 \(episode 2\)"):
        LeRobotDataset.open(tmp_path)


# --- windows -------------------------------------------------------------------------------------------------------


def slow_window(e: Episode, j: int) -> dict[str, np.ndarray]:
    """One window by plain reading: ``j`` counts frames."""
    n, now = len(e.task), j * STRIDE
    frames = (n - 1) // STRIDE + 1
    shown = [min(max(j + d, 0), frames - 1) for d in range(1 - T, F + 1)]
    canvas = np.zeros((len(shown), 16, 24, 3), np.uint8)
    canvas[:, :, :16] = e.views["head"][shown]
    canvas[:, 8:, 16:] = e.views["hand"][shown]
    action, valid, policy, good = [], [], [], True
    waits = [(t - now) / 30 for t in range(now, n) if e.success[t] and set(e.task[now : t + 1]) == {e.task[now]}]
    for k in range(K):
        t = min(now + k, n - 1)
        action.append(np.append(e.action[t, 1:4] - e.state[now, :3], e.action[t, 0]))
        valid.append(now + k < n)
        good = good and now + k < n and bool(e.is_expert[t]) and e.task[t] == e.task[now]
        policy.append(good)
    told = max(t for t in range(now + 1) if t == 0 or e.task[t] != e.task[t - 1]) // STRIDE * STRIDE
    return {
        "video": encode(torch.from_numpy(canvas)).numpy(),
        "start_proprio": e.state[told, [0, 1, 2, 4]],
        "success_in": np.array(min(waits, default=np.inf)),
        "proprio": e.state[[s * STRIDE for s in shown]][:, [0, 1, 2, 4]],
        "action": np.array(action),
        "video_valid": np.array([j + d < frames for d in range(1, F + 1)]),
        "action_valid": np.array(valid),
        "policy_valid": np.array(policy),
        "success_now": np.array(e.success[now]),
        "success_future": e.success[[s * STRIDE for s in shown[T:]]],
    }


def test_windows_hold_what_a_slow_reading_of_the_episode_says(windows: Windows) -> None:
    where = [(i, j) for i in range(EPISODES) for j in range((len(random_episode(i).task) - 1) // STRIDE)]
    assert len(windows) == len(where)
    batch = windows.batch(np.arange(len(windows)))
    for row, (i, j) in enumerate(where):
        e = random_episode(i)
        for name, want in slow_window(e, j).items():
            got = getattr(batch, name)[row].numpy()
            np.testing.assert_allclose(got, want, atol=0.02 if name == "video" else 1e-6, err_msg=f"{name} {i} {j}")
        assert batch.instructions[batch.instruction_id[row]] == e.task[j * STRIDE]
        assert batch.episode[row] == i
        if j == 0:
            assert torch.equal(batch.start_video[row], batch.video[row, 0])
    assert batch.proprio_valid.all() and batch.success_valid.all() and batch.video.dtype == torch.float16


def same(a: WindowBatch, b: WindowBatch) -> bool:
    names = [n for n, v in vars(a).items() if isinstance(v, torch.Tensor)]
    return all(torch.equal(getattr(a, n), getattr(b, n)) for n in names)


def test_a_batch_is_its_windows_one_by_one(windows: Windows) -> None:
    rows = np.array([5, 0, 11, 11])
    batch = windows.batch(rows)
    assert all(same(batch.index(slice(i, i + 1)), windows[int(row)]) for i, row in enumerate(rows))


def test_rows_outside_are_refused(windows: Windows) -> None:
    with pytest.raises(ShapeError, match="expected 0 to"):
        windows.batch(np.array([len(windows)]))


def test_processes_and_memory_maps_change_nothing(dataset: LeRobotDataset, windows: Windows, tmp_path: Path) -> None:
    folder = build_cache(dataset, embodiment(), encode, tmp_path / "c", workers=2)
    mapped = Windows(folder, embodiment(), T, in_memory=False)
    assert same(windows.batch(windows.rows()), mapped.batch(mapped.rows()))


def test_a_cache_is_reused_until_something_changes(
    dataset: LeRobotDataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    built: list[object] = []
    real = cache_module._write_video
    monkeypatch.setattr(cache_module, "_write_video", lambda *a: (built.append(1), real(*a)))
    for tag in ("a", "a", "b"):
        build_cache(dataset, embodiment(), encode, tmp_path / "c", workers=0, tag=tag)
    build_cache(dataset, embodiment(), None, tmp_path / "c", workers=0, tag="b")
    assert len(built) == 3
    canvases = Windows(tmp_path / "c", embodiment(), 1)
    assert canvases.kind == "canvas" and canvases[0].video.shape == (1, 1 + F, 16, 24, 3)
    with pytest.raises(DatasetError, match="build it again"):
        Windows(tmp_path / "c", embodiment(name="other"), 1)
    with pytest.raises(DatasetError, match=r"cache\.json is damaged .*build it again"):
        Windows(tmp_path / "nothing", embodiment(), 1)


def test_a_failed_cache_leaves_nothing_behind(dataset: LeRobotDataset, tmp_path: Path) -> None:
    with pytest.raises(ShapeError, match="float16"):
        build_cache(dataset, embodiment(), lambda c: encode(c) * 1e6, tmp_path / "c", workers=0)
    assert not list(tmp_path.iterdir())


def test_video_only_datasets_are_masked_not_refused(dataset: LeRobotDataset, windows: Windows, tmp_path: Path) -> None:
    version_2(tmp_path / "v", 2, ())
    only = build_cache(LeRobotDataset.open(tmp_path / "v"), embodiment(), encode, tmp_path / "c", workers=0)
    alone = Windows(only, embodiment(), T)
    batch = alone.batch(alone.rows())
    assert not batch.action_valid.any() and not batch.proprio_valid.any() and not batch.success_valid.any()
    assert batch.video_valid.any() and batch.policy_valid.any()
    assert set(statistics(alone)["action"]["std"]) == {1.0}
    full = build_cache(dataset, embodiment(), encode, tmp_path / "d", workers=0)
    both = Windows([full, only], embodiment(), T)
    assert len(both) == len(windows) + len(alone)
    assert same(both.batch(np.arange(len(windows))), windows.batch(windows.rows()))
    mixed = both.batch(np.arange(len(windows), len(both)))
    assert torch.equal(mixed.video, batch.video) and torch.equal(mixed.action_valid, batch.action_valid)
    texts = [[b.instructions[i] for i in b.instruction_id] for b in (mixed, batch)]
    assert texts[0] == texts[1]


def test_other_frame_rates_are_read_by_time_and_never_from_the_future(tmp_path: Path) -> None:
    version_2(tmp_path / "v", 2, ("observation.state", "action"), fps=10)
    slow = LeRobotDataset.open(tmp_path / "v")
    rows = cache_module.tick_rows(4, 10, 30)
    assert rows.tolist() == [0, 0, 0, 1, 1, 1, 2, 2, 2, 3, 3, 3]
    w = Windows(build_cache(slow, embodiment(), encode, tmp_path / "c", workers=0), embodiment(), 1)
    e = random_episode(0)
    row = 4  # now is tick 8, thus 0.267 s and row 2
    np.testing.assert_array_equal(w[row].proprio[0, 0].numpy(), e.state[2][[0, 1, 2, 4]])
    head = w[row].video[0, 0].float()[:, :, :4].mean().item() * 255
    assert abs(head - e.views["head"][e.view_index[2]].mean()) < 3
    assert cache_module.tick_rows(60, 60, 30).tolist() == list(range(0, 60, 2))


def test_some_episodes_of_a_dataset_can_be_chosen(dataset: LeRobotDataset, tmp_path: Path) -> None:
    root = dataset.root
    part, rest = LeRobotDataset.open(f"{root}@1:3"), LeRobotDataset.open(Path(f"{root}@3:"))
    assert (len(part), len(rest)) == (2, EPISODES - 3)
    check_equal(part, 0, random_episode(1))
    check_equal(rest, 0, random_episode(3))
    for chosen, want in {"::2": [0, 2, 4, 6], "^::2": [1, 3, 5], "^2:": [0, 1]}.items():
        assert [e.seed for e in LeRobotDataset.open(f"{root}@{chosen}").layout.episodes] == want
    one = build_cache(part, embodiment(), encode, tmp_path / "c", workers=0)
    assert Windows(one, embodiment(), T).video.shape[0] < sum(dataset[i].length for i in range(EPISODES))
    again = build_cache(LeRobotDataset.open(f"{root}@:2"), embodiment(), encode, tmp_path / "c", workers=0)
    np.testing.assert_array_equal(np.load(again / "arrays.npz")["episode_index"], [0, 1])
    with pytest.raises(DatasetError, match=f"selects no episode.* has {EPISODES}"):
        LeRobotDataset.open(f"{root}@{EPISODES}:")


def test_training_frames_are_those_of_training_episodes(windows: Windows) -> None:
    train = set(windows.batch(windows.rows("train")).episode.tolist())
    frames = windows.training_frames()
    owner = np.repeat(np.arange(EPISODES), windows._a["episode_frames"])
    assert set(owner[frames]) == train and len(frames) == np.isin(owner, list(train)).sum()


def test_whole_episodes_are_held_out(windows: Windows) -> None:
    held = windows.batch(windows.rows("held_out")).episode.unique()
    assert held.tolist() == [0]  # seed 0 is the only multiple of 20
    assert len(windows.rows("train")) + len(windows.rows("held_out")) == len(windows)
    assert cache_module.held_out_episodes([None] * 40).nonzero()[0].tolist() == [38, 39]


def test_statistics_are_those_of_the_training_windows(windows: Windows) -> None:
    batch = windows.batch(windows.rows("train"))
    got = statistics(windows)
    actions = batch.action[batch.action_valid].numpy()
    np.testing.assert_allclose(got["action"]["mean"], actions.mean(0), atol=1e-5)
    np.testing.assert_allclose(got["action"]["q99"], np.quantile(actions, 0.99, 0), atol=1e-5)
    np.testing.assert_allclose(got["proprio"]["std"], batch.proprio[:, T - 1].numpy().std(0), atol=1e-5)


def test_the_sampler_resumes_bit_exactly_and_shows_everything_once_per_epoch() -> None:
    rows = np.arange(100, 117)
    sampler = WindowSampler(rows, 5, seed=3)
    drawn = [next(sampler) for _ in range(4)]
    state = json.loads(json.dumps(sampler.state_dict()))
    following = [next(sampler) for _ in range(9)]
    other = WindowSampler(rows, 5, seed=3)
    other.load_state_dict(state)
    assert all(np.array_equal(next(other), want) for want in following)
    stream = np.concatenate(drawn + following)
    assert sorted(stream[:17]) == sorted(stream[17:34]) == list(rows)
    assert not np.array_equal(stream[:17], stream[17:34])
    assert not np.array_equal(next(WindowSampler(rows, 5, seed=4)), drawn[0])
    with pytest.raises(ShapeError, match="17 windows"):
        WindowSampler(rows[:5], 5, 3).load_state_dict(state)
    assert all(np.array_equal(other.at(i), want) for i, want in reversed(list(enumerate(drawn))))


# ---------------------------------------------------------------------- starts
def test_dreams_may_begin_at_any_recorded_moment_at_which_the_task_is_still_to_be_done(
    dataset: LeRobotDataset, tmp_path: Path
) -> None:
    first = DatasetStarts(dataset, embodiment(), tmp_path / "first")
    anywhere = DatasetStarts(dataset, embodiment(), tmp_path / "anywhere", anywhere=True)
    assert len(first.rows) == len(dataset)
    assert len(anywhere.rows) > len(first.rows)
    assert not anywhere.windows.succeeded(anywhere.rows).any()
    begun = [anywhere(seed, {}) for seed in range(20)]
    assert [b.start_id for b in begun] == [anywhere(seed, {}).start_id for seed in range(20)]
    assert len({b.start_id for b in begun}) > 5
    row = int(begun[0].start_id.removeprefix("row-"))
    assert np.array_equal(begun[0].canvas, anywhere.windows.newest(np.array([row]))[0][0])
    assert anywhere(0, {"instruction": "wait"}).instruction == "wait"


# ---------------------------------------------------------------------- caches without a dataset
def test_a_cache_written_from_episodes_is_the_one_built_from_their_dataset(
    dataset: LeRobotDataset, tmp_path: Path
) -> None:
    built = build_cache(dataset, embodiment(), None, tmp_path / "built", workers=0)
    episodes = (episode_data(random_episode(seed)) for seed in range(EPISODES))
    assert write_cache(episodes, embodiment(), tmp_path / "written", fps=30, identity="mine") == EPISODES
    with np.load(built / "arrays.npz") as a, np.load(tmp_path / "written/arrays.npz") as b:
        assert sorted(a) == sorted(b)
        for name in a:
            assert a[name].dtype == b[name].dtype and np.array_equal(a[name], b[name]), name
    left, right = (json.loads((f / "cache.json").read_text()) for f in (built, tmp_path / "written"))
    assert left | {"identity": ""} == right | {"identity": ""}
    seen, exact = (np.load(f / "video.npy").astype(int) for f in (built, tmp_path / "written"))
    assert seen.shape == exact.shape and np.abs(seen - exact).mean() < 2  # what h264 loses
    assert np.array_equal(exact[0, :, :16], random_episode(0).views["head"][0])


def test_what_does_not_fit_the_embodiment_is_refused_and_leaves_no_cache(tmp_path: Path) -> None:
    good = episode_data(random_episode(1))
    for what, change in {
        "expected 'observation.images.hand'": {
            "views": {"observation.images.head": good.views["observation.images.head"]}
        },
        "0 numbers of 'action'": {"features": {k: v for k, v in good.features.items() if k != "action"}},
        "NaN": {"features": {**good.features, "action": good.features["action"] * np.nan}},
    }.items():
        with pytest.raises(ImagineError, match=what):
            write_cache(
                [good, EpisodeData(**{**vars(good), **change})], embodiment(), tmp_path / "c", fps=30, identity=""
            )
    assert write_cache([], embodiment(), tmp_path / "c", fps=30, identity="") == 0
    assert not list(tmp_path.iterdir())


def record_cache(out: Path, episodes: int = EPISODES, **how: object) -> dict[str, object]:
    return collect_cache(
        out,
        f"{__name__}:random_episode",
        embodiment(),
        episodes,
        0,
        2,
        shard_size=SHARD,
        progress=lambda a, b: None,
        **how,
    )  # type: ignore[arg-type]


def test_caches_are_collected_in_parts_that_training_reads_together(dataset: LeRobotDataset, tmp_path: Path) -> None:
    assert record_cache(tmp_path / "c", 5)["collected"] == 5
    assert record_cache(tmp_path / "c")["collected"] == 4  # the second cache was not full
    assert record_cache(tmp_path / "c") | {"seconds": 0} == {"episodes": EPISODES, "collected": 0, "seconds": 0}
    parts = Windows(caches_in(tmp_path / "c"), embodiment(), T)
    whole = Windows(build_cache(dataset, embodiment(), None, tmp_path / "d", workers=0), embodiment(), T)
    assert len(caches_in(tmp_path / "c")) == 3 and len(parts) == len(whole)
    a, b = parts.batch(parts.rows()), whole.batch(whole.rows())
    assert torch.equal(a.action, b.action) and torch.equal(a.proprio, b.proprio)
    assert [a.instructions[i] for i in a.instruction_id] == [b.instructions[i] for i in b.instruction_id]
    with pytest.raises(ImagineError, match="other settings"):
        record_cache(tmp_path / "c", options={"fail_at": 4})


def test_windows_moved_to_a_device_and_encoded_there_are_the_same(dataset: LeRobotDataset, tmp_path: Path) -> None:
    record_cache(tmp_path / "c")
    canvases, moved = (Windows(caches_in(tmp_path / "c"), embodiment(), T) for _ in range(2))
    rows = canvases.rows()[::3]
    assert same(canvases.batch(rows), moved.to("cpu").batch(rows))
    latents = canvases.encoded(encode, "cpu", batch=5)
    batch = latents.batch(rows)
    assert (canvases.kind, latents.kind, batch.video.dtype) == ("canvas", "latents", torch.float16)
    shown = canvases.batch(rows).video
    assert torch.equal(batch.video, encode(shown.flatten(0, 1)).half().unflatten(0, shown.shape[:2]))
    assert torch.equal(batch.action, canvases.batch(rows).action)
    kept = dict.fromkeys(caches_in(tmp_path / "c")[:2], torch.zeros(5, 3, 4, 6, dtype=torch.float16))
    partly = canvases.encoded(encode, "cpu", kept=kept)
    assert len(kept) == 3 and not partly.video[:10].any() and partly.video[10:].any()


def test_a_failed_episode_is_named_and_the_other_caches_are_kept(tmp_path: Path) -> None:
    with pytest.raises(ImagineError, match="the episode of seed 4 failed: RuntimeError: the robot fell over"):
        record_cache(tmp_path, options={"fail_at": 4})
    assert [f.name for f in caches_in(tmp_path)] == ["000000", "000002"]


def test_a_collection_ends_in_time_with_what_it_has(tmp_path: Path) -> None:
    told = record_cache(tmp_path, 600, seconds=12.0, options={"takes": 0.2})
    assert told["seconds"] < 40 and 0 < told["collected"] < 200  # type: ignore[operator]
    windows = Windows(caches_in(tmp_path), embodiment(), T)
    assert len(np.unique(windows.seeds(windows.rows()))) == told["episodes"]
