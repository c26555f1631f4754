"""DreamZero's action and state registers: how a chunk of actions and the robot's state enter a Wan and leave it again.

One token per action and one for the state, with rotary positions of their own along one axis; the action's noise level
is mixed into its token. Widths are fixed by the checkpoint, so a robot's shorter vectors are filled up with zeros.

Source: DreamZero, arXiv:2602.15922; its released action head.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from pydantic import BaseModel, ConfigDict
from torch import Tensor, nn

from imagine.model.layers import TwoLinear, rotary_axis
from imagine.types import ShapeError


class RegisterConfig(BaseModel):
    """Widths of the registers of a checkpoint."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    action_dim: int = 32
    state_dim: int = 64
    hidden: int = 1024


class _ActionEncoder(nn.Module):
    """Three linear maps; the noise level joins after the first."""

    def __init__(self, action_dim: int, dim: int):
        super().__init__()
        self.w1 = nn.Linear(action_dim, dim)
        self.w2 = nn.Linear(2 * dim, dim)
        self.w3 = nn.Linear(dim, dim)

    def forward(self, action: Tensor, sigma: Tensor) -> Tensor:
        x = self.w1(action)
        level = level_waves(1000 * sigma, x.shape[-1]).to(x)[:, None].expand_as(x)
        return self.w3(F.silu(self.w2(torch.cat([x, level], -1))))


class ActionRegisters(nn.Module):
    """Actions and state to tokens, and the last hidden state of action tokens back to actions."""

    def __init__(self, cfg: RegisterConfig, dim: int):
        super().__init__()
        self.cfg = cfg
        self.action_encoder = _ActionEncoder(cfg.action_dim, dim)
        self.state_encoder = TwoLinear(cfg.state_dim, cfg.hidden, dim, "relu")
        self.action_decoder = TwoLinear(dim, cfg.hidden, cfg.action_dim, "relu")

    def tokens(self, action: Tensor, sigma: Tensor, state: Tensor) -> Tensor:
        """Normalised action (B, K, A), its noise level (B,) and state (B, P) to tokens (B, K + 1, D), state last.

        Raises:
            ShapeError: the robot has more numbers than the checkpoint has room for.
        """
        dtype = self.action_encoder.w1.weight.dtype
        actions = self.action_encoder(filled(action, self.cfg.action_dim, "action").to(dtype), sigma)
        states = self.state_encoder(filled(state, self.cfg.state_dim, "state").to(dtype))[:, None]
        return torch.cat([actions, states.to(actions)], 1)

    def actions(self, hidden: Tensor, width: int) -> Tensor:
        """Last hidden state (B, K, D) of the action tokens to predictions (B, K, width)."""
        return self.action_decoder(hidden)[..., :width]


def filled(x: Tensor, width: int, what: str) -> Tensor:
    """Zeros after the last number, (..., n) to (..., width)."""
    if x.shape[-1] > width:
        raise ShapeError(f"{what} has {x.shape[-1]} numbers, expected at most the checkpoint's {width}.")
    return F.pad(x, (0, width - x.shape[-1]))


def level_waves(timestep: Tensor, dim: int) -> Tensor:
    """[sin, cos] features of a timestep in [0, 1000], (B,) to (B, dim) float32; not Wan's [cos, sin]."""
    half = dim // 2
    angle = timestep.float()[:, None] * torch.exp(torch.arange(half, device=timestep.device) * -(math.log(1e4) / half))
    return torch.cat([angle.sin(), angle.cos()], -1)


def register_table(block: int, actions: int, head_dim: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """Rotary table of a chunk's actions and of its state, each (actions + 1, head_dim // 2) float32.

    Args:
        block: how many chunks came before, among those that are remembered.
        actions: K.
        head_dim: channels per head.
        device: where.
    """
    order = torch.arange(block * actions, (block + 1) * actions, device=device)
    return rotary_axis(torch.cat([order, torch.full((1,), block, device=device)]), head_dim)
