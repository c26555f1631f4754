"""How a robot moved since its episode began, as a judge is shown it: :attr:`imagine.types.Clip.trajectory`.

Imagined proprioception drifts from where the actions lead, by a centimetre or two after a few chunks at the table;
where the actions lead knows nothing of obstacles. So a row of a trajectory, one per frame, holds both: proprioception
(P numbers, normalised), and dead reckoning at each of the S ticks since the frame before (S A numbers, oldest first).
Actions that are differences (relative to the state, or per tick) are added up from the first frame on, in the units of
the proprioception that they are relative to; absolute ones are as commanded.
"""

from __future__ import annotations

import torch
from torch import Tensor

from imagine.model.model import WorldActionModel

TRAJECTORY_CHUNKS = 4
"""Chunks that a trajectory goes back; in front of them stands one frame more."""


def initial(model: WorldActionModel, proprio: Tensor) -> Tensor:
    """The trajectory (B, T, P + S A) of episodes that begin at ``proprio`` (B, P), normalised: that frame repeated."""
    frames = model.chunk_shapes["video"][0]
    still = _reckoned(model, proprio)[:, None].expand(-1, _ticks(model), -1)
    return torch.cat([proprio, still.flatten(1)], 1)[:, None].expand(-1, 1 + TRAJECTORY_CHUNKS * frames, -1)


def extend(model: WorldActionModel, trajectory: Tensor, proprio: Tensor, action: Tensor) -> Tensor:
    """A trajectory one chunk later.

    Args:
        model: knows the units.
        trajectory: (B, T, P + S A) float, until now.
        proprio: (B, F, P) float, normalised, of the chunk.
        action: (B, K, A) float32, robot units, relative where the embodiment says so.

    Returns:
        Same shape and dtype as ``trajectory``.
    """
    since = trajectory[:, -1:, -action.shape[2] :]  # where the newest tick led
    moved = model.displacements(action) / torch.where(model.anchored > 0, model.proprio_std[model.anchor], 1.0)
    led = torch.where(torch.as_tensor(model.body.is_difference, device=action.device), moved + since, action)
    rows = torch.cat([proprio.to(trajectory), led.to(trajectory).reshape(*proprio.shape[:2], -1)], 2)
    return torch.cat([trajectory, rows], 1)[:, -trajectory.shape[1] :]


def interpolate(model: WorldActionModel, trajectory: Tensor, now: Tensor) -> Tensor:
    """A trajectory one chunk later, of which nothing is known but that it led to ``now`` (B, P), normalised.

    The robot is taken to have moved on a straight line, and reckoning starts anew at its end.
    """
    frames, ticks, p = model.chunk_shapes["video"][0], _ticks(model), now.shape[1]
    share = torch.arange(1, frames * ticks + 1, device=now.device)[:, None] / (frames * ticks)
    before = trajectory[:, -1:, :p]
    line = (before + share * (now[:, None] - before)).unflatten(1, (frames, ticks))
    rows = torch.cat([line[:, :, -1], _reckoned(model, line).flatten(2)], 2)
    return torch.cat([trajectory, rows], 1)[:, -trajectory.shape[1] :]


def _reckoned(model: WorldActionModel, proprio: Tensor) -> Tensor:
    """(..., A) reckoning that stands at proprioception (..., P); 0 for what is commanded otherwise."""
    return proprio[..., model.anchor] * model.anchored


def _ticks(model: WorldActionModel) -> int:
    return model.chunk_shapes["action"][0] // model.chunk_shapes["video"][0]
