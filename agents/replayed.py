"""Recorded episodes in a robot's place: what is seen is the recording, whatever is commanded."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from imagine.data.read import LeRobotDataset
from imagine.embodiment import Embodiment
from imagine.types import ImagineError, pack_instruction


class ReplayedRobot:
    """A :class:`imagine.types.TickRobot` whose episode of a seed is one of a dataset; at its end it stands still.

    It shows how fast and how smoothly a policy answers real observations before anything moves. What it commands
    changes nothing, so success is not known.
    """

    def __init__(self, folder: Path, body: Embodiment) -> None:
        """Open a dataset.

        Raises:
            DatasetError: it is unusable.
            ImagineError: it lacks the state, the actions or the cameras of the embodiment.
        """
        self.dataset, self.body, self.success = LeRobotDataset.open(folder), body, False
        if self.dataset.check_embodiment(body) != (True, True):
            raise ImagineError(f"{folder} has not both the state and the actions of {body.name!r}.")
        self._every = self.dataset.fps / body.control_hz

    def reset(self, seed: int, instruction: str | None = None) -> None:
        """Begin the episode ``seed`` modulo their number."""
        episode, body = seed % len(self.dataset), self.body
        keys = sorted({part.key for part in (*body.state, *body.action)})
        self._rows = self.dataset.features(episode, keys)
        self._texts = self.dataset.instructions(episode)
        self._instruction, self._tick = instruction, 0
        rows = np.arange(len(self._texts))
        self._frames = {
            v.name: self.dataset.frames(episode, v.key, rows, (v.height, v.width)) for v in body.views
        }  # fmt: skip

    def observe(self) -> dict[str, np.ndarray]:
        """The recording's row of this tick."""
        views = {name: frames[self._row] for name, frames in self._frames.items()}
        text = self._texts[self._row] if self._instruction is None else self._instruction
        return {**views, "proprio": self.body.proprio_of(self._now()), "instruction": pack_instruction(text)}

    def anchor(self) -> np.ndarray:
        """See :class:`imagine.types.TickRobot`."""
        return self.body.anchor_of(self._now())

    def features(self) -> dict[str, np.ndarray]:
        """The recorded state and action of this tick."""
        return self._now()

    def tick(self, move: np.ndarray) -> None:
        """Go on to the next row; the command is not carried out."""
        self._tick += 1

    def close(self) -> None:
        """Nothing is held."""

    @property
    def _row(self) -> int:
        return min(round(self._tick * self._every), len(self._texts) - 1)

    def _now(self) -> dict[str, np.ndarray]:
        return {name: column[self._row] for name, column in self._rows.items()}
