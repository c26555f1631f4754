"""Policies that read a simulator's true state through the robot's plug-in: its expert, and one that hides things.

They act in the simulators that they were made with, all of which go on to the end of their episodes together.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from imagine.agents.true_rollouts import WholeEpisodes
from imagine.types import ImagineError


class ExpertPolicy:
    """The robot's scripted expert as an :class:`imagine.types.Policy`."""

    def __init__(self, envs: WholeEpisodes) -> None:
        """``envs`` are where it acts."""
        self.envs = envs

    def act(
        self,
        observation: dict[str, np.ndarray],
        seeds: Sequence[int] | None = None,
        episodes: Sequence[int] | None = None,
    ) -> np.ndarray:
        """See :class:`imagine.types.Policy`."""
        return self.envs.next_actions(range(len(observation["proprio"])))

    def reset(self, episodes: Sequence[int] | None = None) -> None:
        """See :class:`imagine.types.Policy`; nothing is remembered."""


class HidingPolicy(ExpertPolicy):
    """Hides a thing in the first chunk, lets it be hidden for ``away`` chunks, and then acts as the expert.

    It hides what the instruction is about in every other episode, and something else in the others.
    """

    def __init__(self, envs: WholeEpisodes, away: int) -> None:
        """``envs`` are where it acts."""
        super().__init__(envs)
        self.away = away

    def act(
        self,
        observation: dict[str, np.ndarray],
        seeds: Sequence[int] | None = None,
        episodes: Sequence[int] | None = None,
    ) -> np.ndarray:
        """See :class:`imagine.types.Policy`.

        Raises:
            ImagineError: the robot does not know how to hide things.
        """
        elapsed = len(self.envs.told[0].done)
        if elapsed > self.away:
            return super().act(observation)
        if elapsed:
            return self.envs.body.hold(observation["proprio"])
        chunks = [self._hide(row) for row in range(len(observation["proprio"]))]
        return np.stack(chunks).astype(np.float32)

    def _hide(self, row: int) -> np.ndarray:
        env, objects = self.envs.envs[row], self.envs.told[row].masks[0]
        others = [i for i in objects.things if i not in objects.targets]
        first, second = (list(objects.targets), others) if row % 2 == 0 else (others, list(objects.targets))
        wanted = first or second
        chunk = self.envs.robot.hide(env, wanted[0]) if wanted else None
        if chunk is None:
            raise ImagineError(f"robot {self.envs.robot.name!r} hides nothing; give the plug-in a hide method.")
        return chunk
