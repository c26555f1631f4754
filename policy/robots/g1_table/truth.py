"""What is true at the table as plain numbers, and every instruction's answer read from them.

The twin knows them exactly, and a recording keeps them as ``observation.environment_state``; so any two moments of an
episode can be judged in hindsight for any instruction, not only for the one that was given.

One row, (40,) float: for each colour of ``COLOURS`` in turn whether there is such a block (0 or 1), x, y, z of its
centre (m), whether the left and the right hand touch it, and whether they hold it between both fingers, all 0 where
there is none; then x, y of the bowl, and x, y, z of the left and of the right hand (m).
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from imagine.policy.robots.g1_table.scene import COLOURS, REST_Z, SIDES
from imagine.policy.robots.g1_table.tasks import BOWL_INSIDE, CLEAR, LIFT_HEIGHT, PUSH_DISTANCE, PUT_FAMILIES, Task

if TYPE_CHECKING:
    from imagine.policy.robots.g1_table.world import G1Table

_BLOCK = ("there", "x", "y", "z", "touched_left", "touched_right", "held_left", "held_right")
NAMES: tuple[str, ...] = (
    *(f"{colour}_{field}" for colour in COLOURS for field in _BLOCK),
    *("bowl_x", "bowl_y"),
    *(f"{side}_hand_{axis}" for side in SIDES for axis in "xyz"),
)
_AT = {colour: i * len(_BLOCK) for i, colour in enumerate(COLOURS)}
_BOWL = len(COLOURS) * len(_BLOCK)
_REACH = 0.25  # m, from where on coming nearer counts as progress


def truth(world: G1Table) -> np.ndarray:
    """The world's row, (40,) float64."""
    row = np.zeros(len(NAMES))
    for i, colour in enumerate(world.colours):
        fingers = world.touched(i)
        flags = np.concatenate([fingers.any(1), fingers.all(1)])
        row[_AT[colour] : _AT[colour] + len(_BLOCK)] = [1, *world.blocks[i], *flags]
    row[_BOWL:] = [*world.bowl, *world.hands.ravel()]
    return row


def place(now: np.ndarray, colour: str) -> np.ndarray:
    """(..., 3) centre of the block of a colour, m; 0 where there is none."""
    return now[..., _AT[colour] + 1 : _AT[colour] + 4]


def is_there(now: np.ndarray, colour: str) -> np.ndarray:
    """(...) bool: is a block of this colour on the table in rows (..., 40)?"""
    return np.asarray(now[..., _AT[colour]] > 0)


def possible(now: np.ndarray, task: Task) -> np.ndarray:
    """(...) bool: are the blocks that a task is about on the table?"""
    return np.asarray(np.all([is_there(now, c) for c in task.colours], 0))


def touched(now: np.ndarray, colour: str) -> np.ndarray:
    """(...) bool: does a finger touch the block of this colour?"""
    at = _AT[colour] + 4
    return np.asarray(now[..., at : at + 2].any(-1))


def held(now: np.ndarray, colour: str) -> np.ndarray:
    """(...) bool: does a hand hold the block of this colour between both fingers?"""
    at = _AT[colour] + 6
    return np.asarray(now[..., at : at + 2].any(-1))


def accomplished(before: np.ndarray, now: np.ndarray, task: Task) -> np.ndarray:
    """Is the task done?

    Args:
        before: (..., 40) rows at the moment it was asked for; pushes are measured from there.
        now: (..., 40) rows of the moment that is judged.
        task: what was asked for.

    Returns:
        (...) bool; False where a block that it is about is not on the table.
    """
    block, there = place(now, task.colour), possible(before, task) & possible(now, task)
    if task.family in PUT_FAMILIES:
        return np.asarray(there & np.all([_rests_in_bowl(now, c) for c in task.colours], 0))
    if task.family == "pick_up":
        return np.asarray(there & (block[..., 2] > REST_Z + LIFT_HEIGHT))
    return np.asarray(there & (_pushed(before, now, task) >= PUSH_DISTANCE) & (np.abs(block[..., 2] - REST_Z) < 0.015))


def progress(before: np.ndarray, now: np.ndarray, task: Task) -> np.ndarray:
    """How far the task has got: 0 far from it, 1 done; part is for reaching the block, the rest for moving it.

    Args:
        before: as for :func:`accomplished`.
        now: likewise.
        task: what was asked for.

    Returns:
        (...) float64 in [0, 1]; 0 where a block that it is about is not on the table.
    """
    known = possible(now, task) & possible(before, task)
    if task.family == "put_both":
        each = [progress(before, now, Task("put_in_bowl", c)) for c in task.colours]
        return np.mean(each, 0) * known
    block = place(now, task.colour)
    reached = np.clip(1 - _nearest_hand(now, task.colour) / _REACH, 0, 1)
    holds = held(now, task.colour)
    lifted = np.clip((block[..., 2] - REST_Z) / LIFT_HEIGHT, 0, 1) * holds
    if task.family == "pick_up":
        way = 0.4 * reached + 0.2 * holds + 0.4 * lifted
    elif task.family == "put_in_bowl":
        over = np.clip(1 - _to_bowl(now, task.colour) / 0.35, 0, 1)
        way = 0.3 * reached + 0.15 * holds + 0.15 * lifted + 0.4 * over
    else:
        way = 0.4 * reached + 0.6 * np.clip(_pushed(before, now, task) / PUSH_DISTANCE, 0, 1)
    return np.where(accomplished(before, now, task), 1.0, np.minimum(way, 0.95)) * known


def left_alone(before: np.ndarray, now: np.ndarray, task: Task) -> np.ndarray:
    """(...) bool: has every block but those of the task stayed within 3 cm of where it was?"""
    others = [c for c in COLOURS if c not in task.colours]
    moved = [np.linalg.norm(place(now, c) - place(before, c), axis=-1) < 0.03 for c in others]
    return np.asarray(np.all(moved, 0))


def _rests_in_bowl(now: np.ndarray, colour: str) -> np.ndarray:
    low = (_to_bowl(now, colour) < BOWL_INSIDE) & (place(now, colour)[..., 2] < REST_Z + 0.04)
    return np.asarray(low & ~touched(now, colour) & (_nearest_hand(now, colour) > CLEAR))


def _nearest_hand(now: np.ndarray, colour: str) -> np.ndarray:
    """(...) distance of the nearer hand from a block, m."""
    hands = now[..., _BOWL + 2 :].reshape(*now.shape[:-1], 2, 3)
    return np.asarray(np.linalg.norm(hands - place(now, colour)[..., None, :], axis=-1).min(-1))


def _to_bowl(now: np.ndarray, colour: str) -> np.ndarray:
    return np.asarray(np.linalg.norm(place(now, colour)[..., :2] - now[..., _BOWL : _BOWL + 2], axis=-1))


def _pushed(before: np.ndarray, now: np.ndarray, task: Task) -> np.ndarray:
    """How far the block went in the wanted direction, m; left is +y."""
    moved = place(now, task.colour)[..., 1] - place(before, task.colour)[..., 1]
    return np.asarray(moved * (1 if task.family == "push_left" else -1))
