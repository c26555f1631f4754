"""``imagine plan``: closed loop; every decision imagines candidates and does the one judged best."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

from imagine.configs.commands.common import at_least
from imagine.configs.commands.worlds import Episodes


@dataclass(frozen=True, kw_only=True)
class Args(Episodes):
    """Plan by imagining candidates.

    Attributes:
        policy: who proposes: base, an adapter in the model folder, or the folder of an adapter or model.
        world: sim (the robot's simulator) or imagined; by default sim if there is one.
        planning: --no-planning lets the policy act alone, on the same starts and with the same draws.
        method: best_of_n; halving looks ever more closely at ever fewer; cem and mppi draw anew around the best.
        space: of cem and mppi: the noise that the policy starts from, or the action itself.
        candidates: N, of cem and mppi in every iteration; 1 is the policy alone, judged.
        iterations: of cem and mppi.
        scorer: who judges candidates, by default --judge's.
        horizon: chunks within which an episode must succeed.
        depth: chunks imagined per candidate; from the second one on the policy acts, without noise.
        draws: dreams per candidate; several show how much of a score is luck.
        pessimism: a candidate counts as value - PESSIMISM * spread.
        budget_ms: milliseconds per decision of all environments; when they are over, the best one yet is done.
        steps: denoising steps per imagined chunk; halving goes on to twice and four times as many.
        pictures: episodes of which every decision is drawn.
        compare: let the policy act alone on the same starts too, and report the paired difference.
    """

    policy: str = "base"
    world: str = ""
    planning: bool = True
    method: Literal["best_of_n", "halving", "cem", "mppi"] = "best_of_n"
    space: Literal["noise", "action"] = "noise"
    candidates: int = 8
    iterations: int = 3
    scorer: str = ""
    horizon: int = 8
    depth: int = 1
    draws: int = 1
    pessimism: float = 0.5
    budget_ms: float | None = None
    steps: int = 1
    pictures: int = 2
    compare: bool = False


def run(args: Args) -> dict[str, Any]:
    """Run the episodes; ``decisions/`` in the run folder shows every decision of the first ones.

    Raises:
        ImagineError: an option is out of range, or the policy cannot propose.
    """
    at_least(args, pictures=0, steps=1)
    from imagine.configs.planning import plan

    return plan(args)
