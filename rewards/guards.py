"""Guards against a judge that can be fooled: conjunctive success, canaries, and a second judge that is not trained on.

A policy that learns from a judge finds whatever the judge mistakes for success. So success here is a conjunction, the
judge is regularly shown rollouts that cannot have succeeded (canaries), and a judge of another architecture watches
how far the first one's praise runs ahead of its own.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from pydantic import BaseModel, ConfigDict
from torch import Tensor

from imagine.rewards.rules import Limits, blurred, check_actions, frozen, noisy
from imagine.types import Clip, ImagineError, RewardModel, Score, ShapeError


class GuardConfig(BaseModel):
    """When a judged success does not count."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    doubt: float | None = None  # normalised action units between what was commanded and what the video shows
    blur: float | None = None  # share of the first frame's sharpness that may be lost
    noise: float | None = None  # share by which the newest frame may be sharper than the first one
    moved: float = 0.03  # a commanded displacement, robot units, from which on a picture must change
    limits: Limits | None = None  # of the commanded chunk


class GuardedJudge:
    """A ``RewardModel``: success is what the judge says, and the video follows the actions, and it is neither frozen
    nor blurred nor noise, and the commanded chunk keeps the rules.

    Every part is reported in ``Score.terms``: the judge's own under their names, ``doubt``, ``frozen``, ``blurred``,
    ``noisy`` and one per rule, where larger is worse; ``vetoed`` is 1 where a guard overruled a judged success. A
    clip that a guard overrules earns no reward above 0; what it loses, it loses.
    """

    def __init__(self, judge: RewardModel, cfg: GuardConfig) -> None:
        """Guard a judge.

        Args:
            judge: whose verdict is guarded.
            cfg: which guards stand, and where.
        """
        self.judge, self.cfg = judge, cfg

    def __call__(self, clip: Clip, instruction: Sequence[str]) -> Score:
        """Judge B clips; see :class:`imagine.types.RewardModel`.

        Raises:
            ShapeError: a guard needs the clip's action, pose or doubt, and it has none.
        """
        score, cfg = self.judge(clip, instruction), self.cfg
        terms: dict[str, Tensor] = {}
        clean = torch.ones_like(score.valid)
        if cfg.doubt is not None:
            terms["doubt"] = _needed(clip.doubt, "doubt")
            clean &= terms["doubt"] <= cfg.doubt
        if cfg.limits is not None:
            action, pose = _needed(clip.action, "action"), _needed(clip.pose, "pose")
            rules = check_actions(action, pose, cfg.limits)
            terms |= rules
            clean &= torch.stack(list(rules.values())).amax(0) <= 0
        if clip.action is not None and clip.pose is not None:
            far = (clip.action - clip.pose[:, None]).abs().amax((1, 2))
            terms["frozen"] = frozen(clip.decode([1, -1]), torch.where(far > cfg.moved, far, torch.zeros_like(far)))
            clean &= terms["frozen"] <= 0
        for name, most, measure in (("blurred", cfg.blur, blurred), ("noisy", cfg.noise, noisy)):
            if most is not None:
                shown = clip.decode([0, -1])
                terms[name] = measure(shown[:, 1:], shown[:, 0])
                clean &= terms[name] <= most
        terms["vetoed"] = (score.terminated & ~clean).float()
        return Score(
            torch.where(clean, score.reward, score.reward.clamp(max=0)),
            score.success * clean,
            score.valid,
            {**score.terms, **terms},
            terminated=score.terminated & clean,
        )


def _needed(value: Tensor | None, name: str) -> Tensor:
    if value is None:
        raise ShapeError(f"the clip has no {name}, which a guard needs; set GuardConfig.{name} to None, or give it.")
    return value


FILM_CANARIES = ("reversed", "frozen", "noise")


def film_canary(kind: str, films: np.ndarray, seed: int = 0) -> np.ndarray:
    """Films that cannot show success, made of films that do or might.

    Args:
        kind: ``reversed`` plays them backwards, ``frozen`` repeats the first frame, ``noise`` keeps the first frame and
            puts uniform noise behind it.
        films: (N, T, H, W, 3) uint8.
        seed: of the noise.

    Returns:
        Same shape and dtype.

    Raises:
        ImagineError: another kind.
    """
    if kind == "reversed":
        return films[:, ::-1].copy()
    if kind == "frozen":
        return np.repeat(films[:, :1], films.shape[1], 1)
    if kind != "noise":
        raise ImagineError(f"no film canary {kind!r}, expected one of {', '.join(FILM_CANARIES)}.")
    rng = np.random.default_rng(seed)
    out = rng.integers(0, 256, films.shape, np.uint8)
    out[:, 0] = films[:, 0]
    return out


def shuffled_chunks(actions: np.ndarray, seed: int = 0) -> np.ndarray:
    """Chunks (N, T, K, A) dealt anew among rollouts and moments: every chunk is one the policy really chose."""
    n, t = actions.shape[:2]
    order = np.random.default_rng(seed).permutation(n * t)
    return actions.reshape(n * t, *actions.shape[2:])[order].reshape(actions.shape)


class Exploitability(BaseModel):
    """How often rollouts that did not succeed were judged to have succeeded: the exploitability floor."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    floor: float
    ci_low: float
    ci_high: float
    n: int
    by_kind: dict[str, tuple[float, int]]


def exploitability(fooled: dict[str, np.ndarray]) -> Exploitability:
    """The floor over all canaries, with its Wilson interval.

    Args:
        fooled: by kind of canary (n,) bool, judged a success although it was none.

    Raises:
        ImagineError: there is no canary.

    Source: Wilson (1927), through ``scipy.stats.binomtest``.
    """
    from scipy.stats import binomtest

    every = np.concatenate([np.asarray(v, bool) for v in fooled.values()]) if fooled else np.zeros(0, bool)
    if not len(every):
        raise ImagineError("got 0 canaries, expected at least 1; roll some out.")
    ci = binomtest(int(every.sum()), len(every)).proportion_ci(0.95, method="wilson")
    by_kind = {k: (float(np.mean(v)) if len(v) else 0.0, len(v)) for k, v in fooled.items()}
    return Exploitability(
        floor=float(every.mean()), ci_low=float(ci.low), ci_high=float(ci.high), n=len(every), by_kind=by_kind
    )


class GapAlarm:
    """Watches how far the trained-on judge's praise runs ahead of a second judge's that is never trained on.

    The gap at the start is the baseline; the alarm rings when a later gap is above it by more than ``sigmas`` standard
    errors of the difference. That the second judge be of another architecture is the caller's to see to.
    """

    def __init__(self, sigmas: float = 3.0, least: float = 0.05) -> None:
        """Start without a baseline.

        Args:
            sigmas: how many standard errors.
            least: a growth below this share never rings.
        """
        self.sigmas, self.least = sigmas, least
        self.baseline: tuple[float, float] | None = None

    def __call__(self, first: np.ndarray, second: np.ndarray) -> tuple[float, bool]:
        """The present gap, and whether the alarm rings.

        Args:
            first: (n,) bool, success of n rollouts as the first judge sees it.
            second: (n,) bool, of the same rollouts, the second one.

        Raises:
            ImagineError: no rollouts, or not the same number from both.
        """
        if len(first) != len(second) or not len(first):
            raise ImagineError(f"got verdicts on {len(first)} and {len(second)} rollouts, expected as many of each.")
        difference = np.asarray(first, float) - np.asarray(second, float)
        gap, error = float(difference.mean()), float((difference.var() + 0.25 / len(first)) / len(first))
        if self.baseline is None:
            self.baseline = (gap, error)
            return gap, False
        grown = gap - self.baseline[0]
        return gap, bool(grown > max(self.least, self.sigmas * np.sqrt(error + self.baseline[1])))
