"""Negative controls: videos of what cannot have succeeded, and how often a judge says that it did.

A policy that learns from a judge finds whatever the judge mistakes for success, so the judge is regularly shown such
controls; :mod:`imagine.agents.monitor` does so while a policy learns.
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
