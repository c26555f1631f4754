"""Rollouts on a simulator, with which object every pixel shows: what dreams of the same actions are held against.

Every policy acts on to the last chunk, also after a success, as most that a dream loses it loses late.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from imagine.agents.envs import SimEnvs, StepResult
from imagine.agents.rollout import rollout
from imagine.embodiment import Embodiment
from imagine.files import atomic_path
from imagine.intact import intact
from imagine.policy.robots.plugin import RobotPlugin
from imagine.types import ImagineError, Policy
from imagine.world.objects import ObjectMasks


@dataclass(frozen=True)
class TrueRollouts:
    """N rollouts of C chunks of F frames each; T = 1 + C F frames, the first one before any action.

    Attributes:
        seeds: (N,) int64 start seeds.
        policies: (N,) who acted.
        instructions: (N,) what was asked.
        frames: (N, T, H, W, 3) uint8 canvases.
        proprio: (N, T, P) float32, robot units.
        actions: (N, C, K, A) float32, robot units.
        done: (N, C) bool, the instruction had been carried out by the end of a chunk.
        objects: per rollout, which object each pixel shows.
    """

    seeds: np.ndarray
    policies: np.ndarray
    instructions: np.ndarray
    frames: np.ndarray
    proprio: np.ndarray
    actions: np.ndarray
    done: np.ndarray
    objects: tuple[ObjectMasks, ...]

    def __len__(self) -> int:
        return len(self.seeds)

    @property
    def chunk_frames(self) -> int:
        """F."""
        return (self.frames.shape[1] - 1) // self.actions.shape[1]

    def pick(self, rows: Sequence[int] | np.ndarray) -> TrueRollouts:
        """Some of them."""
        own = list(map(int, rows))
        arrays = {k: v[own] for k, v in vars(self).items() if k != "objects"}
        return TrueRollouts(**arrays, objects=tuple(self.objects[i] for i in own))

    @classmethod
    def cat(cls, parts: Sequence[TrueRollouts]) -> TrueRollouts:
        """Several together."""
        arrays = {k: np.concatenate([vars(p)[k] for p in parts]) for k in vars(parts[0]) if k != "objects"}
        return cls(**arrays, objects=tuple(o for p in parts for o in p.objects))

    def save(self, file: Path, key: Mapping[str, Any]) -> None:
        """Write them whole; ``key`` says what they are of."""
        arrays = {k: v for k, v in vars(self).items() if k != "objects"}
        told = [{k: v for k, v in vars(o).items() if k != "masks"} for o in self.objects]
        words = json.dumps({"key": key, "objects": told})
        with atomic_path(file) as temporary, open(temporary, "wb") as out:
            np.savez_compressed(out, **arrays, masks=np.stack([o.masks for o in self.objects]), words=np.array(words))

    @classmethod
    def load(cls, file: Path, key: Mapping[str, Any]) -> TrueRollouts:
        """Read what :meth:`save` wrote.

        Raises:
            ImagineError: they are of something else.
        """
        with intact(file, "remove it, and it is made again"), np.load(file) as kept:
            arrays = dict(kept)
            words, masks = json.loads(str(arrays.pop("words"))), arrays.pop("masks")
        wanted = json.loads(json.dumps(key))
        differs = [k for k in wanted if wanted[k] != words["key"].get(k)]
        if differs:
            k = differs[0]
            raise ImagineError(f"{file} holds rollouts of {k} {words['key'].get(k)!r}, not {wanted[k]!r}; remove it.")
        objects = tuple(
            ObjectMasks(m, tuple(o["names"]), tuple(o["things"]), tuple(o["targets"]), o["view"])
            for m, o in zip(masks, words["objects"], strict=True)
        )
        return cls(**arrays, objects=objects)


@dataclass
class _Told:
    """What one episode has shown so far, beside its frames."""

    masks: list[ObjectMasks]
    proprio: list[np.ndarray]
    done: list[bool]


class WholeEpisodes(SimEnvs):
    """Simulators whose episodes go on to the last chunk, whatever has been achieved."""

    def __init__(self, robot: RobotPlugin, make: Callable[[], Any], num_envs: int, body: Embodiment, chunks: int):
        """``robot`` understands what ``make`` makes; an episode has ``chunks``."""
        super().__init__(make, num_envs, body, expert=robot.expert)
        self.robot, self.chunks = robot, chunks
        self.told: list[_Told] = []

    def reset(self, seeds: Sequence[int], instruction: str | None = None) -> dict[str, np.ndarray]:
        """See :class:`imagine.agents.envs.ParallelEnvs`."""
        seen = super().reset(seeds, instruction)
        rows = range(len(seeds))
        self.told = [_Told([self._objects(row, 1)], [seen["proprio"][row][None]], []) for row in rows]
        return seen

    def step(self, rows: Sequence[int], actions: np.ndarray) -> tuple[dict[str, np.ndarray], list[StepResult]]:
        """See :class:`imagine.agents.envs.ParallelEnvs`."""
        results = []
        for row, action in zip(rows, actions, strict=True):
            self._seen[row], reward, terminated, _, info = self.envs[row].step(action)
            self._frames[row] = info["frames"]
            told, won = self.told[row], bool(info.get("is_success", terminated))
            told.masks.append(self._objects(row, len(info["frames"])))
            told.proprio.append(info["proprio_frames"])
            told.done.append(won)
            results.append(StepResult(won, len(told.done) >= self.chunks, float(reward)))
        return self._observation(rows), results

    def _objects(self, row: int, frames: int) -> ObjectMasks:
        """What the robot tells of the newest frames; where it does not, one scene without things."""
        found = self.robot.objects(self.envs[row])
        if found is not None:
            return found
        blank = np.zeros((frames, self.body.canvas_height, self.body.canvas_width), np.int8)
        return ObjectMasks(blank, ("scene",), (), (), self.body.views[0].name)


Job = tuple[str, tuple[int, ...], tuple[int, ...]]
"""A policy's name, the numbers of some rollouts, and their start seeds."""


def turns(policies: Sequence[str], seeds: Sequence[int], size: int) -> list[Job]:
    """Rollout i is policy i's, modulo their number; up to ``size`` of one policy together."""
    jobs = []
    for k, name in enumerate(policies):
        own = range(k, len(seeds), len(policies))
        parts = [tuple(own[i : i + size]) for i in range(0, len(own), size)]
        jobs += [(name, part, tuple(int(seeds[i]) for i in part)) for part in parts]
    return jobs


def simulated(envs: WholeEpisodes, name: str, policy: Policy, seeds: Sequence[int]) -> TrueRollouts:
    """Roll out a policy of some name from at most ``envs.num_envs`` starts."""
    records = rollout(envs, policy, seeds, frames=True, keep=True)
    told = envs.told[: len(seeds)]
    return TrueRollouts(
        seeds=np.array(seeds), policies=np.array([name] * len(seeds)),
        instructions=np.array([r.instruction for r in records]),
        frames=np.stack([r.frames for r in records]), actions=np.stack([r.actions for r in records]),
        proprio=np.stack([np.concatenate(t.proprio) for t in told]).astype(np.float32),
        done=np.logical_or.accumulate([t.done for t in told], 1),
        objects=tuple(replace(t.masks[0], masks=np.concatenate([m.masks for m in t.masks])) for t in told),
    )  # fmt: skip


def in_order(jobs: Sequence[Job], parts: Sequence[TrueRollouts]) -> TrueRollouts:
    """All rollouts of some jobs by their numbers."""
    numbers = [i for _, part, _ in jobs for i in part]
    return TrueRollouts.cat(parts).pick(np.argsort(numbers))


def true_rollouts(envs: WholeEpisodes, policies: Mapping[str, Policy], seeds: Sequence[int]) -> TrueRollouts:
    """Roll out a mixture of policies, who take turns (:func:`turns`)."""
    jobs = turns(tuple(policies), seeds, envs.num_envs)
    return in_order(jobs, [simulated(envs, name, policies[name], own) for name, _, own in jobs])
