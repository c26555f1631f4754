"""Work on rows in tiles of one fixed size, so that a row's bits do not depend on how many others there are.

Matrix products of different heights differ in their last bits (about 1e-6); at one fixed height they depend neither
on a row's place nor on its companions.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

TILE = 8
"""Rows per tile; fewer rows than this still pay for a whole one."""


def in_tiles(call: Callable[[Tensor], tuple[Tensor, ...]], rows: int, tile: int = TILE) -> tuple[Tensor, ...]:
    """Call with the row numbers of one tile after another and join the answers.

    Args:
        call: row numbers (tile,) int64 to tensors whose first axis is the tile.
        rows: how many there are; the last tile is filled up by repeating the last row.
        tile: rows per call; 0 means all at once, faster for many rows but not bit-equal across their number.

    Returns:
        What ``call`` returns, first axis ``rows``.
    """
    if not tile:
        return call(torch.arange(rows))
    parts = [call((torch.arange(tile) + begin).clamp(max=rows - 1)) for begin in range(0, rows, tile)]
    return tuple(torch.cat(column)[:rows] for column in zip(*parts, strict=True))


def named_in_tiles(call: Callable[[Tensor], dict[str, Tensor]], rows: int, tile: int = TILE) -> dict[str, Tensor]:
    """As :func:`in_tiles`, for answers by name; every tile gives the same names."""
    names: list[str] = []

    def values(part: Tensor) -> tuple[Tensor, ...]:
        answer = call(part)
        names[:] = answer
        return tuple(answer.values())

    return dict(zip(names, in_tiles(values, rows, tile), strict=True))
