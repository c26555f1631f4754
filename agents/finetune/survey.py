"""What a policy achieves in the dream before it learns, and so how long to practise, and what.

A dream is the more faithful the shorter it is, so episodes are as long as success usually takes and no longer. What
never succeeds by then, or always does, is left as it is.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from imagine.agents.rollout import EpisodeRecord

LEAST, MOST = 0.1, 0.9
"""Success rates between which a task is practised, as in DAPO (arXiv:2503.14476)."""


@dataclass(frozen=True)
class Survey:
    """What was found.

    Attributes:
        horizon: the fewest chunks by which half of the successes had come; all there were where there was none.
        success: by task, the share of its episodes that had succeeded by then.
    """

    horizon: int
    success: dict[str, float]

    @property
    def practised(self) -> tuple[str, ...]:
        """Tasks that sometimes succeed and sometimes do not; all of them where there is none."""
        return tuple(task for task, rate in self.success.items() if LEAST <= rate <= MOST) or tuple(self.success)

    def __str__(self) -> str:
        each = ", ".join(f"{task} {rate:.0%}" for task, rate in self.success.items())
        left = ", ".join(task for task in self.success if task not in self.practised)
        text = f"imagined success within {self.horizon} chunks: {each}"
        return text + (f"; not practised: {left}" if left else "")


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
