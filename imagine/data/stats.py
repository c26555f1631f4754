"""Per-feature statistics in the LeRobot vocabulary: min, max, mean, std, count and five quantiles."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

Stats = dict[str, np.ndarray]
QUANTILES = {"q01": 0.01, "q10": 0.10, "q50": 0.50, "q90": 0.90, "q99": 0.99}
_IMAGES_PER_EPISODE = 8
_PIXEL_STEP = 2


def array_stats(rows: np.ndarray) -> Stats:
    """Statistics of (n, d) or (n,) numbers or booleans; each is (d,) float64, ``count`` is (1,) int64."""
    x = np.asarray(rows).reshape(len(rows), -1).astype(np.float64)
    quantiles = np.quantile(x, list(QUANTILES.values()), axis=0)
    out = {"min": x.min(0), "max": x.max(0), "mean": x.mean(0), "std": x.std(0), "count": np.array([len(x)])}
    return out | dict(zip(QUANTILES, quantiles, strict=True))


def image_stats(frames: np.ndarray) -> Stats:
    """Statistics of (n, h, w, 3) uint8 frames per channel, scaled to [0, 1]; each is (3, 1, 1) float64.

    Frames and pixels are subsampled; ``count`` is the number of frames looked at.
    """
    keep = np.unique(np.linspace(0, len(frames) - 1, min(len(frames), _IMAGES_PER_EPISODE)).astype(int))
    pixels = frames[keep][:, ::_PIXEL_STEP, ::_PIXEL_STEP].reshape(-1, 3)
    # Pixels have 256 values: a histogram gives every statistic without sorting.
    counts = np.stack([np.bincount(pixels[:, c], minlength=256) for c in range(3)]).astype(np.float64)
    values = np.arange(256) / 255.0
    total = counts.sum(1, keepdims=True)
    mean = (counts * values).sum(1) / total[:, 0]
    std = np.sqrt(np.maximum((counts * values**2).sum(1) / total[:, 0] - mean**2, 0))
    share = counts.cumsum(1) / total
    out = {
        "min": values[(counts > 0).argmax(1)],
        "max": values[255 - (counts[:, ::-1] > 0).argmax(1)],
        "mean": mean,
        "std": std,
    }
    out |= {name: values[(share >= q).argmax(1)] for name, q in QUANTILES.items()}
    return {k: v.reshape(3, 1, 1) for k, v in out.items()} | {"count": np.array([len(keep)])}


def merge_stats(parts: Sequence[Stats]) -> Stats:
    """Combine statistics of disjoint parts: exact, except quantiles, which are averaged by count as LeRobot does."""
    count = np.array([int(p["count"][0]) for p in parts], np.float64)
    weight = (count / count.sum()).reshape(-1, *[1] * parts[0]["mean"].ndim)
    stack = {k: np.stack([p[k] for p in parts]) for k in parts[0] if k != "count"}
    mean = (stack["mean"] * weight).sum(0)
    variance = ((stack["std"] ** 2 + (stack["mean"] - mean) ** 2) * weight).sum(0)
    out = {"min": stack["min"].min(0), "max": stack["max"].max(0), "mean": mean, "std": np.sqrt(variance)}
    out |= {k: (stack[k] * weight).sum(0) for k in QUANTILES}
    return out | {"count": np.array([int(count.sum())])}
