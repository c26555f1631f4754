"""Recorded episodes for training: expert ones with disturbances and changes of mind, and deliberate failures.

Every episode is a function of its seed and arguments. A camera slower than the control loop holds its last frame, as
the real robot's would: ``view_index`` says which frame was newest at each tick.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from imagine.policy.robots.g1_table.expert import PUSH_GOAL, expert_target
from imagine.policy.robots.g1_table.failures import ALL_MODES, MODES, Failure
from imagine.policy.robots.g1_table.scene import COLOURS, CONTROL_HZ
from imagine.policy.robots.g1_table.tasks import BOWL_INSIDE, FAMILIES, PUT_FAMILIES, Task, blocks_of, tasks_of
from imagine.policy.robots.g1_table.truth import truth
from imagine.policy.robots.g1_table.world import VIEWS, G1Table
from imagine.types import ImagineError

FAILURE_SHARE = 0.3
SWITCH_SHARE = 0.5
BURSTS_PER_EPISODE = 1.0
BLOCKS = (2, 2, 3, 3, 4)  # how many there are, one drawn per episode
REST = (24, 60)  # ticks recorded after a task is done, drawn in this range: how to rest where the picture tells it
AFTERWARDS = 24  # likewise after a push, where it does not
AGAIN = 0.75  # chance that another task follows one that is done, so that long dreams can be learnt
TWO_STAGES = 1.5  # how much longer an episode with a task about two blocks may be
_WORLDS: dict[str, G1Table] = {}  # one per process and renderer; compiling a scene costs 20 ms


@dataclass
class Episode:
    """One episode, T ticks at 30 Hz.

    Attributes:
        state: (T, 26) float32, measured before each tick.
        action: (T, 28) float32, absolute command of each tick.
        is_expert: (T,) bool, the command is the expert's answer to the present task.
        success: (T,) bool, the tick's task is satisfied before the tick.
        task: T instructions; it may change midway.
        failure_mode: ``none``, or one of ``failures.ALL_MODES``.
        seed: all there is to know.
        truth: (T, 40) float32, before each tick, laid out as ``truth.NAMES``.
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
    truth: np.ndarray
    views: dict[str, np.ndarray]
    view_index: np.ndarray


@dataclass
class _Plan:
    """What the seed has in store beside the start itself."""

    mode: str
    ticks: int
    switch_at: int
    rests: int
    bursts: list[tuple[int, int, np.ndarray, np.ndarray]] = field(default_factory=list)


def episode(
    seed: int,
    *,
    families: Sequence[str] = FAMILIES,
    colours: Sequence[str] = tuple(COLOURS),
    blocks: int | Sequence[int] = BLOCKS,
    look: str = "seen",
    site: str = "usual",
    camera_hz: int = 5,
    renderer: str = "ray",
    seconds: float = 7.2,
    failure_share: float = FAILURE_SHARE,
    modes: Sequence[str] = MODES,
) -> Episode:
    """Record one episode.

    Args:
        seed: of everything.
        families: task families to draw from.
        colours: block colours to draw from.
        blocks: how many, 1 to 4, or several numbers to draw one of.
        look: as for :meth:`imagine.policy.robots.g1_table.world.G1Table.reset`.
        site: likewise.
        camera_hz: frames per second; divides 30.
        renderer: ``ray`` or ``egl``.
        seconds: longest, and half as long again with a task about two blocks; it may end sooner, 0.8 to 2 s after a
            task is done.
        failure_share: chance that the episode is a deliberate failure.
        modes: how it may fail, some of ``failures.ALL_MODES``; those of ``failures.MODES`` when empty.

    Raises:
        ImagineError: an argument is out of range.
    """
    if not 0 <= failure_share <= 1:
        raise ImagineError(f"failure_share is {failure_share}, expected 0 to 1.")
    if camera_hz < 1 or CONTROL_HZ % camera_hz:
        raise ImagineError(f"camera_hz is {camera_hz}, expected a divisor of {CONTROL_HZ}.")
    modes = tuple(modes) or MODES
    if set(modes) - set(ALL_MODES):
        raise ImagineError(f"modes are {tuple(modes)}, expected some of {', '.join(ALL_MODES)}.")
    if renderer not in _WORLDS:
        _WORLDS[renderer] = G1Table(renderer)
    world = _WORLDS[renderer]
    world.reset(seed, families=families, colours=colours, blocks=blocks, look=look, site=site)
    rng = np.random.default_rng([seed, 1])
    plan = _draw_plan(rng, round(seconds * CONTROL_HZ), world, failure_share, modes)
    rows = _record(world, rng, plan, families, CONTROL_HZ // camera_hz)
    return rows.episode(plan.mode, seed)


def _record(world: G1Table, rng: np.random.Generator, plan: _Plan, families: Sequence[str], stride: int) -> _Rows:
    """Play the plan on the world, a picture every ``stride`` ticks."""
    task, rows, done_for, t = world.task, _Rows(), 0, -1
    failure = Failure(plan.mode, world, task, rng) if plan.mode != "none" else None
    while (t := t + 1) < plan.ticks * (TWO_STAGES if blocks_of(task.family) > 1 else 1):
        if t % stride == 0:
            rows.see(world)
        success = world.success(task)
        done_for = done_for + 1 if success else 0
        rested = done_for > (plan.rests if not task.family.startswith("push") else AFTERWARDS)
        if t == plan.switch_at or (t < plan.switch_at and rested):
            task, plan.switch_at, done_for = _other_task(rng, world, task, families), -1, 0
            world.rebase()
            success, rested = world.success(task), False
        if rested and failure is None:
            if rng.uniform() > AGAIN:
                break
            task, done_for = _other_task(rng, world, task, families), 0
            world.rebase()
            success = world.success(task)
        target = failure.target(world, task) if failure else expert_target(world, task)
        target, disturbed = _disturb(plan, t, world, target)
        own = failure is None and not disturbed and not _is_past_push(world, task)
        rows.note(world, own, success, task)
        world.tick(target)
        rows.action.append(world.command())
    return rows


def _draw_plan(rng: np.random.Generator, ticks: int, world: G1Table, failures: float, modes: Sequence[str]) -> _Plan:
    mode = modes[int(rng.integers(len(modes)))] if rng.uniform() < failures else "none"
    if mode == "wrong" and len(world.colours) == blocks_of(world.task.family):
        mode = "miss"
    switch = int(rng.integers(10, max(11, min(ticks - 45, 75))))
    switch = switch if rng.uniform() < SWITCH_SHARE and mode == "none" else -1
    plan = _Plan(mode, ticks, switch, int(rng.integers(REST[0], REST[1] + 1)))
    for _ in range(int(rng.poisson(BURSTS_PER_EPISODE)) if mode == "none" else 0):
        start, length = int(rng.integers(0, max(1, min(ticks - 20, 80)))), int(rng.integers(6, 19))
        velocity = rng.normal(0, 1, (2, 3))
        velocity *= rng.uniform(0.05, 0.3, (2, 1)) / np.linalg.norm(velocity, axis=1, keepdims=True)
        grips = np.where(rng.uniform(size=2) < 0.3, rng.uniform(size=2), np.nan)
        plan.bursts.append((start, start + length, velocity, grips))
    return plan


def _disturb(plan: _Plan, t: int, world: G1Table, target: np.ndarray) -> tuple[np.ndarray, bool]:
    """Replace the expert's target inside a burst; a gripper is disturbed only where ``grips`` is a number."""
    for start, stop, velocity, grips in plan.bursts:
        if start <= t < stop:
            pushed = target.reshape(2, 4).copy()
            pushed[:, :3] = world.hands + velocity * 0.07  # the servos' lag turns this lead into that velocity
            pushed[:, 3] = np.where(np.isnan(grips), pushed[:, 3], grips)
            return pushed.ravel(), True
    return target, False


def _is_past_push(world: G1Table, task: Task) -> bool:
    """After a push nothing visible tells that it is over, so what the expert does then must not be imitated."""
    if not task.family.startswith("push"):
        return False
    i = world.block_of(task.colour)
    sign = 1 if task.family == "push_left" else -1
    return bool(sign * (world.blocks[i, 1] - world.block_start[i, 1]) > PUSH_GOAL)


def _other_task(rng: np.random.Generator, world: G1Table, task: Task, families: Sequence[str]) -> Task:
    """Another task on the same table that can be done from here and is not done already."""
    every = [[c for c in tasks_of([f], world.colours) if c != task and _is_feasible(world, c)] for f in families]
    every = [choices for choices in every if choices]  # of families evenly, though some have more tasks
    if not every:
        return task
    choices = every[int(rng.integers(len(every)))]
    return choices[int(rng.integers(len(choices)))]


def _is_feasible(world: G1Table, task: Task) -> bool:
    named = [world.block_of(colour) for colour in task.colours]
    if task.family.startswith("push"):
        x, y, z = world.blocks[named[0]]
        sign = 1 if task.family == "push_left" else -1
        low = z < world.block_start[0, 2] + 0.1 and x < world.bowl[0] - 0.11
        return bool(low and abs(y + sign * 0.12) < 0.29 and not _crowded(world, named[0], -sign * 0.06, 0.065))
    if any(_crowded(world, i, 0.0, 0.10) for i in named):
        return False
    if task.family in PUT_FAMILIES:  # two blocks fill the bowl
        gaps = np.linalg.norm(np.delete(world.blocks, named, 0)[:, :2] - world.bowl, axis=1)
        if (gaps < BOWL_INSIDE).sum() + len(named) > 2:
            return False
    return not world.success(task)


def _crowded(world: G1Table, i: int, beside: float, room: float) -> bool:
    """Does another block lie where fingers have to go, within ``room`` (m) along y of ``beside`` block ``i``?"""
    away = np.delete(world.blocks, i, 0) - world.blocks[i]
    return bool(((np.abs(away[:, 0]) < 0.05) & (np.abs(away[:, 1] - beside) < room)).any())


class _Rows:
    """Collects what happens."""

    def __init__(self) -> None:
        self.state: list[np.ndarray] = []
        self.action: list[np.ndarray] = []
        self.truth: list[np.ndarray] = []
        self.own: list[bool] = []
        self.success: list[bool] = []
        self.task: list[str] = []
        self.index: list[int] = []
        self.frames: dict[str, list[np.ndarray]] = {name: [] for name in VIEWS}

    def see(self, world: G1Table) -> None:
        for name, image in world.views().items():
            self.frames[name].append(image)

    def note(self, world: G1Table, own: bool, success: bool, task: Task) -> None:
        self.state.append(world.state())
        self.truth.append(truth(world))
        self.own.append(own)
        self.success.append(success)
        self.task.append(task.instruction)
        self.index.append(len(self.frames["top_head"]) - 1)

    def episode(self, mode: str, seed: int) -> Episode:
        return Episode(
            np.stack(self.state),
            np.stack(self.action),
            np.array(self.own),
            np.array(self.success),
            self.task,
            mode,
            seed,
            np.stack(self.truth).astype(np.float32),
            {n: np.stack(f[: self.index[-1] + 1]) for n, f in self.frames.items()},
            np.array(self.index),
        )
