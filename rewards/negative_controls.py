"""Negative controls: what cannot have succeeded, how often a judge says it did, and a second judge to compare with.

A policy that learns from a judge finds whatever the judge mistakes for success, so the judge is regularly shown such
controls, and a judge of another architecture, that nothing is trained on, is asked about the same rollouts.
"""

from __future__ import annotations

import numpy as np
from pydantic import BaseModel, ConfigDict

from imagine.rewards.calibrate import wilson
from imagine.types import ImagineError

VIDEO_CONTROLS = ("reversed", "frozen", "noise")


def video_control(kind: str, videos: np.ndarray, seed: int = 0) -> np.ndarray:
    """Videos that cannot show success, made of videos that do or might.

    Args:
        kind: ``reversed`` plays them backwards, ``frozen`` repeats the first frame, ``noise`` keeps the first frame and
            puts uniform noise behind it.
        videos: (N, T, H, W, 3) uint8.
        seed: of the noise.

    Returns:
        Same shape and dtype.

    Raises:
        ImagineError: another kind.
    """
    if kind == "reversed":
        return videos[:, ::-1].copy()
    if kind == "frozen":
        return np.repeat(videos[:, :1], videos.shape[1], 1)
    if kind != "noise":
        raise ImagineError(f"no video control {kind!r}, expected one of {', '.join(VIDEO_CONTROLS)}.")
    rng = np.random.default_rng(seed)
    out = rng.integers(0, 256, videos.shape, np.uint8)
    out[:, 0] = videos[:, 0]
    return out


def shuffled_chunks(actions: np.ndarray, seed: int = 0) -> np.ndarray:
    """Chunks (N, T, K, A) shuffled among rollouts and moments: every chunk is one the policy really chose."""
    n, t = actions.shape[:2]
    order = np.random.default_rng(seed).permutation(n * t)
    return actions.reshape(n * t, *actions.shape[2:])[order].reshape(actions.shape)


class FalsePositiveRate(BaseModel):
    """How often negative controls, rollouts that did not succeed, were judged to have succeeded."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    rate: float
    ci_low: float
    ci_high: float
    n: int
    by_kind: dict[str, tuple[float, int]]


def false_positive_rate(judged: dict[str, np.ndarray]) -> FalsePositiveRate:
    """The rate over all negative controls, with its Wilson interval.

    Args:
        judged: by kind of control (n,) bool, judged a success although it was none.

    Raises:
        ImagineError: there is no control.
    """
    every = np.concatenate([np.asarray(v, bool) for v in judged.values()]) if judged else np.zeros(0, bool)
    if not len(every):
        raise ImagineError("got 0 negative controls, expected at least 1; roll some out.")
    low, high = wilson(int(every.sum()), len(every))
    by_kind = {k: (float(np.mean(v)) if len(v) else 0.0, len(v)) for k, v in judged.items()}
    return FalsePositiveRate(rate=float(every.mean()), ci_low=low, ci_high=high, n=len(every), by_kind=by_kind)


class GapAlarm:
    """Watches how many more successes the judge trained on sees than a second judge that is never trained on.

    The gap at the start is the baseline; the alarm rings when a later gap is above it by more than ``sigmas`` standard
    errors of the difference. The second judge should be of another architecture, which is the caller's to see to.
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
