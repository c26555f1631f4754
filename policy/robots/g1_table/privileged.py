"""The scripted expert as chunks: what it would do next from the true state, found by trying it and going back."""

from __future__ import annotations

import numpy as np

from imagine.policy.robots.g1_table.env import G1TableEnv
from imagine.policy.robots.g1_table.expert import expert_target


def expert_chunk(env: G1TableEnv) -> np.ndarray:
    """The expert's next chunk (K, A) float32 in the environment's own action space; the world is left as it was."""
    world, body = env.robot.world, env.body
    key, before = body.state[0].key, world.snapshot()
    anchor = body.anchor_of({key: world.state()})
    rows = []
    for _ in range(body.chunk_actions):
        world.tick(expert_target(world, world.task))
        rows.append(body.action_of({"action": world.command()}))
    world.restore(before)
    return np.clip(body.relative_action(np.stack(rows), anchor), body.action_low, body.action_high)
