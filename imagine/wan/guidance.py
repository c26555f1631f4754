"""Classifier-free guidance on video, and DreamZero's own way of sampling, for whoever must reproduce it.

Guidance asks the network twice per step; everything here is off by default, because a refined model needs none of it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from imagine.questions import Question
from imagine.sampler import Transition, Velocity
from imagine.types import Chunk, Context, ImagineError, NoiseLevels

REUSED = {8: (0, 1, 2, 6, 10, 13, 14, 15), 5: (0, 1, 2, 7, 12)}
"""Of 16 steps, those before which DreamZero's static masks ask the network; ``calls`` of :func:`imagine.sample`."""


@dataclass(frozen=True)
class Pair:
    """Caches under the instruction and under the negative one."""

    told: Any
    other: Any

    def repeat(self, n: int) -> Pair:
        """Each lane ``n`` times, copies adjacent."""
        return Pair(self.told.repeat(n), self.other.repeat(n))

    def index(self, rows: Tensor) -> Pair:
        """Keep some lanes."""
        return Pair(self.told.index(rows), self.other.index(rows))


class Guided:
    """A model whose video velocity is pushed away from that of a negative instruction; actions are left alone.

    Source: classifier-free guidance, arXiv:2207.12598; on video only as in DreamZero, arXiv:2602.15922.
    """

    def __init__(self, model: Velocity, negative: Tensor, scale: float = 5.0):
        """Guide ``model`` away from ``negative`` (1, L, D), the encoded negative instruction, by ``scale``.

        Raises:
            ImagineError: the scale is below 1, where guidance would pull towards the negative.
        """
        if not scale >= 1:
            raise ImagineError(f"guidance scale is {scale}, expected at least 1; 1 leaves the model as it is.")
        self.model, self.negative, self.scale = model, negative, scale

    @property
    def answers(self) -> frozenset[Question]:
        """Those of the model."""
        return self.model.answers

    @property
    def chunk_shapes(self) -> dict[str, tuple[int, ...]]:
        """Those of the model."""
        return self.model.chunk_shapes

    @property
    def schedule_shift(self) -> float:
        """That of the model."""
        return self.model.schedule_shift

    def prefill(self, context: Context) -> Pair:
        """Two caches: under the instruction, and under the negative one."""
        return Pair(self.model.prefill(context), self.model.prefill(self._without(context)))

    def velocity(self, noisy: Chunk, sigma: NoiseLevels, context: Context, cache: Any, **more: Any) -> Chunk:
        """That is, negative + scale (told - negative), for video and what goes with it; actions as told."""
        told = self.model.velocity(noisy, sigma, context, cache.told, **more)
        if self.scale == 1 or told.video is None:
            return told
        more.pop("kept", None)
        other = self.model.velocity(noisy, sigma, self._without(context), cache.other, **more)
        pushed = {
            n: b + self.scale * (a - b)
            for n in ("video", "proprio")
            if (a := getattr(told, n)) is not None and (b := getattr(other, n)) is not None
        }
        return replace(told, **pushed)

    def _without(self, context: Context) -> Context:
        return replace(context, text=self.negative.to(context.text).expand(len(context), -1, -1))


def unipc(steps: int = 16, shift: float = 5.0) -> tuple[Tensor, Mapping[str, Transition]]:
    """DreamZero's solver: ``grid`` and ``move`` of :func:`imagine.sample`, good for one sample.

    The network is told whole timesteps of 1000, as the reference does; the solver itself knows the exact levels.

    Args:
        steps: moves.
        shift: of the levels towards noise.

    Source: UniPC, arXiv:2302.04867, second order, through diffusers.
    """
    from diffusers import UniPCMultistepScheduler

    def one() -> Any:
        scheduler: Any = UniPCMultistepScheduler(
            num_train_timesteps=1000, solver_order=2, prediction_type="flow_prediction", use_flow_sigmas=True,
            flow_shift=shift,
        )  # fmt: skip
        scheduler.set_timesteps(steps)
        return scheduler

    def move(scheduler: Any) -> Transition:
        def go(step: int, x: Tensor, velocity: Tensor, sigma: float, to: float) -> Tensor:
            return scheduler.step(velocity, scheduler.timesteps[step], x, return_dict=False)[0]

        return go

    grid = torch.cat([one().timesteps.float().floor() / 1000, torch.zeros(1)])
    return grid, {name: move(one()) for name in ("video", "proprio", "action")}
