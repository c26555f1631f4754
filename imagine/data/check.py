"""Finds what would go wrong later: everything about a dataset and an embodiment that can be known without decoding.

Only the columns that training reads and the headers of the videos are looked at, so thousands of episodes take seconds.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from itertools import groupby

import numpy as np

from imagine.data.check_video import TOLERANCE, check_videos
from imagine.data.episode_cache import tick_rows
from imagine.data.format import EpisodeRecord
from imagine.data.read import LeRobotDataset, used_state
from imagine.data.table import COUNTED, Columns, read_table
from imagine.data.windows import Windows
from imagine.embodiment import ActionSlice, Embodiment, Slice
from imagine.model.text import split_words
from imagine.types import INSTRUCTION_BYTES, DatasetError

MOST_OUTSIDE = 0.2
"""Share of a slice's recorded actions outside its bounds from which the units or the bounds are taken to be wrong."""

_WARN_OUTSIDE = 0.02
_DEGREES = 12.0  # rad; joints that turn this far are rare, degrees that stay below it too
_TURN = {"rad": 2 * np.pi, "deg": 360.0}
_NEAR = 0.1  # turns
_READERS = 4
_NAMED = 5  # episodes


@dataclass
class Report:
    """What is wrong with a dataset for an embodiment.

    Attributes:
        episodes: how many were looked at.
        rows: their rows.
        outside: per action slice, the share of recorded actions outside its bounds.
        errors: one sentence each; training would fail or learn nonsense.
        warnings: one sentence each; training works, perhaps not as intended.
    """

    episodes: int = 0
    rows: int = 0
    outside: dict[str, float] = field(default_factory=dict)
    errors: list[str] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)

    def add(self, other: Report) -> None:
        """Join what was found in another dataset; of shares outside of bounds the larger counts."""
        self.episodes, self.rows = self.episodes + other.episodes, self.rows + other.rows
        self.errors, self.warnings = self.errors + other.errors, self.warnings + other.warnings
        self.outside |= {k: max(v, self.outside.get(k, 0.0)) for k, v in other.outside.items()}

    def refuse(self) -> None:
        """Raise DatasetError with all errors, one per line, if there are any."""
        if self.errors:
            raise DatasetError("\n".join(self.errors))


@dataclass
class _Seen:
    """What one pass over the rows adds up; lists are of episode numbers."""

    not_finite: dict[str, list[int]] = field(default_factory=dict)
    unsorted: list[int] = field(default_factory=list)
    gaps: list[int] = field(default_factory=list)
    late: list[int] = field(default_factory=list)
    short: list[int] = field(default_factory=list)
    jumps: dict[str, list[int]] = field(default_factory=dict)
    largest: dict[str, float] = field(default_factory=dict)
    tasks: dict[int, int] = field(default_factory=dict)  # task_index: first episode
    contradicted: list[int] = field(default_factory=list)
    outside: dict[str, list[float]] = field(default_factory=dict)  # per episode, the share of recorded actions
    succeeded: list[int] = field(default_factory=list)
    at_once: list[int] = field(default_factory=list)
    expert: int = 0


def check_dataset(dataset: LeRobotDataset, body: Embodiment, known_words: Collection[str] | None = None) -> Report:
    """Look at every row's numbers and every video's length.

    Args:
        dataset: an opened dataset.
        body: the embodiment it is to be read with.
        known_words: the words of the model that training starts from; None for a new model.

    Returns:
        Errors and warnings; whatever raises DatasetError on the way is among the errors.
    """
    report, seen = Report(len(dataset), sum(e.length for e in dataset.layout.episodes)), _Seen()
    try:
        has_state, has_action = dataset.check_embodiment(body)
        slices = [*(used_state(body) if has_state else ()), *(body.action if has_action else ())]
        for record, data in _episodes(dataset, dataset.keys(body, has_state=has_state, has_action=has_action)):
            _look_at_rows(seen, record, data, dataset.fps, dataset.layout.tasks)
            _look_at_numbers(seen, record, data, slices)
            if has_action:
                _look_at_actions(seen, data, dataset, body)
            stride = body.frame_stride * dataset.fps / body.control_hz
            if record.length <= stride:
                seen.short.append(record.index)
    except DatasetError as error:
        report.errors.append(str(error))
        return report
    report.outside = {name: float(np.mean(shares)) for name, shares in seen.outside.items()}
    report.errors += [*_row_errors(seen, dataset), *_instruction_errors(seen, dataset, known_words)]
    report.errors += _bound_sentences(seen, body, MOST_OUTSIDE, 1.01)
    errors, warnings = check_videos(dataset, [v.key for v in body.views])
    report.errors += errors
    if not has_action:
        lacking = "actions" if has_state else "state and actions"
        report.warnings.append(
            f"{dataset.root} is read as video alone: meta/info.json has no features for the {lacking} of {body.name!r}."
        )
    report.warnings += [*_row_warnings(seen), *_label_warnings(seen, dataset), *_unit_warnings(seen, body)]
    report.warnings += _bound_sentences(seen, body, _WARN_OUTSIDE, MOST_OUTSIDE)
    report.warnings += [*warnings, *_rate_warnings(dataset, body), *_view_warnings(dataset, body)]
    return report


def refuse_out_of_bounds(windows: Windows) -> None:
    """Raise DatasetError if recorded actions of the training windows lie outside the embodiment's bounds."""
    rows = windows.rows("train")
    action, valid = windows.actions(rows[:: max(1, len(rows) // 20_000)])
    if valid.any():
        seen = _Seen(outside=_outside(windows.embodiment, action[valid]))
        for sentence in _bound_sentences(seen, windows.embodiment, MOST_OUTSIDE, 1.01):
            raise DatasetError(sentence)


# ---------------------------------------------------------------------- one pass over the rows
def _episodes(dataset: LeRobotDataset, keys: Collection[str]) -> Iterator[tuple[EpisodeRecord, Columns]]:
    """Every episode with those columns, rows as they are in the file; files are read a few ahead."""
    files = [list(group) for _, group in groupby(dataset.layout.episodes, key=lambda e: e.data)]
    with ThreadPoolExecutor(_READERS) as pool:
        for start in range(0, len(files), 8 * _READERS):
            batch = files[start : start + 8 * _READERS]
            tables = pool.map(lambda group: read_table(group[0], {*keys, *COUNTED}), batch)
            for group, table in zip(batch, tables, strict=True):
                for record in group:
                    rows = dataset.rows_of(record, table)
                    wanted = [*keys, *(table.columns.keys() & set(COUNTED))]
                    yield record, {name: dataset.column(record, table, name)[rows] for name in wanted}


def _look_at_rows(seen: _Seen, record: EpisodeRecord, data: Columns, fps: float, known: Mapping[int, str]) -> None:
    frame = data.get("frame_index", np.arange(record.length))
    if (np.diff(frame) < 0).any():
        seen.unsorted.append(record.index)
        order = np.argsort(frame, kind="stable")
        for name in data:
            data[name] = data[name][order]
        frame = frame[order]
    if not np.array_equal(frame - frame[0], np.arange(record.length)):
        seen.gaps.append(record.index)
    time = data.get("timestamp")
    if time is not None and np.abs(time - np.arange(record.length) / fps).max() > TOLERANCE + 1e-7 * np.abs(time).max():
        seen.late.append(record.index)
    tasks = np.unique(data.get("task_index", np.zeros(0, int))).tolist()
    for task in tasks:
        seen.tasks.setdefault(task, record.index)
    if record.tasks and tasks and set(record.tasks) != {known.get(task) for task in tasks}:
        seen.contradicted.append(record.index)
    success = data.get("next.success", np.zeros(1)).reshape(-1).astype(bool)
    if success.any():
        seen.succeeded.append(record.index)
    if success[0]:
        seen.at_once.append(record.index)
    seen.expert += int(data.get("is_expert", np.ones(record.length)).sum())


def _look_at_numbers(seen: _Seen, record: EpisodeRecord, data: Columns, slices: Sequence[Slice]) -> None:
    for key in {s.key for s in slices}:
        if not np.isfinite(data[key]).all():
            seen.not_finite.setdefault(key, []).append(record.index)
    for s in slices:
        values = np.nan_to_num(data[s.key][:, s.start : s.stop], posinf=0, neginf=0)
        at = f"{s.name} ({s.key}, {s.start}:{s.stop})"
        seen.largest[at] = max(seen.largest.get(at, 0.0), float(np.abs(values).max()))
        turns = np.abs(np.diff(values, axis=0)) / _TURN.get(s.unit, np.inf)
        if not s.wraps and (np.abs(turns - 1) < _NEAR).any():
            seen.jumps.setdefault(at, []).append(record.index)


def _look_at_actions(seen: _Seen, data: Columns, dataset: LeRobotDataset, body: Embodiment) -> None:
    rows = tick_rows(len(data["episode_index"]), dataset.fps, body.control_hz)
    ticks = {key: data[key][rows] for key in {s.key for s in (*body.state, *body.action)}}
    now = np.arange(0, len(rows), body.frame_stride)
    reach = now[:, None] + np.arange(body.chunk_actions)
    anchor = body.anchor_of({key: value[now] for key, value in ticks.items()})
    action = body.relative_action(body.action_of(ticks)[np.minimum(reach, len(rows) - 1)], anchor[:, None])
    for name, shares in _outside(body, action[reach < len(rows)]).items():
        seen.outside.setdefault(name, []).extend(shares)


def _outside(body: Embodiment, action: np.ndarray) -> dict[str, list[float]]:
    """Per action slice, the share of (n, A) model actions outside its bounds; what is not finite does not count."""
    slack = 0.01 * (body.action_high - body.action_low)
    beyond = (action < body.action_low - slack) | (action > body.action_high + slack)
    ends = np.cumsum([a.size for a in body.action])
    return {a.name: [float(beyond[:, e - a.size : e].mean())] for a, e in zip(body.action, ends, strict=True)}


# ---------------------------------------------------------------------- sentences
def _named(episodes: Sequence[int]) -> str:
    """``episode 3`` or ``episodes 3, 5 and 12 more``."""
    shown = ", ".join(str(e) for e in episodes[:_NAMED])
    more = f" and {len(episodes) - _NAMED} more" if len(episodes) > _NAMED else ""
    return f"episode{'s' if len(episodes) > 1 else ''} {shown}{more}"


def _row_errors(seen: _Seen, dataset: LeRobotDataset) -> Iterator[str]:
    for key, episodes in seen.not_finite.items():
        file = next(e.data for e in dataset.layout.episodes if e.index == episodes[0])
        yield f"feature {key!r} holds NaN or infinity in {_named(episodes)} ({file}); mend or leave out the episode."
    if seen.gaps:
        yield f"frame_index does not count up by 1 in {_named(seen.gaps)} of {dataset.root}; rows are lost or double."
    if len(seen.short) == len(dataset):
        yield f"no episode of {dataset.root} is longer than one frame of the embodiment; record longer ones."


def _row_warnings(seen: _Seen) -> Iterator[str]:
    if seen.unsorted:
        yield f"rows are not in the order of frame_index in {_named(seen.unsorted)}; they are sorted when read."
    if seen.late:
        yield f"timestamp is not frame_index / fps in {_named(seen.late)}; frames are chosen by frame_index."
    if seen.contradicted:
        yield f"meta/ lists other tasks for {_named(seen.contradicted)} than their rows name; the rows are believed."
    if seen.short:
        yield f"{_named(seen.short)} are too short for one frame ahead and give nothing to learn from."


def _instruction_errors(seen: _Seen, dataset: LeRobotDataset, known_words: Collection[str] | None) -> Iterator[str]:
    tasks = dataset.layout.tasks
    texts = {tasks[t]: e for t, e in seen.tasks.items() if t in tasks}
    for task in sorted(set(seen.tasks) - set(tasks)):
        yield f"episode {seen.tasks[task]} uses task_index {task}, which the list of tasks of {dataset.root} lacks."
    if not seen.tasks:
        texts = {e.tasks[0] if e.tasks else "": e.index for e in dataset.layout.episodes}
    for text, episode in texts.items():
        length = len(text.strip().encode())
        if length > INSTRUCTION_BYTES:
            yield (
                f"the instruction of episode {episode}, {text[:40]!r}…, has {length} bytes, expected at most "
                f"{INSTRUCTION_BYTES}; shorten it in the list of tasks."
            )
        if not split_words(text):
            yield f"the instruction of episode {episode} is {text!r}, expected words; add it to the list of tasks."
        elif known_words is not None and (unknown := [w for w in split_words(text) if w not in known_words]):
            yield f"the instruction of episode {episode} holds {unknown[0]!r}, which the initial model never read."


def _label_warnings(seen: _Seen, dataset: LeRobotDataset) -> Iterator[str]:
    features, n = dataset.layout.features, len(dataset)
    if "next.success" not in features:
        yield (
            "there is no feature next.success (bool per row: the task is done); codec and model train without it, the "
            "success head is left out."
        )
    elif not seen.succeeded:
        yield "next.success is False in every row; a success head cannot be learned from failures alone."
    elif len(seen.at_once) > n / 2:
        yield f"next.success is True in the first row of {len(seen.at_once)} of {n} episodes; is it set per episode?"
    if "is_expert" not in features:
        yield "there is no feature is_expert (bool per row: worth imitating); every row counts as the expert's."
    elif not seen.expert:
        yield "is_expert is False in every row; no policy can be learned from it."


def _bound_sentences(seen: _Seen, body: Embodiment, above: float, upto: float) -> Iterator[str]:
    for a in body.action:
        share = float(np.mean(seen.outside.get(a.name, [0.0])))
        if above < share < upto:
            yield (
                f"{share:.0%} of the recorded actions of slice {a.name!r} ({_after(a)}) are outside low {a.low:g} and "
                f"high {a.high:g} {a.unit} of embodiment {body.name!r}; are the units right?"
            )


def _after(a: ActionSlice) -> str:
    return f"relative to {a.relative_to!r}" if a.relative_to else f"feature {a.key!r}"


def _unit_warnings(seen: _Seen, body: Embodiment) -> Iterator[str]:
    for s in dict.fromkeys([*used_state(body), *body.action]):
        at = f"{s.name} ({s.key}, {s.start}:{s.stop})"
        largest = seen.largest.get(at)
        if largest is not None and s.unit == "rad" and largest > _DEGREES:
            yield f"slice {at} reaches {largest:.3g} rad, which looks like degrees."
        if largest is not None and s.unit == "deg" and 0 < largest < _TURN["rad"]:
            yield f"slice {at} never exceeds {largest:.3g} degrees, which looks like radians."
    for at, episodes in seen.jumps.items():
        yield f"slice {at} jumps by about 2 pi in {_named(episodes)}; unwrap it, or give it kind: rotation."


def _rate_warnings(dataset: LeRobotDataset, body: Embodiment) -> Iterator[str]:
    ratio = dataset.fps / body.control_hz
    if abs(ratio - round(ratio)) > 0.01 or ratio < 0.99:
        yield f"control_hz is {body.control_hz}, but the dataset has {dataset.fps:g} rows/s; rows repeat or are lost."


def _view_warnings(dataset: LeRobotDataset, body: Embodiment) -> Iterator[str]:
    for v in body.views:
        shape = dataset.layout.features[v.key].get("shape", [])
        sides = [n for n in shape if n not in (1, 3, 4)]
        if len(sides) == 2 and not 0.8 < (v.height / v.width) / (sides[0] / sides[1]) < 1.25:
            yield f"view {v.name!r} squeezes {sides[0]}x{sides[1]} pixels into {v.height}x{v.width}."
