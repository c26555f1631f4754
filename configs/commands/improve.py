"""``imagine improve``: reinforcement learning inside the dream; then the proof in the real world."""

from __future__ import annotations

import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from imagine.configs.commands.common import Common, Words, console
from imagine.configs.runfolder import RunFolder
from imagine.types import ImagineError


@dataclass(frozen=True, kw_only=True)
class Args(Common):
    """Improve a policy inside the dream, without a single real episode.

    Attributes:
        model: a shipped model's name, a folder, or a hub id; it dreams, and does not change.
        policy: what to improve: base, novice, improved, or the folder of an adapter.
        preset: algorithm and settings, a YAML file or the name of one in configs/: filtered-bc, awr, nft, grpo,
            grpo-sde.
        set: changes to the preset, as updates=20; several joined by commas.
        judge: who rewards: a shipped judge's name, latent, a folder or hub id, or http://HOST/v1#MODEL.
        watched_by: a second judge without a say, of another architecture; training stops when the two drift apart.
        watch_starts: held-out starts of every look for exploitation.
        unguarded: reward whatever the judge calls a success, at no cost of doubt, halt nothing and watch nothing.
        doubt_cost: reward lost per unit of doubt, every chunk.
        starts: LeRobot dataset whose frames, at any moment of an episode, also serve as starts.
        midway: share of starts taken from there.
        lanes: imagined episodes side by side.
        test_episodes: real episodes before and after, on the same starts; 0 leaves the proof out.
        test_seed: first start seed of the proof; none of them is learnt from.
    """

    model: str = "g1-table-tiny"
    policy: str = "novice"
    preset: str = "nft"
    set: Words = ()
    judge: str = "judge-tiny"
    watched_by: str = "latent"
    watch_starts: int = 32
    unguarded: bool = False
    doubt_cost: float = 0.1
    starts: str = ""
    midway: float = 0.25
    lanes: int = 64
    test_episodes: int = 200
    test_seed: int = 900_000


def run(args: Args) -> dict[str, Any]:
    """Improve; the adapter is written to ``adapter/`` of the run folder. Killed, it goes on when run again.

    Raises:
        ImagineError: an option is out of range, starts overlap those of the proof, or something cannot be had.
    """
    from imagine.agents.finetune.improve import ImproveConfig
    from imagine.configs.load import load
    from imagine.model.model import WorldActionModel

    cfg = load(ImproveConfig, args.preset, args.set).model_copy(update={"seed": args.seed})
    _check(args, cfg)
    model = WorldActionModel.from_pretrained(args.model)
    folder = RunFolder.of("improve", args)
    folder.write_text("recipe.yaml", _yaml(cfg))
    answer = learn(args, cfg, model, folder.path)
    if args.test_episodes:
        from imagine.configs.commands.improve_report import prove, write_report

        proof = prove(args, model, folder)
        answer |= proof.numbers
        write_report(args, cfg, model, folder, answer, proof)
        answer["report"] = str(folder / "report.html")
    folder.save_metrics(answer)
    return answer


def learn(args: Args, cfg: Any, model: Any, folder: Path) -> dict[str, Any]:
    """Dream and learn; returns what it came to, with the curve of every update."""
    from imagine.agents.envs import DreamEnvs
    from imagine.agents.finetune.improve import Trainer
    from imagine.agents.monitor import Monitor, MonitorConfig
    from imagine.configs import build
    from imagine.policy.adapter import weights_hash
    from imagine.world.dream import Dream

    begin, dream, checks = time.time(), _dream(args, model, folder), MonitorConfig(starts=args.watch_starts)
    frozen = weights_hash(dream.model)
    envs, monitor = DreamEnvs(dream, args.lanes), None
    if not args.unguarded:
        other = DreamEnvs(Dream(dream.model, dream.judge, build.robot_starts(model), dream.cfg), checks.starts)
        monitor = Monitor(other, build.absent(model), checks)
    run = Trainer(model, envs, cfg, folder, monitor=monitor, start=build.adapter_of(args.policy, args.model))
    from imagine.train.fit import progress

    with progress("improve", cfg.updates, run.update) as tell:
        adapter = run.run(lambda done, numbers: tell(done, _short(numbers), None))
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


def _dream(args: Args, model: Any, folder: Path) -> Any:
    from imagine.configs import build
    from imagine.data.read import LeRobotDataset
    from imagine.world.starts import DatasetStarts, MixedStarts

    starts: Any = build.robot_starts(model)
    if args.starts:
        recorded = LeRobotDataset.open(Path(args.starts))
        starts = MixedStarts(starts, DatasetStarts(recorded, model.body, folder / "starts", anywhere=True), args.midway)
    cfg = build.dream_config(args.model).model_copy(
        update={"inverse_error_cost": args.doubt_cost, "tile": 0, "autocast": True}
    )
    if args.unguarded:
        cfg = cfg.model_copy(update={"inverse_error_cost": 0.0, "hallucination_limit": None})
    guarded = not args.unguarded
    return build.dream(
        model, args.model, cfg, judged_by=args.judge, guarded=guarded, watched_by=args.watched_by, starts=starts
    )


def _check(args: Args, cfg: Any) -> None:
    for name, least in (("lanes", 1), ("watch_starts", 1), ("test_episodes", 0), ("doubt_cost", 0), ("midway", 0)):
        if getattr(args, name) < least:
            raise ImagineError(f"--{name.replace('_', '-')} is {getattr(args, name)}, expected at least {least}.")
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
