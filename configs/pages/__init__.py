"""The pages that commands write, one module each, and how all of them put numbers."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any


def rate(x: dict[str, Any] | None) -> str:
    """A success rate in per cent with its interval; nothing for None."""
    if not x:
        return ""
    return f"{100 * x['success_rate']:.0f} % [{100 * x['ci_low']:.0f}, {100 * x['ci_high']:.0f}], n = {x['n']}"


def points(x: dict[str, Any]) -> str:
    """A difference of rates in points with its interval."""
    return f"{100 * x['value']:+.0f} [{100 * x['ci_low']:+.0f}, {100 * x['ci_high']:+.0f}]"


def number(x: dict[str, Any] | None) -> str:
    """Any other estimate with its interval; nothing for None."""
    return "" if x is None else f"{x['value']:.3g} [{x['ci_low']:.3g}, {x['ci_high']:.3g}], n = {x['n']}"


def headed(tasks: Iterable[str]) -> list[str]:
    """Names of tasks as headers."""
    return [task.replace("_", " ") for task in tasks]


def rates(result: dict[str, Any], tasks: Iterable[str]) -> list[str]:
    """Cells of a table: success over all tasks, and in each."""
    return [rate(result), *(rate(result["per_task"].get(task)) for task in tasks)]
