"""Classifier-free guidance on video, which asks the network twice per step; a distilled student needs none."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

from torch import Tensor

from imagine.questions import Question
from imagine.sampler import Velocity
from imagine.types import Chunk, Context, ImagineError, NoiseLevels


@dataclass(frozen=True)
class Pair:
    """Caches under the instruction and under the negative one."""

    prompted: Any
    negative: Any

    def repeat(self, n: int) -> Pair:
        """Each row ``n`` times, copies adjacent."""
        return Pair(self.prompted.repeat(n), self.negative.repeat(n))

    def index(self, rows: Tensor) -> Pair:
        """Keep some rows."""
        return Pair(self.prompted.index(rows), self.negative.index(rows))


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
        """Negative + scale (prompted - negative) for video and proprioception; actions as prompted."""
        prompted = self.model.velocity(noisy, sigma, context, cache.prompted, **more)
        if self.scale == 1 or prompted.video is None:
            return prompted
        more.pop("block_kv", None)
        negative = self.model.velocity(noisy, sigma, self._without(context), cache.negative, **more)
        pushed = {
            n: b + self.scale * (a - b)
            for n in ("video", "proprio")
            if (a := getattr(prompted, n)) is not None and (b := getattr(negative, n)) is not None
        }
        return replace(prompted, **pushed)

    def _without(self, context: Context) -> Context:
        return replace(context, text=self.negative.to(context.text).expand(len(context), -1, -1))
