"""Whole imagined episodes with the truth about them: policies act in the dream, and the robot's simulator repeats it.

A judge that only knew recorded behaviour takes a dream's faults for failures: a block that fades under a hand has still
been pushed. So it is shown such episodes, of good policies and of flawed ones, as far as an evaluation watches. A
robot without a simulator has :mod:`imagine.agents.labelled_recordings`.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from pydantic import BaseModel, ConfigDict

from imagine.agents.rollout import DreamEnvs, EpisodeRecord, RecordedEnvs, rollout
from imagine.data.processes import process_pool
from imagine.files import atomic_path
from imagine.intact import intact
from imagine.labels import LabelledRollouts
from imagine.model.model import WorldActionModel
from imagine.policy.robots.plugin import RobotPlugin
from imagine.types import Clip, ImagineError, Policy, Score
from imagine.world.dream import Dream

OnProgress = Callable[[int, int], Any]
KINDS = ("base", "clumsy", "misled", "random")
"""Whose episodes a judge is tried on: the policy; one that is off by a little; one told something else; random."""

_POLICY_OF = {"clumsy": "base+bias=0.04", "misled": "base"}
TOGETHER = 64  # episodes imagined at once where speed matters more than the last bits
_WORKERS = 2
HELD = 5  # one in so many is held out


class RolloutConfig(BaseModel):
    """Whose imagined episodes teach.

    Attributes:
        policies: names as ``--policy`` takes them, ``clumsy`` or ``misled``; they take turns.
        episodes: of all policies together; every fifth of each is held out.
        chunks: per episode.
        first_seed: of the starts.
        options: of the robot's episodes, by name; where several values are given, parts of the episodes take turns.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    policies: tuple[str, ...] = KINDS
    episodes: int = 256
    chunks: int = 6
    first_seed: int = 860_000
    options: dict[str, tuple[Any, ...]] = {}


class NoJudge:
    """A ``RewardModel`` that never sees a success, so that every imagined episode runs to its end."""

    def __call__(self, clip: Clip, instruction: Sequence[str]) -> Score:
        """See :class:`imagine.types.RewardModel`."""
        nothing = torch.zeros(len(clip.latents))
        return Score(nothing, nothing, nothing == 0)


@dataclass(frozen=True)
class RolloutMaker:
    """Makes labelled rollouts of one model on one robot.

    Attributes:
        model: knows the embodiment.
        robot: labels them.
        dream: makes a dream, of the robot's options, whose judge sees no success; its settings are the caller's.
        policy: makes a policy of its name.
        options: of the robot's episodes.
        num_envs: episodes imagined together.
        frames: whether the frames are wanted.
    """

    model: WorldActionModel
    robot: RobotPlugin
    dream: Callable[[Mapping[str, Any]], Dream]
    policy: Callable[[str], Policy]
    options: Mapping[str, Any] = field(default_factory=dict)
    num_envs: int = TOGETHER
    frames: bool = False

    def __call__(
        self,
        seeds: Sequence[int],
        kinds: Sequence[str],
        chunks: int,
        options: Mapping[str, Any] | None = None,
        *,
        on_progress: OnProgress | None = None,
    ) -> LabelledRollouts:
        """Imagine episodes, an equal share of the seeds for each kind, and repeat their actions on the simulator.

        Args:
            seeds: of the starts.
            kinds: whose actions, see :class:`RolloutConfig`.
            chunks: per episode.
            options: of the robot's episodes, in place of its defaults.
            on_progress: told how many episodes are imagined.
        """
        options = {**self.options, **(options or {})}
        dream, parts, made = self.dream(options), [], 0
        envs = DreamEnvs(dream, min(self.num_envs, len(seeds)), horizon=chunks, break_off=False)
        for name in dict.fromkeys(kinds):
            own = [int(s) for i, s in enumerate(seeds) if kinds[i % len(kinds)] == name]
            if not own:
                continue
            recorder = Recorder(envs, len(own), self.frames)
            instruct = partial(self._mislead, options=options) if name == "misled" else None
            policy = self.policy(_POLICY_OF.get(name, name))
            records = rollout(envs, policy, own, keep=True, instruct=instruct, on_step=recorder)
            states, done = self.replay(own, np.stack([r.actions for r in records]), options)
            held = np.arange(len(own)) % HELD == 0
            parts.append(recorder.labelled(records, states, done, name, held))
            made += len(own)
            if on_progress is not None:
                on_progress(made, len(seeds))
        return LabelledRollouts.cat(parts)

    def under(self, seeds: Sequence[int], actions: np.ndarray, kind: str) -> LabelledRollouts:
        """Imagine episodes under given actions (N, T, K, A) in robot units, and repeat them on the simulator."""
        dreams = DreamEnvs(
            self.dream(self.options), min(self.num_envs, len(seeds)), horizon=actions.shape[1], break_off=False
        )
        envs = RecordedEnvs(dreams, dict(zip(map(int, seeds), actions, strict=True)))
        recorder = Recorder(dreams, len(seeds), self.frames)
        records = rollout(envs, None, list(seeds), keep=True, on_step=recorder)
        states, done = self.replay(seeds, actions, self.options)
        return recorder.labelled(records, states, done, kind, np.ones(len(seeds), bool))

    def replay(
        self, seeds: Sequence[int], actions: np.ndarray, options: Mapping[str, Any]
    ) -> tuple[np.ndarray, np.ndarray]:
        """Carry out actions (N, T, K, A) on the simulator.

        Returns:
            (N, 1 + T, S) float64 true states, S = 0 where the robot does not tell; (N, T) bool, had each episode's
            instruction been carried out by the end of each chunk?
        """
        robot = self.robot
        env = robot.make_env(self.model.body, horizon=actions.shape[1], **options)
        states: list[list[np.ndarray]] = []
        done = np.zeros(actions.shape[:2], bool)
        for i, (seed, chunks) in enumerate(zip(seeds, actions, strict=True)):
            env.reset(seed=int(seed))
            states.append([_state(robot, env)])
            for t, chunk in enumerate(chunks):
                done[i, t] = robot.carry_out(env, chunk)
                states[-1].append(_state(robot, env))
        env.close()
        return np.array(states), np.logical_or.accumulate(done, 1)

    def _mislead(self, instruction: str, seed: int, options: Mapping[str, Any]) -> str:
        kinds = self.robot.swaps()
        other = self.robot.other_instruction(kinds[0], instruction, seed, options) if kinds else None
        if other is None:
            raise ImagineError(
                f"robot {self.robot.name!r} knows no other instruction than {instruction!r} here; drop `misled`."
            )
        return other


class Recorder:
    """Keeps what :class:`LabelledRollouts` holds of a dream and an :class:`EpisodeRecord` does not."""

    def __init__(self, envs: DreamEnvs, episodes: int, frames: bool) -> None:
        self.envs, self.wanted = envs, frames
        self.latents: list[list[np.ndarray]] = [[] for _ in range(episodes)]
        self.proprio: list[list[np.ndarray]] = [[] for _ in range(episodes)]
        self.frames: list[list[np.ndarray]] = [[] for _ in range(episodes)]

    def __call__(self, episodes: Sequence[int], rows: Sequence[int]) -> None:
        """See :data:`imagine.agents.rollout.OnStep`."""
        dream, at = self.envs.dream, list(rows)
        latents, proprio = dream.video[at, -1].half().cpu().numpy(), dream.proprio[at, -1].cpu().numpy()
        seen = self.envs.canvas(at) if self.wanted else None
        for i, episode in enumerate(episodes):
            self.latents[episode].append(latents[i])
            self.proprio[episode].append(proprio[i])
            if seen is not None:
                self.frames[episode].append(seen[i].copy())

    def labelled(
        self, records: Sequence[EpisodeRecord], states: np.ndarray, done: np.ndarray, kind: str, held: np.ndarray
    ) -> LabelledRollouts:
        """All episodes, which are equally long."""
        n, shape = len(records), self.envs.canvas([0]).shape[1:]
        return LabelledRollouts(
            latents=np.array(self.latents),
            proprio=np.array(self.proprio),
            frames=np.array(self.frames) if self.wanted else np.zeros((n, 0, *shape), np.uint8),
            actions=np.array([r.actions for r in records]),
            inverse_error=np.array([r.hallucination for r in records], np.float32),
            instruction=np.array([r.instruction for r in records]),
            done=done, states=states, seeds=np.array([r.seed for r in records]),
            kind=np.full(n, kind, dtype=f"<U{max(1, len(kind))}"), held=held,
        )  # fmt: skip


def _state(robot: RobotPlugin, env: Any) -> np.ndarray:
    state = robot.truth(env)
    return np.zeros(0) if state is None else np.asarray(state, np.float64)


def labelled_rollouts(
    maker: Callable[[], RolloutMaker],
    cfg: RolloutConfig,
    folder: Path,
    on_progress: OnProgress,
    *,
    workers: int = _WORKERS,
    together: int = TOGETHER,
    seconds: float = 0.0,
) -> LabelledRollouts:
    """All rollouts of a recipe, made in parts by processes; parts that ``folder`` holds are not made again.

    Args:
        maker: called once in each process; it must be picklable.
        cfg: whose.
        folder: ``rollouts-*.npz``.
        on_progress: told how many episodes are done.
        workers: processes.
        together: episodes of each policy in a part.
        seconds: parts that no process has begun by then are left out, the first ones never. 0: none.
    """
    folder.mkdir(parents=True, exist_ok=True)
    seeds, size = range(cfg.first_seed, cfg.first_seed + cfg.episodes), together * len(cfg.policies)
    parts = [seeds[i : i + size] for i in range(0, len(seeds), size)]
    files = [folder / f"rollouts-{part[0]}-{len(part)}.npz" for part in parts]
    jobs = [
        (part, cfg, {name: values[i % len(values)] for name, values in cfg.options.items()}, file)
        for i, (part, file) in enumerate(zip(parts, files, strict=True))
        if not file.is_file()
    ]
    if jobs:
        done = len(seeds) - sum(len(job[0]) for job in jobs)
        end = time.monotonic() + seconds if seconds else float("inf")
        with process_pool(min(workers, len(jobs)), _start, (maker,)) as pool:
            waiting = [pool.submit(_make, job) for job in jobs]
            for future in waiting:
                if future.cancelled():
                    continue
                done += future.result()
                on_progress(done, len(seeds))
                if time.monotonic() > end:
                    for late in waiting:
                        late.cancel()
    return LabelledRollouts.cat([_load(file) for file in files if file.is_file()])


_maker: RolloutMaker


def _start(maker: Callable[[], RolloutMaker]) -> None:
    """Runs once in each process."""
    global _maker
    _maker = maker()


def _make(job: tuple[range, RolloutConfig, dict[str, Any], Path]) -> int:
    """Make one part and write it whole; returns how many episodes it has."""
    seeds, cfg, options, file = job
    made = _maker(seeds, cfg.policies, cfg.chunks, options)
    with atomic_path(file) as temporary, open(temporary, "wb") as out:
        np.savez(out, **vars(made))
    return len(seeds)


def _load(file: Path) -> LabelledRollouts:
    with intact(file, "delete it, and it is made again"), np.load(file) as kept:
        return LabelledRollouts(**dict(kept))
