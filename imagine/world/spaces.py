"""Gymnasium spaces of an embodiment: the dream and the real robot share them to the letter."""

from __future__ import annotations

import gymnasium as gym
import numpy as np

from imagine.embodiment import Embodiment
from imagine.types import INSTRUCTION_BYTES


def observation_space(body: Embodiment) -> gym.spaces.Dict:
    """One uint8 image per view, ``proprio`` (P,) float32 in robot units, ``instruction`` (512,) uint8 UTF-8 bytes."""
    images = {v.name: gym.spaces.Box(0, 255, (v.height, v.width, 3), np.uint8) for v in body.views}
    return gym.spaces.Dict(
        {
            **images,
            "proprio": gym.spaces.Box(-np.inf, np.inf, (body.proprio_dim,), np.float32),
            "instruction": gym.spaces.Box(0, 255, (INSTRUCTION_BYTES,), np.uint8),
        }
    )


def action_space(body: Embodiment) -> gym.spaces.Box:
    """One chunk: (K, A) float32 in robot units."""
    shape = (body.chunk_actions, body.action_dim)
    low = np.broadcast_to(body.action_low, shape).copy()
    return gym.spaces.Box(low, np.broadcast_to(body.action_high, shape).copy(), shape, np.float32)
