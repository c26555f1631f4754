"""A per-tick Gymnasium environment in the words of an embodiment: what a robot file says, and one tick at a time."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal

import gymnasium as gym
import numpy as np
from pydantic import BaseModel, ConfigDict, Field

from imagine.embodiment import Embodiment
from imagine.imports import import_object
from imagine.limits import Limits
from imagine.types import ImagineError, ShapeError

Function = str | Callable[..., Any]
Record = dict[Literal["seconds", "failure_share", "noise", "bursts", "afterwards"], float]
STATE, ACTION = "observation.state", "action"
"""The features that are recorded, and that an embodiment's slices are slices of."""


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
        views: view name to the observation's key, ``render`` for what the environment renders, or a function of (env,
            observation, info) that returns an image.
        success: a key of ``info``, ``terminated``, or a function of (env, observation, reward, terminated, info).
        ticks: environment steps per control tick.
        limits: what the robot may be commanded; left out, what follows from the kinds of the action slices.
    """

    model_config = ConfigDict(extra="forbid", frozen=True, arbitrary_types_allowed=True)

    name: str
    embodiment: str | dict[str, Any] | Embodiment
    tasks: tuple[Task, ...] = Field(min_length=1)
    state: tuple[str, ...] | Function = (".",)
    views: dict[str, Function] = {}
    success: Function = "is_success"
    ticks: int = Field(default=1, ge=1)
    record: Record = {}
    limits: Limits | None = None


class Ticks:
    """A task's environment, one control tick at a time, in the features and views of an embodiment."""

    def __init__(self, cfg: GymConfig, task: Task, body: Embodiment) -> None:
        """Make the environment.

        Raises:
            ImagineError: it cannot be made, or the embodiment's slices are of other features, or its actions are no
                vector that they fit.
        """
        for part, key in [*((s, STATE) for s in body.state), *((a, ACTION) for a in body.action)]:
            if part.key != key:
                raise ImagineError(f"slice {part.name!r} of {body.name!r} has key {part.key!r}, expected {key!r} here.")
        self.cfg, self.task, self.body = cfg, task, body
        make, kwargs = _function(task.env), dict(task.kwargs)
        self._views = {v.name: _function(cfg.views.get(v.name, "render")) for v in body.views}
        if "render" in self._views.values() and "render_mode" not in kwargs:
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
        self.observation, info = self.env.reset(seed=seed)
        self.info: dict[str, Any] = info
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
        images: dict[Any, np.ndarray] = {}  # one picture may be several views
        for source in self._views.values():
            if source not in images:
                images[source] = np.asarray(self._image(source))
        return {v.name: resized(images[self._views[v.name]], v.height, v.width) for v in self.body.views}

    def _image(self, source: Any) -> Any:
        if callable(source):
            return source(self.env.unwrapped, self.observation, self.info)
        return self.env.render() if source == "render" else _look_up(self.observation, source)

    def rest(self) -> np.ndarray:
        """(A,) float32, a command in recorded order around which to move at random: the present state where actions are
        relative, no displacement where they are per tick, else the middle of the bounds.
        """
        middle = np.where(self.body.is_difference, 0, (self.body.action_low + self.body.action_high) / 2)
        return self.body.absolute_action(middle, self.anchor())

    def features(self) -> dict[str, np.ndarray]:
        """The recorded features, ``{key: (S,)}`` float32."""
        return {STATE: self.state()}

    def anchor(self) -> np.ndarray:
        """(A,) float32, what relative actions that begin now are measured from."""
        return self.body.anchor_of(self.features())

    def expert(self) -> np.ndarray | None:
        """The expert's next action (A,), clipped to what the environment takes; None without an expert."""
        if self._expert is None:
            return None
        command = self._expert(self.env.unwrapped, self.observation, self.info)
        command = np.clip(np.asarray(command, np.float32), self.space.low, self.space.high)
        return self.body.action_of({ACTION: command})


class Demonstration:
    """What an expert who acts tick by tick would do for a whole chunk: it is acted out in an environment of its own.

    That environment is brought to where the other one is by repeating its commands from its seed, which is why both
    must be functions of them. While the expert's own chunks are what is carried out, nothing needs repeating.
    """

    def __init__(self, ticks: Ticks) -> None:
        """``ticks`` is for this alone."""
        self.ticks, self._seed, self._moves = ticks, -1, list[np.ndarray]()

    def chunk(self, seed: int, moves: Sequence[np.ndarray]) -> np.ndarray:
        """What the expert would do next.

        Args:
            seed: of the episode.
            moves: the (A,) commands of its ticks so far, as :meth:`Ticks.tick` takes them.

        Returns:
            (K, A) float32, robot units, within the embodiment's bounds.
        """
        body, ticks, done = self.ticks.body, self.ticks, len(self._moves)
        alike = seed == self._seed and done <= len(moves)
        if not (alike and all(np.array_equal(a, b) for a, b in zip(self._moves, moves, strict=False))):
            ticks.reset(seed)
            self._seed, self._moves, done = seed, [], 0
        for move in moves[done:]:
            self._act(move)
        anchor, out = ticks.anchor(), []
        for _ in range(body.chunk_actions):
            own = ticks.expert()
            assert own is not None, "who asks for a demonstration knows that there is an expert"
            out.append(np.clip(body.relative_action(own, anchor), body.action_low, body.action_high))
            self._act(body.absolute_action(out[-1], anchor))
        return np.stack(out)

    def _act(self, move: np.ndarray) -> None:
        self.ticks.tick(move)
        self._moves.append(move)


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
