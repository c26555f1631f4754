"""Pictures of decisions: every candidate's last imagined frame, its score, and the choice."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from imagine.agents.planner import Plan
from imagine.agents.rollout import episode_id
from imagine.files import atomic_path
from imagine.types import unpack_instruction

SHOWN = 24
"""Candidates in a picture at most: the first ones of every round, and the chosen one."""


class DecisionPictures:
    """Draws every decision of some episodes, one file each; an ``on_plan`` of :class:`imagine.agents.timed`."""

    def __init__(self, model: Any, folder: Path, seeds: Sequence[int]) -> None:
        """``model`` decodes what was imagined; ``seeds`` are the start seeds of the episodes."""
        self.model, self.folder = model, folder
        self.seeds, self.count = {episode_id(s): s for s in seeds}, dict.fromkeys(seeds, 0)

    def __call__(self, plan: Plan, observation: dict[str, np.ndarray], episodes: Sequence[int]) -> None:
        """Draw the rows that belong to the episodes."""
        for row, episode in enumerate(episodes):
            if episode not in self.seeds:
                continue
            seed = self.seeds[episode]
            self.count[seed] += 1
            figure = decision_figure(self.model, plan, observation, row, f"start {seed}, decision {self.count[seed]}")
            with atomic_path(self.folder / f"{seed}-{self.count[seed]:02d}.png") as file:
                figure.savefig(file, dpi=90, format="png")


def decision_figure(model: Any, plan: Plan, observation: dict[str, np.ndarray], row: int, title: str) -> Any:
    """A matplotlib figure of one decision: what is seen now, and the last imagined frame of the candidates.

    Args:
        model: decodes what was imagined.
        plan: all decisions of one call.
        observation: what it was made from.
        row: which decision.
        title: what stands above, after the instruction.
    """
    from matplotlib.figure import Figure

    now = model.body.tile({v.name: observation[v.name][row : row + 1] for v in model.body.views})[0]
    chosen = int(plan.chosen[row])
    shown = _shown(plan.round, chosen)
    columns = min(len(shown), 4 if len(shown) <= 8 else 6)
    rows = -(-len(shown) // columns)
    width = 1.7 * now.shape[1] / now.shape[0]
    figure = Figure(figsize=(max(width * (1 + columns), 6), 2.2 * rows + 0.5), layout="constrained")
    grid = figure.subplots(rows, 1 + columns, squeeze=False)
    for axis in grid.ravel():
        axis.axis("off")
    grid[0, 0].imshow(now)
    grid[0, 0].set_title("now", fontsize=8)
    video = plan.scores.video
    frames = None if video is None else model.decode(video[row, shown, -1:])[:, 0].cpu().numpy()
    for i, (k, axis) in enumerate(zip(shown, grid[:, 1:].ravel(), strict=False)):
        if frames is not None:
            axis.imshow(frames[i])
        _label(axis, plan, row, k, k == chosen)
    instruction = unpack_instruction(observation["instruction"][row])
    figure.suptitle(f"“{instruction}”, {title}\n{_summary(plan, row, len(shown))}", fontsize=9)
    return figure


def _shown(rounds: np.ndarray, chosen: int) -> list[int]:
    """Which candidates are drawn: of every round the first ones, and the chosen one."""
    each = max(1, (SHOWN - 1) // (int(rounds.max()) + 1))
    shown = [k for r in range(int(rounds.max()) + 1) for k in np.flatnonzero(rounds == r)[:each]]
    return sorted({int(k) for k in shown} | {chosen})


def _label(axis: Any, plan: Plan, row: int, k: int, chosen: bool) -> None:
    """A candidate's round, value, spread and reasons above its frame; the chosen one in green."""
    value, spread = float(plan.scores.value[row, k]), float(plan.scores.spread[row, k])
    score = f"{value:.2f} ± {spread:.2f}" if np.isfinite(value) else "not judged"
    names = {"success": "succ", "progress": "prog", "hallucination": "inv.err"}
    terms = {short: plan.scores.terms[name][row, k] for name, short in names.items() if name in plan.scores.terms}
    reasons = " ".join(f"{short} {float(x):.2f}" for short, x in terms.items())
    when = f"round {plan.round[k] + 1}: " if plan.round.max() > 0 else ""
    colour, weight = ("tab:green", "bold") if chosen else ("black", "normal")
    text = f"{'✓ ' if chosen else ''}{when}{score}\n{reasons}"
    axis.set_title(text, fontsize=7, fontweight=weight, color=colour)
    if chosen:
        axis.axis("on")
        axis.set(xticks=[], yticks=[])
        for side in axis.spines.values():
            side.set(color=colour, linewidth=3)


def _summary(plan: Plan, row: int, shown: int) -> str:
    left = len(plan.round) - shown
    more = f"; {left} more not shown" if left else ""
    why = "; nothing could be judged, so the policy's own" if plan.fallback[row] else ""
    took = f"{plan.judged} judged in {plan.used_ms:.0f} ms for {len(plan.chosen)} environment(s)"
    return f"{took}{more}{why}; value ± spread, ✓ is done"
