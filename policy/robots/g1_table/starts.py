"""Where episodes begin: blocks, bowl, lamp and hands, drawn from a seed."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from imagine.policy.robots.g1_table.render import Light
from imagine.policy.robots.g1_table.scene import COLOURS, TABLE_Z
from imagine.policy.robots.g1_table.tasks import FAMILIES, Task

HOME = np.array([[0.36, 0.25, TABLE_Z + 0.17], [0.36, -0.25, TABLE_Z + 0.17]])
BLOCK_X, BLOCK_Y = (0.34, 0.455), (0.03, 0.19)
BOWL_X, BOWL_Y = (0.555, 0.585), (-0.04, 0.04)
RANDOM_HAND = 0.5  # chance that a hand starts away from home, so that its pose does not reveal the goal


@dataclass(frozen=True)
class Start:
    """All that a start is made of.

    Attributes:
        task: what to do.
        colours: of the blocks, in block order.
        blocks: (N, 3) float64, x, y in m and yaw in rad.
        bowl: (2,) float64, m.
        light: the lamp.
        hands: (2, 3) float64, gripper centres, m.
        grips: (2,) float64, 0 closed to 1 open.
    """

    task: Task
    colours: tuple[str, ...]
    blocks: np.ndarray
    bowl: np.ndarray
    light: Light
    hands: np.ndarray
    grips: np.ndarray


def draw_start(
    rng: np.random.Generator,
    task: Task | None,
    *,
    families: Sequence[str],
    colours: Sequence[str],
    blocks: int,
    home: bool,
) -> Start:
    """Draw a start; with ``task`` given, its colour is among the blocks."""
    if task is None:
        task = Task(families[int(rng.integers(len(families)))], colours[int(rng.integers(len(colours)))])
    others = [c for c in (*colours, *(c for c in COLOURS if c not in colours)) if c != task.colour]
    preferred = sum(c in colours for c in others)
    order = [*rng.permutation(preferred), *(preferred + rng.permutation(len(others) - preferred))]
    present = [task.colour, *(others[i] for i in order)][:blocks]
    present = [present[i] for i in rng.permutation(blocks)]
    bowl = np.array([rng.uniform(*BOWL_X), rng.uniform(*BOWL_Y)])
    poses = _draw_blocks(rng, blocks, bowl)
    tilt = rng.uniform(-0.45, 0.45, 2)
    light = Light((tilt[0], tilt[1], 0.9), rng.uniform(0.38, 0.52), rng.uniform(0.5, 0.7))
    hands, grips = HOME + rng.normal(0, 0.01, (2, 3)), np.ones(2)
    for arm, side in enumerate((1, -1)):
        spot, grip, moved = _draw_hand(rng, side, poses), rng.uniform(), rng.uniform() < RANDOM_HAND
        if moved and not home:
            hands[arm], grips[arm] = spot, 1.0 if grip < 0.4 else (0.0 if grip < 0.6 else rng.uniform())
    return Start(task, tuple(present), poses, bowl, light, hands, grips)


def _draw_blocks(rng: np.random.Generator, n: int, bowl: np.ndarray) -> np.ndarray:
    """Block poses (n, 3), apart enough for a gripper and clear of the bowl and of y = 0."""
    poses: list[np.ndarray] = []
    tries = 0
    while len(poses) < n:
        tries += 1
        if tries % 60 == 0:
            poses = []  # painted into a corner
        side = 1 if rng.uniform() < 0.5 else -1
        new = np.array([rng.uniform(*BLOCK_X), side * rng.uniform(*BLOCK_Y), rng.uniform(-0.26, 0.26)])
        clear = all(abs(new[0] - p[0]) > 0.075 or abs(new[1] - p[1]) > 0.125 for p in poses)
        # A pushed block must pass in front of the bowl wherever it starts.
        if clear and new[0] < bowl[0] - 0.118:
            poses.append(new)
    return np.array(poses)


def _draw_hand(rng: np.random.Generator, side: int, blocks: np.ndarray) -> np.ndarray:
    """A place (3,) for one hand over its half of the workspace, above any block it would touch."""
    spot = np.array([rng.uniform(0.33, 0.54), side * rng.uniform(0.05, 0.27), TABLE_Z + rng.uniform(0.03, 0.17)])
    gap = np.abs(blocks[:, :2] - spot[:2])
    over = ((gap[:, 0] < 0.06) & (gap[:, 1] < 0.11)).any() or spot[0] > 0.44
    if over:
        spot[2] = TABLE_Z + rng.uniform(0.10, 0.17)
    return spot


__all__ = ["FAMILIES", "HOME", "Start", "draw_start"]
