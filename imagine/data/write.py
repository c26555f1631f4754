"""Writes LeRobotDataset v3.0 folders in shards, so that many processes can write and a killed run can go on.

A shard is a fixed range of episodes with its own data file and one video per camera. It counts once
``meta/shards/<n>.parquet`` exists, which is renamed into place last. :meth:`DatasetWriter.finalize` merges metadata.

Source: the layout of LeRobotDataset v3.0 (huggingface/lerobot, Apache-2.0); own implementation.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from imagine.data.format import SEEDS
from imagine.data.shard import (
    CHUNK_FILES,
    DATA_PATH,
    VIDEO_PATH,
    DatasetSpec,
    EpisodeData,
    ShardFiles,
    files_of,
    marker_path,
    read_data,
    read_marker,
    write_data,
    write_table,
)
from imagine.data.stats import QUANTILES, Stats, array_stats, merge_stats
from imagine.files import write_json
from imagine.types import DatasetError

__all__ = ["DatasetWriter", "EpisodeData"]

_QUANTILE_ROWS_PER_SHARD = 2000
_DEFAULTS = {"timestamp": "float32", "frame_index": "int64", "episode_index": "int64", "index": "int64"}
_DEFAULTS |= {"task_index": "int64"}
_ORDER: tuple[str, ...] = (
    "episode_index",
    "tasks",
    "length",
    "seed",
    "failure_mode",
    "data",
    "dataset_from_index",
    "dataset_to_index",
)
_ORDER += ("videos", "stats", "meta")  # of the columns of meta/episodes, as LeRobot writes them


class DatasetWriter(DatasetSpec):
    """Writes and merges the shards of one dataset folder."""

    def is_complete(self, shard: int, seeds: Sequence[int]) -> bool:
        """Whether a shard exists in full; False too if it holds only the first of ``seeds`` (it is to be redone).

        Raises:
            DatasetError: the shard holds other episodes.
        """
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

    def refuse_changed(self) -> None:
        """Raise DatasetError if others have added or removed episodes since: shards would be written over theirs."""
        info, seeds = self.root / "meta/info.json", self.root / SEEDS
        if info.is_file() and seeds.is_file():
            found, own = json.loads(info.read_bytes())["total_episodes"], pq.read_metadata(seeds).num_rows
            if found != own:
                raise DatasetError(
                    f"{self.root} has {found} episodes, expected the {own} that were collected into it; others have "
                    "changed it since, so collect into another folder and merge the two with LeRobot."
                )

    def write_shard(self, shard: int, episodes: Iterable[EpisodeData]) -> int:
        """Write one shard under temporary names, then rename it into place; returns its number of ticks.

        Raises:
            ShapeError: an episode is malformed or unlike the first of the shard.
        """
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
            DatasetError: there is no shard, one is missing among the others, two disagree on features, or others have
                changed the dataset.
        """
        self.refuse_changed()
        spec, shards = _markers(self.root)
        tasks: dict[str, int] = {}
        rows, parts, samples, start = [], [], [], 0
        for shard, episodes in enumerate(shards):
            groups = _renumber(files_of(self.root, shard, []).data, start, tasks)
            columns = {name: _numbers(pa.concat_tables(groups), name) for name in groups[0].column_names}
            parts.append({name: array_stats(values) for name, values in columns.items()})
            step = max(1, len(columns["index"]) // _QUANTILE_ROWS_PER_SHARD)
            samples.append({name: values[::step] for name, values in columns.items()})
            for row, group in zip(episodes, groups, strict=True):
                rows.append(_episode_row(row, group, start))
                start += row["length"]
        stats = _stats(parts, samples) | _image_stats(rows, spec)
        # Columns of ours in LeRobot's own table would keep LeRobot from adding episodes to it.
        origin = ("episode_index", "length", "seed", "failure_mode")
        seeds = pa.Table.from_pylist([{name: row[name] for name in origin} for row in rows])
        rows = [{name: value for name, value in row.items() if name not in origin[2:]} for row in rows]
        write_table(self.root / "meta/episodes/chunk-000/file-000.parquet", [pa.Table.from_pylist(rows)], {})
        write_table(self.root / SEEDS, [seeds], {})
        _write_tasks(self.root / "meta/tasks.parquet", tasks)
        plain = {k: {s: v.tolist() for s, v in each.items()} for k, each in stats.items()}
        write_json(self.root / "meta/stats.json", plain)
        info = _info(spec, len(rows), start, len(tasks))
        write_json(self.root / "meta/info.json", info)  # last: without it the folder is not taken for a dataset
        return info


def _markers(root: Path) -> tuple[dict[str, Any], list[list[dict[str, Any]]]]:
    paths = sorted((root / "meta/shards").glob("[0-9]*.parquet"))
    if not paths:
        raise DatasetError(f"{root} holds no complete shard to merge; collect at least one.")
    for expected, path in enumerate(paths):
        if int(path.stem) != expected:
            raise DatasetError(f"{root} lacks shard {expected} though {path.name} exists; run the collection again.")
    spec: dict[str, Any] = {}
    shards: list[list[dict[str, Any]]] = []
    for path in paths:
        found, rows = read_marker(path)
        found.pop("video_bytes")
        if spec and found != spec:
            raise DatasetError(f"{path} was recorded as {found}, expected {spec}; remove it and collect again.")
        if shards and len(shards[-1]) != spec["shard_size"]:
            raise DatasetError(
                f"shard {len(shards) - 1} of {root} has {len(shards[-1])} episodes, expected {spec['shard_size']}; "
                "only the last may be smaller. Run the collection again."
            )
        spec = found
        shards.append(rows)
    return spec, shards


def _episode_row(row: dict[str, Any], group: pa.Table, start: int) -> dict[str, Any]:
    """An episode's row as LeRobot writes it, in its order: with statistics of the columns that it counts in itself."""
    row |= {"dataset_from_index": start, "dataset_to_index": start + row["length"]}
    stats = {name: array_stats(_numbers(group, name)) for name in _DEFAULTS}
    row |= {f"stats/{name}/{s}": v.tolist() for name, each in stats.items() for s, v in each.items()}
    row |= {"meta/episodes/chunk_index": 0, "meta/episodes/file_index": 0}
    return {k: row[k] for k in sorted(row, key=lambda k: _ORDER.index(k.partition("/")[0]))}


def _renumber(data: Path, start: int, tasks: dict[str, int]) -> list[pa.Table]:
    """Give a data file global ``index`` and ``task_index`` (rewritten only if they change); returns its row groups."""
    groups, own = read_data(data)
    new = {i: tasks.setdefault(text, len(tasks)) for i, text in sorted(own.items())}
    at, changed = start, []
    for group in groups:
        ids = [new[i] for i in group["task_index"].to_pylist()]
        index = pa.array(np.arange(at, at + len(group)))
        group = _replace(group, "task_index", pa.array(ids, pa.int64()))
        changed.append(_replace(group, "index", index))
        at += len(group)
    if any(a != b for a, b in zip(groups, changed, strict=True)):
        write_data(data, changed, {new[i]: text for i, text in own.items()})
    return changed


def _replace(table: pa.Table, name: str, column: pa.Array) -> pa.Table:
    return table.set_column(table.column_names.index(name), name, column)


def _numbers(table: pa.Table, name: str) -> np.ndarray:
    column = table[name].combine_chunks()
    if pa.types.is_fixed_size_list(column.type):
        return column.flatten().to_numpy(zero_copy_only=False).reshape(len(column), -1)
    return column.to_numpy(zero_copy_only=False)


def _stats(parts: list[dict[str, Stats]], samples: list[dict[str, np.ndarray]]) -> dict[str, Stats]:
    """Statistics of all shards, from those of each and a sample of its rows."""
    stats = {name: merge_stats([p[name] for p in parts]) for name in parts[0]}
    for name, each in stats.items():
        # Averaged quantiles are wrong for features that differ between episodes; these are of a sample of all rows.
        exact = array_stats(np.concatenate([s[name] for s in samples]))
        each |= {q: exact[q] for q in QUANTILES}
    return stats


def _image_stats(rows: list[dict[str, Any]], spec: dict[str, Any]) -> dict[str, Stats]:
    out = {}
    for key in [k for k, f in spec["features"].items() if f["dtype"] == "video"]:
        prefix = f"stats/{key}/"
        names = [n[len(prefix) :] for n in rows[0] if n.startswith(prefix)]
        out[key] = merge_stats([{n: np.array(row[prefix + n]) for n in names} for row in rows])
    return out


def _info(spec: dict[str, Any], episodes: int, frames: int, tasks: int) -> dict[str, Any]:
    features = {}
    for key, feature in spec["features"].items():
        if feature["dtype"] == "video":
            height, width, channels = feature["shape"]
            more = {"height": height, "width": width, "channels": channels, "codec": "h264", "pix_fmt": "yuv420p"}
            more |= {"fps": spec["fps"]}
            plain = {"has_audio": False, "is_depth_map": False}
            feature = feature | {"info": {f"video.{k}": v for k, v in more.items()} | plain}
        features[key] = feature
    features |= {key: {"dtype": dtype, "shape": [1], "names": None} for key, dtype in _DEFAULTS.items()}
    return {
        "codebase_version": "v3.0",
        "robot_type": spec["robot_type"],
        "total_episodes": episodes,
        "total_frames": frames,
        "total_tasks": tasks,
        "chunks_size": CHUNK_FILES,
        "data_files_size_in_mb": 100,
        "video_files_size_in_mb": 200,
        "fps": spec["fps"],
        "splits": {"train": f"0:{episodes}"},
        "data_path": DATA_PATH,
        "video_path": VIDEO_PATH,
        "features": features,
    }


def _write_tasks(path: Path, tasks: dict[str, int]) -> None:
    table = pa.table({"task_index": pa.array(tasks.values(), pa.int64()), "task": pa.array(tasks.keys(), pa.string())})
    # LeRobot reads this file with pandas and looks instructions up in its index; this is how pandas marks an index.
    columns = [
        {"name": n, "field_name": n, "pandas_type": t, "numpy_type": m, "metadata": None}
        for n, t, m in [("task_index", "int64", "int64"), ("task", "unicode", "object")]
    ]
    pandas = {"index_columns": ["task"], "column_indexes": [], "columns": columns, "pandas_version": "2.0.0"}
    write_table(path, [table], {b"pandas": json.dumps(pandas).encode()})
