"""Any per-tick Gymnasium environment as a robot: one YAML file, or the same settings from Python.

What a tick of the environment shows becomes named features and camera views (:mod:`imagine.policy.robots.per_tick`); a
chunk of actions is carried out tick by tick; episodes are recorded with the environment's own expert, with disturbances
and failures (:mod:`imagine.policy.robots.recording`). docs/own_robot.md has the whole file and how to go on from there.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import yaml
from pydantic import ValidationError

from imagine.embodiment import Embodiment
from imagine.limits import Limits
from imagine.policy.robots.per_tick import ACTION, STATE, Demonstration, GymConfig, Task, Ticks
from imagine.policy.robots.plugin import Recorder, RobotPlugin
from imagine.types import ImagineError, ShapeError, first_fault, pack_instruction
from imagine.world.spaces import action_space, observation_space

RECORDED: dict[str, Any] = {"seconds": 8.0, "failure_share": 0.3, "noise": 0.1, "bursts": 1.0, "afterwards": 0.8}
"""Arguments of :func:`imagine.policy.robots.recording.episode`, and what they are where nobody says."""


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
            where, what = first_fault(error)
            raise ImagineError(f"robot {settings.get('name', '')!r}: {where}: {what}.") from None
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

    def make_ticks(self, body: Embodiment, **options: Any) -> GymTicks:
        """See :class:`GymTicks`.

        Raises:
            ImagineError: an option is unknown, or a task.
        """
        return GymTicks(ChunkEnv(self, body, horizon=1, tasks=self.chosen(options)))

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
        """The task's expert, who acts tick by tick, acts a chunk out in a second environment that is kept alike."""
        return chunked(env).expert_chunk()

    def carried_out(self, env: gym.Env[Any, Any], instruction: str) -> bool | None:
        """Known of the episode's own instruction alone."""
        ticks = chunked(env).ticks
        return bool(ticks.success) if instruction == ticks.task.instruction else None

    def carry_out(self, env: gym.Env[Any, Any], chunk: np.ndarray) -> bool:
        """Carry out (K, A) actions without rendering."""
        chunked(env).execute(chunk)
        return bool(chunked(env).ticks.success)

    def limits(self, body: Embodiment) -> Limits | None:
        """Those of the robot file, else what follows from the kinds of the slices.

        Raises:
            ImagineError: the file's are for another number of actions.
        """
        given = self.cfg.limits
        if given is not None and given.action_dim not in (None, body.action_dim):
            raise ImagineError(
                f"limits of robot {self.name!r} are for {given.action_dim} actions, expected {body.action_dim}."
            )
        return given or super().limits(body)

    def recorder(self) -> Recorder:
        """The expert's episodes, disturbed, and failures; see :func:`imagine.policy.robots.recording.episode`."""
        body, given = self.embodiment(), {str(k): v for k, v in self.cfg.record.items()}
        return Recorder(
            episode="imagine.policy.robots.recording:episode",
            options={"robot": self.spec, **self.options(), **RECORDED, **given},
            robot_type=body.robot_type,
            fps=body.control_hz,
            names={},
        )


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
        self._shown: dict[str, Demonstration] = {}
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
        self._seed, self._moves = start % 2**32, list[np.ndarray]()  # what simulators take
        self.ticks.reset(self._seed)
        self._newest = self.observe()
        return self._newest, self._info()

    def step(self, action: np.ndarray) -> tuple[dict[str, np.ndarray], float, bool, bool, dict[str, Any]]:
        """Carry out (K, A) actions in robot units; what is relative is measured from the chunk's first state.

        Raises:
            ShapeError: wrong shape, NaN, or far out of bounds.
        """
        body, ticks, before = self.body, self.ticks, self.ticks.reward
        seen: list[dict[str, np.ndarray]] = []
        self.execute(action, lambda: seen.append(seen[-1] if ticks.over and seen else self.observe()))
        self._newest, self._chunks = seen[-1], self._chunks + 1
        info = self._info()
        info["frames"] = np.stack([body.tile({v.name: o[v.name] for v in body.views}) for o in seen])
        info["proprio_frames"] = np.stack([o["proprio"] for o in seen])
        ended = self._chunks >= self.horizon
        return self._newest, ticks.reward - before, ticks.success or ticks.over, ended, info

    def execute(self, action: np.ndarray, look: Callable[[], None] | None = None) -> None:
        """Carry out (K, A) actions; ``look`` is called at every tick at which the model sees a frame.

        Raises:
            ShapeError: wrong shape, NaN, or far out of bounds.
        """
        if np.ndim(action) != 2:
            raise ShapeError(f"action chunk has shape {np.shape(action)}, expected two axes (actions, dimensions).")
        chunk = self.body.check_action(np.asarray(action)[None])[0]
        for k, move in enumerate(self.body.absolute_action(chunk, self.ticks.anchor()), 1):
            self.ticks.tick(move)
            self._moves.append(move)
            if look is not None and k % self.body.frame_stride == 0:
                look()

    def expert_chunk(self) -> np.ndarray | None:
        """The next (K, A) actions of the task's expert, robot units within bounds; None where there is no expert."""
        task = self.ticks.task
        if task.expert is None:
            return None
        if task.instruction not in self._shown:
            self._shown[task.instruction] = Demonstration(Ticks(self.robot.cfg, task, self.body))
        return self._shown[task.instruction].chunk(self._seed, self._moves)

    def render(self) -> np.ndarray:  # type: ignore[override]
        """The newest canvas (H, W, 3) uint8."""
        return self.body.tile(self._newest)

    def close(self) -> None:
        """Close the environments."""
        for ticks in (*self._made.values(), *(shown.ticks for shown in self._shown.values())):
            ticks.env.close()

    def observe(self) -> dict[str, np.ndarray]:
        """What is seen and felt now, one observation without batch axis."""
        proprio = self.body.proprio_of(self.ticks.features())
        return {**self.ticks.views(), "proprio": proprio, "instruction": pack_instruction(self.ticks.task.instruction)}

    def _info(self) -> dict[str, Any]:
        instruction = self.ticks.task.instruction
        return {"instruction": instruction, "is_success": bool(self.ticks.success), "state": self.ticks.state()}


class GymTicks:
    """An ``imagine.types.TickRobot``: the environment of an episode's task, one control tick at a time."""

    def __init__(self, env: ChunkEnv) -> None:
        self.env = env

    @property
    def success(self) -> bool:
        """The instruction has been carried out since the reset."""
        return bool(self.env.ticks.success)

    def reset(self, seed: int, instruction: str | None = None) -> None:
        """Begin an episode; the seed draws the task too, unless an instruction names it."""
        self.env.reset(seed=seed, options=None if instruction is None else {"instruction": instruction})

    def observe(self) -> dict[str, np.ndarray]:
        """What is seen and felt now, one observation without batch axis."""
        return self.env.observe()

    def anchor(self) -> np.ndarray:
        """(A,) float32, what relative actions that begin now are measured from."""
        return self.env.ticks.anchor()

    def features(self) -> dict[str, np.ndarray]:
        """The state now, and the whole last command as the environment took it."""
        ticks = self.env.ticks
        command = np.clip(ticks.vector, ticks.space.low, ticks.space.high).astype(np.float32)
        return {STATE: ticks.state(), ACTION: command}

    def tick(self, move: np.ndarray) -> None:
        """Carry out one tick; ``move`` (A,) is absolute."""
        self.env.ticks.tick(move)

    def close(self) -> None:
        """Close the environments."""
        self.env.close()


def chunked(env: gym.Env[Any, Any]) -> ChunkEnv:
    """The robot's environment under Gymnasium's wrappers."""
    found = env.unwrapped
    assert isinstance(found, ChunkEnv)
    return found
