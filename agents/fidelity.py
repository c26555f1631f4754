"""All figures of a dream's fidelity, with their intervals: one chunk, and chunk after chunk on its own frames."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from imagine.agents.statistics import decibel_gain
from imagine.data.windows import Windows
from imagine.model.model import WorldActionModel
from imagine.world.dream import DreamConfig
from imagine.world.fidelity import decibel, horizon, one_chunk

CHAINS = 64
"""Long dreams at most."""


def measure(
    dreamer: WorldActionModel, actor: WorldActionModel, windows: Windows, cfg: DreamConfig, *, n: int, chunks: int,
    on_progress: Callable[[int, int], None] | None = None,
) -> tuple[dict[str, Any], dict[str, Any]]:  # fmt: skip
    """Measure a dream against recorded episodes.

    Args:
        dreamer: dreams.
        actor: is asked for POLICY.
        windows: canvas windows over the episodes.
        cfg: how it dreams.
        n: one-chunk windows at most, drawn evenly.
        chunks: horizon of the dream on its own frames.
        on_progress: called with windows done and windows in all.

    Returns:
        ``psnr_true``, ``psnr_shuffled``, ``psnr_copy``, ``psnr_codec`` in dB; ``gain_over_copy`` and
        ``gain_over_shuffled`` with intervals over episodes; ``inverse_r2``, ``inverse_r2_imagined``, ``policy_rms``,
        ``policy_rms_wrong``; ``horizon_psnr`` and ``horizon_copy`` per chunk; ``n``, ``episodes``, ``horizon_n``. And
        the long dreams, see :func:`imagine.world.fidelity.horizon`.
    """
    rows = windows.rows("all")
    rows = np.sort(rows[np.random.default_rng(0).permutation(len(rows))[:n]])
    one = one_chunk(dreamer, windows, rows, cfg=cfg, on_progress=on_progress, actor=actor)
    far = horizon(dreamer, windows, windows.chains(chunks)[:CHAINS], cfg)
    answer: dict[str, Any] = {f"psnr_{k}": round(decibel(one[k]), 3) for k in ("true", "shuffled", "copy", "codec")}
    for name in ("copy", "shuffled"):
        answer[f"gain_over_{name}"] = decibel_gain(one["true"], one[name], one["episode"]).plain()
    for name in ("inverse_r2", "inverse_r2_imagined", "policy_rms", "policy_rms_wrong"):
        answer[name] = round(float(one[name]), 4)
    answer["horizon_psnr"] = [round(decibel(x), 3) for x in far["mse"].T]
    answer["horizon_copy"] = [round(decibel(x), 3) for x in far["copy"].T]
    answer |= {"n": len(rows), "episodes": len(np.unique(one["episode"])), "horizon_n": len(far["mse"])}
    return answer, far
