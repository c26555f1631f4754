"""What can be asked of the robot at the table, in words, and how to tell that it has been done."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from imagine.types import ImagineError

from .scene import COLOURS, REST_Z

if TYPE_CHECKING:
    from .world import G1Table

FAMILIES = ("put_in_bowl", "pick_up", "push_left", "push_right")
LIFT_HEIGHT = 0.07  # m above rest
PUSH_DISTANCE = 0.07  # m along y
BOWL_INSIDE = 0.06  # m from the bowl's axis
_PHRASES = {
    "put_in_bowl": "put the {} block in the bowl",
    "pick_up": "pick up the {} block",
    "push_left": "push the {} block to the left",
    "push_right": "push the {} block to the right",
}


@dataclass(frozen=True)
class Task:
    """One task: a family and the colour of the block it is about; left is the robot's left, +y."""

    family: str
    colour: str

    @property
    def instruction(self) -> str:
        """The one sentence that asks for it."""
        return _PHRASES[self.family].format(self.colour)

    @classmethod
    def parse(cls, text: str) -> Task:
        """Understand an instruction; case, spaces and a final full stop do not matter.

        Raises:
            ImagineError: the sentence is none of those understood.
        """
        said = re.sub(r"\s+", " ", text).strip().rstrip(".").lower()
        for family, phrase in _PHRASES.items():
            for colour in COLOURS:
                if said == phrase.format(colour):
                    return cls(family, colour)
        forms = "; ".join(repr(p.format("<colour>")) for p in _PHRASES.values())
        raise ImagineError(
            f"instruction {text!r} is not one of the table's tasks; say {forms}, with a colour of {', '.join(COLOURS)}."
        )


def succeeded(world: G1Table, task: Task) -> bool:
    """True when the world's present state satisfies the task.

    Raises:
        ImagineError: no block of the task's colour is on the table.
    """
    i = world.block_of(task.colour)
    block, start = world.blocks[i], world.block_start[i]
    if task.family == "put_in_bowl":
        near = float(np.hypot(*(block[:2] - world.bowl))) < BOWL_INSIDE
        return bool(near and block[2] < REST_Z + 0.04 and not world.touched(i).any())
    if task.family == "pick_up":
        return bool(block[2] > REST_Z + LIFT_HEIGHT)
    moved = float(block[1] - start[1]) * (1 if task.family == "push_left" else -1)
    return moved >= PUSH_DISTANCE and abs(float(block[2]) - REST_Z) < 0.015
