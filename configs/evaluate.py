"""An evaluation from its options to its answer: which worlds, policies and starts, carried out in parts."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from imagine.agents.evaluate import EXPERT, Part, Worker, carry_out, parts
from imagine.agents.paired import compare_worlds
from imagine.agents.trials import Trials, compare, read_trials
from imagine.configs.commands.common import console
from imagine.configs.defaults import HORIZON, ZOO_HORIZON
from imagine.configs.evaluation import FROZEN, Setup, numbered_starts, stamp, worker, zoo_of
from imagine.configs.judges import judge_name, second_judge
from imagine.configs.loaded import Loaded
from imagine.configs.pages.evaluate import write, write_trials
from imagine.configs.paid import paid_by, warning
from imagine.configs.runfolder import RunFolder
from imagine.configs.trust import caveat
from imagine.progress import Progress
from imagine.types import ImagineError

PART = 16  # starts per part: what a kill can lose, and what one worker is given at a time


def evaluate(args: Any) -> dict[str, Any]:
    """Do what ``imagine evaluate`` was asked for.

    Args:
        args: :class:`imagine.configs.commands.evaluate_policy.Args`.

    Raises:
        ImagineError: see :func:`imagine.configs.commands.evaluate_policy.run`.
    """
    seeds, loaded = args.seeds(), args.load()
    worlds, trials = _worlds(args, loaded), _trials(args, loaded)
    policies = _policies(args, trials)
    _check(args, policies, worlds)
    trust: dict[str, Any] = {}
    if "imagined" in worlds:
        args = replace(args, judge=judge_name(args.judge, loaded.folder))
        trust = caveat(args.model, args.judge, args.unchecked)
    if trials is not None:
        return _hold_against(trials, args, loaded, trust)
    cache = str(RunFolder.of("evaluate-policy", args) / "canvases") if args.dataset else ""
    setup = _setup(args, cache)
    here = _worker(setup, policies, worlds)
    if here.recorded is not None:
        seeds = list(here.recorded)[: args.episodes]
        worlds = ("recorded", "imagined") if here.recorded.tells_success else ("imagined",)
    wanted = parts(policies, (*worlds, *_control(worlds)), seeds, PART)
    folder = RunFolder.of("evaluate-policy", args)
    table = _carried_out(args, folder.path, setup, here, wanted)
    answer = compare_worlds(table, policies, worlds, seeds)
    answer |= {world: compare_worlds(table, policies, (*worlds[:-1], world), seeds) for world in _control(worlds)}
    if len(policies) == len(worlds) == 1:
        answer["swap_instruction"] = args.swap_instruction
    answer |= {"seed": args.seed, **trust}
    if "imagined" in worlds:
        answer |= _second_opinion(args, folder, setup, policies, seeds, loaded)
    folder.save_metrics(answer)
    rows = table.select(["policy", "world", "seed", "instruction", "success"]).to_pylist()
    folder.write_text("episodes.json", json.dumps(rows))
    write(folder, here, table, answer, policies, worlds, seeds, args.videos)
    return answer


def _control(worlds: Sequence[str]) -> tuple[str, ...]:
    """The control that goes with these worlds: nothing imagined is shown without the same of a frozen picture."""
    return (FROZEN,) if "imagined" in worlds else ()


def _setup(args: Any, cache: str) -> Setup:
    horizon = (ZOO_HORIZON if args.zoo else HORIZON) if args.horizon is None else args.horizon
    return Setup(
        args.model, args.judge, args.robot, args.options(), args.starts, args.num_envs, args.steps,
        args.swap_instruction, args.until_horizon, horizon, args.guarded, args.dataset, cache,
    )  # fmt: skip


def _worker(setup: Setup, policies: Sequence[str], worlds: Sequence[str]) -> Worker:
    """Who carries the parts out; what cannot be had is refused here, before a run folder is made."""
    here = worker(setup)
    if here.recorded is None:
        for name in policies:
            if name != EXPERT:
                here.policy(name)
        for world in (*worlds, *_control(worlds)):
            here.envs(world)
    return here


def _carried_out(args: Any, folder: Path, setup: Setup, here: Worker, wanted: Sequence[Part]) -> Any:
    """The table of all episodes."""
    acting = () if args.dataset else list(dict.fromkeys(part.policy for part in wanted))
    with Progress("episodes") as on_progress:
        return carry_out(
            wanted, partial(worker, setup) if args.ray else lambda: here, folder, ray=args.ray or None,
            workers=args.workers, stamp=stamp(setup, acting), on_progress=on_progress,
        )  # fmt: skip


def _second_opinion(
    args: Any, folder: RunFolder, setup: Setup, policies: Sequence[str], seeds: Sequence[int], loaded: Loaded
) -> dict[str, Any]:
    """A warning about policies that the judge paid for, and what a judge of another family says of them."""
    paid, second = paid_by(setup.judge, policies, loaded.folder), second_judge(setup.judge, loaded.folder)
    if not paid:
        return {}
    said = warning(setup.judge, paid, second)
    console.print(f"[yellow]{said}[/yellow]")
    if second is None:
        return {"warning": said}
    other = replace(setup, judge=second)
    wanted = parts(paid, ("imagined",), seeds, PART)
    table = _carried_out(args, folder.path / "second_judge", other, _worker(other, paid, ("imagined",)), wanted)
    found = compare_worlds(table, paid, ("imagined",), seeds)
    return {"warning": said, "second_judge": {**caveat(args.model, second, True)["judge"], **found}}


def _hold_against(trials: Trials, args: Any, loaded: Loaded, trust: dict[str, Any]) -> dict[str, Any]:
    """Dream the trials' policies from their starts, and from as many others as --episodes leaves room for."""
    tried = sorted({start for own in trials.values() for start in own})
    starts = args.starts or "saved"
    others = [i for i in range(len(numbered_starts(loaded, starts))) if i not in set(tried)]
    seeds = tried + others[: max(0, args.episodes - len(tried))]
    setup = replace(_setup(args, ""), starts=starts)
    here = _worker(setup, tuple(trials), ("imagined",))
    folder = RunFolder.of("evaluate-policy", args)
    worlds = ("imagined", FROZEN)
    table = _carried_out(args, folder.path, setup, here, parts(tuple(trials), worlds, seeds, PART))
    found: dict[str, dict[str, dict[int, bool]]] = {world: {policy: {} for policy in trials} for world in worlds}
    for row in table.select(["policy", "world", "seed", "success"]).to_pylist():
        found[row["world"]][row["policy"]][row["seed"]] = row["success"]
    answer = {**compare(trials, found["imagined"]), FROZEN: compare(trials, found[FROZEN]), **trust}
    answer |= _second_opinion(args, folder, setup, tuple(trials), seeds, loaded)
    folder.save_metrics(answer)
    write_trials(folder, answer)
    return answer


def _trials(args: Any, loaded: Loaded) -> Trials | None:
    if not args.real:
        return None
    if args.zoo or args.dataset or args.policy != ("base",) or args.swap_instruction:
        raise ImagineError(
            "--real says which policies were tried, and how; drop --policy, --zoo, --dataset and --swap-instruction."
        )
    return read_trials(args.real, numbered_starts(loaded, args.starts).ids)


def _policies(args: Any, trials: Trials | None) -> tuple[str, ...]:
    if trials is not None:
        return tuple(trials)
    if args.dataset:
        if args.zoo or args.policy != ("base",):
            raise ImagineError("--dataset evaluates what was recorded; drop --policy and --zoo.")
        return ("recorded",)
    return zoo_of(args.model) if args.zoo and args.policy == ("base",) else args.policy


def _worlds(args: Any, loaded: Loaded) -> tuple[str, ...]:
    """The worlds asked for."""
    if args.dataset or args.real:
        return ("imagined",)
    world = "both" if args.zoo else args.world or ("sim" if loaded.robot.has_env and not args.starts else "imagined")
    if world not in ("sim", "imagined", "both"):
        raise ImagineError(f"--world is {world!r}, expected sim, imagined or both.")
    if world != "imagined" and not loaded.robot.has_env:
        raise ImagineError(
            f"robot {loaded.robot.name!r} has no simulator to compare with; use --world imagined, --dataset with "
            "recorded episodes, or --real with trials."
        )
    if world != "imagined" and args.starts not in ("", "sim"):
        raise ImagineError(f"--starts {args.starts} are no starts of the simulator; drop it, or use --world imagined.")
    return ("sim", "imagined") if world == "both" else (world,)


def _check(args: Any, policies: tuple[str, ...], worlds: tuple[str, ...]) -> None:
    if args.steps < 1 or (args.horizon is not None and args.horizon < 1):
        raise ImagineError(f"--horizon is {args.horizon} and --steps {args.steps}, expected at least 1.")
    if args.swap_instruction and EXPERT in policies:
        raise ImagineError("the scripted expert follows the true task, whatever it is told; drop --swap-instruction.")
    if args.swap_instruction and len(policies) > 1:
        raise ImagineError(f"--swap-instruction misleads one policy, got {len(policies)}; name one.")
    if "imagined" in worlds and EXPERT in policies:
        raise ImagineError("the scripted expert reads the true state, which a dream has not; use --world sim.")
