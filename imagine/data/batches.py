"""Which windows each training batch holds: an endless shuffled order that can be entered anywhere."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from imagine.types import ShapeError


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
