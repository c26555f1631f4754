"""Robot units and the normalised units of a model, and what relative actions are relative to."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from imagine.embodiment import Embodiment
from imagine.model.action_registers import filled
from imagine.model.config import Statistics
from imagine.types import Chunk, Context


class RobotUnits(nn.Module):
    """Statistics of a robot's proprioception and actions as buffers, and the conversions that follow from them.

    Attributes:
        body: the embodiment.
        chunk_shapes: per modality, the shape of one chunk; set by the model.
        anchor: (A,) int64, the index in proprioception that each action dimension is relative to, 0 where to none.
        anchored: (A,) float, 1 where it is relative, else 0.
    """

    chunk_shapes: dict[str, tuple[int, ...]]
    proprio_mean: Tensor
    proprio_std: Tensor
    action_mean: Tensor
    action_std: Tensor
    anchor: Tensor
    anchored: Tensor

    def __init__(self, body: Embodiment, statistics: Statistics):
        super().__init__()
        self.body = body
        for name in ("proprio_mean", "proprio_std", "action_mean", "action_std"):
            self.register_buffer(name, torch.tensor(getattr(statistics, name)), persistent=False)
        anchors = body.anchors_in_proprio()
        self.register_buffer("anchor", torch.tensor([max(i, 0) for i in anchors]), persistent=False)
        self.register_buffer("anchored", torch.tensor([float(i >= 0) for i in anchors]), persistent=False)

    def _apply(self, fn: Any, recurse: bool = True) -> RobotUnits:
        """As of any module, but units keep their precision: a robot is not to be commanded in bfloat16."""
        exact = dict(self.named_buffers(recurse=False))
        super()._apply(fn, recurse)
        for name, value in exact.items():
            setattr(self, name, value.to(getattr(self, name).device))
        return self

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return self.proprio_mean.device

    def normalise_proprio(self, proprio: Tensor) -> Tensor:
        """(..., P) robot units to zero mean, unit variance."""
        return (proprio - self.proprio_mean) / self.proprio_std

    def restore_proprio(self, proprio: Tensor) -> Tensor:
        """Inverse of :meth:`normalise_proprio`."""
        return proprio * self.proprio_std + self.proprio_mean

    def normalise_action(self, action: Tensor) -> Tensor:
        """(..., A) robot units (relative to the chunk's first state) to zero mean, unit variance.

        Zeros follow up to the width of the transformer's registers, if it has any.
        """
        return filled((action - self.action_mean) / self.action_std, self.chunk_shapes["action"][1], "action")

    def restore_action(self, action: Tensor) -> Tensor:
        """Inverse of :meth:`normalise_action`, clipped to the embodiment's bounds."""
        action = action[..., : self.body.action_dim]
        low, high = (torch.from_numpy(x).to(action) for x in (self.body.action_low, self.body.action_high))
        return torch.minimum(torch.maximum(action * self.action_std + self.action_mean, low), high)

    def displacements(self, action: Tensor) -> Tensor:
        """(B, K, A) robot units, with actions per tick added up: each tick then says how far the chunk has led."""
        per_tick = torch.as_tensor(self.body.is_per_tick, device=action.device)
        return torch.where(per_tick, action.cumsum(1), action)

    def integrate_proprio(self, context: Context, chunk: Chunk) -> Tensor:
        """Proprioception (B, F, P), normalised, of an imagined chunk: predicted, or else where the actions lead.

        Args:
            context: what the chunk follows.
            chunk: with ``proprio`` or, for models that never predict it, with the action that was carried out.
        """
        if chunk.proprio is not None:
            return chunk.proprio
        assert chunk.action is not None
        frames, now = self.chunk_shapes["video"][0], self.restore_proprio(context.proprio[:, -1])
        ends = torch.arange(1, frames + 1, device=now.device) * (chunk.action.shape[1] // frames) - 1
        action = self.displacements(self.restore_action(chunk.action))[:, ends]
        reached = now[:, None].repeat(1, frames, 1)
        for column, (at, difference) in enumerate(self.body.commanded_in_proprio()):
            if at >= 0:
                reached[..., at] = action[..., column] + (now[:, at, None] if difference else 0)
        turned = torch.as_tensor(self.body.proprio_wraps, device=now.device) & (reached.abs() > torch.pi)
        reached = torch.where(turned, torch.pi - (torch.pi - reached) % (2 * torch.pi), reached)
        return self.normalise_proprio(reached)

    def origin(self, proprio: Tensor) -> Tensor:
        """Where a zero action leads, (B, A) in normalised action units, for the newest proprioception (B, P)."""
        scale = self.proprio_std[self.anchor] / self.action_std  # both centred on the mean pose
        return proprio[:, self.anchor] * scale * self.anchored
