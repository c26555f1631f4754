"""``imagine finetune rl``: reinforcement learning inside the dream; then the proof on the simulator."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import yaml

from imagine.configs.commands.common import Words, at_least, console
from imagine.configs.commands.worlds import OfRobot
from imagine.configs.practice import Practice
from imagine.configs.runfolder import RunFolder
from imagine.types import ImagineError


@dataclass(frozen=True, kw_only=True)
class Args(Practice, OfRobot):
    """Improve a policy inside the dream, without a single real episode.

    Attributes:
        preset: algorithm and settings, a YAML file or the name of one in configs/: filtered-bc, awr, nft, grpo,
            grpo-sde.
        set: changes to the preset, as updates=20; several joined by commas.
        test_episodes: episodes before and after, on the same starts, on the robot's simulator and in the dream; 0
            leaves the proof out.
        test_seed: first start seed of the proof; none of them is learnt from.
    """

    preset: str = "nft"
    set: Words = ()
    test_episodes: int = 200
    test_seed: int = 900_000


def run(args: Args) -> dict[str, Any]:
    """Improve; the adapter is written to ``adapter/`` of the run folder. Killed, it goes on when run again.

    Raises:
        ImagineError: an option is out of range, starts overlap those of the proof, or something cannot be had.
    """
    from imagine.agents.finetune.improve import ImproveConfig
    from imagine.configs.improving import improve, prove, resolved
    from imagine.configs.load import load
    from imagine.configs.pages.improve import write

    cfg = load(ImproveConfig, args.preset, args.set).model_copy(update={"seed": args.seed})
    _check(args, cfg)
    loaded = args.load()
    args = resolved(args, loaded)
    folder = RunFolder.of("finetune-rl", args)
    folder.write_text("recipe.yaml", yaml.safe_dump(cfg.model_dump(mode="json"), sort_keys=False))
    answer = improve(args, cfg, loaded, folder.path)
    if args.test_episodes:
        seeds = range(args.test_seed, args.test_seed + args.test_episodes)
        policies = {"before": args.policy, "after": str(folder / "adapter")}
        numbers, found, acting = prove(args, loaded, policies, seeds)
        answer |= {**numbers, "report": str(folder / "report.html")}
        command = f"imagine finetune rl --policy {args.policy} --preset {args.preset} --seed {args.seed}"
        write(folder, loaded, answer, found, acting, seeds, judge=args.judge, command=command)
        console.print(f"report: {answer['report']}")
    folder.save_metrics(answer)
    return answer


def _check(args: Args, cfg: Any) -> None:
    at_least(args, num_envs=1, watch_starts=1, test_episodes=0, inverse_error_cost=0, midway=0)
    if args.midway > 1:
        raise ImagineError(f"--midway is {args.midway}, expected a share from 0 to 1.")
    seeds = cfg.start_seeds()
    if seeds[0] < args.test_seed + args.test_episodes and args.test_seed <= seeds[-1]:
        raise ImagineError(
            f"start seeds {seeds[0]} to {seeds[-1]} to learn from overlap those of the proof (from {args.test_seed}); "
            "choose another first_seed."
        )
