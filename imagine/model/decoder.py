"""Video decoder: draws a chunk from the transformer's tokens on a scene that stays unless something changes it.

The decoder carries a *memory* at latent resolution from chunk to chunk. At every temporal patch each part of it is
moved by a few cells at most (a softmax over shifts, one per group of channels) and then overwritten through a gate that
is biased to keep. What a hand covers therefore costs nothing to remember, and what is pushed is carried along instead
of being drawn anew. Pictures are made in the same way from the frame before. Of the actions and of the instruction the
decoder knows what the transformer's tokens say, and nothing else: without them nothing is moved where it should be. An
option of :class:`imagine.model.dit.JointDiT`, off for Wan.

Source: moving what is there instead of drawing it, Finn et al. (2016), arXiv:1605.07157; skip connections in time keep
objects through occlusion, Ebert et al. (2017), arXiv:1710.05268; gated recurrence at image resolution, Ballas et al.
(2015), arXiv:1511.06432.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
import torch.nn.functional as F
from pydantic import BaseModel, ConfigDict, model_validator
from torch import Tensor, nn

from imagine.model.layers import waves
from imagine.noise import expand
from imagine.types import ShapeError

GROUPS, OCTAVES = 8, 4
HEADS = 4
"""Groups of memory channels that move independently: what is covered stays while what covers it goes."""
STAY = 6.0
"""Initial preference for not moving, as a logit against each of the other shifts."""
KEEP = 3.0
"""Initial preference for keeping, as a logit against overwriting."""


class DecoderConfig(BaseModel):
    """Shape of a SceneDecoder; ``blocks`` 0: one linear map to the video instead."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    blocks: int = 0
    width: int = 64  # channels, a multiple of 8
    memory: int = 0  # channels of the scene's memory, a multiple of 4; above 0 just where blocks are
    reach: int = 2  # cells that memory and picture may move by in one temporal patch

    @model_validator(mode="before")
    @classmethod
    def _not_frames(cls, given: Any) -> Any:
        """Files of earlier versions say of how many ``frames`` a chunk is."""
        return {k: v for k, v in given.items() if k != "frames"} if isinstance(given, Mapping) else given

    @model_validator(mode="after")
    def _remembers(self) -> DecoderConfig:
        if bool(self.blocks) != bool(self.memory):
            raise ValueError(
                f"blocks is {self.blocks} and memory is {self.memory}, expected both or neither above 0; a decoder "
                "without memory is of version 0.1: train the model anew, or use that version"
            )
        return self


class _Residual(nn.Module):
    def __init__(self, width: int):
        super().__init__()
        self.norm1, self.conv1 = nn.GroupNorm(GROUPS, width), nn.Conv2d(width, width, 3, padding=1)
        self.norm2, self.conv2 = nn.GroupNorm(GROUPS, width), nn.Conv2d(width, width, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.conv2(F.silu(self.norm2(self.conv1(F.silu(self.norm1(x))))))


class SceneDecoder(nn.Module):
    """A chunk's video, and the scene's memory after it, from the transformer's tokens and the memory before it."""

    def __init__(self, cfg: DecoderConfig, channels: int, dim: int, patch: tuple[int, int, int]):
        super().__init__()
        pt, ph, pw = self.patch = patch
        if cfg.width % GROUPS or cfg.memory % HEADS or ph % 2 or pw % 2:
            raise ShapeError(
                f"decoder has width {cfg.width} and memory {cfg.memory} over patches of {ph} x {pw} cells, expected "
                f"multiples of {GROUPS}, of {HEADS} and of 2; change dit.decoder or dit.patch."
            )
        width, memory = cfg.width, cfg.memory
        self.channels, self.memory, self.reach = channels, memory, cfg.reach
        shifts = (2 * cfg.reach + 1) ** 2
        self.open = nn.Sequential(
            nn.Conv2d(channels + 4 * OCTAVES, width, 3, padding=1), nn.SiLU(), nn.Conv2d(width, memory, 3, padding=1)
        )
        self.features = nn.Linear(dim, width * ph * pw)
        self.enter = nn.Conv2d(memory + (1 + pt) * channels + 4 * OCTAVES, width, 3, padding=1)
        self.fine = _Residual(width)
        self.down = nn.Conv2d(width, 2 * width, 4, 2, 1)
        self.blocks = nn.ModuleList([_Residual(2 * width) for _ in range(cfg.blocks)])
        self.up = nn.Sequential(nn.Conv2d(2 * width, 4 * width, 1), nn.PixelShuffle(2))
        self.last = _Residual(width)
        self.motion = nn.Conv2d(width, (HEADS + pt) * shifts, 1)
        self.write = nn.Conv2d(width, 2 * memory, 3, padding=1)
        self.draw = nn.Conv2d(width + memory, 2 * pt * channels, 3, padding=1)

    def initialise(self) -> None:
        """Begin as a decoder that changes nothing."""
        assert self.motion.bias is not None and self.write.bias is not None and self.draw.bias is not None
        for still in (self.motion.weight, self.motion.bias, self.write.bias, self.draw.weight, self.draw.bias):
            nn.init.zeros_(still)
        with torch.no_grad():
            shifts = (2 * self.reach + 1) ** 2
            self.motion.bias.view(-1, shifts)[:, shifts // 2] = STAY
            self.write.bias[: self.memory] = -KEEP
            self.draw.bias[: self.patch[0] * self.channels] = -KEEP

    def begin(self, last: Tensor) -> Tensor:
        """The memory (B, M, h, w) float32 of a scene of which one frame (B, C, h, w) has been seen."""
        last = last.to(self.enter.weight.dtype)
        return self.open(torch.cat([last, _places(last)], 1)).float()

    def forward(
        self, noisy: Tensor, sigma: Tensor, last: Tensor, tokens: Tensor | None, memory: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Draw a chunk.

        Args:
            noisy: (B, F, C, h, w) video latents at their noise level; pure noise is not looked at at all.
            sigma: (B,) that level.
            last: (B, C, h, w) newest observed latents.
            tokens: (B, N, D) the transformer's normalised video tokens, time by row by column; None: as if they said
                nothing.
            memory: (B, M, h, w) the scene before the chunk.

        Returns:
            (B, F, C, h, w) clean video, and the memory (B, M, h, w) float32 after it.
        """
        b, f, _, h, w = noisy.shape
        pt, ph, pw = self.patch
        last = last.to(self.enter.weight.dtype)
        clear, place = noisy * expand(1 - sigma, noisy), _places(last)
        spread = last.new_zeros(b, f // pt, 1, h, w)
        if tokens is not None:
            said = self.features(tokens).view(b, f // pt, h // ph, w // pw, ph, pw, -1)
            spread = said.permute(0, 1, 6, 2, 4, 3, 5).reshape(b, f // pt, -1, h, w)
        frames: list[Tensor] = []
        for step in range(f // pt):
            seen = clear[:, step * pt : (step + 1) * pt].flatten(1, 2).to(last)
            x = self.enter(torch.cat([memory.to(last), last, seen, place], 1)) + spread[:, step]
            drawn, memory = self._advance(x, last, memory)
            frames.append(drawn)
            last = drawn[:, -1]
        return torch.cat(frames, 1), memory

    def _advance(self, x: Tensor, last: Tensor, memory: Tensor) -> tuple[Tensor, Tensor]:
        """One temporal patch: its frames (B, pt, C, h, w) and the memory after it."""
        pt = self.patch[0]
        x = self.fine(x)
        deep = self.down(x)
        for block in self.blocks:
            deep = block(deep)
        x = F.silu(self.last(x + self.up(deep)))
        weights = self.motion(x).float().unflatten(1, (HEADS + pt, -1)).softmax(2)
        gate, new = self.write(x).float().chunk(2, 1)
        moved = self._moved(memory, weights[:, :HEADS])
        memory = torch.lerp(moved, new, gate.sigmoid())
        gate, new = (
            part.unflatten(1, (pt, -1)) for part in self.draw(torch.cat([x, memory.to(x)], 1)).float().chunk(2, 1)
        )
        before = self._moved(last.float().repeat(1, pt, 1, 1), weights[:, HEADS:]).unflatten(1, (pt, -1))
        return torch.lerp(before, new, gate.sigmoid()).to(last), memory

    def _moved(self, x: Tensor, weights: Tensor) -> Tensor:
        """(B, n C, h, w), each of n groups of channels shifted as its weights (B, n, shifts, h, w) say."""
        (h, w), r = x.shape[2:], self.reach
        wide = F.pad(x, (r, r, r, r), mode="replicate").unflatten(1, (weights.shape[1], -1))
        moved = torch.zeros_like(wide[..., :h, :w])
        for k, weight in enumerate(weights.unbind(2)):
            i, j = divmod(k, 2 * r + 1)
            moved = torch.addcmul(moved, wide[..., i : i + h, j : j + w], weight[:, :, None])
        return moved.flatten(1, 2)


def _places(like: Tensor) -> Tensor:
    """(B, 4 OCTAVES, h, w): sinusoids of each cell's row and column."""
    row, column = (torch.arange(n, device=like.device) / (2 * n) for n in like.shape[2:])
    place = waves(torch.stack(torch.meshgrid(row, column, indexing="ij"), -1), OCTAVES).permute(2, 0, 1)
    return place.to(like).expand(len(like), -1, -1, -1)


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
