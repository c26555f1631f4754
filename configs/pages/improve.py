"""The page of ``imagine finetune rl``: the gain, what happened while it learnt, and starts whose outcome changed."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from imagine.agents.paired import Paired
from imagine.agents.rollout import rollout
from imagine.configs.build import parallel_envs
from imagine.configs.loaded import Loaded
from imagine.configs.pages import headed, points, rate, rates
from imagine.configs.report import Report
from imagine.configs.runfolder import RunFolder
from imagine.types import Policy

CURVES = (
    ("imagined success", ("success", "second_judge")),
    ("held-out starts", ("held_out_success", "held_out_second_judge")),
    ("KL to the start, nats per chunk", ("kl",)),
    ("inverse error, normalised action units", ("inverse_error", "held_out_inverse_error")),
    ("negative controls judged successes", ("floor", "floor_still", "floor_shuffled", "floor_absent")),
    ("judge less second judge", ("judge_gap",)),
)
"""Panels of the figure, and what each shows; ``second_judge`` is never trained on."""


def write(
    folder: RunFolder, loaded: Loaded, answer: dict[str, Any], found: Mapping[str, Paired],
    policies: Mapping[str, Policy], seeds: Sequence[int], *, judge: str, command: str,
) -> None:  # fmt: skip
    """``report.html`` of the run folder.

    Args:
        folder: of the run.
        loaded: the model and its robot.
        answer: of the command.
        found: episodes before and after by proof, of :func:`imagine.configs.improving.prove`.
        policies: ``before`` and ``after``.
        seeds: start seeds.
        judge: its name.
        command: makes these numbers.
    """
    report = Report(
        "Improved in the dream",
        f"{answer['algorithm']} on {answer['imagined_episodes']} imagined episodes ({answer['imagined_chunks']} "
        "chunks); no real episode was learnt from, and the dream's own weights did not move.",
    )
    titles = {"sim": "sim", "imagined": f"imagined, judge {judge}"}
    titles["second_judge"] = f"imagined, judge {answer.get('second_judge', {}).get('name')}"
    first, paired = next(iter(found.items()))
    report.lead(
        [
            (f"{titles[first]} success, before", rate(paired.results["before"]), f"{len(seeds)} starts"),
            (f"{titles[first]} success, after", rate(paired.results["after"]), "the same starts"),
            ("gain, points", points(paired.gain("after", "before")), "paired, 95 % interval"),
        ]
    )
    if (ratio := answer.get("imagined_over_sim_gain")) is not None:
        report.cards([("imagined / simulated gain", f"{ratio:.2f}", "1 is an honest dream")])
    tasks = sorted(set(paired.tasks.tolist()))
    report.section("Success", "95 % Wilson intervals; the same starts in both worlds, none of them learnt from.")
    report.text(answer["warning"])
    rows = [
        [titles[proof], name, *rates(x, tasks)] for proof, each in found.items() for name, x in each.results.items()
    ]
    report.table(["world", "policy", "all tasks", *headed(tasks)], rows)
    report.section("While it learnt", answer["alarm"] or "Nothing crossed its limit.")
    report.figure(curves(answer["curve"]), "Dots are updates. Checks on held-out starts come every few updates.")
    envs = {w: parallel_envs(loaded, w, 1, judge=judge) for w in ("sim", "imagined") if w in found}
    show_changes(report, loaded, envs, policies, paired, seeds)
    report.command(command)
    report.write(folder / "report.html")


def show_changes(
    report: Report, loaded: Loaded, envs: Mapping[str, Any], policies: Mapping[str, Policy], paired: Paired,
    seeds: Sequence[int], most: int = 3,
) -> None:  # fmt: skip
    """Before and after, in every world, from starts where the outcome changed for better or worse."""
    before, after = paired.outcomes["before"], paired.outcomes["after"]
    better, worse = np.flatnonzero(after & ~before)[:most], np.flatnonzero(before & ~after)[:1]
    if not len(better) + len(worse):
        return
    report.section("The same starts, before and after", "Where the outcome changed.")
    fps = loaded.model.body.control_hz / loaded.model.body.frame_stride
    for i in [*better.tolist(), *worse.tolist()]:
        videos, instruction = [], ""
        for world, each in envs.items():
            for name, policy in policies.items():
                (record,) = rollout(each, policy, [seeds[i]], frames=True)
                videos.append((f"{world}, {name}", record.frames))
                instruction = record.instruction
        verdict = "failed before, done after" if after[i] else "done before, fails after"
        report.videos_side_by_side(videos, fps, f"“{instruction}” - start seed {seeds[i]}: {verdict}")


def curves(rows: Sequence[dict[str, float]]) -> Any:
    """What every update and every check found, in panels."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9, 5), layout="constrained")
    for axes, (title, keys) in zip(figure.subplots(2, 3).flat, CURVES, strict=True):
        for key in keys:
            checked = key in ("floor", "judge_gap") or key.startswith(("held_out", "floor"))
            # A check precedes its update; the last one follows it.
            dots = [(row["update"] - checked, row[key]) for row in rows if key in row]
            dots += [(row["update"], row[f"final_{key}"]) for row in rows if f"final_{key}" in row]
            if dots:
                axes.plot(*zip(*dots, strict=True), "o-", ms=3, label=key.replace("_", " "))
        axes.set_title(title, fontsize=9)
        axes.spines[["top", "right"]].set_visible(False)
        if len(axes.lines) > 1:
            axes.legend(frameon=False, fontsize=7)
    return figure
