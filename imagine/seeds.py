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
    TRAIN = 9


def derive(*path: int) -> int:
    """A seed in [0, 2^63), a function of the path alone.

    Args:
        path: whole numbers of any size; a negative one is another path than its absolute value, (5,) than (5, 0).
    """
    # SeedSequence pads with zeros and cuts large numbers into words: lengths and signs keep the paths apart.
    words = [len(path)]
    for number in map(int, path):
        size = (abs(number).bit_length() + 31) // 32
        words += [2 * size + (number < 0), *((abs(number) >> 32 * i) & 0xFFFFFFFF for i in range(size))]
    return int(np.random.SeedSequence(words).generate_state(1, np.uint64)[0] >> 1)


class FreshSeeds:
    """Seeds for whoever was given none: others at every call, the same again in a new process."""

    def __init__(self) -> None:
        self._calls = 0

    def __call__(self, n: int) -> list[int]:
        """``n`` seeds that no call before this one gave."""
        self._calls += 1
        return [derive(self._calls, i, Stream.POLICY) for i in range(n)]
