"""Keys and values that a dream keeps from one chunk to the next, so that it need not read its whole history every time.

``extend``: the newest chunk is read by one clean pass, as DreamZero's inference does it. ``kept``: not even that, what
the last denoising step computed is kept. Both differ from reading a short context anew in what they know of frames
that have been dropped: deeper layers of a kept block have attended to them. ``reset`` is the reference's own: history
grows from one frame, and all of it but the newest frame is dropped whenever it is full.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import torch
from torch import Tensor

from imagine.model.kv_cache import BlockKV, ContextCache
from imagine.model.model import WorldActionModel
from imagine.types import Context, ImagineError, Observation, ShapeError
from imagine.world.step import DreamConfig, Prediction, predict_chunk


class HistoryCache:
    """Caches of N environments, one for each tile of them that a dream imagines together."""

    def __init__(self, model: WorldActionModel, mode: str, num_envs: int, tile: int):
        """Make room for ``num_envs``; ``tile`` of them are imagined together, 0: all.

        Raises:
            ImagineError: the model's blocks are not its chunks, so that the keys of a chunk are no block.
        """
        dit, frames = model.cfg.dit, model.chunk_shapes["video"][0]
        if dit.block * dit.patch[0] != frames or dit.see_last_frame:
            raise ImagineError(
                f"history={mode!r} needs a model whose observed blocks are its chunks and whose frames are coded "
                f"without the newest one; {model.cfg.name!r} observes {dit.block * dit.patch[0]} frames at a time, a "
                f"chunk has {frames}; use history='read'."
            )
        size = tile or num_envs
        if mode == "reset" and size > 1:
            raise ImagineError(f"history='reset' needs environments that are imagined alone, tile=1, got tile={size}.")
        self.model, self.mode = model, mode
        begins = range(0, num_envs, size)
        self.rows = [(torch.arange(size) + begin).clamp(max=num_envs - 1) for begin in begins]
        self.caches: list[ContextCache] = []

    def begin(self, contexts: Context, envs: np.ndarray) -> None:
        """Read the contexts (of all environments) of those that begin an episode."""
        if self.mode == "reset":
            contexts = replace(contexts, video=contexts.video[:, :1], proprio=contexts.proprio[:, -1:])
        if not self.caches:
            self.caches = [self.model.prefill(contexts.index(rows)) for rows in self.rows]
            return
        if self.mode == "reset":
            for env in envs.tolist():
                self.caches[env] = self.model.prefill(contexts.index([env]))
            return
        for rows, cache in zip(self.rows, self.caches, strict=True):
            at = torch.from_numpy(np.flatnonzero(np.isin(rows.numpy(), envs)))
            if len(at):
                # The whole tile is read, so that a row's bits do not depend on who else begins.
                fresh = self.model.prefill(contexts.index(rows))
                cache.put(at, fresh.index(at))

    def predict(
        self, rows: Tensor, context: Context, action: Tensor, cfg: DreamConfig, seeds: Sequence[int]
    ) -> Prediction:
        """:func:`imagine.world.step.predict_chunk` for the tile ``rows``, whose cache then holds the chunk as well."""
        cache = next(c for own, c in zip(self.rows, self.caches, strict=True) if torch.equal(own, rows))
        video = self.model.chunk_shapes["video"]
        _, ph, pw = self.model.cfg.dit.patch
        cache.reserve((video[0] + 1) * (video[2] // ph) * (video[3] // pw) + action.shape[1] + 1)
        block_kv = BlockKV() if self.mode == "kept" else None
        chunk = predict_chunk(self.model, context, action, cfg, seeds=seeds, cache=cache, block_kv=block_kv)
        if self.mode == "reset" and cache.frames == self.model.cfg.context_frames:
            self.caches[int(rows[0])] = self.model.prefill(self._newest_alone(context, chunk))
        elif block_kv is None:
            self.model.dit.extend(cache, chunk.video, chunk.proprio)
        else:
            self.model.dit.remember(cache, block_kv, chunk.video, chunk.proprio)
        cache.memory = chunk.memory
        return chunk

    def _newest_alone(self, context: Context, chunk: Prediction) -> Context:
        """The newest imagined frame as the first of a video."""
        canvas = self.model.decode(chunk.video, context.video)[:, -1:]
        proprio = chunk.proprio[:, -1:]
        first = self.model.encode(Observation(canvas, self.model.restore_proprio(proprio)), [""] * len(context))
        return replace(first, video=first.video[:, :1], proprio=proprio, text=context.text)

    def snapshot(self) -> list[ContextCache]:
        """A copy of all caches."""
        return [cache._map(torch.clone) for cache in self.caches]

    def check(self, state: list[ContextCache]) -> None:
        """Refuse what is no snapshot of such caches.

        Raises:
            ShapeError: it holds another number of caches, or something else.
        """
        if len(state) != len(self.rows) or not all(isinstance(cache, ContextCache) for cache in state):
            raise ShapeError(f"the snapshot holds {len(state)} caches, expected {len(self.rows)} tiles of this dream.")

    def restore(self, state: list[ContextCache]) -> None:
        """Go back to a snapshot; it can be restored any number of times."""
        self.check(state)
        self.caches = [cache._map(torch.clone) for cache in state]
