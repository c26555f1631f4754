"""Bring your own judge: a function of what is seen and of what was to be done.

Run with ``python examples/own_judge.py``.
"""

from __future__ import annotations

import numpy as np

import imagine


def stillness(frames: np.ndarray, instructions: list[str]) -> tuple[np.ndarray, np.ndarray]:
    """Rewards (B,) for scenes that change little, and success (B,), which nothing is; frames (B, T, H, W, 3) uint8."""
    change = np.abs(frames[:, -1].astype(float) - frames[:, 0]).mean((1, 2, 3)) / 255
    return -change, np.zeros(len(frames))


def main() -> None:
    """Dream four environments for three chunks of doing nothing."""
    env = imagine.make_env(judge=stillness, num_envs=4)
    env.reset(seed=0)
    nothing = np.clip(np.zeros(env.action_space.shape, np.float32), env.action_space.low, env.action_space.high)
    for _ in range(3):
        reward = env.step(nothing)[1]
        print("reward", np.round(reward, 4))


if __name__ == "__main__":
    main()
