"""A second judge that watches the first one's work and has no say in it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from imagine.types import Clip, RewardModel, Score


class Watched:
    """A ``RewardModel``: what ``judge`` says, and as the term ``second`` whether another judge sees a success.

    Nothing may be trained on that term: how far the first judge's praise runs ahead of it tells whether it is fooled.
    """

    def __init__(self, judge: RewardModel, second: RewardModel) -> None:
        """``judge`` decides, ``second`` watches; best of another architecture."""
        self.judge, self.second = judge, second

    def __call__(self, clip: Clip, instruction: Sequence[str]) -> Score:
        """Judge B clips; see :class:`imagine.types.RewardModel`."""
        score, other = self.judge(clip, instruction), self.second(clip, instruction)
        verdict = ((other.reward > 0) & other.valid).float()
        return replace(score, terms={**score.terms, "second": verdict})
