"""``imagine evaluate``: success of policies, in the dream, on the robot or both, with what it takes to believe it."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING, Any

from imagine.configs.commands.common import Words
from imagine.configs.commands.worlds import Episodes, world_of
from imagine.configs.runfolder import RunFolder
from imagine.progress import Progress
from imagine.types import ImagineError

if TYPE_CHECKING:
    from imagine.agents.evaluate import Part, Worker
    from imagine.configs.build import Loaded
    from imagine.configs.evaluation import Setup

PART = 16  # starts per part: what a kill can lose, and what one worker is given at a time
ZOO_HORIZON = 3


@dataclass(frozen=True, kw_only=True)
class Args(Episodes):
    """Estimate success rates.

    Attributes:
        policy: base, random, expert (simulator only), an adapter in the model folder (novice and improved in the
            shipped one); the folder of an adapter or model; a server ws://HOST:PORT that speaks openpi's protocol;
            module:name for a policy of your own; any of them with flaws,
            base+noise=0.03+delay=6+idle=0.5+grip=0.5+bias=0.02. Several, joined by commas, are compared.
        zoo: a zoo of policies from hopeless to perfect, in both worlds: how well do dream and simulator agree?
        world: sim (the robot's simulator), imagined (the dream) or both; the same seeds are the same starts in both. By
            default sim if the robot has one, else imagined.
        dataset: folder of a LeRobot dataset whose episodes are dreamt again under their recorded actions, and held
            against what was recorded; policies and seeds play no part then.
        real: table of real trials, .csv or .parquet with columns policy, start, success (docs/evaluate.md); its
            policies are dreamt from the same numbered starts, those of --starts (saved, or a dataset).
        told: what the policy is told: right, or an instruction other than its success is measured by; which kinds there
            are the robot says, the table knows colour and task.
        go_on: with --told, act on to the horizon instead of ending an episode once what was told is done.
        steps: denoising steps of the policy.
        horizon: chunks within which an episode must succeed; by default 8, and 3 with --zoo, as far as a dream was
            trained to go on its own frames.
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
    world: str = ""
    dataset: str = ""
    real: str = ""
    told: str = "right"
    go_on: bool = False
    steps: int = 4
    horizon: int | None = None
    guarded: bool | None = None
    ray: str = ""
    workers: int = 2
    unchecked: bool = False
    films: int = 4


def run(args: Args) -> dict[str, Any]:
    """Evaluate; the run folder then holds ``episodes.parquet``, ``metrics.json`` and ``report.html``. Resumes.

    Raises:
        ImagineError: an option is out of range, a policy, model, robot or table cannot be had, the dream or its judge
            was never measured, or a worker failed.
    """
    seeds = args.seeds()
    if args.steps < 1 or (args.horizon is not None and args.horizon < 1):
        raise ImagineError(f"--horizon is {args.horizon} and --steps {args.steps}, expected at least 1.")
    loaded = args.load()
    worlds = _worlds(args, loaded)
    trials = _trials(args, loaded)
    policies = _policies(args, trials)
    _check(args, policies, worlds)
    trust: dict[str, Any] = {}
    if "imagined" in worlds:
        from imagine.configs.judges import judge_name

        args = replace(args, judge=judge_name(args.judge, loaded.folder))
        trust = caveat(args.model, args.judge, args.unchecked)
    if trials is not None:
        return _held_against_trials(args, loaded, trials, trust)
    folder, here, setup = _prepared(args, loaded, policies, worlds)
    if here.recorded is not None:
        seeds = list(here.recorded)[: args.episodes]
        worlds = ("recorded", "imagined") if here.recorded.tells_success else ("imagined",)
    table = _carried_out(args, folder, here, setup, parts_of(policies, worlds, seeds))
    from imagine.configs.commands.evaluate_report import answer_of, write_report

    answer = answer_of(args, policies, worlds, seeds, table, trust)
    folder.save_metrics(answer)
    rows = table.select(["policy", "world", "seed", "instruction", "success"]).to_pylist()
    folder.write_text("episodes.json", json.dumps(rows))
    write_report(args, folder, here, policies, worlds, seeds, table, answer)
    return answer


def _setup(args: Args, cache: str) -> Setup:
    from imagine.configs.build import HORIZON
    from imagine.configs.evaluation import Setup
    from imagine.configs.judges import looks_at_pictures

    guarded = looks_at_pictures(args.judge) if args.guarded is None else args.guarded
    horizon = (ZOO_HORIZON if args.zoo else HORIZON) if args.horizon is None else args.horizon
    return Setup(
        args.model, args.judge, args.robot, args.options(), args.starts, args.lanes, args.steps, args.told, args.go_on,
        horizon, guarded, args.dataset, cache,
    )  # fmt: skip


def parts_of(policies: Sequence[str], worlds: Sequence[str], seeds: Sequence[int]) -> list[Part]:
    """What is to be carried out."""
    from imagine.agents.evaluate import parts

    return parts(policies, worlds, seeds, PART)


def _prepared(
    args: Args, loaded: Loaded, policies: Sequence[str], worlds: Sequence[str], starts: str = ""
) -> tuple[RunFolder, Worker, Setup]:
    """The run folder, made once nothing is wrong with what was asked, and who carries it out."""
    from imagine.agents.evaluate import EXPERT
    from imagine.configs.evaluation import worker

    parts_of(policies, worlds, [args.seed])  # each name once
    if "sim" in worlds:
        loaded.sim_env().close()  # refuses options out of range
    folder = RunFolder.of("evaluate", args) if args.dataset else None
    setup = replace(_setup(args, str(folder / "canvases") if folder else ""), starts=starts or args.starts)
    here = worker(setup)
    for name in () if args.dataset else policies:
        if name != EXPERT:
            here.policy(name)
    return folder or RunFolder.of("evaluate", args), here, setup


def _carried_out(args: Args, folder: RunFolder, here: Worker, setup: Setup, wanted: Sequence[Part]) -> Any:
    """The table of all episodes."""
    from imagine.agents.evaluate import carry_out
    from imagine.configs.evaluation import stamp, worker

    acting = () if args.dataset else tuple(dict.fromkeys(part.policy for part in wanted))
    with Progress("episodes") as tell:
        return carry_out(
            wanted, partial(worker, setup) if args.ray else lambda: here, folder.path, ray=args.ray or None,
            workers=args.workers, stamp=stamp(setup, acting), on_progress=tell,
        )  # fmt: skip


def _held_against_trials(args: Args, loaded: Loaded, trials: Any, trust: dict[str, Any]) -> dict[str, Any]:
    """Dream the trials' policies from their starts, and from as many others as --episodes leaves room for."""
    from imagine.agents.trials import compare
    from imagine.configs.commands.evaluate_report import write_trials
    from imagine.configs.evaluation import numbered_starts

    starts = args.starts or "saved"
    tried = sorted({start for own in trials.values() for start in own})
    others = [i for i in range(len(numbered_starts(loaded, starts))) if i not in set(tried)]
    seeds = tried + others[: max(0, args.episodes - len(tried))]
    folder, here, setup = _prepared(args, loaded, tuple(trials), ("imagined",), starts)
    table = _carried_out(args, folder, here, setup, parts_of(tuple(trials), ("imagined",), seeds))
    imagined: dict[str, dict[int, bool]] = {policy: {} for policy in trials}
    for row in table.select(["policy", "seed", "success"]).to_pylist():
        imagined[row["policy"]][row["seed"]] = row["success"]
    answer = {**compare(trials, imagined), **trust}
    folder.save_metrics(answer)
    write_trials(folder, answer)
    return answer


def _trials(args: Args, loaded: Loaded) -> Any:
    if not args.real:
        return None
    from imagine.agents.trials import read_trials
    from imagine.configs.evaluation import numbered_starts

    if args.zoo or args.dataset or args.policy != ("base",) or args.told != "right":
        raise ImagineError(
            "--real says which policies were tried, and how; drop --policy, --zoo, --dataset and --told."
        )
    return read_trials(args.real, numbered_starts(loaded, args.starts).ids)


def _policies(args: Args, trials: Any) -> tuple[str, ...]:
    from imagine.configs.evaluation import zoo_of

    if trials is not None:
        return tuple(trials)
    if args.dataset:
        if args.zoo or args.policy != ("base",):
            raise ImagineError("--dataset evaluates what was recorded; drop --policy and --zoo.")
        return ("recorded",)
    return zoo_of(args.model) if args.zoo and args.policy == ("base",) else args.policy


def _worlds(args: Args, loaded: Loaded) -> tuple[str, ...]:
    """The worlds asked for."""
    if args.dataset or args.real:
        return ("imagined",)
    default = "sim" if loaded.robot.has_env and not args.starts else "imagined"
    world = "both" if args.zoo else world_of(args.world or default, ("sim", "imagined", "both"))
    worlds = ("sim", "imagined") if world == "both" else (world,)
    if "sim" in worlds and not loaded.robot.has_env:
        raise ImagineError(
            f"robot {loaded.robot.name!r} has no simulator to compare with; use --world imagined, --dataset with "
            "recorded episodes, or --real with trials."
        )
    if "sim" in worlds and args.starts not in ("", "sim"):
        raise ImagineError(f"--starts {args.starts} are no starts of the simulator; drop it, or use --world imagined.")
    return worlds


def _check(args: Args, policies: tuple[str, ...], worlds: tuple[str, ...]) -> None:
    if "expert" in policies and args.told != "right":
        raise ImagineError(f"the scripted expert hears nothing, so --told {args.told} says nothing of it; drop one.")
    if args.told != "right" and len(policies) > 1:
        raise ImagineError(f"--told {args.told} misleads one policy, got {len(policies)}; name one.")
    if "imagined" in worlds and "expert" in policies:
        raise ImagineError("the scripted expert reads the true state, which a dream has not; use --world sim.")


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
        wrong = ("false_positive", "false_positive_ci", "false_negative", "false_negative_ci")
        names: tuple[str, ...] = ("auroc", *wrong, "n", "threshold_n")
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
