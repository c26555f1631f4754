"""Video decoder: a few convolutions at latent resolution that turn the transformer's tokens into sharp frames.

A small transformer whose tokens are wide patches knows where the arm goes long before it can draw it there;
convolutions modulated by the commanded motion learn that soon. An option of
:class:`imagine.model.dit.JointDiT`, off for Wan.

Source: residual blocks with feature-wise modulation as in DIAMOND's world model (arXiv:2405.12399).
"""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
import torch.nn.functional as F
from pydantic import BaseModel, ConfigDict
from torch import Tensor, nn

from imagine.model.layers import waves
from imagine.noise import expand
from imagine.types import ShapeError

GROUPS, OCTAVES = 8, 4


class DecoderConfig(BaseModel):
    """Shape of a VideoDecoder; ``blocks`` 0: one linear map to the video instead."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    blocks: int = 0
    width: int = 144  # channels, a multiple of 8 and, without memory, of frames
    frames: int = 4  # frames per chunk, decoded all at once; set from the dataset's embodiment
    memory: int = 0  # channels of the scene's memory; 0: a VideoDecoder, which remembers nothing, of version 0.1
    reach: int = 2  # cells that memory and picture may move by in one temporal patch


class _Block(nn.Module):
    def __init__(self, width: int, condition: int):
        super().__init__()
        self.norm1, self.conv1 = nn.GroupNorm(GROUPS, width), nn.Conv2d(width, width, 3, padding=1)
        self.norm2, self.conv2 = nn.GroupNorm(GROUPS, width), nn.Conv2d(width, width, 3, padding=1)
        self.modulate = nn.Linear(condition, 2 * width)

    def forward(self, x: Tensor, condition: Tensor) -> Tensor:
        scale, shift = self.modulate(condition)[:, :, None, None].chunk(2, 1)
        h = self.conv1(F.silu(self.norm1(x)))
        return x + self.conv2(F.silu(torch.addcmul(shift, self.norm2(h), 1 + scale)))


class VideoDecoder(nn.Module):
    """A chunk's video from the transformer's tokens, the newest frame and a condition per temporal patch."""

    def __init__(self, cfg: DecoderConfig, channels: int, dim: int, patch: tuple[int, int, int]):
        super().__init__()
        pt, ph, pw = self.patch = patch
        if cfg.width % GROUPS or cfg.width % cfg.frames or cfg.frames % pt:
            raise ShapeError(
                f"decoder has width {cfg.width} for chunks of {cfg.frames} frames in patches of {pt}, expected a width "
                f"that {GROUPS} and {cfg.frames} divide, and frames that {pt} divides; change dit.decoder.width."
            )
        blocks = cfg.frames // pt
        self.per_frame = cfg.width // cfg.frames
        self.condition = nn.Sequential(nn.SiLU(), nn.Linear(blocks * dim, dim), nn.SiLU())
        self.features = nn.Linear(dim, self.per_frame * pt * ph * pw)
        self.enter = nn.Conv2d((cfg.frames + 1) * channels + 4 * OCTAVES, cfg.width, 3, padding=1)
        self.blocks = nn.ModuleList([_Block(cfg.width, dim) for _ in range(cfg.blocks)])
        self.leave = nn.Conv2d(cfg.width, cfg.frames * channels, 3, padding=1)

    def forward(self, noisy: Tensor, sigma: Tensor, last: Tensor, tokens: Tensor | None, condition: Tensor) -> Tensor:
        """Decode.

        Args:
            noisy: (B, F, C, h, w) video latents at their noise level.
            sigma: (B,) that level. Pure noise is not looked at at all, else it first had to learn to ignore it.
            last: (B, C, h, w) newest observed latents.
            tokens: (B, N, D) the transformer's normalised video tokens, time by row by column, or None.
            condition: (B, F / pt, D) embedding of each temporal patch's noise level, instruction and action.

        Returns:
            (B, F, C, h, w).
        """
        b, f, c, h, w = noisy.shape
        pt, ph, pw = self.patch
        row, column = (torch.arange(n, device=noisy.device) / (2 * n) for n in (h, w))
        place = waves(torch.stack(torch.meshgrid(row, column, indexing="ij"), -1), OCTAVES).permute(2, 0, 1)
        clear = noisy * expand(1 - sigma, noisy)
        seen = torch.cat([clear.flatten(1, 2).to(noisy), last.to(noisy), place.to(noisy).expand(b, -1, -1, -1)], 1)
        x = self.enter(seen.contiguous(memory_format=torch.channels_last))
        if tokens is not None:
            t = self.features(tokens).view(b, f // pt, h // ph, w // pw, pt, ph, pw, self.per_frame)
            x = x + t.permute(0, 1, 4, 7, 2, 5, 3, 6).reshape(b, f * self.per_frame, h, w)
        e = self.condition(condition.flatten(1))
        for block in self.blocks:
            x = block(x, e)
        return self.leave(F.silu(x)).reshape(b, f, c, h, w)


@contextmanager
def without_tokens(model: Any) -> Iterator[None]:
    """An ablation: within this context the decoder of a model gets zeros in place of the transformer's tokens.

    What the video loses by it is what the transformer contributes to it.

    Args:
        model: a :class:`imagine.model.model.WorldActionModel` whose ``dit.decoder`` takes ``tokens``.

    Raises:
        ShapeError: it has no such decoder.
    """
    decoder = getattr(model.dit, "decoder", None)
    if decoder is None or "tokens" not in inspect.signature(decoder.forward).parameters:
        raise ShapeError("the model has no decoder that takes tokens; the video is its transformer's own.")
    signature = inspect.signature(decoder.forward)

    def ablate(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[tuple[Any, ...], dict[str, Any]]:
        given = signature.bind(*args, **kwargs)
        tokens = given.arguments.get("tokens")
        if tokens is not None:
            given.arguments["tokens"] = torch.zeros_like(tokens)
        return given.args, given.kwargs

    hook = decoder.register_forward_pre_hook(ablate, with_kwargs=True)
    try:
        yield
    finally:
        hook.remove()
