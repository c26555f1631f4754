"""Four ways to look for a good chunk, over one question: judge these.

What this is: best-of-N from the policy; successive halving, which looks ever more closely at ever fewer candidates;
and CEM and MPPI, which draw anew around what was judged best. They know chunks as (B, N, K, A), judgements as (B, N),
and nothing of models.
What this is not: a controller. Nothing is carried from one decision to the next, and the best chunk that was judged is
done, never an average that nobody imagined.
Departs from the papers: the search moves the ``slow`` lowest cosines of a chunk (or of its noise) alone, since a few
dozen samples cannot search 24 ticks x 8 joints; CEM is MPPI with equal weights.

Source: CEM, Rubinstein (1999), doi:10.1023/A:1010091220143; MPPI, Williams et al., arXiv:1509.01149, on elites with a
fitted deviation as in TD-MPC2, arXiv:2310.16828; halving, Karnin et al. (2013), and Jamieson and Talwalkar,
arXiv:1502.07943.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal, Protocol, get_args

import torch
from torch import Tensor

from imagine.sampler import draw_noise
from imagine.seeds import Stream, derive
from imagine.types import ImagineError

Method = Literal["best_of_n", "halving", "cem", "mppi"]
Space = Literal["action", "noise"]
Make = Callable[[slice], Tensor]
"""Makes some candidates of a round, (B, n, K, A) in robot units, when their turn has come."""


@dataclass(frozen=True, kw_only=True)
class PlannerConfig:
    """How a planner looks for a chunk.

    Attributes:
        method: ``best_of_n``, ``halving``, ``cem`` or ``mppi``.
        candidates: N per row; of CEM and MPPI, in every iteration.
        pessimism: lambda; a candidate counts as value - lambda * spread.
        budget_ms: milliseconds for a decision of all rows; None takes as long as it takes.
        slice: candidates per row judged between two looks at the clock; no matter without a budget.
        rungs: of ``halving``: denoising steps of a dream, round by round.
        keep: of ``halving``: share of the candidates that get into the next round.
        space: of CEM and MPPI: ``noise`` moves the noise that the policy starts from, so that every candidate is one
            the policy might have chosen; ``action`` moves the policy's own chunk.
        iterations: of CEM and MPPI.
        elites: of CEM and MPPI: how many of an iteration's candidates shape the next; None is a quarter, at least 2.
        temperature: of MPPI: a candidate this much worse than the best weighs 1/e of it.
        slow: cosines over a chunk that are searched per action dimension; None searches all of the chunk.
        reach: of ``action``: root mean square over a chunk, in normalised action units, of one cosine at first.
        least: the deviation, at first 1, below which a search does not narrow.
    """

    method: Method = "best_of_n"
    candidates: int = 8
    pessimism: float = 0.5
    budget_ms: float | None = None
    slice: int = 8
    rungs: tuple[int, ...] = (1, 2, 4)
    keep: float = 0.5
    space: Space = "noise"
    iterations: int = 3
    elites: int | None = None
    temperature: float = 0.1
    slow: int | None = 3
    reach: float = 0.3
    least: float = 0.1

    def __post_init__(self) -> None:
        for name, known in (("method", get_args(Method)), ("space", get_args(Space))):
            if getattr(self, name) not in known:
                raise ImagineError(f"{name} is {getattr(self, name)!r}, expected one of {', '.join(known)}.")
        if self.candidates < 1:
            raise ImagineError(f"asked for {self.candidates} candidates, expected at least 1.")
        for name in ("slice", "iterations", *(k for k in ("slow", "elites") if getattr(self, k) is not None)):
            if getattr(self, name) < 1:
                raise ImagineError(f"{name} is {getattr(self, name)}, expected at least 1.")
        for name in ("temperature", "reach", "least", *(["budget_ms"] if self.budget_ms is not None else [])):
            if not getattr(self, name) > 0:
                raise ImagineError(f"{name} is {getattr(self, name)}, expected more than 0.")
        if not self.pessimism >= 0:
            raise ImagineError(f"pessimism is {self.pessimism}, expected at least 0; less seeks what nobody knows.")
        if not 0 < self.keep <= 1:
            raise ImagineError(f"keep is {self.keep}, expected more than 0 and at most 1.")
        if not self.rungs or min(self.rungs) < 1:
            raise ImagineError(f"rungs are {self.rungs}, expected denoising steps of at least 1, such as (1, 2, 4).")
        if self.elites is not None and self.elites > self.candidates:
            raise ImagineError(
                f"elites is {self.elites} of {self.candidates} candidates, expected at most as many; ask for fewer "
                "elites or more candidates."
            )

    @property
    def chosen_elites(self) -> int:
        """How many elites there are."""
        return min(self.candidates, max(2, self.candidates // 4)) if self.elites is None else self.elites


class Evaluator(Protocol):
    """Judges rounds of candidates and keeps every judgement.

    Attributes:
        over: whether time is up.
    """

    over: bool

    def judge(self, n: int, make: Make, steps: int | None = None) -> Tensor:
        """(B, n) float32, higher is better; minus infinity for what cannot be judged, or not in time."""
        ...


def best_of_n(evaluator: Evaluator, make: Make, cfg: PlannerConfig) -> None:
    """Judge N candidates once."""
    evaluator.judge(cfg.candidates, make)


def halving(evaluator: Evaluator, make: Make, cfg: PlannerConfig) -> None:
    """Judge N candidates at a glance, the better share of them more closely, and so on.

    Within a row survivors keep their order, so that ties go to the policy's own candidate.
    """
    chunks: list[Tensor] = []

    def remembered(at: slice) -> Tensor:
        chunks.append(make(at))
        return chunks[-1]

    low = evaluator.judge(cfg.candidates, remembered, cfg.rungs[0])
    alive = torch.cat(chunks, 1) if chunks else torch.empty(0)
    for steps in cfg.rungs[1:]:
        n = math.ceil(low.shape[1] * cfg.keep)
        if evaluator.over or low.shape[1] == 1:
            return
        kept = low.sort(dim=1, descending=True, stable=True).indices[:, :n].sort(dim=1).values
        alive = take(alive, kept)
        low = evaluator.judge(n, lambda at, some=alive: some[:, at], steps)  # type: ignore[misc]


def refine(
    evaluator: Evaluator,
    decode: Callable[[Tensor], Tensor],
    mean: Tensor,
    own: Tensor,
    seeds: Sequence[int],
    cfg: PlannerConfig,
) -> None:
    """CEM and MPPI: draw candidates from a Gaussian, judge them, fit the Gaussian to the elites, again.

    The first round is drawn from the standard normal; every later one holds its own mean too.

    Args:
        evaluator: judges.
        decode: points (B, n, slow, A) to chunks (B, n, K, A) in robot units.
        mean: (B, slow, A), the policy's own point.
        own: (B, 1, K, A), the policy's own chunk: the first candidate of the first round.
        seeds: one per row; every draw comes from them.
        cfg: how many of what.
    """
    n, centre, spread = cfg.candidates, torch.zeros_like(mean), torch.ones_like(mean)
    for k in range(cfg.iterations):
        noise = draw_noise((n, *mean.shape[1:]), len(mean), [derive(s, k, Stream.CANDIDATE) for s in seeds], None)
        points = centre[:, None] + spread[:, None] * noise.to(mean)
        points[:, 0] = mean

        def make(at: slice, points: Tensor = points, first: bool = k == 0) -> Tensor:
            made = decode(points[:, at])
            return torch.cat([own, made[:, 1:]], 1) if first and at.start == 0 else made

        low = evaluator.judge(n, make).to(mean)
        if evaluator.over:
            return
        mean, spread = fit(points, low, mean, spread, cfg)
        centre, spread = mean, spread.clamp(min=cfg.least)


def fit(points: Tensor, low: Tensor, mean: Tensor, spread: Tensor, cfg: PlannerConfig) -> tuple[Tensor, Tensor]:
    """Mean and deviation of the elites among (B, n, slow, A) points, each (B, slow, A).

    Weights are equal for CEM, exp((low - best) / temperature) for MPPI, and 0 for what could not be judged; a row in
    which nothing could be keeps the mean and deviation that it had.
    """
    at = low.sort(dim=1, descending=True, stable=True).indices[:, : cfg.chosen_elites]
    best, known = low.gather(1, at), low.gather(1, at).isfinite()
    gap = torch.where(known, best - best[:, :1].nan_to_num(neginf=0.0), torch.zeros_like(best))
    weight = known * ((gap / cfg.temperature).exp() if cfg.method == "mppi" else torch.ones_like(gap))
    weight = (weight / weight.sum(1, keepdim=True).clamp(min=1e-9))[:, :, None, None]
    elite, any_known = take(points, at), known.any(1)[:, None, None]
    middle = (weight * elite).sum(1)
    deviation = (weight * (elite - middle[:, None]).square()).sum(1).sqrt()
    return torch.where(any_known, middle, mean), torch.where(any_known, deviation, spread)


def cosines(slow: int, ticks: int) -> Tensor:
    """The ``slow`` lowest rows of the orthonormal discrete cosine transform (DCT-II) over ``ticks``, (slow, ticks)."""
    row, tick = torch.arange(slow)[:, None], torch.arange(ticks)[None]
    wave = torch.cos(torch.pi * row * (2 * tick + 1) / (2 * ticks)) * (2 / ticks) ** 0.5
    return torch.where(row == 0, wave / 2**0.5, wave)


def mix(rows: Tensor, points: Tensor) -> Tensor:
    """Cosines (slow, K) weighted by points (B, n, slow, A): (B, n, K, A). A plain sum, whose bits no batch changes."""
    return (rows[:, :, None] * points[:, :, :, None]).sum(2)


def unmix(rows: Tensor, chunk: Tensor) -> Tensor:
    """The slow part of (B, K, A): (B, slow, A); undoes :func:`mix`."""
    return (rows[:, :, None] * chunk[:, None]).sum(2)


def take(x: Tensor, at: Tensor) -> Tensor:
    """Of each row of (B, N, ...), the candidates ``at`` (B, n)."""
    return x[torch.arange(len(x), device=x.device)[:, None], at.to(x.device)]
