"""JointDiT: Wan's transformer block over video, proprioception and action tokens, with a cache of past observations.

With no action and no proprioception tokens and no context it is diffusers' ``WanTransformer3DModel``, parameter name
for parameter name; tiny, 1.3 B, 5 B and 14 B are configurations of this one class. It keeps no state on ``self``.

Departures from Wan, each an option: tokens for actions and proprioception with noise levels of their own; the newest
observed frame concatenated to the input channels (as Wan I2V does with its first frame); the instruction's mean added
to the time embedding; sinusoids of a video token's place, and of where an action leads; actions that modulate the
video of their own time; a :class:`imagine.model.decoder.Painter` instead of one linear map to draw that video.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from functools import lru_cache

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from imagine.model.action_registers import Registers, register_table
from imagine.model.blocks import Block, DiTConfig, Embedder, KeysValues, per_group
from imagine.model.decoder import Painter
from imagine.model.kv_cache import ContextCache
from imagine.model.layers import TwoLinear, rotary_table, waves
from imagine.types import Chunk, Context, NoiseLevels, ShapeError

__all__ = ["DiTConfig", "JointDiT", "Kept"]


@dataclass
class Kept:
    """What a pass leaves behind to be remembered: a block's keys (not rotated), values and places."""

    keys: list[Tensor]
    values: list[Tensor]
    position: Tensor
    frames: int


@lru_cache(maxsize=64)
def visible(blank: tuple[int, int, int, int], grid: tuple[int, ...], device: torch.device) -> Tensor:
    """Which tokens of a (time, row, column) grid are not blank, (n,) int64; made once, since finding them waits."""
    top, left, bottom, right = blank
    row, column = (torch.arange(n).view(shape) for n, shape in ((grid[1], (1, -1, 1)), (grid[2], (1, 1, -1))))
    hidden = (row >= top) & (row < bottom) & (column >= left) & (column < right)
    return (~hidden).expand(grid).flatten().nonzero()[:, 0].to(device)


class JointDiT(nn.Module):
    """Predicts video, proprioception and actions of a chunk, given a cache of observations and an instruction."""

    def __init__(self, cfg: DiTConfig):
        super().__init__()
        self.cfg = cfg
        pt, ph, pw = cfg.patch
        out = cfg.channels * pt * ph * pw
        in_channels = cfg.channels * (2 if cfg.see_last_frame else 1) + cfg.condition_channels
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
        if cfg.registers:
            self.registers = Registers(cfg.registers, cfg.dim)
        elif cfg.action_dim:
            features = cfg.action_dim * (1 + 2 * cfg.action_frequencies)
            self.action_in = TwoLinear(features * cfg.action_patch, cfg.dim, cfg.dim, "silu")
            if cfg.steer_tokens:
                self.action_steer = nn.Linear(cfg.dim * cfg.steer_tokens, cfg.dim)
            self.action_out = nn.Linear(cfg.dim, cfg.action_dim * cfg.action_patch)
        if cfg.proprio_dim and not cfg.registers:
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
    def _video_tokens(self, video: Tensor, last: Tensor | None, given: Tensor | None) -> tuple[Tensor, Tensor]:
        """(B, F, C, h, w) to tokens (B, N, D) and their grid positions (N, 3), time starting at 0.

        ``last`` (B, C, h, w) is the newest observed frame, ``given`` (B, F, Cc, h, w) the condition of these frames.
        """
        if self.cfg.see_last_frame:
            last = video if last is None else last[:, None].expand_as(video)
            video = torch.cat([video, last.to(video)], 2)
        if self.cfg.condition_channels:
            want = (*video.shape[:2], self.cfg.condition_channels, *video.shape[3:])
            if given is None or tuple(given.shape) != want:
                got = None if given is None else tuple(given.shape)
                raise ShapeError(f"the condition of these frames is {got}, expected {want}; give Context.condition.")
            video = torch.cat([video, given.to(video)], 2)
        b, f, c, h, w = video.shape
        pt, ph, pw = self.cfg.patch
        if f % pt or h % ph or w % pw:
            raise ShapeError(f"video (F, h, w) is ({f}, {h}, {w}), expected multiples of the patch {self.cfg.patch}.")
        x = video.view(b, f // pt, pt, c, h // ph, ph, w // pw, pw).permute(0, 1, 4, 6, 3, 2, 5, 7)
        grid = torch.cartesian_prod(*(torch.arange(n, device=video.device) for n in (f // pt, h // ph, w // pw)))
        weight = self.patch_embedding.weight.flatten(1)
        tokens = F.linear(x.reshape(b, -1, weight.shape[1]).to(weight.dtype), weight, self.patch_embedding.bias)
        if self.cfg.place_frequencies:
            period = (8.0, 2.0 * (h // ph), 2.0 * (w // pw))
            place = torch.stack([at / p for at, p in zip(grid.unbind(1), period, strict=True)], 1)
            tokens = tokens + self.place(waves(place, self.cfg.place_frequencies).to(tokens))
        if self.cfg.blank:
            seen = visible(self.cfg.blank, (f // pt, h // ph, w // pw), video.device)
            tokens, grid = tokens[:, seen], grid[seen]
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

    # ------------------------------------------------------------------ passes
    def read(self, context: Context) -> ContextCache:
        """Read what is said and given, not yet what was observed: instruction, image tokens, condition, state."""
        embed = self.condition_embedder.text_embedder
        words = embed(context.text.to(embed.linear_1.weight.dtype))
        text = [block.attn2.keys_values(words) for block in self.blocks]  # type: ignore[operator, union-attr]
        cache = ContextCache(
            [k for k, _ in text], [v for _, v in text], words.mean(1) if self.cfg.pooled_text else None
        )
        if self.cfg.image_dim:
            if context.image is None:
                raise ShapeError(f"the context has no image tokens, expected (B, I, {self.cfg.image_dim}).")
            image = self.condition_embedder.image_embedder(context.image)  # type: ignore[misc]
            seen = [block.attn2.image_keys_values(image) for block in self.blocks]  # type: ignore[operator, union-attr]
            cache.image_keys, cache.image_values = [k for k, _ in seen], [v for _, v in seen]
        cache.condition = context.condition
        if self.cfg.registers and context.proprio.shape[1]:
            cache.last_proprio = context.proprio[:, -1]
        return cache

    def prefill(self, context: Context) -> ContextCache:
        """Encode instruction and observed frames (B, T, ...) once.

        T fills blocks of ``cfg.block`` temporal patches, after a first frame alone where ``cfg.first_alone`` says so.
        """
        cache = self.read(context)
        length, begin = self.cfg.block * self.cfg.patch[0], 0
        if self.cfg.first_alone and context.video.shape[1]:
            self.extend(cache, context.video[:, :1], context.proprio[:, :1])
            begin = 1
        for i in range(begin, context.video.shape[1], length):
            self.extend(cache, context.video[:, i : i + length], context.proprio[:, i : i + length])
        return cache

    def extend(self, cache: ContextCache, video: Tensor, proprio: Tensor) -> None:
        """Append one observed block (B, F, ...) to the cache; it sees earlier blocks and itself, and no action."""
        begin, pt = cache.frames, self.cfg.patch[0]
        x, position = self._video_tokens(video, None, self._given(cache, begin, video.shape[1]))
        blocks = video.shape[1] // pt
        if self.cfg.proprio_dim and not self.cfg.registers:
            p, at = self._vector_tokens(proprio, pt, self.proprio_in, blocks)
            x, position = torch.cat([x, p.to(x)], 1), torch.cat([position, at])
        position[:, 0] += begin
        sigma = torch.zeros(len(x), 1, device=x.device)
        table, kept = rotary_table(position, self.cfg.head_dim), Kept([], [], position, blocks)
        self._run(x, table, sigma, [x.shape[1]], cache, kept=kept, last=0)
        self.remember(cache, kept, video, proprio)

    def remember(self, cache: ContextCache, kept: Kept, video: Tensor, proprio: Tensor) -> None:
        """Append to the cache what a pass has kept of a block, whose newest frame and state are those given."""
        most, sinks = self.cfg.max_context_blocks, self.cfg.sink_blocks
        cache.append(kept.keys, kept.values, kept.position, kept.frames, most=most, sinks=sinks)
        cache.last_video, cache.last_proprio = video[:, -1], proprio[:, -1]

    def _given(self, cache: ContextCache, begin: int, frames: int) -> Tensor | None:
        return None if cache.condition is None else cache.condition[:, begin : begin + frames]

    def _run(
        self,
        x: Tensor,
        table: KeysValues,
        sigma: Tensor,
        sizes: list[int],
        cache: ContextCache,
        *,
        steer: Tensor | None = None,
        alone: int = 0,
        kept: Kept | None = None,
        last: int | None = None,
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Tokens through all blocks: the last hidden state (B, N, D), the same normalised, and the time embedding.

        With ``last`` the states of so many last tokens, all of the last noise level: nobody asks for the others'.
        """
        emb, mod = self.condition_embedder.time(sigma, cache.pooled_text, steer)
        for i, block in enumerate(self.blocks):
            image = (cache.image_keys[i], cache.image_values[i]) if cache.image_keys else None
            text = cache.text_keys[i], cache.text_values[i]
            only = last if i == len(self.blocks) - 1 else None
            x, key, value = block(x, mod, sizes, table, text, cache.before(i), image, alone, only)
            if kept is not None:
                n = len(kept.position)
                kept.keys.append(key[:, :n])
                kept.values.append(value[:, :n])
        shift, scale = (self.scale_shift_table[:, None] + emb[:, :, None]).float().unbind(2)
        if last is not None:
            shift, scale, sizes = shift[:, -1:], scale[:, -1:], [last]
        normed = F.layer_norm(x.float(), (self.cfg.dim,), eps=self.cfg.eps)
        return x, torch.addcmul(per_group(shift, sizes), normed, 1 + per_group(scale, sizes)).to(emb.dtype), emb

    def forward(
        self,
        noisy: Chunk,
        sigma: NoiseLevels,
        cache: ContextCache,
        kept: Kept | None = None,
        wanted: Collection[str] | None = None,
    ) -> Chunk:
        """Predict every present modality of a chunk.

        Args:
            noisy: video (B, F, C, h, w), proprio (B, F, P), action (B, K, A); an absent modality is None.
            sigma: noise level of video (and proprioception), (B,) or per temporal patch (B, F / pt), and of action
                (B,).
            cache: from :meth:`prefill`; it is read, never changed.
            kept: filled with what the video leaves behind for :meth:`remember`; None where it is not wanted.
            wanted: names of the modalities to predict; None is all. Painting what nobody looks at costs as much.

        Returns:
            Chunk of raw predictions, same shapes: velocities, or clean values if ``cfg.prediction`` is "clean".

        Raises:
            ShapeError: sizes do not fill patches, or the condition is missing or misshapen.

        Source: Wan 2.1, arXiv:2503.20314; decoupled levels per modality: UWM, arXiv:2504.02792.
        """
        cfg, begin = self.cfg, cache.frames
        parts: list[tuple[Tensor, KeysValues]] = []  # tokens and their rotary table
        levels, sizes = [], []
        grid: tuple[int, ...] = ()
        if noisy.video is not None:
            x, position = self._video_tokens(
                noisy.video, cache.last_video, self._given(cache, begin, noisy.video.shape[1])
            )
            size = noisy.video.shape[1:2] + noisy.video.shape[3:]
            grid = tuple(n // p for n, p in zip(size, cfg.patch, strict=True))
            cells = x.shape[1] // grid[0]  # of a frame; fewer than the grid's where some are blank
            if noisy.proprio is not None and not cfg.registers:
                p, at = self._vector_tokens(noisy.proprio, cfg.patch[0], self.proprio_in, grid[0])
                x, position = torch.cat([x, p.to(x)], 1), torch.cat([position, at])
            position[:, 0] += begin
            parts.append((x, rotary_table(position, cfg.head_dim)))
            if kept is not None:
                kept.position, kept.frames = position, grid[0]
            # One group per temporal patch where they differ, in noise or in the actions of their time.
            apart = sigma.video.ndim == 2 or (noisy.action is not None and bool(cfg.steer_tokens))
            level = sigma.video if sigma.video.ndim == 2 else sigma.video[:, None].expand(-1, grid[0] if apart else 1)
            felt = x.shape[1] - grid[0] * cells
            levels, sizes = [level, level] if apart and felt else [level], [x.shape[1]]
            if apart:
                sizes = [cells] * grid[0] + [felt // grid[0]] * (grid[0] if felt else 0)
        frames = grid[0] if grid else self.chunk_blocks
        steer, alone = None, 0
        if noisy.action is not None:
            x, table = self._action_part(noisy.action, sigma.action, frames, cache)
            parts.append((x, table))
            levels.append(sigma.action[:, None])
            sizes.append(x.shape[1])
            alone = int(cfg.registers is not None and cfg.parity == "clean")
            if grid and cfg.steer_tokens:
                steer = self._steer(x, sigma.action, frames).repeat(1, (len(sizes) - 1) // frames, 1)
                steer = torch.cat([steer, torch.zeros_like(steer[:, :1])], 1)
        tokens, tables = zip(*parts, strict=True)
        cos, sin = zip(*tables, strict=True)
        table = torch.cat(cos), torch.cat(sin)
        x = torch.cat([t.to(tokens[0]) for t in tokens], 1)
        blind = wanted is not None and not {"video", "proprio"} & set(wanted)  # nobody looks at the video
        last = sizes[-1] if blind and noisy.action is not None else None
        hidden, x, emb = self._run(
            x, table, torch.cat(levels, 1), sizes, cache, steer=steer, alone=alone, kept=kept, last=last
        )
        told = emb[:, :frames] if steer is not None else emb[:, :1].expand(-1, frames, -1)
        if blind:
            return self._heads(hidden, x, told, Chunk(action=noisy.action), sigma, (), cache)
        return self._heads(hidden, x, told, noisy, sigma, grid, cache)

    def _action_part(
        self, action: Tensor, sigma: Tensor, frames: int, cache: ContextCache
    ) -> tuple[Tensor, KeysValues]:
        """Tokens and rotary table of a chunk's actions, which span ``frames`` temporal patches, and of the state."""
        if not self.cfg.registers:
            x, position = self._action_tokens(action, frames, cache.origin)
            position[:, 0] += cache.frames
            return x, rotary_table(position, self.cfg.head_dim)
        state = cache.last_proprio
        if state is None:
            raise ShapeError("the context holds no state, expected at least one observation before a chunk.")
        block = (cache.frames - self.cfg.first_alone) // self.cfg.block
        table = register_table(max(block, 0), action.shape[1], self.cfg.head_dim, action.device)
        return self.registers.tokens(action, sigma, state), table

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
        self,
        hidden: Tensor,
        x: Tensor,
        told: Tensor,
        noisy: Chunk,
        sigma: NoiseLevels,
        grid: tuple[int, ...],
        cache: ContextCache,
    ) -> Chunk:
        video = proprio = action = None
        residual = self.cfg.prediction == "clean"
        if noisy.video is not None:
            total, seen = grid[0] * grid[1] * grid[2], None
            if self.cfg.blank:
                seen = visible(self.cfg.blank, grid, x.device)
            n = total if seen is None else len(seen)
            b, f, c, h, w = noisy.video.shape
            if self.cfg.painter.blocks:
                newest = noisy.video[:, -1] if cache.last_video is None else cache.last_video
                video = self.painter(noisy.video, sigma.video, newest, x[:, :n], told)
            else:
                video = self.proj_out(x[:, :n])
                if seen is not None:
                    video = video.new_zeros(b, total, video.shape[2]).index_copy(1, seen, video)
                video = video.view(b, *grid, *self.cfg.patch, c)
                video = video.permute(0, 1, 4, 7, 2, 5, 3, 6).reshape(b, f, c, h, w)
            if residual and cache.last_video is not None:
                video = video + cache.last_video[:, None]
            if noisy.proprio is not None and not self.cfg.registers:
                proprio = self.proprio_out(x[:, n : n + grid[0]]).view_as(noisy.proprio)
                if residual and cache.last_proprio is not None:
                    proprio = proprio + cache.last_proprio[:, None]
        if noisy.action is not None:
            if self.cfg.registers:
                k = noisy.action.shape[1]
                action = self.registers.actions(hidden[:, -k - 1 : -1], noisy.action.shape[2])
            else:
                m = noisy.action.shape[1] // self.cfg.action_patch
                action = self.action_out(x[:, -m:]).view_as(noisy.action)
        return Chunk(video=video, proprio=proprio, action=action)
