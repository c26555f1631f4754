"""What is true at the table, by instruction, read from its true state (:mod:`imagine.policy.robots.g1_table.truth`)."""

from __future__ import annotations

from typing import Any

import numpy as np

from imagine.policy.robots.g1_table.scene import COLOURS
from imagine.policy.robots.g1_table.tasks import FAMILIES, Task, tasks_of
from imagine.policy.robots.g1_table.truth import (
    accomplished,
    held,
    left_alone,
    possible,
    progress,
    touched,
    truth,
)
from imagine.policy.robots.plugin import RobotPlugin


class TableLabels(RobotPlugin):
    """The part of the table's plug-in that labels what happened."""

    def truth(self, env: Any) -> np.ndarray:
        """(40,) float64, laid out as ``truth.NAMES``."""
        return truth(env.unwrapped.robot.world)

    def carry_out(self, env: Any, chunk: np.ndarray) -> bool:
        """See :class:`imagine.policy.robots.plugin.RobotPlugin`; nothing is rendered."""
        robot = env.unwrapped.robot
        robot.execute(chunk, look=False)
        return bool(robot.succeeded[-1])

    def instructions(self) -> tuple[str, ...]:
        """See :class:`imagine.policy.robots.plugin.RobotPlugin`."""
        return tuple(task.instruction for task in tasks_of(FAMILIES, tuple(COLOURS)))

    def answers(self, before: np.ndarray, now: np.ndarray, instruction: str) -> dict[str, np.ndarray]:
        """See :class:`imagine.policy.robots.plugin.RobotPlugin`.

        Raises:
            ImagineError: the instruction is none of the table's.
        """
        task = Task.parse(instruction)
        return {
            "possible": possible(before, task),
            "success": accomplished(before, now, task),
            "progress": progress(before, now, task),
            "holding": np.any([held(now, c) for c in task.colours], 0),
            "contact": np.any([touched(now, c) for c in task.colours], 0),
            "safety": left_alone(before, now, task),
        }
