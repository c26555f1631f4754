"""Several policies from the same starts: what each achieves, and what one gains over another."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from imagine.agents.agreement import agreement
from imagine.agents.envs import ParallelEnvs
from imagine.agents.evaluate import evaluate, outcomes, summarise
from imagine.agents.rollout import OnProgress
from imagine.agents.statistics import mcnemar, mean_interval, paired_difference
from imagine.types import Policy

FEWEST = 3
"""Policies below which a correlation says nothing."""


@dataclass(frozen=True)
class Paired:
    """Episodes of several policies from the same starts.

    Attributes:
        results: by policy: success rate with its interval, overall and per task (:func:`summarise`).
        outcomes: by policy: (E,) bool success.
        tasks: (E,) the task of each start.
    """

    results: dict[str, dict[str, Any]]
    outcomes: dict[str, np.ndarray]
    tasks: np.ndarray

    def __or__(self, other: Paired) -> Paired:
        """Together with other policies from the same starts."""
        return Paired(self.results | other.results, self.outcomes | other.outcomes, self.tasks)

    def renamed(self, names: Mapping[str, str]) -> Paired:
        """Only these policies, by their new names."""
        results = {new: self.results[old] for old, new in names.items()}
        return Paired(results, {new: self.outcomes[old] for old, new in names.items()}, self.tasks)

    def gain(self, after: str, before: str) -> dict[str, Any]:
        """Paired difference of two policies' success with its interval."""
        return paired_difference(self.outcomes[after], self.outcomes[before]).plain()

    def gain_per_task(self, after: str, before: str) -> dict[str, Any]:
        """The same for the starts of every task."""
        a, b = self.outcomes[after], self.outcomes[before]
        masks = {task: self.tasks == task for task in sorted(set(self.tasks.tolist()))}
        return {task: paired_difference(a[rows], b[rows]).plain() for task, rows in masks.items()}


def compare(
    envs: ParallelEnvs,
    policies: Mapping[str, Policy],
    seeds: Sequence[int],
    *,
    task_of: Callable[[str], str],
    on_progress: OnProgress | None = None,
) -> Paired:
    """Run one episode per policy and start.

    Args:
        envs: the world.
        policies: by name.
        seeds: start seeds.
        task_of: names the task of an instruction.
        on_progress: called with episodes done and episodes in all, over all policies.
    """
    results, success, tasks = {}, {}, np.array([])
    for i, (name, policy) in enumerate(policies.items()):

        def count(done: int, _total: int, before: int = i * len(seeds)) -> None:
            if on_progress is not None:
                on_progress(before + done, len(policies) * len(seeds))

        results[name], records = evaluate(envs, policy, seeds, task_of=task_of, on_progress=count)
        success[name] = np.array([r.success for r in records])
        tasks = np.array([task_of(r.instruction) for r in records])
    return Paired(results, success, tasks)


def compare_worlds(table: Any, policies: Sequence[str], worlds: Sequence[str], seeds: Sequence[int]) -> dict[str, Any]:
    """What a table of episodes says of policies in one world or two.

    One policy in one world is at the top level; several of either under ``policies``. From three policies in two worlds
    on, each measure of agreement (:func:`imagine.agents.agreement.agreement`) has a key of its own, as has the share of
    episodes that end alike, ``same_outcome``; and two policies are compared with each other.

    Args:
        table: of :func:`imagine.agents.evaluate.carry_out`.
        policies: their names.
        worlds: one or two; the second is held against the first.
        seeds: start seeds of every policy in every world.
    """
    each = [_in_worlds(table, policy, worlds, seeds) for policy in policies]
    if len(policies) == len(worlds) == 1:
        return {"policy": policies[0], "world": worlds[0], **each[0][worlds[0]]}
    found: dict[str, Any] = {"worlds": list(worlds), "policies": each, "n": len(seeds)}
    if len(worlds) == 2 and len(policies) >= FEWEST:
        first, second = (outcomes(table, policies, w, seeds) for w in worlds)
        found |= {name: x.plain() for name, x in agreement(first, second).items()}
        starts = np.tile(np.arange(len(seeds)), len(policies))
        found["same_outcome"] = mean_interval((first == second).ravel(), starts, expanded=True).plain()
    if len(policies) == 2:
        found["second_less_first"] = {}
        for world in worlds:
            first, second = outcomes(table, policies, world, seeds)
            p = round(mcnemar(second, first), 5)
            found["second_less_first"][world] = {**paired_difference(second, first).plain(), "p": p}
    return found


def _in_worlds(table: Any, policy: str, worlds: Sequence[str], seeds: Sequence[int]) -> dict[str, Any]:
    rows = [row for row in table.select(["policy", "world", "success", "task"]).to_pylist() if row["policy"] == policy]
    one: dict[str, Any] = {"policy": policy}
    for world in worlds:
        own = [row for row in rows if row["world"] == world]
        one[world] = summarise([row["success"] for row in own], [row["task"] for row in own])
    if len(worlds) == 2:
        first, second = (outcomes(table, [policy], w, seeds)[0] for w in worlds)
        one["difference"] = paired_difference(second, first).plain()
        one["same_outcome"] = round(float((first == second).mean()), 4)
    return one
