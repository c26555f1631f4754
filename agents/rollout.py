"""The one loop that runs episodes: a policy, or what the environments do by themselves, in dreams or on a robot."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np

from imagine.agents.envs import DreamEnvs, ParallelEnvs, RecordedEnvs, SimEnvs, StepResult
from imagine.seeds import Stream, derive
from imagine.types import ImagineError, Policy, pack_instruction, unpack_instruction

__all__ = ["DreamEnvs", "EpisodeRecord", "ParallelEnvs", "RecordedEnvs", "SimEnvs", "StepResult", "rollout"]

OnProgress = Callable[[int, int], None]
"""Called with (episodes done, episodes)."""
Instruct = Callable[[str, int], str]
"""What a policy is told instead: (the episode's own instruction, start seed) to an instruction."""
OnStep = Callable[[Sequence[int], Sequence[int]], None]
"""Called after every reset and step with numbers of episodes and the environments that they run in."""


def episode_id(start_seed: int, policy_seed: int = 0) -> int:
    """What a policy knows an episode of :func:`rollout` by, in ``Policy.act(..., episodes)``."""
    return derive(policy_seed, start_seed)


def decision_seed(start_seed: int, chunk: int, policy_seed: int = 0) -> int:
    """What the noise of one decision of a policy is derived from: the ``chunk``-th of an episode."""
    return derive(policy_seed, start_seed, chunk, Stream.POLICY)


@dataclass
class EpisodeRecord:
    """One episode.

    Attributes:
        seed: start seed; the same seed is the same start in every world.
        instruction: the episode's own, by which its success is measured.
        success: judged by the world's own judge: the truth of a simulator, the reward model in a dream.
        unbelievable: a dream that broke off because it could no longer be believed.
        hallucination: per chunk, normalised action units; empty outside dreams.
        rewards: per chunk.
        terms: per chunk, what the judge's reward is made of; empty outside dreams.
        probability: of success at the end, as the judge says; None outside dreams.
        observations: per chunk, the observation the policy acted on, without batch axis; empty unless kept.
        actions: per chunk, (K, A) float32, robot units; empty unless kept.
        frames: (T, H, W, 3) uint8, first frame included; empty unless asked for.
    """

    seed: int
    instruction: str
    success: bool = False
    unbelievable: bool = False
    hallucination: list[float] = field(default_factory=list)
    rewards: list[float] = field(default_factory=list)
    terms: list[dict[str, float]] = field(default_factory=list)
    probability: float | None = None
    observations: list[dict[str, np.ndarray]] = field(default_factory=list)
    actions: list[np.ndarray] = field(default_factory=list)
    frames: np.ndarray = field(default_factory=lambda: np.zeros((0, 0, 0, 3), np.uint8))

    def add(self, result: StepResult) -> None:
        """One more chunk."""
        self.success |= result.success
        self.unbelievable |= result.unbelievable
        self.rewards.append(result.reward)
        self.probability = result.probability
        if result.hallucination is not None:
            self.hallucination.append(result.hallucination)
            self.terms.append(result.terms)


def rollout(
    envs: ParallelEnvs,
    policy: Policy | None,
    seeds: Sequence[int],
    *,
    policy_seed: int | Sequence[int] = 0,
    instruction: str | None = None,
    instruct: Instruct | None = None,
    frames: bool = False,
    keep: bool = False,
    on_step: OnStep | None = None,
    on_progress: OnProgress | None = None,
) -> list[EpisodeRecord]:
    """Run one episode per seed, ``envs.num_envs`` at a time.

    Args:
        envs: the world.
        policy: acts on batches of observations. None: the environments act by themselves, ``envs.next_actions``.
        seeds: start seeds.
        policy_seed: another one gives other draws of the same policy; or one per episode, so that several episodes from
            one seed differ in what the policy draws and in nothing else.
        instruction: the episodes' instruction, in place of each start's own; success is measured by it.
        instruct: overrides what the policy is told, and nothing else: success is measured by the episode's own.
        frames: keep every frame.
        keep: keep observations and actions, for learning.
        on_step: sees the environments after every reset and step, to record what the records do not hold.
        on_progress: called after every group of episodes.

    Returns:
        A record per seed, in their order. It depends on the seed, the policy and ``policy_seed`` alone, whatever
        ``envs.num_envs`` is.

    Raises:
        ImagineError: there are no seeds, or neither a policy nor environments that act by themselves.
    """
    if not len(seeds):
        raise ImagineError("asked for 0 episodes, expected at least 1.")
    draws = [policy_seed] * len(seeds) if isinstance(policy_seed, int) else [int(s) for s in policy_seed]
    records: list[EpisodeRecord] = []
    for first in range(0, len(seeds), envs.num_envs):
        own = slice(first, first + envs.num_envs)
        group = _Group(envs, policy, [int(s) for s in seeds[own]], draws[own], first)
        records += group.run(instruction, instruct, frames, keep, on_step)
        if on_progress is not None:
            on_progress(len(records), len(seeds))
    return records


@dataclass
class _Group:
    """Episodes that run side by side; ``first`` is the number of the first one."""

    envs: ParallelEnvs
    policy: Policy | None
    seeds: list[int]
    draws: list[int]
    first: int

    def run(
        self, instruction: str | None, instruct: Instruct | None, frames: bool, keep: bool, on_step: OnStep | None
    ) -> list[EpisodeRecord]:
        observation = self.envs.reset(self.seeds, instruction)
        given = [unpack_instruction(row) for row in observation["instruction"]]
        records = [EpisodeRecord(*both) for both in zip(self.seeds, given, strict=True)]
        told = given if instruct is None else [instruct(*both) for both in zip(given, self.seeds, strict=True)]
        packed = np.stack([pack_instruction(text) for text in told])
        rows, chunk = list(range(len(records))), 0
        video: list[list[np.ndarray]] = [[f[None]] for f in self.envs.canvas(rows)] if frames else [[] for _ in rows]
        if self.policy is not None:
            self.policy.reset()
        if on_step is not None:
            on_step([self.first + row for row in rows], rows)
        while rows:
            seen = observation if instruct is None else {**observation, "instruction": packed[rows]}
            actions = self._act(seen, rows, chunk)
            if keep:
                for at, row in enumerate(rows):
                    records[row].observations.append({k: v[at] for k, v in seen.items()})
                    records[row].actions.append(actions[at])
            observation, results = self.envs.step(rows, actions)
            for row, result in zip(rows, results, strict=True):
                records[row].add(result)
                if frames:
                    video[row].append(self.envs.frames(row))
            if on_step is not None:
                on_step([self.first + row for row in rows], rows)
            going = [at for at, result in enumerate(results) if not result.done]
            observation = {k: v[going] for k, v in observation.items()}
            rows, chunk = [rows[at] for at in going], chunk + 1
        for record, parts in zip(records, video, strict=True):
            if parts:
                record.frames = np.concatenate(parts)
        return records

    def _act(self, observation: dict[str, np.ndarray], rows: list[int], chunk: int) -> np.ndarray:
        """(M, K, A) float32, robot units."""
        if self.policy is None:
            return self.envs.next_actions(rows)
        each = [(self.seeds[row], self.draws[row]) for row in rows]
        noise = [decision_seed(start, chunk, draw) for start, draw in each]
        return self.policy.act(observation, noise, [episode_id(start, draw) for start, draw in each])
