"""What a planner asks: ``score(state, candidates) -> value ± spread``.

It is the only thing that a planner, ours or another library's, knows of worlds and judges. Any judge will do (see
:class:`imagine.agents.dream_scorer.DreamScorer`), and so will any function of a context and candidates
(:class:`Plain`).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Protocol, runtime_checkable

import torch
from torch import Tensor

from imagine.model.batching import TILE
from imagine.model.kv_cache import ContextCache
from imagine.model.model import WorldActionModel
from imagine.types import Context, ShapeError


@dataclass(frozen=True)
class PlanningState:
    """Where B decisions are made.

    Attributes:
        context: what is observed now.
        start: what was observed when the episode began; success often means "changed since then".
        instruction: one per decision.
        seeds: one per decision; all its noise comes from it.
        cache: what the dreaming model read of ``context``, where it is at hand; see :func:`read`.
    """

    context: Context
    start: Context
    instruction: tuple[str, ...]
    seeds: tuple[int, ...]
    cache: ContextCache | None = None

    def __post_init__(self) -> None:
        n = len(self.context), len(self.start), len(self.instruction), len(self.seeds)
        if len(set(n)) > 1:
            raise ShapeError(
                f"a state has {n[0]} contexts, {n[1]} starts, {n[2]} instructions and {n[3]} seeds; "
                "give one of each per decision."
            )

    def __len__(self) -> int:
        return len(self.context)


@dataclass(frozen=True)
class Scores:
    """Values of candidates and what they are made of.

    Attributes:
        value: (B, N) float32, higher is better; minus infinity where the candidate could not be judged.
        spread: (B, N) float32, at least 0: how far the value can be off, in its own unit.
        terms: named (B, N) float32 reasons.
        video: (B, N, F, C, h, w) imagined latents, None where the scorer imagines nothing.
    """

    value: Tensor
    spread: Tensor
    terms: dict[str, Tensor] = field(default_factory=dict)
    video: Tensor | None = None

    def lower(self, pessimism: float) -> Tensor:
        """(B, N) float32, ``value - pessimism * spread``; minus infinity where either is not a number."""
        low = self.value - pessimism * self.spread
        return torch.where(low.isnan(), torch.full_like(low, -torch.inf), low)

    @staticmethod
    def join(parts: Sequence[Scores]) -> Scores:
        """The candidates of several scores of the same state, side by side; a term that one of them lacks is NaN."""
        names = dict.fromkeys(name for part in parts for name in part.terms)
        videos = [part.video for part in parts if part.video is not None]
        return Scores(
            torch.cat([p.value for p in parts], 1),
            torch.cat([p.spread for p in parts], 1),
            {k: torch.cat([p.terms.get(k, torch.full_like(p.value, torch.nan)) for p in parts], 1) for k in names},
            torch.cat(videos, 1) if len(videos) == len(parts) else None,
        )


class Scorer(Protocol):
    """Scores candidate chunks."""

    def __call__(self, state: PlanningState, candidates: Tensor) -> Scores:
        """Score (B, N, K, A) float32 candidates in robot units, of a state of B decisions."""
        ...


@runtime_checkable
class MultiFidelityScorer(Protocol):
    """A scorer that can look more or less closely; what successive halving needs."""

    steps: int

    def __call__(self, state: PlanningState, candidates: Tensor) -> Scores:
        """See :class:`Scorer`."""
        ...

    def at(self, steps: int) -> Scorer:
        """The same scorer, looking ``steps`` denoising steps closely."""
        ...


@dataclass(frozen=True)
class Plain:
    """A ``Scorer`` made of any function of (context, candidates (B, N, K, A)): to (B, N) values, or values and spreads.

    >>> scorer = Plain(lambda context, candidates: -candidates.square().sum((2, 3)))
    """

    call: Callable[[Context, Tensor], Tensor | tuple[Tensor, Tensor]]

    def __call__(self, state: PlanningState, candidates: Tensor) -> Scores:
        """See :class:`Scorer`.

        Raises:
            ShapeError: the function gave something of another shape.
        """
        answer = self.call(state.context, candidates)
        value, spread = answer if isinstance(answer, tuple) else (answer, torch.zeros_like(answer))
        for name, got in (("values", value), ("spreads", spread)):
            if tuple(got.shape) != tuple(candidates.shape[:2]):
                raise ShapeError(
                    f"the scorer gave {name} of shape {tuple(got.shape)} for candidates {tuple(candidates.shape)}, "
                    f"expected {tuple(candidates.shape[:2])}."
                )
        return Scores(value.float(), spread.float())


def read(model: WorldActionModel, context: Context, tile: int = TILE) -> ContextCache:
    """``model.prefill`` in tiles, so that what is read of a row does not depend on how many others there are."""
    if not tile:
        return model.prefill(context)
    n, parts = len(context), []
    for begin in range(0, n, tile):
        rows = (torch.arange(tile) + begin).clamp(max=n - 1)
        parts.append(model.prefill(context.index(rows)).index(torch.arange(min(tile, n - begin))))
    return ContextCache.join(parts)


def check_candidates(candidates: Tensor, rows: int, shape: tuple[int, ...]) -> None:
    """Refuse candidates that are not (B, N >= 1, K, A) finite numbers; ``shape`` is (K, A), one chunk.

    A candidate of several chunks holds a multiple of K actions.

    Raises:
        ShapeError: says which.
    """
    got = tuple(candidates.shape)
    whole = len(got) == 4 and got[2] >= shape[0] and got[2] % shape[0] == 0 and got[3] == shape[1]
    if not whole or got[0] != rows or got[1] < 1:
        raise ShapeError(f"candidates are {got}, expected (B, N >= 1, K, A) = ({rows}, N, {shape[0]}, {shape[1]}).")
    if not candidates.isfinite().all():
        wrong = (~candidates.isfinite()).flatten(2).any(2).nonzero()[0].tolist()
        raise ShapeError(f"candidate {wrong[1]} of row {wrong[0]} holds NaN or infinity; is the policy's input sound?")
