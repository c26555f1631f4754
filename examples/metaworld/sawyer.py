"""Meta-World's Sawyer arm for Imagine: one task per environment, a camera of our own, and the scripted expert."""

from __future__ import annotations

from typing import Any

import gymnasium as gym
import mujoco
import numpy as np
from metaworld.env_dict import ALL_V3_ENVIRONMENTS_GOAL_OBSERVABLE as TASKS
from metaworld.policies import ENV_POLICY_MAP


class Sawyer(gym.Wrapper[Any, Any, Any, Any]):
    def __init__(self, task: str, render_mode: str = "rgb_array") -> None:
        env = TASKS[f"{task}-goal-observable"](seed=0)
        env._freeze_rand_vec, env.seeded_rand_vec = False, True  # every seed lays the table anew
        env.model.light_castshadow[:], env.model.vis.quality.offsamples = 0, 0  # ten times as fast without a GPU
        env.script = ENV_POLICY_MAP[task]()
        super().__init__(env)
        self.renderer = mujoco.Renderer(env.model, 64, 64)
        self.camera, self.shown = mujoco.MjvCamera(), mujoco.MjvOption()
        self.camera.lookat[:], self.shown.sitegroup[:] = (0, 0.63, 0.1), 0  # no mark at the goal
        self.camera.azimuth, self.camera.elevation, self.camera.distance = 155, -50, 0.85

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> Any:
        self.env.seed(seed)
        return self.env.reset()

    def render(self) -> np.ndarray:
        self.renderer.update_scene(self.env.data, self.camera, self.shown)
        return self.renderer.render()


def expert(env: Any, observation: np.ndarray, info: dict[str, Any]) -> np.ndarray:
    return env.script.get_action(observation)
