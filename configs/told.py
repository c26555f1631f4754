"""Tells a policy something else than what its success is measured by: does the instruction matter at all?"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from imagine.types import ImagineError, Policy, pack_instruction, unpack_instruction
from policy.robots.g1_table.scene import COLOURS
from policy.robots.g1_table.tasks import Task

CHOICES = ("right", "colour", "task")


class Told:
    """A ``Policy`` that hears another colour or another task than the observation says."""

    def __init__(self, policy: Policy, what: str, families: Sequence[str]):
        if what not in CHOICES:
            raise ImagineError(f"--told is {what!r}, expected one of {', '.join(CHOICES)}.")
        self.policy, self.what, self.families = policy, what, list(families)

    def act(self, observation: dict[str, np.ndarray], seeds: Sequence[int] | None = None) -> np.ndarray:
        """See :class:`imagine.types.Policy`."""
        if self.what != "right":
            rows = [pack_instruction(self._other(unpack_instruction(row))) for row in observation["instruction"]]
            observation = {**observation, "instruction": np.stack(rows)}
        return self.policy.act(observation, seeds)

    def reset(self, lanes: np.ndarray | None = None) -> None:
        """See :class:`imagine.types.Policy`."""
        self.policy.reset(lanes)

    def _other(self, instruction: str) -> str:
        task = Task.parse(instruction)
        if self.what == "colour":
            colours = list(COLOURS)
            return Task(task.family, colours[(colours.index(task.colour) + 1) % len(colours)]).instruction
        at = self.families.index(task.family)
        return Task(self.families[(at + 1) % len(self.families)], task.colour).instruction
