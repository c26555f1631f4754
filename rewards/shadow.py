"""A second judge that is asked about the same clips and has no influence on the score."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from imagine.types import Clip, RewardModel, Score


class ShadowJudge:
    """A ``RewardModel``: what ``judge`` says, and as the term ``second`` whether another judge sees a success.

    Nothing may be trained on that term: how much more often the first judge sees successes tells whether it is fooled.
    """

    def __init__(self, judge: RewardModel, second: RewardModel) -> None:
        """``judge`` decides, ``second`` is only reported; best of another architecture."""
        self.judge, self.second = judge, second

    def __call__(self, clip: Clip, instruction: Sequence[str]) -> Score:
        """Judge B clips; see :class:`imagine.types.RewardModel`."""
        score, other = self.judge(clip, instruction), self.second(clip, instruction)
        return replace(score, terms={**score.terms, "second": other.terminated.float()})
