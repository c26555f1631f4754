"""Where episodes begin: blocks, bowl, lamp and hands, drawn from a seed."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from imagine.policy.robots.g1_table.looks import LOOKS, Look, draw_look
from imagine.policy.robots.g1_table.scene import COLOURS, TABLE_Z
from imagine.policy.robots.g1_table.tasks import FAMILIES, Task, blocks_of
from imagine.types import ImagineError

HOME = np.array([[0.34, 0.22, TABLE_Z + 0.17], [0.34, -0.22, TABLE_Z + 0.17]])
BLOCK_X, BLOCK_Y = (0.335, 0.455), (0.03, 0.15)
BOWL_X, BOWL_Y = (0.57, 0.59), (-0.04, 0.04)
RANDOM_HAND = 0.5  # chance that a hand starts away from home, so that its pose does not reveal the goal


@dataclass(frozen=True)
class Start:
    """All that a start is made of.

    Attributes:
        task: what to do.
        colours: of the blocks, in block order.
        blocks: (N, 3) float64, x, y in m and yaw in rad.
        bowl: (2,) float64, m.
        look: shades, shapes and lamp.
        hands: (2, 3) float64, gripper centres, m.
        grips: (2,) float64, 0 closed to 1 open.
    """

    task: Task
    colours: tuple[str, ...]
    blocks: np.ndarray
    bowl: np.ndarray
    look: Look
    hands: np.ndarray
    grips: np.ndarray


def draw_start(
    rng: np.random.Generator,
    task: Task | None,
    *,
    families: Sequence[str],
    colours: Sequence[str],
    blocks: int | Sequence[int],
    home: bool,
    look: str = "seen",
) -> Start:
    """Draw a start; with ``task`` given, its colours are among the blocks. Of several ``blocks`` one is drawn.

    The look is drawn last, so that a seed has the same start in every look.

    Raises:
        ImagineError: the look is unknown, or there are fewer blocks than the task, or every family, is about.
    """
    if look not in LOOKS:
        raise ImagineError(f"look is {look!r}, expected one of {', '.join(LOOKS)}.")
    counts = counts_of(blocks)
    blocks = counts[int(rng.integers(len(counts)))]
    task, present = _draw_task(rng, task, families, colours, blocks)
    bowl = np.array([rng.uniform(*BOWL_X), rng.uniform(*BOWL_Y)])
    poses = _draw_blocks(rng, blocks, bowl)
    hands, grips = HOME + rng.normal(0, 0.01, (2, 3)), np.ones(2)
    for arm, side in enumerate((1, -1)):
        spot, grip, moved = _draw_hand(rng, side, poses), rng.uniform(), rng.uniform() < RANDOM_HAND
        if moved and not home:
            hands[arm], grips[arm] = spot, 1.0 if grip < 0.4 else (0.0 if grip < 0.6 else rng.uniform())
    return Start(task, present, poses, bowl, draw_look(rng, look, present), hands, grips)


def counts_of(blocks: int | str | Sequence[int | str]) -> tuple[int, ...]:
    """The numbers of blocks that an option stands for, one of which is drawn; of equal ones more often.

    Raises:
        ImagineError: one is out of range or none at all.
    """
    given = (blocks,) if isinstance(blocks, int | str) else tuple(blocks)
    try:
        counts = tuple(int(n) for n in given)
    except ValueError:
        counts = ()
    if not counts or not all(1 <= n <= len(COLOURS) for n in counts):
        raise ImagineError(f"blocks is {blocks}, expected 1 to {len(COLOURS)}, one of each colour.")
    return counts


def _draw_task(
    rng: np.random.Generator, task: Task | None, families: Sequence[str], colours: Sequence[str], blocks: int
) -> tuple[Task, tuple[str, ...]]:
    """The task, and colours of the blocks on the table; those not in ``colours`` fill in where these are too few."""
    every = [*colours, *(c for c in COLOURS if c not in colours)]
    few = len(colours)
    order = [*rng.permutation(few), *(few + rng.permutation(len(every) - few))]
    if task is None:
        families = [f for f in families if blocks_of(f) <= blocks]
        if families:
            family = families[int(rng.integers(len(families)))]
            task = Task(family, *(every[i] for i in order[: blocks_of(family)]))
    if task is None or blocks < len(task.colours):
        raise ImagineError(f"blocks is {blocks}, which is fewer than the task is about.")
    present = [*task.colours, *(every[i] for i in order if every[i] not in task.colours)][:blocks]
    return task, tuple(present[i] for i in rng.permutation(blocks))


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
        if clear and new[0] < bowl[0] - 0.128:
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


__all__ = ["FAMILIES", "HOME", "Start", "counts_of", "draw_start"]
