"""From video, proprioception and actions to tokens and their positions; the first layers of a JointDiT."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from imagine.model.blocks import DiTConfig
from imagine.model.kv_cache import ContextCache
from imagine.model.layers import TwoLinear, patches, visible, waves
from imagine.types import ShapeError


class TokenEmbedder(nn.Module):
    """How a :class:`imagine.model.dit.JointDiT` uses its input layers, which it makes itself."""

    cfg: DiTConfig
    patch_embedding: nn.Conv3d
    place: nn.Linear
    action_in: TwoLinear
    action_steer: nn.Linear

    def _video_tokens(
        self, video: Tensor, last: Tensor | None, given: Tensor | None, memory: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """(B, F, C, h, w) to tokens (B, N, D) and their grid positions (N, 3), time starting at 0.

        ``last`` (B, C, h, w) is the newest observed frame, ``given`` (B, F, Cc, h, w) the condition of these frames,
        ``memory`` (B, M, h, w) the scene before them; observed frames are read without it.
        """
        if self.cfg.see_last_frame:
            last = video if last is None else last[:, None].expand_as(video)
            video = torch.cat([video, last.to(video)], 2)
        if m := self.cfg.decoder.memory:
            known = video.new_zeros(len(video), m, *video.shape[3:]) if memory is None else memory.to(video)
            video = torch.cat([video, known[:, None].expand(-1, video.shape[1], -1, -1, -1)], 2)
        if self.cfg.condition_channels:
            want = (*video.shape[:2], self.cfg.condition_channels, *video.shape[3:])
            if given is None or tuple(given.shape) != want:
                got = None if given is None else tuple(given.shape)
                raise ShapeError(f"the condition of these frames is {got}, expected {want}; give Context.condition.")
            video = torch.cat([video, given.to(video)], 2)
        f, (h, w), (pt, ph, pw) = video.shape[1], video.shape[3:], self.cfg.patch
        if f % pt or h % ph or w % pw:
            raise ShapeError(f"video (F, h, w) is ({f}, {h}, {w}), expected multiples of the patch {self.cfg.patch}.")
        grid = torch.cartesian_prod(*(torch.arange(n, device=video.device) for n in (f // pt, h // ph, w // pw)))
        weight = self.patch_embedding.weight.flatten(1)
        tokens = F.linear(patches(video, self.cfg.patch).to(weight.dtype), weight, self.patch_embedding.bias)
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
        """Modulation of the frames by the action tokens (B, M, D) of their time, (B, blocks, D); none by pure noise."""
        return self.action_steer(tokens.unflatten(1, (blocks, -1)).flatten(2) * (1 - sigma)[:, None, None].to(tokens))

    def _vector_tokens(self, x: Tensor, per: int, embed: nn.Module, blocks: int) -> tuple[Tensor, Tensor]:
        """(B, n, d), ``per`` to a token, spread evenly over ``blocks`` temporal patches, off the image grid."""
        b, n, d = x.shape
        if n % per:
            raise ShapeError(f"{n} vectors do not fill tokens of {per}.")
        time = (torch.arange(n // per, device=x.device) + 0.5) * blocks / (n // per) - 0.5
        position = torch.stack([time, torch.full_like(time, -1.0), torch.full_like(time, -1.0)], -1)
        return embed(x.reshape(b, n // per, per * d)), position

    def _given(self, cache: ContextCache, begin: int, frames: int) -> Tensor | None:
        return None if cache.condition is None else cache.condition[:, begin : begin + frames]
