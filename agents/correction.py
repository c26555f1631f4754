"""From what was imagined or judged to what is true, with an interval that knows the cost of the way.

* ``rogan_gladen``: a judge counted the successes, and its errors were measured on episodes with known outcomes.
* ``ppi_mean``: a few episodes were run in both worlds and many more were only imagined.
* ``required_real_trials``, ``trials_to_tell_apart``: how many real episodes will do, with and without imagined ones.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from imagine.agents.statistics import Interval, Outcomes, Z, checked
from imagine.types import ImagineError


@dataclass(frozen=True)
class PPIInterval(Interval):
    """An interval of ``ppi_mean``; ``weight`` in [0, 1] is how far imagination was relied on."""

    weight: float = 0.0


def rogan_gladen(judged: Outcomes, on_successes: Outcomes, on_failures: Outcomes) -> Interval:
    """True success rate of episodes that an imperfect judge has counted.

    Judge's errors measured on real film may be others than on imagined film: measure them on what is judged.

    Args:
        judged: (n,) verdicts on the episodes in question, bool.
        on_successes: (a,) verdicts on known successes; their mean is the sensitivity.
        on_failures: (b,) verdicts on known failures; one less their mean is the specificity.

    Returns:
        (judged + specificity - 1) / (sensitivity + specificity - 1), clipped to [0, 1]; the interval counts the
        uncertainty of all three. Simulated coverage 94.6-100 % for rates of 2-98 %, sensitivity and specificity of
        70-99 % and as few as 20 known episodes.

    Raises:
        ImagineError: no episodes, NaN, or a judge that says nothing (sensitivity + specificity <= 1).

    Source: Rogan & Gladen (1978); interval: Lang & Reiczigel (2014), Preventive Veterinary Medicine 113:13.
    """
    counted = (judged, "Judged"), (on_successes, "On successes"), (on_failures, "On failures")
    (n, rate), (a, sensitivity), (b, false) = ((len(x), float(x.mean())) for x in (checked(*c) for c in counted))
    specificity = 1 - false
    # Agresti-Coull's pseudo-episodes: four for the rate, two for each error
    m = n + Z * Z
    q, se, sp = (n * rate + Z * Z / 2) / m, (a * sensitivity + 1) / (a + 2), (b * specificity + 1) / (b + 2)
    informed = se + sp - 1
    if sensitivity + specificity <= 1 or informed <= 0:
        raise ImagineError(
            f"The judge's sensitivity {sensitivity:.2f} and specificity {specificity:.2f} sum to "
            f"{sensitivity + specificity:.2f}, expected more than 1 beyond doubt. "
            "Its verdicts say nothing about success: use another judge, or label more episodes."
        )
    value = np.clip((rate + specificity - 1) / (sensitivity + specificity - 1), 0, 1)
    middle = (q + sp - 1) / informed
    se_variance, sp_variance = se * (1 - se) / (a + 2), sp * (1 - sp) / (b + 2)
    half = Z / informed * np.sqrt(q * (1 - q) / m + middle**2 * se_variance + (1 - middle) ** 2 * sp_variance)
    middle += 2 * Z * Z * (middle * se_variance - (1 - middle) * sp_variance)
    low, high = np.clip([min(middle - half, value), max(middle + half, value)], 0, 1)
    return Interval(float(value), float(low), float(high), n)


def ppi_mean(real: Outcomes, paired: Outcomes, imagined: Outcomes) -> PPIInterval:
    """Real success rate from a few episodes run in both worlds and many more that were only imagined (PPI++).

    The imagined mean is corrected by the mean error on the pairs, each weighted by how well imagination predicts the
    real outcome. Useless imagination gets weight 0 and the real mean remains.

    The interval departs from the paper's, which holds for many pairs only: with few it covers too little where
    rates are near 0 or 1 (an interval of no width after 30 successes). Here four pseudo-pairs, one of each
    combination of success and failure, enter mean, variance and weight (Agresti & Coull's remedy, which also keeps the
    weight from being tuned to chance), and Student's quantile replaces the normal one. Simulated coverage is 94.5 % or
    more from 10 pairs on. The price: with 30 pairs and outcomes that always agree it is wider than need be (100 %).

    Args:
        real: (n,) real outcomes, in [0, 1].
        paired: (n,) imagined outcomes of the same starts, in [0, 1]; a judge's probability will do.
        imagined: (N,) imagined outcomes of other starts of the kind, by the same judge.

    Returns:
        The PPI++ estimate, clipped to [0, 1], and its interval; ``n`` counts the real episodes.

    Raises:
        ImagineError: fewer than 2 pairs, different lengths, no imagined episodes, NaN, or values outside [0, 1].

    Source: Angelopoulos, Duchi & Zrnic, arXiv:2311.01453, for a mean:
    lambda = cov(Y, f) / ((1 + n/N) var f), theta = lambda mean_N(f) + mean_n(Y - lambda f).
    """
    from scipy.stats import t

    y, f, more = checked(real, "Real"), checked(paired, "Paired"), checked(imagined, "Imagined")
    if y.shape != f.shape or len(y) < 2:
        raise ImagineError(
            f"{len(y)} real and {len(f)} paired imagined outcomes, expected the same number and at least 2. "
            "Imagine each real start once."
        )
    weight, value, _ = _rectified(y, f, more)
    _, middle, variance = _rectified(
        np.append(y, [0, 0, 1, 1]), np.append(f, [0, 1, 0, 1]), np.append(more, [0, 0, 1, 1])
    )
    half = t.ppf(0.975, len(y) - 1) * np.sqrt(variance)
    value = float(np.clip(value, 0, 1))
    low, high = np.clip([min(middle - half, value), max(middle + half, value)], 0, 1)
    return PPIInterval(value, float(low), float(high), len(y), weight)


def _rectified(y: np.ndarray, f: np.ndarray, more: np.ndarray) -> tuple[float, float, float]:
    """Tuned weight, estimate and its variance."""
    n, many = len(y), len(more)
    (_, shared), (_, spread) = np.cov(y, f)
    weight = float(np.clip(shared / ((1 + n / many) * spread), 0, 1)) if spread > 0 else 0.0
    error = y - weight * f
    variance = weight**2 * more.var() / many + error.var(ddof=1) / n
    return weight, float(weight * more.mean() + error.mean()), float(variance)


# ---------------------------------------------------------------------- planning
def required_real_trials(half_width: float, *, rate: float = 0.5, correlation: float = 0.0, imagined: float = 0) -> int:
    """Real episodes for a success rate known to plus or minus ``half_width``, 95 %.

    Imagined episodes divide the variance by n_eff / n = 1 / (1 - correlation^2 N / (N + n)); correlation 0.8 and N
    much larger than n: 2.8 times fewer real ones; 0.5: 1.3 times.

    Args:
        half_width: half the length of the interval, in (0, 0.5).
        rate: the rate expected, in (0, 1); 0.5 needs most.
        correlation: of real and imagined outcome of the same start, in [0, 1]; ``numpy.corrcoef`` of a pilot's pairs.
        imagined: imagined episodes N beside the pairs; ``math.inf`` for as many as it takes.

    Returns:
        The number of real episodes, at least 2. For the large-sample interval: below 50 or so, ``ppi_mean`` is wider.

    Raises:
        ImagineError: an argument outside its range.

    Source: variance of PPI++ at its best weight, arXiv:2311.01453.
    """
    _within("Half width", half_width, 0, 0.5)
    _within("Rate", rate, 0, 1)
    return _trials((half_width / Z) ** 2 / (rate * (1 - rate)), correlation, imagined)


def trials_to_tell_apart(
    first: float, second: float, *, power: float = 0.8, correlation: float = 0.0, imagined: float = 0
) -> int:
    """Real episodes of each of two policies, on different starts, to see that their rates differ (5 %, two-sided).

    Args:
        first: the rate expected of one policy, in (0, 1).
        second: of the other; different.
        power: the probability with which the difference is to be found, in (0, 1).
        correlation: of real and imagined outcome of the same start, in [0, 1].
        imagined: imagined episodes N of each policy beside the pairs.

    Returns:
        Episodes per policy, at least 2. The same starts for both would need fewer: see ``mcnemar``.

    Raises:
        ImagineError: an argument outside its range, or equal rates.

    Source: Fleiss, Levin & Paik (2003), unpooled variance; variance of PPI++ as in ``required_real_trials``.
    """
    from scipy.stats import norm

    for name, value in (("First", first), ("Second", second), ("Power", power)):
        _within(name, value, 0, 1)
    if first == second:
        raise ImagineError(f"Both rates are {first:g}, expected two. No number of trials tells equals apart.")
    needed = ((first - second) / (Z + norm.ppf(power))) ** 2
    return _trials(needed / (first * (1 - first) + second * (1 - second)), correlation, imagined)


def _trials(variance: float, correlation: float, imagined: float) -> int:
    """Least n with (1 - correlation^2 N / (N + n)) / n <= variance, which is a quadratic in n."""
    if not 0 <= correlation <= 1:
        raise ImagineError(f"Correlation is {correlation:g}, expected [0, 1]. Below 0 imagination misleads: give 0.")
    if not imagined >= 0:
        raise ImagineError(f"{imagined:g} imagined episodes, expected 0 or more. Correct the number.")
    if np.isinf(imagined):
        n = (1 - correlation**2) / variance
    else:
        b, c = variance * imagined - 1, imagined * (1 - correlation**2)
        n = (-b + np.sqrt(b * b + 4 * variance * c)) / (2 * variance)
    return max(2, int(np.ceil(n - 1e-9)))


def _within(name: str, value: float, low: float, high: float) -> None:
    if not low < value < high:
        raise ImagineError(f"{name} is {value:g}, expected between {low:g} and {high:g}. Give it as a share of 1.")
