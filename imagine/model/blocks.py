"""The block of a JointDiT and what conditions it: Wan's, with noise levels per group of tokens."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import Any, Literal

import torch
import torch.nn.functional as F
from pydantic import AliasChoices, BaseModel, ConfigDict, Field
from torch import Tensor, nn

from imagine.model.action_registers import RegisterConfig
from imagine.model.decoder import DecoderConfig
from imagine.model.layers import Attention, FeedForward, ImageEmbedder, TwoLinear, rotate, sinusoid

KeysValues = tuple[Tensor, Tensor]


class DiTConfig(BaseModel):
    """Shape of a JointDiT; defaults are the shipped tiny one, ``imagine.wan.inspect`` reads those of a Wan."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    layers: int = 6
    heads: int = 4
    head_dim: int = 64
    ffn_dim: int = 1024
    patch: tuple[int, int, int] = (2, 2, 2)
    channels: int = 8  # latent channels, in and out
    text_dim: int = 128
    freq_dim: int = 256
    action_dim: int = 0  # 0: no action tokens
    action_patch: int = 6  # actions per token
    proprio_dim: int = 0  # 0: no proprioception tokens
    registers: RegisterConfig | None = None  # DreamZero's, instead of our own action and proprioception tokens
    see_last_frame: bool = True  # concatenate the newest observed frame to the noisy channels
    condition_channels: int = 0  # of a given condition, concatenated likewise; Wan I2V: mask and first frame
    image_dim: int = 0  # of image tokens that every block looks at beside the instruction; Wan I2V: CLIP's
    pooled_text: bool = True
    place_frequencies: int = 0  # per axis, of a video token's time, row and column; 0: place only through attention
    action_frequencies: int = 0  # per dimension, of where an action leads; 0: actions enter as they are
    steer_tokens: int = 0  # action tokens per temporal patch, modulating its video; 0: none; set from the embodiment
    decoder: DecoderConfig = Field(
        default=DecoderConfig(),
        validation_alias=AliasChoices("decoder", "painter"),  # its name in version 0.1
    )
    prediction: Literal["clean", "velocity"] = "clean"  # clean: the change against the newest observation
    blank: tuple[int, int, int, int] | None = None  # top, left, bottom, right in patches: never computed, never read
    block: int = 1  # temporal patches per observed block; the first frame alone is one too if ``first_alone``
    first_alone: bool = False
    max_context_blocks: int = 8
    sink_blocks: int = 0  # oldest blocks that are never forgotten
    parity: Literal["clean", "dreamzero"] = "clean"  # dreamzero: the state looks at everything, as nowhere in training
    eps: float = 1e-6

    @property
    def dim(self) -> int:
        """Width D."""
        return self.heads * self.head_dim


class Embedder(nn.Module):
    """Time and text into the width of the network (Wan's condition_embedder)."""

    def __init__(self, cfg: DiTConfig):
        super().__init__()
        self.freq_dim = cfg.freq_dim
        self.time_embedder = TwoLinear(cfg.freq_dim, cfg.dim, cfg.dim, "silu")
        self.time_proj = nn.Linear(cfg.dim, 6 * cfg.dim)
        self.text_embedder = TwoLinear(cfg.text_dim, cfg.dim, cfg.dim, "gelu")
        self.pooled_text = nn.Linear(cfg.dim, cfg.dim) if cfg.pooled_text else None
        self.image_embedder = ImageEmbedder(cfg.image_dim, cfg.dim) if cfg.image_dim else None

    def time(self, sigma: Tensor, pooled: Tensor | None, steer: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Noise levels (B, G), and what else steers each group (B, G, D), to (B, G, D) and six modulations of it."""
        emb = self.time_embedder(sinusoid(1000 * sigma, self.freq_dim)).to(self.time_proj.weight.dtype)
        if self.pooled_text is not None and pooled is not None:
            emb = emb + self.pooled_text(pooled)[:, None]
        if steer is not None:
            emb = emb + steer
        return emb, self.time_proj(F.silu(emb)).unflatten(-1, (6, -1)).float()


def per_group(x: Tensor, sizes: list[int]) -> Tensor:
    """(B, G, D) to (B, N, D): group g's row for each of its sizes[g] tokens; broadcastable when there is one group."""
    if len(sizes) == 1:
        return x
    return torch.cat([x[:, g : g + 1].expand(-1, n, -1) for g, n in enumerate(sizes)], 1)


def modulated(do: Callable[..., Tensor], sizes: list[int], *x: Tensor, by: tuple[Tensor, ...]) -> Tensor:
    """``do`` to tokens (B, N, D), group by group, with that group's row (B, 1, D) of each of ``by`` (B, G, D).

    As :func:`per_group` would do it, without ever writing a row once for each of its tokens.
    """
    if len(sizes) == 1:
        return do(*x, *by)
    groups = enumerate(zip(*(each.split(sizes, 1) for each in x), strict=True))
    return torch.cat([do(*parts, *(row[:, g : g + 1] for row in by)) for g, parts in groups], 1)


class Block(nn.Module):
    """Wan's block: modulated self-attention, cross-attention to the instruction, modulated feed-forward."""

    def __init__(self, cfg: DiTConfig):
        super().__init__()
        self.dim, self.eps = cfg.dim, cfg.eps
        self.attn1 = Attention(cfg.dim, cfg.heads, cfg.eps)
        self.attn2 = Attention(cfg.dim, cfg.heads, cfg.eps, image=cfg.image_dim > 0)
        self.norm2 = nn.LayerNorm(cfg.dim, cfg.eps)
        self.ffn = FeedForward(cfg.dim, cfg.ffn_dim)
        self.scale_shift_table = nn.Parameter(torch.randn(1, 6, cfg.dim) / cfg.dim**0.5)

    def _norm(self, x: Tensor, sizes: list[int], shift: Tensor, scale: Tensor) -> Tensor:
        def move(part: Tensor, shift: Tensor, scale: Tensor) -> Tensor:
            return torch.addcmul(shift, part, 1 + scale).type_as(x)

        return modulated(move, sizes, F.layer_norm(x.float(), (self.dim,), eps=self.eps), by=(shift, scale))

    @staticmethod
    def _add(x: Tensor, change: Tensor, sizes: list[int], gate: Tensor) -> Tensor:
        return modulated(torch.addcmul, sizes, x, change.type_as(x), by=(gate.type_as(x),))

    def forward(
        self,
        x: Tensor,
        mod: Tensor,
        sizes: list[int],
        table: KeysValues,
        text: KeysValues,
        past: Callable[[Tensor, Tensor], KeysValues],
        image: KeysValues | None = None,
        alone: int = 0,
        last: int | None = None,
    ) -> tuple[Tensor, Tensor, Tensor]:
        """One block.

        Args:
            x: (B, N, D) residual stream.
            mod: (B, G, 6, D) modulation per noise level.
            sizes: tokens per noise level, adding up to N.
            table: rotary table of the N tokens.
            text: keys and values of the instruction.
            past: puts those of observed frames before the block's own (rotated) keys and values.
            image: keys and values of image tokens, or None.
            alone: so many of the last tokens see themselves alone; others see them all the same.
            last: so many of the last tokens go on, all of one noise level, the others only lend their keys and values;
                None is all. For a last block, of whose answer not everything is wanted.

        Returns:
            The new stream (B, N or ``last``, D), and the block's own keys, not rotated, and values, each
            (B, N, heads, d).
        """
        rows = (self.scale_shift_table.float()[:, None] + mod).unbind(2)
        shift1, scale1, gate1, shift2, scale2, gate2 = rows
        h = self._norm(x, sizes, shift1, scale1)
        key, value = self.attn1.keys_values(h)
        many = x.shape[1] - alone
        turned = rotate(key, table)
        if last is not None:
            begin = x.shape[1] - last
            x, h, sizes, table = x[:, begin:], h[:, begin:], [last], (table[0][begin:], table[1][begin:])
            gate1, shift2, scale2, gate2 = (row[:, -1:] for row in (gate1, shift2, scale2, gate2))
        if not x.shape[1]:
            return x, key, value
        queries = self.attn1.queries(h, table)[:, : x.shape[1] - alone]
        seen = self.attn1.out(queries, *past(turned, value), alone=value[:, many:])
        x = self._add(x, seen, sizes, gate1)
        h = self.norm2(x.to(self.norm2.weight.dtype)).type_as(x)
        x = x + self.attn2.out(self.attn2.queries(h), *text, image=image).type_as(x)
        h = self._norm(x, sizes, shift2, scale2)
        return self._add(x, self.ffn(h), sizes, gate2), key, value


def compile_blocks(dit: Any) -> None:
    """Fuse each block of a ``JointDiT`` with torch.compile; needs a C++ compiler on a CPU."""
    for block in dit.blocks:
        block.compile(dynamic=False)


def packed_weights(device: torch.device) -> AbstractContextManager[Any]:
    """Where compiled modules may pack their weights for the processor, once, since these never change again.

    Only without gradients, and on a CPU: elsewhere it would be a second copy of the weights. This has to be said while
    modules are traced; among the options of ``compile`` it would come too late.
    """
    if device.type != "cpu":
        return nullcontext()
    from torch._inductor import config

    return config.patch(freezing=True)  # type: ignore[no-any-return, no-untyped-call]
