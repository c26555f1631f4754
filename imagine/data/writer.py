"""Writes LeRobotDataset v3.0 folders in shards, so that many processes can write and a killed run can go on.

A shard is a fixed range of episodes with its own data file and one video per camera. It counts once
``meta/shards/<n>.parquet`` exists, which is renamed into place last. :meth:`DatasetWriter.finalize` merges metadata.

Source: the layout of LeRobotDataset v3.0 (huggingface/lerobot, Apache-2.0); own implementation.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from imagine.types import DatasetError, ShapeError


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
class DatasetWriter:
    """Writes and merges the shards of one dataset folder; small and picklable, so every process can hold one.

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

    def is_complete(self, shard: int, seeds: Sequence[int]) -> bool:
        """Whether a shard exists in full; False too if it holds only the first of ``seeds`` (it is to be redone).

        Raises:
            DatasetError: the shard holds other episodes.
        """
        from imagine.data.shard import files_of, marker_path, read_marker

        path = marker_path(self.root, shard)
        if not path.is_file():
            return False
        try:
            spec, rows = read_marker(path)
            found = [row["seed"] for row in rows]
            files = files_of(self.root, shard, list(spec["video_bytes"]))
            whole = pq.read_metadata(files.data).num_rows == sum(row["length"] for row in rows)
            whole &= all(p.stat().st_size == spec["video_bytes"][key] for key, p in files.videos.items())
        except (pa.ArrowException, OSError, KeyError, ValueError):
            return False
        if found != list(seeds)[: len(found)] and list(seeds) != found[: len(seeds)]:
            raise DatasetError(
                f"{path} holds the episodes of seeds {found[0]} to {found[-1]}, expected {seeds[0]} to {seeds[-1]}; "
                "collect into another folder, or with the first_seed and shard_size this one was started with."
            )
        return whole and len(found) >= len(seeds)

    def write_shard(self, shard: int, episodes: Iterable[EpisodeData]) -> int:
        """Write one shard under temporary names, then rename it into place; returns its number of ticks.

        Raises:
            ShapeError: an episode is malformed or unlike the first of the shard.
        """
        from imagine.data.shard import ShardFiles, marker_path

        marker_path(self.root, shard).unlink(missing_ok=True)
        files = ShardFiles(self, shard)
        try:
            for episode in episodes:
                files.add(episode)
            return files.commit()
        finally:
            files.clean()

    def finalize(self) -> dict[str, Any]:
        """Merge all complete shards into a valid dataset; returns what is in ``info.json``. Safe to repeat.

        Raises:
            DatasetError: there is no shard, one is missing among the others, or two disagree on features.
        """
        from imagine.data.finalize import finalize

        return finalize(self.root)
