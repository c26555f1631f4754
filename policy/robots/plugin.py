"""A robot as the library knows it: a plug-in of which every part is optional.

Subclass :class:`RobotPlugin` and override what your robot has. A lab with recordings alone overrides nothing; one with
a simulator overrides :meth:`RobotPlugin.make_env`; what else is known (tasks, an expert, limits, the truth) makes more
of the library's questions answerable. :func:`imagine.policy.robots.registry.load_robot` finds plug-ins by name.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import gymnasium as gym
import numpy as np

from imagine.embodiment import QUATERNIONS, Embodiment
from imagine.limits import Limits
from imagine.types import ImagineError, TickRobot

if TYPE_CHECKING:
    from imagine.world.objects import ObjectMasks


@dataclass(frozen=True)
class Recorder:
    """How episodes of a robot are recorded by ``imagine record``.

    Attributes:
        episode: ``package.module:function``, called in worker processes as ``function(seed, **options)``; returns an
            :class:`imagine.agents.collect.Episode`.
        options: keyword arguments beside the seed, and their defaults; ``--option NAME=VALUE`` changes them.
        robot_type: written into ``info.json``.
        fps: control ticks per second.
        names: ``{feature key: one name per dimension}`` for ``info.json``.
    """

    episode: str
    options: Mapping[str, Any]
    robot_type: str
    fps: int
    names: Mapping[str, Sequence[str]]


class RobotPlugin:
    """What the library may ask of a robot. Options are what a robot's episodes can be varied by, by name.

    Attributes:
        name: what messages and reports call it.
        spec: what :func:`imagine.policy.robots.registry.load_robot` found it by, so that other processes find it too.
    """

    name: str = "robot"
    spec: str = ""

    def embodiment(self) -> Embodiment | None:
        """The default embodiment, for training; a trained model carries its own."""
        return None

    def make_env(self, body: Embodiment, *, horizon: int, **options: Any) -> gym.Env[Any, Any]:
        """A simulated (or real) robot, one chunk of actions per step.

        Args:
            body: which views, state and action slices are used; its spaces are those of ``imagine.world.spaces``.
            horizon: chunks until ``truncated``.
            options: as :meth:`options` names them.

        Returns:
            An environment whose ``reset`` takes ``options={"instruction": text}``, is a function of its seed, and whose
            ``step`` takes (K, A) float32 robot units. ``info`` holds ``is_success`` (bool, so far) and, after a step,
            ``frames`` (F, H, W, 3) uint8, the canvases seen on the way.

        Raises:
            ImagineError: this robot has no environment.
        """
        raise ImagineError(
            f"robot {self.name!r} has no environment to act in; use recordings (--dataset) or the imagined world, or "
            "give the plug-in a make_env (docs/own_robot.md)."
        )

    def make_ticks(self, body: Embodiment, **options: Any) -> TickRobot:
        """The same robot, one control tick at a time, for ``imagine drive``.

        Args:
            body: which views, state and action slices are used.
            options: as :meth:`options` names them.

        Raises:
            ImagineError: this robot cannot be driven tick by tick.
        """
        raise ImagineError(f"robot {self.name!r} is not driven tick by tick; give the plug-in a make_ticks method.")

    @property
    def has_env(self) -> bool:
        """Whether :meth:`make_env` is there."""
        return type(self).make_env is not RobotPlugin.make_env

    def options(self, understands: Callable[[str], bool] | None = None) -> dict[str, Any]:
        """Names and defaults of what episodes can be varied by.

        Args:
            understands: whether a model knows every word of an instruction; tasks that it does not are left out.
        """
        return {}

    def task_of(self, instruction: str) -> str:
        """The task family of an instruction, for breakdowns; by default the instruction itself."""
        return instruction

    def distractor(self, instruction: str, seed: int, options: Mapping[str, Any]) -> str | None:
        """An instruction that cannot be carried out from this start, as of a thing that is not there, or None."""
        return None

    def other_instruction(self, what: str, instruction: str, seed: int, options: Mapping[str, Any]) -> str | None:
        """Another instruction that can be carried out from this start, of a kind ``what`` out of :meth:`swaps`."""
        return None

    def swaps(self) -> tuple[str, ...]:
        """The kinds of :meth:`other_instruction` that there are."""
        return ()

    def carried_out(self, env: gym.Env[Any, Any], instruction: str) -> bool | None:
        """Whether any instruction, not only the episode's own, is fulfilled now; None: unknown."""
        return None

    def expert(self, env: gym.Env[Any, Any]) -> np.ndarray | None:
        """What a scripted expert, who may read the true state, would do next: (K, A) float32, robot units."""
        return None

    def truth(self, env: gym.Env[Any, Any]) -> np.ndarray | None:
        """The true state, (S,) float64, what no camera tells; None: unknown."""
        return None

    def objects(self, env: gym.Env[Any, Any]) -> ObjectMasks | None:
        """Which object each pixel of the newest frames shows: of one after a reset, of F after a step; None: unknown.

        With it ``imagine evaluate world-model --objects`` tells what became of every thing in a dream.
        """
        return None

    def hide(self, env: gym.Env[Any, Any], thing: int) -> np.ndarray | None:
        """A chunk (K, A) float32, robot units, that ends with something between a thing and the camera that stays.

        Args:
            env: left as it is.
            thing: one of those of :meth:`objects`.

        Returns:
            None where nobody knows how. ``imagine evaluate world-model --objects`` then sees what a dream remembers.
        """
        return None

    @property
    def tells_objects(self) -> bool:
        """Whether :meth:`objects` is there."""
        return type(self).objects is not RobotPlugin.objects

    def carry_out(self, env: gym.Env[Any, Any], chunk: np.ndarray) -> bool:
        """Carry out (K, A) actions where nobody looks, and say whether the episode's instruction is fulfilled so far.

        By default one step; a simulator that can go on without rendering saves the time.
        """
        return bool(env.step(chunk)[4]["is_success"])

    def instructions(self) -> tuple[str, ...]:
        """Every instruction whose :meth:`answers` can be read from a true state; none by default."""
        return ()

    def answers(self, before: np.ndarray, now: np.ndarray, instruction: str) -> dict[str, np.ndarray]:
        """What is true of an instruction between two moments, whatever the robot was told.

        Args:
            before: (..., S) true states, as :meth:`truth` gives or ``observation.environment_state`` records them, when
                it was asked for.
            now: (..., S) when it is judged.
            instruction: one of :meth:`instructions`.

        Returns:
            ``possible`` (it can be carried out from ``before``) and ``success``, each (...) bool; where it is known too
            ``progress`` (...) in [0, 1], and ``holding``, ``contact``, ``safety`` (...) bool, as the questions of
            ``imagine.rewards.prompts``.
        """
        raise ImagineError(
            f"robot {self.name!r} reads no answers from true states; give the plug-in an answers method."
        )

    def limits(self, body: Embodiment) -> Limits | None:
        """What the robot may be commanded, beyond the bounds of the embodiment; None: nothing is known.

        By default, where slices say their kind: no relative position, joint or rotation may cross more than half of its
        range, which is that of a whole chunk, in a single tick.
        """
        sudden = [
            (a.high - a.low) / 2 * body.control_hz
            if a.mode == "relative" and a.kind in ("position", "joint", "rotation") and a.unit not in QUATERNIONS
            else None
            for a in body.action
            for _ in range(a.size)
        ]
        return Limits(control_hz=body.control_hz, velocity=tuple(sudden)) if any(sudden) else None

    def recorder(self) -> Recorder | None:
        """How ``imagine record`` records episodes; None: it cannot."""
        return None
