"""Success rates, imagined or real, with intervals."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from imagine.types import Policy

from .rollout import EpisodeRecord, Lanes, Tell, rollout
from .statistics import success_rate


def evaluate(
    lanes: Lanes,
    policy: Policy,
    seeds: Sequence[int],
    *,
    task_of: Callable[[str], str],
    policy_seed: int = 0,
    tell: Tell | None = None,
) -> tuple[dict[str, Any], list[EpisodeRecord]]:
    """Run one episode per seed and summarise.

    Args:
        lanes: the world.
        policy: what is evaluated.
        seeds: start seeds; the same seeds in two worlds are paired starts.
        task_of: names the task of an instruction, for the breakdown.
        policy_seed: draws of the policy.
        tell: progress.

    Returns:
        ``success_rate``, ``ci_low``, ``ci_high`` (95 %, Wilson), ``n``, ``per_task``; and the episodes.
    """
    records = rollout(lanes, policy, seeds, policy_seed=policy_seed, tell=tell)
    return summarise(records, task_of), records


def summarise(records: Sequence[EpisodeRecord], task_of: Callable[[str], str]) -> dict[str, Any]:
    """Success rate with its interval, overall and per task."""
    tasks = np.array([task_of(r.instruction) for r in records])
    success = np.array([r.success for r in records])
    per_task = {t: _numbers(success[tasks == t]) for t in sorted(set(tasks.tolist()))}
    return {**_numbers(success), "per_task": per_task}


def _numbers(success: np.ndarray) -> dict[str, Any]:
    rate = success_rate(success)
    return {"success_rate": rate.value, "ci_low": rate.low, "ci_high": rate.high, "n": rate.n}
