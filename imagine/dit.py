"""JointDiT: Wan's transformer block over video, proprioception and action tokens, with a cache of past observations.

With no action and no proprioception tokens and no context it is diffusers' ``WanTransformer3DModel``, parameter name
for parameter name; tiny, 1.3 B, 5 B and 14 B are configurations of this one class. It keeps no state on ``self``.

Departures from Wan, each an option: tokens for actions and proprioception with noise levels of their own; the newest
observed frame concatenated to the input channels (as Wan I2V does with its first frame); the instruction's mean added
to the time embedding; sinusoids of a video token's place, and of where an action leads; actions that modulate the
video of their own time; a :class:`imagine.painter.Painter` instead of one linear map to draw that video.
"""

from __future__ import annotations

from typing import Literal

import torch
import torch.nn.functional as F
from pydantic import BaseModel, ConfigDict
from torch import Tensor, nn

from .cache import ContextCache
from .layers import Attention, FeedForward, TwoLinear, rotary_table, sinusoid, waves
from .painter import Painter, PainterConfig
from .types import Chunk, Context, NoiseLevels, ShapeError


class DiTConfig(BaseModel):
    """Shape of a JointDiT; defaults are the shipped tiny one."""

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
    see_last_frame: bool = True  # concatenate the newest observed frame to the noisy channels
    pooled_text: bool = True
    place_frequencies: int = 0  # per axis, of a video token's time, row and column; 0: place only through attention
    action_frequencies: int = 0  # per dimension, of where an action leads; 0: actions enter as they are
    steer_tokens: int = 0  # action tokens per temporal patch, modulating its video; 0: none; set from the embodiment
    painter: PainterConfig = PainterConfig()
    prediction: Literal["clean", "velocity"] = "clean"  # clean: the change against the newest observation
    max_context_blocks: int = 8
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

    def time(self, sigma: Tensor, pooled: Tensor | None, steer: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Noise levels (B, G), and what else steers each group (B, G, D), to (B, G, D) and six modulations of it."""
        emb = self.time_embedder(sinusoid(1000 * sigma, self.freq_dim).to(self.time_proj.weight.dtype))
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


class Block(nn.Module):
    """Wan's block: modulated self-attention, cross-attention to the instruction, modulated feed-forward."""

    def __init__(self, cfg: DiTConfig):
        super().__init__()
        self.dim, self.eps = cfg.dim, cfg.eps
        self.attn1 = Attention(cfg.dim, cfg.heads, cfg.eps)
        self.attn2 = Attention(cfg.dim, cfg.heads, cfg.eps)
        self.norm2 = nn.LayerNorm(cfg.dim, cfg.eps)
        self.ffn = FeedForward(cfg.dim, cfg.ffn_dim)
        self.scale_shift_table = nn.Parameter(torch.randn(1, 6, cfg.dim) / cfg.dim**0.5)

    def _norm(self, x: Tensor, shift: Tensor, scale: Tensor) -> Tensor:
        return torch.addcmul(shift, F.layer_norm(x.float(), (self.dim,), eps=self.eps), 1 + scale)

    def forward(
        self,
        x: Tensor,
        mod: Tensor,
        sizes: list[int],
        table: tuple[Tensor, Tensor],
        text: tuple[Tensor, Tensor],
        past: tuple[Tensor, Tensor] | None,
    ) -> tuple[Tensor, tuple[Tensor, Tensor]]:
        """One block.

        Args:
            x: (B, N, D) residual stream.
            mod: (B, G, 6, D) modulation per noise level.
            sizes: tokens per noise level, adding up to N.
            table: rotary table of the N tokens.
            text: keys and values of the instruction.
            past: keys and values of observed frames, or None.

        Returns:
            The new stream, and this block's own (rotated) keys and values for the cache.
        """
        rows = (self.scale_shift_table.float()[:, None] + mod).unbind(2)
        shift1, scale1, gate1, shift2, scale2, gate2 = (per_group(r, sizes) for r in rows)
        h = self._norm(x, shift1, scale1).type_as(x)
        own = self.attn1.keys_values(h, table)
        k, v = own if past is None else (torch.cat([past[0], own[0]], 1), torch.cat([past[1], own[1]], 1))
        x = torch.addcmul(x, self.attn1.out(self.attn1.queries(h, table), k, v).type_as(x), gate1.type_as(x))
        h = self.norm2(x.float()).type_as(x)
        x = x + self.attn2.out(self.attn2.queries(h), *text).type_as(x)
        h = self._norm(x, shift2, scale2).type_as(x)
        return torch.addcmul(x, self.ffn(h).type_as(x), gate2.type_as(x)), own


class JointDiT(nn.Module):
    """Predicts video, proprioception and actions of a chunk, given a cache of observations and an instruction."""

    def __init__(self, cfg: DiTConfig):
        super().__init__()
        self.cfg = cfg
        pt, ph, pw = cfg.patch
        out = cfg.channels * pt * ph * pw
        in_channels = cfg.channels * (2 if cfg.see_last_frame else 1)
        self.patch_embedding = nn.Conv3d(in_channels, cfg.dim, cfg.patch, cfg.patch)  # applied as a linear map
        self.condition_embedder = Embedder(cfg)
        self.blocks = nn.ModuleList([Block(cfg) for _ in range(cfg.layers)])
        if cfg.painter.blocks:
            self.painter = Painter(cfg.painter, cfg.channels, cfg.dim, cfg.patch)
        else:
            self.proj_out = nn.Linear(cfg.dim, out)
        self.scale_shift_table = nn.Parameter(torch.randn(1, 2, cfg.dim) / cfg.dim**0.5)
        if cfg.place_frequencies:
            self.place = nn.Linear(2 * 3 * cfg.place_frequencies, cfg.dim)
        if cfg.action_dim:
            features = cfg.action_dim * (1 + 2 * cfg.action_frequencies)
            self.action_in = TwoLinear(features * cfg.action_patch, cfg.dim, cfg.dim, "silu")
            if cfg.steer_tokens:
                self.action_steer = nn.Linear(cfg.dim * cfg.steer_tokens, cfg.dim)
            self.action_out = nn.Linear(cfg.dim, cfg.action_dim * cfg.action_patch)
        if cfg.proprio_dim:
            self.proprio_in = TwoLinear(cfg.proprio_dim * pt, cfg.dim, cfg.dim, "silu")
            self.proprio_out = nn.Linear(cfg.dim, cfg.proprio_dim * pt)
        self._initialise()

    def _initialise(self) -> None:
        for name, p in self.named_parameters():
            if p.ndim >= 2 and "scale_shift" not in name:
                nn.init.xavier_uniform_(p.flatten(1))
            elif name.endswith("bias"):
                nn.init.zeros_(p)
        # Heads start at zero: an untrained "clean" model predicts that nothing changes.
        for head in ("proj_out", "action_out", "proprio_out", "action_steer"):
            if hasattr(self, head):
                nn.init.zeros_(getattr(self, head).weight)
        if self.cfg.painter.blocks:
            nn.init.zeros_(self.painter.leave.weight)
        nn.init.normal_(self.condition_embedder.time_proj.weight, std=0.02)

    # ------------------------------------------------------------------ tokens
    def _video_tokens(self, video: Tensor, last: Tensor | None) -> tuple[Tensor, Tensor]:
        """(B, F, C, h, w) to tokens (B, N, D) and their grid positions (N, 3), time starting at 0."""
        if self.cfg.see_last_frame:
            last = video if last is None else last[:, None].expand_as(video)
            video = torch.cat([video, last.to(video)], 2)
        b, f, c, h, w = video.shape
        pt, ph, pw = self.cfg.patch
        if f % pt or h % ph or w % pw:
            raise ShapeError(f"video (F, h, w) is ({f}, {h}, {w}), expected multiples of the patch {self.cfg.patch}.")
        x = video.view(b, f // pt, pt, c, h // ph, ph, w // pw, pw).permute(0, 1, 4, 6, 3, 2, 5, 7)
        grid = torch.cartesian_prod(*(torch.arange(n, device=video.device) for n in (f // pt, h // ph, w // pw)))
        weight = self.patch_embedding.weight.flatten(1)
        tokens = F.linear(x.reshape(b, -1, weight.shape[1]), weight, self.patch_embedding.bias)
        if self.cfg.place_frequencies:
            period = grid.new_tensor([8.0, 2.0 * (h // ph), 2.0 * (w // pw)], dtype=torch.float32)
            tokens = tokens + self.place(waves(grid / period, self.cfg.place_frequencies).to(tokens))
        return tokens, grid.float()

    def _action_tokens(self, action: Tensor, blocks: int, origin: Tensor | None) -> tuple[Tensor, Tensor]:
        """(B, K, A) to tokens (B, M, D) and their positions (M, 3); ``origin`` (B, A) is where a zero action leads."""
        if self.cfg.action_frequencies:
            leads = action if origin is None else action + origin[:, None].to(action)
            action = torch.cat([action, waves(leads / 16, self.cfg.action_frequencies).to(action)], -1)
        return self._vector_tokens(action, self.cfg.action_patch, self.action_in, blocks)

    def _steer(self, tokens: Tensor, sigma: Tensor, blocks: int) -> Tensor:
        """What the action tokens (B, M, D) say to the frames of their time, (B, blocks, D); noise says nothing."""
        return self.action_steer(tokens.unflatten(1, (blocks, -1)).flatten(2) * (1 - sigma)[:, None, None].to(tokens))

    def _vector_tokens(self, x: Tensor, per: int, embed: nn.Module, blocks: int) -> tuple[Tensor, Tensor]:
        """(B, n, d), ``per`` to a token, spread evenly over ``blocks`` temporal patches, off the image grid."""
        b, n, d = x.shape
        if n % per:
            raise ShapeError(f"{n} vectors do not fill tokens of {per}.")
        time = (torch.arange(n // per, device=x.device) + 0.5) * blocks / (n // per) - 0.5
        position = torch.stack([time, torch.full_like(time, -1.0), torch.full_like(time, -1.0)], -1)
        return embed(x.reshape(b, n // per, per * d)), position

    def _text(self, text: Tensor) -> ContextCache:
        words = self.condition_embedder.text_embedder(text)
        kv = [block.attn2.keys_values(words) for block in self.blocks]  # type: ignore[operator, union-attr]
        pooled = words.mean(1) if self.cfg.pooled_text else None
        return ContextCache([k for k, _ in kv], [v for _, v in kv], pooled)

    # ------------------------------------------------------------------ passes
    def prefill(self, context: Context) -> ContextCache:
        """Encode instruction and observed frames once; (B, T, ...) with T a multiple of the temporal patch."""
        cache = self._text(context.text)
        pt = self.cfg.patch[0]
        for i in range(0, context.video.shape[1], pt):
            self.extend(cache, context.video[:, i : i + pt], context.proprio[:, i : i + pt])
        return cache

    def extend(self, cache: ContextCache, video: Tensor, proprio: Tensor) -> None:
        """Append one observed block (B, pt, ...) to the cache; it sees earlier blocks and itself, and no action."""
        x, position = self._video_tokens(video, None)
        position[:, 0] += cache.blocks
        if self.cfg.proprio_dim:
            p, at = self._vector_tokens(proprio, self.cfg.patch[0], self.proprio_in, 1)
            at[:, 0] += cache.blocks
            x, position = torch.cat([x, p.to(x)], 1), torch.cat([position, at])
        sigma = torch.zeros(len(x), 1, device=x.device)
        _, _, own = self._run(x, position, sigma, [x.shape[1]], cache)
        cache.append([k for k, _ in own], [v for _, v in own], self.cfg.max_context_blocks)
        cache.last_video, cache.last_proprio = video[:, -1], proprio[:, -1]

    def _run(
        self,
        x: Tensor,
        position: Tensor,
        sigma: Tensor,
        sizes: list[int],
        cache: ContextCache,
        steer: Tensor | None = None,
    ) -> tuple[Tensor, Tensor, list[tuple[Tensor, Tensor]]]:
        table = rotary_table(position, self.cfg.head_dim)
        emb, mod = self.condition_embedder.time(sigma, cache.pooled_text, steer)
        own = []
        for i, block in enumerate(self.blocks):
            past = (cache.keys[i], cache.values[i]) if cache.keys else None
            x, kv = block(x, mod, sizes, table, (cache.text_keys[i], cache.text_values[i]), past)
            own.append(kv)
        shift, scale = (self.scale_shift_table[:, None] + emb[:, :, None]).float().unbind(2)
        x = F.layer_norm(x.float(), (self.cfg.dim,), eps=self.cfg.eps)
        return torch.addcmul(per_group(shift, sizes), x, 1 + per_group(scale, sizes)).to(emb.dtype), emb, own

    def forward(self, noisy: Chunk, sigma: NoiseLevels, cache: ContextCache) -> Chunk:
        """Predict every present modality of a chunk.

        Args:
            noisy: video (B, F, C, h, w), proprio (B, F, P), action (B, K, A); an absent modality is None.
            sigma: noise level of video (and proprioception) and of action, each (B,).
            cache: from :meth:`prefill`; it is read, never changed.

        Returns:
            Chunk of raw predictions, same shapes: velocities, or clean values if ``cfg.prediction`` is "clean".

        Source: Wan 2.1, arXiv:2503.20314; decoupled levels per modality: UWM, arXiv:2504.02792.
        """
        parts: list[tuple[Tensor, Tensor, Tensor]] = []  # tokens, positions, noise level
        blocks = 1
        grid: tuple[int, ...] = ()
        if noisy.video is not None:
            x, at = self._video_tokens(noisy.video, cache.last_video)
            pt, ph, pw = self.cfg.patch
            grid = tuple(
                n // p for n, p in zip(noisy.video.shape[1:2] + noisy.video.shape[3:], (pt, ph, pw), strict=True)
            )
            blocks = grid[0]
            if noisy.proprio is not None:
                p, p_at = self._vector_tokens(noisy.proprio, pt, self.proprio_in, blocks)
                x, at = torch.cat([x, p.to(x)], 1), torch.cat([at, p_at])
            parts.append((x, at, sigma.video))
        if noisy.action is not None:
            # Without video the chunk still spans the same time, so the action tokens keep their positions.
            blocks = blocks if grid else self.chunk_blocks
            x, at = self._action_tokens(noisy.action, blocks, cache.origin)
            parts.append((x, at, sigma.action))
        tokens, positions, levels = zip(*parts, strict=True)
        position = torch.cat(positions)
        position[:, 0] += cache.blocks
        sizes, level, steer = [x.shape[1] for x in tokens], torch.stack(levels, 1), None
        if grid and noisy.action is not None and self.cfg.steer_tokens:
            # One group per temporal patch, each steered by the actions of its time.
            per = [grid[1] * grid[2]] * blocks + [1] * (sizes[0] - blocks * grid[1] * grid[2])
            steer = self._steer(tokens[-1], sigma.action, blocks).repeat(1, len(per) // blocks, 1)
            steer = torch.cat([steer, torch.zeros_like(steer[:, :1])], 1)
            level = torch.cat([level[:, :1].expand(-1, len(per)), level[:, 1:]], 1)
            sizes = [*per, sizes[1]]
        x, emb, _ = self._run(torch.cat([t.to(tokens[0]) for t in tokens], 1), position, level, sizes, cache, steer)
        told = emb[:, :blocks] if steer is not None else emb[:, :1].expand(-1, blocks, -1)
        return self._heads(x, told, noisy, sigma, grid, cache)

    def sketch(self, noisy: Chunk, sigma: NoiseLevels, context: Context, origin: Tensor | None) -> Tensor:
        """What the painter says of the video (B, F, C, h, w) under the actions, before the transformer has looked.

        It costs a fraction of :meth:`forward`, so it is how a painter learns most of its craft.
        """
        assert noisy.video is not None and noisy.action is not None
        blocks, newest = noisy.video.shape[1] // self.cfg.patch[0], context.video[:, -1]
        pooled = self.condition_embedder.text_embedder(context.text).mean(1) if self.cfg.pooled_text else None
        actions, _ = self._action_tokens(noisy.action, blocks, origin)
        level = sigma.video[:, None].expand(-1, blocks)
        told, _ = self.condition_embedder.time(level, pooled, self._steer(actions, sigma.action, blocks))
        video = self.painter(noisy.video, sigma.video, newest, None, told)
        return video + newest[:, None] if self.cfg.prediction == "clean" else video

    chunk_blocks: int = 2  # temporal patches that one chunk of actions spans; set by the model from its embodiment

    def _heads(
        self, x: Tensor, told: Tensor, noisy: Chunk, sigma: NoiseLevels, grid: tuple[int, ...], cache: ContextCache
    ) -> Chunk:
        video = proprio = action = None
        residual = self.cfg.prediction == "clean"
        if noisy.video is not None:
            n = grid[0] * grid[1] * grid[2]
            b, f, c, h, w = noisy.video.shape
            if self.cfg.painter.blocks:
                newest = noisy.video[:, -1] if cache.last_video is None else cache.last_video
                video = self.painter(noisy.video, sigma.video, newest, x[:, :n], told)
            else:
                video = self.proj_out(x[:, :n]).view(b, *grid, *self.cfg.patch, c)
                video = video.permute(0, 1, 4, 7, 2, 5, 3, 6).reshape(b, f, c, h, w)
            if residual and cache.last_video is not None:
                video = video + cache.last_video[:, None]
            if noisy.proprio is not None:
                proprio = self.proprio_out(x[:, n : n + grid[0]]).view_as(noisy.proprio)
                if residual and cache.last_proprio is not None:
                    proprio = proprio + cache.last_proprio[:, None]
        if noisy.action is not None:
            m = noisy.action.shape[1] // self.cfg.action_patch
            action = self.action_out(x[:, -m:]).view_as(noisy.action)
        return Chunk(video=video, proprio=proprio, action=action)
