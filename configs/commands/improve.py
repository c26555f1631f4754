"""``imagine improve``: reinforcement learning inside the dream; then the proof in the real world."""

from __future__ import annotations

import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from imagine.configs.commands.common import Words, at_least, console
from imagine.configs.commands.worlds import OfRobot
from imagine.configs.runfolder import RunFolder
from imagine.progress import Progress
from imagine.types import ImagineError

if TYPE_CHECKING:
    from imagine.configs.build import Loaded


@dataclass(frozen=True, kw_only=True)
class Args(OfRobot):
    """Improve a policy inside the dream, without a single real episode.

    Attributes:
        policy: what to improve: base, an adapter in the model folder, or the folder of one; by default novice where
            there is one, else base.
        preset: algorithm and settings, a YAML file or the name of one in configs/: filtered-bc, awr, nft, grpo,
            grpo-sde.
        set: changes to the preset, as updates=20; several joined by commas.
        judge: who rewards, as for imagine evaluate.
        watched_by: a second judge without a say, of another architecture; training stops when the two drift apart. By
            default another one beside the model's weights, if there is one; none for none.
        watch_starts: held-out starts of every look for exploitation.
        unguarded: reward whatever the judge calls a success, whatever the inverse error; halt and watch nothing.
        inverse_error_cost: reward lost per normalised action unit of inverse error, every chunk.
        starts: LeRobot dataset whose frames, at any moment of an episode, also serve as starts.
        midway: share of starts taken from there.
        num_envs: imagined episodes side by side.
        test_episodes: episodes before and after, on the same starts, on the robot's simulator and in the dream; 0
            leaves the proof out.
        test_seed: first start seed of the proof; none of them is learnt from.
    """

    policy: str = ""
    preset: str = "nft"
    set: Words = ()
    judge: str = ""
    watched_by: str = ""
    watch_starts: int = 32
    unguarded: bool = False
    inverse_error_cost: float = 0.1
    starts: str = ""
    midway: float = 0.25
    num_envs: int = 64
    test_episodes: int = 200
    test_seed: int = 900_000


def run(args: Args) -> dict[str, Any]:
    """Improve; the adapter is written to ``adapter/`` of the run folder. Killed, it goes on when run again.

    Raises:
        ImagineError: an option is out of range, starts overlap those of the proof, or something cannot be had.
    """
    from imagine.agents.finetune.improve import ImproveConfig
    from imagine.configs.load import load

    cfg = load(ImproveConfig, args.preset, args.set).model_copy(update={"seed": args.seed})
    loaded = args.load()
    args = resolved(args, loaded)
    _check(args, cfg)
    folder = RunFolder.of("improve", args)
    folder.write_text("recipe.yaml", _yaml(cfg))
    answer = learn(args, cfg, loaded, folder.path)
    if args.test_episodes:
        from imagine.configs.commands.improve_report import prove, write_report

        proof = prove(args, loaded, folder)
        answer |= proof.numbers
        write_report(args, cfg, loaded, folder, answer, proof)
        answer["report"] = str(folder / "report.html")
    folder.save_metrics(answer)
    return answer


def resolved(args: Args, loaded: Loaded) -> Args:
    """The same options with the defaults that depend on the model folder."""
    from imagine.configs.judges import judge_name, second_judge
    from imagine.configs.policies import adapters_in

    judge = judge_name(args.judge, loaded.folder)
    policy = args.policy or ("novice" if "novice" in adapters_in(loaded.folder) else "base")
    return replace(
        args, judge=judge, policy=policy, watched_by=args.watched_by or second_judge(judge, loaded.folder) or "none"
    )


def learn(args: Args, cfg: Any, loaded: Loaded, folder: Path) -> dict[str, Any]:
    """Dream and learn; returns what it came to, with the curve of every update."""
    from imagine.agents.envs import DreamEnvs
    from imagine.agents.finetune.improve import Trainer
    from imagine.agents.monitor import Monitor, MonitorConfig
    from imagine.configs import build
    from imagine.configs.policies import adapter_of
    from imagine.policy.adapter import weights_hash
    from imagine.world.dream import Dream

    begin, dream, checks = time.time(), _dream(args, loaded, folder), MonitorConfig(starts=args.watch_starts)
    frozen = weights_hash(dream.model)
    envs, monitor = DreamEnvs(dream, args.num_envs), None
    if not args.unguarded and args.watched_by != "none":
        other = DreamEnvs(Dream(dream.model, dream.judge, build.starts_of(loaded), dream.cfg), checks.starts)
        monitor = Monitor(other, loaded.distractor, checks)
    start = adapter_of(args.policy, loaded.folder)
    run = Trainer(loaded.model, envs, cfg, folder, monitor=monitor, start=start)
    with Progress("improve", cfg.updates, run.update) as on_progress:
        adapter = run.run(lambda done, numbers: on_progress.report(done, _short(numbers)))
    if weights_hash(dream.model) != frozen:
        raise AssertionError("the weights of the dream moved while the policy learnt")
    if run.alarm:
        console.print(f"[yellow]{run.alarm}[/yellow]")
    chunks = sum(row.get("chunks", 0) for row in run.curve)
    return {
        "adapter": str(adapter),
        "algorithm": cfg.algorithm,
        "updates": run.update,
        "imagined_episodes": run.update * cfg.groups * cfg.members,
        "imagined_chunks": int(chunks),
        "alarm": run.alarm,
        "seconds": round(time.time() - begin, 1),
        "curve": run.curve,
    }


def _dream(args: Args, loaded: Loaded, folder: Path) -> Any:
    from imagine.configs import build
    from imagine.data.read import LeRobotDataset
    from imagine.world.starts import DatasetStarts, MixedStarts

    starts: Any = build.starts_of(loaded)
    if args.starts:
        recorded = LeRobotDataset.open(Path(args.starts))
        anywhere = DatasetStarts(recorded, loaded.model.body, folder / "starts", anywhere=True)
        starts = MixedStarts(starts, anywhere, args.midway)
    cfg = build.dream_config(loaded.folder).model_copy(
        update={"inverse_error_cost": args.inverse_error_cost, "tile": 0, "autocast": True}
    )
    if args.unguarded:
        cfg = cfg.model_copy(update={"inverse_error_cost": 0.0, "hallucination_limit": None})
    second = None if args.watched_by == "none" else args.watched_by
    return build.dream(loaded, cfg, judge=args.judge, guarded=not args.unguarded, watched_by=second, starts=starts)


def _check(args: Args, cfg: Any) -> None:
    at_least(args, num_envs=1, watch_starts=1, test_episodes=0, inverse_error_cost=0, midway=0)
    if args.midway > 1:
        raise ImagineError(f"--midway is {args.midway}, expected a share from 0 to 1.")
    if args.watched_by == args.judge:
        raise ImagineError(f"--watched-by is {args.judge} like --judge; a judge cannot watch itself, name another.")
    first, last = cfg.start_seeds()
    if first < args.test_seed + args.test_episodes and args.test_seed <= last:
        raise ImagineError(
            f"start seeds {first} to {last} to learn from overlap those of the proof (from {args.test_seed}); "
            "choose another first_seed."
        )


def _short(numbers: dict[str, float]) -> dict[str, float]:
    shown = "horizon return success second_judge inverse_error kl held_out_success floor judge_gap"
    return {k: numbers[k] for k in shown.split() if k in numbers}


def _yaml(cfg: Any) -> str:
    import yaml

    return yaml.safe_dump(cfg.model_dump(mode="json"), sort_keys=False)
