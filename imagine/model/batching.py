"""Work on lanes in tiles of one fixed size, so that a lane's bits do not depend on how many others there are.

Matrix products of different heights differ in their last bits (about 1e-6); at one fixed height they depend neither
on a row's place nor on its companions.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

TILE = 8
"""Lanes per tile; fewer lanes than this still pay for a whole one."""


def in_tiles(call: Callable[[Tensor], tuple[Tensor, ...]], lanes: int, tile: int = TILE) -> tuple[Tensor, ...]:
    """Call with the row numbers of one tile after another and join the answers.

    Args:
        call: row numbers (tile,) int64 to tensors whose first axis is the tile.
        lanes: how many rows there are; the last tile is filled up by repeating the last row.
        tile: rows per call; 0 means all at once, faster for many lanes but not bit-equal across their number.

    Returns:
        What ``call`` returns, first axis ``lanes``.
    """
    if not tile:
        return call(torch.arange(lanes))
    parts = [call((torch.arange(tile) + begin).clamp(max=lanes - 1)) for begin in range(0, lanes, tile)]
    return tuple(torch.cat(column)[:lanes] for column in zip(*parts, strict=True))
