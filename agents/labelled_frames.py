"""Recorded frames, and what a dream shows in their place, with the recorded outcome: what a success head learns from.

This is the labelled data of a robot without a simulator: recorded episodes are dreamt again under their own actions, so
the recording tells what really happened at every imagined moment.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from imagine.data.windows import WindowBatch, Windows
from imagine.labels import LabelledPairs
from imagine.model.model import WorldActionModel
from imagine.seeds import Stream, derive
from imagine.types import DatasetError
from imagine.world.step import DreamConfig, predict_chunk

OnProgress = Callable[[int, int], Any]
_TOGETHER = 128  # dreams per network call


class RecordedPairs:
    """Frames of latent windows, beside the first frame of their task; a :class:`imagine.labels.PairSource`."""

    def __init__(self, model: WorldActionModel, windows: Windows, rows: np.ndarray) -> None:
        """Take the frames at "now" of the windows numbered ``rows``.

        Raises:
            DatasetError: the dataset does not record ``next.success``.
        """
        if not windows.batch(rows[:1]).success_valid.all():
            raise DatasetError(
                "the dataset records no `next.success`, so no judge can be trained; drop `judge` from --stages."
            )
        self.model, self.windows, self.rows = model, windows, rows
        self.episode = windows.episode_rows(rows)[0]

    def __len__(self) -> int:
        return len(self.rows)

    def at(self, rows: np.ndarray) -> LabelledPairs:
        """See :class:`imagine.labels.PairSource`."""
        return self._pairs(self.rows[rows])

    def later(self, rows: np.ndarray, chunks: int) -> tuple[LabelledPairs, np.ndarray]:
        """See :class:`imagine.labels.PairSource`."""
        now, windows = self.rows[rows], self.windows
        then = now[:, None] + np.arange(chunks + 1) * self.model.body.chunk_frames
        within = then <= windows.episode_rows(now)[1][:, None]
        then = np.where(within, then, now[:, None])
        same = windows.instruction_ids(then.ravel()).reshape(then.shape) == windows.instruction_ids(now)[:, None]
        return self._pairs(then.ravel()), within & same

    def _pairs(self, windows: np.ndarray) -> LabelledPairs:
        batch, now, body = self.windows.batch(windows), self.windows.context_frames - 1, self.model.body
        proprio = torch.stack([batch.start_proprio, batch.proprio[:, now]], 1)
        return LabelledPairs(
            latents=torch.stack([batch.start_video.float(), batch.video[:, now].float()], 1).cpu(),
            proprio=self.model.normalise_proprio(proprio.to(self.model.device)).cpu(),
            instruction=[batch.instructions[i] for i in batch.instruction_id],
            success=batch.success_now,
            chunks_left=batch.success_in * body.control_hz / body.chunk_actions,
        )


class ImaginedPairs(RecordedPairs):
    """The same, but the later frame is the imagined one; labels and first frames are the recording's."""

    def __init__(self, model: WorldActionModel, windows: Windows, imagined: ImaginedFrames) -> None:
        super().__init__(model, windows, imagined.rows)
        self.imagined, self.episode = imagined, imagined.dream

    def at(self, rows: np.ndarray) -> LabelledPairs:
        """See :class:`imagine.labels.PairSource`."""
        pairs = super().at(rows)
        pairs.latents[:, 1], pairs.proprio[:, 1] = self.imagined.latents[rows].float(), self.imagined.proprio[rows]
        return pairs


@dataclass(frozen=True)
class ImaginedFrames:
    """M imagined frames.

    Attributes:
        rows: (M,) the window whose "now" is the recorded frame at that moment: label, start and
            instruction are its own.
        latents: (M, C, h, w) float16, the imagined frame.
        proprio: (M, P) float32, normalised, imagined.
        dream: (M,) int, which of the dreams it belongs to.
    """

    rows: np.ndarray
    latents: Tensor
    proprio: Tensor
    dream: np.ndarray


@torch.inference_mode()
def imagine_again(
    model: WorldActionModel,
    windows: Windows,
    rows: np.ndarray,
    *,
    chunks: int = 3,
    on_progress: OnProgress | None = None,
) -> ImaginedFrames:
    """Dream from recorded frames under the recorded actions, up to ``chunks`` chunks on its own frames.

    Args:
        model: the model.
        windows: latent or canvas windows.
        rows: where dreams begin.
        chunks: how far they go; a dream ends with its episode, or when the instruction changes.
        on_progress: told how many of the rows are done.

    Raises:
        DatasetError: no dream reaches the end of its first chunk.
    """
    kept: list[ImaginedFrames] = []
    for begin in range(0, len(rows), _TOGETHER):
        kept += _imagine(model, windows, rows[begin : begin + _TOGETHER], begin, chunks)
        if on_progress is not None:
            on_progress(min(begin + _TOGETHER, len(rows)), len(rows))
    if not kept:
        raise DatasetError(
            f"none of {len(rows)} moments has a whole chunk of the same instruction after it, expected at least one; "
            "record longer episodes, or more of them."
        )
    return ImaginedFrames(
        rows=np.concatenate([k.rows for k in kept]),
        latents=torch.cat([k.latents for k in kept]),
        proprio=torch.cat([k.proprio for k in kept]),
        dream=np.concatenate([k.dream for k in kept]),
    )


def _imagine(
    model: WorldActionModel, windows: Windows, rows: np.ndarray, begin: int, chunks: int
) -> list[ImaginedFrames]:
    """One network batch of :func:`imagine_again`; its dreams are numbered from ``begin`` on."""
    first = batch = windows.batch(rows)
    context, alive, kept = _context(model, windows, batch), np.ones(len(rows), bool), []
    cfg = DreamConfig(inverse_steps=0)
    for k in range(1, chunks + 1):
        action = model.normalise_action(batch.action.to(model.device))
        seeds = [derive(int(row), k, Stream.WORLD) for row in rows]
        dream = predict_chunk(model, context, action, cfg, seeds=seeds)
        then = np.minimum(rows + k * windows.embodiment.chunk_frames, len(windows) - 1)
        batch = windows.batch(then)
        same = (batch.episode == first.episode) & (batch.instruction_id == first.instruction_id)
        alive &= (same & (batch.start_proprio == first.start_proprio).all(1)).numpy()
        if not alive.any():
            break
        latents, proprio = dream.video[alive, -1].half().cpu(), dream.proprio[alive, -1].cpu()
        kept.append(ImaginedFrames(then[alive], latents, proprio, begin + np.flatnonzero(alive)))
        context = model.after(context, dream.video, dream.proprio, dream.memory)
    return kept


def _context(model: WorldActionModel, windows: Windows, batch: WindowBatch) -> Any:
    """What a model is given of a batch of latent or canvas windows."""
    t = windows.context_frames
    video = batch.video[:, :t].to(model.device)
    if windows.kind == "canvas":
        video = model.codec.encode(video.flatten(0, 1)).unflatten(0, video.shape[:2])
    proprio = model.normalise_proprio(batch.proprio[:, :t].to(model.device))
    return model.context(video.float(), proprio, [batch.instructions[i] for i in batch.instruction_id])
