"""DreamZero's published forward pass, written again from its description: dense masks, no cache, one token at a time.

It shares nothing with :mod:`imagine.model.dit`, not even the names of the weights, which are the original ones
(``blocks.0.self_attn.q.weight``). Every token knows what it is, and two functions say in words who may look at whom.

Source: DreamZero (arXiv:2602.15922) and the behaviour of its released code; Wan 2.1 for the backbone.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

PATCH = 2  # rows and columns of latents per token; one latent frame in time


class Token(NamedTuple):
    """What a token is and where: ``block`` -1 is the first frame, which stands alone; ``index`` counts actions."""

    kind: str  # clean, noisy, action or state
    block: int
    frame: int = 0
    row: int = 0
    column: int = 0
    index: int = 0


def sees_in_training(query: Token, key: Token) -> bool:
    """Teacher forcing: [clean frames | noisy frames | actions | states], all blocks in one sequence."""
    if query.kind == "clean":  # history is video alone; bidirectional inside a block
        return key.kind == "clean" and key.block <= query.block
    if query.kind == "state" or query.block < 0:  # a state, and the noisy first frame, see themselves alone
        return key.kind == query.kind and key.block == query.block
    if key.kind == "clean":  # the first frame is block -1, so every block sees it
        return key.block < query.block
    return key.block == query.block  # its own noisy frames, actions and state


def sees_at_inference(query: Token, key: Token) -> bool:
    """One chunk after clean frames: what is new sees everything, the state too, unlike in training."""
    return sees_in_training(query, key) if query.kind == "clean" else True


class DreamZero:
    """The dense pass over a dict of original weights.

    Args:
        weights: tensors by original name, registers as (1, in, out) matrices ``W`` and (1, out) ``b``.
        heads: attention heads.
        actions: actions per block.
        block: latent frames per block.
    """

    def __init__(self, weights: dict[str, Tensor], *, heads: int, actions: int, block: int = 2):
        self.w, self.heads, self.actions, self.block = weights, heads, actions, block
        self.layers = 1 + max(int(name.split(".")[1]) for name in weights if name.startswith("blocks."))
        self.dim = weights["head.modulation"].shape[-1]

    # ------------------------------------------------------------------ small parts
    def linear(self, name: str, x: Tensor) -> Tensor:
        return x @ self.w[f"{name}.weight"].T + self.w[f"{name}.bias"]

    def register(self, name: str, x: Tensor) -> Tensor:
        return x @ self.w[f"{name}.W"][0] + self.w[f"{name}.b"][0]

    def rms(self, name: str, x: Tensor) -> Tensor:
        return x * (x.square().mean(-1, keepdim=True) + 1e-6).rsqrt() * self.w[f"{name}.weight"]

    def affine_norm(self, name: str, x: Tensor, eps: float) -> Tensor:
        return self.norm(x, eps) * self.w[f"{name}.weight"] + self.w[f"{name}.bias"]

    @staticmethod
    def norm(x: Tensor, eps: float = 1e-6) -> Tensor:
        x = x - x.mean(-1, keepdim=True)
        return x * (x.square().mean(-1, keepdim=True) + eps).rsqrt()

    def time(self, t: Tensor) -> Tensor:
        """Wan's time embedding, (B, N) to (B, N, D): cosines, then sines, in double precision as published."""
        half = self.w["time_embedding.0.weight"].shape[1] // 2
        angle = t.double()[..., None] * 10000.0 ** (-torch.arange(half).double() / half)
        x = torch.cat([angle.cos(), angle.sin()], -1).to(t)
        return self.linear("time_embedding.2", F.silu(self.linear("time_embedding.0", x)))

    def action_tokens(self, action: Tensor, t: Tensor) -> Tensor:
        """(B, K, 32) and (B, K) to (B, K, D): sines, then cosines, in single precision as published."""
        half = self.dim // 2
        angle = t[..., None] * torch.exp(-torch.arange(half) * (torch.tensor(10000.0).log() / half))
        x = torch.cat([self.register("action_encoder.W1", action), angle.sin(), angle.cos()], -1)
        return self.register("action_encoder.W3", F.silu(self.register("action_encoder.W2", x)))

    def two(self, name: str, x: Tensor) -> Tensor:
        return self.register(f"{name}.layer2", F.relu(self.register(f"{name}.layer1", x)))

    def words(self, text: Tensor) -> Tensor:
        x = F.gelu(self.linear("text_embedding.0", text), approximate="tanh")
        return self.linear("text_embedding.2", x)

    def picture(self, image: Tensor) -> Tensor:
        x = self.linear("img_emb.proj.1", self.affine_norm("img_emb.proj.0", image, 1e-5))
        return self.affine_norm("img_emb.proj.4", self.linear("img_emb.proj.3", F.gelu(x)), 1e-5)

    def patches(self, video: Tensor, condition: Tensor | None) -> Tensor:
        """(B, F, C, h, w), the condition's channels after the latent's own, to tokens frame by frame, row by row."""
        x = video if condition is None else torch.cat([video, condition], 2)
        x = F.conv3d(
            x.transpose(1, 2),
            self.w["patch_embedding.weight"],
            self.w["patch_embedding.bias"],
            stride=(1, PATCH, PATCH),
        )
        return x.flatten(2).transpose(1, 2)

    # ------------------------------------------------------------------ positions and attention
    def spin(self, token: Token) -> Tensor:
        """Unit complex numbers, one per pair of channels of a head, in double precision."""
        d = self.dim // self.heads
        side = 2 * (d // 6)
        if token.kind == "action":
            axes = [(token.block * self.actions + token.index, d)]
        elif token.kind == "state":
            axes = [(token.block, d)]
        else:
            axes = [(token.frame, d - 2 * side), (token.row, side), (token.column, side)]
        angle = [at * 10000.0 ** (-2 * i / width) for at, width in axes for i in range(width // 2)]
        return torch.polar(torch.ones(len(angle)).double(), torch.tensor(angle).double())

    def split(self, x: Tensor, spin: Tensor | None = None) -> Tensor:
        """Into heads, after turning neighbouring channels of each head as one complex number."""
        x = x.unflatten(-1, (self.heads, -1))
        if spin is None:
            return x
        pairs = torch.view_as_complex(x.double().unflatten(-1, (-1, 2)))
        return torch.view_as_real(pairs * spin[:, None]).flatten(-2).to(x)

    @staticmethod
    def attend(query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None = None) -> Tensor:
        score = torch.einsum("bnhd,bmhd->bhnm", query, key) * query.shape[-1] ** -0.5
        if mask is not None:
            score = score.masked_fill(~mask, -torch.inf)
        return torch.einsum("bhnm,bmhd->bnhd", score.softmax(-1), value).flatten(2)

    def self_attention(self, name: str, x: Tensor, spin: Tensor, mask: Tensor) -> Tensor:
        query = self.split(self.rms(f"{name}.norm_q", self.linear(f"{name}.q", x)), spin)
        key = self.split(self.rms(f"{name}.norm_k", self.linear(f"{name}.k", x)), spin)
        return self.linear(f"{name}.o", self.attend(query, key, self.split(self.linear(f"{name}.v", x)), mask))

    def cross_attention(self, name: str, x: Tensor, words: Tensor, picture: Tensor | None) -> Tensor:
        """Words and picture are attended to apart, with one query, and added before the output."""
        query = self.split(self.rms(f"{name}.norm_q", self.linear(f"{name}.q", x)))
        out = 0
        for given, suffix in ((words, ""), (picture, "_img")):
            if given is not None:
                key = self.split(self.rms(f"{name}.norm_k{suffix}", self.linear(f"{name}.k{suffix}", given)))
                out = out + self.attend(query, key, self.split(self.linear(f"{name}.v{suffix}", given)))
        return self.linear(f"{name}.o", out)

    # ------------------------------------------------------------------ the pass
    def run(
        self,
        x: Tensor,
        tokens: list[Token],
        t: Tensor,
        sees: Callable[[Token, Token], bool],
        text: Tensor,
        image: Tensor | None,
    ) -> tuple[Tensor, Tensor]:
        """Tokens x (B, N, D) with a timestep each, t (B, N), to last hidden states (B, N, D) and time embeddings."""
        assert x.shape[1] == t.shape[1] == len(tokens)
        spin = torch.stack([self.spin(token) for token in tokens])
        mask = torch.tensor([[sees(query, key) for key in tokens] for query in tokens])
        time = self.time(t)
        e0 = self.linear("time_projection.1", F.silu(time)).unflatten(-1, (6, -1))
        words, picture = self.words(text), None if image is None else self.picture(image)
        for i in range(self.layers):
            p = f"blocks.{i}"
            shift1, scale1, gate1, shift2, scale2, gate2 = (e0 + self.w[f"{p}.modulation"][:, None]).unbind(2)
            x = x + gate1 * self.self_attention(f"{p}.self_attn", self.norm(x) * (1 + scale1) + shift1, spin, mask)
            x = x + self.cross_attention(f"{p}.cross_attn", self.affine_norm(f"{p}.norm3", x, 1e-6), words, picture)
            h = F.gelu(self.linear(f"{p}.ffn.0", self.norm(x) * (1 + scale2) + shift2), approximate="tanh")
            x = x + gate2 * self.linear(f"{p}.ffn.2", h)
        return x, time

    def video_out(self, hidden: Tensor, time: Tensor, like: Tensor) -> Tensor:
        """Video tokens back to latents (B, F, C, h, w); inside a token rows come before columns, channels last."""
        shift, scale = (self.w["head.modulation"][:, None] + time[:, :, None]).unbind(2)
        x = self.linear("head.head", self.norm(hidden) * (1 + scale) + shift)
        b, f, c, h, w = like.shape
        x = x.reshape(b, f, h // PATCH, w // PATCH, PATCH, PATCH, c)
        return x.permute(0, 1, 6, 2, 4, 3, 5).reshape(b, f, c, h, w)

    def video_places(self, kind: str, like: Tensor, start: int = 0) -> list[Token]:
        """One token per patch of frames ``start``, ``start`` + 1, ..."""
        frames, (h, w) = range(start, start + like.shape[1]), like.shape[-2:]
        cells = [(row, column) for row in range(h // PATCH) for column in range(w // PATCH)]
        return [Token(kind, (f - 1) // self.block, f, row, column) for f in frames for row, column in cells]

    def per_patch(self, t: Tensor, like: Tensor) -> Tensor:
        """A timestep per frame (B, F) to one per token."""
        return t.repeat_interleave(like.shape[-2] * like.shape[-1] // PATCH**2, 1)

    def training(
        self,
        clean: Tensor,
        noisy: Tensor,
        action: Tensor,
        state: Tensor,
        text: Tensor,
        t_video: Tensor,
        t_action: Tensor,
        *,
        image: Tensor | None = None,
        condition: Tensor | None = None,
    ) -> tuple[Tensor, Tensor]:
        """Predictions for every block at once.

        Args:
            clean: (B, 1 + n * block, C, h, w) frames as they were.
            noisy: the same frames with noise.
            action: (B, n * actions, 32) noisy.
            state: (B, n, 64) at the start of each block.
            text: (B, L, width).
            t_video: (B, 1 + n * block) timestep in [0, 1000] of each noisy frame.
            t_action: (B, n * actions) of each action.
            image: (B, M, width) picture tokens, or None.
            condition: (B, 1 + n * block, channels, h, w), or None.

        Returns:
            Velocity of video, shaped as ``noisy``, and of action, shaped as ``action``.
        """
        n, k = state.shape[1], self.actions
        tokens = self.video_places("clean", clean) + self.video_places("noisy", noisy)
        tokens += [Token("action", i // k, index=i % k) for i in range(n * k)] + [Token("state", i) for i in range(n)]
        x = [self.patches(clean, condition), self.patches(noisy, condition)]
        x += [self.action_tokens(action, t_action), self.two("state_encoder", state)]
        t = [self.per_patch(t_video * 0, clean), self.per_patch(t_video, noisy), t_action, t_action[:, ::k]]
        return self._predict(x, tokens, t, sees_in_training, text, image, noisy)

    def chunk(
        self,
        past: Tensor,
        noisy: Tensor,
        action: Tensor | None,
        state: Tensor | None,
        text: Tensor,
        t_video: Tensor,
        t_action: Tensor | None,
        *,
        image: Tensor | None = None,
        condition: Tensor | None = None,
        state_sees_all: bool = True,
    ) -> tuple[Tensor, Tensor | None]:
        """Predictions for one block after clean frames, as the released code makes them, but without a cache.

        Args:
            past: (B, n, C, h, w) clean frames, n may be 0.
            noisy: (B, f, C, h, w) frames n, n + 1, ...
            action: (B, actions, 32) noisy, or None as when only frames are predicted.
            state: (B, 64), goes with ``action``.
            text: (B, L, width).
            t_video: (B, f) timestep in [0, 1000].
            t_action: (B, actions).
            image: (B, M, width) picture tokens, or None.
            condition: (B, n + f, channels, h, w), or None.
            state_sees_all: as released; False lets the state see itself alone, as in training.
        """
        n = past.shape[1]
        before, now = (None, None) if condition is None else (condition[:, :n], condition[:, n:])
        tokens = self.video_places("clean", past) + self.video_places("noisy", noisy, n)
        x, t = [self.patches(noisy, now)], [self.per_patch(t_video, noisy)]
        if n:
            x.insert(0, self.patches(past, before))
            t.insert(0, self.per_patch(torch.zeros(len(past), n), past))
        if action is not None:
            block = (n - 1) // self.block
            tokens += [Token("action", block, index=i) for i in range(self.actions)] + [Token("state", block)]
            x += [self.action_tokens(action, t_action), self.two("state_encoder", state[:, None])]
            t += [t_action, t_action[:, :1]]
        sees = sees_at_inference if state_sees_all else sees_in_training
        return self._predict(x, tokens, t, sees, text, image, noisy)

    def _predict(
        self,
        x: list[Tensor],
        tokens: list[Token],
        t: list[Tensor],
        sees: Callable[[Token, Token], bool],
        text: Tensor,
        image: Tensor | None,
        noisy: Tensor,
    ) -> tuple[Tensor, Tensor | None]:
        hidden, time = self.run(torch.cat(x, 1), tokens, torch.cat(t, 1), sees, text, image)
        kinds = [token.kind for token in tokens]
        at = [i for i, kind in enumerate(kinds) if kind == "noisy"]
        video = self.video_out(hidden[:, at], time[:, at], noisy)
        at = [i for i, kind in enumerate(kinds) if kind == "action"]
        return video, self.two("action_decoder", hidden[:, at]) if at else None
