"""Tells a policy something else than what its success is measured by: does the instruction matter at all?"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from imagine.agents.rollout import RealLanes
from imagine.policy.robots.g1_table.scene import COLOURS
from imagine.policy.robots.g1_table.starts import draw_start
from imagine.policy.robots.g1_table.tasks import Task
from imagine.types import ImagineError, Policy, pack_instruction, unpack_instruction

CHOICES = ("right", "colour", "task")


class Told:
    """A ``Policy`` that hears the other block's colour, or another task, instead of what the observation says.

    Which blocks lie on the table follows from the episode's seed, which every draw's seed holds.
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
                pack_instruction(self.other(unpack_instruction(row), int(seed) // 1_009))
                for row, seed in zip(observation["instruction"], seeds, strict=True)
            ]
            observation = {**observation, "instruction": np.stack(rows)}
        return self.policy.act(observation, seeds)

    def reset(self, lanes: np.ndarray | None = None) -> None:
        """See :class:`imagine.types.Policy`."""
        self.policy.reset(lanes)

    def other(self, instruction: str, start: int) -> str:
        """What is told instead of ``instruction`` where an episode starts from seed ``start``."""
        task = Task.parse(instruction)
        if self.what == "colour":
            rng, known = np.random.default_rng(start), {"families": self.families, "colours": tuple(COLOURS)}
            present = draw_start(rng, None, **known, blocks=2, home=False).colours  # type: ignore[arg-type]
            return Task(task.family, next(c for c in present if c != task.colour)).instruction
        at = self.families.index(task.family)
        return Task(self.families[(at + 1) % len(self.families)], task.colour).instruction


class ToldLanes(RealLanes):
    """Real lanes whose episodes also end, without success, once the robot has done what it was told instead.

    A policy that obeys has nothing left to do then; what it knocks over later says nothing about whether it listened.
    """

    def __init__(self, make: Callable[[], Any], num_lanes: int, told: Told):
        super().__init__(make, num_lanes)
        self.told = told

    def reset(self, seeds: Sequence[int], instruction: str | None) -> dict[str, np.ndarray]:
        """See :class:`imagine.agents.rollout.Lanes`."""
        seen = super().reset(seeds, instruction)
        heard = [unpack_instruction(row) for row in seen["instruction"]]
        self.tasks = [Task.parse(self.told.other(h, int(s))) for h, s in zip(heard, seeds, strict=True)]
        return seen

    def step(self, lanes: Sequence[int], actions: np.ndarray) -> tuple[dict[str, np.ndarray], list[dict[str, Any]]]:
        """See :class:`imagine.agents.rollout.Lanes`."""
        seen, outcome = super().step(lanes, actions)
        for lane, result in zip(lanes, outcome, strict=True):
            result["done"] = result["done"] or self.envs[lane].robot.world.success(self.tasks[lane])
        return seen, outcome
