"""``imagine evaluate``: success of policies, in the dream, on the robot or both, with what it takes to believe it."""

from __future__ import annotations

import json
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

from imagine.configs.commands.common import Words
from imagine.configs.commands.worlds import Episodes, bar
from imagine.configs.runfolder import RunFolder
from imagine.types import ImagineError

PART = 16  # starts per part: what a kill can lose, and what one worker is given at a time
WORLDS = ("real", "imagined", "both")
ZOO_HORIZON = 3


@dataclass(frozen=True, kw_only=True)
class Args(Episodes):
    """Estimate success rates.

    Attributes:
        policy: base, novice, improved, expert (real world only), random; the folder of an adapter or model; a server
            ws://HOST:PORT that speaks openpi's protocol; module:name for a Policy of your own; any of them with flaws,
            base+noise=0.03+delay=6+idle=0.5+grip=0.5+bias=0.02. Several, joined by commas, are compared.
        zoo: a zoo of policies from hopeless to perfect, in both worlds: how well do dream and truth agree?
        world: real (the twin), imagined (the dream) or both; the same seeds are the same starts in both.
        dataset: folder of a LeRobot dataset whose episodes are dreamt again under their recorded actions, and held
            against what was recorded; policies and seeds play no part then.
        told: what the policy is told: right, or another colour, or another task than its success is measured by.
        go_on: with --told, act on to the horizon instead of ending an episode once what was told is done.
        steps: denoising steps of the policy.
        horizon: chunks (of 0.8 s on the table) within which an episode must succeed; by default 8, and 3 with --zoo,
            as far as a dream was trained to go on its own frames.
        judge: who scores a dream: own (the best one beside the model's weights), latent, trajectory, a
            shipped judge's name, a folder or hub id of an image-text-to-text model, or http://HOST/v1#MODEL.
        guarded: a judged success needs what the gym's guards ask as well, and an episode that cannot be believed ends.
            That is for learners, who exploit pictures; by default it is left out with the judge that looks at none.
        ray: address of a Ray cluster to work on, or local; in this process when empty.
        workers: Ray workers, one CPU each.
        unchecked: print an imagined success rate although the error of its judge or the fidelity of its dream has not
            been measured.
        films: how many disagreements between the worlds are filmed for the report.
    """

    policy: Words = ("base",)
    zoo: bool = False
    world: str = "real"
    dataset: str = ""
    told: str = "right"
    go_on: bool = False
    steps: int = 4
    horizon: int | None = None
    judge: str = "own"
    guarded: bool | None = None
    ray: str = ""
    workers: int = 2
    unchecked: bool = False
    films: int = 4


def run(args: Args) -> dict[str, Any]:
    """Evaluate; the run folder then holds ``episodes.parquet``, ``metrics.json`` and ``report.html``. Resumes.

    Raises:
        ImagineError: an option is out of range, a policy or model cannot be had, the dream or its judge was never
            measured, or a worker failed.
    """
    seeds = args.seeds()
    policies = _policies(args)
    from imagine.configs.build import HORIZON, judge_name

    args = replace(args, judge=judge_name(args.judge, args.model))
    guarded = looks(args.judge) if args.guarded is None else args.guarded
    horizon = (ZOO_HORIZON if args.zoo else HORIZON) if args.horizon is None else args.horizon
    if horizon < 1 or args.steps < 1:
        raise ImagineError(f"--horizon is {horizon} and --steps {args.steps}, expected at least 1.")
    if "expert" in policies and args.told != "right":
        raise ImagineError(f"the scripted expert hears nothing, so --told {args.told} says nothing of it; drop one.")
    if args.world not in WORLDS:
        raise ImagineError(f"--world is {args.world!r}, expected {', '.join(WORLDS[:-1])} or {WORLDS[-1]}.")
    if args.told != "right" and len(policies) > 1:
        raise ImagineError(f"--told {args.told} misleads one policy, got {len(policies)}; name one.")
    imagined = args.zoo or bool(args.dataset) or args.world != "real"
    if imagined and "expert" in policies:
        raise ImagineError("the scripted expert reads the true state, which a dream has not; use --world real.")
    trust = caveat(args.model, args.judge, args.unchecked) if imagined else {}
    from imagine.agents.evaluate import EXPERT, carry_out, parts
    from imagine.configs.evaluation import Setup, stamp, worker

    folder = RunFolder.of("evaluate", args)
    setup = Setup(
        args.model,
        args.judge,
        args.lanes,
        args.steps,
        args.told,
        args.go_on,
        horizon,
        args.blocks,
        guarded,
        args.dataset,
        str(folder / "canvases"),
    )
    here = worker(setup)
    if here.recorded is not None:
        seeds = list(here.recorded)[: args.episodes]
    worlds = _worlds(args, here)
    for name in () if args.dataset else policies:  # what cannot be had is refused before anything runs
        if name != EXPERT:
            here.policy(name)
    wanted = parts(policies, worlds, seeds, PART)
    with bar("episodes") as tell:
        table = carry_out(
            wanted, partial(worker, setup) if args.ray else lambda: here, folder.path, ray=args.ray or None,
            workers=args.workers, stamp=stamp(setup, () if args.dataset else policies), on_progress=tell,
        )  # fmt: skip
    from imagine.configs.commands.evaluate_report import answer_of, write_report

    answer = answer_of(args, policies, worlds, seeds, table, trust)
    folder.save_metrics(answer)
    rows = table.select(["policy", "world", "seed", "instruction", "success"]).to_pylist()
    folder.write_text("episodes.json", json.dumps(rows))
    write_report(args, folder, here, policies, worlds, seeds, table, answer)
    return answer


def looks(judge: str) -> bool:
    """Does a judge look at the dream's pictures, so that it wants the guards that look at them?"""
    return judge != "trajectory"


def _policies(args: Args) -> tuple[str, ...]:
    from imagine.configs.evaluation import ZOO

    if args.dataset:
        if args.zoo or args.policy != ("base",):
            raise ImagineError("--dataset evaluates what was recorded; drop --policy and --zoo.")
        return ("recorded",)
    return ZOO if args.zoo and args.policy == ("base",) else args.policy


def _worlds(args: Args, worker: Any) -> tuple[str, ...]:
    if args.dataset:
        return ("recorded", "imagined") if worker.recorded.tells_success else ("imagined",)
    return ("real", "imagined") if args.zoo or args.world == "both" else (args.world,)


def caveat(model: str, judge: str, unchecked: bool = False) -> dict[str, Any]:
    """What an imagined success rate must not be read without: the judge's error and the dream's fidelity.

    Raises:
        ImagineError: one of them has not been measured, and ``unchecked`` does not say that this is known.
    """
    from imagine.model.model import resolve
    from imagine.rewards.vlm import judge_folder

    def read(folder: Any, name: str) -> dict[str, Any]:
        return json.loads((folder / name).read_text()) if (folder / name).is_file() else {}

    if judge in (heads := {"latent": ("judge",), "trajectory": ("trajectory", "path")}):
        found = [read(resolve(model), f"{stem}_metrics.json") for stem in heads[judge]]
        error = next((f for f in found if f), {})
        names: tuple[str, ...] = ("auroc", "false_positive", "false_negative", "n")
    elif judge.startswith(("http://", "https://")):
        error, names = {}, ()
    else:
        error = read(judge_folder(judge), "metrics.json").get("imagined", {})
        names = ("auroc", "fpr", "fpr_ci", "fnr", "fnr_ci", "n")
    known = {k: error[k] for k in names if k in error}
    dream = read(resolve(model), "metrics.json").get("fidelity", {})
    fidelity = {k: dream[k] for k in ("psnr_true", "psnr_copy", "inverse_r2_imagined") if k in dream}
    for what, got, how in (
        (f"error of judge {judge!r}", known, "imagine calibrate"),
        (f"fidelity of model {model!r}", fidelity, "imagine fidelity"),
    ):
        if not got and not unchecked:
            raise ImagineError(
                f"the {what} has not been measured, so an imagined success rate would say nothing; measure it with "
                f"`{how} --write`, or add --unchecked."
            )
    return {
        "judge": {"name": judge, **known} if known else {"name": judge, "error": "not measured"},
        "fidelity": fidelity or "not measured",
    }
