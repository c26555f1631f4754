"""The same world, observed otherwise: one picture, or the robot's own state, where stock networks want it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from imagine.world.interface import Outcome, World
from imagine.world.spaces import ObservationType


class Observed:
    """A ``World`` whose observations are of another type."""

    def __init__(self, world: World, source: World, observation: ObservationType) -> None:
        """Observe a world.

        Args:
            world: what happens.
            source: what is seen of it, by name: the world itself, or the one within.
            observation: what is handed out of that.
        """
        self.world, self.source, self.observation = world, source, observation
        self.single_observation_space, self.single_action_space = observation.space, world.single_action_space
        self.metadata = world.metadata

    def allocate(self, num_envs: int) -> None:
        """Make room for ``num_envs`` environments."""
        self.world.allocate(num_envs)

    def reset(self, envs: np.ndarray, seeds: Sequence[int], options: Mapping[str, Any], /) -> dict[str, Any]:
        """Begin an episode in some environments."""
        return self.world.reset(envs, seeds, options)

    def step(self, actions: np.ndarray) -> Outcome:
        """Imagine one chunk in every environment."""
        return self.world.step(actions)

    def observe(self) -> Any:
        """The newest observation of every environment."""
        return self.observation(self.source.observe())

    def snapshot(self) -> Any:
        """Everything that the future depends on."""
        return self.world.snapshot()

    def restore(self, state: Any) -> None:
        """Go back to a snapshot."""
        self.world.restore(state)

    def frames(self, env: int, /) -> np.ndarray:
        """(F, H, W, 3) uint8, the newest chunk of one environment."""
        return self.world.frames(env)
