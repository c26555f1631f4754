"""What a judge is tried on: real clips and imagined rollouts with the truth about them, and canaries."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from imagine.agents.rollout import decision_seed, episode_id
from imagine.configs.build import HORIZON, dream_config, dreamer, families_of, judge, policy, robot_starts
from imagine.data.processes import process_pool
from imagine.data.windows import Windows
from imagine.embodiment import Embodiment
from imagine.model.model import WorldActionModel, resolve
from imagine.policy.robots.g1_table.env import TableRobot
from imagine.policy.robots.g1_table.scene import COLOURS
from imagine.policy.robots.g1_table.tasks import FAMILIES, Task
from imagine.policy.robots.g1_table.truth import accomplished, is_there, truth
from imagine.policy.robots.registry import DEFAULT as ROBOT
from imagine.policy.robots.registry import load_robot
from imagine.types import Clip, RewardModel, Score, pack_instruction
from imagine.world.dream import Dream
from imagine.world.env import episode_seed

Tell = Callable[[int, int], None]
POLICIES = ("base", "clumsy", "misled", "random")
"""Whose rollouts are judged: the policy; with each hand off by a few cm; told of the other block; random actions.

Any other name is that of a policy, see :func:`imagine.configs.build.policy`.
"""
FAST_LANES = 64
"""Lanes that are imagined at once where speed matters more than the last bits."""


@dataclass
class Judged:
    """N questions about clips, with the truth.

    Attributes:
        first: (N, H, W, 3) uint8.
        now: (N, H, W, 3) uint8.
        instruction: what is asked about.
        label: (N,) bool.
        cluster: (N,) which episode; clips of one are not independent.
    """

    first: np.ndarray
    now: np.ndarray
    instruction: list[str]
    label: np.ndarray
    cluster: np.ndarray


def real_clips(windows: Windows, seed: int) -> Judged:
    """Four questions about each recorded episode: its end and a random moment, about what was told, and about another.

    What was told is the episode's last instruction, and its clip begins when that was given. The other instruction is
    drawn from all that the table's blocks allow.
    """
    rng = np.random.default_rng(seed)
    rows = windows.rows("all")
    first, last = windows.episode_rows(rows)
    picked: list[tuple[int, int, Task, int]] = []
    for begin, end in np.unique(np.stack([first, last], 1), axis=0).tolist():
        ids = windows.instruction_ids(np.arange(begin, end + 1))
        given = begin + int(np.flatnonzero(ids != ids[-1]).max(initial=-1)) + 1
        task = Task.parse(windows.instructions[ids[-1]])
        _, row = windows.newest(np.array(given))
        here = [c for c in COLOURS if is_there(row, c)]
        for anywhere in (False, True):
            at = int(rng.integers(given, end + 1)) if anywhere else end
            others = [Task(f, c) for f in FAMILIES for c in here if Task(f, c) != task]
            other = others[int(rng.integers(len(others)))]
            picked += [(given, at, task, begin), (given, at, other, begin)]
    begins, nows, tasks, clusters = zip(*picked, strict=True)
    (seen, before), (pictures, after) = windows.newest(np.array(begins)), windows.newest(np.array(nows))
    label = np.array([accomplished(b, a, t) for b, a, t in zip(before, after, tasks, strict=True)])
    said = [t.instruction for t in tasks]
    return Judged(seen, pictures, said, label, np.array(clusters))


@dataclass
class Rollouts:
    """N imagined rollouts of T chunks, none cut short, and what the same actions did from the same start.

    Attributes:
        films: (N, 1 + T, H, W, 3) uint8, the first frame and the last of each chunk.
        actions: (N, T, K, A) float32, robot units.
        doubt: (N, T) float32.
        second: (N, T) bool, is it a success for a judge of another architecture: the heads on the dream's latents?
        instruction: what each is judged by.
        seeds: start seeds.
        truths: (N, 1 + T, S) what was true on the twin at those moments.
        kind: (N,) whose rollouts.
        latents: (N, 1 + T, C, h, w) float16, the frames of ``films`` as the dream has them.
        path: (N, 1 + T F, P + S A) float32, the whole way; see :mod:`imagine.world.trajectory`.
    """

    films: np.ndarray
    actions: np.ndarray
    doubt: np.ndarray
    second: np.ndarray
    instruction: list[str]
    seeds: np.ndarray
    truths: np.ndarray
    kind: np.ndarray
    latents: np.ndarray
    path: np.ndarray

    @property
    def proprio(self) -> np.ndarray:
        """(N, 1 + T, P) float32, normalised, of the frames in ``films``."""
        every = self.path[:, :: (self.path.shape[1] - 1) // self.actions.shape[1]]
        ticks = self.actions.shape[1] * self.actions.shape[2] // (self.path.shape[1] - 1)
        return every[..., : -ticks * self.actions.shape[3]]

    @property
    def label(self) -> np.ndarray:
        """(N, T) bool: had the instruction been carried out by the end of each chunk, at the end of any so far?"""
        tasks = [Task.parse(i) for i in self.instruction]
        done = np.stack([accomplished(t[:1], t[1:], task) for t, task in zip(self.truths, tasks, strict=True)])
        return np.asarray(np.logical_or.accumulate(done, 1))


class _Silent:
    """Reports a judge's verdict without rewarding it, so that every rollout runs to its end."""

    def __init__(self, judge: RewardModel | None) -> None:
        self.judge = judge

    def __call__(self, clip: Clip, instruction: Sequence[str]) -> Score:
        if self.judge is None:
            nothing = torch.zeros(len(clip.latents))
            return Score(nothing, nothing, nothing > 0)
        score = self.judge(clip, instruction)
        nothing = torch.zeros_like(score.reward)
        return Score(nothing, score.terminated.float(), score.valid, terminated=nothing > 0)


def rollouts(
    model: WorldActionModel,
    folder: str | Path,
    seeds: Sequence[int],
    tell: Tell,
    *,
    kinds: Sequence[str] = POLICIES,
    workers: int = 2,
    chunks: int = HORIZON,
    fast: bool = False,
    blocks: int = 2,
) -> Rollouts:
    """Roll out kinds of policy in the dream, an equal share of the seeds each, and their actions on the twin.

    ``blocks`` lie on the table.

    ``fast`` imagines many lanes at once, in bfloat16; the last bits then depend on the machine. The ``workers`` are of
    :func:`replayed`.
    """
    group_size = FAST_LANES if fast else 16
    kind = np.array([kinds[i % len(kinds)] for i in range(len(seeds))])
    parts = []
    for name in dict.fromkeys(kinds):
        own = np.asarray(seeds)[kind == name]
        for begin in range(0, len(own), group_size):
            parts.append((name, own[begin : begin + group_size]))
    order = np.concatenate([group for _, group in parts])
    made = []
    for name, group in parts:
        made.append(_dreamt(model, folder, name, group.tolist(), chunks=chunks, fast=fast, blocks=blocks))
        tell(sum(len(m.instruction) for m in made), len(seeds))
    films, actions, doubt, second, latents, path = (
        np.concatenate([getattr(m, k) for m in made])
        for k in ("films", "actions", "doubt", "second", "latents", "path")
    )
    told = [i for m in made for i in m.instruction]
    truths = replayed(model, order.tolist(), actions, workers=workers, blocks=blocks)
    whose = np.concatenate([[name] * len(group) for name, group in parts])
    return Rollouts(films, actions, doubt, second, told, order, truths, whose, latents, path)


def dreamt_under(
    model: WorldActionModel, folder: str | Path, seeds: Sequence[int], actions: np.ndarray
) -> tuple[np.ndarray, np.ndarray, list[str]]:
    """Films (N, 1 + T, H, W, 3), doubts (N, T) and instructions of dreams under given actions (N, T, K, A)."""
    parts = [slice(begin, begin + 16) for begin in range(0, len(seeds), 16)]
    made = [_dreamt(model, folder, "given", list(seeds[p]), actions[p], chunks=actions.shape[1]) for p in parts]
    films, doubt = (np.concatenate([getattr(m, k) for m in made]) for k in ("films", "doubt"))
    return films, doubt, [i for m in made for i in m.instruction]


@dataclass
class _Dreamt:
    """A few lanes of :class:`Rollouts`."""

    films: np.ndarray
    actions: np.ndarray
    doubt: np.ndarray
    second: np.ndarray
    instruction: list[str]
    latents: np.ndarray
    path: np.ndarray


def _dreamt(
    model: WorldActionModel,
    folder: str | Path,
    name: str,
    seeds: list[int],
    given: np.ndarray | None = None,
    *,
    chunks: int = HORIZON,
    fast: bool = False,
    blocks: int = 2,
) -> _Dreamt:
    """Roll out a few lanes side by side, ``given`` actions (N, T, K, A) or those of the policy ``name``."""
    n, body = len(seeds), model.body
    starts = robot_starts(model, blocks)
    cfg = dream_config(folder)
    if fast:
        cfg = cfg.model_copy(update={"tile": 0, "autocast": True, "inverse_steps": 0})
    second = judge("latent", folder) if (resolve(folder) / "judge.json").is_file() else None
    world = Dream(dreamer(model, folder), _Silent(second), starts, cfg)
    world.allocate(n)
    world.reset(np.arange(n), [episode_seed(s, 0) for s in seeds], {})
    told = list(world.instruction)
    acts = policy("base" if name in ("given", *POLICIES[:3]) else name, model, folder)
    offset = np.stack([_offset(body, s) for s in seeds])
    films, actions, doubt, said = [world.canvas.cpu().numpy().copy()], [], [], []
    frames = world.newest.shape[1]
    latents, path = [world.video[:, -1].half().cpu().numpy()], [world.trajectory[:, -1:].cpu().numpy()]
    for k in range(chunks):
        seen, noise = world.observe(), [decision_seed(s, k) for s in seeds]
        if name == "misled":
            others = [_other(i, s, families_of(model)) for i, s in zip(told, seeds, strict=True)]
            seen = {**seen, "instruction": np.stack([pack_instruction(i) for i in others])}
        act = given[:, k] if given is not None else acts.act(seen, noise, [episode_id(s) for s in seeds])
        if name == "clumsy":
            act = np.clip(act + offset[:, None], body.action_low, body.action_high).astype(np.float32)
        outcome = world.step(act)
        films.append(world.canvas.cpu().numpy().copy())
        latents.append(world.video[:, -1].half().cpu().numpy())
        path.append(world.trajectory[:, -frames:].cpu().numpy())
        actions.append(act)
        doubt.append(outcome.info["hallucination"])
        said.append(outcome.info["success_probability"] > 0)
    film, act, doubts, verdicts, seen_latents = (np.stack(x, 1) for x in (films, actions, doubt, said, latents))
    return _Dreamt(film, act, doubts, verdicts, told, seen_latents, np.concatenate(path, 1))


def _offset(body: Embodiment, seed: int) -> np.ndarray:
    """(A,) a constant error of both hands, 2 to 6 cm in the plane; none where hands are not commanded by position."""
    rng = np.random.default_rng([seed, 7])
    angle, far = rng.uniform(0, 2 * np.pi), rng.uniform(0.02, 0.06)
    out, at = np.zeros(body.action_dim, np.float32), 0
    for part in body.action:
        if part.name.endswith("eef_position"):
            out[at : at + 2] = [far * np.cos(angle), far * np.sin(angle)]
        at += part.size
    return out


def _other(instruction: str, seed: int, families: Sequence[str]) -> str:
    """The same task with the other block."""
    other = load_robot(ROBOT).other_instruction("colour", instruction, seed, {"families": families})
    assert other is not None
    return other


def replayed(
    model: WorldActionModel, seeds: Sequence[int], actions: np.ndarray, *, workers: int = 2, blocks: int = 2
) -> np.ndarray:
    """What is true on the twin at the start and after each chunk, (N, 1 + T, S), under actions (N, T, K, A).

    With 0 ``workers`` all is done in this process.
    """
    jobs = [(int(s), a, families_of(model), blocks) for s, a in zip(seeds, actions, strict=True)]
    if not workers:
        _start(model.body)
        return np.stack([_replay(job) for job in jobs])
    with process_pool(workers, _start, (model.body,)) as pool:
        return np.stack(list(pool.map(_replay, jobs, chunksize=8)))


_robot: TableRobot


def _start(body: Embodiment) -> None:
    """Runs once in each process."""
    global _robot
    _robot = TableRobot(body)


def _replay(job: tuple[int, np.ndarray, tuple[str, ...], int]) -> np.ndarray:
    seed, chunks, families, blocks = job
    _robot.reset(seed, families=families, blocks=blocks)
    rows = [truth(_robot.world)]
    for chunk in chunks:
        _robot.execute(chunk, look=False)
        rows.append(truth(_robot.world))
    return np.stack(rows)
