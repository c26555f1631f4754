"""One shard of a dataset on disk: its data file, its videos, and the marker that says it is complete."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from imagine.data.stats import Stats, array_stats, image_stats
from imagine.data.video import VideoWriter
from imagine.files import atomic_path, temporary_path
from imagine.types import ShapeError

CHUNK_FILES = 1000
DATA_PATH = "data/chunk-{chunk_index:03d}/file-{file_index:03d}.parquet"
VIDEO_PATH = "videos/{video_key}/chunk-{chunk_index:03d}/file-{file_index:03d}.mp4"
_TASKS = b"imagine.tasks"  # in a data file: {task_index: instruction}, so that it can be renumbered any number of times


@dataclass(frozen=True)
class EpisodeData:
    """One recorded episode of T ticks.

    Attributes:
        features: ``{key: (T, d) or (T,)}`` numbers or booleans; the keys become dataset features.
        task: T instructions, one per tick.
        views: ``{video key: (n, h, w, 3)}`` uint8, distinct frames.
        view_index: (T,) int, which distinct frame each tick shows.
        seed: where the episode came from, or None.
        failure_mode: what was made to go wrong on purpose, "" if nothing.
    """

    features: Mapping[str, np.ndarray]
    task: Sequence[str]
    views: Mapping[str, np.ndarray]
    view_index: np.ndarray
    seed: int | None = None
    failure_mode: str = ""

    def __len__(self) -> int:
        return len(self.task)

    def check(self) -> None:
        """Raise ShapeError unless there is at least one tick and every array has one finite row per tick."""
        if not len(self):
            raise ShapeError(f"the episode of seed {self.seed} has 0 ticks, expected at least 1; check the recorder.")
        for key, value in {**self.features, "view_index": self.view_index}.items():
            if value.ndim not in (1, 2) or len(value) != len(self):
                raise ShapeError(
                    f"feature {key!r} of seed {self.seed} has shape {value.shape}, expected ({len(self)},) or "
                    f"({len(self)}, d), one row per tick; check the recorder."
                )
            if not np.isfinite(value).all():
                raise ShapeError(f"feature {key!r} of seed {self.seed} holds NaN or infinity; check the recorder.")


@dataclass(frozen=True)
class DatasetSpec:
    """What all shards of a dataset share; small and picklable, so every process can hold one.

    Attributes:
        root: the dataset folder.
        robot_type: goes into ``info.json``.
        fps: control and video rate, Hz.
        shard_size: episodes per shard; fixed for the life of a dataset.
        names: optional ``{feature key: one name per dimension}``.
    """

    root: Path
    robot_type: str
    fps: int
    shard_size: int = 50
    names: Mapping[str, Sequence[str]] = field(default_factory=dict)


@dataclass(frozen=True)
class Files:
    """Where a shard lives."""

    data: Path
    videos: dict[str, Path]


def place_of(shard: int) -> dict[str, int]:
    """Chunk and file number of a shard."""
    return {"chunk_index": shard // CHUNK_FILES, "file_index": shard % CHUNK_FILES}


def files_of(root: Path, shard: int, cameras: Sequence[str]) -> Files:
    """Final paths of a shard's files."""
    place = place_of(shard)
    videos = {key: root / VIDEO_PATH.format(video_key=key, **place) for key in cameras}
    return Files(root / DATA_PATH.format(**place), videos)


def marker_path(root: Path, shard: int) -> Path:
    """The file whose existence makes a shard count."""
    return root / "meta" / "shards" / f"{shard:06d}.parquet"


def read_marker(path: Path) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """What all episodes of a shard share, and one row of metadata and statistics per episode."""
    table = pq.read_table(path)
    return json.loads((table.schema.metadata or {})[b"imagine"]), table.to_pylist()


def write_table(path: Path, groups: Iterator[pa.Table] | Sequence[pa.Table], metadata: Mapping[bytes, bytes]) -> None:
    """Write row groups to a parquet file that appears whole or not at all."""
    with atomic_path(path) as temporary:
        writer: pq.ParquetWriter | None = None
        for table in groups:
            table = table.replace_schema_metadata(dict(metadata))
            writer = writer or pq.ParquetWriter(temporary, table.schema, write_page_checksum=True)
            writer.write_table(table)
        assert writer is not None
        writer.close()


def describe(episode: EpisodeData, names: Mapping[str, Sequence[str]]) -> dict[str, dict[str, Any]]:
    """The ``features`` entry of ``info.json`` that fits an episode, without the default columns."""
    out: dict[str, dict[str, Any]] = {}
    for key, value in episode.features.items():
        shape = list(value.shape[1:]) or [1]
        label = list(names[key]) if key in names else None
        if label is not None and len(label) != shape[0]:
            raise ShapeError(f"feature {key!r} has {len(label)} names, expected {shape[0]}; name every dimension.")
        out[key] = {"dtype": str(value.dtype), "shape": shape, "names": label}
    for key, frames in episode.views.items():
        out[key] = {"dtype": "video", "shape": list(frames.shape[1:]), "names": ["height", "width", "channels"]}
    return out


def _column(value: np.ndarray) -> pa.Array:
    if value.size == len(value):  # LeRobot keeps features of one number as plain columns
        return pa.array(value.reshape(-1))
    return pa.FixedSizeListArray.from_arrays(pa.array(np.ascontiguousarray(value).reshape(-1)), value.shape[1])


class ShardFiles:
    """The open files of one shard, under temporary names until :meth:`commit`."""

    def __init__(self, spec: DatasetSpec, shard: int) -> None:
        self._spec, self._shard = spec, shard
        self._tasks: dict[str, int] = {}
        self._rows: list[dict[str, Any]] = []
        self._ticks = 0
        self._features: dict[str, dict[str, Any]] = {}
        self._tables: list[pa.Table] = []
        self._videos: dict[str, VideoWriter] = {}
        self._temporary: dict[str, Path] = {}  # where each video is until the commit

    def add(self, episode: EpisodeData) -> None:
        """Append one episode to the data file and every video."""
        episode.check()
        number = self._shard * self._spec.shard_size + len(self._rows)
        features = describe(episode, self._spec.names)
        if not self._rows:
            self._features = features
            for key, path in files_of(self._spec.root, self._shard, list(episode.views)).videos.items():
                size = episode.views[key].shape[1:3]
                path.parent.mkdir(parents=True, exist_ok=True)
                self._temporary[key] = temporary_path(path)
                self._videos[key] = VideoWriter(self._temporary[key], self._spec.fps, size[0], size[1])
        if features != self._features:
            raise ShapeError(
                f"episode {number} (seed {episode.seed}) has features {features}, expected {self._features} as in the "
                "first episode of its shard; record all episodes of a dataset alike."
            )
        self._tables.append(self._table(episode, number))
        for key, video in self._videos.items():
            video.add(episode.views[key], np.asarray(episode.view_index))
        self._rows.append(self._row(episode, number))
        self._ticks += len(episode)

    def _table(self, episode: EpisodeData, number: int) -> pa.Table:
        n = len(episode)
        frame = np.arange(n)
        columns = {key: _column(value) for key, value in episode.features.items()}
        columns["timestamp"] = pa.array((frame / self._spec.fps).astype(np.float32))
        columns["frame_index"] = pa.array(frame)
        columns["episode_index"] = pa.array(np.full(n, number))
        columns["index"] = pa.array(frame + self._ticks)  # within the shard; finalize adds what lies before it
        ids = [self._tasks.setdefault(text, len(self._tasks)) for text in episode.task]
        columns["task_index"] = pa.array(ids, pa.int64())
        return pa.table(columns)

    def _row(self, episode: EpisodeData, number: int) -> dict[str, Any]:
        row: dict[str, Any] = {"episode_index": number, "tasks": list(dict.fromkeys(episode.task))}
        row |= {"length": len(episode), "seed": episode.seed, "failure_mode": episode.failure_mode}
        place = place_of(self._shard)
        row |= {f"data/{k}": v for k, v in place.items()}
        for key in episode.views:
            row |= {f"videos/{key}/{k}": v for k, v in place.items()}
            row[f"videos/{key}/from_timestamp"] = self._ticks / self._spec.fps
            row[f"videos/{key}/to_timestamp"] = (self._ticks + len(episode)) / self._spec.fps
        stats: dict[str, Stats] = {k: array_stats(v) for k, v in episode.features.items()}
        stats |= {k: image_stats(v) for k, v in episode.views.items()}
        return row | {f"stats/{key}/{s}": v.tolist() for key, each in stats.items() for s, v in each.items()}

    def commit(self) -> int:
        """Close everything, rename it into place, the marker last; returns the number of ticks."""
        if not self._rows:
            raise ShapeError(f"shard {self._shard} was given no episodes; a shard holds at least one.")
        files = files_of(self._spec.root, self._shard, list(self._videos))
        write_data(files.data, self._tables, {i: t for t, i in self._tasks.items()})
        for key, path in files.videos.items():
            self._videos[key].close()
            self._temporary[key].replace(path)
        spec = {"features": self._features, "fps": self._spec.fps, "robot_type": self._spec.robot_type}
        spec |= {"shard_size": self._spec.shard_size}
        spec |= {"video_bytes": {key: path.stat().st_size for key, path in files.videos.items()}}
        marker = marker_path(self._spec.root, self._shard)
        write_table(marker, [pa.Table.from_pylist(self._rows)], {b"imagine": json.dumps(spec).encode()})
        return self._ticks

    def clean(self) -> None:
        """Remove what is left under temporary names."""
        for path in self._temporary.values():
            path.unlink(missing_ok=True)


def write_data(path: Path, groups: Sequence[pa.Table], tasks: Mapping[int, str]) -> None:
    """Write a data file, one row group per episode, that knows its own tasks."""
    write_table(path, groups, {_TASKS: json.dumps({str(i): t for i, t in tasks.items()}).encode()})


def read_data(path: Path) -> tuple[list[pa.Table], dict[int, str]]:
    """Row groups and tasks of a data file written by :func:`write_data`."""
    with pq.ParquetFile(path) as file:
        groups = [file.read_row_group(i) for i in range(file.num_row_groups)]
        tasks = json.loads((file.schema_arrow.metadata or {})[_TASKS])
    return groups, {int(i): t for i, t in tasks.items()}
