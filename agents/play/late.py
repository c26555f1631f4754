"""A judge that does not keep a dream waiting, and neither does the check whether the dream follows the actions."""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import Executor, Future
from dataclasses import dataclass, replace

import torch

from imagine.model.model import WorldActionModel
from imagine.questions import INVERSE
from imagine.sampler import sample
from imagine.types import Clip, Context, RewardModel, Score


@dataclass(frozen=True)
class Check:
    """What INVERSE is asked of one environment's next chunk, as :func:`imagine.world.step.predict_chunk` asks it.

    Attributes:
        model: that imagines.
        context: what the chunk follows, one row.
        action: (1, K, A) float32, robot units, commanded.
        steps: denoising steps.
        seed: of the chunk's noise.
    """

    model: WorldActionModel
    context: Context
    action: torch.Tensor
    steps: int
    seed: int

    def __call__(self, clip: Clip) -> torch.Tensor:
        """(1,) the root mean square, normalised action units, between what the clip shows and what was commanded."""
        video, proprio, model = clip.latents[:, 1:], clip.proprio[:, 1:], self.model
        cache = model.prefill(self.context)
        read = sample(
            model, INVERSE, self.context, video=video, proprio=proprio, steps=self.steps, seeds=[self.seed], cache=cache
        ).action
        assert read is not None
        off = (read - model.normalise_action(self.action))[..., : model.body.action_dim]
        return off.square().mean((1, 2)).sqrt()


@dataclass(frozen=True)
class Verdict:
    """A score, and the inverse error of the clip, None where nobody asked."""

    score: Score
    inverse_error: float | None


class LateJudge:
    """A ``RewardModel`` that answers at once that it cannot tell, and judges meanwhile.

    Attributes:
        newest: what it says of the newest clip.
        check: whether the next clip follows its actions; None: the clip knows, or nobody asks.
    """

    def __init__(self, judge: RewardModel, executor: Executor) -> None:
        """``judge`` is asked in ``executor``."""
        self.judge, self.executor = judge, executor
        self.newest: Future[Verdict] = Future()
        self.check: Check | None = None

    def __call__(self, clip: Clip, instruction: Sequence[str]) -> Score:
        """See :class:`imagine.types.RewardModel`; nothing of the answer is valid."""
        self.newest = self.executor.submit(self._judge, clip, list(instruction), self.check)
        nothing = torch.zeros(len(clip.latents))
        return Score(nothing, nothing, nothing > 0)

    @torch.inference_mode()
    def _judge(self, clip: Clip, instruction: list[str], check: Check | None) -> Verdict:
        if check is not None:
            clip = replace(clip, inverse_error=check(clip))
        error = None if clip.inverse_error is None else float(clip.inverse_error[0])
        return Verdict(self.judge(clip, instruction), error)
