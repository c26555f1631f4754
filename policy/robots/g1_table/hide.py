"""A hand between the camera and a block: the chunk that hides it, found by trying places and going back."""

from __future__ import annotations

import numpy as np

from imagine.policy.robots.g1_table.env import G1TableEnv
from imagine.policy.robots.g1_table.masks import HEAD
from imagine.policy.robots.g1_table.render import visible
from imagine.policy.robots.g1_table.scene import TABLE_Z
from imagine.policy.robots.g1_table.world import VIEWS, G1Table

_UP, _TOWARDS = (
    (0.10, 0.14, 0.18),
    (0.0, 0.02, 0.04),
)  # m: palm above the block, and from the line of sight to the camera
_PALM = 0.095  # m from a palm down to between its fingers
_CLEAR, _FAST = 0.15, 0.04  # m: above the table, where nothing is touched; per tick
_MOVED = 1000.0  # pixels that a block shows are as bad as a millimetre that it was pushed


def hiding_chunk(env: G1TableEnv, block: int) -> np.ndarray:
    """The chunk (K, A) float32, in the environment's own action space, after which a block shows as little as can be.

    Either hand rises and goes between the camera and the block. The world is left as it was.
    """
    world, body, before = env.robot.world, env.body, env.robot.world.snapshot()
    anchor, best = body.anchor_of({body.state[0].key: world.state()}), (np.inf, np.zeros(0))
    place = world.blocks[block].copy()
    sight = world.data.cam_xpos[world.model.camera(HEAD).id] - place
    for arm in (0, 1) if place[1] > 0 else (1, 0):
        for up in _UP:
            for towards in _TOWARDS:
                goal = place + sight * up / sight[2] + [towards, 0.0, -_PALM]
                rows = [_towards(world, arm, goal, k < body.chunk_actions // 3) for k in range(body.chunk_actions)]
                shows = int((visible(world, HEAD, *VIEWS[HEAD]) == block).sum())
                cost = shows + _MOVED * float(np.linalg.norm(world.blocks[block] - place))
                if cost < best[0]:
                    best = cost, np.stack([body.action_of({"action": row}) for row in rows])
                world.restore(before)
        if best[0] < 1:
            break
    return np.clip(body.relative_action(best[1], anchor), body.action_low, body.action_high)


def _towards(world: G1Table, arm: int, goal: np.ndarray, rise: bool) -> np.ndarray:
    """One tick of a hand, closed, towards a place; what was commanded, (28,) float32."""
    targets, hand = world.targets.reshape(2, 4).copy(), world.hands[arm]
    way = np.array([*hand[:2], max(goal[2], TABLE_Z + _CLEAR)]) - hand if rise else goal - hand
    targets[arm] = [*(hand + way * min(1.0, _FAST / max(float(np.linalg.norm(way)), 1e-6))), 0.0]
    world.tick(targets.ravel())
    return world.command()
