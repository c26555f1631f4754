"""What a planner asks: ``score(state, candidates) -> value ± spread``, and the scorer that answers by dreaming.

What this is: the only thing that a planner, ours or another library's, knows of worlds and judges. Any judge will do: a
head on latents, a vision-language model, rules; so will any function of a context and candidates (:class:`Plain`).
What this is not: a learnt value. A candidate is worth what the judge says of the dream ``depth`` chunks later.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Literal, Protocol, runtime_checkable

import torch
from torch import Tensor

from imagine.model.batching import TILE, in_tiles
from imagine.model.kv_cache import ContextCache
from imagine.model.model import WorldActionModel
from imagine.policy.policy import JointPolicy
from imagine.seeds import Stream, derive
from imagine.types import Context, ImagineError, Observation, RewardModel, Score, ShapeError
from imagine.world.step import DreamConfig, EpisodeStart, Prediction, judge_clip, predict_chunk
from imagine.world.trajectory import initial, interpolate


@dataclass(frozen=True)
class PlanningState:
    """Where a decision is made, in B lanes.

    Attributes:
        context: what is observed now.
        start: what was observed when the episode began; success often means "changed since then".
        instruction: one per lane.
        seeds: one per lane; all noise of a decision comes from its lane's seed.
        cache: what the dreaming model read of ``context``, where it is at hand; see :func:`read`.
        trajectory: (B, T, P + S A) float, where the robot has been, up to ``context``; see
            :mod:`imagine.world.trajectory`. Without it a judge is told that the robot went
            straight from ``start`` to ``context``.
    """

    context: Context
    start: Context
    instruction: tuple[str, ...]
    seeds: tuple[int, ...]
    cache: ContextCache | None = None
    trajectory: Tensor | None = None

    def __post_init__(self) -> None:
        told = len(self.context), len(self.start), len(self.instruction), len(self.seeds)
        if len(set(told)) > 1:
            raise ShapeError(
                f"a state has {told[0]} contexts, {told[1]} starts, {told[2]} instructions and {told[3]} seeds; "
                "give one of each per lane."
            )

    def __len__(self) -> int:
        return len(self.context)

    def been(self, model: WorldActionModel) -> Tensor:
        """(B, T, P + S A) float, ``trajectory``, or what is assumed without one."""
        if self.trajectory is not None:
            return self.trajectory
        return interpolate(model, initial(model, self.start.proprio[:, -1]), self.context.proprio[:, -1])


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
        """The candidates of several scores of the same lanes, side by side; a term that one of them lacks is NaN."""
        names = dict.fromkeys(name for part in parts for name in part.terms)
        films = [part.video for part in parts if part.video is not None]
        return Scores(
            torch.cat([p.value for p in parts], 1),
            torch.cat([p.spread for p in parts], 1),
            {k: torch.cat([p.terms.get(k, torch.full_like(p.value, torch.nan)) for p in parts], 1) for k in names},
            torch.cat(films, 1) if len(films) == len(parts) else None,
        )


class Scorer(Protocol):
    """Scores candidate chunks."""

    def __call__(self, state: PlanningState, candidates: Tensor) -> Scores:
        """Score (B, N, K, A) float32 candidates in robot units, of a state of B lanes."""
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
    """``model.prefill`` in tiles, so that what is read of a lane does not depend on how many others there are."""
    if not tile:
        return model.prefill(context)
    lanes = len(context)
    parts = []
    for begin in range(0, lanes, tile):
        rows = (torch.arange(tile) + begin).clamp(max=lanes - 1)
        parts.append(model.prefill(context.index(rows)).index(torch.arange(min(tile, lanes - begin))))
    return ContextCache.join(parts)


def check_candidates(candidates: Tensor, lanes: int, shape: tuple[int, ...]) -> None:
    """Refuse candidates that are not (lanes, N >= 1, K, A) finite numbers; ``shape`` is (K, A), one chunk.

    A candidate of several chunks holds a multiple of K actions.

    Raises:
        ShapeError: says which.
    """
    got = tuple(candidates.shape)
    whole = len(got) == 4 and got[2] >= shape[0] and got[2] % shape[0] == 0 and got[3] == shape[1]
    if not whole or got[0] != lanes or got[1] < 1:
        raise ShapeError(f"candidates are {got}, expected (B, N >= 1, K, A) = ({lanes}, N, {shape[0]}, {shape[1]}).")
    if not candidates.isfinite().all():
        wrong = (~candidates.isfinite()).flatten(2).any(2).nonzero()[0].tolist()
        raise ShapeError(f"candidate {wrong[1]} of lane {wrong[0]} holds NaN or infinity; is the policy's input sound?")


@dataclass(frozen=True)
class _Begun:
    """What a judge is shown of an episode before the chunk that it judges: where n rows began and how they moved."""

    start: EpisodeStart
    trajectory: Tensor


@dataclass(frozen=True)
class _Imagined:
    """One chunk of a dream of n rows, its judgement, and the trajectory up to its end."""

    chunk: Prediction
    score: Score
    trajectory: Tensor

    @property
    def inverse_error(self) -> Tensor:
        """(n,) float32; 0 where the dream is not checked."""
        error = self.chunk.inverse_error
        return torch.zeros_like(self.score.success) if error is None else error

    @property
    def merit(self) -> Tensor:
        """(n,) float32, success + progress, or the reward of a judge without that term; minus infinity if invalid."""
        score = self.score
        merit = score.success + (_term(score, "progress") if "progress" in score.terms else score.reward)
        return torch.where(score.valid, merit, torch.full_like(merit, -torch.inf))


@dataclass(frozen=True)
class DreamScorer:
    """Imagines what each candidate brings and asks the judge: ``value = success + progress - cost * inverse error``.

    A judge that reports no ``progress``, as one with a dense reward of its own, is asked for its reward instead.

    All candidates of a lane dream under the same noise, so that they differ by their actions alone. The spread is the
    judge's own term ``spread`` (0 where it has none) and, with several ``draws``, the deviation of the value among
    dreams: the root of the mean square of the one plus the variance of the other.

    Attributes:
        model: dreams.
        judge: what it says of success and progress makes the value.
        cfg: how it dreams: ``steps``, ``inverse_steps`` and ``tile``, as the dream that is planned in.
        inverse_error_cost: value lost per normalised action unit between a chunk and what INVERSE reads from its dream.
        depth: chunks imagined at least; where a candidate ends ``follow`` acts. One chunk is often too short to see
            what a candidate was good for; a candidate may itself be several chunks long.
        end: of a dream of several chunks, the ``last`` one counts, or the best (``max``), since an episode would have
            ended there.
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
        """See :class:`Scorer`; a row's bytes do not depend on how many lanes and candidates are beside it.

        Raises:
            ShapeError: there are no candidates, or they are misshapen or not finite.
        """
        check_candidates(candidates, len(state), self.model.chunk_shapes["action"])
        b, n = candidates.shape[:2]
        chunks = candidates.flatten(0, 1).to(self.model.device)
        cache = read(self.model, state.context, self.cfg.tile) if state.cache is None else state.cache
        names: list[str] = []

        def judge(rows: Tensor) -> tuple[Tensor, ...]:
            lanes = rows // n
            draws = [self._draw(state, lanes, cache.index(lanes), chunks[rows], i) for i in range(self.draws)]
            values, spreads = (torch.stack([getattr(d, k) for d in draws]) for k in ("value", "spread"))
            names[:] = draws[0].terms
            terms = [torch.stack([d.terms[k] for d in draws]).mean(0) for k in names]
            spread = (spreads.square().mean(0) + values.var(0, unbiased=False)).sqrt()
            assert draws[0].video is not None
            return values.mean(0), spread, draws[0].video, *terms

        value, spread, video, *terms = in_tiles(judge, b * n, self.cfg.tile)
        shaped = {k: v.view(b, n) for k, v in zip(names, terms, strict=True)}
        # A dream that could not be judged has no spread: minus infinity says it all.
        return Scores(value.view(b, n), spread.nan_to_num(0.0).view(b, n), shaped, video.unflatten(0, (b, n)))

    def _draw(self, state: PlanningState, lanes: Tensor, cache: ContextCache, chunks: Tensor, draw: int) -> Scores:
        """One dream of n rows; every field lacks the axis of lanes."""
        seeds = [state.seeds[i] for i in lanes.tolist()]
        told = [state.instruction[i] for i in lanes.tolist()]
        start = EpisodeStart(state.start.video[lanes, -1], state.start.proprio[lanes, -1])
        before = _Begun(start, state.been(self.model)[lanes])
        film = self._film(state.context.index(lanes), before, cache, chunks, told, seeds, draw)
        stack = {
            name: torch.stack([_term(step.score, name) for step in film])
            for name in ("progress", "spread", *film[0].score.terms)
        }
        stack["success"] = torch.stack([step.score.success for step in film])
        merit = torch.stack([step.merit for step in film])
        at = merit.argmax(0) if self.end == "max" else torch.full_like(merit[0], len(film) - 1, dtype=torch.long)
        terms = {name: x.gather(0, at[None])[0] for name, x in stack.items()}
        terms["hallucination"] = torch.stack([step.inverse_error for step in film]).mean(0)
        if len(film) > 1:
            terms["chunk"] = at.float()
        value = merit.gather(0, at[None])[0] - self.inverse_error_cost * terms["hallucination"]
        return Scores(value, terms["spread"], terms, torch.cat([step.chunk.video for step in film], 1))

    def _film(
        self,
        context: Context,
        before: _Begun,
        cache: ContextCache,
        plan: Tensor,
        told: list[str],
        seeds: list[int],
        draw: int,
    ) -> list[_Imagined]:
        """A dream of n rows: the candidates (n, M K, A) in robot units, then what ``follow`` does, up to ``depth``."""
        given = plan.split(self.model.chunk_shapes["action"][0], 1)
        film: list[_Imagined] = []
        for k in range(max(self.depth, len(given))):
            noise = [
                derive(s, draw, k, Stream.SCORER) for s in seeds
            ]
            acting = [derive(s, draw, k, Stream.POLICY) for s in seeds]
            if k:
                context = self.model.after(context, film[-1].chunk.video, film[-1].chunk.proprio)
                cache = self.model.prefill(context)
            chunks = given[k] if k < len(given) else self._followed(context, told, acting).to(plan)
            film.append(self._imagine(context, before, cache, chunks, told, noise))
            before = replace(before, trajectory=film[-1].trajectory)
        return film

    def _followed(self, context: Context, told: list[str], seeds: list[int]) -> Tensor:
        """What ``follow`` does in imagined contexts, (n, K, A) in robot units."""
        assert self.follow is not None
        newest = self.model.decode(context.video[:, -1:], context.video[:, :-1])
        seen = Observation(newest, self.model.restore_proprio(context.proprio[:, -1:]))
        return torch.from_numpy(self.follow.act_on(self.follow.model.encode(seen, told), seeds))

    def _imagine(
        self, context: Context, before: _Begun, cache: ContextCache, chunks: Tensor, told: list[str], seeds: list[int]
    ) -> _Imagined:
        action = self.model.normalise_action(chunks)
        chunk = predict_chunk(self.model, context, action, self.cfg, seeds=seeds, cache=cache)
        clip = judge_clip(self.model, before.start, before.trajectory, context, chunk, chunks)
        assert clip.trajectory is not None
        return _Imagined(chunk, self.judge(clip, told), clip.trajectory)


def _term(score: Score, name: str) -> Tensor:
    """A term of a judgement, (n,) float32; 0 where it is missing or not a number."""
    return score.terms[name].float().nan_to_num(0.0) if name in score.terms else torch.zeros_like(score.success)
