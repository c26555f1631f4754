"""The parts of a Wan block: attention with RMS-normalised queries and keys, rotary positions, time embedding.

Parameter names follow diffusers' ``WanTransformer3DModel``, so a Wan checkpoint in that layout loads without a map.
"""

from __future__ import annotations

import math
from functools import lru_cache

import torch
import torch.nn.functional as F
from torch import Tensor, nn

LORA_IN_BLOCKS = ("to_q", "to_k", "to_v", "to_out.0", "net.0.proj", "net.2")
"""Ends of the names of a block's layers that get an adapter: attention and feed-forward."""
LORA_IN_ALL = (
    *LORA_IN_BLOCKS,
    *("features", "enter", "conv1", "conv2", "down", "up.0", "motion", "write", "draw"),
)
"""The same of all of a model: also of the decoder, if any, but for how it begins a memory."""


def rotary_table(positions: Tensor, head_dim: int, theta: float = 10000.0) -> tuple[Tensor, Tensor]:
    """Cosines and sines of 3-D rotary positions.

    Args:
        positions: (N, 3) float: time, row, column.
        head_dim: channels per head; rows and columns get 2 * (head_dim // 6) each, time the rest, as in Wan.
        theta: base of the frequencies.

    Returns:
        cos, sin, each (N, head_dim // 2) float32.

    Source: RoFormer (arXiv:2104.09864), split over three axes as in Wan 2.1 (arXiv:2503.20314).
    """
    side = 2 * (head_dim // 6)
    axes = zip(positions.unbind(1), (head_dim - 2 * side, side, side), strict=True)
    cos, sin = zip(*(rotary_axis(at, dim, theta) for at, dim in axes), strict=True)
    return torch.cat(cos, -1), torch.cat(sin, -1)


def rotary_axis(positions: Tensor, head_dim: int, theta: float = 10000.0) -> tuple[Tensor, Tensor]:
    """Cosines and sines of rotary positions (N,) along one axis, each (N, head_dim // 2) float32."""
    freqs = theta ** -(torch.arange(0, head_dim, 2, dtype=torch.float64, device=positions.device) / head_dim)
    angle = positions.double()[:, None] * freqs
    return angle.cos().float(), angle.sin().float()


def rotate(x: Tensor, table: tuple[Tensor, Tensor]) -> Tensor:
    """Rotate interleaved pairs of x (B, N, heads, head_dim) by their positions."""
    cos, sin = (t.to(x.dtype)[None, :, None, :] for t in table)
    a, b = x.unflatten(-1, (-1, 2)).unbind(-1)
    return torch.stack((a * cos - b * sin, a * sin + b * cos), -1).flatten(-2)


def attend(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Softmax attention; q (B, N, heads, d), k and v (B, M, heads, d); returns (B, N, heads * d)."""
    q, k, v = (x.transpose(1, 2) for x in (q, k, v))
    if q.device.type == "cpu" and torch.is_grad_enabled():
        # PyTorch's CPU flash backward is several times slower than two plain matrix products at these lengths.
        weight = torch.softmax(q @ k.transpose(-1, -2) * q.shape[-1] ** -0.5, -1)
        out = weight.to(v.dtype) @ v
    else:
        out = F.scaled_dot_product_attention(q, k, v)
    return out.transpose(1, 2).flatten(2)


class RMSNorm(nn.RMSNorm):
    """RMSNorm whose weight follows the input's dtype, so that mixed precision reaches the fused kernel."""

    def forward(self, x: Tensor) -> Tensor:
        """(..., dim) to (..., dim)."""
        assert self.weight is not None
        return F.rms_norm(x, self.normalized_shape, self.weight.to(x.dtype), self.eps)


class Attention(nn.Module):
    """Multi-head attention whose queries and keys are RMS-normalised over all heads together, as in Wan.

    With ``image`` it has keys and values of its own for image tokens, as the cross-attention of Wan I2V.
    """

    def __init__(self, dim: int, heads: int, eps: float, image: bool = False):
        super().__init__()
        self.heads = heads
        if image:
            self.add_k_proj = nn.Linear(dim, dim)
            self.add_v_proj = nn.Linear(dim, dim)
            self.norm_added_k = RMSNorm(dim, eps=eps)
        self.to_q = nn.Linear(dim, dim)
        self.to_k = nn.Linear(dim, dim)
        self.to_v = nn.Linear(dim, dim)
        self.to_out = nn.ModuleList([nn.Linear(dim, dim)])  # a list only for the checkpoint name to_out.0
        self.norm_q = RMSNorm(dim, eps=eps)
        self.norm_k = RMSNorm(dim, eps=eps)

    def queries(self, x: Tensor, table: tuple[Tensor, Tensor] | None = None) -> Tensor:
        """(B, N, heads, d), rotated if a table is given."""
        q = self.norm_q(self.to_q(x)).unflatten(-1, (self.heads, -1))
        return q if table is None else rotate(q, table)

    def keys_values(self, x: Tensor, table: tuple[Tensor, Tensor] | None = None) -> tuple[Tensor, Tensor]:
        """Keys (rotated if a table is given) and values, each (B, M, heads, d)."""
        k = self.norm_k(self.to_k(x)).unflatten(-1, (self.heads, -1))
        v = self.to_v(x).unflatten(-1, (self.heads, -1))
        return (k if table is None else rotate(k, table)), v

    def image_keys_values(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Keys and values of image tokens (B, M, dim), each (B, M, heads, d)."""
        k = self.norm_added_k(self.add_k_proj(x)).unflatten(-1, (self.heads, -1))
        return k, self.add_v_proj(x).unflatten(-1, (self.heads, -1))

    def out(
        self,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        *,
        image: tuple[Tensor, Tensor] | None = None,
        alone: Tensor | None = None,
    ) -> Tensor:
        """Attend and project back to (B, N, dim).

        Args:
            q: (B, N, heads, d).
            k: (B, M, heads, d).
            v: (B, M, heads, d).
            image: keys and values of image tokens, attended to separately and added.
            alone: (B, n, heads, d) values of tokens that see themselves alone; they come after those of ``q``.
        """
        seen = attend(q, k, v)
        if image is not None:
            seen = seen + attend(q, *image)
        if alone is not None and alone.shape[1]:
            seen = torch.cat([seen, alone.flatten(2).to(seen)], 1)
        return self.to_out[0](seen)


class _GeluIn(nn.Module):
    def __init__(self, dim: int, hidden: int, approximate: str):
        super().__init__()
        self.proj = nn.Linear(dim, hidden)
        self.approximate = approximate

    def forward(self, x: Tensor) -> Tensor:
        return F.gelu(self.proj(x), approximate=self.approximate)


class FeedForward(nn.Module):
    """dim -> hidden -> out with GELU, by default the tanh one and back to dim; parameters net.0.proj and net.2."""

    def __init__(self, dim: int, hidden: int, out: int | None = None, approximate: str = "tanh"):
        super().__init__()
        last = nn.Linear(hidden, dim if out is None else out)
        self.net = nn.ModuleList([_GeluIn(dim, hidden, approximate), nn.Identity(), last])

    def forward(self, x: Tensor) -> Tensor:
        """(..., dim) to (..., out)."""
        return self.net[2](self.net[0](x))


class ImageEmbedder(nn.Module):
    """Image tokens (CLIP's) into the width of the network, as Wan I2V does."""

    def __init__(self, image_dim: int, dim: int):
        super().__init__()
        self.norm1 = nn.LayerNorm(image_dim)
        self.ff = FeedForward(image_dim, image_dim, dim, "none")
        self.norm2 = nn.LayerNorm(dim)

    def forward(self, image: Tensor) -> Tensor:
        """(B, M, image_dim) to (B, M, dim)."""
        image = self.ff(self.norm1(image.to(self.norm1.weight)).to(self.ff.net[2].weight))  # type: ignore[arg-type]
        return self.norm2(image.to(self.norm2.weight)).to(image)


class TwoLinear(nn.Module):
    """linear_1, activation, linear_2: Wan's time and text embedders, and our action and proprioception ones."""

    def __init__(self, in_dim: int, hidden: int, out_dim: int, activation: str):
        super().__init__()
        self.linear_1 = nn.Linear(in_dim, hidden)
        self.linear_2 = nn.Linear(hidden, out_dim)
        self.activation = activation

    def forward(self, x: Tensor) -> Tensor:
        """(..., in_dim) to (..., out_dim), in the weights' own precision."""
        x = self.linear_1(x.to(self.linear_1.weight.dtype))
        if self.activation == "relu":
            return self.linear_2(F.relu(x))
        x = F.silu(x) if self.activation == "silu" else F.gelu(x, approximate="tanh")
        return self.linear_2(x)


def sinusoid(timestep: Tensor, dim: int) -> Tensor:
    """[cos, sin] features of a timestep in [0, 1000]; any shape (...,) to (..., dim) float32."""
    half = dim // 2
    freqs = torch.exp(-math.log(10000.0) * torch.arange(half, device=timestep.device, dtype=torch.float32) / half)
    angle = timestep.float()[..., None] * freqs
    return torch.cat([angle.cos(), angle.sin()], -1)


def waves(x: Tensor, n: int) -> Tensor:
    """Sines and cosines of 2 pi x at ``n`` octaves: (..., d) to (..., 2 n d) float32.

    Source: Fourier features, arXiv:2006.10739.
    """
    angle = (2 * torch.pi * x.float())[..., None] * 2.0 ** torch.arange(n, device=x.device)
    return torch.cat([angle.sin(), angle.cos()], -1).flatten(-2)


def patches(video: Tensor, patch: tuple[int, int, int]) -> Tensor:
    """(B, F, C, h, w) to (B, N, C pt ph pw): one row per patch, time by row by column."""
    (b, f, c, h, w), (pt, ph, pw) = video.shape, patch
    x = video.view(b, f // pt, pt, c, h // ph, ph, w // pw, pw).permute(0, 1, 4, 6, 3, 2, 5, 7)
    return x.reshape(b, -1, c * pt * ph * pw)


def unpatched(x: Tensor, grid: tuple[int, ...], patch: tuple[int, int, int]) -> Tensor:
    """(B, N, pt ph pw C) of a (time, row, column) grid to (B, F, C, h, w); not :func:`patches`' order of a row."""
    f, h, w = (n * p for n, p in zip(grid, patch, strict=True))
    x = x.view(len(x), *grid, *patch, -1).permute(0, 1, 4, 7, 2, 5, 3, 6)
    return x.reshape(len(x), f, -1, h, w)


@lru_cache(maxsize=64)
def visible(blank: tuple[int, int, int, int], grid: tuple[int, ...], device: torch.device) -> Tensor:
    """Which tokens of a (time, row, column) grid are not blank, (n,) int64; made once, since finding them waits."""
    top, left, bottom, right = blank
    row, column = (torch.arange(n).view(shape) for n, shape in ((grid[1], (1, -1, 1)), (grid[2], (1, 1, -1))))
    hidden = (row >= top) & (row < bottom) & (column >= left) & (column < right)
    return (~hidden).expand(grid).flatten().nonzero()[:, 0].to(device)
