"""Planners put together: who proposes, who dreams and judges, and how candidates are searched."""

from __future__ import annotations

from typing import Any

from imagine.agents.paired import compare
from imagine.agents.planner import DreamScorer, Planner, PlannerConfig
from imagine.agents.timed import TimedPolicy
from imagine.configs.build import dream_config, dreamer, parallel_envs
from imagine.configs.commands.worlds import world_of
from imagine.configs.judges import Judge, load_judge
from imagine.configs.loaded import Loaded
from imagine.configs.pages.plan import DecisionPictures
from imagine.configs.policies import load_policy
from imagine.configs.runfolder import RunFolder
from imagine.policy.policy import JointPolicy
from imagine.progress import Progress
from imagine.types import ImagineError


def planner_of(
    loaded: Loaded, policy: str, judge: Judge | None, cfg: PlannerConfig, *, depth: int = 1, draws: int = 1,
    steps: int = 1,
) -> Planner:  # fmt: skip
    """A planner around a policy of the model folder.

    Args:
        loaded: who dreams, and of which robot.
        policy: who proposes, by its name.
        judge: of what the candidates lead to, see :func:`imagine.configs.judges.load_judge`.
        cfg: of the search.
        depth: chunks imagined per candidate; from the second one on the policy acts, without noise.
        draws: dreams per candidate.
        steps: denoising steps per imagined chunk.

    Raises:
        ImagineError: the policy or judge cannot be had, or the policy cannot propose.
    """
    proposer = load_policy(policy, loaded.model, loaded.folder)
    if not isinstance(proposer, JointPolicy):
        raise ImagineError(f"policy {policy!r} cannot propose several chunks, expected base, an adapter or a folder.")
    follow = JointPolicy(proposer.model, steps=proposer.steps, temperature=0.0)
    dreams = dream_config(loaded.folder).model_copy(update={"steps": steps})
    scorer = DreamScorer(
        dreamer(loaded.model, loaded.folder), load_judge(judge, loaded.folder), depth=depth, follow=follow,
        draws=draws, cfg=dreams,
    )  # fmt: skip
    return Planner(proposer, scorer, cfg)


def plan(args: Any) -> dict[str, Any]:
    """Do what ``imagine plan`` was asked for; ``args`` is :class:`imagine.configs.commands.plan.Args`.

    Raises:
        ImagineError: see :func:`imagine.configs.commands.plan.run`.
    """
    seeds, loaded = args.seeds(), args.load()
    world = world_of(args.world or ("sim" if loaded.robot.has_env else "imagined"))
    cfg = PlannerConfig(
        method=args.method, space=args.space, candidates=args.candidates, iterations=args.iterations,
        pessimism=args.pessimism, budget_ms=args.budget_ms, rungs=(args.steps, 2 * args.steps, 4 * args.steps),
    )  # fmt: skip
    planner = planner_of(
        loaded, args.policy, args.scorer or args.judge, cfg, depth=args.depth, draws=args.draws, steps=args.steps
    )
    n, starts = min(args.num_envs, len(seeds)), args.starts or None
    envs = parallel_envs(loaded, world, n, judge=args.judge, horizon=args.horizon, starts=starts)
    folder = RunFolder.of("plan", args)
    pictures = DecisionPictures(loaded.model, folder / "decisions", seeds[: args.pictures])
    policies = {"planned": TimedPolicy(planner, pictures)} if args.planning else {}
    if args.compare or not args.planning:
        policies["alone"] = TimedPolicy(planner.policy)
    with Progress(f"{args.method}, {args.candidates} candidates" if args.planning else "no planning") as on_progress:
        found = compare(envs, policies, seeds, task_of=loaded.robot.task_of, on_progress=on_progress)
    first = next(iter(policies))
    how = {"method": args.method, "candidates": args.candidates} if args.planning else {"method": "none"}
    answer = {**how, "world": world, "policy": args.policy, **found.results[first], "seed": args.seed}
    answer |= policies[first].numbers()
    if len(policies) > 1:
        answer |= {"alone": found.results["alone"], "gain": found.gain("planned", "alone")}
        answer["ms_alone"] = policies["alone"].numbers()["ms_per_decision"]
    folder.save_metrics(answer)
    return answer
