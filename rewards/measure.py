"""Measures a judge that reads log odds: calibrated on some questions, reported on others, tried by negative controls.

Nothing that is reported was fitted on what it is reported of: every fold is calibrated by the others.
"""

from __future__ import annotations

import fnmatch
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from imagine.files import atomic_path
from imagine.rewards.calibrate import Calibration, by_kind, fit_calibrator, reliability, report
from imagine.rewards.negative_controls import VIDEO_CONTROLS, false_positive_rate, video_control
from imagine.rewards.rules import blurred, noisy
from imagine.rewards.vlm import VLMJudge

FITS = -1
"""The fold that only fits."""

OnProgress = Callable[[int, int], Any]


@dataclass(frozen=True)
class Study:
    """N answered questions with the truth.

    Attributes:
        margin: (N,) float, log odds of success.
        valid: (N,) bool, whether the judge could tell.
        label: (N,) bool, the truth.
        instruction: what was asked about.
        cluster: (N,) which episode; questions about one are not independent.
        fold: (N,) int; each fold is judged by what the others fit, and ``FITS`` is never judged.
        patterns: of instructions, one per task family.
        most_false: see :func:`imagine.rewards.calibrate.fit_calibrator`.
    """

    margin: np.ndarray
    valid: np.ndarray
    label: np.ndarray
    instruction: Sequence[str]
    cluster: np.ndarray
    fold: np.ndarray
    patterns: Sequence[str]
    most_false: float | None

    @property
    def measured(self) -> np.ndarray:
        """(N,) bool, what is reported on."""
        return self.fold != FITS

    def calibration(self, rows: np.ndarray | None = None) -> Calibration:
        """Calibrators fitted on ``rows`` (N,) bool; by default on those that only fit, or on all if there are none."""
        if rows is None:
            rows = ~self.measured if (~self.measured).any() else np.ones(len(self.label), bool)
        use = rows & self.valid
        families = {}
        for pattern in self.patterns:
            own = use & np.array([fnmatch.fnmatchcase(text, pattern) for text in self.instruction])
            if own.any():
                families[pattern] = fit_calibrator(self.margin[own], self.label[own], most_false=self.most_false)
        other = fit_calibrator(self.margin[use], self.label[use], most_false=self.most_false)
        return Calibration(families=families, other=other)

    def judged(self) -> tuple[np.ndarray, np.ndarray]:
        """Probabilities and operating thresholds (N,), each fold by the calibration of the others; 0 if not valid."""
        p, threshold = np.zeros(len(self.label)), np.full(len(self.label), 0.5)
        for fold in np.unique(self.fold[self.measured]):
            own = self.fold == fold
            calibration = self.calibration(~own)
            texts = [text for text, mine in zip(self.instruction, own, strict=True) if mine]
            chance, threshold[own] = calibration.apply(np.where(self.valid, self.margin, 0.0)[own], texts)
            p[own] = np.where(self.valid[own], chance, 0.0)  # who cannot tell has not said yes
        return p, threshold

    def report(self) -> dict[str, Any]:
        """See :func:`imagine.rewards.calibrate.report`; intervals as ``*_ci``."""
        (p, threshold), use = self.judged(), self.measured
        found = report(p[use], threshold[use], self.label[use], self.cluster[use].tolist())
        out: dict[str, Any] = {}
        for name, value in found.items():
            if isinstance(value, dict):
                out |= {name: value["value"], f"{name}_ci": [value["ci_low"], value["ci_high"]]}
            else:
                out[name] = value
        return {**out, "invalid": float((~self.valid[use]).mean())}

    def second(self, verdict: np.ndarray, name: str) -> dict[str, Any]:
        """How far this judge's successes run ahead of a second judge's (N,) bool."""
        (p, threshold), use = self.judged(), self.measured
        first, other = (p >= threshold)[use], verdict[use]
        return {"name": name, "gap": float(first.mean() - other.mean()), "agree": float((first == other).mean())}

    def by(self, kind: np.ndarray) -> dict[str, Any]:
        """Judged and true share of success by kind."""
        (p, threshold), use = self.judged(), self.measured
        return by_kind((p >= threshold)[use], self.label[use], kind[use])

    def curve(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """See :func:`imagine.rewards.calibrate.reliability`."""
        return reliability(self.judged()[0][self.measured], self.label[self.measured])


def cross_folds(cluster: np.ndarray, folds: int = 5) -> np.ndarray:
    """(N,) int: clusters put into folds at random, so that questions about one episode stay together."""
    names, group = np.unique(cluster, return_inverse=True)
    return (np.random.default_rng(0).permutation(len(names)) % min(folds, len(names)))[group]


def pattern_of(instructions: Iterable[str]) -> str:
    """One pattern that fits several instructions: their common first and last words, and ``*`` for what differs."""
    rows = sorted({tuple(text.strip().rstrip(".").lower().split()) for text in instructions})
    if len(rows) == 1:
        return " ".join(rows[0])
    shortest = min(map(len, rows))
    first = next((i for i in range(shortest) if len({row[i] for row in rows}) > 1), shortest)
    rest = shortest - first
    last = next((i for i in range(rest) if len({row[-1 - i] for row in rows}) > 1), rest)
    return " ".join([*rows[0][:first], "*", *rows[0][len(rows[0]) - last :]])


def margins(
    judge: VLMJudge, clips: np.ndarray, instructions: Sequence[str], on_progress: OnProgress
) -> tuple[np.ndarray, np.ndarray]:
    """Raw log odds (N,) of success, and which are valid, of clips (N, 2, H, W, 3): first frame and now."""
    out, good = [np.zeros(0)], [np.zeros(0, bool)]
    for begin in range(0, len(clips), 64):
        part = slice(begin, begin + 64)
        margin, valid = judge.margin(clips[part], instructions[part])
        out.append(margin.numpy())
        good.append(valid.numpy())
        on_progress(min(begin + 64, len(clips)), len(clips))
    return np.concatenate(out).astype(np.float64), np.concatenate(good)


@dataclass(frozen=True)
class Rater:
    """A judge of videos as the gym has it: with guards, and only as long as a dream is believed.

    Attributes:
        judge: reads log odds.
        blur: largest share of the first frame's sharpness that may be lost; see ``GuardConfig``.
        noise: largest share by which a frame may be sharper.
        limit: inverse error above which a dream is no longer believed; None believes everything.
        on_progress: told how many clips are judged.
    """

    judge: VLMJudge
    blur: float
    noise: float
    limit: float | None
    on_progress: OnProgress

    def believed(self, inverse_error: np.ndarray) -> np.ndarray:
        """(N, T) bool, which chunks count: a dream ends with the first one that is not believed."""
        return np.logical_and.accumulate(inverse_error <= (np.inf if self.limit is None else self.limit), 1)

    def clear(self, videos: np.ndarray) -> np.ndarray:
        """(N, T) bool, which moments of videos (N, 1 + T, H, W, 3) are neither blurred nor noise."""
        shown = torch.from_numpy(videos)
        worst = [
            torch.stack([measure(shown[:, k : k + 1], shown[:, 0]) for k in range(1, videos.shape[1])], 1) <= most
            for measure, most in ((blurred, self.blur), (noisy, self.noise))
        ]
        return np.asarray((worst[0] & worst[1]).numpy())

    def log_odds(self, videos: np.ndarray, instructions: Sequence[str]) -> np.ndarray:
        """(N, T) at every moment of videos (N, 1 + T, H, W, 3); -inf where the judge could not tell."""
        n, t = len(videos), videos.shape[1] - 1
        pairs = np.stack([np.repeat(videos[:, :1], t, 1), videos[:, 1:]], 2).reshape(n * t, 2, *videos.shape[2:])
        margin, valid = margins(self.judge, pairs, [i for i in instructions for _ in range(t)], self.on_progress)
        return np.where(valid, margin, -np.inf).reshape(n, t)

    def succeeds(
        self,
        calibration: Calibration,
        videos: np.ndarray,
        instructions: Sequence[str],
        inverse_error: np.ndarray | None = None,
        *,
        begin: int = 0,
    ) -> np.ndarray:
        """(N,) bool, judged a success at any moment from chunk ``begin`` on."""
        if not len(videos):
            return np.zeros(0, bool)
        margin = self.log_odds(videos, instructions)
        p, threshold = calibration.apply(margin.reshape(-1), [i for i in instructions for _ in range(margin.shape[1])])
        yes = (p >= threshold).reshape(margin.shape) & self.clear(videos)
        if inverse_error is not None:
            yes &= self.believed(inverse_error)
        return np.asarray(yes[:, begin:].any(1))

    def video_controls(
        self, calibration: Calibration, videos: np.ndarray, instructions: Sequence[str], seed: int
    ) -> dict[str, np.ndarray]:
        """Verdicts on videos that cannot show success, by kind of ``negative_controls.video_control``."""
        # Played backwards, a video begins with the task done, where yes is true: only its end must not be a success.
        begin = {"reversed": videos.shape[1] - 2}
        return {
            kind: self.succeeds(calibration, video_control(kind, videos, seed), instructions, begin=begin.get(kind, 0))
            for kind in VIDEO_CONTROLS
        }


def controls_report(judged: Mapping[str, np.ndarray]) -> dict[str, Any]:
    """The false-positive rate on negative controls, by kind (n,) bool verdicts, for ``metrics.json``."""
    found = false_positive_rate(dict(judged))
    return {
        "false_positive_rate": found.rate,
        "false_positive_rate_ci": [found.ci_low, found.ci_high],
        "negative_controls": {"n": found.n, **{k: {"rate": r, "n": n} for k, (r, n) in found.by_kind.items()}},
    }


def draw_reliability(curves: Mapping[str, tuple[np.ndarray, np.ndarray, np.ndarray]], path: Path) -> None:
    """Reliability diagram: predicted probability against share of success, one panel per kind of clip."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8, 4), layout="constrained")
    for i, (name, (sizes, predicted, true)) in enumerate(curves.items()):
        axes = figure.add_subplot(1, len(curves), i + 1)
        axes.plot([0, 1], [0, 1], color="0.7", linewidth=1)
        axes.plot(predicted, true, marker="o", markersize=4, color="#1f6f8b")
        axes.set(xlim=(-0.02, 1.02), ylim=(-0.02, 1.02), title=f"{name}, n = {int(sizes.sum())}")
        axes.set_xlabel("predicted probability")
        axes.set_ylabel("share that had succeeded")
    with atomic_path(path) as file:
        figure.savefig(file, dpi=120, format="png")
