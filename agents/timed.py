"""What deciding costs: a policy or planner with its time, its judgements and its fallbacks counted."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from imagine.agents.planner import Plan
from imagine.types import Policy

OnPlan = Callable[[Plan, dict[str, np.ndarray], Sequence[int]], None]
"""Called with a plan, what was observed, and the episodes."""


class TimedPolicy:
    """A :class:`imagine.types.Policy` that counts another one's decisions and seconds, and hands on every plan."""

    def __init__(self, policy: Policy, on_plan: OnPlan | None = None) -> None:
        """``policy`` is any policy; only a planner has plans to count and to hand on."""
        self.policy, self.on_plan = policy, on_plan
        self.seconds, self.decisions, self.judged, self.fallbacks, self.late, self.calls = 0.0, 0, 0, 0, 0, 0

    def act(
        self,
        observation: dict[str, np.ndarray],
        seeds: Sequence[int] | None = None,
        episodes: Sequence[int] | None = None,
    ) -> np.ndarray:
        """See :class:`imagine.types.Policy`."""
        begin = time.perf_counter()
        action = self.policy.act(observation, seeds, episodes)
        self.seconds += time.perf_counter() - begin
        self.decisions += len(action)
        if plans := getattr(self.policy, "plans", None):
            plan = plans[-1]
            self.calls, self.late = self.calls + 1, self.late + plan.late
            self.judged += plan.judged * len(action)
            self.fallbacks += int(plan.fallback.sum())
            if self.on_plan is not None and episodes is not None:
                self.on_plan(plan, observation, episodes)
        return action

    def reset(self, episodes: Sequence[int] | None = None) -> None:
        """See :class:`imagine.types.Policy`."""
        self.policy.reset(episodes)

    def numbers(self) -> dict[str, Any]:
        """What it cost: per decision, and per call, which decides for all environments at once."""
        each = max(1, self.decisions)
        numbers: dict[str, Any] = {"ms_per_decision": round(1000 * self.seconds / each, 2)}
        if self.calls:
            numbers["judged_per_decision"] = round(self.judged / each, 2)
            numbers |= {"fallbacks": self.fallbacks, "late": round(self.late / self.calls, 4)}
        return numbers
