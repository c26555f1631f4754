"""The scorer that answers by dreaming: a candidate is worth what the judge says of the dream that it leads to.

What this is not: a learnt value. A candidate is worth what the judge says of the dream ``depth`` chunks later.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Literal

import torch
from torch import Tensor

from imagine.agents.scorer import PlanningState, Scores, check_candidates, read
from imagine.model.batching import named_in_tiles
from imagine.model.kv_cache import ContextCache
from imagine.model.model import WorldActionModel
from imagine.policy.policy import JointPolicy
from imagine.seeds import Stream, derive
from imagine.types import ImagineError, Observation, RewardModel, Score
from imagine.world.step import DreamConfig, EpisodeStart, Prediction, judge_clip, predict_chunk


@dataclass(frozen=True)
class DreamScorer:
    """Imagines what each candidate brings and asks the judge: ``value = success + progress - cost * inverse error``.

    A judge that reports no ``progress``, as one with a dense reward of its own, is asked for its reward instead. All
    candidates of a row dream under the same noise, so that they differ by their actions alone. The spread is the
    judge's own term ``spread`` (0 where it has none) and, with several ``draws``, the deviation of the value among
    dreams: the root of the mean square of the one plus the variance of the other.

    Attributes:
        model: dreams.
        judge: what it says of success and progress makes the value.
        cfg: how it dreams: ``steps``, ``inverse_steps`` and ``tile``, as the dream that is planned in.
        inverse_error_cost: value lost per normalised action unit between a chunk and what INVERSE reads from its dream.
        depth: chunks imagined at least; where a candidate ends ``follow`` acts. One chunk is often too short to see
            what a candidate was good for; a candidate may itself be several chunks long.
        end: of a dream of several chunks, the ``last`` one counts, or the best (``max``); a chunk in which the judge
            ends the episode is always the last.
        follow: acts after the candidate; it sees the decoded frame, as on the robot.
        draws: dreams per candidate; more than one measure how much of a value is luck.

    Source: best-of-N over a joint model's own imagination as in Cosmos Policy, arXiv:2601.16163.
    """

    model: WorldActionModel
    judge: RewardModel
    cfg: DreamConfig = field(default=DreamConfig(), kw_only=True)
    inverse_error_cost: float = field(default=0.1, kw_only=True)
    depth: int = field(default=1, kw_only=True)
    end: Literal["max", "last"] = field(default="max", kw_only=True)
    follow: JointPolicy | None = field(default=None, kw_only=True)
    draws: int = field(default=1, kw_only=True)

    def __post_init__(self) -> None:
        for name in ("steps", "depth", "draws"):
            if getattr(self, name) < 1:
                raise ImagineError(f"{name} is {getattr(self, name)}, expected at least 1.")
        if self.end not in ("max", "last"):
            raise ImagineError(f"end is {self.end!r}, expected max or last.")
        if self.depth > 1 and self.follow is None:
            raise ImagineError(f"depth is {self.depth}, but nobody acts after the candidate; give follow=, a policy.")

    @property
    def steps(self) -> int:
        """Denoising steps per imagined chunk."""
        return self.cfg.steps

    def at(self, steps: int) -> DreamScorer:
        """The same scorer with that many denoising steps per imagined chunk."""
        return replace(self, cfg=self.cfg.model_copy(update={"steps": steps}))

    @torch.inference_mode()
    def __call__(self, state: PlanningState, candidates: Tensor) -> Scores:
        """See :class:`imagine.agents.scorer.Scorer`; a row's bytes do not depend on how many others there are.

        Raises:
            ShapeError: there are no candidates, or they are misshapen or not finite.
        """
        check_candidates(candidates, len(state), self.model.chunk_shapes["action"])
        b, n = candidates.shape[:2]
        chunks = candidates.flatten(0, 1).to(self.model.device)
        cache = read(self.model, state.context, self.cfg.tile) if state.cache is None else state.cache

        def judge(rows: Tensor) -> dict[str, Tensor]:
            own = rows // n  # which state a candidate belongs to
            dreams = [_Dream(self, state, own, draw) for draw in range(self.draws)]
            scores = [d.score(cache.index(own), chunks[rows]) for d in dreams]
            value, spread = (torch.stack([getattr(s, k) for s in scores]) for k in ("value", "spread"))
            terms = {f"terms/{k}": torch.stack([s.terms[k] for s in scores]).mean(0) for k in scores[0].terms}
            luck = (spread.square().mean(0) + value.var(0, unbiased=False)).sqrt()
            assert scores[0].video is not None
            return {"value": value.mean(0), "spread": luck, "video": scores[0].video, **terms}

        out = {k: v.unflatten(0, (b, n)) for k, v in named_in_tiles(judge, b * n, self.cfg.tile).items()}
        terms = {k.removeprefix("terms/"): v for k, v in out.items() if k.startswith("terms/")}
        # A dream that could not be judged has no spread: minus infinity says it all.
        return Scores(out["value"], out["spread"].nan_to_num(0.0), terms, out["video"])


@dataclass(frozen=True)
class _Chunk:
    """One chunk of a dream of n rows, and its judgement."""

    prediction: Prediction
    score: Score

    @property
    def inverse_error(self) -> Tensor:
        """(n,) float32; 0 where the dream is not checked."""
        error = self.prediction.inverse_error
        return torch.zeros_like(self.score.success) if error is None else error

    @property
    def merit(self) -> Tensor:
        """(n,) float32, success + progress, or the reward of a judge without that term; minus infinity if invalid."""
        score = self.score
        merit = score.success + (self.term("progress") if "progress" in score.terms else score.reward)
        return torch.where(score.valid, merit, torch.full_like(merit, -torch.inf))

    def term(self, name: str) -> Tensor:
        """(n,) float32, a term of the judgement; 0 where it is missing or not a number."""
        terms = self.score.terms
        return terms[name].float().nan_to_num(0.0) if name in terms else torch.zeros_like(self.score.success)


class _Dream:
    """One dream of n rows, each from the state that it belongs to."""

    def __init__(self, scorer: DreamScorer, state: PlanningState, rows: Tensor, draw: int) -> None:
        self.scorer, self.model, self.draw = scorer, scorer.model, draw
        self.context = state.context.index(rows)
        self.start = EpisodeStart(state.start.video[rows, -1], state.start.proprio[rows, -1])
        self.seeds = [state.seeds[i] for i in rows.tolist()]
        self.instruction = [state.instruction[i] for i in rows.tolist()]

    def score(self, cache: ContextCache, candidates: Tensor) -> Scores:
        """What the judge says of the chunk that counts; every field lacks the axis of candidates.

        Args:
            cache: what the model read of the rows' contexts.
            candidates: (n, M K, A) in robot units.
        """
        chunks = self._imagine(cache, candidates)
        names = ("progress", "spread", *chunks[0].score.terms)
        stack = {name: torch.stack([c.term(name) for c in chunks]) for name in names}
        stack["success"] = torch.stack([c.score.success for c in chunks])
        ended = torch.stack([c.score.terminated for c in chunks]).long()
        lived = ended.cumsum(0) - ended == 0  # what comes after the episode's end does not count
        merit = torch.stack([c.merit for c in chunks]).masked_fill(~lived, -torch.inf)
        at = merit.argmax(0) if self.scorer.end == "max" else lived.sum(0) - 1
        terms = {name: x.gather(0, at[None])[0] for name, x in stack.items()}
        errors = torch.stack([c.inverse_error for c in chunks])
        terms["hallucination"] = (errors * lived).sum(0) / lived.sum(0)
        if len(chunks) > 1:
            terms["chunk"] = at.float()
        value = merit.gather(0, at[None])[0] - self.scorer.inverse_error_cost * terms["hallucination"]
        return Scores(value, terms["spread"], terms, torch.cat([c.prediction.video for c in chunks], 1))

    def _imagine(self, cache: ContextCache, candidates: Tensor) -> list[_Chunk]:
        """The candidates' chunks, then those of ``follow``, up to ``depth``."""
        given = candidates.split(self.model.chunk_shapes["action"][0], 1)
        chunks: list[_Chunk] = []
        for k in range(max(self.scorer.depth, len(given))):
            if k:
                last = chunks[-1].prediction
                self.context = self.model.after(self.context, last.video, last.proprio, last.memory)
                cache = self.model.prefill(self.context)
            action = given[k] if k < len(given) else self._followed(self._noise(k, Stream.POLICY)).to(candidates)
            chunks.append(self._step(cache, action, self._noise(k, Stream.SCORER)))
        return chunks

    def _step(self, cache: ContextCache, action: Tensor, seeds: Sequence[int]) -> _Chunk:
        normalised = self.model.normalise_action(action)
        chunk = predict_chunk(self.model, self.context, normalised, self.scorer.cfg, seeds=seeds, cache=cache)
        clip = judge_clip(self.model, self.start, self.context, chunk, action)
        return _Chunk(chunk, self.scorer.judge(clip, self.instruction))

    def _followed(self, seeds: Sequence[int]) -> Tensor:
        """What ``follow`` does in the imagined contexts, (n, K, A) in robot units."""
        follow, context = self.scorer.follow, self.context
        assert follow is not None
        newest = self.model.decode(context.video[:, -1:], context.video[:, :-1])
        observed = Observation(newest, self.model.restore_proprio(context.proprio[:, -1:]))
        return torch.from_numpy(follow.act_on(follow.model.encode(observed, self.instruction), seeds))

    def _noise(self, chunk: int, stream: Stream) -> list[int]:
        return [derive(s, self.draw, chunk, stream) for s in self.seeds]
