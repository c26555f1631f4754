"""Reads LeRobotDataset folders, v3.0 and v2.x, without the lerobot package; every bad file is named.

Source: the layouts of LeRobotDataset (huggingface/lerobot, Apache-2.0); own implementation.
"""

from __future__ import annotations

import re
from collections import OrderedDict
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import av
import numpy as np
import pyarrow as pa
import pyarrow.dataset as ds
import pyarrow.parquet as pq

from imagine.data.format import EpisodeRecord, Layout, read_layout
from imagine.data.video import decode, decode_picture, mp4_fault
from imagine.embodiment import Embodiment
from imagine.types import DatasetError

Columns = dict[str, np.ndarray]
_SEEN = ("video", "image")  # dtypes of cameras
_OPEN_TABLES = 2  # data files kept in memory; episodes are read in order
_OTHER_BODY = "use the embodiment this dataset was recorded with."
_REPAIR = "copy it again from where the dataset came from, or collect the episode again."


def _selection(path: str | Path) -> tuple[Path, Callable[[int], Sequence[int]]]:
    """``FOLDER@a:b:c`` as the folder and which of n episodes; a folder of that very name comes first."""
    match = None if Path(path).is_dir() else re.fullmatch(r"(.+)@(\^?)(\d*):(\d*)(?::([1-9]\d*)?)?", str(path))
    if match is None:
        return Path(path), range
    folder, but, *ends = match.groups()
    named = slice(*(int(end) if end else None for end in ends))

    def chosen(n: int) -> Sequence[int]:
        return sorted(set(range(n)) - set(range(n)[named])) if but else range(n)[named]

    return Path(folder), chosen


@dataclass
class LeRobotDataset:
    """A dataset on disk, read episode by episode. Make one with :meth:`open`.

    Attributes:
        root: its folder.
        layout: its description: version, fps, features, tasks, episodes.
    """

    root: Path
    layout: Layout
    _tables: OrderedDict[Path, Columns] = field(default_factory=OrderedDict, repr=False)

    @classmethod
    def open(cls, path: str | Path) -> LeRobotDataset:
        """Read the description and check, without decoding, that every data and video file is there and whole.

        Args:
            path: the dataset's folder, or ``FOLDER@a:b:c`` for some of its episodes, chosen by position as a Python
                slice chooses, or ``FOLDER@^a:b:c`` for all the others.

        Raises:
            DatasetError: something is missing, truncated or of an unknown version; names the file and an episode. Or
                no episode is left.
        """
        folder, chosen = _selection(path)
        dataset = cls(folder, read_layout(folder))
        dataset._check_files()
        episodes = tuple(dataset[i] for i in chosen(len(dataset)))
        if not episodes:
            raise DatasetError(f"{path} selects no episode; {folder} has {len(dataset)}, counted from 0.")
        return cls(folder, replace(dataset.layout, episodes=episodes))

    def __len__(self) -> int:
        """Number of episodes."""
        return len(self.layout.episodes)

    def __getitem__(self, i: int) -> EpisodeRecord:
        """Description of the i-th episode (its position, which need not be its ``index``)."""
        return self.layout.episodes[i]

    @property
    def fps(self) -> float:
        """Rows and frames per second."""
        return self.layout.fps

    @property
    def cameras(self) -> list[str]:
        """Keys of the cameras, recorded as videos or as pictures in the data files."""
        return [k for k, f in self.layout.features.items() if f.get("dtype") in _SEEN]

    def features(self, i: int, keys: Sequence[str] | None = None) -> Columns:
        """Per-row features of the i-th episode: ``{key: (T, d) or (T,)}``, ``keys`` only or all but the cameras.

        Rows are in the order of ``frame_index``, whatever their order in the file. Floating-point features of one
        number, which LeRobot stores as plain columns, are (T, 1); what it counts or flags, and its ``timestamp``, (T,).

        Raises:
            DatasetError: the data file cannot be read, lacks a key, or holds another number of rows.
        """
        record = self[i]
        table = self._table(record)
        rows = self.rows_of(record, table)
        for key in keys or ():
            if key not in table:
                raise _fault(record.data, record, f"has no column {key!r}, expected it among {sorted(table)}")
        return {key: table[key][rows] for key in (table if keys is None else keys)}

    def rows_of(self, record: EpisodeRecord, table: Columns) -> np.ndarray:
        """(T,) positions of an episode's rows in its data file, in the order of their ``frame_index``."""
        rows = np.flatnonzero(table["episode_index"] == record.index)
        if len(rows) != record.length:
            raise _fault(record.data, record, f"holds {len(rows)} rows of it, expected {record.length}")
        if "frame_index" in table:
            rows = rows[np.argsort(table["frame_index"][rows], kind="stable")]
        return rows

    def instructions(self, i: int) -> list[str]:
        """The instruction at every row of the i-th episode."""
        record = self[i]
        if "task_index" not in self._table(record):
            return [record.tasks[0] if record.tasks else ""] * record.length
        ids = self.features(i, ["task_index"])["task_index"].tolist()
        unknown = set(ids) - set(self.layout.tasks)
        if unknown:
            raise _fault(record.data, record, f"uses task_index {min(unknown)}, which the list of tasks lacks")
        return [self.layout.tasks[t] for t in ids]

    def frames(
        self, i: int, camera: str, rows: Sequence[int] | np.ndarray, size: tuple[int, int] | None = None
    ) -> np.ndarray:
        """Decode chosen frames of the i-th episode, in one pass over its video.

        Args:
            i: position of the episode.
            camera: the key of a camera.
            rows: ascending row numbers within the episode.
            size: (height, width) to resize to, or None to leave as recorded.

        Returns:
            (len(rows), h, w, 3) uint8 RGB.

        Raises:
            DatasetError: the video cannot be decoded that far; names file and episode.
        """
        return np.stack(list(self.each_frame([(i, rows)], camera, size)))

    def each_frame(
        self,
        wanted: Sequence[tuple[int, Sequence[int] | np.ndarray]],
        camera: str,
        size: tuple[int, int] | None = None,
    ) -> Iterator[np.ndarray]:
        """As :meth:`frames`, frame by frame, for (episode, rows) pairs that follow one another in one video file."""
        record = self[wanted[0][0]]
        if camera not in self.cameras:
            raise DatasetError(f"{self.root} has no camera {camera!r}, expected one of {self.cameras}; check the key.")
        if camera not in record.videos:
            for i, rows in wanted:
                yield from self._pictures(self[i], camera, np.asarray(rows, np.int64), size)
            return
        path = record.videos[camera].path
        starts = [round(self[i].videos[camera].start * self.fps) for i, _ in wanted]
        numbers = [start + int(r) for start, (_, rows) in zip(starts, wanted, strict=True) for r in rows]
        owner = [i for i, rows in wanted for _ in rows]
        done = 0
        try:
            for frame in decode(path, self.fps, numbers, size):
                done += 1
                yield frame
        except (av.FFmpegError, EOFError, OSError, IndexError) as error:
            record = self[owner[min(done, len(owner) - 1)]]
            raise _fault(path, record, f"cannot be decoded ({error})") from error

    def _pictures(
        self, record: EpisodeRecord, camera: str, rows: np.ndarray, size: tuple[int, int] | None
    ) -> Iterator[np.ndarray]:
        """Frames of an episode whose camera is a column of encoded pictures (dtype image) in its data file."""
        try:
            own = ds.field("episode_index") == record.index  # in file order
            column = ds.dataset(record.data).to_table({camera: ds.field(camera)}, filter=own)[camera]
            in_file = self.rows_of(record, self._table(record))
            for place in np.searchsorted(np.sort(in_file), in_file[rows]):
                cell = column[int(place)].as_py()
                data = cell["bytes"] if cell["bytes"] is not None else (self.root / cell["path"]).read_bytes()
                yield decode_picture(data, size)
        except (pa.ArrowException, av.FFmpegError, OSError, KeyError, TypeError, StopIteration) as error:
            raise _fault(record.data, record, f"holds no usable images in column {camera!r} ({error})") from error

    def check_embodiment(self, embodiment: Embodiment) -> tuple[bool, bool]:
        """Whether the dataset has (state, action) as the embodiment wants them; without either it is video only.

        Raises:
            DatasetError: a camera is missing, a state or action feature is named or shaped differently, or actions per
                tick are recorded at another rate.
        """
        for view in embodiment.views:
            if view.key not in self.cameras:
                raise DatasetError(
                    f"{self.root} ({self.layout.robot_type}) has cameras {self.cameras}, expected {view.key!r} for "
                    f"view {view.name!r} of embodiment {embodiment.name!r}; {_OTHER_BODY}"
                )
        deltas = [a.name for a in embodiment.action if a.mode == "delta"]
        if deltas and self.fps != embodiment.control_hz:
            raise DatasetError(
                f"{self.root} is recorded at {self.fps:g} Hz, expected control_hz {embodiment.control_hz} of "
                f"embodiment {embodiment.name!r}: actions per tick ({', '.join(deltas)}) can be read at no other rate."
            )
        used = {a.relative_to for a in embodiment.action} | set(embodiment.proprio)
        state = self._has({s.key: s.stop for s in embodiment.state if s.name in used}, embodiment.name)
        stops: dict[str, int] = {}
        for a in embodiment.action:
            stops[a.key] = max(a.stop, stops.get(a.key, 0))
        action = self._has(stops, embodiment.name)
        return state, state and action

    def _has(self, stops: dict[str, int], embodiment: str) -> bool:
        features = {k: f for k, f in self.layout.features.items() if f.get("dtype") not in _SEEN}
        families = {key.rpartition(".")[0] or key for key in stops}
        related = [k for k in features if k in stops or any(k == f or k.startswith(f"{f}.") for f in families)]
        if not related:
            return False
        for key, stop in stops.items():
            got = f"shape {features[key]['shape']}" if key in features else f"no {key!r} among {sorted(features)}"
            if key not in features or int(np.prod(features[key]["shape"])) < stop:
                raise DatasetError(
                    f"{self.root} ({self.layout.robot_type}): feature {key!r}: got {got}, expected at least {stop} "
                    f"numbers for embodiment {embodiment!r}; {_OTHER_BODY}"
                )
        return True

    def _check_files(self) -> None:
        rows: dict[Path, int] = {}
        first: dict[Path, EpisodeRecord] = {}
        for record in self.layout.episodes:
            rows[record.data] = rows.get(record.data, 0) + record.length
            for path in [record.data, *(span.path for span in record.videos.values())]:
                first.setdefault(path, record)
        for path, record in first.items():
            if not path.is_file():
                raise _fault(path, record, "is missing")
            fault = mp4_fault(path) if path not in rows else _parquet_fault(path, rows[path])
            if fault:
                raise _fault(path, record, fault)

    def _table(self, record: EpisodeRecord) -> Columns:
        if record.data not in self._tables:
            self._tables[record.data] = read_columns(record)
            while len(self._tables) > _OPEN_TABLES:
                self._tables.popitem(last=False)
        return self._tables[record.data]


def read_columns(record: EpisodeRecord, keys: Collection[str] | None = None) -> Columns:
    """Columns of numbers of the data file that holds an episode: those of ``keys`` that it has, or all.

    Raises:
        DatasetError: it cannot be read, or does not say which row belongs to which episode.
    """
    try:
        with pq.ParquetFile(record.data) as file:
            numbers = [f.name for f in file.schema_arrow if _is_number(f.type) and (keys is None or f.name in keys)]
            table = file.read(columns=numbers, use_threads=False)
        columns = {name: _numpy(table[name]) for name in numbers}
    except (pa.ArrowException, OSError, ValueError) as error:
        raise _fault(record.data, record, f"cannot be read ({error})") from error
    if "episode_index" not in columns:
        raise _fault(record.data, record, "has no column 'episode_index'")
    for name, column in columns.items():
        if column.ndim == 1 and column.dtype.kind == "f" and name != "timestamp":
            columns[name] = column[:, None]
    return columns


def _fault(path: Path, record: EpisodeRecord, what: str) -> DatasetError:
    return DatasetError(f"dataset file {path} (episode {record.index}) {what}; {_REPAIR}")


def _parquet_fault(path: Path, expected: int) -> str | None:
    try:
        found = pq.read_metadata(path).num_rows
    except (pa.ArrowException, OSError) as error:
        return f"is truncated or corrupt ({error})"
    return None if found >= expected else f"has {found} rows, expected {expected}"


def _is_number(kind: pa.DataType) -> bool:
    if pa.types.is_list(kind) or pa.types.is_fixed_size_list(kind) or pa.types.is_large_list(kind):
        kind = kind.value_type
    return bool(pa.types.is_integer(kind) or pa.types.is_floating(kind) or pa.types.is_boolean(kind))


def _numpy(column: pa.ChunkedArray) -> np.ndarray:
    """(n,) or (n, d) array of a column of numbers or equally long lists of them."""
    array = column.combine_chunks()
    if isinstance(array, pa.ChunkedArray):  # combine_chunks of an empty column
        array = pa.concat_arrays(array.chunks)
    if array.null_count:
        raise ValueError("a column holds empty cells")
    if _is_scalar(array.type):
        return np.asarray(array.to_numpy(zero_copy_only=False))
    values = np.asarray(array.flatten().to_numpy(zero_copy_only=False))
    if len(values) % max(1, len(array)):
        raise ValueError("a column holds lists of different lengths")
    return values.reshape(len(array), -1)


def _is_scalar(kind: pa.DataType) -> bool:
    return not (pa.types.is_list(kind) or pa.types.is_fixed_size_list(kind) or pa.types.is_large_list(kind))
