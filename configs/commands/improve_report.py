"""The proof after ``imagine improve``: before and after on the simulator and in the dream, and the page with both."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from imagine.configs.commands.common import console
from imagine.configs.report import Report
from imagine.configs.runfolder import RunFolder
from imagine.progress import Progress

CURVES = (
    ("imagined success", ("success", "second_judge")),
    ("held-out starts", ("held_out_success", "held_out_second_judge")),
    ("KL to the start, nats per chunk", ("kl",)),
    ("inverse error, normalised action units", ("inverse_error", "held_out_inverse_error")),
    ("false positives on negative controls", ("floor", "floor_still", "floor_shuffled", "floor_absent")),
    ("judge less second judge", ("judge_gap",)),
)
"""Panels of the figure, and what each shows; ``second_judge`` is never trained on."""


@dataclass
class Proof:
    """Before and after on the same starts.

    Attributes:
        numbers: ``before``, ``after``, ``gain`` on the simulator, ``imagined_before`` and so on in the dream.
        seeds: start seeds.
        outcomes: success per start by "before" and "after", in the first world.
        policies: the two policies.
    """

    numbers: dict[str, Any] = field(default_factory=dict)
    seeds: Sequence[int] = ()
    outcomes: dict[str, np.ndarray] = field(default_factory=dict)
    policies: dict[str, Any] = field(default_factory=dict)


def prove(args: Any, loaded: Any, folder: RunFolder) -> Proof:
    """Success before and after from the same starts, on the simulator if there is one and in the dream."""
    from imagine.agents.evaluate import evaluate
    from imagine.agents.statistics import paired_difference
    from imagine.configs.build import parallel_envs
    from imagine.configs.policies import load_policy

    proof = Proof(seeds=range(args.test_seed, args.test_seed + args.test_episodes))
    for name, policy in {"before": args.policy, "after": str(folder / "adapter")}.items():
        proof.policies[name] = load_policy(policy, loaded.model, loaded.folder)
    for world, mark in worlds_of(loaded).items():
        envs = parallel_envs(loaded, world, 16 if world == "sim" else args.num_envs, judge=args.judge)
        seen = {}
        for name, policy in proof.policies.items():
            with Progress(f"{world}, {name}") as tell:
                result, records = evaluate(envs, policy, proof.seeds, task_of=loaded.robot.task_of, on_progress=tell)
            proof.numbers[mark + name] = result
            seen[name] = np.array([r.success for r in records])
        proof.numbers[mark + "gain"] = interval(paired_difference(seen["after"], seen["before"]))
        tasks = np.array([loaded.robot.task_of(r.instruction) for r in records])
        proof.numbers[mark + "gain_per_task"] = {
            t: interval(paired_difference(seen["after"][tasks == t], seen["before"][tasks == t]))
            for t in sorted(set(tasks.tolist()))
        }
        proof.outcomes = proof.outcomes or seen
    if "gain" in proof.numbers:
        real, imagined = (proof.numbers[k]["value"] for k in ("gain", "imagined_gain"))
        proof.numbers["imagined_over_real_gain"] = round(imagined / real, 3) if real else None
    return proof


def worlds_of(loaded: Any) -> dict[str, str]:
    """Worlds that a proof can be had in, the first one counts most, and what their numbers' names begin with."""
    return {"sim": "", "imagined": "imagined_"} if loaded.robot.has_env else {"imagined": "imagined_"}


def interval(value: Any) -> dict[str, float]:
    """An :class:`imagine.agents.statistics.Interval` as plain numbers."""
    return {"value": value.value, "ci_low": value.low, "ci_high": value.high, "n": value.n}


def write_report(args: Any, cfg: Any, loaded: Any, folder: RunFolder, answer: dict[str, Any], proof: Proof) -> None:
    """``report.html`` of the run folder: gain, curves, and films of starts whose outcome changed."""
    worlds = worlds_of(loaded)
    first, mark = next(iter(worlds.items()))
    gain, ratio = answer[mark + "gain"], answer.get("imagined_over_real_gain")
    report = Report(
        "Improved in the dream",
        f"{cfg.algorithm} on {answer['imagined_episodes']} imagined episodes ({answer['imagined_chunks']} chunks); no "
        "real episode was learnt from, and the dream's own weights did not move.",
    )
    span = f"[{100 * gain['ci_low']:+.0f}, {100 * gain['ci_high']:+.0f}]"
    cards = [
        (f"{first} success, before", rate(answer[mark + "before"]), f"{args.policy}, {args.test_episodes} starts"),
        (f"{first} success, after", rate(answer[mark + "after"]), "the same starts"),
        ("gain", f"{100 * gain['value']:+.0f} points", span),
    ]
    if len(worlds) > 1:
        cards.append(("imagined / simulated gain", "-" if ratio is None else f"{ratio:.2f}", "1 is an honest dream"))
    report.lead(cards)
    tasks = list(answer[mark + "gain_per_task"])
    report.section("Success", "95 % Wilson intervals; the same starts in both worlds, none of them learnt from.")
    report.table(
        ["world", "policy", "all tasks", *(t.replace("_", " ") for t in tasks)],
        [
            [world, name, rate(answer[mark + name]), *(rate(answer[mark + name]["per_task"][t]) for t in tasks)]
            for world, mark in worlds.items()
            for name in ("before", "after")
        ],
    )
    report.section("While it learnt", answer["alarm"] or "Nothing crossed its limit.")
    report.figure(curves(answer["curve"]), "Dots are updates. Checks on held-out starts come every few updates.")
    films(report, args, loaded, proof)
    report.command(f"imagine improve --policy {args.policy} --preset {args.preset} --seed {args.seed}")
    report.write(folder / "report.html")
    console.print(f"report: {folder / 'report.html'}")


def rate(result: dict[str, Any]) -> str:
    """Success with its interval, in per cent."""
    return f"{100 * result['success_rate']:.0f} % [{100 * result['ci_low']:.0f}, {100 * result['ci_high']:.0f}]"


def curves(rows: Sequence[dict[str, float]]) -> Any:
    """What every update and every look found, in panels."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9, 5), layout="constrained")
    for axes, (title, keys) in zip(figure.subplots(2, 3).flat, CURVES, strict=True):
        for key in keys:
            looked_at = key in ("floor", "judge_gap") or key.startswith(("held_out", "floor"))
            # A look precedes its update; the last one follows it.
            points = [(row["update"] - looked_at, row[key]) for row in rows if key in row]
            points += [(row["update"], row[f"final_{key}"]) for row in rows if f"final_{key}" in row]
            if points:
                axes.plot(*zip(*points, strict=True), "o-", ms=3, label=key.replace("_", " "))
        axes.set_title(title, fontsize=9)
        axes.spines[["top", "right"]].set_visible(False)
        if len(axes.lines) > 1:
            axes.legend(frameon=False, fontsize=7)
    return figure


def films(report: Report, args: Any, loaded: Any, proof: Proof, most: int = 3) -> None:
    """Before and after, in every world, from starts where the outcome changed for better or worse."""
    from imagine.agents.rollout import rollout
    from imagine.configs.build import parallel_envs

    before, after = proof.outcomes["before"], proof.outcomes["after"]
    better, worse = np.flatnonzero(after & ~before)[:most], np.flatnonzero(before & ~after)[:1]
    if not len(better) + len(worse):
        return
    report.section("The same starts, before and after", "Where the outcome changed.")
    body = loaded.model.body
    fps = body.control_hz / body.frame_stride
    worlds = {world: parallel_envs(loaded, world, 1, judge=args.judge) for world in worlds_of(loaded)}
    for i in [*better.tolist(), *worse.tolist()]:
        shown, told = [], ""
        for world, envs in worlds.items():
            for name, policy in proof.policies.items():
                (record,) = rollout(envs, policy, [proof.seeds[i]], frames=True)
                shown.append((f"{world}, {name}", record.frames))
                told = record.instruction
        verdict = "failed before, done after" if after[i] else "done before, fails after"
        report.videos_side_by_side(shown, fps, f"“{told}” - start seed {proof.seeds[i]}: {verdict}")
