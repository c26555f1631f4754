"""A robot's environment with the manners of a dream: what one refuses, the other refuses, in the same words."""

from __future__ import annotations

from typing import Any

import gymnasium as gym
import numpy as np
from gymnasium.envs.registration import EnvSpec

from imagine.types import ShapeError
from imagine.world.infos import plain
from imagine.world.interface import (
    as_numbers,
    checked_options,
    episode_seed,
    is_seed,
    next_episode,
    one_each,
    require_going,
    require_reset,
    with_horizon,
)
from imagine.world.spaces import ObservationType


class RobotEnv(gym.Wrapper[Any, np.ndarray, Any, np.ndarray]):
    """One robot. As of a dream, an environment's whole future is a function of its first seed and of the actions."""

    def __init__(self, env: gym.Env[Any, Any], observation: ObservationType, horizon: int) -> None:
        """Wrap what :meth:`imagine.policy.robots.plugin.RobotPlugin.make_env` made.

        Args:
            env: the robot.
            observation: what is handed out of its observations.
            horizon: chunks after which it truncates.
        """
        super().__init__(env)
        self.observation, self.horizon, self.observation_space = observation, horizon, observation.space
        self._episode: tuple[int, int] | None = None
        self._begun = self._over = self._closed = False

    @property
    def spec(self) -> EnvSpec | None:  # type: ignore[override]
        """What Gymnasium made it of."""
        return with_horizon(self.env.spec, self.horizon)

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        """Begin an episode; without a seed, the next one.

        Raises:
            ShapeError: the seed is not in [0, 2^63).
            ImagineError: an option is unknown or out of range.
        """
        self._require("reset", was_reset=False)
        given = checked_options(options)
        if not is_seed(seed):
            raise ShapeError(f"seed is {seed!r}, expected a whole number in [0, 2^63), or None.")
        one_each(given.get("instruction"), 1)
        episode = next_episode(self._episode, seed, self.np_random)
        kept = {k: v for k, v in given.items() if v is not None}
        observation, info = self.env.reset(seed=episode_seed(*episode), options=kept)
        self._episode, self._begun, self._over = episode, True, False
        return self.observation(observation), {k: plain(v) for k, v in info.items()}

    def step(self, action: np.ndarray) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        """Carry out one chunk, (K, A) float in robot units.

        Raises:
            ShapeError: wrong shape, NaN or infinity, or far out of bounds.
            ResetNeeded: before the first reset, or once the episode is over.
        """
        self._require("step")
        require_going(np.array([self._over]))
        action = as_numbers(action, self.action_space.shape)
        observation, reward, terminated, truncated, info = self.env.step(action)
        self._over = bool(terminated or truncated)
        info = {k: plain(v) for k, v in info.items()}
        return self.observation(observation), float(reward), bool(terminated), bool(truncated), info

    def render(self) -> Any:
        """The newest frame (H, W, 3) uint8; None without a render mode."""
        self._require("render")
        return self.env.render() if self.render_mode else None

    def close(self) -> None:
        """Release the robot; any later call but this one raises ``ClosedEnvironmentError``."""
        self._closed = True
        self.env.close()

    def _require(self, what: str, *, was_reset: bool = True) -> None:
        require_reset(what, self._begun or not was_reset, self._closed)
