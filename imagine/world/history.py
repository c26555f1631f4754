"""Keys and values that a dream keeps from one chunk to the next, so that it need not read its whole past every time.

``extend``: the newest chunk is read by one clean pass, as DreamZero's inference does it. ``kept``: not even that, what
the last denoising step computed is remembered. Both differ from reading a short context anew in what they know of
frames that have been forgotten: deeper layers of a remembered block have looked at them. ``reset`` is the reference's
own: history grows from one frame, and all of it but the newest frame is dropped whenever it is full.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from imagine.model.dit import Kept
from imagine.model.kv_cache import ContextCache
from imagine.model.model import WorldActionModel
from imagine.types import Context, ImagineError, Observation
from imagine.world.step import Followed, follow


class Memory:
    """Caches of N lanes, one for each tile of lanes that a dream imagines together."""

    def __init__(self, model: WorldActionModel, how: str, lanes: int, tile: int):
        """Make room for ``lanes``; ``tile`` of them are imagined together, 0: all.

        Raises:
            ImagineError: the model's blocks are not its chunks, so that what a chunk leaves behind is no block.
        """
        dit, frames = model.cfg.dit, model.chunk_shapes["video"][0]
        if dit.block * dit.patch[0] != frames or dit.see_last_frame:
            raise ImagineError(
                f"memory={how!r} needs a model whose observed blocks are its chunks and whose frames are coded without "
                f"the newest one; {model.cfg.name!r} observes {dit.block * dit.patch[0]} frames at a time, a chunk has "
                f"{frames}; use memory='read'."
            )
        size = tile or lanes
        if how == "reset" and size > 1:
            raise ImagineError(f"memory='reset' needs lanes that are imagined alone, tile=1, got {size} together.")
        self.model, self.how = model, how
        begins = range(0, lanes, size)
        self.rows = [(torch.arange(size) + begin).clamp(max=lanes - 1) for begin in begins]
        self.caches: list[ContextCache] = []

    def begin(self, contexts: Context, lanes: np.ndarray) -> None:
        """Read the contexts (of all lanes) of those lanes that begin an episode."""
        if self.how == "reset":
            contexts = replace(contexts, video=contexts.video[:, :1], proprio=contexts.proprio[:, -1:])
        if not self.caches:
            self.caches = [self.model.prefill(contexts.index(rows)) for rows in self.rows]
            return
        if self.how == "reset":
            for lane in lanes.tolist():
                self.caches[lane] = self.model.prefill(contexts.index([lane]))
            return
        for rows, cache in zip(self.rows, self.caches, strict=True):
            at = torch.from_numpy(np.flatnonzero(np.isin(rows.numpy(), lanes)))
            if len(at):
                # The whole tile is read, so that a lane's bits do not depend on who else begins.
                fresh = self.model.prefill(contexts.index(rows))
                cache.put(at, fresh.index(at))

    def follow(self, rows: Tensor, context: Context, action: Tensor, **ask: Any) -> Followed:
        """:func:`imagine.world.step.follow` for the tile of lanes ``rows``, which then remembers the chunk."""
        cache = next(c for own, c in zip(self.rows, self.caches, strict=True) if torch.equal(own, rows))
        video = self.model.chunk_shapes["video"]
        _, ph, pw = self.model.cfg.dit.patch
        cache.reserve((video[0] + 1) * (video[2] // ph) * (video[3] // pw) + action.shape[1] + 1)
        kept = Kept([], [], torch.empty(0), 0) if self.how == "kept" else None
        seen = follow(self.model, context, action, cache=cache, kept=kept, **ask)
        if self.how == "reset" and cache.frames == self.model.cfg.context_frames:
            self.caches[int(rows[0])] = self.model.prefill(self._afresh(context, seen))
        elif kept is None:
            self.model.dit.extend(cache, seen.video, seen.proprio)
        else:
            self.model.dit.remember(cache, kept, seen.video, seen.proprio)
        return seen

    def _afresh(self, context: Context, seen: Followed) -> Context:
        """The newest imagined frame as the first of a film."""
        canvas = self.model.decode(seen.video, context.video)[:, -1:]
        felt = seen.proprio[:, -1:]
        first = self.model.encode(Observation(canvas, self.model.restore_proprio(felt)), [""] * len(context))
        return replace(first, video=first.video[:, :1], proprio=felt, text=context.text)

    def snapshot(self) -> list[ContextCache]:
        """A copy of everything that is remembered."""
        return [cache._map(torch.clone) for cache in self.caches]

    def restore(self, state: list[ContextCache]) -> None:
        """Go back to a snapshot; it can be restored any number of times."""
        self.caches = [cache._map(torch.clone) for cache in state]
