"""Intervals around success rates, and tests of two policies; scipy's and statsmodels' where they have them.

What this is: one number with the 95 % interval around it, for one or two lists of episodes. Whether imagination agrees
with reality is ``agreement.py``; correcting an imagined rate by a judge's measured errors or by a few real episodes,
and how many of those are needed, is ``correction.py``.

``success_rate`` is the default. Use ``exact=True`` for a claim that must hold for every true rate, and
``betting_interval`` when somebody looks at the results while they come in and stops as soon as they please.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from imagine.types import ImagineError

Z = 1.959963984540054  # the normal distribution's 97.5 % quantile

Outcomes = Sequence[bool] | Sequence[float] | np.ndarray


@dataclass(frozen=True)
class Interval:
    """An estimate with its 95 % confidence interval."""

    value: float
    low: float
    high: float
    n: int

    def __str__(self) -> str:
        return f"{self.value:.3f} [{self.low:.3f}, {self.high:.3f}] n={self.n}"

    def plain(self) -> dict[str, float | int]:
        """As JSON has it: ``value``, ``ci_low`` and ``ci_high`` with four decimals, and ``n``."""
        numbers = {"value": self.value, "ci_low": self.low, "ci_high": self.high}
        return {**{k: round(float(v), 4) for k, v in numbers.items()}, "n": self.n}


def checked(values: Outcomes, name: str, dims: tuple[int, ...] = (1,)) -> np.ndarray:
    """Outcomes as float64, or the reason why not.

    Args:
        values: booleans, or scores in [0, 1].
        name: what to call them in a message.
        dims: how many axes they may have.

    Raises:
        ImagineError: no episodes, another number of axes, NaN, or values outside [0, 1].
    """
    try:
        x = np.asarray(values, np.float64)
    except (TypeError, ValueError):
        raise ImagineError(
            f"{name} is not a rectangular array of numbers. Give every policy the same number of starts."
        ) from None
    if x.ndim not in dims:
        axes = " or ".join(map(str, dims))
        raise ImagineError(f"{name} has shape {x.shape}, expected {axes} axes. Reshape it to one entry per episode.")
    if not x.size:
        raise ImagineError(f"{name} has shape {x.shape}: 0 episodes, expected at least 1. Roll the policy out first.")
    if np.isnan(x).any():
        raise ImagineError(
            f"{name} holds {int(np.isnan(x).sum())} NaN, expected only numbers. "
            "Judge those episodes again, or leave their starts out in both worlds."
        )
    if x.min() < 0 or x.max() > 1:
        raise ImagineError(f"{name} runs from {x.min():g} to {x.max():g}, expected [0, 1]. Divide percentages by 100.")
    return x


def _paired(after: Outcomes, before: Outcomes) -> tuple[np.ndarray, np.ndarray]:
    a, b = np.asarray(after, bool), np.asarray(before, bool)
    if a.shape != b.shape or a.ndim != 1:
        raise ImagineError(
            f"Paired outcomes have shapes {a.shape} and {b.shape}, expected one entry per start in both. "
            "Give both policies the same starts in the same order, or use unpaired_difference."
        )
    return a, b


# ---------------------------------------------------------------------- one rate, one mean
def success_rate(outcomes: Sequence[bool] | np.ndarray, *, exact: bool = False) -> Interval:
    """Share of successes with its Wilson interval.

    Args:
        outcomes: (n,) success of each episode.
        exact: the Clopper-Pearson interval instead. Its coverage is at least 95 % at every true rate. Wilson's is 95 %
            on average over rates and dips near 0 and 1, to 90 % (n = 20) or 92 % (n = 50), for being shorter.

    Returns:
        The rate; of no episodes NaN with the interval [0, 1].

    Source: Wilson (1927); Clopper & Pearson (1934); both through ``scipy.stats.binomtest``.
    """
    from scipy.stats import binomtest

    k, n = int(np.sum(outcomes)), len(outcomes)
    if not n:
        return Interval(float("nan"), 0.0, 1.0, 0)
    ci = binomtest(k, n).proportion_ci(0.95, method="exact" if exact else "wilson")
    return Interval(k / n, float(ci.low), float(ci.high), n)


def bootstrap_tail(clusters: int) -> float:
    """The quantile that stands for 2.5 % when few things are resampled.

    A bootstrap knows the spread of its n samples only, which is too small by sqrt((n - 1) / n), and it uses the normal
    distribution's tails where Student's belong. Taking quantiles further out mends both.

    Source: Hesterberg, arXiv:1411.5279, "expanded percentile interval".
    """
    from scipy.stats import norm, t

    return float(norm.cdf(t.ppf(0.025, clusters - 1) * np.sqrt(clusters / (clusters - 1)))) if clusters > 1 else 0.0


def mean_interval(
    values: Sequence[float] | np.ndarray,
    clusters: Sequence[int] | np.ndarray | None = None,
    *,
    expanded: bool = False,
    draws: int = 2000,
) -> Interval:
    """Mean with a percentile bootstrap interval; whole clusters (episodes) are resampled together.

    Args:
        values: (n,) anything, not only success.
        clusters: (n,) labels; None: every value is its own cluster.
        expanded: take the quantiles of ``bootstrap_tail``. Without it the interval is too short for few clusters:
            simulated coverage is 88-91 % of 10 clusters and 93-94 % of 20 to 60; with it 94-96 % from 10 on.
        draws: resamples.

    Raises:
        ImagineError: no values, or not one label per value.
    """
    x = np.asarray(values, np.float64)
    groups = np.arange(len(x)) if clusters is None else np.unique(clusters, return_inverse=True)[1]
    if x.ndim != 1 or not len(x) or groups.shape != x.shape:
        raise ImagineError(
            f"Values have shape {x.shape} and clusters {groups.shape}, expected (n,) and (n,) with n > 0. "
            "Give one cluster label per value."
        )
    k = int(groups.max()) + 1
    total, size = np.bincount(groups, x, k), np.bincount(groups, minlength=k)
    pick = np.random.default_rng(0).integers(k, size=(draws, k))
    means = total[pick].sum(1) / size[pick].sum(1)
    tail = bootstrap_tail(k) if expanded else 0.025
    low, high = np.quantile(means, [tail, 1 - tail])
    return Interval(float(x.mean()), float(low), float(high), len(x))


def ratio_interval(total: np.ndarray, size: np.ndarray, *, draws: int = 2000) -> Interval:
    """Ratio of two sums over clusters with a percentile bootstrap interval; whole clusters are resampled.

    Args:
        total: (k,) numerator of each cluster.
        size: (k,) its denominator, as how many things were counted; clusters of 0 count for nothing.
        draws: resamples.

    Returns:
        The ratio; NaN with NaN ends where the denominators are all 0. ``n`` is the number of clusters that count.
    """
    own = np.asarray(size, np.float64) != 0
    a, b = np.asarray(total, np.float64)[own], np.asarray(size, np.float64)[own]
    k = len(a)
    if not k:
        return Interval(float("nan"), float("nan"), float("nan"), 0)
    pick = np.random.default_rng(0).integers(k, size=(draws, k))
    tail = bootstrap_tail(k)
    low, high = np.quantile(a[pick].sum(1) / b[pick].sum(1), [tail, 1 - tail])
    return Interval(float(a.sum() / b.sum()), float(low), float(high), k)


def decibel_gain(error: np.ndarray, baseline: np.ndarray, clusters: np.ndarray) -> Interval:
    """How many dB a mean squared error lies below a baseline's, with a cluster bootstrap interval.

    Of few clusters and uneven errors it is too short: 84 % simulated coverage of 8 clusters, 88 % of 20, 93 % of 60.

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


def betting_interval(values: Outcomes, *, bounds: tuple[float, float] = (0.0, 1.0)) -> Interval:
    """Mean of bounded values with an interval that holds however and whenever the trials were stopped.

    A gambler bets on each next value against every candidate mean m, with stakes fixed before the value is seen.
    Against the true mean no strategy is likely to multiply its money by 2 / 5 %, at any time; every m against which
    it once did is ruled out. The price of looking at any time is an interval about half as wide again as Wilson's.

    Args:
        values: (n,) in the order in which they came; success, a judge's score, or any bounded number.
        bounds: the least and the greatest value possible.

    Raises:
        ImagineError: no values, NaN, or values outside the bounds.

    Source: Waudby-Smith & Ramdas, arXiv:2010.09686, the hedged capital process with predictable
    plug-in stakes truncated at c = 1/2.
    """
    least, span = bounds[0], bounds[1] - bounds[0]
    if not span > 0:
        raise ImagineError(f"Bounds are {bounds}, expected the least value before the greatest. Swap them.")
    x = checked((np.asarray(values, np.float64) - least) / span, "The values, scaled by their bounds,")
    low, high = _lowest_unbeaten(x), 1 - _lowest_unbeaten(1 - x)
    low, high = min(low, high), max(low, high)  # one time in twenty or fewer every mean may have been ruled out
    return Interval(float(least + span * x.mean()), least + span * low, least + span * high, len(x))


def _lowest_unbeaten(x: np.ndarray) -> float:
    """Least mean in [0, 1] against which betting on greater values never multiplied the stake by 2 / 5 %."""
    t = np.arange(1, len(x) + 1)
    mean = (0.5 + np.cumsum(x)) / (t + 1)
    variance = (0.25 + np.cumsum((x - mean) ** 2)) / (t + 1)
    before = np.concatenate([[0.25], variance[:-1]])  # a stake may know only what came before
    stakes = np.sqrt(2 * np.log(2 / 0.05) / (before * t * np.log(t + 1)))

    def beaten(m: float) -> bool:
        return bool(np.cumsum(np.log1p(np.minimum(stakes, 0.5 / m) * (x - m))).max() >= np.log(2 / 0.05))

    low, high = 0.0, 1.0  # the capital falls as m rises, so the means that are ruled out are those below a point
    for _ in range(30):
        middle = (low + high) / 2
        low, high = (middle, high) if beaten(middle) else (low, middle)
    return low


# ---------------------------------------------------------------------- two policies
def paired_difference(after: Sequence[bool] | np.ndarray, before: Sequence[bool] | np.ndarray) -> Interval:
    """Difference of two success rates on the same starts, with a Wald interval with Bonett-Price smoothing.

    Source: Bonett & Price (2012), adjusted Wald interval for a difference of paired proportions.
    """
    a, b = _paired(after, before)
    n = len(a)
    if not n:
        return Interval(float("nan"), -1.0, 1.0, 0)
    gained, lost = int((a & ~b).sum()), int((~a & b).sum())
    p12, p21 = (gained + 1) / (n + 2), (lost + 1) / (n + 2)
    half = Z * np.sqrt((p12 + p21 - (p12 - p21) ** 2) / (n + 2))
    return Interval((gained - lost) / n, p12 - p21 - half, p12 - p21 + half, n)


def unpaired_difference(after: Outcomes, before: Outcomes) -> Interval:
    """Difference of two success rates on different starts, with Newcombe's hybrid of the two Wilson intervals.

    Args:
        after: (n,) success of one policy.
        before: (m,) success of the other; m may differ from n.

    Returns:
        The difference, in [-1, 1]; ``n`` counts the episodes of both.

    Raises:
        ImagineError: no episodes, NaN, or more than one axis.

    Source: Newcombe (1998), Statistics in Medicine 17:873, method 10, through statsmodels.
    """
    from statsmodels.stats.proportion import confint_proportions_2indep

    a, b = checked(after, "After"), checked(before, "Before")
    k, m = int(a.sum()), int(b.sum())
    low, high = confint_proportions_2indep(k, len(a), m, len(b), compare="diff", method="newcomb")
    return Interval(k / len(a) - m / len(b), float(low), float(high), len(a) + len(b))


def mcnemar(after: Outcomes, before: Outcomes) -> float:
    """P-value of the exact test that two policies succeed equally often on the same starts.

    Only starts on which they differ say anything; under the null each goes either way like a coin.

    Args:
        after: (n,) success of one policy.
        before: (n,) success of the other on the same starts, in the same order.

    Returns:
        Two-sided p-value in (0, 1]; 1 where they never differ.

    Raises:
        ImagineError: the shapes differ.

    Source: McNemar (1947), exact form, through statsmodels.
    """
    from statsmodels.stats.contingency_tables import mcnemar as test

    a, b = _paired(after, before)
    return float(test([[(a & b).sum(), (a & ~b).sum()], [(~a & b).sum(), (~a & ~b).sum()]], exact=True).pvalue)
