"""Records episodes of a :class:`imagine.policy.robots.gym.GymRobot`: an expert's with disturbances, and failures.

A world model learns from what goes wrong as well, and a policy from how an expert recovers. So most episodes are the
expert's, with slow noise and short bursts of random motion laid over what it commands (those ticks are not marked as
the expert's); a share of them is the expert's with a constant error, or random motion altogether. Without an expert
all of it is random motion.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np

from imagine.embodiment import Embodiment
from imagine.policy.robots.gym import GymRobot
from imagine.policy.robots.per_tick import Task, Ticks
from imagine.policy.robots.registry import load_robot
from imagine.types import ImagineError

SMOOTH = 0.9  # correlation of noise from tick to tick
FAILURES = ("offset", "random")


@dataclass
class Episode:
    """T ticks; see :class:`imagine.agents.collect.Episode`.

    Attributes:
        state: (T, S) float32, before each tick.
        action: (T, A') float32, the whole command of each tick, as the environment takes it.
        is_expert: (T,) bool, the command is the expert's own.
        success: (T,) bool, the task has been done before the tick.
        task: T instructions.
        failure_mode: ``none``, ``offset`` or ``random``.
        seed: of everything.
        views: {name: (frames, h, w, 3) uint8}.
        view_index: (T,) int64, newest frame at each tick.
    """

    state: np.ndarray
    action: np.ndarray
    is_expert: np.ndarray
    success: np.ndarray
    task: list[str]
    failure_mode: str
    seed: int
    views: dict[str, np.ndarray]
    view_index: np.ndarray


def episode(
    seed: int,
    *,
    robot: str,
    tasks: Sequence[str] = (),
    seconds: float = 8.0,
    failure_share: float = 0.3,
    noise: float = 0.1,
    bursts: float = 1.0,
    afterwards: float = 0.8,
) -> Episode:
    """Record one episode, a function of its arguments.

    Args:
        seed: of everything.
        robot: spec of a GymRobot.
        tasks: instructions to draw from; all when empty.
        seconds: longest.
        failure_share: chance that the episode fails on purpose.
        noise: standard deviation of the slow noise at its strongest, as a share of each action's range.
        bursts: mean number of short random motions.
        afterwards: seconds recorded after success.

    Raises:
        ImagineError: a share is out of range, or the robot is no GymRobot.
    """
    if not 0 <= failure_share <= 1 or noise < 0 or bursts < 0 or seconds <= 0:
        raise ImagineError(
            f"failure_share {failure_share}, noise {noise}, bursts {bursts}, seconds {seconds}: expected a share "
            "from 0 to 1, numbers from 0 up, and a duration above 0."
        )
    found = load_robot(robot)
    if not isinstance(found, GymRobot):
        raise ImagineError(f"robot {robot!r} is no GymRobot, expected a robot file or package.module:object of one.")
    rng = np.random.default_rng([seed, 1])
    choices = found.chosen({"tasks": tuple(tasks)} if tasks else {})
    task = choices[int(np.random.default_rng(seed).integers(len(choices)))]
    ticks = _environment(robot, task.instruction)
    ticks.reset(seed % 2**32)
    plan = _Plan(rng, ticks.body, task, round(seconds * ticks.body.control_hz), failure_share, noise, bursts)
    return _record(ticks, plan, round(afterwards * ticks.body.control_hz), seed)


@lru_cache(maxsize=8)
def _environment(robot: str, instruction: str) -> Ticks:
    """One per process and task: some simulators take seconds to make."""
    found = load_robot(robot)
    assert isinstance(found, GymRobot)
    (task,) = found.chosen({"tasks": (instruction,)})
    return Ticks(found.cfg, task, found.embodiment())


class _Plan:
    """What an episode's seed has in store: its noise, its bursts and how it fails."""

    def __init__(
        self, rng: np.random.Generator, body: Embodiment, task: Task, ticks: int, failures: float, noise: float,
        bursts: float,
    ) -> None:  # fmt: skip
        self.ticks = ticks
        span, a = body.action_high - body.action_low, body.action_dim
        self.mode = FAILURES[int(rng.integers(len(FAILURES)))] if rng.uniform() < failures else "none"
        if task.expert is None:
            self.mode = "random"
        self.offset = span * rng.normal(0, 0.15, a) * (self.mode == "offset")
        strength = noise * rng.uniform() * span
        walk = np.zeros((ticks, a))
        for t in range(1, ticks):
            walk[t] = SMOOTH * walk[t - 1] + (1 - SMOOTH**2) ** 0.5 * rng.normal(size=a)
        self.noise, self.wild = strength * walk, span * 0.4 * walk
        self.disturbed = np.zeros(ticks, bool)
        for _ in range(int(rng.poisson(bursts)) if self.mode == "none" else 0):
            begin, length = int(rng.integers(0, max(1, ticks - 10))), int(rng.integers(4, 16))
            self.noise[begin : begin + length] += span * rng.normal(0, 0.3, a)
            self.disturbed[begin : begin + length] = True
        self.calm = bool(rng.uniform() < 0.5)  # half of the demonstrations are the expert's own but for the bursts

    def command(self, t: int, own: np.ndarray | None, rest: np.ndarray) -> tuple[np.ndarray, bool]:
        """The command (A,) of tick ``t``, and whether it is the expert's own; random motion is around ``rest``."""
        if own is None or self.mode == "random":
            return rest + self.wild[t], False
        if self.mode == "none" and self.calm and not self.disturbed[t]:
            return own, True
        return own + self.noise[t] + self.offset, False


def _record(ticks: Ticks, plan: _Plan, afterwards: int, seed: int) -> Episode:
    body, stride = ticks.body, ticks.body.frame_stride
    rows: dict[str, list[np.ndarray]] = {"state": [], "action": []}
    own_ticks, success, index = [], [], []
    frames: dict[str, list[np.ndarray]] = {v.name: [] for v in body.views}
    since = 0
    for t in range(plan.ticks):
        if t % stride == 0:
            for name, image in ticks.views().items():
                frames[name].append(image)
        state = ticks.state()
        command, own = plan.command(t, ticks.expert(), ticks.rest())
        rows["state"].append(state)
        success.append(ticks.success)
        index.append(len(next(iter(frames.values()))) - 1)
        ticks.tick(command)
        rows["action"].append(np.clip(ticks.vector, ticks.space.low, ticks.space.high))
        own_ticks.append(own)
        since = since + 1 if ticks.success else 0
        if ticks.over or since > afterwards:
            break
    count = len(index)
    return Episode(
        state=np.stack(rows["state"]),
        action=np.stack(rows["action"]).astype(np.float32),
        is_expert=np.array(own_ticks),
        success=np.array(success),
        task=[ticks.task.instruction] * count,
        failure_mode=plan.mode,
        seed=seed,
        views={name: np.stack(images) for name, images in frames.items()},
        view_index=np.array(index, np.int64),
    )
