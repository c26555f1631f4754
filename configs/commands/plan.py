"""``imagine plan``: closed loop; every decision imagines candidates and does the one judged best."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from imagine.configs.commands.worlds import Episodes, world_of
from imagine.configs.runfolder import RunFolder
from imagine.progress import Progress
from imagine.types import ImagineError, unpack_instruction

if TYPE_CHECKING:
    from imagine.configs.build import Loaded

SHOWN = 24
"""Candidates in a picture at most: the first ones of every round, and the chosen one."""


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
    seeds = args.seeds()
    for option, least in (("pictures", 0), ("steps", 1)):
        if getattr(args, option) < least:
            raise ImagineError(f"--{option} is {getattr(args, option)}, expected at least {least}.")
    from imagine.agents.evaluate import evaluate
    from imagine.configs.build import parallel_envs

    loaded = args.load()
    world = world_of(args.world or ("sim" if loaded.robot.has_env else "imagined"))
    proposer, planner = _planner(args, loaded)
    envs = parallel_envs(
        loaded,
        world,
        min(args.num_envs, len(seeds)),
        judge=args.judge,
        horizon=args.horizon,
        starts=args.starts or None,
    )
    folder = RunFolder.of("plan", args)
    drawn = _Pictures(planner.score.model, folder / "decisions", seeds[: args.pictures])
    timed = Timed(planner if args.planning else proposer, drawn)
    name = f"{args.method.replace('_', ' ')}, {args.candidates} candidates" if args.planning else "no planning"
    with Progress(name) as tell:
        result, records = evaluate(envs, timed, seeds, task_of=loaded.robot.task_of, on_progress=tell)
    how = {"method": args.method, "candidates": args.candidates} if args.planning else {"method": "none"}
    answer = {**how, "world": world, "policy": args.policy, **result, "seed": args.seed, **timed.numbers()}
    if args.compare:
        from imagine.agents.statistics import paired_difference

        alone = Timed(proposer)
        with Progress("no planning") as tell:
            answer["alone"], before = evaluate(envs, alone, seeds, task_of=loaded.robot.task_of, on_progress=tell)
        gain = paired_difference([r.success for r in records], [r.success for r in before])
        answer["gain"] = {"value": gain.value, "ci_low": gain.low, "ci_high": gain.high}
        answer["ms_alone"] = alone.numbers()["ms_per_decision"]
    folder.save_metrics(answer)
    return answer


def _planner(args: Args, loaded: Loaded) -> tuple[Any, Any]:
    """Who proposes, and who chooses among what is proposed."""
    from imagine.agents.planner import DreamScorer, Planner, PlannerConfig
    from imagine.configs.build import dream_config, dreamer
    from imagine.configs.judges import load_judge
    from imagine.configs.policies import load_policy
    from imagine.policy.policy import JointPolicy

    cfg = PlannerConfig(
        method=args.method, space=args.space, candidates=args.candidates, iterations=args.iterations,
        pessimism=args.pessimism, budget_ms=args.budget_ms, rungs=(args.steps, 2 * args.steps, 4 * args.steps),
    )  # fmt: skip
    proposer = load_policy(args.policy, loaded.model, loaded.folder)
    if not isinstance(proposer, JointPolicy):
        raise ImagineError(
            f"policy {args.policy!r} cannot propose several chunks, expected base, an adapter or a folder."
        )
    greedy = JointPolicy(proposer.model, steps=proposer.steps, temperature=0.0)
    scorer = DreamScorer(
        dreamer(loaded.model, loaded.folder), load_judge(args.scorer or args.judge, loaded.folder), depth=args.depth,
        follow=greedy, draws=args.draws, cfg=dream_config(loaded.folder).model_copy(update={"steps": args.steps}),
    )  # fmt: skip
    return proposer, Planner(proposer, scorer, cfg)


OnPlan = Callable[[Any, dict[str, np.ndarray], Sequence[int]], None]
"""Called with a plan, what was observed, and the episodes."""


class Timed:
    """A ``Policy`` that counts another one's decisions and seconds, keeps its first plan, and hands on every one."""

    def __init__(self, planner: Any, on_plan: OnPlan | None = None):
        """``planner`` is any policy; only those that plan have plans to hand on."""
        self.planner, self.on_plan, self.first = planner, on_plan, None
        self.seconds, self.decisions, self.judged, self.fallbacks, self.late, self.calls = 0.0, 0, 0, 0, 0, 0

    def act(
        self,
        observation: dict[str, np.ndarray],
        seeds: Sequence[int] | None = None,
        episodes: Sequence[int] | None = None,
    ) -> np.ndarray:
        """See :class:`imagine.types.Policy`."""
        begin = time.perf_counter()
        action = self.planner.act(observation, seeds, episodes)
        self.seconds += time.perf_counter() - begin
        self.decisions += len(action)
        if plans := getattr(self.planner, "plans", None):
            plan = plans[-1]
            self.first = self.first or plan
            self.calls, self.late = self.calls + 1, self.late + plan.late
            self.judged += plan.judged * len(action)
            self.fallbacks += int(plan.fallback.sum())
            if self.on_plan is not None and episodes is not None:
                self.on_plan(plan, observation, episodes)
        return action

    def reset(self, episodes: Sequence[int] | None = None) -> None:
        """See :class:`imagine.types.Policy`."""
        self.planner.reset(episodes)

    def numbers(self) -> dict[str, Any]:
        """What planning cost: per decision, and per call, which decides for all lanes at once."""
        each = max(1, self.decisions)
        numbers: dict[str, Any] = {"ms_per_decision": round(1000 * self.seconds / each, 2)}
        if self.calls:
            numbers["judged_per_decision"] = round(self.judged / each, 2)
            numbers |= {"fallbacks": self.fallbacks, "late": round(self.late / self.calls, 4)}
        return numbers


class _Pictures:
    """Draws every decision of some episodes, one file each."""

    def __init__(self, model: Any, folder: Path, seeds: Sequence[int]):
        from imagine.agents.rollout import episode_id

        self.model, self.folder = model, folder
        self.seeds, self.count = {episode_id(s): s for s in seeds}, dict.fromkeys(seeds, 0)

    def __call__(self, plan: Any, observation: dict[str, np.ndarray], episodes: Sequence[int]) -> None:
        for row, episode in enumerate(episodes):
            if episode not in self.seeds:
                continue
            self.folder.mkdir(exist_ok=True)
            seed, instruction = self.seeds[episode], unpack_instruction(observation["instruction"][row])
            k = self.count[seed]
            self.count[seed] += 1
            now = self.model.body.tile({v.name: observation[v.name][row : row + 1] for v in self.model.body.views})[0]
            figure = candidates_figure(self.model, plan, row, now, f"“{instruction}”, start {seed}, decision {k + 1}")
            figure.savefig(self.folder / f"{seed}-{k + 1:02d}.png", dpi=90)


def candidates_figure(model: Any, plan: Any, lane: int, now: np.ndarray, title: str) -> Any:
    """A matplotlib figure of one decision: what is seen now, and the last imagined frame of the candidates.

    Args:
        model: decodes what was imagined.
        plan: an :class:`imagine.agents.planner.Plan`.
        lane: which one.
        now: (H, W, 3) uint8.
        title: what stands above.
    """
    from matplotlib.figure import Figure

    chosen = int(plan.chosen[lane])
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
    several = plan.round.max() > 0
    frames = (
        None if plan.scores.video is None else model.decode(plan.scores.video[lane, shown, -1:])[:, 0].cpu().numpy()
    )
    for i, (k, axis) in enumerate(zip(shown, grid[:, 1:].ravel(), strict=False)):
        if frames is not None:
            axis.imshow(frames[i])
        told = f"round {plan.round[k] + 1}: " if several else ""
        axis.set_title(
            f"{'✓ ' if k == chosen else ''}{told}{_score(plan, lane, k)}\n{_reasons(plan, lane, k)}",
            fontsize=7,
            fontweight="bold" if k == chosen else "normal",
            color="tab:green" if k == chosen else "black",
        )
        if k == chosen:
            axis.axis("on")
            axis.set(xticks=[], yticks=[])
            for side in axis.spines.values():
                side.set(color="tab:green", linewidth=3)
    left = len(plan.round) - len(shown)
    more = f"; {left} more not shown" if left else ""
    why = "; nothing could be judged, so the policy's own" if plan.fallback[lane] else ""
    took = f"{plan.judged} judged in {plan.used_ms:.0f} ms for {len(plan.chosen)} lane(s)"
    figure.suptitle(f"{title}\n{took}{more}{why}; value ± spread, ✓ is done", fontsize=9)
    return figure


def _shown(rounds: np.ndarray, chosen: int) -> list[int]:
    """Which candidates are drawn: of every round the first ones, and the chosen one."""
    each = max(1, (SHOWN - 1) // (int(rounds.max()) + 1))
    shown = [k for r in range(int(rounds.max()) + 1) for k in np.flatnonzero(rounds == r)[:each]]
    return sorted({int(k) for k in shown} | {chosen})


def _score(plan: Any, lane: int, k: int) -> str:
    value, spread = float(plan.scores.value[lane, k]), float(plan.scores.spread[lane, k])
    return f"{value:.2f} ± {spread:.2f}" if np.isfinite(value) else "not judged"


def _reasons(plan: Any, lane: int, k: int) -> str:
    names = {"success": "succ", "progress": "prog", "hallucination": "doubt"}
    told = {short: plan.scores.terms[name][lane, k] for name, short in names.items() if name in plan.scores.terms}
    return " ".join(f"{short} {float(x):.2f}" for short, x in told.items())


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
                f"{float(plan.lower[i, k]):.2f}{'  ✓' if chosen else ''}",
                fontsize=8,
                fontweight="bold" if chosen else "normal",
            )
    return figure
