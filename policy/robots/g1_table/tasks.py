"""What can be asked of the robot at the table, in words; ``truth`` tells whether it has been done."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import permutations

from imagine.policy.robots.g1_table.scene import COLOURS
from imagine.types import ImagineError

FAMILIES = ("put_in_bowl", "pick_up", "push_left", "push_right", "put_both")
PUT_FAMILIES = ("put_in_bowl", "put_both")
LIFT_HEIGHT = 0.07  # m above rest
PUSH_DISTANCE = 0.07  # m along y
BOWL_INSIDE = 0.065  # m from the bowl's axis
CLEAR = 0.08  # m that every hand keeps from what it has put into the bowl
_PHRASES = {
    "put_in_bowl": "put the {} block in the bowl",
    "pick_up": "pick up the {} block",
    "push_left": "push the {} block to the left",
    "push_right": "push the {} block to the right",
    "put_both": "put the {} and the {} block in the bowl",
}


@dataclass(frozen=True)
class Task:
    """One task: a family and the blocks it is about; left is the robot's left, +y.

    Attributes:
        family: one of ``FAMILIES``.
        colour: of the block, or of the first of two.
        second: of the other block, for ``put_both`` alone.

    Raises:
        ImagineError: the family wants another number of blocks, or two different ones.
    """

    family: str
    colour: str
    second: str | None = None

    def __post_init__(self) -> None:
        if len(set(self.colours)) != blocks_of(self.family):
            given = ", ".join(self.colours)
            raise ImagineError(f"{self.family} is about {blocks_of(self.family)} block(s), and was given {given}.")

    @property
    def colours(self) -> tuple[str, ...]:
        """Of the blocks it is about, in the order of the sentence."""
        return (self.colour,) if self.second is None else (self.colour, self.second)

    @property
    def instruction(self) -> str:
        """The one sentence that asks for it."""
        return _PHRASES[self.family].format(*self.colours)

    @classmethod
    def about(cls, family: str, colours: Sequence[str]) -> Task:
        """A task of a family about as many of the given colours as it needs, in their order."""
        return cls(family, *colours[: blocks_of(family)])

    @classmethod
    def parse(cls, text: str) -> Task:
        """Understand an instruction; case, spaces and a final full stop do not matter.

        Raises:
            ImagineError: the sentence is none of those understood.
        """
        said = re.sub(r"\s+", " ", text).strip().rstrip(".").lower()
        for task in tasks_of(FAMILIES, tuple(COLOURS)):
            if said == task.instruction:
                return task
        forms = "; ".join(repr(p.replace("{}", "<colour>")) for p in _PHRASES.values())
        raise ImagineError(
            f"instruction {text!r} is not one of the table's tasks; say {forms}, with a colour of {', '.join(COLOURS)}."
        )


def blocks_of(family: str) -> int:
    """How many blocks a family is about."""
    return _PHRASES[family].count("{}")


def tasks_of(families: Iterable[str], colours: Sequence[str]) -> tuple[Task, ...]:
    """Every task of some families with blocks of some colours."""
    return tuple(Task(f, *named) for f in families for named in permutations(colours, blocks_of(f)))
