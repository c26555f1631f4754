"""A memoryless expert: the target of the next tick is a function of the present state and the task alone.

No phase, no plan and no randomness is carried along, so demonstrations have one answer per state and the expert
recovers from any disturbance. Sub-goals follow from geometry: hover, funnel down, close, carry, open, retreat; or get
behind and push. Targets lead the measured hand by a fixed reach, which the position servos turn into a steady speed of
about 0.4 m/s and an exponential approach close to the goal. One thing is not visible to a camera: how far a block has
been pushed since the task was set (see ``episodes._is_past_push``).
"""

from __future__ import annotations

import numpy as np

from imagine.policy.robots.g1_table.scene import BOWL_RADIUS, REST_Z, TABLE_Z
from imagine.policy.robots.g1_table.starts import HOME
from imagine.policy.robots.g1_table.tasks import BOWL_INSIDE, PUT_FAMILIES, Task
from imagine.policy.robots.g1_table.world import HAND_HIGH, HAND_LOW, G1Table

REACH = 0.028  # m a target leads the measured hand; about 0.4 m/s through the servos' lag
GRASP_Z = REST_Z + 0.002
PUSH_Z = REST_Z + 0.005
HOVER_Z = TABLE_Z + 0.115
LIFT_Z = TABLE_Z + 0.135
CARRY_Z = TABLE_Z + 0.14
CARRY_FREE = TABLE_Z + 0.11  # above it what is carried clears other blocks
DROP_Z = TABLE_Z + 0.065
SLOT = 0.035  # m along x from the bowl's axis to where a block is put, so that another one fits beside it
GAP, EDGE = 0.064, 0.045  # m between two blocks in the bowl, and how far from its axis the second goes at most
BEHIND = 0.069  # m from the block's centre to where a push begins
PUSH_GOAL = 0.10  # m; pushes go on a little past success
ENGAGED = 0.10  # m; a hand this near a block keeps the job, whatever side the block is on
OPEN, CLOSED = 1.0, 0.0


def expert_target(world: G1Table, task: Task, offset: tuple[float, float, float] = (0.0, 0.0, 0.0)) -> np.ndarray:
    """Where the hands should go next.

    Args:
        world: read, never changed.
        task: what to do now; its colours must be on the table.
        offset: added to the block's true x, y, z (m), to make a hand that misses.

    Returns:
        (8,) float64 absolute targets, as ``G1Table.tick`` takes them, within the workspace.
    """
    i = present_block(world, task)
    arm = choose_arm(world, i)
    target = np.empty((2, 4))
    target[arm] = _act(world, task, i, arm, np.array(offset))
    target[1 - arm] = _rest(world, 1 - arm)
    target[:, :3] = np.clip(target[:, :3], HAND_LOW, HAND_HIGH)  # where the robot would stop by itself
    return target.ravel()


def present_block(world: G1Table, task: Task) -> int:
    """Index of the block to be moved now: of two the one in hand, else the first that is not in the bowl yet."""
    named = [world.block_of(colour) for colour in task.colours]
    for i in named[:-1]:
        if world.held(i).any() or not (_in_bowl(world, i) or world.held(named[-1]).any()):
            return i
    return named[-1]


def choose_arm(world: G1Table, block: int) -> int:
    """0 (left) or 1: the hand that holds the block, else the one already at it, else the one on its side."""
    held = world.held(block)
    if held.any():
        return int(held.argmax())
    gaps = np.linalg.norm(world.hands - world.blocks[block], axis=1)
    near = int(gaps.argmin())
    if gaps[near] < ENGAGED:
        return near
    return 0 if world.blocks[block, 1] > 0 else 1


def _act(world: G1Table, task: Task, i: int, arm: int, offset: np.ndarray) -> np.ndarray:
    for other in range(len(world.colours)):
        if other != i and world.held(other)[arm]:
            return _put_down(world, other, arm)
    if task.family in PUT_FAMILIES:
        return _put(world, i, arm, offset)
    if task.family == "pick_up":
        if world.held(i)[arm]:
            return _step(world, arm, np.array([*world.hands[arm, :2], LIFT_Z]), CLOSED)
        return _grasp(world, i, arm, offset)
    return _push(world, i, arm, 1.0 if task.family == "push_left" else -1.0, offset)


def _rest(world: G1Table, arm: int) -> np.ndarray:
    """The idle hand goes home open, putting down first what it may hold."""
    for block in range(len(world.colours)):
        if world.held(block)[arm]:
            return _put_down(world, block, arm)
    return _travel(world, arm, HOME[arm], OPEN)


def _step(world: G1Table, arm: int, goal: np.ndarray, grip: float) -> np.ndarray:
    """Lead the measured hand towards a goal (3,) by at most ``REACH``."""
    delta = goal - world.hands[arm]
    far = float(np.sqrt(delta @ delta))
    return np.append(world.hands[arm] + delta * min(1.0, REACH / (far + 1e-9)), grip)


def _travel(world: G1Table, arm: int, goal: np.ndarray, grip: float, safe_z: float = TABLE_Z + 0.09) -> np.ndarray:
    """Go to a high goal, straight up first where low, so that nothing is swept off the table."""
    hand = world.hands[arm]
    if np.hypot(*(hand[:2] - world.bowl)) < BOWL_RADIUS:
        safe_z = TABLE_Z + 0.12  # out of the bowl
    if world.grips[arm] < 0.15 and hand[2] < TABLE_Z + 0.09:
        grip = CLOSED  # fingers that open beside a block would throw it
    free = float(np.clip((hand[2] - safe_z + 0.035) / 0.03, 0.0, 1.0))
    return _step(world, arm, np.array([*(hand[:2] + free * (goal[:2] - hand[:2])), goal[2]]), grip)


def _grasp(world: G1Table, i: int, arm: int, offset: np.ndarray) -> np.ndarray:
    """Open, hover, funnel down, close."""
    hand, grip = world.hands[arm], float(world.grips[arm])
    block = world.blocks[i] + offset
    miss = float(np.abs(hand[:2] - block[:2]).max())
    low = hand[2] < max(block[2], REST_Z) + 0.014
    if low and miss < (0.012 if grip > 0.9 else 0.022):
        return _step(world, arm, np.array([*block[:2], max(block[2], GRASP_Z)]), CLOSED)
    if miss < 0.02 and (grip > 0.8 or hand[2] > HOVER_Z - 0.02):
        ready = np.clip((grip - 0.6) / 0.25, 0.0, 1.0) * np.clip((0.024 - miss) / 0.012, 0.0, 1.0)
        z = HOVER_Z + ready * (max(block[2], GRASP_Z) - HOVER_Z)
        return _step(world, arm, np.array([*block[:2], z]), OPEN)
    return _travel(world, arm, np.array([*block[:2], HOVER_Z]), OPEN)


def _put(world: G1Table, i: int, arm: int, offset: np.ndarray) -> np.ndarray:
    """Grasp, carry above the bowl, lower, open, retreat and stay at home."""
    block, hand = world.blocks[i], world.hands[arm]
    away = _slot(world, i) - block[:2]
    gap = float(np.hypot(*away))
    if not world.held(i)[arm]:
        if _in_bowl(world, i):
            return _travel(world, arm, HOME[arm], OPEN)
        return _grasp(world, i, arm, offset)
    if gap < 0.03 and hand[2] < DROP_Z + 0.012:
        return _step(world, arm, hand.copy(), OPEN)
    if gap < 0.025:
        return _step(world, arm, np.array([*(hand[:2] + away), DROP_Z]), CLOSED)
    return _travel(world, arm, np.array([*(hand[:2] + away), CARRY_Z]), CLOSED, CARRY_FREE)


def _in_bowl(world: G1Table, i: int) -> bool:
    """Does a block lie in the bowl, or fall into it, and not on another one?"""
    away = world.blocks[i, :2] - world.bowl
    return bool(away @ away < BOWL_INSIDE**2 and world.blocks[i, 2] < REST_Z + 0.05)


def _slot(world: G1Table, i: int) -> np.ndarray:
    """Where in the bowl a block is to go, (2,) m: its far half, or the near one where another block is in the far."""
    others = [world.blocks[k, 0] - world.bowl[0] for k in range(len(world.colours)) if k != i and _in_bowl(world, k)]
    taken = [x for x in others if x > -0.01]
    x = max(min(-SLOT, *(x - GAP for x in taken)), -EDGE) if taken else SLOT
    return np.array([world.bowl[0] + x, world.bowl[1]])


def _put_down(world: G1Table, block: int, arm: int) -> np.ndarray:
    """Let go of a block that is not wanted: near the table, or at once when it stands on something."""
    hand, below = world.hands[arm].copy(), float(world.blocks[block, 2])
    if below < REST_Z + 0.015 or np.hypot(*(world.blocks[block, :2] - world.bowl)) < 0.11:
        return np.append(hand, OPEN)
    others = np.delete(np.arange(len(world.colours)), block)
    if (np.abs(world.blocks[others, :2] - world.blocks[block, :2]).max(1) < 0.05).any():
        return np.append(hand, OPEN)
    return _step(world, arm, np.array([hand[0], hand[1], GRASP_Z]), CLOSED)


def _push(world: G1Table, i: int, arm: int, sign: float, offset: np.ndarray) -> np.ndarray:
    """Get behind the block with a closed hand, push along y, rise when it has moved enough."""
    hand, block = world.hands[arm], world.blocks[i] + offset
    if sign * (world.blocks[i, 1] - world.block_start[i, 1]) > PUSH_GOAL and world.blocks[i, 2] < REST_Z + 0.02:
        return _travel(world, arm, HOME[arm], OPEN)
    if world.held(i)[arm]:
        return _put_down(world, i, arm)
    behind = sign * float(block[1] - hand[1])
    side = abs(float(hand[0] - block[0]))
    closed = world.grips[arm] < 0.2
    if hand[2] < PUSH_Z + 0.02 and closed and 0.025 < behind < 0.085 and side < 0.02:
        return _step(world, arm, np.array([block[0], hand[1] + sign * REACH, PUSH_Z]), CLOSED)
    spot = np.array([block[0], block[1] - sign * BEHIND])
    miss = float(np.abs(hand[:2] - spot).max())
    if miss < 0.018 and (closed or hand[2] > HOVER_Z - 0.02):
        ready = float(closed) * np.clip((0.02 - miss) / 0.008, 0.0, 1.0)
        return _step(world, arm, np.array([*spot, HOVER_Z + ready * (PUSH_Z - HOVER_Z)]), CLOSED)
    return _travel(world, arm, np.array([*spot, HOVER_Z]), CLOSED)
