"""What a model remembers of observed frames: explicit keys and values, owned by the caller, never by the network."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor


@dataclass
class ContextCache:
    """Keys and values of past observations and of the instruction, per layer, for B lanes.

    Attributes:
        keys: per layer (B, M, heads, d), rotated at their absolute frame index; M grows with every observed block.
        values: per layer (B, M, heads, d).
        text_keys: per layer (B, L, heads, d); computed once per instruction.
        text_values: per layer (B, L, heads, d).
        pooled_text: (B, D) mean of the projected instruction, or None.
        last_video: (B, C, h, w) newest observed latent frame, or None before the first.
        last_proprio: (B, P) newest observed proprioception, or None.
        origin: (B, A) where a zero action leads, in normalised action units, or None where actions are absolute.
        blocks: observed temporal patches so far; the next chunk starts at this frame index.
        block_tokens: tokens per observed block, so that old blocks can be dropped whole.
    """

    text_keys: list[Tensor]
    text_values: list[Tensor]
    pooled_text: Tensor | None = None
    keys: list[Tensor] = field(default_factory=list)
    values: list[Tensor] = field(default_factory=list)
    last_video: Tensor | None = None
    last_proprio: Tensor | None = None
    origin: Tensor | None = None
    blocks: int = 0
    block_tokens: int = 0

    def append(self, keys: list[Tensor], values: list[Tensor], max_blocks: int) -> None:
        """Remember one more block, forgetting the oldest beyond ``max_blocks``."""
        self.block_tokens = keys[0].shape[1]
        keep = max_blocks * self.block_tokens
        if self.keys:
            keys = [torch.cat([old, new], 1)[:, -keep:] for old, new in zip(self.keys, keys, strict=True)]
            values = [torch.cat([old, new], 1)[:, -keep:] for old, new in zip(self.values, values, strict=True)]
        self.keys, self.values = keys, values
        self.blocks += 1

    def _map(self, change: Callable[[Tensor], Tensor]) -> ContextCache:
        def one(x: Tensor | None) -> Tensor | None:
            return None if x is None else change(x)

        return ContextCache(
            text_keys=[change(x) for x in self.text_keys],
            text_values=[change(x) for x in self.text_values],
            pooled_text=one(self.pooled_text),
            keys=[change(x) for x in self.keys],
            values=[change(x) for x in self.values],
            last_video=one(self.last_video),
            last_proprio=one(self.last_proprio),
            origin=one(self.origin),
            blocks=self.blocks,
            block_tokens=self.block_tokens,
        )

    def repeat(self, n: int) -> ContextCache:
        """Each lane ``n`` times, copies adjacent: one prefill serves N candidates."""
        return self._map(lambda x: x.repeat_interleave(n, 0))

    def index(self, rows: Tensor) -> ContextCache:
        """Keep some lanes."""
        return self._map(lambda x: x[rows])

    @classmethod
    def join(cls, parts: Sequence[ContextCache]) -> ContextCache:
        """The lanes of several caches of equal length, one after another."""
        columns: list[list[Tensor]] = []
        for part in parts:
            columns.append([])
            part._map(lambda x, kept=columns[-1]: kept.append(x) or x)  # type: ignore[misc]
        joined = iter([torch.cat(rows) for rows in zip(*columns, strict=True)])
        return parts[0]._map(lambda _: next(joined))
