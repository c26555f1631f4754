"""Wan's video codec: a causal video autoencoder of diffusers behind encode, decode and condition."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from imagine.types import CheckpointMismatch, ShapeError


class Frozen(nn.Module):
    """A pretrained model that is only ever read."""

    def __init__(self, model: nn.Module):
        super().__init__()
        self.model: Any = model.requires_grad_(False).eval()

    def train(self, mode: bool = True) -> Frozen:
        """Stay in evaluation mode; T5's dropout would otherwise spoil every cached prompt."""
        return super().train(False)

    @property
    def _weight(self) -> Tensor:
        """Any weight; it tells device and precision."""
        return next(self.model.parameters())


class WanCodec(Frozen):
    """Video to latents and back: (N, 1 + 4n, H, W, 3) uint8 and (N, 1 + n, C, h, w), causal, the first frame alone.

    Attributes:
        temporal: frames per latent frame after the first.
        factor: pixels per latent cell along each side, 8 (Wan 2.1) or 16 (Wan 2.2).
        channels: C, 16 or 48.
        receptive: latent frames before its own that a decoded frame depends on.
    """

    temporal = 4

    def __init__(self, vae: nn.Module):
        """Wrap a diffusers ``AutoencoderKLWan``.

        Raises:
            CheckpointMismatch: it does not compress time four times, or lacks a mean and deviation per channel.
        """
        super().__init__(vae)
        cfg = self.model.config
        self.channels: int = cfg.z_dim
        self.factor: int = 2 ** (len(cfg.dim_mult) - 1) * (cfg.patch_size or 1)
        self.receptive = _receptive(cfg.num_res_blocks, cfg.temperal_downsample[::-1])
        if 2 ** sum(cfg.temperal_downsample) != self.temporal:
            raise CheckpointMismatch(f"codec halves time at {cfg.temperal_downsample}, expected twice (4 to 1).")
        if not len(cfg.latents_mean) == len(cfg.latents_std) == self.channels:
            raise CheckpointMismatch(
                f"codec has {self.channels} latent channels, but {len(cfg.latents_mean)} means and "
                f"{len(cfg.latents_std)} deviations; give latents_mean and latents_std."
            )
        self.model.use_slicing = True  # one video at a time: less memory, and no video depends on what is beside it

    @torch.no_grad()
    def encode(self, canvas: Tensor) -> Tensor:
        """Video into latents, the mode of the posterior, of zero mean and unit variance over Wan's training videos.

        Args:
            canvas: (N, T, H, W, 3) uint8, T = 1 + 4n, sides multiples of ``factor``.

        Returns:
            (N, 1 + n, C, h, w) float32; each latent frame depends on no later frame of the video.

        Raises:
            ShapeError: any of that does not hold.
        """
        return self._latents(self._pixels(canvas))

    @torch.no_grad()
    def decode(self, latents: Tensor) -> Tensor:
        """(N, F, C, h, w) normalised latents to (N, 1 + 4 (F - 1), H, W, 3) uint8.

        Raises:
            ShapeError: another number of axes or channels, or no frame.
        """
        if latents.ndim != 5 or latents.shape[2] != self.channels or not latents.shape[1]:
            raise ShapeError(f"latents are {tuple(latents.shape)}, expected (N, 1 or more, {self.channels}, h, w).")
        mean, std = self._scale(latents.device)
        z = (latents.float() * std + mean).transpose(1, 2).to(self._weight.dtype)
        return _bytes(self.model.decode(z).sample.movedim(1, -1))

    def decode_after(self, previous: Tensor, new: Tensor, memory: int | None = None) -> Tensor:
        """Continue a video: what ``new`` shows, decoded with the latents before it.

        Args:
            previous: (N, P, C, h, w), from the start of the video; P = 0 if ``new`` is its start.
            new: (N, F, C, h, w).
            memory: how many of ``previous`` to look at. None is ``receptive``, which is exact, as decoding the whole
                video at once. Fewer is cheaper in proportion, and wrong until measured on the weights at hand: random
                ones (tests/test_wan_encoders.py) are off by 25 to 39 grey levels of 255, root mean square, with 4 of 31
                latent frames, and by 0.3 to 1.5 with 16.

        Returns:
            (N, 4 F, H, W, 3) uint8; 1 + 4 (F - 1) frames at the start of a video.

        Raises:
            ShapeError: the two do not fit together, or memory is less than one frame.
        """
        memory = self.receptive if memory is None else memory
        if previous.ndim != 5 or new.ndim != 5 or previous[:, :0].shape != new[:, :0].shape or memory < 1:
            raise ShapeError(
                f"cannot continue latents {tuple(previous.shape)} with {tuple(new.shape)} and a memory of {memory}; "
                "only their frames may differ, and at least one is remembered."
            )
        video = self.decode(torch.cat([previous[:, -memory:], new], 1))
        return video[:, -self.temporal * new.shape[1] :] if previous.shape[1] else video

    @torch.no_grad()
    def condition(self, first: Tensor, frames: int) -> Tensor:
        """Wan I2V's condition on a video: a mask, then the latents of its first frame followed by mid-grey.

        Args:
            first: (N, H, W, 3) uint8.
            frames: latent frames F of the video.

        Returns:
            (N, F, 4 + C, h, w) float32; the 4 mask channels are 1 in the first latent frame and 0 after it.

        Raises:
            ShapeError: not such a canvas, or no frame.

        Source: Wan, arXiv:2503.20314 §4.5 (image to video).
        """
        if frames < 1:
            raise ShapeError(f"condition is of {frames} latent frames, expected 1 or more.")
        pixels = self._pixels(first.unsqueeze(1))
        grey = pixels.new_zeros(1).expand(*pixels.shape[:2], self.temporal * (frames - 1), *pixels.shape[3:])
        latents = self._latents(torch.cat([pixels, grey], 2))
        mask = torch.zeros_like(latents[:, :, :1]).repeat(1, 1, self.temporal, 1, 1)
        mask[:, 0] = 1
        return torch.cat([mask, latents], 2)

    def _pixels(self, canvas: Tensor) -> Tensor:
        """(N, T, H, W, 3) uint8 to (N, 3, T, H, W) in [-1, 1]."""
        if canvas.dtype != torch.uint8 or canvas.ndim != 5 or canvas.shape[-1] != 3:
            raise ShapeError(f"codec got {canvas.dtype} {tuple(canvas.shape)}, expected uint8 (N, T, H, W, 3).")
        t, height, width = canvas.shape[1:4]
        if t % self.temporal != 1:
            raise ShapeError(f"video has {t} frames, expected 1 + {self.temporal} n: 1, 5, 9, ….")
        if height % self.factor or width % self.factor:
            raise ShapeError(f"canvas is {(height, width)}, expected multiples of {self.factor} pixels.")
        canvas = canvas.to(self._weight.device).permute(0, 4, 1, 2, 3)
        return (canvas.float() / 127.5 - 1).to(self._weight.dtype)

    def _latents(self, pixels: Tensor) -> Tensor:
        mean, std = self._scale(pixels.device)
        return (self.model.encode(pixels).latent_dist.mode().float().transpose(1, 2) - mean) / std

    def _scale(self, device: torch.device) -> tuple[Tensor, Tensor]:
        """Mean and deviation, (C, 1, 1) float32; no buffers, which half precision would round."""
        cfg = self.model.config
        mean, std = torch.tensor([cfg.latents_mean, cfg.latents_std], device=device)[:, :, None, None]
        return mean, std


def _receptive(blocks: int, doubling: Sequence[bool]) -> int:
    """Latent frames before its own that a decoded frame depends on, counted from the video back to the latents.

    Every convolution over time looks at the two frames before its own. 39 for Wan's decoders.
    """
    reach = 2  # the last convolution
    for doubles in reversed([*doubling, False]):  # levels; the last one has no resampling behind it
        reach = -(-reach // 2) + 2 if doubles else reach
        reach += 4 * (blocks + 1)
    # the middle's two residual blocks, the first convolution, and the frame that a video's start decodes differently
    return reach + 8 + 2 + 1


def _bytes(picture: Tensor) -> Tensor:
    """[-1, 1] to uint8."""
    return ((picture.float().clamp(-1, 1) + 1) * 127.5).round().to(torch.uint8)
