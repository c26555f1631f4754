"""Figures of a dream's fidelity."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np


def horizon_figure(numbers: dict[str, Any], seconds: float) -> Any:
    """PSNR of the dream against a still frame over chunks, of so many seconds each, of its own imagination."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(5, 2.6), layout="constrained")
    axes = figure.subplots()
    chunks = np.arange(1, len(numbers["horizon_psnr"]) + 1)
    axes.plot(chunks, numbers["horizon_psnr"], "o-", label="dream")
    axes.plot(chunks, numbers["horizon_copy"], "o--", color="gray", label="still frame")
    axes.set(xlabel=f"chunks of {seconds:g} s", ylabel="PSNR (dB)", xticks=chunks)
    axes.legend(frameon=False)
    axes.spines[["top", "right"]].set_visible(False)
    return figure


def save_dreams(dreams: dict[str, Any], path: Path) -> None:
    """Four long dreams of :func:`imagine.world.fidelity.horizon`, every other frame, dream above truth."""
    from PIL import Image

    rows = [
        np.concatenate(list(dreams[which][i, 1::2]), 1)
        for i in range(min(4, len(dreams["frames"])))
        for which in ("frames", "truth")
    ]
    image = Image.fromarray(np.concatenate(rows))
    image.resize((image.width * 2, image.height * 2), Image.Resampling.NEAREST).save(path)
