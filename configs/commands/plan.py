"""``imagine plan``: best-of-N in closed loop; every decision imagines N candidates and does the one judged best."""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import Any

import numpy as np

from imagine.types import ImagineError

from ..runfolder import RunFolder
from .worlds import Episodes, bar


@dataclass(frozen=True, kw_only=True)
class Args(Episodes):
    """Plan by imagining candidates.

    Attributes:
        policy: who proposes: base, improved, or the folder of an adapter or model.
        world: real (the twin) or imagined.
        candidates: N; 1 is the policy alone.
        steps: denoising steps per imagined chunk.
    """

    policy: str = "base"
    world: str = "real"
    candidates: int = 8
    steps: int = 1


def run(args: Args) -> dict[str, Any]:
    """Run the episodes; ``decisions.png`` in the run folder shows the candidates of the first ones.

    Raises:
        ImagineError: an option is out of range, or the policy cannot propose.
    """
    seeds = args.seeds()
    if args.candidates < 1:
        raise ImagineError(f"--candidates is {args.candidates}, expected at least 1.")
    from agents.evaluate import evaluate
    from agents.planner import BestOfN, DreamScorer
    from imagine.model import WorldActionModel, resolve
    from policy.policy import JointPolicy
    from rewards.latent import LatentJudge

    from .. import build

    model = WorldActionModel.from_pretrained(args.model)
    proposer = build.policy(args.policy, model, args.model)
    if not isinstance(proposer, JointPolicy):
        raise ImagineError(
            f"policy {args.policy!r} cannot propose several chunks, expected base, improved or a folder."
        )
    scorer = DreamScorer(model, LatentJudge.load(resolve(args.model)), steps=args.steps)
    planner = _Timed(BestOfN(proposer, scorer, args.candidates))
    lanes = build.lanes(args.world, model, args.model, min(args.lanes, len(seeds)), judged_by=args.judge)
    folder = RunFolder.of("plan", args)
    with bar(f"best of {args.candidates}") as tell:
        result, _ = evaluate(lanes, planner, seeds, task_of=build.task_of, tell=tell)
    answer = {"candidates": args.candidates, "world": args.world, "policy": args.policy, **result, "seed": args.seed}
    answer["ms_per_decision"] = round(1000 * planner.seconds / max(1, planner.decisions), 2)
    folder.save_metrics(answer)
    if planner.first is not None:
        picture(model, planner.first, folder / "decisions.png")
    return answer


class _Timed:
    """Counts decisions and seconds, and keeps the first plan to show."""

    def __init__(self, planner: Any):
        self.planner, self.seconds, self.decisions, self.first = planner, 0.0, 0, None

    def act(self, observation: dict[str, np.ndarray], seeds: Any = None) -> np.ndarray:
        begin = time.perf_counter()
        action = self.planner.act(observation, seeds)
        self.seconds += time.perf_counter() - begin
        self.decisions += len(action)
        self.first = self.first or self.planner.plans[0]
        return action

    def reset(self, lanes: np.ndarray | None = None) -> None:
        self.planner.reset(lanes)


def decision_figure(model: Any, plan: Any, lanes: int = 3) -> Any:
    """A matplotlib figure: per lane, the last imagined frame of every candidate, its score, and the choice."""
    from matplotlib.figure import Figure

    lanes = min(lanes, len(plan.chosen))
    n = plan.candidates.shape[1]
    figure = Figure(figsize=(1.5 * n, 1.5 * lanes), layout="constrained")
    axes = figure.subplots(lanes, n, squeeze=False)
    for i in range(lanes):
        frames = model.decode(plan.scores.video[i, :, -1:])[:, 0].cpu().numpy()
        for k in range(n):
            axes[i, k].imshow(frames[k])
            axes[i, k].set(xticks=[], yticks=[])
            chosen = k == plan.chosen[i]
            axes[i, k].set_title(
                f"{float(plan.scores.value[i, k]):.2f}{'  ✓' if chosen else ''}",
                fontsize=8,
                fontweight="bold" if chosen else "normal",
            )
    return figure


def picture(model: Any, plan: Any, path: Any) -> None:
    """Save :func:`decision_figure`."""
    decision_figure(model, plan).savefig(path, dpi=110)
