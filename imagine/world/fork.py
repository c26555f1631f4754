"""Moments of a dream's environments: one taken out of several, and one given to several."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
from torch import Tensor

from imagine.types import ShapeError

_LISTS = ("instruction", "history")  # hold one entry per environment


def repeated(state: Mapping[str, Any], n: int) -> dict[str, Any]:
    """The snapshot of a dream of one environment, for one of ``n`` that all go on from there.

    Raises:
        ShapeError: it is of several environments, or cannot be forked.
    """
    if len(state["seeds"]) != 1:
        raise ShapeError(f"the snapshot is of {len(state['seeds'])} environments, expected 1.")
    return _each(
        state,
        lambda x: x.repeat_interleave(n, 0) if isinstance(x, Tensor) else np.repeat(x, n, 0),
        lambda entries: entries * n,
    )


def row_of(state: Mapping[str, Any], env: int) -> dict[str, Any]:
    """The moment of one of several environments, as the snapshot of a dream that has no other.

    Raises:
        ShapeError: it cannot be forked: there is shaping, or environments share a cache of their history (they do
            unless they are imagined alone, with ``tile=1``).
    """
    one = slice(env, env + 1)
    return _each(
        state,
        lambda x: x[one].clone() if isinstance(x, Tensor) else x[one].copy(),
        lambda entries: entries[one],
    )


def _each(
    state: Mapping[str, Any], change: Callable[[Any], Any], change_list: Callable[[list[Any]], list[Any]]
) -> dict[str, Any]:
    if state["shaping"] is not None:
        raise ShapeError("the snapshot is of a dream with shaping, which cannot be forked; leave shaping out.")
    if state["history"] is not None and len(state["history"]) != len(state["seeds"]):
        raise ShapeError("the snapshot's environments share their history; dream with tile=1 to fork it.")
    return {k: v if v is None else change_list(v) if k in _LISTS else change(v) for k, v in state.items()}
