"""Does imagination agree with reality about a zoo of policies? Eight measures, each with its 95 % interval.

What this is not: a correction of the imagined rates (``correction.py``).

Departs from the literature, which prints these numbers bare or with a percentile bootstrap. Measures of order are
distorted by noise: rates estimated from few episodes are less well ordered than the true ones, and resampling them
adds the same noise again. A percentile interval then misses a perfect agreement nearly every time. See ``agreement``.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from imagine.agents.statistics import Interval, Outcomes, bootstrap_tail, checked
from imagine.types import ImagineError

Measure = Callable[[np.ndarray, np.ndarray], np.ndarray]


# ---------------------------------------------------------------------- the measures: rates (..., P) -> (...)
def _correlation(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    a, b = a - a.mean(-1, keepdims=True), b - b.mean(-1, keepdims=True)
    size = np.sqrt((a * a).sum(-1) * (b * b).sum(-1))
    # a constant vector may keep a rounding error of its mean, so 1e-12 rather than 0
    return np.where(size > 1e-12, (a * b).sum(-1) / np.maximum(size, 1e-12), np.nan)


def _gaps(x: np.ndarray) -> np.ndarray:
    """(..., P, P) by how much policy i is better than policy j; equal rates may differ by a rounding error."""
    gaps = x[..., :, None] - x[..., None, :]
    return np.where(np.abs(gaps) > 1e-9, gaps, 0.0)


def pearson(real: np.ndarray, imagined: np.ndarray) -> np.ndarray:
    """Pearson's r of rates (..., P); NaN where one side is constant."""
    return _correlation(real, imagined)


def spearman(real: np.ndarray, imagined: np.ndarray) -> np.ndarray:
    """Spearman's rho of rates (..., P), equal rates sharing their mean rank; NaN where one side is constant."""
    # how many are worse less how many are better is the rank, up to a scale
    return _correlation(np.sign(_gaps(real)).sum(-1), np.sign(_gaps(imagined)).sum(-1))


def kendall(real: np.ndarray, imagined: np.ndarray) -> np.ndarray:
    """Kendall's tau-b of rates (..., P); NaN where one side is constant."""
    a, b = np.sign(_gaps(real)), np.sign(_gaps(imagined))
    size = np.sqrt((a * a).sum((-1, -2)) * (b * b).sum((-1, -2)))
    return np.where(size > 0, (a * b).sum((-1, -2)) / np.maximum(size, 1), np.nan)


def mmrv(real: np.ndarray, imagined: np.ndarray) -> np.ndarray:
    """Mean maximum rank violation of rates (..., P), in [0, 1], 0 where the orders are the same.

    Each policy answers for the largest real gap to another policy that imagination puts on the wrong side of it.

    Source: SIMPLER, Li et al., arXiv:2405.05941: mean_i max_j |R_i - R_j| 1[(S_i > S_j) != (R_i > R_j)].
    """
    a, b = _gaps(real), _gaps(imagined)
    return (np.abs(a) * ((b > 0) != (a > 0))).max(-1).mean(-1)


def pairs(real: np.ndarray, imagined: np.ndarray) -> np.ndarray:
    """Share of the pairs of policies in rates (..., P) that both worlds order alike; a tie in one of them counts half.

    A tie in both counts whole.
    """
    wrong = np.abs(np.sign(_gaps(real)) - np.sign(_gaps(imagined))) / 2
    count = real.shape[-1]
    return 1 - wrong.sum((-1, -2)) / (count * (count - 1))


def regret(real: np.ndarray, imagined: np.ndarray) -> np.ndarray:
    """Real rate lost by deploying the policy that imagination likes best, from rates (..., P).

    Where imagination likes several best, one of them is drawn: their mean real rate counts.
    """
    best = imagined >= imagined.max(-1, keepdims=True) - 1e-9
    return real.max(-1) - (real * best).sum(-1) / best.sum(-1)


def bias(real: np.ndarray, imagined: np.ndarray) -> np.ndarray:
    """Mean of imagined less real rates (..., P); above 0 the dream is too kind."""
    return (imagined - real).mean(-1)


def _mse(real: np.ndarray, imagined: np.ndarray) -> np.ndarray:
    return ((imagined - real) ** 2).mean(-1)


def rmse(real: np.ndarray, imagined: np.ndarray) -> np.ndarray:
    """Root of the mean squared difference of rates (..., P)."""
    return np.sqrt(_mse(real, imagined))


# measure -> function, range, fewest policies for which it means anything
_MEASURES: dict[str, tuple[Measure, tuple[float, float], int]] = {
    "pearson": (pearson, (-1.0, 1.0), 3),
    "spearman": (spearman, (-1.0, 1.0), 3),
    "kendall": (kendall, (-1.0, 1.0), 3),
    "mmrv": (mmrv, (0.0, 1.0), 2),
    "pairs": (pairs, (0.0, 1.0), 2),
    "regret": (regret, (0.0, 1.0), 2),
    "bias": (bias, (-1.0, 1.0), 1),
    "rmse": (rmse, (0.0, 1.0), 1),
}
MEASURES = tuple(_MEASURES)
_OF_THE_ZOO = ("mmrv", "regret")  # a maximum over the policies: no average that more policies would settle


# ---------------------------------------------------------------------- agreement
def agreement(
    real: Outcomes,
    imagined: Outcomes,
    *,
    measures: Sequence[str] = MEASURES,
    policies: bool = False,
    draws: int = 2000,
    seed: int = 0,
) -> dict[str, Interval]:
    """How well imagined success rates agree with real ones, policy by policy.

    What is resampled: the *starts*. Every policy is run from the same starts in both worlds, so a hard start is hard
    for all of them; resampling whole starts keeps that, and resampling episodes one by one would not. The intervals
    then speak of these policies on all starts of the kind. With ``policies=True`` they speak of other policies of the
    kind too: the starts' interval is widened by what leaving one policy out at a time tells of the spread between
    policies. A bootstrap of policies is not used because a policy drawn twice agrees with itself.

    The interval spans the percentile and the reflected ("basic") bootstrap interval: noise pushes these measures
    towards disagreement, the percentile interval repeats that push and the reflected one takes it back. Kendall's tau
    and ``pairs`` move in steps of one pair and get half a step on each side. Where half or more of the spread of a
    world's rates is sampling noise, the data do not order the policies at all: the measures of order then get their
    whole range, ``mmrv`` and ``regret`` a lower end of 0.

    Simulated coverage of the nominal 95 %, from 30 starts on: 94 % or more, for measures of order mostly 97-100 %.
    From rates alone, of 6-20 policies: 94 % or more.

    Args:
        real: (P, S) outcome of each policy on each start, in [0, 1]; or (P,) rates only, as papers print them.
        imagined: the same shape; same policies, same starts.
        measures: which of ``MEASURES``.
        policies: also count the spread between policies. ``mmrv`` and ``regret`` belong to this very zoo and are left.
        draws: resamples.
        seed: of the resampling; same seed, same intervals.

    Returns:
        Interval by measure. ``n`` is the number of starts, or of policies where only rates are given. A correlation
        with a constant side is undefined: value and both ends are NaN. From rates alone only the policies can vary:
        the intervals are jackknife-t ones over policies, and the whole range where that tells nothing (``mmrv``,
        ``regret``, fewer than four policies, or perfect agreement). Worlds whose every outcome is the same leave a
        bootstrap nothing to vary: ends without width then mean "no difference seen", not "none possible".

    Raises:
        ImagineError: unknown measure, different shapes, no episodes, NaN, values outside [0, 1], fewer policies than a
            measure needs (a correlation: 3), or a single start.

    Source: MMRV: SIMPLER, arXiv:2405.05941; intervals: Efron & Tibshirani (1993) ch. 11, 13; Hesterberg,
    arXiv:1411.5279.
    """
    a, b = checked(real, "Real", (1, 2)), checked(imagined, "Imagined", (1, 2))
    _check(a, b, measures)
    if a.ndim == 1:
        ends = {k: _over_policies(a, b, k) for k in measures}
        rates = a, b
    else:
        ends = _over_starts(a, b, measures, draws, np.random.default_rng(seed))
        rates = a.mean(1), b.mean(1)
        if policies:
            wider = {k: _over_policies(*rates, k) for k in measures if k not in _OF_THE_ZOO}
            ends |= {k: _added(float(_MEASURES[k][0](*rates)), ends[k], w) for k, w in wider.items()}
    found = {}
    for k in measures:
        value, (least, greatest) = float(_MEASURES[k][0](*rates)), _MEASURES[k][1]
        low, high = np.clip(ends[k], least, greatest) if not np.isnan(value) else (np.nan, np.nan)
        found[k] = Interval(value, float(low), float(high), a.shape[-1])
    return found


def _check(a: np.ndarray, b: np.ndarray, measures: Sequence[str]) -> None:
    unknown = [k for k in measures if k not in _MEASURES]
    if unknown:
        raise ImagineError(f"Unknown measure {unknown[0]!r}, expected some of {', '.join(MEASURES)}. Correct the name.")
    if a.shape != b.shape:
        raise ImagineError(
            f"Real has shape {a.shape} and imagined {b.shape}, expected the same policies on the same starts in both. "
            "Leave out what was run in one world only."
        )
    for k in measures:
        if len(a) < _MEASURES[k][2]:
            raise ImagineError(
                f"{k} of {len(a)} policies, expected at least {_MEASURES[k][2]}. "
                'Evaluate more policies, or ask for measures=("bias", "rmse").'
            )
    if a.ndim == 2 and a.shape[1] < 2:
        raise ImagineError("1 start, expected at least 2. Run more starts, or give rates of shape (P,).")


def _over_starts(
    a: np.ndarray, b: np.ndarray, measures: Sequence[str], draws: int, rng: np.random.Generator
) -> dict[str, tuple[float, float]]:
    """Ends of the intervals over starts, from outcomes (P, S)."""
    count, n = a.shape
    weights = rng.multinomial(n, np.full(n, 1 / n), size=draws) / n  # (draws, S): the same starts for all, both worlds
    resampled, rates = (weights @ a.T, weights @ b.T), (a.mean(1), b.mean(1))
    ordered = min(_reliability(a), _reliability(b)) > 0.5
    tail = bootstrap_tail(n)
    ends = {}
    for k in measures:
        measure, (least, greatest), _ = _MEASURES[k]
        if k == "rmse":  # on squares, whose push by noise does not depend on their size
            measure = _mse
        value, values = float(measure(*rates)), measure(*resampled)
        values = values[~np.isnan(values)]
        if not len(values):
            ends[k] = least, greatest
            continue
        low, high = np.quantile(values, [tail, 1 - tail])
        step = {"kendall": 2.0, "pairs": 1.0}.get(k, 0.0) / max(count * (count - 1), 1)
        low, high = min(low, 2 * value - high) - step, max(high, 2 * value - low) + step
        if k == "rmse":
            low, high = np.sqrt(max(low, 0)), np.sqrt(high)
        if not ordered and k not in ("bias", "rmse"):
            low, high = least, high if k in _OF_THE_ZOO else greatest
        ends[k] = float(low), float(high)
    return ends


def _reliability(outcomes: np.ndarray) -> float:
    """Share of the spread of rates between policies (P, S) that is not sampling noise."""
    if len(outcomes) < 2:
        return 0.0
    spread = outcomes.mean(1).var(ddof=1)
    noise = outcomes.var(1, ddof=1).mean() / outcomes.shape[1]
    return float(1 - noise / spread) if spread > 1e-12 else 0.0


def _over_policies(a: np.ndarray, b: np.ndarray, name: str) -> tuple[float, float]:
    """Ends of the jackknife-t interval over policies, from rates (P,)."""
    from scipy.stats import t

    measure, (least, greatest), _ = _MEASURES[name]
    count = len(a)
    if count < 4 or name in _OF_THE_ZOO:
        return least, greatest
    # correlations are close to normal on Fisher's scale, a positive size on the logarithm's; their ends are infinite
    there, back = {
        "pearson": (lambda x: np.arctanh(np.clip(x, -1 + 1e-6, 1 - 1e-6)), np.tanh),
        "spearman": (lambda x: np.arctanh(np.clip(x, -1 + 1e-6, 1 - 1e-6)), np.tanh),
        "rmse": (lambda x: np.log(np.maximum(x, 1e-6)), np.exp),
    }.get(name, (np.asarray, np.asarray))
    others = ~np.eye(count, dtype=bool)
    left_out = there(measure(*(np.broadcast_to(x, (count, count))[others].reshape(count, -1) for x in (a, b))))
    spread = (count - 1) / count * ((left_out - left_out.mean()) ** 2).sum()
    if np.isnan(spread) or (spread < 1e-12 and name != "bias"):  # constant but for one policy, or in perfect order
        return least, greatest
    # measures of pairs rest on as many independent ones as there are disjoint pairs; squares have as heavy tails
    freedom = count // 2 if name in ("kendall", "pairs", "rmse") else count - 2
    half = t.ppf(0.975, freedom) * np.sqrt(spread)
    value = there(measure(a, b))
    return float(back(value - half)), float(back(value + half))


def _added(value: float, one: tuple[float, float], other: tuple[float, float]) -> tuple[float, float]:
    """Ends of an interval with the spreads of both: independent errors add as squares."""
    low, high = (np.hypot(value - x, value - y) for x, y in zip(one, other, strict=True))
    return float(value - low), float(value + high)
