"""The same work the way DreamZero's released code does it, on the same weights.

Per call: keys and values of text and image are computed anew; the time embedding and its six modulations are computed
for every token; rotary positions are complex products in double precision; the memory of every layer is joined with
the call's own keys and values and stacked, although only a clean pass keeps the result. Per chunk: two branches (the
prompt and its negative) with a memory each, guidance 5 on video, 16 steps of which 8 ask the network. Nothing is
compiled. What is common to all ways (matrix products, attention kernels, norms) calls the same functions as ours.

Source: DreamZero, arXiv:2602.15922, and the behaviour of its released code; nothing is copied.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from imagine.model.dit import JointDiT
from imagine.model.layers import attend, sinusoid
from imagine.noise import schedule
from imagine.types import Context

Memory = list[Tensor]
"""Per layer (2, B, M, heads, d): keys, turned, and values."""
STEPS, GUIDANCE, CALLS = 16, 5.0, (0, 1, 2, 6, 10, 13, 14, 15)


@dataclass
class Reference:
    """Asks the weights of a JointDiT with registers. The state looks at everything (parity "dreamzero")."""

    dit: JointDiT

    # ------------------------------------------------------------------ positions
    def _angles(self, at: Tensor, width: int) -> Tensor:
        return at.double()[:, None] / 10000.0 ** (torch.arange(0, width, 2, device=at.device).double() / width)

    def _video_spin(self, start: int, frames: int, rows: int, columns: int, device: torch.device) -> Tensor:
        d = self.dit.cfg.head_dim
        side = 2 * (d // 6)
        grid = torch.cartesian_prod(*(torch.arange(n, device=device) for n in (frames, rows, columns)))
        axes = (grid[:, 0] + start, d - 2 * side), (grid[:, 1], side), (grid[:, 2], side)
        angle = torch.cat([self._angles(at, width) for at, width in axes], 1)
        return torch.polar(torch.ones_like(angle), angle)

    def _register_spin(self, block: int, actions: int, device: torch.device) -> Tensor:
        at = torch.arange(block * actions, (block + 1) * actions, device=device)
        angle = self._angles(torch.cat([at, torch.full_like(at[:1], block)]), self.dit.cfg.head_dim)
        return torch.polar(torch.ones_like(angle), angle)

    @staticmethod
    def _turn(x: Tensor, spin: Tensor) -> Tensor:
        pairs = torch.view_as_complex(x.double().unflatten(-1, (-1, 2)))
        return torch.view_as_real(pairs * spin[:, None]).flatten(-2).type_as(x)

    # ------------------------------------------------------------------ one pass
    def forward(
        self,
        memory: Memory,
        video: Tensor,
        sigma: Tensor,
        context: Context,
        *,
        start: int,
        action: Tensor | None = None,
        state: Tensor | None = None,
    ) -> tuple[Tensor, Tensor | None, Memory]:
        """Velocities of video (B, F, C, h, w) and of action, and after a clean pass the memory with
        this block behind it.

        Args:
            memory: of ``start`` latent frames; empty before the first.
            video: noisy latents, or clean ones with ``sigma`` 0.
            sigma: (B,), of every token.
            context: text, image and condition.
            start: latent frames before this block.
            action: (B, K, A), or None in a clean pass.
            state: (B, P), goes with it.
        """
        dit, cfg = self.dit, self.dit.cfg
        b, f, c, h, w = video.shape
        given = video
        if context.condition is not None:
            given = torch.cat([video, context.condition[:, start : start + f]], 2)
        pe = dit.patch_embedding
        x = F.conv3d(given.transpose(1, 2), pe.weight, pe.bias, stride=cfg.patch).flatten(2).transpose(1, 2)
        n = x.shape[1]
        spin = self._video_spin(start, f, h // cfg.patch[1], w // cfg.patch[2], x.device)
        if action is not None:
            assert state is not None
            x = torch.cat([x, dit.registers.tokens(action, sigma, state)], 1)
            block = max((start - 1) // cfg.block, 0)
            spin = torch.cat([spin, self._register_spin(block, action.shape[1], x.device)])
        embedder = dit.condition_embedder
        level = sigma[:, None].expand(-1, x.shape[1])
        time = embedder.time_embedder(sinusoid(1000 * level, cfg.freq_dim).to(embedder.time_proj.weight.dtype))
        mod = embedder.time_proj(F.silu(time)).unflatten(-1, (6, -1)).float()
        words = embedder.text_embedder(context.text)
        picture = None if context.image is None else embedder.image_embedder(context.image)  # type: ignore[misc]
        new: Memory = []
        for i, layer in enumerate(dit.blocks):
            rows = (layer.scale_shift_table.float()[:, None] + mod).unbind(2)
            shift1, scale1, gate1, shift2, scale2, gate2 = rows
            hidden = (F.layer_norm(x.float(), (cfg.dim,), eps=cfg.eps) * (1 + scale1) + shift1).type_as(x)
            query = self._turn(layer.attn1.queries(hidden), spin)
            key, value = layer.attn1.keys_values(hidden)
            key = self._turn(key, spin)
            if memory:
                key, value = torch.cat([memory[i][0], key], 1), torch.cat([memory[i][1], value], 1)
            both = torch.stack([key, value])
            if action is None:  # only a clean pass is remembered
                new.append(both)
            x = x + (layer.attn1.to_out[0](attend(query, both[0], both[1])) * gate1).type_as(x)
            query = layer.attn2.queries(layer.norm2(x.float()).type_as(x))
            seen = attend(query, *layer.attn2.keys_values(words))
            if picture is not None:
                seen = seen + attend(query, *layer.attn2.image_keys_values(picture))
            x = x + layer.attn2.to_out[0](seen)
            hidden = (F.layer_norm(x.float(), (cfg.dim,), eps=cfg.eps) * (1 + scale2) + shift2).type_as(x)
            x = x + (layer.ffn(hidden) * gate2).type_as(x)
        shift, scale = (dit.scale_shift_table[:, None] + time[:, :, None]).float().unbind(2)
        out = (F.layer_norm(x.float(), (cfg.dim,), eps=cfg.eps) * (1 + scale) + shift).type_as(x)
        grid = (f // cfg.patch[0], h // cfg.patch[1], w // cfg.patch[2])
        painted = dit.proj_out(out[:, :n]).view(b, *grid, *cfg.patch, c)
        painted = painted.permute(0, 1, 4, 7, 2, 5, 3, 6).reshape(b, f, c, h, w)
        acted = None if action is None else dit.registers.actions(x[:, n:-1], action.shape[2])
        return painted, acted, new

    def observe(self, memory: Memory, video: Tensor, context: Context, start: int) -> Memory:
        """A clean pass; the memory grows."""
        return self.forward(memory, video, torch.zeros(len(video), device=video.device), context, start=start)[2]

    def prefill(self, video: Tensor, context: Context) -> Memory:
        """The first frame, then block by block."""
        memory = self.observe([], video[:, :1], context, 0)
        for at in range(1, video.shape[1], self.dit.cfg.block):
            memory = self.observe(memory, video[:, at : at + self.dit.cfg.block], context, at)
        return memory

    # ------------------------------------------------------------------ one chunk
    def chunk(
        self,
        memories: Sequence[Memory],
        contexts: Sequence[Context],
        newest: Tensor,
        video: Tensor,
        action: Tensor,
        state: Tensor,
        *,
        start: int,
        calls: Sequence[int] = CALLS,
    ) -> tuple[Tensor, Tensor]:
        """Observe the newest block in both branches, then denoise video and actions from given noise.

        Args:
            memories: one per branch, the instruction's first, of ``start`` frames.
            contexts: likewise.
            newest: (B, F, C, h, w) clean.
            video: noise, float32.
            action: noise, float32.
            state: (B, P).
            start: latent frames before the newest block.
            calls: the steps that ask the network; the others use its last velocity.
        """
        pairs = list(zip(memories, contexts, strict=True))
        seen = [(self.observe(memory, newest, context, start), context) for memory, context in pairs]
        grid, begin, to = schedule(STEPS, 5.0).tolist(), start + newest.shape[1], newest.dtype
        for k in range(STEPS):
            if k in calls:
                sigma = torch.full((len(video),), grid[k], device=video.device)
                answers = [
                    self.forward(m, video.to(to), sigma, c, start=begin, action=action.to(to), state=state)[:2]
                    for m, c in seen
                ]
                (painted, acted), (dull, _) = answers[0], answers[-1]
                moves = dull.float() + GUIDANCE * (painted.float() - dull.float()), acted.float()  # type: ignore[union-attr]
            step = grid[k + 1] - grid[k]
            video, action = video + step * moves[0], action + step * moves[1]
        return video, action
