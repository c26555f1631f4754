"""What a batch of windows is, and which windows each training batch holds: an endless order, entered anywhere."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from torch import Tensor

from imagine.types import Batched, ShapeError


@dataclass(frozen=True)
class WindowBatch(Batched):
    """B windows; the T context frames come first, oldest first, then the F future frames.

    Attributes:
        video: (B, T + F, C, h, w) float16 latents, or (B, T + F, H, W, 3) uint8 of a canvas cache.
        start_video: (B, C, h, w) the frame at which the instruction of "now" was given, likewise; success is measured
            from there. It is the episode's first frame unless the instruction changed on the way.
        frame: (B, T + F) int64, numbers of the frames for :meth:`imagine.data.windows.Windows.frames`.
        start_proprio: (B, P) float32, robot units, at that frame.
        proprio: (B, T + F, P) float32, robot units.
        action: (B, K, A) float32, robot units: recorded action minus its anchor at "now".
        video_valid: (B, F) bool, False on future frames after the episode's end.
        proprio_valid: (B,) bool, False where the dataset has no state.
        action_valid: (B, K) bool, False after the episode's end and where the dataset has no actions.
        policy_valid: (B, K) bool, True up to the first tick that is no expert's, has another task than "now", or
            lies after the episode's end. Without an ``is_expert`` feature every tick counts as the expert's.
        instruction_id: (B,) int64, index into ``instructions``.
        episode: (B,) int64, position of the episode in the cache.
        success_now: (B,) bool.
        success_future: (B, F) bool.
        success_in: (B,) float32, seconds from "now" to the first success under the same task; infinite if none.
        success_valid: (B,) bool, False where the dataset does not tell success.
        instructions: every instruction of the caches.
    """

    video: Tensor
    start_video: Tensor
    frame: Tensor
    start_proprio: Tensor
    proprio: Tensor
    action: Tensor
    video_valid: Tensor
    proprio_valid: Tensor
    action_valid: Tensor
    policy_valid: Tensor
    instruction_id: Tensor
    episode: Tensor
    success_now: Tensor
    success_future: Tensor
    success_in: Tensor
    success_valid: Tensor
    instructions: tuple[str, ...]

    def __len__(self) -> int:
        return self.frame.shape[0]


class WindowSampler:
    """Endless batches of window numbers, shuffled anew each epoch; a function of its seed and position alone."""

    def __init__(self, rows: np.ndarray, batch_size: int, seed: int) -> None:
        if not len(rows) or batch_size < 1:
            raise ShapeError(f"got {len(rows)} windows and batch size {batch_size}, expected at least 1 of each.")
        self._rows, self._batch_size, self._seed = np.asarray(rows, np.int64), batch_size, seed
        self._epoch, self._position = 0, 0
        self._order = self._shuffle()

    def _shuffle(self) -> np.ndarray:
        return self._rows[np.random.default_rng([self._seed, self._epoch]).permutation(len(self._rows))]

    def __iter__(self) -> Iterator[np.ndarray]:
        return self

    def __next__(self) -> np.ndarray:
        """The next (batch_size,) int64 window numbers; a batch may span two epochs."""
        parts, missing = [], self._batch_size
        while missing:
            part = self._order[self._position : self._position + missing]
            parts.append(part)
            missing -= len(part)
            self._position += len(part)
            if self._position == len(self._rows):
                self._epoch, self._position = self._epoch + 1, 0
                self._order = self._shuffle()
        return np.concatenate(parts)

    def at(self, step: int) -> np.ndarray:
        """Batch number ``step`` of the same endless order, whatever was drawn before."""
        epoch, position = divmod(step * self._batch_size, len(self._rows))
        if (epoch, position) != (self._epoch, self._position):
            self.load_state_dict({**self.state_dict(), "epoch": epoch, "position": position})
        return next(self)

    def state_dict(self) -> dict[str, int]:
        """Where the sampler is, as plain numbers."""
        return {"seed": self._seed, "epoch": self._epoch, "position": self._position, "windows": len(self._rows)}

    def load_state_dict(self, state: dict[str, int]) -> None:
        """Go on exactly where ``state`` was taken.

        Raises:
            ShapeError: it was taken over another number of windows.
        """
        if state["windows"] != len(self._rows):
            raise ShapeError(
                f"the sampler state counts {state['windows']} windows, expected {len(self._rows)}; "
                "resume with the dataset that the run was started with."
            )
        self._seed, self._epoch, self._position = state["seed"], state["epoch"], state["position"]
        self._order = self._shuffle()
