"""Did an agent that learnt in the dream get better? The same starts before and after, in the dream and on the robot."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from imagine.agents.rollout import Lanes, Tell, rollout
from imagine.agents.statistics import mean_interval
from imagine.agents.steer import Agent
from imagine.types import Policy
from imagine.world.env import WorldModelVectorEnv


def episodes(env: WorldModelVectorEnv, act: Agent, seeds: Sequence[int]) -> tuple[np.ndarray, np.ndarray]:
    """Return (E,) and success (E,) of one whole episode per start seed; ``act`` gets observations of all lanes.

    A lane that is done goes on with the next seed; autoreset had better be disabled, or its resets are in vain.
    """
    total, success = np.zeros(len(seeds)), np.zeros(len(seeds), bool)
    lanes = env.num_envs
    mine = np.arange(lanes)  # which episode each lane is in; beyond the last one it only keeps the others company
    todo = lanes

    def seed_of(episode: int) -> int:
        return int(seeds[episode if episode < len(seeds) else 0])

    observation, _ = env.reset(seed=[seed_of(e) for e in mine.tolist()])
    while (mine < len(seeds)).any():
        observation, reward, terminated, truncated, _ = env.step(act(observation))
        going, done = mine < len(seeds), terminated | truncated
        total[mine[going]] += reward[going]
        success[mine[going]] |= terminated[going]
        if done.any():
            mine[done] = todo + np.arange(done.sum())
            todo += int(done.sum())
            next_seeds = [seed_of(e) if over else None for e, over in zip(mine.tolist(), done, strict=True)]
            observation, _ = env.reset(seed=next_seeds, options={"reset_mask": done})
    return total, success


def in_reality(
    lanes: Lanes, policy: Policy, starts: Sequence[int], draws: Sequence[int], tell: Tell | None = None
) -> np.ndarray:
    """Success (E,) on the robot of one episode per start; episodes from one start differ by what the policy draws."""
    return np.array([r.success for r in rollout(lanes, policy, starts, policy_seed=draws, tell=tell)])


def improvement(before: np.ndarray, after: np.ndarray) -> dict[str, Any]:
    """What learning brought, from returns or successes (E,) of the same starts and draws.

    Returns:
        ``before`` and ``after``: their means, each with its interval; ``gain``: the mean difference, paired, with its
        interval; ``each``: what was given, as lists.
    """
    both = {"before": np.asarray(before, float), "after": np.asarray(after, float)}
    told = {k: _interval(v) for k, v in both.items()}
    each = {k: v.tolist() for k, v in both.items()}
    return {**told, "gain": _interval(both["after"] - both["before"]), "each": each}


def _interval(values: np.ndarray) -> dict[str, Any]:
    mean = mean_interval(values)
    return {"value": mean.value, "ci_low": mean.low, "ci_high": mean.high, "n": mean.n}
