"""A robot in a process of its own, so that neither rendering nor physics holds up the control loop.

Commands are sent and not waited for, as on a bus; only a look at the robot waits for its answer.
"""

from __future__ import annotations

import multiprocessing
import os
from collections.abc import Callable
from contextlib import suppress
from multiprocessing.connection import Connection
from typing import Any

import numpy as np

from imagine.types import ImagineError, TickRobot

PATIENCE = 60.0
"""Seconds that an answer of the process may take; making a simulator is the longest."""


class RobotProcess:
    """An ``imagine.types.TickRobot`` that lives elsewhere."""

    def __init__(self, make: Callable[[], TickRobot]) -> None:
        """Start it.

        Args:
            make: makes the robot in the new process; must be picklable.

        Raises:
            ImagineError: the robot could not be made.
        """
        context = multiprocessing.get_context("spawn")
        self._here, there = context.Pipe()
        self._success = context.Value("b", False)
        self._process = context.Process(target=_serve, args=(make, there, self._success), daemon=True)
        self._process.start()
        there.close()
        self._answer()

    @property
    def success(self) -> bool:
        """As of the last tick that was carried out."""
        return bool(self._success.value)

    def reset(self, seed: int, instruction: str | None = None) -> None:
        """Begin an episode."""
        self._ask("reset", seed, instruction)

    def observe(self) -> dict[str, np.ndarray]:
        """What is seen and felt after all ticks sent so far."""
        found: dict[str, np.ndarray] = self._ask("observe")
        return found

    def anchor(self) -> np.ndarray:
        """See :class:`imagine.types.TickRobot`."""
        return np.asarray(self._ask("anchor"))

    def features(self) -> dict[str, np.ndarray]:
        """See :class:`imagine.types.TickRobot`."""
        found: dict[str, np.ndarray] = self._ask("features")
        return found

    def tick(self, move: np.ndarray) -> None:
        """Send one tick's command; an error of it is raised by the next look."""
        self._here.send(("tick", move))

    def close(self) -> None:
        """End the process."""
        with suppress(OSError):  # it may have gone by itself
            self._here.send(("close",))
        self._process.join(2)
        self._process.kill()
        self._here.close()

    def _ask(self, *message: Any) -> Any:
        self._here.send(message)
        return self._answer()

    def _answer(self) -> Any:
        try:
            if not self._here.poll(PATIENCE):
                raise ImagineError(f"the robot's process gave no answer in {PATIENCE:g} s.")
            fine, answer = self._here.recv()
        except (EOFError, OSError):
            raise ImagineError("the robot's process has ended; its error is above.") from None
        if not fine:
            raise ImagineError(f"the robot's process says: {answer}")
        return answer


def _serve(make: Callable[[], TickRobot], there: Connection, success: Any) -> None:
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    failed = ""
    try:
        robot = make()
    except Exception as error:
        there.send((False, f"{type(error).__name__}: {error}"))
        return
    there.send((True, None))
    while True:
        name, *given = there.recv()
        if name == "close":
            robot.close()
            return
        try:
            answer = getattr(robot, name)(*given)
            success.value = False if name == "reset" else robot.success
        except Exception as error:
            failed = failed or f"{type(error).__name__}: {error}"
            answer = None
        if name != "tick":
            there.send((not failed, failed or (None if name == "reset" else answer)))
            failed = ""
