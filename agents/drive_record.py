"""What a robot did while it was driven, as an episode of a LeRobot dataset: every drive is data to learn from."""

from __future__ import annotations

from typing import Any

import numpy as np

from imagine.data.shard import EpisodeData
from imagine.embodiment import Embodiment
from imagine.types import TickRobot, unpack_instruction

STATE, ACTION = "observation.state", "action"


class RecordingRobot:
    """A :class:`imagine.types.TickRobot` that notes what passes through it."""

    def __init__(self, robot: TickRobot, body: Embodiment) -> None:
        """``robot`` is driven; ``body`` says which views it has, and how often they are looked at."""
        self.robot, self.body = robot, body

    @property
    def success(self) -> bool:
        """The robot's own."""
        return self.robot.success

    def reset(self, seed: int, instruction: str | None = None) -> Any:
        """Begin an episode, and its recording."""
        self._seed, self._success = seed, list[bool]()
        self._rows: dict[str, list[np.ndarray]] = {STATE: [], ACTION: []}
        self._frames: dict[str, list[np.ndarray]] = {v.name: [] for v in self.body.views}
        self._instruction = ""
        answer = self.robot.reset(seed, instruction)
        self._state = self.robot.features()[STATE]
        return answer

    def observe(self) -> dict[str, np.ndarray]:
        """The robot's own."""
        return self.robot.observe()

    def anchor(self) -> np.ndarray:
        """The robot's own."""
        return self.robot.anchor()

    def features(self) -> dict[str, np.ndarray]:
        """The robot's own."""
        return self.robot.features()

    def tick(self, move: np.ndarray) -> None:
        """Carry out one tick and note it."""
        if len(self._success) % self.body.frame_stride == 0:
            seen = self.robot.observe()
            self._instruction = unpack_instruction(seen["instruction"])
            for name, frames in self._frames.items():
                frames.append(seen[name])
        self._success.append(self.robot.success)
        self._rows[STATE].append(self._state)
        self.robot.tick(move)
        after = self.robot.features()
        self._state = after[STATE]
        self._rows[ACTION].append(after[ACTION])

    def close(self) -> None:
        """Let the robot go."""
        self.robot.close()

    def episode(self) -> EpisodeData:
        """What was recorded since the reset; no tick of it is marked as an expert's."""
        count, stride = len(self._success), self.body.frame_stride
        features: dict[str, np.ndarray] = {name: np.stack(rows) for name, rows in self._rows.items()}
        features["next.success"], features["is_expert"] = np.array(self._success), np.zeros(count, bool)
        views = {f"observation.images.{name}": np.stack(frames) for name, frames in self._frames.items()}
        return EpisodeData(features, [self._instruction] * count, views, np.arange(count) // stride, self._seed)
