"""What a policy achieves in the dream before it learns, and so how long to practise.

A dream is the more faithful the shorter it is, so episodes are as long as success usually takes and no longer.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from imagine.agents.rollout import EpisodeRecord


@dataclass(frozen=True)
class Survey:
    """What was found.

    Attributes:
        horizon: the fewest chunks by which half of the successes had come; all there were where there was none.
        success: by task, the share of its episodes that had succeeded by then.
    """

    horizon: int
    success: dict[str, float]

    def __str__(self) -> str:
        each = ", ".join(f"{task} {rate:.0%}" for task, rate in self.success.items())
        return f"imagined success within {self.horizon} chunks: {each}"


def survey(episodes: Sequence[EpisodeRecord], task_of: Callable[[str], str]) -> Survey:
    """What imagined episodes, each until its success or the time limit, say.

    Args:
        episodes: at least one.
        task_of: names the task of an instruction.
    """
    took = sorted(len(r.rewards) for r in episodes if r.success)
    horizon = took[(len(took) - 1) // 2] if took else max(len(r.rewards) for r in episodes)
    by_task = dict[str, list[bool]]()
    for r in episodes:
        by_task.setdefault(task_of(r.instruction), []).append(r.success and len(r.rewards) <= horizon)
    return Survey(horizon, {task: sum(x) / len(x) for task, x in sorted(by_task.items())})
