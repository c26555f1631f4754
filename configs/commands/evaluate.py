"""``imagine evaluate``: success of a policy, in the dream or on the robot, with its confidence interval."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any

from imagine.types import ImagineError

from ..runfolder import RunFolder
from .worlds import Episodes, bar


@dataclass(frozen=True, kw_only=True)
class Args(Episodes):
    """Estimate a policy's success rate.

    Attributes:
        policy: base, novice, improved, expert (real world only), random, or the folder of an adapter or model.
        world: real (the twin) or imagined (the dream); the same seeds are the same starts in both.
        told: what the policy is told: right, or another colour, or another task than its success is measured by.
        go_on: with --told, act on to the horizon instead of ending an episode once what was told is done.
        steps: denoising steps of the policy.
    """

    policy: str = "base"
    world: str = "real"
    told: str = "right"
    go_on: bool = False
    steps: int = 4


def run(args: Args) -> dict[str, Any]:
    """Evaluate and write ``metrics.json`` and ``episodes.json`` to the run folder.

    Raises:
        ImagineError: an option is out of range, or the policy or model cannot be had.
    """
    seeds = args.seeds()
    if args.policy == "expert" and args.told != "right":
        raise ImagineError(f"the scripted expert hears nothing, so --told {args.told} says nothing of it; drop one.")
    from agents.evaluate import evaluate
    from imagine.model import WorldActionModel

    from .. import build
    from ..told import Told

    model = WorldActionModel.from_pretrained(args.model)
    policy = Told(build.policy(args.policy, model, args.model, steps=args.steps), args.told, build.families_of(model))
    ends = policy if args.told != "right" and args.world == "real" and not args.go_on else None
    expert = args.policy == "expert"
    n = min(args.lanes, len(seeds))
    lanes = build.lanes(args.world, model, args.model, n, expert=expert, judged_by=args.judge, until_told=ends)
    folder = RunFolder.of("evaluate", args)
    with bar(f"{args.policy} in the {args.world} world") as tell:
        result, records = evaluate(lanes, policy, seeds, task_of=build.task_of, tell=tell)
    answer = {"policy": args.policy, "world": args.world, "told": args.told, **result, "seed": args.seed}
    if args.world == "imagined":
        answer |= caveat(args.model, args.judge)
    folder.save_metrics(answer)
    rows = [{"seed": r.seed, "instruction": r.instruction, "success": r.success} for r in records]
    folder.write_text("episodes.json", json.dumps(rows))
    return answer


def caveat(model: str, judge: str) -> dict[str, Any]:
    """What an imagined success rate must not be read without: the judge's error and the dream's fidelity."""
    from imagine.model import resolve
    from rewards.vlm import judge_folder

    def read(folder: Any, name: str) -> dict[str, Any]:
        return json.loads((folder / name).read_text()) if (folder / name).is_file() else {}

    if judge == "latent":
        error = read(resolve(model), "judge_metrics.json")
        names: tuple[str, ...] = ("false_positive", "false_negative", "n")
    else:
        error = read(judge_folder(judge), "metrics.json").get("imagined", {})
        names = ("auroc", "fpr", "fpr_ci", "fnr", "fnr_ci", "n")
    known = {k: error[k] for k in names if k in error}
    dream = read(resolve(model), "metrics.json").get("fidelity", {})
    return {
        "judge": {"name": judge, **known} if known else "not measured; see imagine calibrate",
        "fidelity": {k: dream[k] for k in ("psnr_true", "psnr_copy", "inverse_r2_imagined") if k in dream}
        or "not measured",
    }
