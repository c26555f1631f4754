"""Recorded datasets as latent windows of a model's own codec, for the commands that fine-tune it."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path

import torch

from imagine.data.read import LeRobotDataset
from imagine.data.windows import Windows, build_cache
from imagine.model.model import WorldActionModel
from imagine.progress import Progress
from imagine.train.losses import observed_frames


def latent_windows(model: WorldActionModel, datasets: Sequence[LeRobotDataset], folder: Path) -> tuple[Windows, int]:
    """All windows of some LeRobot datasets together, and how many episodes they hold; canvases for a video codec.

    Args:
        model: whose codec encodes.
        datasets: opened ones.
        folder: where the latents are kept.
    """
    codec, episodes = model.codec, sum(len(d) for d in datasets)
    if model.temporal > 1:  # a video codec needs a window's frames together; they are kept as canvases
        kept = [build_cache(d, model.body, None, folder / str(i)) for i, d in enumerate(datasets)]
        return Windows(kept, model.body, context_frames=observed_frames(model)), episodes
    tag = hashlib.sha256(b"".join(v.numpy().tobytes() for v in codec.state_dict().values())).hexdigest()[:8]

    @torch.no_grad()
    def encode(canvas: torch.Tensor) -> torch.Tensor:
        return codec.encode(canvas)

    caches = []
    for i, dataset in enumerate(datasets):
        with Progress(f"encoding {dataset.root}") as bar:
            caches.append(build_cache(dataset, model.body, encode, folder / str(i), tag=tag, progress=bar))
    return Windows(caches, model.body, context_frames=model.cfg.context_frames), episodes
