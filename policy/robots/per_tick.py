"""A per-tick Gymnasium environment in the words of an embodiment: what a robot file says, and one tick at a time."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import gymnasium as gym
import numpy as np
from pydantic import BaseModel, ConfigDict, Field

from imagine.embodiment import Embodiment
from imagine.imports import import_object
from imagine.types import ImagineError, ShapeError

Function = str | Callable[..., Any]


class Task(BaseModel):
    """One thing to do, and the environment in which it can be done.

    Attributes:
        instruction: the sentence.
        env: a Gymnasium id (``module:Id-v0`` imports the module first), or what ``package.module:function`` makes.
        kwargs: arguments of either.
        expert: ``package.module:function`` or a function of (env, observation, info): the next tick's action;
            ``env`` is the unwrapped environment. None where nobody can show the task.
    """

    model_config = ConfigDict(extra="forbid", frozen=True, arbitrary_types_allowed=True)

    instruction: str
    env: Function
    kwargs: dict[str, Any] = {}
    expert: Function | None = None


class GymConfig(BaseModel):
    """What a robot file holds.

    Attributes:
        name: of the robot.
        embodiment: a file beside this one, or its content; state slices index ``observation.state``, action slices the
            environment's own action vector.
        tasks: at least one; a single task's keys may stand at the top level instead.
        state: where the state vector is found in an observation: keys (nested ones as ``a.b``, ``.`` for all
            of it) laid one after another, or a function of (env, observation, info).
        views: view name to the observation's key, or ``render`` for what the environment renders.
        success: a key of ``info``, ``terminated``, or a function of (env, observation, reward, terminated, info).
        ticks: environment steps per control tick.
    """

    model_config = ConfigDict(extra="forbid", frozen=True, arbitrary_types_allowed=True)

    name: str
    embodiment: str | dict[str, Any] | Embodiment
    tasks: tuple[Task, ...] = Field(min_length=1)
    state: tuple[str, ...] | Function = (".",)
    views: dict[str, str] = {}
    success: Function = "is_success"
    ticks: int = Field(default=1, ge=1)


class Ticks:
    """A task's environment, one control tick at a time, in the features and views of an embodiment."""

    def __init__(self, cfg: GymConfig, task: Task, body: Embodiment) -> None:
        """Make the environment.

        Raises:
            ImagineError: it cannot be made, or its actions are no vector that the embodiment's slices fit.
        """
        self.cfg, self.task, self.body = cfg, task, body
        make, kwargs = _function(task.env), dict(task.kwargs)
        rendered = "render" in {cfg.views.get(v.name, "render") for v in body.views}
        if rendered and "render_mode" not in kwargs:
            kwargs["render_mode"] = "rgb_array"
        try:
            self.env = make(**kwargs) if callable(make) else gym.make(str(task.env), **kwargs)
        except (gym.error.Error, ImportError, TypeError) as error:
            raise ImagineError(f"environment {task.env!r} cannot be made: {error}") from None
        space, most = self.env.action_space, max(a.stop for a in body.action)
        if not isinstance(space, gym.spaces.Box) or len(space.shape) != 1 or space.shape[0] < most:
            raise ImagineError(f"environment {task.env!r} takes {space}, expected a vector of at least {most} numbers.")
        self.space = space
        self._state = _function(cfg.state) if isinstance(cfg.state, str) or callable(cfg.state) else None
        self._success = _function(cfg.success)
        self._expert = None if task.expert is None else _function(task.expert)

    def reset(self, seed: int) -> None:
        """Begin an episode, a function of the seed."""
        self.space.seed(seed)
        self.observation, self.info = self.env.reset(seed=seed)
        self.vector = np.zeros(self.space.shape, np.float32)  # what no slice commands keeps its last target
        self.reward, self.success, self.over = 0.0, False, False

    def tick(self, action: np.ndarray) -> None:
        """Carry out one tick; ``action`` (A,) as recorded, absolute. Nothing happens after the episode's end."""
        if self.over:
            return
        at = 0
        for a in self.body.action:
            self.vector[a.start : a.stop] = action[at : at + a.size]
            at += a.size
        command = np.clip(self.vector, self.space.low, self.space.high).astype(self.space.dtype)
        for _ in range(self.cfg.ticks):
            self.observation, reward, terminated, truncated, self.info = self.env.step(command)
            self.reward += float(reward)
            self.success = self.success or self._succeeded(float(reward), terminated)
            if terminated or truncated:
                self.over = True
                return

    def _succeeded(self, reward: float, terminated: bool) -> bool:
        if callable(self._success):
            return bool(self._success(self.env.unwrapped, self.observation, reward, terminated, self.info))
        if self._success == "terminated":
            return bool(terminated)
        if self._success not in self.info:
            known = ", ".join(sorted(self.info)) or "nothing"
            raise ImagineError(
                f"info of {self.task.env!r} has no {self._success!r}, it has {known}; set success: to one of these, to "
                "terminated, or to a function."
            )
        return bool(self.info[self._success])

    def state(self) -> np.ndarray:
        """(S,) float32, the recorded state."""
        if callable(self._state):
            found = self._state(self.env.unwrapped, self.observation, self.info)
        else:
            parts = [np.ravel(_look_up(self.observation, key)) for key in self.cfg.state]  # type: ignore[union-attr]
            found = np.concatenate(parts)
        return np.asarray(found, np.float32).ravel()

    def views(self) -> dict[str, np.ndarray]:
        """What the cameras see, each (h, w, 3) uint8 of the embodiment's size."""
        rendered: np.ndarray | None = None
        out = {}
        for v in self.body.views:
            source = self.cfg.views.get(v.name, "render")
            if source == "render":
                rendered = np.asarray(self.env.render()) if rendered is None else rendered
            image = rendered if source == "render" else _look_up(self.observation, source)
            out[v.name] = resized(np.asarray(image), v.height, v.width)
        return out

    def rest(self) -> np.ndarray:
        """(A,) float32, a command in recorded order around which to move at random: the present state where actions are
        relative, no displacement where they are per tick, else the middle of the bounds.
        """
        middle = np.where(self.body.is_difference, 0, (self.body.action_low + self.body.action_high) / 2)
        state = self.state()
        return self.body.absolute_action(middle, self.body.anchor_of({s.key: state for s in self.body.state}))

    def expert(self) -> np.ndarray | None:
        """The expert's next action (A,), clipped to what the environment takes; None without an expert."""
        if self._expert is None:
            return None
        command = self._expert(self.env.unwrapped, self.observation, self.info)
        command = np.clip(np.asarray(command, np.float32), self.space.low, self.space.high)
        return self.body.action_of({a.key: command for a in self.body.action})


def resized(image: np.ndarray, height: int, width: int) -> np.ndarray:
    """An image (h, w, 3) uint8 at another size, averaged where it shrinks.

    Raises:
        ShapeError: it is no such image.
    """
    if image.ndim != 3 or image.shape[2] != 3 or image.dtype != np.uint8:
        raise ShapeError(f"a view is {image.dtype} {image.shape}, expected uint8 (height, width, 3).")
    if image.shape[:2] == (height, width):
        return image
    from PIL import Image

    return np.asarray(Image.fromarray(image).resize((width, height), Image.Resampling.BOX))


def _look_up(observation: Any, key: str) -> Any:
    """``a.b`` of nested observations; ``.`` is the observation itself."""
    found = observation
    for part in [] if key == "." else key.split("."):
        if not isinstance(found, Mapping) or part not in found:
            names = ", ".join(found) if isinstance(found, Mapping) else f"no keys: it is a {type(found).__name__}"
            raise ImagineError(f"the observation has no {key!r}, it has {names}.")
        found = found[part]
    return found


def _function(given: Any) -> Any:
    """``package.module:function`` imported; a Gymnasium id, a key or a function as it is."""
    if not isinstance(given, str) or ":" not in given or "/" in given or "-v" in given:
        return given
    return import_object(given, "function")
