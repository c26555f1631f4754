"""Intervals around success rates. scipy where it has them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Interval:
    """An estimate with its 95 % confidence interval."""

    value: float
    low: float
    high: float
    n: int

    def __str__(self) -> str:
        return f"{self.value:.3f} [{self.low:.3f}, {self.high:.3f}] n={self.n}"


def success_rate(outcomes: Sequence[bool] | np.ndarray) -> Interval:
    """Share of successes with its Wilson interval.

    Source: Wilson (1927), through ``scipy.stats.binomtest``.
    """
    from scipy.stats import binomtest

    k, n = int(np.sum(outcomes)), len(outcomes)
    if not n:
        return Interval(float("nan"), 0.0, 1.0, 0)
    ci = binomtest(k, n).proportion_ci(0.95, method="wilson")
    return Interval(k / n, float(ci.low), float(ci.high), n)


def paired_difference(after: Sequence[bool] | np.ndarray, before: Sequence[bool] | np.ndarray) -> Interval:
    """Difference of two success rates on the same starts, with a Wald interval with Bonett-Price smoothing.

    Source: Bonett & Price (2012), adjusted Wald interval for a difference of paired proportions.
    """
    a, b = np.asarray(after, bool), np.asarray(before, bool)
    n = len(a)
    if not n:
        return Interval(float("nan"), -1.0, 1.0, 0)
    gained, lost = int((a & ~b).sum()), int((~a & b).sum())
    p12, p21 = (gained + 1) / (n + 2), (lost + 1) / (n + 2)
    half = 1.959964 * np.sqrt((p12 + p21 - (p12 - p21) ** 2) / (n + 2))
    return Interval((gained - lost) / n, p12 - p21 - half, p12 - p21 + half, n)


def decibel_gain(error: np.ndarray, baseline: np.ndarray, clusters: np.ndarray) -> Interval:
    """How many dB a mean squared error lies below a baseline's, with a cluster bootstrap interval.

    Args:
        error: (n,) squared errors.
        baseline: (n,) squared errors of the baseline on the same clips.
        clusters: (n,) labels; clips of one episode are resampled together.
    """
    groups = np.unique(clusters, return_inverse=True)[1]
    k = int(groups.max()) + 1
    ours, theirs = np.bincount(groups, error, k), np.bincount(groups, baseline, k)
    pick = np.random.default_rng(0).integers(k, size=(2000, k))
    gains = 10 * np.log10(theirs[pick].sum(1) / ours[pick].sum(1))
    low, high = np.quantile(gains, [0.025, 0.975])
    return Interval(float(10 * np.log10(baseline.sum() / error.sum())), float(low), float(high), len(error))


def mean_interval(values: Sequence[float] | np.ndarray, clusters: Sequence[int] | np.ndarray | None = None) -> Interval:
    """Mean with a percentile bootstrap interval; whole clusters (episodes) are resampled together."""
    x = np.asarray(values, np.float64)
    groups = np.arange(len(x)) if clusters is None else np.unique(clusters, return_inverse=True)[1]
    k = int(groups.max()) + 1
    total, size = np.bincount(groups, x, k), np.bincount(groups, minlength=k)
    pick = np.random.default_rng(0).integers(k, size=(2000, k))
    means = total[pick].sum(1) / size[pick].sum(1)
    low, high = np.quantile(means, [0.025, 0.975])
    return Interval(float(x.mean()), float(low), float(high), len(x))
