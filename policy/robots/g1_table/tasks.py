"""What can be asked of the robot at the table, in words; ``truth`` tells whether it has been done."""

from __future__ import annotations

import re
from dataclasses import dataclass

from imagine.policy.robots.g1_table.scene import COLOURS
from imagine.types import ImagineError

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
