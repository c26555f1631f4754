"""Pixels to latents and back: a small convolutional autoencoder per frame, normalised to unit variance.

Each canvas is coded on its own, so one observed frame is enough to start a dream.
"""

from __future__ import annotations

from itertools import pairwise

import torch
import torch.nn.functional as F
from pydantic import BaseModel, ConfigDict
from torch import Tensor, nn

from imagine.types import ShapeError


class CodecConfig(BaseModel):
    """Shape of a FrameCodec."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    channels: int = 8  # latent channels C
    widths: tuple[int, int] | tuple[int, int, int] = (
        32,
        64,
        96,
    )  # at 1/2, 1/4 and, if there are three, 1/8 of the size

    @property
    def factor(self) -> int:
        """Pixels per latent cell along each side: 4 or 8."""
        return int(2 ** len(self.widths))

    @property
    def temporal(self) -> int:
        """Frames per latent frame."""
        return 1


class _Residual(nn.Module):
    def __init__(self, width: int):
        super().__init__()
        self.norm = nn.GroupNorm(8, width)
        self.first = nn.Conv2d(width, width, 3, padding=1)
        self.second = nn.Conv2d(width, width, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.second(F.silu(self.first(F.silu(self.norm(x)))))


class FrameCodec(nn.Module):
    """(N, H, W, 3) uint8 to (N, C, H/f, W/f) latents of zero mean and unit variance per channel, and back.

    f is ``cfg.factor``; at 4 a block of 5 pixels still is a cell of its own.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, cfg: CodecConfig):
        super().__init__()
        self.cfg = cfg
        first, *inner = cfg.widths
        down: list[nn.Module] = [nn.PixelUnshuffle(2), nn.Conv2d(12, first, 3, padding=1)]
        up: list[nn.Module] = [nn.Conv2d(cfg.channels, cfg.widths[-1], 3, padding=1)]
        for i, (wide, wider) in enumerate(pairwise(cfg.widths)):
            deepest = i == len(inner) - 1
            down += [nn.SiLU(), nn.Conv2d(wide, wider, 4, 2, 1), *[_Residual(wider) for _ in range(1 + deepest)]]
        for i, (wider, wide) in enumerate(pairwise(reversed(cfg.widths))):
            up += [_Residual(wider), _Residual(wider), *([nn.SiLU()] if i else []), nn.Conv2d(wider, wide * 4, 1)]
            up.append(nn.PixelShuffle(2))
        ending = [nn.Conv2d(first, first, 3, padding=1), nn.SiLU(), nn.Conv2d(first, 12, 3, padding=1)]
        self.encoder = nn.Sequential(*down, nn.Conv2d(cfg.widths[-1], cfg.channels, 1))
        self.decoder = nn.Sequential(*up, *ending, nn.PixelShuffle(2))
        self.register_buffer("mean", torch.zeros(cfg.channels))
        self.register_buffer("std", torch.ones(cfg.channels))

    @property
    def _dtype(self) -> torch.dtype:
        return self.std.dtype

    def encode_raw(self, canvas: Tensor) -> Tensor:
        """uint8 canvases to latents before normalisation."""
        if canvas.dtype != torch.uint8 or canvas.ndim != 4 or canvas.shape[-1] != 3:
            raise ShapeError(f"codec got {canvas.dtype} {tuple(canvas.shape)}, expected uint8 (N, H, W, 3).")
        if canvas.shape[1] % self.cfg.factor or canvas.shape[2] % self.cfg.factor:
            raise ShapeError(f"canvas is {tuple(canvas.shape[1:3])}, expected multiples of {self.cfg.factor} pixels.")
        return self.encoder((canvas.permute(0, 3, 1, 2).float() / 127.5 - 1).to(self._dtype))

    def encode(self, canvas: Tensor) -> Tensor:
        """(N, H, W, 3) uint8 to (N, C, h, w) float32, zero mean and unit variance over the training frames."""
        return ((self.encode_raw(canvas) - self.mean[:, None, None]) / self.std[:, None, None]).float()

    def decode_raw(self, latents: Tensor) -> Tensor:
        """Unnormalised latents to (N, 3, H, W) float in about [-1, 1]."""
        return self.decoder(latents.to(self._dtype))

    def decode(self, latents: Tensor) -> Tensor:
        """(N, C, h, w) float latents to (N, H, W, 3) uint8."""
        x = self.decode_raw(latents * self.std[:, None, None] + self.mean[:, None, None])
        return ((x.float().clamp(-1, 1) + 1) * 127.5).round().to(torch.uint8).permute(0, 2, 3, 1)
