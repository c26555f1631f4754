"""The robot's simulator beside a dream: it does what is done there, in a thread of its own."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import Executor, Future
from dataclasses import dataclass
from typing import Any

import gymnasium as gym
import numpy as np

from imagine.embodiment import Embodiment
from imagine.policy.robots.plugin import RobotPlugin
from imagine.types import ImagineError


@dataclass(frozen=True)
class TrueChunk:
    """What a chunk led to on the simulator.

    Attributes:
        frames: (F, H, W, 3) uint8; of a start its one first frame.
        success: whether the instruction is fulfilled at its end; None where the simulator cannot tell.
    """

    frames: np.ndarray
    success: bool | None


class Twin:
    """A simulator that carries out the actions of any line of play, from its start.

    It goes on from where it is if it can, and else begins again and repeats what was done, unseen: no simulator need
    know how to go back.
    """

    def __init__(
        self, robot: RobotPlugin, make: Callable[[], gym.Env[Any, Any]], body: Embodiment, executor: Executor
    ) -> None:
        """Keep a simulator beside a dream.

        Args:
            robot: knows what its simulator's state means.
            make: makes the simulator.
            body: how its views are tiled.
            executor: of one thread, in which it is used.
        """
        self.robot, self.body, self.executor = robot, body, executor
        self._env, self._done = make(), list[np.ndarray]()
        self._begun: tuple[int, str | None] | None = None

    def follow(
        self, seed: int, instruction: str | None, actions: Sequence[np.ndarray], asked: str
    ) -> Future[TrueChunk]:
        """What the last of some chunks leads to.

        Args:
            seed: of the start.
            instruction: which the start was asked for; None: its own.
            actions: (K, A) float32 each, robot units, since the start; none: the start itself is looked at.
            asked: the instruction that success is of.
        """
        return self.executor.submit(self._follow, (seed, instruction), list(actions), asked)

    def _follow(self, begin: tuple[int, str | None], actions: list[np.ndarray], asked: str) -> TrueChunk:
        same = self._begun == begin and len(self._done) < len(actions)
        if not same or any(a is not b for a, b in zip(self._done, actions, strict=False)):
            self._begun = None  # until it has begun again
            options = {} if begin[1] is None else {"instruction": begin[1]}
            seen, _ = self._env.reset(seed=begin[0], options=options)
            self._begun, self._done = begin, []
            if not actions:
                frames = self.body.tile({v.name: np.asarray(seen[v.name]) for v in self.body.views})[None]
                return TrueChunk(frames, self._success(asked))
        for action in actions[len(self._done) : -1]:
            self.robot.carry_out(self._env, action)
            self._done.append(action)
        info = self._env.step(actions[-1])[4]
        self._done.append(actions[-1])
        return TrueChunk(np.array(info["frames"]), self._success(asked))

    def _success(self, asked: str) -> bool | None:
        try:
            return self.robot.carried_out(self._env, asked)
        except ImagineError:  # the simulator does not understand it
            return None

    def close(self) -> Future[None]:
        """Let the simulator go once all that was asked for is done."""
        return self.executor.submit(self._env.close)
