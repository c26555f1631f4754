"""Finds robots: by the name of an installed plug-in, by ``package.module:object``, or by a YAML file.

A robot crosses process borders and lies in model folders as this text, its *spec*. A YAML file describes either any
Gymnasium environment (:mod:`imagine.policy.robots.gym`) or an embodiment alone: a robot without a simulator.
"""

from __future__ import annotations

import difflib
import json
import os
from functools import lru_cache
from importlib.metadata import entry_points
from pathlib import Path
from typing import Any

import yaml

from imagine.embodiment import Embodiment
from imagine.files import atomic_write
from imagine.imports import import_object
from imagine.intact import intact
from imagine.policy.robots.plugin import RobotPlugin
from imagine.types import ImagineError

GROUP = "imagine.robots"
DEFAULT = "g1_table"
"""The robot of commands that name none and whose model remembers none."""
REMEMBERED, COPIED = "robot.json", "robot.yaml"


class RecordedRobot(RobotPlugin):
    """A robot that is known by its recordings alone: an embodiment, and nothing to act in."""

    def __init__(self, body: Embodiment) -> None:
        """``body`` describes the recordings."""
        self.body, self.name = body, body.name

    def embodiment(self) -> Embodiment:
        """The recordings' embodiment."""
        return self.body


def load_robot(spec: str | Path | RobotPlugin) -> RobotPlugin:
    """Find a robot.

    Args:
        spec: the name of an entry point of the group ``imagine.robots``; ``package.module:object``, where the object is
            a :class:`imagine.policy.robots.plugin.RobotPlugin`, a subclass or a function that makes one, and the
            working directory can be imported from; or a YAML file.

    Raises:
        ImagineError: there is no such robot, or it is none.
    """
    if isinstance(spec, RobotPlugin):
        return spec
    text = str(spec)
    if text.endswith((".yaml", ".yml")):
        return _from_yaml(Path(text))
    return _by_name(text, os.getcwd())


@lru_cache(maxsize=32)
def _by_name(text: str, working_directory: str) -> RobotPlugin:
    if ":" in text:
        return _robot(import_object(text, "robot", working_directory), text)
    installed = {point.name: point for point in entry_points(group=GROUP)}
    if text not in installed:
        close = difflib.get_close_matches(text, installed, n=1, cutoff=0.5)
        names = ", ".join(sorted(installed)) or "none"
        hint = f", did you mean {close[0]!r}?" if close else f"; installed are {names}."
        raise ImagineError(f"there is no robot {text!r}; give package.module:object, a YAML file, or a name{hint}")
    try:
        return _robot(installed[text].load(), text)
    except ImportError as error:
        raise ImagineError(f"robot {text!r} cannot be loaded ({error}); install what it needs.") from None


def _robot(found: Any, text: str) -> RobotPlugin:
    made = found if isinstance(found, RobotPlugin) else found() if callable(found) else found
    if not isinstance(made, RobotPlugin):
        raise ImagineError(f"robot {text!r} is a {type(made).__name__}, expected a RobotPlugin or what makes one.")
    made.spec = text
    return made


def _from_yaml(path: Path) -> RobotPlugin:
    if not path.is_file():
        raise ImagineError(f"robot file {path} does not exist; write one after docs/own_robot.md.")
    try:
        values = yaml.safe_load(path.read_text())
    except yaml.YAMLError as error:
        raise ImagineError(f"robot file {path} is not YAML: {' '.join(str(error).split())}") from None
    if isinstance(values, dict) and {"env", "tasks"} & set(values):
        from imagine.policy.robots.gym import GymRobot

        return GymRobot.load(path)
    robot = RecordedRobot(Embodiment.load(path))
    robot.spec = str(path)
    return robot


def remember(spec: str | Path, folder: str | Path) -> None:
    """Note in a model folder which robot it is for; a YAML file is copied, so that the folder can travel alone."""
    folder, text = Path(folder), str(spec)
    if text.endswith((".yaml", ".yml")):
        robot = load_robot(text)
        dump = getattr(robot, "dump", None)  # a robot file may refer to others beside it
        atomic_write(folder / COPIED, dump() if dump else Path(text).read_bytes())
        text = COPIED
    atomic_write(folder / REMEMBERED, json.dumps({"robot": text}) + "\n")


def spec_of(folder: str | Path) -> str | None:
    """The spec that a model folder remembers, or None."""
    path = Path(folder) / REMEMBERED
    if not path.is_file():
        return None
    with intact(path, 'write {"robot": SPEC} into it or delete it'):
        spec = json.loads(path.read_text())["robot"]
    return str(Path(folder) / COPIED) if spec == COPIED else str(spec)


def robot_of(folder: str | Path, body: Embodiment) -> RobotPlugin:
    """The robot that a model folder remembers, else one that is known by its embodiment ``body`` alone."""
    spec = spec_of(folder)
    return RecordedRobot(body) if spec is None else load_robot(spec)
