"""Did an agent that learnt in the dream get better? The same starts before and after, in the dream and on the robot."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from imagine.agents.envs import DreamEnvs
from imagine.agents.rollout import rollout
from imagine.agents.statistics import mean_interval
from imagine.types import Policy
from imagine.world.env import WorldModelVectorEnv, episode_seed


def episodes(env: WorldModelVectorEnv, policy: Policy, seeds: Sequence[int]) -> tuple[np.ndarray, np.ndarray]:
    """Return (E,) and success (E,) of one whole episode per start seed; the environment's world is taken over."""
    how: dict[str, Any] = {"horizon": env.cfg.horizon, "break_off": env.cfg.truncate_unbelievable}
    starts = [episode_seed(int(seed), 0) for seed in seeds]  # as ``env.reset(seed=seeds)`` begins
    records = rollout(DreamEnvs(env.world, env.num_envs, **how), policy, starts)
    return np.array([sum(r.rewards) for r in records]), np.array([r.success for r in records])


def improvement(before: np.ndarray, after: np.ndarray) -> dict[str, Any]:
    """What learning brought, from returns or successes (E,) of the same starts and draws.

    Returns:
        ``before`` and ``after``: their means, each with its interval; ``gain``: the mean difference, paired, with its
        interval; ``each``: what was given, as lists.
    """
    both = {"before": np.asarray(before, float), "after": np.asarray(after, float)}
    means = {k: mean_interval(v).plain() for k, v in both.items()}
    each = {k: v.tolist() for k, v in both.items()}
    return {**means, "gain": mean_interval(both["after"] - both["before"]).plain(), "each": each}
