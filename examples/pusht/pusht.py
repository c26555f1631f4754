"""gym-pusht for Imagine: what counts as success, and an expert. The T has to reach the middle; its angle is free."""

from __future__ import annotations

from typing import Any

import numpy as np

MIDDLE = np.array([256.0, 256.0])  # of a table of 512 x 512


def block(env: Any) -> np.ndarray:
    return np.array(env.block.local_to_world(env.block.center_of_gravity))


def in_the_middle(env: Any, *_: Any) -> bool:
    return bool(np.linalg.norm(block(env) - MIDDLE) < 25)


def expert(env: Any, *_: Any) -> np.ndarray:
    """Go round the T to the side away from the middle, then push."""
    t, hand = block(env), np.array(env.agent.position)
    back, arm = t - MIDDLE, hand - t
    turn = np.angle(complex(*back) / complex(*arm))  # rad, how far to go round
    distance = np.linalg.norm(arm)
    if abs(turn) < 0.2 or (abs(turn) < 0.35 and distance < 90):
        return hand - arm / distance * min(40, np.linalg.norm(back) + 15)
    if abs(turn) < 0.35:
        return t + back / np.linalg.norm(back) * 70
    round_ = complex(*arm) / distance * np.exp(1j * np.clip(turn, -0.5, 0.5)) * 115
    return t + np.array([round_.real, round_.imag])
