"""Bring your own judge: anything that keeps the RewardModel protocol scores the dream, here on decoded pixels.

Run with ``python examples/own_judge.py``.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch

from imagine import Clip, Score, WorldActionModel, WorldModelVectorEnv
from imagine.configs.build import families_of
from imagine.policy.robots.g1_table.env import TableRobot
from imagine.world.dream import Dream
from imagine.world.starts import RobotStarts


class Stillness:
    """Rewards a scene that changes little; never calls anything a success."""

    def __call__(self, clip: Clip, instruction: Sequence[str]) -> Score:
        """Judge B clips by the mean absolute change of their pixels."""
        frames = clip.decode().float() / 255
        change = (frames[:, -1] - frames[:, 0]).abs().mean((1, 2, 3))
        never = torch.zeros(len(frames))
        return Score(reward=-change, success=never, valid=torch.ones(len(frames), dtype=torch.bool))


def main() -> None:
    """Dream four lanes for three chunks of doing nothing."""
    model = WorldActionModel.from_pretrained("g1-table-tiny")
    starts = RobotStarts(TableRobot(model.body), model.body, families=families_of(model))
    env = WorldModelVectorEnv(Dream(model, Stillness(), starts), 4)
    env.reset(seed=0)
    nothing = np.clip(np.zeros(env.action_space.shape, np.float32), env.action_space.low, env.action_space.high)
    for _ in range(3):
        reward = env.step(nothing)[1]
        print("reward", np.round(reward, 4))


if __name__ == "__main__":
    main()
