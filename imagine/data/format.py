"""Reads what is under ``meta/`` of a LeRobotDataset, v3.0 or v2.x, into one description of files and episodes.

Nothing written there is trusted: templates know their placeholders only, and every path stays in the dataset's folder.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import pyarrow as pa
import pyarrow.parquet as pq
from pydantic import BaseModel, Field, StrictStr, ValidationError

from imagine.types import DatasetError, first_fault

SEEDS = "meta/seeds.parquet"
"""Our own file beside LeRobot's: what each episode was recorded from, and what was made to go wrong in it."""

_REPAIR = "copy the file again from where the dataset came from, or collect it again."
_PLACE = re.compile(r"\{(\w+)(?::0?(\d{1,2})d)?\}")  # what LeRobot's templates use of Python's format language
_MOST_ROWS, _MOST_LETTERS = 2**31, 500


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


class _Feature(BaseModel, extra="allow"):
    dtype: StrictStr
    shape: tuple[Annotated[int, Field(ge=0, le=2**20)], ...]


class _Info(BaseModel):
    """The part of ``info.json`` that is used."""

    codebase_version: StrictStr
    robot_type: str | None = None
    fps: Annotated[float, Field(gt=0, le=1e6)]
    total_episodes: int | None = None
    chunks_size: Annotated[int, Field(gt=0)] = 1000
    data_path: StrictStr
    video_path: StrictStr | None = None
    features: dict[str, _Feature]

    @property
    def cameras(self) -> list[str]:
        return [key for key, feature in self.features.items() if feature.dtype == "video"]


def read_layout(root: Path) -> Layout:
    """Read and check a dataset's description; data and videos are not touched.

    Raises:
        DatasetError: a file of ``meta/`` is missing or unusable, or the version is not supported.
    """
    if not root.is_dir():
        raise DatasetError(f"dataset folder {root} does not exist; check the path.")
    path = root / "meta/info.json"
    if not path.is_file() and (root / "meta/shards").is_dir():
        raise DatasetError(f"{root} has no meta/info.json because its collection is unfinished; run it again to go on.")
    plain = _load(root, path, lambda: json.loads(path.read_bytes()))
    version = str(plain.get("codebase_version")) if isinstance(plain, dict) else "none"
    readers = {"v3.0": _v3, "v2.1": _v2, "v2.0": _v2}
    if version not in readers:
        raise DatasetError(
            f"{path} says codebase_version {version[:40]}, expected one of {sorted(readers)}; "
            "convert the dataset with LeRobot's own scripts."
        )
    try:
        info = _Info.model_validate(plain)
    except ValidationError as error:
        where, what = first_fault(error)
        raise DatasetError(f"{path}: {where[:80]}: {what}; {_REPAIR}") from None
    tasks, episodes = readers[version](root, info)
    indices = [e.index for e in episodes]
    if len(set(indices)) < len(indices):
        twice = next(i for at, i in enumerate(indices) if i in indices[:at])
        raise DatasetError(f"{root}/meta lists episode {twice} more than once; {_REPAIR}")
    if not episodes or info.total_episodes not in (None, len(episodes)):
        expected = info.total_episodes or "at least one"
        raise DatasetError(f"{root}/meta lists {len(episodes)} episodes, expected {expected}; {_REPAIR}")
    return Layout(version, info.robot_type or "unknown", info.fps, plain["features"], tasks, tuple(episodes))


def inside(root: Path, path: str | Path) -> Path:
    """The file that a dataset names by a path relative to its folder, provided that it lies there.

    Links are followed first; those of a hub's snapshot folder may lead to the blobs beside it, as the hub lays them.

    Raises:
        DatasetError: it lies elsewhere.
    """
    home, found = root.resolve(), root / path
    try:
        real = found.resolve()
    except (OSError, RuntimeError, ValueError) as error:  # a circle of links, a name that is none
        what = f"names the file {str(path)[:80]!r}, which cannot be found ({str(error)[:80]})"
        raise DatasetError(f"{root}, in meta/ or data/, {what}; {_REPAIR}") from None
    blobs = [home.parents[1] / "blobs"] if home.parent.name == "snapshots" else []
    if not any(real.is_relative_to(folder) for folder in (home, *blobs)):
        raise DatasetError(
            f"{root} names the file {str(path)[:80]!r}, which lies outside of its folder, expected all files of a "
            "dataset in it; take this dataset from someone you trust, or mend meta/info.json."
        )
    return found


def _place(root: Path, template: str | None, values: Mapping[str, Any]) -> Path:
    """The file that a template of ``info.json`` leads to."""
    template = template or ""
    unknown = {name for name, _ in _PLACE.findall(template)} - values.keys()
    if not template or len(template) > _MOST_LETTERS or unknown or set(_PLACE.sub("", template)) & set("{}"):
        raise DatasetError(
            f"{root}/meta/info.json has the path template {template[:80]!r}, expected one with some of "
            f"{', '.join('{' + name + '}' for name in values)} and nothing else in braces; {_REPAIR}"
        )

    def fill(match: re.Match[str]) -> str:
        value = values[match[1]]
        return value if isinstance(value, str) else f"{value:0{int(match[2] or 0)}d}"

    return inside(root, _PLACE.sub(fill, template))


def _load(root: Path, path: Path, read: Callable[[], Any]) -> Any:
    """Run a read and turn everything that a bad file can raise into a DatasetError that names it."""
    inside(root, path.relative_to(root))
    if not path.is_file():
        raise DatasetError(f"dataset file {path} is missing; {_REPAIR}")
    try:
        return read()
    except (OSError, ValueError, KeyError, TypeError, RecursionError, MemoryError, pa.ArrowException) as error:
        raise DatasetError(
            f"dataset file {path} is corrupt ({' '.join(str(error).split())[:200]}); {_REPAIR}"
        ) from error


def _parquet_rows(root: Path, path: Path, columns: Callable[[str], bool] = lambda name: True) -> list[dict[str, Any]]:
    def read() -> list[dict[str, Any]]:
        names = [n for n in pq.read_schema(path).names if columns(n)]
        rows: list[dict[str, Any]] = pq.read_table(
            path, columns=names, partitioning=None, page_checksum_verification=True
        ).to_pylist()
        return rows

    rows: list[dict[str, Any]] = _load(root, path, read)
    return rows


def _json_lines(root: Path, name: str) -> list[dict[str, Any]]:
    path = root / name

    def read() -> list[dict[str, Any]]:
        # Only "\n" ends a line: LeRobot leaves U+2028 and the like inside of strings as they are.
        rows = [json.loads(line) for line in path.read_bytes().split(b"\n") if line.strip()]
        if not all(isinstance(row, dict) for row in rows):
            raise ValueError("a line is no JSON object")
        return rows

    rows: list[dict[str, Any]] = _load(root, path, read)
    return rows


def _v3(root: Path, info: _Info) -> tuple[dict[int, str], list[EpisodeRecord]]:
    # pandas writes an unnamed index under this name
    tasks = _tasks(root / "meta/tasks.parquet", _parquet_rows(root, root / "meta/tasks.parquet"), "__index_level_0__")
    files = sorted((root / "meta/episodes").glob("chunk-*/file-*.parquet"))
    if not files:
        raise DatasetError(f"{root}/meta/episodes holds no parquet file, expected at least one; {_REPAIR}")
    seeds: dict[int, dict[str, Any]] = {}
    if (root / SEEDS).exists():
        for row in _parquet_rows(root, root / SEEDS):
            with _reading(root / SEEDS, row):
                seeds[_whole(row["episode_index"])] = {name: row[name] for name in ("length", "seed", "failure_mode")}
    records, places = [], _Places(root, info)
    for file in files:
        for row in _parquet_rows(root, file, lambda n: not n.startswith("stats/")):
            with _reading(file, row):
                at = {k: _whole(row[f"data/{k}"]) for k in ("chunk_index", "file_index")}
                videos = {}
                for key in info.cameras:
                    there = {k: _whole(row[f"videos/{key}/{k}"]) for k in ("chunk_index", "file_index")}
                    start = _seconds(row[f"videos/{key}/from_timestamp"])
                    videos[key] = VideoSpan(places.video(video_key=key, **there), start)
                known = seeds.get(_whole(row["episode_index"]), {})
                if known.get("length") == row["length"]:  # else others have numbered the episodes anew
                    row = known | row
                records.append(_record(row, places.data(**at), videos))
    return tasks, records


def _v2(root: Path, info: _Info) -> tuple[dict[int, str], list[EpisodeRecord]]:
    tasks = _tasks(root / "meta/tasks.jsonl", _json_lines(root, "meta/tasks.jsonl"), "task")
    records, places = [], _Places(root, info)
    for row in _json_lines(root, "meta/episodes.jsonl"):
        with _reading(root / "meta/episodes.jsonl", row):
            index = _whole(row["episode_index"])
            at = {"episode_index": index, "episode_chunk": index // info.chunks_size}
            videos = {key: VideoSpan(places.video(video_key=key, **at), 0.0) for key in info.cameras}
            records.append(_record(row, places.data(**at), videos))
    return tasks, records


class _Places:
    """Fills in the templates of ``info.json``; a file that holds many episodes is looked for once."""

    def __init__(self, root: Path, info: _Info) -> None:
        self._root, self._info, self._known = root, info, dict[tuple[Any, ...], Path]()

    def data(self, **at: Any) -> Path:
        return self._find(self._info.data_path, at)

    def video(self, **at: Any) -> Path:
        return self._find(self._info.video_path, at)

    def _find(self, template: str | None, at: dict[str, Any]) -> Path:
        key = (template, *at.values())
        if key not in self._known:
            self._known[key] = _place(self._root, template, at)
        return self._known[key]


@contextmanager
def _reading(file: Path, row: Mapping[str, Any]) -> Iterator[None]:
    """Names file and episode where a row lacks or misuses a value."""
    try:
        yield
    except DatasetError:
        raise
    except (KeyError, TypeError, ValueError, OverflowError) as error:
        what = f"lacks {error}" if isinstance(error, KeyError) else f"is unusable ({error})"
        episode = str(row.get("episode_index"))[:20]
        raise DatasetError(f"dataset file {file}: episode {episode} {what}; {_REPAIR}") from error


def _whole(value: Any) -> int:
    if isinstance(value, bool) or value is None or int(value) != value or not 0 <= value < _MOST_ROWS:
        raise ValueError(f"{str(value)[:40]!r} is no count")
    return int(value)


def _seconds(value: Any) -> float:
    if not math.isfinite(float(value)) or float(value) < 0:
        raise ValueError(f"{value} is no time")
    return float(value)


def _tasks(path: Path, rows: list[dict[str, Any]], otherwise: str) -> dict[int, str]:
    tasks: dict[int, str] = {}
    for row in rows:
        index, text = row.get("task_index"), row.get("task", row.get(otherwise))
        if not isinstance(index, int) or not isinstance(text, str) or tasks.get(index, text) != text:
            raise DatasetError(
                f"dataset file {path} gives task {str(index)[:20]} as {str(text)[:40]!r}, expected one text for each "
                f"whole number; {_REPAIR}"
            )
        tasks[index] = text
    return tasks


def _record(row: Mapping[str, Any], data: Path, videos: dict[str, VideoSpan]) -> EpisodeRecord:
    tasks, seed = row.get("tasks"), row.get("seed")
    texts = [tasks] if isinstance(tasks, str) else list(tasks if tasks is not None else ())
    if not all(isinstance(text, str) for text in texts):
        raise ValueError(f"its tasks are {str(texts)[:40]}, no texts")
    length = _whole(row["length"])
    if not length:
        raise ValueError("its length is 0")
    mode = str(row.get("failure_mode") or "")
    return EpisodeRecord(
        _whole(row["episode_index"]), length, tuple(texts), data, videos, None if seed is None else int(seed), mode
    )
