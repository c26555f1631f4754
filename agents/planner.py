"""Planner: a policy that imagines what its candidates would bring, asks the scorer, and does the best one.

How it looks for candidates is :mod:`imagine.agents.search`'s, what they are worth
:mod:`imagine.agents.scorer`'s. Here are the decision and its time: work is done in slices, each begun only if the one
before it says that it will end within the budget.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from imagine.agents.dream_scorer import DreamScorer
from imagine.agents.memory import EpisodeContext
from imagine.agents.scorer import (
    MultiFidelityScorer,
    Plain,
    PlanningState,
    Scorer,
    Scores,
    check_candidates,
)
from imagine.agents.scorer import read as prefill
from imagine.agents.search import Make, PlannerConfig, best_of_n, cosines, halving, mix, refine, unmix
from imagine.model.kv_cache import ContextCache
from imagine.model.model import WorldActionModel
from imagine.policy.policy import JointPolicy
from imagine.sampler import initial_noise
from imagine.seeds import FreshSeeds, Stream
from imagine.types import Context, ImagineError, unpack_instruction

__all__ = [
    "BestOfN",
    "DreamScorer",
    "EpisodeContext",
    "Plain",
    "Plan",
    "Planner",
    "PlannerConfig",
    "PlanningState",
    "Scores",
]

KEPT = 16
"""Plans a planner remembers."""


@dataclass(frozen=True)
class Plan:
    """One decision: every candidate that was judged, its score, and the choice. Candidate 0 is the policy's own.

    Attributes:
        candidates: (B, N, K, A) float32, robot units, round by round.
        scores: values, spreads, reasons and imagined latents, (B, N, ...); minus infinity where nothing was judged.
        lower: (B, N) float32, what candidates were compared by: value - pessimism * spread.
        chosen: (B,) int64.
        round: (N,) int64, the rung or iteration that a candidate belongs to; rungs judge the same chunk again.
        fallback: (B,) bool, where no candidate could be judged, so that the policy's own is done.
        judged: how many judgements per row were made.
        used_ms: how long it took.
        late: whether that was longer than the budget.
        stopped: whether the budget left candidates unjudged.
    """

    candidates: np.ndarray
    scores: Scores
    lower: Tensor
    chosen: np.ndarray
    round: np.ndarray
    fallback: np.ndarray
    judged: int
    used_ms: float
    late: bool
    stopped: bool

    @property
    def action(self) -> np.ndarray:
        """(B, K, A) float32, the chosen chunks."""
        return self.candidates[np.arange(len(self.chosen)), self.chosen]


class Planner:
    """A ``Policy`` that imagines what its candidates would bring and does the best one.

    With one candidate it does exactly what its policy does. Same observation and seed give the same bytes, whatever
    the batch, unless a budget cuts a decision short.

    Attributes:
        plans: the newest decisions, at most 16.
    """

    def __init__(
        self,
        policy: JointPolicy,
        score: Scorer,
        cfg: PlannerConfig | None = None,
        *,
        clock: Callable[[], float] = time.perf_counter,
    ) -> None:
        """Plan with a policy.

        Args:
            policy: proposes.
            score: what candidates are worth.
            cfg: how they are looked for.
            clock: seconds; tests bring their own.

        Raises:
            ImagineError: halving with a scorer that cannot look more closely, or more cosines than a chunk has ticks.
        """
        self.policy, self.score, self.cfg, self._clock = policy, score, cfg or PlannerConfig(), clock
        if self.cfg.method == "halving" and not isinstance(score, MultiFidelityScorer):
            raise ImagineError(
                f"halving looks ever more closely, but {type(score).__name__} has no at(steps); use a DreamScorer, or "
                "another method."
            )
        ticks = policy.model.chunk_shapes["action"][0]
        if (slow := self.cfg.slow or ticks) > ticks:
            raise ImagineError(f"slow is {slow}, expected at most the {ticks} actions of a chunk.")
        self._rows = cosines(slow, ticks).to(policy.model.device)
        self._dreams: WorldActionModel | None = getattr(score, "model", None)
        same = self._dreams is None or self._dreams is policy.model
        self._encoder = policy if same else JointPolicy(self._dreams)  # type: ignore[arg-type]  # reads its own latents
        self.plans: deque[Plan] = deque(maxlen=KEPT)
        self._episodes, self._pace, self._fresh = EpisodeContext(), _Pace(), FreshSeeds()

    def reset(self, episodes: Sequence[int] | None = None) -> None:
        """Forget how these episodes began, or all and the newest decisions too."""
        self._episodes.forget(episodes)
        if episodes is None:
            self.plans.clear()

    def act(
        self,
        observation: dict[str, np.ndarray],
        seeds: Sequence[int] | None = None,
        episodes: Sequence[int] | None = None,
    ) -> np.ndarray:
        """(B, K, A) float32 in robot units, the best candidate per row; see :class:`imagine.types.Policy`."""
        return self.plan(observation, seeds, episodes).action

    @torch.inference_mode()
    def plan(
        self,
        observation: dict[str, np.ndarray],
        seeds: Sequence[int] | None = None,
        episodes: Sequence[int] | None = None,
    ) -> Plan:
        """Decide for every row, and remember the decision in ``plans``.

        Raises:
            ShapeError: the observation is another embodiment's, or the policy's chunk is not finite.
        """
        begin = self._clock()
        now = self._encoder.context(observation)
        start = self._episodes(now, episodes)
        instructions = tuple(unpack_instruction(row) for row in observation["instruction"])
        each = self._fresh(len(now)) if seeds is None else [int(s) for s in seeds]
        state = PlanningState(now, start, instructions, tuple(each))
        seen = now if self._encoder is self.policy else self.policy.context(observation)
        self.plans.append(self.decide(state, seen, begin))
        return self.plans[-1]

    @torch.inference_mode()
    def decide(self, state: PlanningState, seen: Context | None = None, begin: float | None = None) -> Plan:
        """Decide in a state that is at hand already.

        Args:
            state: as the scorer sees it.
            seen: the same as the policy sees it, where that is another model.
            begin: when the decision began, by the clock; now, if not given.
        """
        begin = self._clock() if begin is None else begin
        seen = state.context if seen is None else seen
        cache = prefill(self.policy.model, seen)
        if self._dreams is not None and state.cache is None:  # read once for all slices
            known = cache if self._dreams is self.policy.model else prefill(self._dreams, state.context)
            state = replace(state, cache=known)
        decision = _Decision(state, self.score, self.cfg, self._clock, begin, self._pace)
        if self.cfg.method in ("best_of_n", "halving"):
            own = self._sampled(decision, seen, cache)
        else:
            own = self._refined(decision, seen, cache)
        return decision.close(own)

    def _sampled(self, decision: _Decision, seen: Context, cache: ContextCache) -> Tensor:
        """Best-of-N and halving; returns the policy's own chunk (B, 1, K, A)."""
        n, seeds = self.cfg.candidates, decision.state.seeds
        size = n if self.cfg.budget_ms is None else min(n, self.cfg.slice)

        def propose(at: slice) -> Tensor:
            return torch.from_numpy(self.policy.propose(seen, seeds, range(at.start, at.stop), cache))

        first = propose(slice(0, size))  # before any clock is asked: there must be something to do

        def make(at: slice) -> Tensor:
            return first if at == slice(0, size) else propose(at)

        (best_of_n if self.cfg.method == "best_of_n" else halving)(decision, make, self.cfg)
        return first[:, :1]

    def _refined(self, decision: _Decision, seen: Context, cache: ContextCache) -> Tensor:
        """CEM and MPPI; returns the policy's own chunk (B, 1, K, A)."""
        policy, model, seeds = self.policy, self.policy.model, decision.state.seeds
        shape = model.chunk_shapes["action"]
        own = torch.from_numpy(policy.act_on(seen, seeds, cache))[:, None]
        drawn = initial_noise(shape, seeds, Stream.ACTION).to(model.device)
        point = unmix(self._rows, drawn)
        if self.cfg.space == "action":
            point = torch.zeros_like(point)

        def moved(points: Tensor) -> Tensor:
            wave = self.cfg.reach * shape[0] ** 0.5 * mix(self._rows, points) * model.action_std
            low, high = (torch.from_numpy(x).to(wave) for x in (model.body.action_low, model.body.action_high))
            return torch.minimum(torch.maximum(own.to(wave) + wave, low), high).cpu()

        def denoised(points: Tensor) -> Tensor:
            n = points.shape[1]
            noise = policy.temperature * (drawn[:, None] + mix(self._rows, points - point[:, None])).flatten(0, 1)
            each = [seed for seed in seeds for _ in range(n)]
            return torch.from_numpy(policy.act_on(seen.repeat(n), each, cache.repeat(n), noise)).unflatten(0, (-1, n))

        refine(decision, moved if self.cfg.space == "action" else denoised, point, own, seeds, self.cfg)
        return own


class BestOfN(Planner):
    """A planner that draws N chunks from the policy; nothing else to say about it."""

    def __init__(self, policy: JointPolicy, score: Scorer, n: int) -> None:
        """See :class:`Planner`.

        Raises:
            ImagineError: fewer than one candidate.
        """
        super().__init__(policy, score, PlannerConfig(candidates=n))


@dataclass
class _Pace:
    """How long the newest slice took, in seconds per row and weight; None before the first one."""

    seconds: float | None = None


class _Decision:
    """One decision in the making: a :class:`imagine.agents.search.Evaluator` with a clock."""

    def __init__(
        self,
        state: PlanningState,
        score: Scorer,
        cfg: PlannerConfig,
        clock: Callable[[], float],
        begin: float,
        pace: _Pace,
    ) -> None:
        self.state, self.score, self.cfg, self.clock, self.begin, self.pace = state, score, cfg, clock, begin, pace
        self.over = False
        self._chunks: list[Tensor] = []
        self._scores: list[Scores] = []
        self._rounds: list[int] = []
        self._whole = -1  # newest round that was judged as a whole

    def judge(self, n: int, make: Make, steps: int | None = None) -> Tensor:
        """See :class:`imagine.agents.search.Evaluator`."""
        score = (
            self.score.at(steps) if steps is not None and isinstance(self.score, MultiFidelityScorer) else self.score
        )
        size, current = n if self.cfg.budget_ms is None else min(n, self.cfg.slice), self._whole + 1
        low = torch.full((len(self.state), n), -torch.inf)
        for first in range(0, n, size):
            if not self._time_for(steps or 1):
                self.over = True
                return low
            began, at = self.clock(), slice(first, min(first + size, n))
            chunks = make(at)
            check_candidates(chunks, len(self.state), tuple(chunks.shape[2:]))
            scores = score(self.state, chunks)
            low[:, at] = scores.lower(self.cfg.pessimism).cpu()  # waits for the device
            self.pace.seconds = (self.clock() - began) / (len(self.state) * (steps or 1))
            self._chunks.append(chunks)
            self._scores.append(scores)
            self._rounds += [current] * chunks.shape[1]
        self._whole = current
        return low

    def _time_for(self, steps: int) -> bool:
        """Whether a slice at so many steps will end within the budget, if it goes as the newest one did."""
        if self.cfg.budget_ms is None:
            return True
        left = self.cfg.budget_ms / 1000 - (self.clock() - self.begin)
        return left > 0 and (self.pace.seconds or 0.0) * len(self.state) * steps <= left

    def close(self, own: Tensor) -> Plan:
        """Choose; ``own`` (B, 1, K, A) is done where nothing else can be."""
        judged = len(self._rounds)
        if not judged:
            nothing = torch.full((len(own), 1), -torch.inf)
            self._chunks, self._rounds = [own], [0]
            self._scores = [Scores(nothing, torch.zeros_like(nothing))]
        scores, rounds = Scores.join(self._scores), np.array(self._rounds)
        low = scores.lower(self.cfg.pessimism).cpu()
        told = low.numpy().copy()
        if self.cfg.method == "halving":  # only the finest round counts
            told[:, rounds != max(self._whole, 0)] = -np.inf
        fallback = np.logical_not((told > -np.inf).any(1))
        used = 1000 * (self.clock() - self.begin)
        return Plan(
            candidates=torch.cat(self._chunks, 1).numpy(),
            scores=scores,
            lower=low,
            chosen=np.where(fallback, 0, told.argmax(1)),
            round=rounds,
            fallback=fallback,
            judged=judged,
            used_ms=used,
            late=self.cfg.budget_ms is not None and used > self.cfg.budget_ms,
            stopped=self.over,
        )
