"""The training source: windows of T context and F future frames, sampled in whole batches from arrays in memory.

A window's "now" sits at every frame that has at least one frame after it in its episode. Before an episode's first
frame, that frame is repeated; after its last, the last is held and masked.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, MutableMapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from imagine.data.batches import WindowBatch
from imagine.data.cache import Encode, build_cache
from imagine.data.frames import FrameStore, read_caches
from imagine.embodiment import Embodiment
from imagine.types import DatasetError, ShapeError

__all__ = ["Encode", "WindowBatch", "Windows", "build_cache", "statistics"]

_STATISTICS_ROWS = 50_000


class Windows:
    """All windows of one or more caches of the same embodiment; ``len`` is their number."""

    def __init__(
        self,
        caches: str | Path | Sequence[str | Path],
        embodiment: Embodiment,
        context_frames: int,
        *,
        in_memory: bool = True,
    ) -> None:
        """Load caches.

        Args:
            caches: folders made by :func:`build_cache`, of one kind (latents or canvases).
            embodiment: the one they were built for.
            context_frames: T.
            in_memory: read the video into memory when it is first used; otherwise one cache's stays a memory map.

        Raises:
            DatasetError: a cache is missing, unreadable, or of another embodiment or kind.
        """
        folders = [Path(c) for c in ([caches] if isinstance(caches, str | Path) else caches)]
        self.embodiment, self.context_frames = embodiment, context_frames
        if context_frames < 1:
            raise ShapeError(f"context_frames is {context_frames}, expected at least 1.")
        kind, self.instructions, self._a = read_caches(folders, embodiment)
        self._store = FrameStore(folders, kind, in_memory=in_memory)
        if len(self._store) != (expected := int(self._a["episode_frames"].sum())):
            raise DatasetError(
                f"caches {[str(f) for f in folders]} hold {len(self._store)} frames, expected {expected}; "
                "delete them and build them again."
            )
        self._index()

    @property
    def kind(self) -> str:
        """What the frames are: "canvas" or "latents"."""
        return self._store.kind

    @property
    def video(self) -> Any:
        """(frames, C, h, w) float16 latents or (frames, H, W, 3) uint8 canvases of all episodes: an array, or a tensor
        where :meth:`to` has put it.
        """
        return self._store.array

    def _index(self) -> None:
        """Where episodes begin, where each window's "now" is, and how far from each tick a policy may imitate."""
        frames, ticks = self._a["episode_frames"], self._a["episode_ticks"]
        self._frame_start = np.cumsum(frames) - frames
        self._tick_start = np.cumsum(ticks) - ticks
        counts = np.maximum(frames - 1, 0)
        self._row_episode = np.repeat(np.arange(len(frames)), counts)
        self._row_frame = np.arange(counts.sum()) - np.repeat(np.cumsum(counts) - counts, counts)
        task, expert, n = self._a["tick_task"], self._a["tick_expert"], len(self._a["tick_task"])
        switch = np.zeros(n, bool)  # ticks at which an episode or another task begins
        switch[self._tick_start] = True
        switch[1:] |= task[1:] != task[:-1]
        self._next_success = _next(self._a["tick_success"])[:-1]
        self._task_end = _next(switch)[1:]
        self._task_start = np.maximum.accumulate(np.where(switch, np.arange(n), 0))
        self._run_end = np.where(expert, _next(switch | ~expert)[1:], np.arange(n))

    @property
    def tells_success(self) -> bool:
        """Whether every dataset says at which rows the task was done."""
        return bool(self._a["has_success"].all())

    def __len__(self) -> int:
        return len(self._row_frame)

    def rows(self, split: str = "all") -> np.ndarray:
        """Window numbers of "train", "held_out" or "all" episodes, int64."""
        if split not in ("train", "held_out", "all"):
            raise ShapeError(f"split is {split!r}, expected 'train', 'held_out' or 'all'.")
        held = self._a["episode_held_out"][self._row_episode]
        return np.flatnonzero({"train": ~held, "held_out": held, "all": np.ones_like(held)}[split])

    def training_frames(self) -> np.ndarray:
        """(n,) int64, numbers of the frames of training episodes, for indexing ``video``."""
        return np.flatnonzero(~np.repeat(self._a["episode_held_out"], self._a["episode_frames"]))

    def frames(self, numbers: np.ndarray | Tensor) -> Tensor:
        """(n, C, h, w) float16 or (n, H, W, 3) uint8, frames by their numbers, where :meth:`to` has put the video."""
        return self._store.frames(numbers)

    def to(self, device: torch.device | str) -> Windows:
        """Move the video to a device, where batches are then gathered; the rest is small and stays."""
        self._store.to(device)
        return self

    def encoded(
        self,
        encode: Callable[[Tensor], Tensor],
        device: torch.device | str,
        batch: int = 1024,
        kept: MutableMapping[Path, Tensor] | None = None,
    ) -> Windows:
        """The same windows of latents, which stay on a device.

        Args:
            encode: (N, H, W, 3) uint8 canvases on the device to (N, C, h, w) float latents.
            device: where to.
            batch: canvases per call.
            kept: latents of caches that were encoded before; those of the others are added.
        """
        latents = copy.copy(self)
        latents._store = self._store.encoded(encode, device, batch, kept)
        return latents

    def imitable(self, rows: np.ndarray) -> np.ndarray:
        """(n,) bool, whether a policy may imitate at least the first action of each window."""
        now = self._tick_start[self._row_episode[rows]] + self._row_frame[rows] * self.embodiment.frame_stride
        return (self._run_end[now] > now) & self._a["has_action"][self._row_episode[rows]]

    def chains(self, chunks: int, split: str = "all") -> np.ndarray:
        """Window numbers (E, chunks) of episodes from their first frame on, each a chunk after the one before.

        Only episodes that hold that many whole chunks take part.
        """
        rows = self.rows(split)
        first = rows[self._row_frame[rows] == 0]
        step = self.embodiment.chunk_frames
        frames = self._a["episode_frames"][self._row_episode[first]]
        first = first[frames > chunks * step]
        return first[:, None] + np.arange(chunks) * step

    def earlier(self, rows: np.ndarray, chunks: int) -> np.ndarray:
        """(n,) numbers of the windows ``chunks`` chunks before ``rows`` in the same episode, -1 where there is none."""
        back = chunks * self.embodiment.chunk_frames
        return np.where(self._row_frame[rows] >= back, np.asarray(rows) - back, -1)

    def episode_rows(self, rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """First and last window number (n,), (n,) of the episode that each row belongs to."""
        first = np.asarray(rows) - self._row_frame[rows]
        return first, first + self._a["episode_frames"][self._row_episode[rows]] - 2

    def newest(self, rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """The frame at "now" of each row, as the cache holds it, and what was true then.

        Args:
            rows: window numbers of any shape.

        Returns:
            (*rows, C, h, w) float16 or (*rows, H, W, 3) uint8; (*rows, S) float32, the dataset's
            ``observation.environment_state``; S is 0 where a dataset does not record it.
        """
        frame = self._frame_start[self._row_episode[rows]] + self._row_frame[rows]
        return self.frames(frame).cpu().numpy(), self._a["frame_truth"][frame]

    def seeds(self, rows: np.ndarray) -> np.ndarray:
        """(n,) int64, the seed of each row's episode; -1 where the dataset does not tell."""
        return np.asarray(self._a["episode_seed"][self._row_episode[rows]], np.int64)

    def instruction_ids(self, rows: np.ndarray) -> np.ndarray:
        """(n,) int64, index into ``instructions`` of each row's own."""
        now = self._tick_start[self._row_episode[rows]] + self._row_frame[rows] * self.embodiment.frame_stride
        return np.asarray(self._a["tick_task"][now], np.int64)

    def succeeded(self, rows: np.ndarray) -> np.ndarray:
        """(n,) bool, had each row's task been done at "now"?"""
        now = self._tick_start[self._row_episode[rows]] + self._row_frame[rows] * self.embodiment.frame_stride
        return np.asarray(self._a["tick_success"][now], bool)

    def __getitem__(self, row: int) -> WindowBatch:
        return self.batch(np.array([row]))

    def proprio_now(self, rows: np.ndarray) -> np.ndarray:
        """Proprioception (n, P) float32 at "now" of those rows whose dataset has state; robot units."""
        rows = rows[self._a["has_state"][self._row_episode[rows]]]
        return np.asarray(self._a["frame_proprio"][self._frame_start[self._row_episode[rows]] + self._row_frame[rows]])

    def actions(self, rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Actions relative to their anchor at "now" (B, K, A) float32, and which were recorded (B, K) bool."""
        e, j = self._row_episode[rows], self._row_frame[rows]
        now = j * self.embodiment.frame_stride
        tick = now[:, None] + np.arange(self.embodiment.chunk_actions)
        last = self._a["episode_ticks"][e, None] - 1
        absolute = self._a["tick_action"][self._tick_start[e, None] + np.minimum(tick, last)]
        relative = self.embodiment.relative_action(absolute, self._a["frame_anchor"][self._frame_start[e] + j][:, None])
        return relative, (tick <= last) & self._a["has_action"][e, None]

    def batch(self, rows: np.ndarray, *, with_video: bool = True) -> WindowBatch:
        """Gather windows by number; without their video where it is looked up later, by ``frame``.

        Raises:
            ShapeError: a row is not in 0 to len - 1.
        """
        rows = np.asarray(rows, np.int64)
        if rows.ndim != 1 or (len(rows) and not 0 <= rows.min() <= rows.max() < len(self)):
            raise ShapeError(f"rows {rows.shape} must be a vector of window numbers, expected 0 to {len(self) - 1}.")
        a, stride, future = self._a, self.embodiment.frame_stride, self.embodiment.chunk_frames
        e, j = self._row_episode[rows], self._row_frame[rows]
        wanted = j[:, None] + np.arange(1 - self.context_frames, future + 1)
        inside = np.clip(wanted, 0, a["episode_frames"][e, None] - 1)
        frame = self._frame_start[e, None] + inside
        now = self._tick_start[e] + j * stride
        success = a["tick_success"][self._tick_start[e, None] + inside[:, self.context_frames :] * stride]
        reached = self._next_success[now]
        start = self._frame_start[e] + (self._task_start[now] - self._tick_start[e]) // stride
        wait = np.where(reached < self._task_end[now], (reached - now) / self.embodiment.control_hz, np.inf)
        action, action_valid = self.actions(rows)
        reach = now[:, None] + np.arange(self.embodiment.chunk_actions)
        out = {
            "frame": frame.astype(np.int64),
            "start_proprio": a["frame_proprio"][start],
            "proprio": a["frame_proprio"][frame],
            "action": action,
            "video_valid": (wanted == inside)[:, self.context_frames :],
            "proprio_valid": a["has_state"][e],
            "action_valid": action_valid,
            "policy_valid": reach < self._run_end[now][:, None],
            "instruction_id": a["tick_task"][now].astype(np.int64),
            "episode": e.astype(np.int64),
            "success_now": a["tick_success"][now],
            "success_future": success,
            "success_in": wait.astype(np.float32),
            "success_valid": a["has_success"][e],
        }
        shown = (frame, start) if with_video else (frame[:0], start[:0])
        video = {name: self.frames(at) for name, at in zip(("video", "start_video"), shown, strict=True)}
        rest = {k: torch.from_numpy(v) for k, v in out.items()}
        return WindowBatch(**video, **rest, instructions=self.instructions)


def _next(marked: np.ndarray) -> np.ndarray:
    """(n + 1,) int: the first marked position at or after each of 0 to n; n where there is none."""
    position = np.append(np.where(marked, np.arange(len(marked)), len(marked)), len(marked))
    return np.minimum.accumulate(position[::-1])[::-1]


def statistics(windows: Windows) -> dict[str, dict[str, np.ndarray]]:
    """Normalisation statistics of the training split.

    Returns:
        ``{"proprio": {"mean", "std", "q01", "q99"}, "action": {...}}``, each (P,) or (A,) float32 in robot units;
        actions are relative to their anchor, over all K ticks and at most 50,000 windows. A modality that no
        dataset has gets mean 0, std 1, q01 -1 and q99 1.
    """
    rows = windows.rows("train")
    rows = rows[:: max(1, len(rows) // _STATISTICS_ROWS)]
    action, valid = windows.actions(rows)
    proprio = windows.proprio_now(rows)
    return {"proprio": _describe(proprio), "action": _describe(action[valid])}


def _describe(x: np.ndarray) -> dict[str, np.ndarray]:
    if not len(x):
        one = np.ones(x.shape[1], np.float32)
        return {"mean": 0 * one, "std": one, "q01": -one, "q99": one}
    q01, q99 = np.quantile(x, [0.01, 0.99], axis=0)
    out = {"mean": x.mean(0, dtype=np.float64), "std": x.std(0, dtype=np.float64), "q01": q01, "q99": q99}
    return {k: np.asarray(v, np.float32) for k, v in out.items()}
