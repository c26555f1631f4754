"""Reads what is under ``meta/`` of a LeRobotDataset, v3.0 or v2.x, into one description of files and episodes."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from imagine.types import DatasetError

_REPAIR = "copy the file again from where the dataset came from, or collect it again."


@dataclass(frozen=True)
class VideoSpan:
    """Where an episode's frames are: a file, and the time in it at which the episode starts, seconds."""

    path: Path
    start: float


@dataclass(frozen=True)
class EpisodeRecord:
    """One episode of a dataset.

    Attributes:
        index: the dataset's own number of it.
        length: rows.
        tasks: its instructions.
        data: the parquet file that holds its rows.
        videos: per video key.
        seed: what it was recorded from, or None.
        failure_mode: what was made to go wrong on purpose; "" if nothing or unknown.
    """

    index: int
    length: int
    tasks: tuple[str, ...]
    data: Path
    videos: dict[str, VideoSpan]
    seed: int | None
    failure_mode: str


@dataclass(frozen=True)
class Layout:
    """A dataset's description: ``features`` is that of ``info.json``, ``tasks`` maps task_index to instruction."""

    version: str
    robot_type: str
    fps: float
    features: dict[str, dict[str, Any]]
    tasks: dict[int, str]
    episodes: tuple[EpisodeRecord, ...]


def read_layout(root: Path) -> Layout:
    """Read and check a dataset's description; data and videos are not touched.

    Raises:
        DatasetError: a file of ``meta/`` is missing or unusable, or the version is not supported.
    """
    path = root / "meta/info.json"
    if not root.is_dir():
        raise DatasetError(f"dataset folder {root} does not exist; check the path.")
    if not path.is_file() and (root / "meta/shards").is_dir():
        raise DatasetError(f"{root} has no meta/info.json because its collection is unfinished; run it again to go on.")
    info = _load(path, lambda: json.loads(path.read_text()))
    version = str(info.get("codebase_version")) if isinstance(info, dict) else "none"
    readers = {"v3.0": _v3, "v2.1": _v2, "v2.0": _v2}
    if version not in readers:
        raise DatasetError(
            f"{path} says codebase_version {version}, expected one of {sorted(readers)}; "
            "convert the dataset with LeRobot's own scripts."
        )
    cameras = [k for k, f in info.get("features", {}).items() if f.get("dtype") == "video"]
    try:
        tasks, episodes = readers[version](root, info, cameras)
        fps, features = float(info["fps"]), dict(info["features"])
    except DatasetError:
        raise
    except (KeyError, TypeError, ValueError, IndexError) as error:
        raise DatasetError(
            f"the metadata of {root} lack or misuse {error}, expected as in {version}; {_REPAIR}"
        ) from error
    if not episodes or fps <= 0:
        raise DatasetError(f"{root} has {len(episodes)} episodes at {fps} fps, expected at least one; {_REPAIR}")
    return Layout(version, str(info.get("robot_type") or "unknown"), fps, features, tasks, tuple(episodes))


def _load(path: Path, read: Callable[[], Any]) -> Any:
    """Run a read and turn everything that a bad file can raise into a DatasetError that names it."""
    if not path.is_file():
        raise DatasetError(f"dataset file {path} is missing; {_REPAIR}")
    try:
        return read()
    except (OSError, ValueError, pa.ArrowException) as error:
        raise DatasetError(f"dataset file {path} is corrupt ({error}); {_REPAIR}") from error


def _parquet_rows(path: Path, columns: Callable[[str], bool] = lambda name: True) -> list[dict[str, Any]]:
    def read() -> list[dict[str, Any]]:
        names = [n for n in pq.read_schema(path).names if columns(n)]
        rows: list[dict[str, Any]] = pq.read_table(path, columns=names).to_pylist()
        return rows

    rows: list[dict[str, Any]] = _load(path, read)
    return rows


def _json_lines(path: Path) -> list[dict[str, Any]]:
    def read() -> list[dict[str, Any]]:
        return [json.loads(line) for line in path.read_text().splitlines() if line.strip()]

    rows: list[dict[str, Any]] = _load(path, read)
    return rows


def _v3(root: Path, info: dict[str, Any], cameras: list[str]) -> tuple[dict[int, str], list[EpisodeRecord]]:
    rows = _parquet_rows(root / "meta/tasks.parquet")
    # pandas writes an unnamed index under this name
    tasks = {int(r["task_index"]): str(r["task"] if "task" in r else r["__index_level_0__"]) for r in rows}
    files = sorted((root / "meta/episodes").glob("chunk-*/file-*.parquet"))
    if not files:
        raise DatasetError(f"{root}/meta/episodes holds no parquet file, expected at least one; {_REPAIR}")
    episodes = []
    for row in (r for path in files for r in _parquet_rows(path, lambda n: not n.startswith("stats/"))):
        place = {"chunk_index": row["data/chunk_index"], "file_index": row["data/file_index"]}
        videos = {}
        for key in cameras:
            at = {k: row[f"videos/{key}/{k}"] for k in ("chunk_index", "file_index")}
            path = root / info["video_path"].format(video_key=key, **at)
            videos[key] = VideoSpan(path, float(row[f"videos/{key}/from_timestamp"]))
        episodes.append(_record(row, tuple(row["tasks"]), root / info["data_path"].format(**place), videos))
    return tasks, episodes


def _v2(root: Path, info: dict[str, Any], cameras: list[str]) -> tuple[dict[int, str], list[EpisodeRecord]]:
    tasks = {int(r["task_index"]): str(r["task"]) for r in _json_lines(root / "meta/tasks.jsonl")}
    episodes = []
    for row in _json_lines(root / "meta/episodes.jsonl"):
        index = int(row["episode_index"])
        place = {"episode_index": index, "episode_chunk": index // int(info["chunks_size"])}
        videos = {k: VideoSpan(root / info["video_path"].format(video_key=k, **place), 0.0) for k in cameras}
        episodes.append(_record(row, tuple(row["tasks"]), root / info["data_path"].format(**place), videos))
    return tasks, episodes


def _record(row: dict[str, Any], tasks: tuple[str, ...], data: Path, videos: dict[str, VideoSpan]) -> EpisodeRecord:
    seed = row.get("seed")
    return EpisodeRecord(
        index=int(row["episode_index"]),
        length=int(row["length"]),
        tasks=tasks,
        data=data,
        videos=videos,
        seed=None if seed is None else int(seed),
        failure_mode=str(row.get("failure_mode") or ""),
    )
