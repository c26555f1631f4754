"""The way of a robot's hands since an episode began, as a judge is told it: :attr:`imagine.types.Clip.path`.

What was imagined of the robot drifts from where its actions lead, by a centimetre or two after a few chunks at the
table; where the actions lead knows nothing of what stands in the way. So a row of a path, one per frame, has both side
by side: proprioception (P numbers, normalised), and dead reckoning at each of the S ticks since the frame before (S A
numbers, oldest first): actions relative to the state are added up from the first frame on, in the units of
proprioception, and others are as commanded.
"""

from __future__ import annotations

import torch
from torch import Tensor

from imagine.model.model import WorldActionModel

PATH_CHUNKS = 4
"""Chunks that a path goes back, before which there is one frame more."""


def begun(model: WorldActionModel, proprio: Tensor) -> Tensor:
    """The path (B, T, P + S A) of episodes that begin at proprioception (B, P): its first frame again and again."""
    frames = model.chunk_shapes["video"][0]
    still = _reckoned(model, proprio)[:, None].expand(-1, _ticks(model), -1)
    return torch.cat([proprio, still.flatten(1)], 1)[:, None].expand(-1, 1 + PATH_CHUNKS * frames, -1)


def went_on(model: WorldActionModel, path: Tensor, proprio: Tensor, action: Tensor) -> Tensor:
    """A path (B, T, P + S A) one chunk later.

    Args:
        model: knows the units.
        path: until now.
        proprio: (B, F, P) float, normalised, of the chunk.
        action: (B, K, A) float32, robot units, relative where the embodiment says so.
    """
    since = path[:, -1:, -action.shape[2] :]  # where the newest tick led
    led = torch.where(model.anchored > 0, action / model.proprio_std[model.anchor] + since, action)
    rows = torch.cat([proprio, led.to(proprio).reshape(*proprio.shape[:2], -1)], 2)
    return torch.cat([path, rows], 1)[:, -path.shape[1] :]


def straight(model: WorldActionModel, path: Tensor, now: Tensor) -> Tensor:
    """A path (B, T, P + S A) one chunk later, of which is known that it led to proprioception (B, P), and no more.

    The way there is taken to be straight, and reckoning starts anew where it ends.
    """
    frames, ticks, p = model.chunk_shapes["video"][0], _ticks(model), now.shape[1]
    share = torch.arange(1, frames * ticks + 1, device=now.device)[:, None] / (frames * ticks)
    before = path[:, -1:, :p]
    way = (before + share * (now[:, None] - before)).unflatten(1, (frames, ticks))
    rows = torch.cat([way[:, :, -1], _reckoned(model, way).flatten(2)], 2)
    return torch.cat([path, rows], 1)[:, -path.shape[1] :]


def _reckoned(model: WorldActionModel, proprio: Tensor) -> Tensor:
    """(..., A) reckoning that stands at proprioception (..., P); 0 for what is commanded otherwise."""
    return proprio[..., model.anchor] * model.anchored


def _ticks(model: WorldActionModel) -> int:
    return model.chunk_shapes["action"][0] // model.chunk_shapes["video"][0]
