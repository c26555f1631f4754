"""Reads LeRobotDataset folders, v3.0 and v2.x, without the lerobot package; every bad file is named.

Source: the layouts of LeRobotDataset (huggingface/lerobot, Apache-2.0); own implementation.
"""

from __future__ import annotations

import re
from collections import OrderedDict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import av
import numpy as np
import pyarrow as pa
import pyarrow.dataset as ds
import pyarrow.parquet as pq

from imagine.data.format import EpisodeRecord, Layout, inside, read_layout
from imagine.data.mp4 import mp4_fault
from imagine.data.table import LABELS, TRUTH, Columns, Table, fault, read_table
from imagine.data.video import decode, decode_picture
from imagine.embodiment import Embodiment, Slice
from imagine.types import DatasetError

_SEEN = ("video", "image")  # dtypes of cameras
_OPEN_TABLES = 2  # data files kept in memory; episodes are read in order
_OTHER_BODY = "use the embodiment this dataset was recorded with."
_UNDECODABLE = (av.FFmpegError, EOFError, OSError, IndexError, ValueError, ArithmeticError, RuntimeError, MemoryError)


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
    _tables: OrderedDict[Path, Table] = field(default_factory=OrderedDict, repr=False)

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
        """Per-row features of the i-th episode: ``{key: (T, d) or (T,)}``, ``keys`` only or all numbers there are.

        Rows are in the order of ``frame_index``, whatever their order in the file. Floating-point features of one
        number, which LeRobot stores as plain columns, are (T, 1); what it counts or flags, and its ``timestamp``, (T,).

        Raises:
            DatasetError: the data file cannot be read, lacks a key, holds it in another shape than ``info.json`` says,
                or holds another number of rows.
        """
        record = self[i]
        table = self._table(record)
        rows = self._rows(record, table)
        found = table.columns if keys is None else {key: self.column(record, table, key) for key in keys}
        return {key: column[rows] for key, column in found.items()}

    def column(self, record: EpisodeRecord, table: Table, key: str) -> np.ndarray:
        """A whole column of the data file that holds an episode.

        Raises:
            DatasetError: the file lacks it, or holds it in another shape than ``info.json`` says.
        """
        if key not in table.columns:
            why = table.faults.get(key, f"it has {sorted(table.columns)}")
            raise fault(record.data, record, f"has no usable column {key!r}: {why}")
        column = table.columns[key]
        declared = int(np.prod(self.layout.features.get(key, {}).get("shape", column.shape[1:])))
        if column[:1].size not in (declared, 0):
            what = f"holds {column[:1].size} numbers of {key!r} in a row, expected {declared} as in meta/info.json"
            raise fault(record.data, record, what)
        return column

    def _rows(self, record: EpisodeRecord, table: Table) -> np.ndarray:
        """(T,) positions of an episode's rows in its data file, in the order of their ``frame_index``."""
        rows = self.rows_of(record, table)
        if "frame_index" in table.columns:
            frame = table.columns["frame_index"][rows]
            order = np.argsort(frame, kind="stable")
            rows = rows[order]
            if (np.diff(frame[order]) != 1).any():
                raise fault(record.data, record, "lost rows or has some twice: frame_index does not count up by 1")
        return rows

    def rows_of(self, record: EpisodeRecord, table: Table) -> np.ndarray:
        """(T,) positions of an episode's rows in its data file, as they lie there."""
        rows = table.rows(record.index)
        if len(rows) != record.length:
            raise fault(record.data, record, f"holds {len(rows)} rows of it, expected {record.length}")
        return rows

    def keys(self, embodiment: Embodiment, *, has_state: bool, has_action: bool) -> list[str]:
        """Keys of the features that a model of an embodiment is taught with."""
        state = {*used_state(embodiment), embodiment.state[0]} if has_state else set()
        action = embodiment.action if has_action else ()
        return sorted({s.key for s in (*state, *action)} | ({*LABELS, TRUTH} & self.layout.features.keys()))

    def instructions(self, i: int) -> list[str]:
        """The instruction at every row of the i-th episode."""
        record = self[i]
        if "task_index" not in self.layout.features and "task_index" not in self._table(record).columns:
            return [record.tasks[0] if record.tasks else ""] * record.length
        ids = self.features(i, ["task_index"])["task_index"].tolist()
        unknown = set(ids) - set(self.layout.tasks)
        if unknown:
            raise fault(record.data, record, f"uses task_index {min(unknown)}, which the list of tasks lacks")
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
        starts = [self[i].videos[camera].start * self.fps for i, _ in wanted]
        numbers = [start + int(r) for start, (_, rows) in zip(starts, wanted, strict=True) for r in rows]
        owner = [i for i, rows in wanted for _ in rows]
        done = 0
        try:
            for frame in decode(path, self.fps, numbers, size):
                done += 1
                yield frame
        except _UNDECODABLE as error:
            record = self[owner[min(done, len(owner) - 1)]]
            raise fault(path, record, f"cannot be decoded ({error})") from error

    def _pictures(
        self, record: EpisodeRecord, camera: str, rows: np.ndarray, size: tuple[int, int] | None
    ) -> Iterator[np.ndarray]:
        """Frames of an episode whose camera is a column of encoded pictures (dtype image) in its data file."""
        try:
            own = ds.field("episode_index") == record.index  # in file order
            column = ds.dataset(record.data).to_table({camera: ds.field(camera)}, filter=own)[camera]
            in_file = self._rows(record, self._table(record))
            for place in np.searchsorted(np.sort(in_file), in_file[rows]):
                cell = column[int(place)].as_py()
                if isinstance(cell, dict):  # of the datasets library
                    cell = cell["bytes"] if cell["bytes"] is not None else inside(self.root, cell["path"]).read_bytes()
                yield decode_picture(cell, size)
        except (pa.ArrowException, KeyError, TypeError, StopIteration, *_UNDECODABLE) as error:
            if isinstance(error, DatasetError):
                raise
            raise fault(record.data, record, f"holds no usable images in column {camera!r} ({error})") from error

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
        state = self._has(used_state(embodiment), embodiment.name)
        action = self._has(embodiment.action, embodiment.name)
        return state, state and action

    def _has(self, slices: Sequence[Slice], embodiment: str) -> bool:
        stops: dict[str, int] = {}
        for s in slices:
            stops[s.key] = max(s.stop, stops.get(s.key, 0))
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
                raise fault(path, record, "is missing")
            damage = mp4_fault(path) if path not in rows else _parquet_fault(path, rows[path])
            if damage:
                raise fault(path, record, damage)

    def _table(self, record: EpisodeRecord) -> Table:
        if record.data not in self._tables:
            self._tables[record.data] = read_table(record)
            while len(self._tables) > _OPEN_TABLES:
                self._tables.popitem(last=False)
        return self._tables[record.data]


def used_state(embodiment: Embodiment) -> list[Slice]:
    """State slices that are proprioception or that an action is relative to; a dataset may lack others."""
    used = {a.relative_to for a in embodiment.action} | set(embodiment.proprio)
    return [s for s in embodiment.state if s.name in used]


def _parquet_fault(path: Path, expected: int) -> str | None:
    try:
        found = pq.read_metadata(path).num_rows
    except (pa.ArrowException, OSError, ValueError) as error:  # the last: a name in it that is no text
        return f"is truncated or corrupt ({error})"
    return None if found >= expected else f"has {found} rows, expected {expected}"
