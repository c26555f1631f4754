"""What a model remembers of observed frames: explicit keys and values, owned by the caller, never by the network.

Positions are relative to the oldest frame that is remembered, so that an endless episode stays within the positions a
model was trained at; the oldest blocks (sinks) can be kept for good. A forgotten block's place is taken by the newest
one, so a full cache never moves or grows.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from imagine.model.layers import rotary_table, rotate


@dataclass(frozen=True)
class Span:
    """Where a remembered block lies: its first token, its tokens, and the temporal patches it covers."""

    start: int
    tokens: int
    frames: int


@dataclass
class BlockKV:
    """Keys and values of one block, as a pass of the network leaves them for :meth:`ContextCache.append`.

    Attributes:
        keys: per layer (B, n, heads, d), not rotated.
        values: per layer (B, n, heads, d).
        position: (n, 3) float, where its tokens are, time counted from the oldest remembered frame.
        frames: temporal patches it covers.
    """

    keys: list[Tensor] = field(default_factory=list)
    values: list[Tensor] = field(default_factory=list)
    position: Tensor = field(default_factory=lambda: torch.empty(0))
    frames: int = 0


@dataclass
class ContextCache:
    """Keys and values of past observations and of the instruction, per layer, for B rows.

    Attributes:
        text_keys: per layer (B, L, heads, d); computed once per instruction.
        text_values: per layer (B, L, heads, d).
        pooled_text: (B, D) mean of the projected instruction, or None.
        image_keys: per layer (B, I, heads, d) of image tokens; empty where there are none.
        image_values: likewise.
        condition: (B, n, Cc, h, w) what every remembered frame and the chunk's are given, from the oldest on, or None.
        keys: per layer (B, M, heads, d), not rotated.
        values: per layer (B, M, heads, d).
        turned: per layer (B, M, heads, d): ``keys``, rotated at their present positions.
        position: (M, 3) float: time, row and column of each remembered token.
        spans: remembered blocks, oldest first; their tokens need not lie in that order.
        last_video: (B, C, h, w) newest observed latent frame, or None before the first.
        last_proprio: (B, P) newest observed proprioception, or None.
        origin: (B, A) where a zero action leads, in normalised action units, or None where actions are absolute.
        memory: (B, M, h, w) the scene before the next chunk, or None of a model without memory.
        blocks: observed blocks so far, forgotten ones too.
    """

    text_keys: list[Tensor]
    text_values: list[Tensor]
    pooled_text: Tensor | None = None
    image_keys: list[Tensor] = field(default_factory=list)
    image_values: list[Tensor] = field(default_factory=list)
    condition: Tensor | None = None
    keys: list[Tensor] = field(default_factory=list)
    values: list[Tensor] = field(default_factory=list)
    turned: list[Tensor] = field(default_factory=list)
    position: Tensor | None = None
    spans: tuple[Span, ...] = ()
    last_video: Tensor | None = None
    last_proprio: Tensor | None = None
    origin: Tensor | None = None
    memory: Tensor | None = None
    blocks: int = 0
    _rooms: list[tuple[Tensor, Tensor]] = field(default_factory=list)  # turned and values, with room behind them

    @property
    def frames(self) -> int:
        """Temporal patches that are remembered; the next chunk starts at this position."""
        return sum(span.frames for span in self.spans)

    def append(self, block: BlockKV, *, most: int, sinks: int = 0) -> None:
        """Remember one more block; beyond ``most`` blocks, forget the oldest that is no sink.

        Args:
            block: what to remember.
            most: blocks to remember.
            sinks: oldest blocks never to forget.
        """
        self.blocks += 1
        place, full, position = None, len(self.spans) >= most, block.position
        tokens = block.keys[0].shape[1]
        if full:
            place = self.spans[sinks]
            position = self._forget(place, sinks, position)
        at = position if self.position is None else _put(self.position[None], place, position[None])[0]
        self.position = at.clone()
        table = rotary_table(self.position, block.keys[0].shape[-1])
        if not self.spans:
            self.keys, self.values = list(block.keys), list(block.values)
            self.turned = [rotate(key, table) for key in block.keys]
        elif full and self._rooms and place is not None and place.tokens == tokens:
            self._overwrite(block, slice(place.start, place.start + tokens), table)
        else:
            self._extend(block, place, table)
            self._rooms = []
        self.spans = _spans(self.spans, place, Span(0, tokens, block.frames), sinks)

    def _forget(self, place: Span, sinks: int, position: Tensor) -> Tensor:
        """Move all later blocks, and the new one's positions, forward in time by the frames of a forgotten block."""
        later = torch.cat([torch.arange(s.start, s.start + s.tokens) for s in self.spans[sinks + 1 :]] or [_NONE])
        assert self.position is not None
        self.position[later.to(self.position.device), 0] -= place.frames
        position = position.clone()
        position[:, 0] -= place.frames
        return position

    def _overwrite(self, block: BlockKV, ring: slice, table: tuple[Tensor, Tensor]) -> None:
        """Into the forgotten block's place: nothing moves, nothing grows, addresses stay."""
        for i, (key, value) in enumerate(zip(block.keys, block.values, strict=True)):
            self.keys[i][:, ring], self.values[i][:, ring] = key, value
            self.turned[i].copy_(rotate(self.keys[i], table))

    def _extend(self, block: BlockKV, place: Span | None, table: tuple[Tensor, Tensor]) -> None:
        for i, (key, value) in enumerate(zip(block.keys, block.values, strict=True)):
            self.keys[i] = _put(self.keys[i], place, key)
            self.values[i] = _put(self.values[i], place, value)
            if place is not None:
                self.turned[i] = rotate(self.keys[i], table)
            else:
                own = tuple(t[-key.shape[1] :] for t in table)
                self.turned[i] = torch.cat([self.turned[i], rotate(key, own)], 1)  # type: ignore[arg-type]

    def reserve(self, tokens: int) -> None:
        """Make room for ``tokens`` more behind what is remembered, so that :meth:`before` copies those alone.

        For inference only: the room is scratch paper of :meth:`before`, and a full cache is from then on written in
        place, at addresses that stay.
        """
        past = self.keys[0].shape[1] if self.keys else 0
        if not past or (self._rooms and self._rooms[0][0].shape[1] >= past + tokens):
            return
        self._rooms = []
        for i, (key, value) in enumerate(zip(self.turned, self.values, strict=True)):
            shape = (key.shape[0], past + tokens, *key.shape[2:])
            room = key.new_empty(shape), value.new_empty(shape)
            room[0][:, :past], room[1][:, :past] = key, value
            self.keys[i] = self.keys[i].clone()  # written to from now on, so nobody else's
            self.turned[i], self.values[i] = room[0][:, :past], room[1][:, :past]
            self._rooms.append(room)

    def before(self, layer: int) -> Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]:
        """How to put what a layer remembers before a chunk's own (rotated) keys and values (B, n, heads, d)."""
        if not self.turned:
            return lambda key, value: (key, value)
        past, seen = self.turned[layer], self.values[layer]
        if not self._rooms or torch.is_grad_enabled():
            return lambda key, value: (torch.cat([past, key], 1), torch.cat([seen, value], 1))
        keys, values = self._rooms[layer]

        def write(key: Tensor, value: Tensor) -> tuple[Tensor, Tensor]:
            begin, end = past.shape[1], past.shape[1] + key.shape[1]
            keys[:, begin:end], values[:, begin:end] = key, value
            return keys[:, :end], values[:, :end]

        return write

    def _map(self, change: Callable[[Tensor], Tensor]) -> ContextCache:
        def one(x: Tensor | None) -> Tensor | None:
            return None if x is None else change(x)

        copy = replace(self, position=None if self.position is None else self.position.clone(), _rooms=[])
        for name in _LISTS:
            setattr(copy, name, [change(x) for x in getattr(self, name)])
        for name in _SINGLE:
            setattr(copy, name, one(getattr(self, name)))
        return copy

    def repeat(self, n: int) -> ContextCache:
        """Each row ``n`` times, copies adjacent: one prefill serves N candidates."""
        return self._map(lambda x: x.repeat_interleave(n, 0))

    def index(self, rows: Tensor) -> ContextCache:
        """Keep some rows."""
        return self._map(lambda x: x[rows])

    def put(self, rows: Tensor, other: ContextCache) -> None:
        """Overwrite some rows with those of a cache that remembers blocks of the same sizes, wherever these lie in it.

        Raises:
            ValueError: the two remember blocks of other sizes.
        """
        sizes = [[(s.tokens, s.frames) for s in c.spans] for c in (self, other)]
        if sizes[0] != sizes[1]:
            raise ValueError(f"blocks of (tokens, frames) {sizes[1]} cannot take the place of {sizes[0]}.")
        mine, theirs = (
            torch.cat([torch.arange(s.start, s.start + s.tokens) for s in c.spans] or [_NONE]).to(rows.device)
            for c in (self, other)
        )
        for name in _LISTS:
            for old, new in zip(getattr(self, name), getattr(other, name), strict=True):
                if name in ("keys", "values", "turned"):
                    old[rows[:, None], mine] = new[:, theirs]
                else:
                    old[rows] = new
        for name in _SINGLE:
            if (old := getattr(self, name)) is not None:
                old[rows] = getattr(other, name)

    @classmethod
    def join(cls, parts: Sequence[ContextCache]) -> ContextCache:
        """The rows of several caches of equal length, one after another."""
        columns: list[list[Tensor]] = []
        for part in parts:
            columns.append([])
            part._map(lambda x, kept=columns[-1]: kept.append(x) or x)  # type: ignore[misc]
        joined = iter([torch.cat(rows) for rows in zip(*columns, strict=True)])
        return parts[0]._map(lambda _: next(joined))


_LISTS = ("text_keys", "text_values", "image_keys", "image_values", "keys", "values", "turned")
_SINGLE = ("pooled_text", "condition", "last_video", "last_proprio", "origin", "memory")
_NONE = torch.zeros(0, dtype=torch.long)


def _put(old: Tensor, place: Span | None, new: Tensor) -> Tensor:
    """``new`` (B, n, ...) in the place of a span of ``old`` (B, M, ...) if it fits there, else behind what is left."""
    if place is None:
        return torch.cat([old, new], 1)
    before, after = old[:, : place.start], old[:, place.start + place.tokens :]
    return torch.cat([before, new, after] if place.tokens == new.shape[1] else [before, after, new], 1)


def _spans(spans: tuple[Span, ...], place: Span | None, new: Span, sinks: int) -> tuple[Span, ...]:
    """The blocks after :func:`_put`, oldest first."""
    if place is None:
        return (*spans, replace(new, start=sum(s.tokens for s in spans)))
    left = (*spans[:sinks], *spans[sinks + 1 :])
    if place.tokens == new.tokens:
        return (*left, replace(new, start=place.start))
    left = tuple(replace(s, start=s.start - place.tokens if s.start > place.start else s.start) for s in left)
    return (*left, replace(new, start=sum(s.tokens for s in left)))
