"""JointDiT: Wan's transformer block over video, proprioception and action tokens, with a cache of past observations.

With no action and no proprioception tokens and no context it is diffusers' ``WanTransformer3DModel``, parameter name
for parameter name; tiny, 1.3 B, 5 B and 14 B are configurations of this one class. It keeps no state on ``self``.

Departures from Wan, each an option: tokens for actions and proprioception with noise levels of their own; the newest
observed frame concatenated to the input channels (as Wan I2V does with its first frame); the instruction's mean added
to the time embedding; sinusoids of a video token's place, and of where an action leads; actions that modulate the
video of their own time; a :class:`imagine.model.decoder.SceneDecoder` instead of one linear map to the video.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from imagine.model.action_registers import ActionRegisters, register_table
from imagine.model.blocks import Block, DiTConfig, Embedder, KeysValues, per_group
from imagine.model.decoder import SceneDecoder
from imagine.model.kv_cache import BlockKV, ContextCache
from imagine.model.layers import TwoLinear, rotary_table, unpatched, visible
from imagine.model.tokens import TokenEmbedder
from imagine.noise import expand
from imagine.types import Chunk, Context, NoiseLevels, ShapeError

__all__ = ["BlockKV", "DiTConfig", "JointDiT"]


@dataclass
class _Part:
    """Tokens of a chunk (B, n, D), their rotary table, and so many in each group of one noise level (B,) or (B, g)."""

    tokens: Tensor
    table: KeysValues
    levels: list[Tensor]
    sizes: list[int]
    grid: tuple[int, ...] = ()


class JointDiT(TokenEmbedder):
    """Predicts video, proprioception and actions of a chunk, given a cache of observations and an instruction."""

    chunk_blocks: int = 2  # temporal patches that one chunk of actions spans; set by the model from its embodiment

    def __init__(self, cfg: DiTConfig):
        super().__init__()
        self.cfg = cfg
        pt, ph, pw = cfg.patch
        out = cfg.channels * pt * ph * pw
        in_channels = cfg.channels * (2 if cfg.see_last_frame else 1) + cfg.decoder.memory + cfg.condition_channels
        self.patch_embedding = nn.Conv3d(in_channels, cfg.dim, cfg.patch, cfg.patch)  # applied as a linear map
        self.condition_embedder = Embedder(cfg)
        self.blocks = nn.ModuleList([Block(cfg) for _ in range(cfg.layers)])
        if cfg.decoder.blocks:
            self.decoder = SceneDecoder(cfg.decoder, cfg.channels, cfg.dim, cfg.patch)
        else:
            self.proj_out = nn.Linear(cfg.dim, out)
        self.scale_shift_table = nn.Parameter(torch.randn(1, 2, cfg.dim) / cfg.dim**0.5)
        if cfg.place_frequencies:
            self.place = nn.Linear(2 * 3 * cfg.place_frequencies, cfg.dim)
        if cfg.registers:
            self.registers = ActionRegisters(cfg.registers, cfg.dim)
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
        if self.cfg.decoder.blocks:
            self.decoder.initialise()
        nn.init.normal_(self.condition_embedder.time_proj.weight, std=0.02)

    # ------------------------------------------------------------------ passes
    def read(self, context: Context) -> ContextCache:
        """Encode instruction, image tokens, condition and state, not yet the observed frames."""
        words = self.condition_embedder.text_embedder(context.text)
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
        cache.memory = self._scene(cache) if context.memory is None else context.memory
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
        table, block_kv = rotary_table(position, self.cfg.head_dim), BlockKV([], [], position, blocks)
        self._run(x, table, sigma, [x.shape[1]], cache, block_kv=block_kv, last=0)
        self.remember(cache, block_kv, video, proprio)

    def remember(self, cache: ContextCache, block_kv: BlockKV, video: Tensor, proprio: Tensor) -> None:
        """Append a block's keys and values to the cache; its newest frame and state are the last of those given.

        A scene's memory begins anew with that frame.
        """
        most, sinks = self.cfg.max_context_blocks, self.cfg.sink_blocks
        cache.append(block_kv, most=most, sinks=sinks)
        cache.last_video, cache.last_proprio, cache.memory = video[:, -1], proprio[:, -1], None

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
        block_kv: BlockKV | None = None,
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
            if block_kv is not None:
                n = len(block_kv.position)
                block_kv.keys.append(key[:, :n])
                block_kv.values.append(value[:, :n])
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
        block_kv: BlockKV | None = None,
        wanted: Collection[str] | None = None,
    ) -> Chunk:
        """Predict every present modality of a chunk.

        Args:
            noisy: video (B, F, C, h, w), proprio (B, F, P), action (B, K, A); an absent modality is None.
            sigma: noise level of video (and proprioception), (B,) or per temporal patch (B, F / pt), and of action
                (B,).
            cache: from :meth:`prefill`; it is read, never changed.
            block_kv: filled with the video's keys and values for :meth:`remember`; None where nobody needs them.
            wanted: names of the modalities to predict; None is all.

        Returns:
            Chunk of raw predictions, same shapes: velocities, or clean values if ``cfg.prediction`` is "clean".

        Raises:
            ShapeError: sizes do not fill patches, or the condition is missing or misshapen.

        Source: Wan 2.1, arXiv:2503.20314; decoupled levels per modality: UWM, arXiv:2504.02792.
        """
        parts = [self._video_part(noisy, sigma, cache, block_kv)] if noisy.video is not None else []
        grid = parts[0].grid if parts else ()
        frames = grid[0] if grid else self.chunk_blocks
        steer, alone = None, 0
        if noisy.action is not None:
            part = self._action_part(noisy.action, sigma.action, frames, cache)
            alone = int(self.cfg.registers is not None and self.cfg.parity == "clean")
            if grid and self.cfg.steer_tokens:
                steer = self._steer(part.tokens, sigma.action, frames).repeat(1, len(parts[0].sizes) // frames, 1)
                steer = torch.cat([steer, torch.zeros_like(steer[:, :1])], 1)
            parts.append(part)
        x = torch.cat([part.tokens.to(parts[0].tokens) for part in parts], 1)
        cos, sin = zip(*(part.table for part in parts), strict=True)
        level = torch.cat([level for part in parts for level in part.levels], 1)
        sizes = [n for part in parts for n in part.sizes]
        actions_only = wanted is not None and not {"video", "proprio"} & set(wanted)
        last = sizes[-1] if actions_only and noisy.action is not None else None
        hidden, x, _ = self._run(
            x, (torch.cat(cos), torch.cat(sin)), level, sizes, cache, steer=steer, alone=alone, block_kv=block_kv,
            last=last,
        )  # fmt: skip
        video = proprio = memory = None
        if noisy.video is not None and not actions_only:
            video, proprio, memory = self._video_heads(x, noisy, sigma, grid, cache)
        return Chunk(video, proprio, self._action_head(hidden, x, noisy.action), memory)

    def _video_part(self, noisy: Chunk, sigma: NoiseLevels, cache: ContextCache, block_kv: BlockKV | None) -> _Part:
        """Tokens of a chunk's video and proprioception."""
        cfg = self.cfg
        assert noisy.video is not None
        given = self._given(cache, cache.frames, noisy.video.shape[1])
        # A model with memory is shown what is certain of a noisy video alone: nothing of pure noise.
        shown = noisy.video * expand(1 - sigma.video, noisy.video) if cfg.decoder.memory else noisy.video
        x, position = self._video_tokens(shown, cache.last_video, given, self._scene(cache))
        size = noisy.video.shape[1:2] + noisy.video.shape[3:]
        grid = tuple(n // p for n, p in zip(size, cfg.patch, strict=True))
        cells = x.shape[1] // grid[0]  # of a frame; fewer than the grid's where some are blank
        if noisy.proprio is not None and not cfg.registers:
            p, at = self._vector_tokens(noisy.proprio, cfg.patch[0], self.proprio_in, grid[0])
            x, position = torch.cat([x, p.to(x)], 1), torch.cat([position, at])
        position[:, 0] += cache.frames
        if block_kv is not None:
            block_kv.position, block_kv.frames = position, grid[0]
        # One group per temporal patch where they differ, in noise or in the actions of their time.
        apart = sigma.video.ndim == 2 or (noisy.action is not None and bool(cfg.steer_tokens))
        level = sigma.video if sigma.video.ndim == 2 else sigma.video[:, None].expand(-1, grid[0] if apart else 1)
        states = x.shape[1] - grid[0] * cells
        levels, sizes = [level, level] if apart and states else [level], [x.shape[1]]
        if apart:
            sizes = [cells] * grid[0] + [states // grid[0]] * (grid[0] if states else 0)
        return _Part(x, rotary_table(position, cfg.head_dim), levels, sizes, grid)

    def _action_part(self, action: Tensor, sigma: Tensor, frames: int, cache: ContextCache) -> _Part:
        """Tokens of a chunk's actions, which span ``frames`` temporal patches, and of the state before registers."""
        if not self.cfg.registers:
            x, position = self._action_tokens(action, frames, cache.origin)
            position[:, 0] += cache.frames
            return _Part(x, rotary_table(position, self.cfg.head_dim), [sigma[:, None]], [x.shape[1]])
        state = cache.last_proprio
        if state is None:
            raise ShapeError("the context holds no state, expected at least one observation before a chunk.")
        block = (cache.frames - self.cfg.first_alone) // self.cfg.block
        table = register_table(max(block, 0), action.shape[1], self.cfg.head_dim, action.device)
        x = self.registers.tokens(action, sigma, state)
        return _Part(x, table, [sigma[:, None]], [x.shape[1]])

    def _scene(self, cache: ContextCache) -> Tensor | None:
        """The decoder's memory before a chunk: what was carried along, or what the newest frame shows."""
        if not self.cfg.decoder.blocks or cache.memory is not None or cache.last_video is None:
            return cache.memory
        return self.decoder.begin(cache.last_video)

    def _video_heads(
        self, x: Tensor, noisy: Chunk, sigma: NoiseLevels, grid: tuple[int, ...], cache: ContextCache
    ) -> tuple[Tensor, Tensor | None, Tensor | None]:
        """Raw video, proprioception and memory from the normalised last states (B, N, D) of all tokens, video first."""
        assert noisy.video is not None
        residual, total, memory = self.cfg.prediction == "clean", grid[0] * grid[1] * grid[2], None
        seen = visible(self.cfg.blank, grid, x.device) if self.cfg.blank else None
        n = total if seen is None else len(seen)
        if self.cfg.decoder.blocks:
            newest = noisy.video[:, -1] if cache.last_video is None else cache.last_video
            known = self._scene(cache)
            known = self.decoder.begin(newest) if known is None else known
            video, memory = self.decoder(noisy.video, sigma.video, newest, x[:, :n], known)
        else:
            video = self.proj_out(x[:, :n])
            if seen is not None:
                video = video.new_zeros(len(video), total, video.shape[2]).index_copy(1, seen, video)
            video = unpatched(video, grid, self.cfg.patch).view_as(noisy.video)
        if residual and cache.last_video is not None and memory is None:
            video = video + cache.last_video[:, None]
        if noisy.proprio is None or self.cfg.registers:
            return video, None, memory
        proprio = self.proprio_out(x[:, n : n + grid[0]]).view_as(noisy.proprio)
        if residual and cache.last_proprio is not None:
            proprio = proprio + cache.last_proprio[:, None]
        return video, proprio, memory

    def _action_head(self, hidden: Tensor, x: Tensor, noisy: Tensor | None) -> Tensor | None:
        """Raw actions from the last states, as they are and normalised, of the last tokens; None without actions."""
        if noisy is None:
            return None
        if self.cfg.registers:
            k = noisy.shape[1]
            return self.registers.actions(hidden[:, -k - 1 : -1], noisy.shape[2])
        return self.action_out(x[:, -(noisy.shape[1] // self.cfg.action_patch) :]).view_as(noisy)
