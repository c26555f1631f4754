"""Tells a policy something else than what its success is measured by: does the instruction matter at all?"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from imagine.agents.envs import SimEnvs, StepResult
from imagine.embodiment import Embodiment
from imagine.policy.robots.plugin import RobotPlugin
from imagine.types import ImagineError, unpack_instruction


class InstructionSwap:
    """Another instruction that can be carried out from the same start; ``instruct`` of a rollout.

    Attributes:
        robot: knows what else there is to do.
        what: kind of the other instruction.
    """

    def __init__(self, robot: RobotPlugin, what: str, options: Mapping[str, Any]) -> None:
        """Swap instructions.

        Args:
            robot: knows what else there is to do.
            what: one of ``robot.swaps()``.
            options: what the robot's episodes are varied by.

        Raises:
            ImagineError: the robot knows no such kind.
        """
        if what not in robot.swaps():
            known = ", ".join(robot.swaps()) or "none at all"
            raise ImagineError(f"robot {robot.name!r} swaps no instruction by {what!r}, expected one of: {known}.")
        self.robot, self.what, self.options = robot, what, options

    def __call__(self, instruction: str, seed: int) -> str:
        """What is told instead of ``instruction`` where an episode starts from ``seed``.

        Raises:
            ImagineError: there is no other instruction for this start.
        """
        other = self.robot.other_instruction(self.what, instruction, seed, self.options)
        if other is None:
            raise ImagineError(f"nothing else than {instruction!r} can be done from start {seed}, by {self.what!r}.")
        return other


class SwappedEnvs(SimEnvs):
    """Environments whose episodes also end, without success, once what was told instead has been carried out.

    A policy that obeys has nothing left to do then; what it knocks over later says nothing about whether it listened.
    """

    def __init__(self, make: Callable[[], Any], num_envs: int, body: Embodiment, swap: InstructionSwap) -> None:
        """See :class:`imagine.agents.envs.SimEnvs`; ``swap`` says what is told instead."""
        super().__init__(make, num_envs, body)
        self.swap = swap

    def reset(self, seeds: Sequence[int], instruction: str | None = None) -> dict[str, np.ndarray]:
        """See :class:`imagine.agents.envs.ParallelEnvs`."""
        seen = super().reset(seeds, instruction)
        own = [unpack_instruction(row) for row in seen["instruction"]]
        self.told = [self.swap(text, int(seed)) for text, seed in zip(own, seeds, strict=True)]
        return seen

    def step(self, rows: Sequence[int], actions: np.ndarray) -> tuple[dict[str, np.ndarray], list[StepResult]]:
        """See :class:`imagine.agents.envs.ParallelEnvs`."""
        seen, results = super().step(rows, actions)
        obeyed = [bool(self.swap.robot.carried_out(self.envs[row], self.told[row])) for row in rows]
        return seen, [replace(r, done=r.done or over) for r, over in zip(results, obeyed, strict=True)]
