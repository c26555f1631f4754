"""Imagined frames with real labels: what a dream shows after some chunks, and whether the robot had really succeeded.

A judge that only ever saw real frames is lost in a dream's blur; one that also learns from these knows what a success
looks like there.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from imagine.configs.commands.worlds import bar
from imagine.data.windows import Windows
from imagine.model.model import WorldActionModel
from imagine.questions import DYNAMICS
from imagine.sampler import sample
from imagine.types import DatasetError


@dataclass(frozen=True)
class Imagined:
    """M imagined frames.

    Attributes:
        rows: (M,) the window whose "now" is the real frame at that moment: label, start and instruction are its own.
        latents: (M, C, h, w) float16, the imagined frame.
        proprio: (M, P) float32, normalised, imagined.
        dream: (M,) int, which of the dreams it belongs to.
    """

    rows: np.ndarray
    latents: Tensor
    proprio: Tensor
    dream: np.ndarray


@torch.inference_mode()
def imagined(model: WorldActionModel, windows: Windows, rows: np.ndarray, chunks: int = 3, steps: int = 1) -> Imagined:
    """Dream from real frames under the recorded actions, up to ``chunks`` chunks on its own frames.

    Args:
        model: the model.
        windows: latent or canvas windows.
        rows: where dreams begin.
        chunks: how far they go; a dream ends with its episode, or when the instruction changes.
        steps: denoising steps.

    Raises:
        DatasetError: no dream reaches the end of its first chunk.
    """
    kept: list[tuple[np.ndarray, Tensor, Tensor, np.ndarray]] = []
    with bar("dreaming for the judge") as tell:
        for begin in range(0, len(rows), 128):
            part = rows[begin : begin + 128]
            batch, t = windows.batch(part), model.cfg.context_frames
            video = batch.video[:, :t].to(model.device)
            if windows.kind == "canvas":
                video = model.codec.encode(video.flatten(0, 1)).unflatten(0, video.shape[:2])
            video = video.float()
            proprio = model.normalise_proprio(batch.proprio[:, :t].to(model.device))
            first, alive = batch, np.ones(len(part), bool)
            for k in range(1, chunks + 1):
                told = [batch.instructions[i] for i in first.instruction_id]
                context = model.context(video, proprio, told)
                action = model.normalise_action(batch.action.to(model.device))
                dream = sample(model, DYNAMICS, context, action=action, steps=steps, seeds=[int(r) + k for r in part])
                assert dream.video is not None and dream.proprio is not None
                then = np.minimum(part + k * windows.embodiment.chunk_frames, len(windows) - 1)
                batch = windows.batch(then)
                same = (batch.episode == first.episode) & (batch.instruction_id == first.instruction_id)
                alive &= (same & (batch.start_proprio == first.start_proprio).all(1)).numpy()
                if alive.any():
                    which = begin + np.flatnonzero(alive)
                    kept.append(
                        (then[alive], dream.video[alive, -1].half().cpu(), dream.proprio[alive, -1].cpu(), which)
                    )
                video = torch.cat([video, dream.video], 1)[:, -t:]
                proprio = torch.cat([proprio, dream.proprio], 1)[:, -t:]
            tell(begin + len(part), len(rows))
    if not kept:
        raise DatasetError(
            f"none of {len(rows)} moments has a whole chunk of the same instruction after it, expected at least one; "
            "record longer episodes, or more of them."
        )
    rows, latents, proprio, dream_of = zip(*kept, strict=True)
    return Imagined(np.concatenate(rows), torch.cat(latents), torch.cat(proprio), np.concatenate(dream_of))
