"""A lab's own real trials, held against dreams of the same policies from the same starts.

The table has a row per trial and three columns; others are left alone:

* ``policy``: a name that ``imagine evaluate --policy`` takes;
* ``start``: which start it was, by its number among the saved starts or episodes, or by its id (``saved-3``);
* ``success``: true or false, 1 or 0.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from imagine.agents.agreement import MEASURES, agreement
from imagine.agents.correction import ppi_mean
from imagine.agents.statistics import paired_difference, success_rate
from imagine.types import ImagineError

if TYPE_CHECKING:
    import pyarrow as pa

COLUMNS = ("policy", "start", "success")
_TRUTH = {"true": True, "1": True, "1.0": True, "yes": True, "false": False, "0": False, "0.0": False, "no": False}
_FEW = {1: ("bias", "rmse"), 2: ("mmrv", "pairs", "regret", "bias", "rmse")}
"""Measures of agreement that mean something for so few policies."""

Trials = Mapping[str, Mapping[int, bool]]
"""Policy to number of the start to success."""


def read_trials(path: str | Path, start_ids: Sequence[str]) -> Trials:
    """Read a table of real trials.

    Args:
        path: a ``.csv`` file with a header, or a ``.parquet`` file.
        start_ids: of all starts that there are, in their order.

    Raises:
        ImagineError: the file cannot be read, lacks a column, or has no rows; a start is unknown; a success is neither
            true nor false; or a policy has two trials of one start.
    """
    table = _table(Path(path))
    missing = [name for name in COLUMNS if name not in table.column_names]
    if missing:
        raise ImagineError(f"{path} has columns {table.column_names}, expected {', '.join(COLUMNS)}.")
    if not len(table):
        raise ImagineError(f"{path} holds no trials, expected at least one row.")
    number = {text: i for i, full in enumerate(start_ids) for text in (full, full.rpartition("-")[2])}
    trials: dict[str, dict[int, bool]] = {}
    columns = ([str(value).strip() for value in table[name].to_pylist()] for name in COLUMNS)
    for line, (policy, start, success) in enumerate(zip(*columns, strict=True), 1):
        if start not in number:
            raise ImagineError(
                f"{path}, trial {line}: start {start!r} is none of the {len(start_ids)} starts, from {start_ids[0]!r} "
                f"to {start_ids[-1]!r}; give --starts the dataset that it is in."
            )
        if success.lower() not in _TRUTH:
            raise ImagineError(f"{path}, trial {line}: success is {success!r}, expected true or false.")
        own = trials.setdefault(policy, {})
        if number[start] in own:
            raise ImagineError(
                f"{path}, trial {line}: policy {policy!r} has another trial of start {start!r}; keep one of them."
            )
        own[number[start]] = _TRUTH[success.lower()]
    return trials


def _table(path: Path) -> pa.Table:
    import pyarrow as pa
    import pyarrow.csv
    import pyarrow.parquet

    if path.suffix not in (".csv", ".parquet"):
        raise ImagineError(f"trials are in {path.name!r}, expected a .csv or .parquet file.")
    try:
        if path.suffix == ".parquet":
            return pyarrow.parquet.read_table(path)
        text = pyarrow.csv.ConvertOptions(column_types=dict.fromkeys(COLUMNS, pa.string()))
        return pyarrow.csv.read_csv(path, convert_options=text)
    except (OSError, pa.ArrowInvalid) as error:
        raise ImagineError(f"trials in {path} cannot be read: {' '.join(str(error).split())[:200]}.") from None


def compare(trials: Trials, imagined: Trials) -> dict[str, Any]:
    """What the dream says of the trials' policies, beside what really happened.

    Args:
        trials: of :func:`read_trials`.
        imagined: likewise, of dreams; from every start that the policy was tried from, and from others.

    Returns:
        ``policies``, for each: ``real`` and ``imagined`` success of the starts that were tried, their paired
        ``difference`` (imagined less real), ``same_outcome``, the share of starts that ended alike, and ``ppi``, the
        real rate as both tell it together (:func:`imagine.agents.correction.ppi_mean`; None without starts that were
        only dreamt). ``agreement``: measures over all policies (:func:`imagine.agents.agreement.agreement`), on the
        ``starts`` that every policy tried, or from their rates where there are fewer than two. All with 95 % intervals.
    """
    each = [_one(policy, tried, imagined[policy]) for policy, tried in trials.items()]
    shared = sorted(set.intersection(*(set(tried) for tried in trials.values())))
    if len(shared) > 1:
        real, dreamt = (np.array([[of[p][s] for s in shared] for p in trials], float) for of in (trials, imagined))
    else:
        real, dreamt = (np.array([one[world]["value"] for one in each]) for world in ("real", "imagined"))
    found = agreement(real, dreamt, measures=_FEW.get(len(trials), MEASURES))
    return {"policies": each, "agreement": {name: x.plain() for name, x in found.items()}, "starts": len(shared)}


def _one(policy: str, tried: Mapping[int, bool], imagined: Mapping[int, bool]) -> dict[str, Any]:
    real = np.array([tried[s] for s in sorted(tried)])
    dreamt = np.array([imagined[s] for s in sorted(tried)])
    others = np.array([imagined[s] for s in sorted(set(imagined) - set(tried))])
    one: dict[str, Any] = {
        "policy": policy,
        "real": success_rate(real).plain(),
        "imagined": success_rate(dreamt).plain(),
    }
    one["difference"] = paired_difference(dreamt, real).plain()
    one |= {"same_outcome": success_rate(real == dreamt).plain(), "ppi": None}
    if len(others) and len(real) > 1:
        corrected = ppi_mean(real, dreamt, others)
        one["ppi"] = {**corrected.plain(), "only_imagined": len(others), "weight": round(corrected.weight, 4)}
    return one
