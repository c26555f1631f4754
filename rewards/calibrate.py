"""Can a judge be believed? Calibration of its probabilities, and how often it is wrong, with intervals.

Calibrators are fitted per task family on one split and judged on another. Intervals are bootstraps over clusters (an
episode, or all that came of one start), because clips of one episode are not independent.
"""

from __future__ import annotations

import fnmatch
import logging
from collections.abc import Callable, Mapping, Sequence

import numpy as np
from pydantic import BaseModel, ConfigDict

from imagine.types import ImagineError

RESAMPLES = 1000
BINS = 15
LEAST = 10
"""Successes, and failures, that a threshold needs at least: with fewer, one episode moves a rate by 10 points."""

_log = logging.getLogger(__name__)


class Calibrator(BaseModel):
    """What makes a family's log odds honest: ``p = sigmoid((margin - bias) / temperature)``."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    temperature: float = 1.0
    bias: float = 0.0
    threshold: float = 0.5  # on p; at or above it the judge says yes
    threshold_ci: tuple[float, float] | None = None  # 95 % bootstrap interval of the threshold, over clips
    n: int = 0  # clips it was fitted on
    positives: int = 0  # of them


class Calibration(BaseModel):
    """Calibrators by family; a family is a pattern of instructions such as ``pick up the * block``."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    families: dict[str, Calibrator] = {}
    other: Calibrator = Calibrator()  # for instructions that no pattern fits

    def of(self, instruction: str) -> Calibrator:
        """The calibrator of an instruction."""
        text = instruction.strip().rstrip(".").lower()
        for pattern, calibrator in self.families.items():
            if fnmatch.fnmatchcase(text, pattern):
                return calibrator
        return self.other

    def apply(self, margin: np.ndarray, instructions: Sequence[str]) -> tuple[np.ndarray, np.ndarray]:
        """Log odds (n,) to calibrated probabilities (n,) and operating thresholds (n,)."""
        each = [self.of(i) for i in instructions]
        temperature, bias, threshold = np.array([[c.temperature, c.bias, c.threshold] for c in each]).reshape(-1, 3).T
        return _sigmoid((np.asarray(margin, np.float64) - bias) / temperature), threshold


def fit_calibrator(margin: np.ndarray, label: np.ndarray, *, most_false: float | None = 0.02) -> Calibrator:
    """Temperature and bias by maximum likelihood, then an operating threshold.

    Args:
        margin: (n,) log odds.
        label: (n,) bool.
        most_false: the lowest threshold that at most this share of the negatives reaches; None: the one that as many
            reach as there are positives, so that a success rate is neither raised nor lowered.

    Returns:
        The calibrator. With only one class there is nothing to fit; temperature and bias stay.

    Source: Platt (1999), with his smoothed targets, which keep a separable split from diverging.
    """
    from scipy.optimize import minimize

    margin, label = np.asarray(margin, np.float64), np.asarray(label, bool)
    yes, no = int(label.sum()), int((~label).sum())
    slope, offset = 1.0, 0.0
    if yes and no:
        target = np.where(label, (yes + 1) / (yes + 2), 1 / (no + 2))

        def cost(x: np.ndarray) -> float:
            z = np.exp(x[0]) * margin + x[1]
            return float((np.logaddexp(0, z) - target * z).mean())

        found = minimize(cost, np.zeros(2), method="Nelder-Mead", options={"maxiter": 2000, "xatol": 1e-5}).x
        slope, offset = float(np.exp(found[0])), float(found[1])
    p = _sigmoid(slope * margin + offset)
    if min(yes, no) < LEAST:
        _log.warning("a calibrator is fitted on %d successes and %d failures, expected %d of each.", yes, no, LEAST)
    drawn = np.random.default_rng(0).integers(len(p), size=(200, len(p)))
    low, high = np.quantile([_operating(p[i], label[i], most_false) for i in drawn], [0.025, 0.975])
    return Calibrator(
        temperature=1 / slope, bias=-offset / slope, threshold=_operating(p, label, most_false),
        threshold_ci=(float(low), float(high)), n=len(p), positives=yes,
    )  # fmt: skip


def _operating(p: np.ndarray, label: np.ndarray, most_false: float | None) -> float:
    """The operating threshold of probabilities (n,); see :func:`fit_calibrator`."""
    yes = int(label.sum())
    if most_false is None:
        order = np.sort(np.concatenate([p, [0.0, 1.0]]))[::-1]
        threshold = float(order[yes : yes + 2].mean())  # the 1 that was added comes first
    else:
        no = p[~label]
        threshold = float(np.quantile(no, 1 - most_false, method="higher")) if len(no) else 0.5
    return float(np.clip(np.nextafter(threshold, 1), 0.05, 0.999))


class ThresholdFit(BaseModel):
    """How a judge's threshold was found, and how far the data carry it.

    Attributes:
        n: episodes.
        successes: of them, that really were.
        folds: parts that were each judged at the threshold of the others; the rates below are of those verdicts.
        ci: 95 % bootstrap interval of the threshold, over episodes.
        judged: share of the episodes that are judged successes.
        real: share that were.
        disagreement: share that were judged wrongly.
        false_positive: share of the failures judged successes, with its 95 % Wilson interval.
        false_positive_ci: that interval.
        false_negative: share of the successes judged failures, likewise.
        false_negative_ci: that interval.
        refused: why the data could not carry a threshold, so that it was left as it was; empty where it was set.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    n: int
    successes: int
    folds: int
    ci: tuple[float, float]
    judged: float
    real: float
    disagreement: float
    false_positive: float
    false_positive_ci: tuple[float, float]
    false_negative: float
    false_negative_ci: tuple[float, float]
    refused: str = ""

    def numbers(self) -> dict[str, float | list[float] | str]:
        """For ``metrics.json``."""
        return {
            "threshold_n": self.n, "threshold_ci": list(self.ci), "replay_n": self.n, "replay_judged": self.judged,
            "replay_real": self.real, "replay_disagreement": self.disagreement,
            "false_positive": self.false_positive, "false_positive_ci": list(self.false_positive_ci),
            "false_negative": self.false_negative, "false_negative_ci": list(self.false_negative_ci),
            "threshold_refused": self.refused,
        }  # fmt: skip


def fit_threshold(
    best: np.ndarray, success: np.ndarray, *, default: float = 0.5, folds: int = 5
) -> tuple[float, ThresholdFit]:
    """The threshold at which as many episodes are judged successes as really were, cross-fitted.

    One judged success anywhere makes an episode a success: false alarms add up over its chunks, and a missed success
    has more chances, so a threshold that is right frame by frame is not right here. The threshold is of all episodes;
    what is reported of it is each fold judged at the threshold of the other folds.

    Args:
        best: (n,) float in [0, 1], the largest success probability in each episode.
        success: (n,) bool, the truth.
        default: kept where there are fewer than ``LEAST`` successes or failures; a warning says so.
        folds: parts of the data, drawn at random.

    Raises:
        ImagineError: there is no episode.
    """
    best, success = np.asarray(best, np.float64), np.asarray(success, bool)
    n, yes = len(best), int(success.sum())
    if not n:
        raise ImagineError("got 0 episodes to set a threshold by, expected at least 1.")
    if min(yes, n - yes) < LEAST:
        refused = f"{yes} successes and {n - yes} failures, expected at least {LEAST} of each"
        _log.warning("the judge's threshold stays at %.3g: there are %s; give more episodes.", default, refused)
        return default, _of_verdicts(best > default, success, 0, (0.0, 1.0), refused)
    rng, folds = np.random.default_rng(0), min(folds, n)
    drawn = rng.integers(n, size=(RESAMPLES, n))
    low, high = np.quantile([_matched(best[i], success[i]) for i in drawn], [0.025, 0.975])
    fold = rng.permutation(n) % folds
    own = np.array([_matched(best[fold != f], success[fold != f]) for f in range(folds)])
    return _matched(best, success), _of_verdicts(best > own[fold], success, folds, (float(low), float(high)))


def _of_verdicts(
    judged: np.ndarray, success: np.ndarray, folds: int, ci: tuple[float, float], refused: str = ""
) -> ThresholdFit:
    false_positive, positive_ci = _share(judged[~success])
    false_negative, negative_ci = _share(~judged[success])
    return ThresholdFit(
        n=len(success), successes=int(success.sum()), folds=folds, ci=ci, judged=float(judged.mean()),
        real=float(success.mean()), disagreement=float((judged != success).mean()), false_positive=false_positive,
        false_positive_ci=positive_ci, false_negative=false_negative, false_negative_ci=negative_ci, refused=refused,
    )  # fmt: skip


def _matched(best: np.ndarray, success: np.ndarray) -> float:
    """Halfway between the last episode that has to be judged a success for the rate to be right, and the next one."""
    edge = np.concatenate([[1.0], np.sort(best)[::-1], [0.0]])
    hits = int(success.sum())
    return float(np.clip((edge[hits] + edge[hits + 1]) / 2, 0.05, 0.95))


def _share(wrong: np.ndarray) -> tuple[float, tuple[float, float]]:
    """Share of True and its Wilson interval; 0 and all of [0, 1] of nothing."""
    if not len(wrong):
        return 0.0, (0.0, 1.0)
    low, high = wilson(int(wrong.sum()), len(wrong))
    return float(wrong.mean()), (low, high)


def by_kind(judged: np.ndarray, true: np.ndarray, kind: np.ndarray) -> dict[str, dict[str, float]]:
    """Judged and true share of success, each (n,) bool, by ``kind`` (n,)."""
    rows = {str(k): kind == k for k in dict.fromkeys(kind.tolist())}
    return {
        k: {"judged": float(judged[r].mean()), "true": float(true[r].mean()), "n": int(r.sum())}
        for k, r in rows.items()
    }


def wilson(k: int, n: int) -> tuple[float, float]:
    """95 % interval of a share, k of n. Source: Wilson (1927), through ``scipy.stats.binomtest``."""
    from scipy.stats import binomtest

    ci = binomtest(k, n).proportion_ci(0.95, method="wilson")
    return float(ci.low), float(ci.high)


def auroc(p: np.ndarray, label: np.ndarray) -> float:
    """Area under the ROC curve, ties counting half; NaN with one class only.

    Source: Mann & Whitney (1947), through ranks.
    """
    from scipy.stats import rankdata

    label = np.asarray(label, bool)
    yes, no = label.sum(), (~label).sum()
    if not yes or not no:
        return float("nan")
    return float((rankdata(p)[label].sum() - yes * (yes + 1) / 2) / (yes * no))


def brier(p: np.ndarray, label: np.ndarray) -> float:
    """Mean squared error of probabilities. Source: Brier (1950)."""
    return float(np.mean((np.asarray(p, np.float64) - np.asarray(label, np.float64)) ** 2))


def ece(p: np.ndarray, label: np.ndarray, bins: int = BINS) -> float:
    """Expected calibration error over bins of equal mass. Source: Naeini et al. (2015)."""
    sizes, predicted, true = reliability(p, label, bins)
    return float((sizes * np.abs(predicted - true)).sum() / sizes.sum())


def reliability(p: np.ndarray, label: np.ndarray, bins: int = BINS) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Size, mean probability and share of yes of each bin of equal mass, each (bins,)."""
    order = np.argsort(p, kind="stable")
    parts = [part for part in np.array_split(order, min(bins, len(order))) if len(part)]
    p, label = np.asarray(p, np.float64), np.asarray(label, np.float64)
    rows = [(len(part), p[part].mean(), label[part].mean()) for part in parts]
    sizes, predicted, true = np.array(rows).T
    return sizes, predicted, true


def rates(judged: np.ndarray, label: np.ndarray) -> tuple[float, float]:
    """False positive and false negative rate of verdicts (n,) bool; NaN where a class is missing."""
    judged, label = np.asarray(judged, bool), np.asarray(label, bool)
    with np.errstate(invalid="ignore"):
        return float(np.divide((judged & ~label).sum(), (~label).sum())), float(
            np.divide((~judged & label).sum(), label.sum())
        )


def report(p: np.ndarray, threshold: np.ndarray, label: np.ndarray, clusters: Sequence[object]) -> dict[str, object]:
    """Everything that tells how far a judge can be believed.

    Args:
        p: (n,) calibrated probabilities.
        threshold: (n,) operating thresholds.
        label: (n,) bool, the truth.
        clusters: n labels; clips with the same one are resampled together.

    Returns:
        ``auroc``, ``brier``, ``ece``, ``fpr``, ``fnr``, each ``{value, ci_low, ci_high}``; ``n``, ``positives`` and
        ``clusters``.

    Raises:
        ImagineError: there is nothing to judge.
    """
    if not len(p):
        raise ImagineError("got 0 judged clips, expected at least 1; give more episodes.")
    p, threshold, label = np.asarray(p), np.asarray(threshold), np.asarray(label, bool)
    measures: Mapping[str, Callable[[np.ndarray], float]] = {
        "auroc": lambda i: auroc(p[i], label[i]),
        "brier": lambda i: brier(p[i], label[i]),
        "ece": lambda i: ece(p[i], label[i]),
        "fpr": lambda i: rates(p[i] >= threshold[i], label[i])[0],
        "fnr": lambda i: rates(p[i] >= threshold[i], label[i])[1],
    }
    groups = np.unique(np.asarray(clusters, object).astype(str), return_inverse=True)[1]
    members = [np.flatnonzero(groups == g) for g in range(groups.max() + 1)]
    rng = np.random.default_rng(0)
    drawn = [
        np.concatenate([members[g] for g in rng.integers(len(members), size=len(members))]) for _ in range(RESAMPLES)
    ]
    out: dict[str, object] = {}
    for name, measure in measures.items():
        values = [v for v in (measure(i) for i in drawn) if np.isfinite(v)]
        low, high = np.quantile(values, [0.025, 0.975]) if values else (np.nan, np.nan)
        out[name] = {"value": measure(np.arange(len(p))), "ci_low": float(low), "ci_high": float(high)}
    return {**out, "n": len(p), "positives": int(label.sum()), "clusters": len(members)}


def _sigmoid(x: np.ndarray) -> np.ndarray:
    return np.asarray(0.5 * (1 + np.tanh(0.5 * x)))
