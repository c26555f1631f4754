"""Where every random number comes from: seeds derived by ``numpy.random.SeedSequence``, never by arithmetic.

A seed names what it is for by a path of whole numbers, as (policy seed, start seed, chunk, stream). Different paths
give independent draws, whatever the numbers in them: neighbouring seeds, 0, 1, 2, 3, are as good as any others.
"""

from __future__ import annotations

from enum import IntEnum

import numpy as np


class Stream(IntEnum):
    """What a draw is for; draws of two streams are independent though all else in their paths is equal."""

    VIDEO = 0
    PROPRIO = 1
    ACTION = 2
    POLICY = 3
    WORLD = 4
    CANDIDATE = 5
    SCORER = 6
    FLAW = 7
    START = 8


def derive(*path: int) -> int:
    """A seed in [0, 2^63), a function of the path alone.

    Args:
        path: whole numbers; a negative one is another path than its absolute value.
    """
    words = [word for number in path for word in (abs(int(number)), int(number < 0))]
    return int(np.random.SeedSequence(words).generate_state(1, np.uint64)[0] >> 1)
