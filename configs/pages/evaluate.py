"""The pages of ``imagine evaluate``: rates with intervals, both worlds beside each other, and where they disagree."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from imagine.agents.evaluate import Part, outcomes
from imagine.configs.pages import headed, number, points, rate, rates
from imagine.configs.report import Report
from imagine.configs.runfolder import RunFolder
from imagine.files import atomic_path

MEASURES = ("pearson", "spearman", "kendall", "mmrv", "pairs", "regret", "bias", "rmse")


def write(
    folder: RunFolder, worker: Any, table: Any, answer: dict[str, Any], policies: Sequence[str],
    worlds: Sequence[str], seeds: Sequence[int], videos: int,
) -> None:  # fmt: skip
    """``report.html`` in the run folder, and ``agreement.png`` where two worlds are compared.

    Args:
        folder: of the run.
        worker: repeats episodes, with their frames.
        table: of all episodes.
        answer: of :func:`imagine.agents.paired.compare_worlds`, with what judge and dream are worth.
        policies: their names.
        worlds: one or two.
        seeds: start seeds.
        videos: episodes at most that are shown where the worlds disagree.
    """
    each = answer.get("policies") or [{"policy": policies[0], worlds[0]: answer}]
    page = Report("How good are these policies?", f"{len(seeds)} starts from seed {seeds[0]}; intervals are 95 %.")
    if "judge" in answer:
        page.text(
            f"Imagined success is what judge {answer['judge']} says of dreams whose fidelity is {answer['fidelity']}. "
            "Read it with both in mind."
        )
    _warned(page, answer)
    frozen = answer.get("frozen", {})
    control = {one["policy"]: one["frozen"] for one in frozen.get("policies", [])} or {policies[0]: frozen}
    _success(page, each, worlds, control if frozen else {})
    if len(worlds) == 2:
        if "pearson" in answer:
            page.section("Does imagination agree with the truth?")
            rows = [[name, number(answer[name]), number(frozen.get(name))] for name in (*MEASURES, "same_outcome")]
            page.table(
                ["measure", "value", "frozen picture"], rows,
                "Resampling starts; see agents/agreement.py. The frozen picture is a dream that draws nothing, before "
                "the same judge: only what is better than it is owed to the dream.",
            )  # fmt: skip
        picture = correlation_figure(each, worlds)
        with atomic_path(folder / "agreement.png") as file:
            picture.savefig(file, dpi=130, format="png")
        page.figure(picture, "Each point is a policy; on the line dream and truth agree.")
        if videos and "recorded" not in worlds:  # what was recorded is the dataset's to show
            _disagreements(page, worker, table, policies, worlds, seeds, videos)
    page.write(folder / "report.html")


def _success(
    page: Report, each: Sequence[dict[str, Any]], worlds: Sequence[str], control: Mapping[str, dict[str, Any]]
) -> None:
    headers = ["policy", *(f"{w} success" for w in worlds)]
    rows = [[one["policy"], *(rate(one[w]) for w in worlds)] for one in each]
    if len(worlds) == 2:
        headers += [f"{worlds[1]} less {worlds[0]}", "same outcome on the same start"]
        for line, one in zip(rows, each, strict=True):
            line += [points(one["difference"]), f"{one['same_outcome']:.0%}"]
    if control:
        headers.append("success in a frozen picture")
        for line, one in zip(rows, each, strict=True):
            line.append(rate(control[one["policy"]]))
    page.section("Success").table(headers, rows)
    tasks = sorted({t for one in each for w in worlds for t in one[w]["per_task"]})
    by_task = [[one["policy"], w, *rates(one[w], tasks)] for one in each for w in worlds]
    page.table(["policy", "world", "all tasks", *headed(tasks)], by_task, "By task.")


def _warned(page: Report, answer: dict[str, Any]) -> None:
    """What the judge paid for, and what a second judge says of that."""
    if "warning" not in answer:
        return
    page.text(answer["warning"])
    if second := answer.get("second_judge"):
        each = second.get("policies") or [{"policy": second["policy"], "imagined": second}]
        rows = [[one["policy"], rate(one["imagined"])] for one in each]
        page.table(["policy", f"imagined success, judge {second['name']}"], rows, "The same starts, another judge.")


def _disagreements(
    page: Report, worker: Any, table: Any, policies: Sequence[str], worlds: Sequence[str], seeds: Sequence[int],
    most: int,
) -> None:  # fmt: skip
    """Episodes that ended differently in the two worlds, side by side; one per policy first."""
    first, second = (outcomes(table, policies, w, seeds) for w in worlds)
    apart = [np.flatnonzero(first[p] != second[p]) for p in range(len(policies))]
    wanted = [(p, int(at[k])) for k in range(most) for p, at in enumerate(apart) if len(at) > k][:most]
    if not wanted:
        return
    page.section("Where they disagree", "The same policy from the same start, acting in each world.")
    how = {True: "done", False: "not done"}
    fps = worker.body.control_hz / worker.body.frame_stride
    for p, i in wanted:
        videos = [(w, worker.episodes(Part(policies[p], w, (int(seeds[i]),)), frames=True)[0].frames) for w in worlds]
        ends = ", ".join(f"{w} {how[bool(won[p, i])]}" for w, won in zip(worlds, (first, second), strict=True))
        page.videos_side_by_side(videos, fps, f"{policies[p]}, start {seeds[i]}: {ends}")


def correlation_figure(each: Sequence[dict[str, Any]], worlds: Sequence[str]) -> Any:
    """Success in one world against success in the other, with error bars."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(6.4, 5.6), layout="constrained")
    axes = figure.subplots()
    axes.plot([0, 1], [0, 1], color="0.7", linewidth=1, zorder=0)
    for k, one in enumerate(each):
        x, y = (one[w]["success_rate"] for w in worlds)
        bars = [
            [[one[w]["success_rate"] - one[w]["ci_low"]], [one[w]["ci_high"] - one[w]["success_rate"]]] for w in worlds
        ]
        axes.errorbar(
            x, y, xerr=bars[0], yerr=bars[1], fmt="os^v"[k // 10 % 4], markersize=5, linewidth=1,
            color=f"C{k % 10}", label=one["policy"],
        )  # fmt: skip
    axes.set(
        xlabel=f"{worlds[0]} success", ylabel=f"{worlds[1]} success", xlim=(-0.03, 1.03), ylim=(-0.03, 1.03),
        aspect="equal",
    )  # fmt: skip
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(fontsize=7, frameon=False, loc="upper left", bbox_to_anchor=(1, 1))
    return figure


def write_trials(folder: RunFolder, answer: dict[str, Any]) -> None:
    """``report.html`` of real trials beside dreams, from :func:`imagine.agents.trials.compare`'s answer."""
    page = Report("Do dreams tell what the real trials tell?", "Intervals are 95 %; n counts real trials.")
    page.text(f"The judge is {answer['judge']}, the dream's fidelity {answer['fidelity']}. Read it with both in mind.")
    _warned(page, answer)
    page.section("Success")
    headers = ["policy", "real", "imagined, same starts", "imagined less real", "same outcome", "real by PPI++"]
    keys = ("real", "imagined", "difference", "same_outcome", "ppi")
    rows = [[one["policy"], *(number(one[k]) for k in keys)] for one in answer["policies"]]
    page.table(headers, rows, "PPI++ also counts starts that were only dreamt; without any it is left out.")
    page.section("Agreement", f"Over all policies, on {answer['starts']} starts that each of them tried.")
    measures = [[name, number(x)] for name, x in answer["agreement"].items()]
    page.table(["measure", "value"], measures, "See agents/agreement.py.")
    page.write(folder / "report.html")
