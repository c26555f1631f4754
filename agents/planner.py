"""Best-of-N: imagine what each candidate chunk would bring, ask the judge, take the best.

``Scorer`` is all a planner knows of worlds and judges: candidates (B, N, K, A) to values (B, N) with their reasons.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor

from imagine.cache import ContextCache
from imagine.model import WorldActionModel
from imagine.questions import DYNAMICS, INVERSE
from imagine.sampler import sample
from imagine.types import Clip, Context, ImagineError, RewardModel, ShapeError, unpack_instruction
from policy.policy import JointPolicy


@dataclass(frozen=True)
class Scores:
    """Values of candidates and what they are made of.

    Attributes:
        value: (B, N) float32, higher is better.
        terms: named (B, N) float32 parts.
        video: (B, N, F, C, h, w) imagined latents.
    """

    value: Tensor
    terms: dict[str, Tensor]
    video: Tensor


class Scorer(Protocol):
    """Scores candidate chunks from a context."""

    def __call__(self, context: Context, candidates: Tensor, start: Context, instruction: Sequence[str]) -> Scores:
        """Score.

        Args:
            context: what is observed now, B lanes.
            candidates: (B, N, K, A) float32, robot units.
            start: what was observed when the episode began; success often means "changed since then".
            instruction: one per lane.
        """
        ...


class DreamScorer:
    """Imagines each candidate's chunk and values its end: progress and success, less doubt.

    ``value = progress + success - doubt_weight * hallucination - spread_weight * spread``.
    """

    def __init__(
        self,
        model: WorldActionModel,
        judge: RewardModel,
        *,
        steps: int = 1,
        doubt_weight: float = 0.1,
        spread_weight: float = 0.5,
    ):
        self.model, self.judge, self.steps = model, judge, steps
        self.doubt_weight, self.spread_weight = doubt_weight, spread_weight

    @torch.inference_mode()
    def __call__(
        self,
        context: Context,
        candidates: Tensor,
        start: Context,
        instruction: Sequence[str],
        cache: ContextCache | None = None,
    ) -> Scores:
        """See :class:`Scorer`; all candidates of a lane dream under the same noise, so they differ by action alone."""
        b, n = candidates.shape[:2]
        if tuple(candidates.shape[2:]) != self.model.chunk_shapes["action"] or n < 1:
            raise ShapeError(
                f"candidates are {tuple(candidates.shape)}, expected (B, N >= 1, *{self.model.chunk_shapes['action']})."
            )
        action = self.model.normalise_action(candidates.flatten(0, 1).to(self.model.device))
        wide = (self.model.prefill(context) if cache is None else cache).repeat(n)
        many, same = context.repeat(n), [i for i in range(b) for _ in range(n)]
        dream = sample(self.model, DYNAMICS, many, action=action, steps=self.steps, seeds=same, cache=wide)
        assert dream.video is not None and dream.proprio is not None
        read = sample(
            self.model, INVERSE, many, video=dream.video, proprio=dream.proprio, steps=1, seeds=same, cache=wide
        ).action
        assert read is not None
        first = start.repeat(n)
        latents = torch.cat([first.video[:, -1:], dream.video], 1)
        proprio = torch.cat([first.proprio[:, -1:], dream.proprio], 1)
        clip = Clip(latents, proprio, self.model.film(latents))
        score = self.judge(clip, [i for i in instruction for _ in range(n)])
        doubt = (read - action).square().mean((1, 2)).sqrt()
        zero = torch.zeros_like(score.success)
        terms = {"success": score.success, "hallucination": doubt} | {
            k: score.terms.get(k, zero) for k in ("progress", "spread")
        }
        value = terms["progress"] + terms["success"] - self.doubt_weight * doubt - self.spread_weight * terms["spread"]
        value = torch.where(score.valid, value, torch.full_like(value, -torch.inf))
        return Scores(value.view(b, n), {k: v.view(b, n) for k, v in terms.items()}, dream.video.unflatten(0, (b, n)))


@dataclass
class Plan:
    """One decision: every candidate, its scores, and the choice.

    Attributes:
        candidates: (B, N, K, A) float32, robot units.
        scores: values and terms per candidate, with the imagined latents.
        chosen: (B,) int64.
    """

    candidates: np.ndarray
    scores: Scores
    chosen: np.ndarray
    action: np.ndarray = field(init=False)

    def __post_init__(self) -> None:
        self.action = self.candidates[np.arange(len(self.chosen)), self.chosen]


class BestOfN:
    """A ``Policy`` that proposes N chunks, imagines each, and does the one the scorer likes best.

    With N = 1 it does exactly what its policy does. It remembers each lane's first observation of an episode, since
    progress is measured from there.
    """

    def __init__(self, policy: JointPolicy, score: DreamScorer, n: int):
        if n < 1:
            raise ImagineError(f"asked for {n} candidates, expected at least 1.")
        self.policy, self.score, self.n = policy, score, n
        self.plans: list[Plan] = []
        self._starts: dict[int, Context] = {}

    def reset(self, lanes: np.ndarray | None = None) -> None:
        """Forget where episodes began; ``rollout`` calls it at the start of every group."""
        self._starts.clear()
        self.plans.clear()

    @torch.inference_mode()
    def plan(self, observation: dict[str, np.ndarray], seeds: Sequence[int], start: Context | None = None) -> Plan:
        """Propose, imagine, judge, choose."""
        context = self.policy.context(observation)
        told = [unpack_instruction(row) for row in observation["instruction"]]
        cache = self.policy.model.prefill(context)
        candidates = self.policy.propose(context, self.n, seeds, cache)
        base = None if self.policy.model is not self.score.model else cache
        scores = self.score(context, torch.from_numpy(candidates), start or context, told, base)
        return Plan(candidates, scores, scores.value.argmax(1).cpu().numpy())

    def act(self, observation: dict[str, np.ndarray], seeds: Sequence[int] | None = None) -> np.ndarray:
        """(B, K, A) of the best candidate per lane. Lanes are told apart by their episode's seed in ``seeds``."""
        seeds = list(range(len(observation["proprio"]))) if seeds is None else list(seeds)
        lanes = [int(s) // 1_009 for s in seeds]  # agents.rollout: seed of the draw = episode * 1009 + chunk
        now = self.policy.context(observation)
        for row, lane in enumerate(lanes):
            self._starts.setdefault(lane, now.index([row]))
        start = _stack([self._starts[lane] for lane in lanes])
        plan = self.plan(observation, seeds, start)
        self.plans.append(plan)
        return plan.action


def _stack(contexts: list[Context]) -> Context:
    def cat(name: str) -> Any:
        return torch.cat([getattr(c, name) for c in contexts])

    return Context(video=cat("video"), proprio=cat("proprio"), text=cat("text"))
