"""Tells a policy something else than what its success is measured by: does the instruction matter at all?"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from imagine.types import ImagineError, Policy, pack_instruction, unpack_instruction
from policy.robots.g1_table.scene import COLOURS
from policy.robots.g1_table.starts import draw_start
from policy.robots.g1_table.tasks import Task

CHOICES = ("right", "colour", "task")


class Told:
    """A ``Policy`` that hears the other block's colour, or another task, instead of what the observation says.

    Which blocks lie on the table follows from the episode's seed, which ``agents.rollout`` puts into every draw's.
    """

    def __init__(self, policy: Policy, what: str, families: Sequence[str]):
        if what not in CHOICES:
            raise ImagineError(f"--told is {what!r}, expected one of {', '.join(CHOICES)}.")
        self.policy, self.what, self.families = policy, what, list(families)

    def act(self, observation: dict[str, np.ndarray], seeds: Sequence[int] | None = None) -> np.ndarray:
        """See :class:`imagine.types.Policy`."""
        if self.what != "right":
            if seeds is None:
                raise ImagineError("to mislead a policy, its seeds must say which starts it faces; got none.")
            rows = [
                pack_instruction(self._other(unpack_instruction(row), int(seed) // 1_009))
                for row, seed in zip(observation["instruction"], seeds, strict=True)
            ]
            observation = {**observation, "instruction": np.stack(rows)}
        return self.policy.act(observation, seeds)

    def reset(self, lanes: np.ndarray | None = None) -> None:
        """See :class:`imagine.types.Policy`."""
        self.policy.reset(lanes)

    def _other(self, instruction: str, start: int) -> str:
        task = Task.parse(instruction)
        if self.what == "colour":
            rng, known = np.random.default_rng(start), {"families": self.families, "colours": tuple(COLOURS)}
            present = draw_start(rng, None, **known, blocks=2, home=False).colours  # type: ignore[arg-type]
            return Task(task.family, next(c for c in present if c != task.colour)).instruction
        at = self.families.index(task.family)
        return Task(self.families[(at + 1) % len(self.families)], task.colour).instruction
