"""A dream as LeRobot's EnvHub wants it: one action per tick, its names of observations, ``is_success`` in ``info``.

A dream is imagined a chunk at a time, so the camera pictures change once per chunk: let a policy carry out whole chunks
(``n_action_steps`` a multiple of the chunk's actions). Units, order and mode of actions are those of the model's card.
"""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
from gymnasium.vector import AsyncVectorEnv, AutoresetMode, SyncVectorEnv

from imagine.configs.defaults import HORIZON
from imagine.configs.make_env import make_env
from imagine.types import ShapeError, unpack_instruction


class TickEnv(gym.Env[dict[str, Any], np.ndarray]):
    """A dream, or a robot's simulator, one tick at a time.

    Attributes:
        task: the instruction of the episode; also ``task_description``.
    """

    metadata = {"render_modes": ["rgb_array"]}  # noqa: RUF012 - as Gymnasium has it

    def __init__(self, env: gym.Env[Any, Any], horizon: int):
        """``env`` takes chunks (K, A), as :func:`imagine.make_env` gives, ``horizon`` of them in an episode."""
        self.env, self.render_mode = env, "rgb_array"
        space: Any = env.observation_space
        self.views = [name for name in space if name not in ("proprio", "instruction")]
        pixels = gym.spaces.Dict({name: space[name] for name in self.views})
        self.observation_space = gym.spaces.Dict({"pixels": pixels, "agent_pos": space["proprio"]})
        chunk: Any = env.action_space
        self.ticks = chunk.shape[0]
        self.action_space = gym.spaces.Box(chunk.low[0], chunk.high[0], dtype=np.float32)
        self.task = self.task_description = ""
        self._max_episode_steps = self.ticks * horizon
        self._begun: list[np.ndarray] = []

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        """Begin an episode."""
        super().reset(seed=seed)
        observation, _ = self.env.reset(seed=seed, options=options)
        self._begun = []
        self.task = self.task_description = unpack_instruction(observation["instruction"])
        self._seen = self._named(observation)
        return self._seen, {"is_success": False}

    def step(self, action: np.ndarray) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        """One tick; the chunk is imagined with its last one."""
        action = np.asarray(action, np.float32)
        if action.shape != self.action_space.shape:
            raise ShapeError(f"action has shape {action.shape}, expected {self.action_space.shape}.")
        self._begun.append(action)
        if len(self._begun) < self.ticks:
            return self._seen, 0.0, False, False, {"is_success": False}
        chunk, self._begun = np.stack(self._begun), []
        observation, reward, terminated, truncated, _ = self.env.step(chunk)
        self._seen = self._named(observation)
        return self._seen, float(reward), bool(terminated), bool(truncated), {"is_success": bool(terminated)}

    def _named(self, observation: dict[str, np.ndarray]) -> dict[str, Any]:
        return {"pixels": {name: observation[name] for name in self.views}, "agent_pos": observation["proprio"]}

    def render(self) -> np.ndarray:  # type: ignore[override]
        """The views beside each other's corners, (H, W, 3) uint8."""
        return np.asarray(self.env.render())

    def close(self) -> None:
        """Close what is behind it."""
        self.env.close()


def make_envs(folder: str | Path, n_envs: int = 1, use_async_envs: bool = False) -> dict[str, dict[int, Any]]:
    """What ``env.py`` of a model folder returns to LeRobot's ``make_env``: ``{model: {0: vector environment}}``.

    Args:
        folder: the model's; of a hub's snapshot that has but ``env.py``, the rest is fetched.
        n_envs: environments.
        use_async_envs: a process for each.

    Raises:
        ImagineError: there is no model, or no judge or start to dream with.
    """
    folder = whole(Path(folder))
    make, kind = partial(_make, folder), AsyncVectorEnv if use_async_envs else SyncVectorEnv
    return {folder.name: {0: kind([make] * n_envs, autoreset_mode=AutoresetMode.SAME_STEP)}}


def whole(folder: Path) -> Path:
    """A model folder; of a snapshot of which only a part has been fetched, all of it."""
    if (folder / "config.json").is_file() or folder.parent.name != "snapshots":
        return folder
    from huggingface_hub import snapshot_download

    repo = folder.parent.parent
    name = repo.name.removeprefix("models--").replace("--", "/")
    return Path(snapshot_download(name, revision=folder.name, cache_dir=repo.parent))


def _make(folder: Path) -> TickEnv:
    env = make_env(folder, horizon=HORIZON, render_mode="rgb_array")
    assert isinstance(env, gym.Env)
    return TickEnv(env, HORIZON)
