"""The columns of numbers in one data file of a dataset, whatever else the file holds."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from imagine.data.format import EpisodeRecord
from imagine.types import DatasetError

Columns = dict[str, np.ndarray]

LABELS = ("next.success", "is_expert")
"""Features of one flag in each row that training understands, where a dataset has them."""

TRUTH = "observation.environment_state"
"""LeRobot's name for what only a simulator or a motion-capture rig knows."""

COUNTED = ("timestamp", "frame_index", "episode_index", "index", "task_index")
"""What LeRobot adds to each row."""

_LETTERS = 400
_REPAIR = "copy it again from where the dataset came from, or collect the episode again."


@dataclass
class Table:
    """The columns of numbers in a data file.

    Attributes:
        columns: by key, (n, d) or (n,).
        faults: why other columns that were asked for cannot be used.
    """

    columns: Columns
    faults: dict[str, str]

    def __post_init__(self) -> None:
        self._order = np.argsort(self.columns["episode_index"], kind="stable")
        self._episodes = self.columns["episode_index"][self._order]

    def rows(self, episode: int) -> np.ndarray:
        """Positions of an episode's rows, ascending."""
        first, last = np.searchsorted(self._episodes, episode), np.searchsorted(self._episodes, episode, "right")
        return self._order[first:last]


def read_table(record: EpisodeRecord, keys: Collection[str] | None = None) -> Table:
    """Columns of numbers of the data file that holds an episode: those of ``keys`` that it has, or all.

    Empty cells among floating-point numbers are NaN.

    Raises:
        DatasetError: it cannot be read, or does not say which row belongs to which episode.
    """
    columns, faults = Columns(), {}
    try:
        with pq.ParquetFile(record.data, page_checksum_verification=True) as file:
            numbers = [f.name for f in file.schema_arrow if _is_number(f.type) and (keys is None or f.name in keys)]
            table = file.read(columns=numbers, use_threads=False)
        for name in numbers:
            try:
                columns[name] = _numpy(table[name], one=name in (*LABELS, *COUNTED))
            except ValueError as error:
                faults[name] = str(error)
    except (pa.ArrowException, OSError, ValueError, KeyError) as error:
        raise fault(record.data, record, f"cannot be read ({str(error)[:200]})") from error
    if "episode_index" not in columns:
        raise fault(record.data, record, f"has no column 'episode_index' {faults.get('episode_index', '')}".strip())
    return Table(columns, faults)


def fault(path: Path, record: EpisodeRecord, what: str) -> DatasetError:
    """The error that names a file of a dataset and an episode of it."""
    what = " ".join(what.split())[:_LETTERS]  # libraries explain themselves over many lines
    return DatasetError(f"dataset file {path} (episode {record.index}) {what}; {_REPAIR}")


def _is_number(kind: pa.DataType) -> bool:
    while _is_list(kind):
        kind = kind.value_type
    return bool(pa.types.is_integer(kind) or pa.types.is_floating(kind) or pa.types.is_boolean(kind))


def _is_list(kind: pa.DataType) -> bool:
    return bool(pa.types.is_list(kind) or pa.types.is_fixed_size_list(kind) or pa.types.is_large_list(kind))


def _numpy(column: pa.ChunkedArray, *, one: bool) -> np.ndarray:
    """(n,) or (n, d) array of a column of numbers or equally long lists of them; (n,) where ``one`` is expected."""
    array = column.combine_chunks()
    if isinstance(array, pa.ChunkedArray):  # combine_chunks of an empty column
        array = pa.concat_arrays(array.chunks)
    n, scalar = len(array), not _is_list(array.type)
    while _is_list(array.type):
        lengths = pc.min_max(pc.list_value_length(array)).as_py()
        if array.null_count:
            raise ValueError("it has empty cells")
        if lengths["min"] != lengths["max"]:
            raise ValueError(f"its lists have {lengths['min']} to {lengths['max']} numbers, expected equally many")
        array = array.flatten()
    if array.null_count and not pa.types.is_floating(array.type):
        raise ValueError("it has empty cells")
    values = np.asarray(array.to_numpy(zero_copy_only=False))
    if one:
        if len(values) != n or not np.isfinite(values).all():
            raise ValueError("it has not one finite number in each row")
        return values
    return values[:, None] if scalar and values.dtype.kind == "f" else values if scalar else values.reshape(n, -1)
