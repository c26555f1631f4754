"""A judge that does not keep a dream waiting."""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import Executor, Future

import torch

from imagine.types import Clip, RewardModel, Score


class LateJudge:
    """A ``RewardModel`` that answers at once that it cannot tell, and judges meanwhile.

    Attributes:
        newest: what the judge says of the newest clip.
    """

    def __init__(self, judge: RewardModel, executor: Executor) -> None:
        """``judge`` is asked in ``executor``."""
        self.judge, self.executor = judge, executor
        self.newest: Future[Score] = Future()

    def __call__(self, clip: Clip, instruction: Sequence[str]) -> Score:
        """See :class:`imagine.types.RewardModel`; nothing of the answer is valid."""
        self.newest = self.executor.submit(self._judge, clip, list(instruction))
        nothing = torch.zeros(len(clip.latents))
        return Score(nothing, nothing, nothing > 0)

    @torch.inference_mode()
    def _judge(self, clip: Clip, instruction: list[str]) -> Score:
        return self.judge(clip, instruction)
