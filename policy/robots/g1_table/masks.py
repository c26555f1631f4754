"""Which object each pixel of the newest frames shows, found by casting rays into the moments that were seen."""

from __future__ import annotations

import numpy as np

from imagine.policy.robots.g1_table.env import G1TableEnv
from imagine.policy.robots.g1_table.render import BOWL, ROBOT, visible
from imagine.policy.robots.g1_table.tasks import Task
from imagine.world.objects import ObjectMasks

HEAD = "top_head"


def object_masks(env: G1TableEnv) -> ObjectMasks:
    """Masks of the newest canvases: blocks by colour, robot, bowl and background; the world is left as it was."""
    world, body, now = env.robot.world, env.body, env.robot.world.snapshot()
    names = (*(f"{colour} block" for colour in world.colours), "robot", "bowl", "background")
    blocks = len(world.colours)
    place = np.full(256, blocks + 2, np.int8)  # table, floor and sky are all background
    place[:blocks], place[ROBOT], place[BOWL] = np.arange(blocks), blocks, blocks + 1
    masks = np.full((len(env.robot.moments), body.canvas_height, body.canvas_width), blocks + 2, np.int8)
    for mask, moment in zip(masks, env.robot.moments, strict=True):
        world.restore(moment)
        for v in body.views:
            seen = visible(world, v.name, v.height, v.width)
            mask[v.top : v.top + v.height, v.left : v.left + v.width] = place[seen.astype(np.uint8)]
    world.restore(now)
    asked = Task.parse(env.robot.instruction).colours
    targets = tuple(i for i, colour in enumerate(world.colours) if colour in asked)
    return ObjectMasks(masks, names, tuple(range(blocks)), targets, HEAD)
