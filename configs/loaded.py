"""A model with its robot: what every dream and every command is put together from."""

from __future__ import annotations

import json
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import gymnasium as gym

from imagine.configs.defaults import HORIZON
from imagine.model.model import WorldActionModel, resolve
from imagine.model.text import split_words
from imagine.policy.robots.plugin import RobotPlugin
from imagine.policy.robots.registry import RecordedRobot, load_robot, robot_of
from imagine.types import ImagineError


@dataclass(frozen=True)
class Loaded:
    """A model, and the robot that it is for.

    Attributes:
        model: the joint model.
        folder: where it lies.
        robot: what else is known of its robot.
        options: what the robot's episodes are varied by, see ``RobotPlugin.options``.
    """

    model: WorldActionModel
    folder: Path
    robot: RobotPlugin
    options: dict[str, Any] = field(default_factory=dict)

    def sim_env(self, horizon: int = HORIZON) -> gym.Env[Any, Any]:
        """The robot's simulator; see ``RobotPlugin.make_env``."""
        return self.robot.make_env(self.model.body, horizon=horizon, **self.options)

    def distractor(self, instruction: str, seed: int) -> str | None:
        """An instruction that cannot be carried out from a start of the simulator; None where none is known."""
        return self.robot.distractor(instruction, seed, self.options)


def load(
    name: str | Path, robot: str | Path | RobotPlugin | None = None, options: Mapping[str, Any] | None = None,
    device: str = "cpu",
) -> Loaded:  # fmt: skip
    """A model with its robot.

    Args:
        name: a shipped model's name, a folder, or a hub id.
        robot: as ``imagine.policy.robots.registry.load_robot`` takes it; None: the one that the folder remembers.
        options: changes to what the robot's episodes are varied by.
        device: of the model.

    Raises:
        ImagineError: there is no such model, robot or option.
    """
    model = WorldActionModel.from_pretrained(name, device=device)
    plugin = _remembered(resolve(name), model) if robot in (None, "") else load_robot(robot)  # type: ignore[arg-type]
    return Loaded(model, resolve(name), plugin, checked_options(plugin, options, understands(model)))


def _remembered(folder: Path, model: WorldActionModel) -> RobotPlugin:
    try:
        return robot_of(folder, model.body)
    except ImagineError as error:  # somebody else's robot: the model can be asked all that needs no simulator
        warnings.warn(f"{error} Going on without a simulator.", stacklevel=3)
        return RecordedRobot(model.body)


def checked_options(
    robot: RobotPlugin, given: Mapping[str, Any] | None, understands: Callable[[str], bool] | None = None
) -> dict[str, Any]:
    """The robot's options, with changes; see :func:`changed`."""
    return changed(robot.options(understands), given, robot.name)


def changed(known: Mapping[str, Any], given: Mapping[str, Any] | None, robot: str) -> dict[str, Any]:
    """Options with changes; a text where the default is none is words joined by commas, or a number.

    Args:
        known: every option and its default.
        given: changes.
        robot: its name, for messages.

    Raises:
        ImagineError: the robot has no such option, or a number is none.
    """
    out = dict(known)
    for name, value in (given or {}).items():
        if name not in known:
            raise ImagineError(f"robot {robot!r} has no option {name!r}; it has: {', '.join(known) or 'none'}.")
        if isinstance(value, str) and isinstance(known[name], tuple | list):
            value = tuple(word.strip() for word in value.split(",") if word.strip())
        elif isinstance(value, str) and not isinstance(known[name], str):
            try:
                value = type(known[name])(json.loads(value.lower()))
            except (ValueError, TypeError):
                kind = type(known[name]).__name__
                raise ImagineError(f"option {name} is {value!r}, expected {kind}.") from None
        out[name] = value
    return out


def understands(model: WorldActionModel) -> Callable[[str], bool]:
    """Whether a model knows every word of an instruction."""
    words = getattr(model.text.cfg, "words", None)
    return lambda text: words is None or set(split_words(text)) <= set(words)
