"""Any per-tick Gymnasium environment as a robot: one YAML file, or the same settings from Python.

What a tick of the environment shows becomes named features and camera views; a chunk of actions is carried out tick by
tick; episodes are recorded with the environment's own expert, with disturbances and failures. docs/own_robot.md has
the whole file and how to go on from there.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from imagine.embodiment import Embodiment
from imagine.imports import import_object
from imagine.policy.robots.plugin import Recorder, RobotPlugin
from imagine.types import ImagineError, ShapeError, pack_instruction
from imagine.world.spaces import action_space, observation_space

STATE, ACTION = "observation.state", "action"
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


class GymRobot(RobotPlugin):
    """A robot made of per-tick environments; its one option is ``tasks``, some of the instructions."""

    def __init__(self, **settings: Any) -> None:
        """Take the settings of :class:`GymConfig`; those of a single task may stand beside the others.

        Raises:
            ImagineError: a key is unknown, missing or of the wrong type.
        """
        single = {key: settings.pop(key) for key in Task.model_fields if key in settings}
        if single:
            settings["tasks"] = (*settings.get("tasks", ()), single)
        try:
            self.cfg = GymConfig(**settings)
        except ValidationError as error:
            first = error.errors()[0]
            where = ".".join(str(part) for part in first["loc"])
            raise ImagineError(f"robot {settings.get('name', '')!r}: {where}: {first['msg']}.") from None
        self.name, self.folder = self.cfg.name, Path()
        self._body: Embodiment | None = None

    @classmethod
    def load(cls, path: str | Path) -> GymRobot:
        """Read a robot file.

        Raises:
            ImagineError: the file is not one.
        """
        path = Path(path)
        values = yaml.safe_load(path.read_text())
        if isinstance(state := values.get("state"), str) and ":" not in state:
            values["state"] = (state,)
        robot = cls(**values)
        robot.folder, robot.spec = path.parent, str(path)
        return robot

    def dump(self) -> str:
        """The robot file as YAML with its embodiment inside, so that it can travel alone."""
        values = self.cfg.model_dump(mode="json", exclude={"embodiment"})
        return yaml.safe_dump({**values, "embodiment": self.embodiment().model_dump(mode="json")}, sort_keys=False)

    def embodiment(self) -> Embodiment:
        """The robot's own."""
        if self._body is None:
            given = self.cfg.embodiment
            if isinstance(given, str):
                self._body = Embodiment.load(self.folder / given)
            elif isinstance(given, Embodiment):
                self._body = given
            else:
                self._body = Embodiment.read(given, f"embodiment of robot {self.name!r}")
        return self._body

    def options(self, understands: Callable[[str], bool] | None = None) -> dict[str, Any]:
        """The tasks, or those that a model understands."""
        known = [task.instruction for task in self.cfg.tasks]
        return {"tasks": tuple(t for t in known if understands is None or understands(t))}

    def make_env(self, body: Embodiment, *, horizon: int, **options: Any) -> gym.Env[Any, Any]:
        """See :class:`ChunkEnv`.

        Raises:
            ImagineError: an option is unknown, or a task.
        """
        return ChunkEnv(self, body, horizon=horizon, tasks=self.chosen(options))

    def chosen(self, options: Mapping[str, Any]) -> tuple[Task, ...]:
        """The tasks that options leave.

        Raises:
            ImagineError: an option or task is unknown, or no task is left.
        """
        if unknown := sorted(set(options) - {"tasks"}):
            raise ImagineError(f"robot option {unknown[0]!r} is unknown, robot {self.name!r} has tasks.")
        known = {task.instruction: task for task in self.cfg.tasks}
        wanted = tuple(options.get("tasks", known))
        if wrong := [t for t in wanted if t not in known]:
            raise ImagineError(f"robot {self.name!r} has no task {wrong[0]!r}, expected some of {', '.join(known)}.")
        if not wanted:
            raise ImagineError(f"no task of robot {self.name!r} is left, expected some of {', '.join(known)}.")
        return tuple(known[t] for t in wanted)

    def expert(self, env: gym.Env[Any, Any]) -> np.ndarray | None:
        """None: the expert acts tick by tick, and cannot be asked for a chunk without acting it out."""
        return None

    def recorder(self) -> Recorder:
        """The expert's episodes, disturbed, and failures; see :func:`imagine.policy.robots.recording.episode`."""
        from imagine.policy.robots.recording import DEFAULTS

        body = self.embodiment()
        return Recorder(
            episode="imagine.policy.robots.recording:episode",
            options={"robot": self.spec, **self.options(), **DEFAULTS},
            robot_type=body.robot_type,
            fps=body.control_hz,
            names={},
        )


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


class ChunkEnv(gym.Env[dict[str, np.ndarray], np.ndarray]):
    """One chunk of actions per step; spaces as ``imagine.world.spaces``, ``info`` as ``RobotPlugin.make_env`` says.

    The reward is the environment's, summed over the chunk. ``terminated`` is success, or the environment's own end.
    """

    metadata = {"render_modes": ["rgb_array"]}  # noqa: RUF012  (Gymnasium declares it so)

    def __init__(self, robot: GymRobot, body: Embodiment, *, horizon: int, tasks: Sequence[Task]) -> None:
        """Environments are made when their task is first drawn."""
        self.robot, self.body, self.horizon, self.tasks = robot, body, horizon, tuple(tasks)
        self.observation_space, self.action_space = observation_space(body), action_space(body)
        self._made: dict[str, Ticks] = {}
        self.render_mode = "rgb_array"

    @cached_property
    def _by_instruction(self) -> dict[str, Task]:
        return {task.instruction: task for task in self.tasks}

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
        """Begin an episode; the seed draws the task too, unless ``options["instruction"]`` names it.

        Raises:
            ImagineError: another option, or an instruction that is no task.
        """
        super().reset(seed=seed)
        given = dict(options or {})
        wanted = given.pop("instruction", None)
        if given:
            raise ImagineError(f"reset option {sorted(given)[0]!r} is unknown, expected instruction.")
        start = int(self.np_random.integers(2**31)) if seed is None else seed
        task = self.tasks[int(np.random.default_rng(start).integers(len(self.tasks)))]
        if wanted is not None:
            if wanted not in self._by_instruction:
                raise ImagineError(f"instruction {wanted!r} is no task, expected {', '.join(self._by_instruction)}.")
            task = self._by_instruction[wanted]
        if task.instruction not in self._made:
            self._made[task.instruction] = Ticks(self.robot.cfg, task, self.body)
        self.ticks, self._chunks = self._made[task.instruction], 0
        self.ticks.reset(start % 2**32)  # what simulators take
        self._newest = self._observe()
        return self._newest, self._info()

    def step(self, action: np.ndarray) -> tuple[dict[str, np.ndarray], float, bool, bool, dict[str, Any]]:
        """Carry out (K, A) actions in robot units; what is relative is measured from the chunk's first state.

        Raises:
            ShapeError: wrong shape, NaN, or far out of bounds.
        """
        body, ticks, before = self.body, self.ticks, self.ticks.reward
        if np.ndim(action) != 2:
            raise ShapeError(f"action chunk has shape {np.shape(action)}, expected two axes (actions, dimensions).")
        moves = body.absolute_action(body.check_action(np.asarray(action)[None])[0], body.anchor_of(self._features()))
        seen = []
        for k, move in enumerate(moves, 1):
            ticks.tick(move)
            if k % body.frame_stride == 0:
                seen.append(self._newest if ticks.over and seen else self._observe())
        self._newest, self._chunks = seen[-1], self._chunks + 1
        info = self._info()
        info["frames"] = np.stack([body.tile({v.name: o[v.name] for v in body.views}) for o in seen])
        info["proprio_frames"] = np.stack([o["proprio"] for o in seen])
        ended = self._chunks >= self.horizon
        return self._newest, ticks.reward - before, ticks.success or ticks.over, ended, info

    def render(self) -> np.ndarray:  # type: ignore[override]
        """The newest canvas (H, W, 3) uint8."""
        return self.body.tile(self._newest)

    def close(self) -> None:
        """Close the environments."""
        for ticks in self._made.values():
            ticks.env.close()

    def _features(self) -> dict[str, np.ndarray]:
        state = self.ticks.state()
        return {s.key: state for s in self.body.state}

    def _observe(self) -> dict[str, np.ndarray]:
        proprio = self.body.proprio_of(self._features())
        return {**self.ticks.views(), "proprio": proprio, "instruction": pack_instruction(self.ticks.task.instruction)}

    def _info(self) -> dict[str, Any]:
        instruction = self.ticks.task.instruction
        return {"instruction": instruction, "is_success": bool(self.ticks.success), "state": self.ticks.state()}


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
