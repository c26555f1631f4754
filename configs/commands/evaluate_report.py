"""What ``imagine evaluate`` answers and shows: rates with intervals, both worlds beside each other, disagreements."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from imagine.agents.agreement import agreement
from imagine.agents.evaluate import Part, outcomes, summarise
from imagine.agents.statistics import Interval, mcnemar, paired_difference
from imagine.configs.report import Report
from imagine.configs.runfolder import RunFolder

FEWEST = 3
"""Policies below which a correlation says nothing."""


def plain(x: Interval) -> dict[str, Any]:
    """An interval as JSON has it."""
    return {"value": round(x.value, 4), "ci_low": round(x.low, 4), "ci_high": round(x.high, 4)}


def answer_of(
    args: Any, policies: Sequence[str], worlds: Sequence[str], seeds: Sequence[int], table: Any, trust: dict[str, Any]
) -> dict[str, Any]:
    """The JSON answer.

    One policy in one world is told at the top level, as it always was; several of either under ``policies``. From three
    policies in two worlds on, each measure of agreement has a key of its own.
    """
    each = []
    data = table.to_pydict()
    of = np.array(data["policy"]), np.array(data["world"])
    won, task = np.array(data["success"], bool), np.array(data["task"])
    for policy in policies:
        one: dict[str, Any] = {"policy": policy}
        for world in worlds:
            rows = (of[0] == policy) & (of[1] == world)
            one[world] = summarise(won[rows], task[rows])
        if len(worlds) == 2:
            true, dreamt = (outcomes(table, [policy], w, seeds)[0] for w in worlds)
            one["difference"] = plain(paired_difference(dreamt, true))
            one["same_outcome"] = round(float((true == dreamt).mean()), 4)
        each.append(one)
    if len(policies) == len(worlds) == 1:
        found = {"policy": policies[0], "world": worlds[0], "told": args.told, **each[0][worlds[0]]}
    else:
        found = {"worlds": list(worlds), "policies": each, "n": len(seeds)}
    if len(worlds) == 2 and len(policies) >= FEWEST:
        measured = agreement(*(outcomes(table, policies, w, seeds) for w in worlds))
        found |= {name: plain(x) for name, x in measured.items()}
    if len(policies) == 2:  # compared with each other, on the same starts
        found["second_less_first"] = {}
        for world in worlds:
            first, second = outcomes(table, policies, world, seeds)
            found["second_less_first"][world] = {
                **plain(paired_difference(second, first)),
                "p": round(mcnemar(second, first), 5),
            }
    return {**found, "seed": args.seed, **trust}


def write_report(
    args: Any, folder: RunFolder, worker: Any, policies: Sequence[str], worlds: Sequence[str],
    seeds: Sequence[int], table: Any, answer: dict[str, Any],
) -> None:  # fmt: skip
    """``report.html`` in the run folder, and ``agreement.png`` where two worlds are compared."""
    each = answer.get("policies") or [{"policy": policies[0], worlds[0]: answer}]
    page = Report("How good are these policies?", f"{len(seeds)} starts from seed {args.seed}; intervals are 95 %.")
    if "judge" in answer:
        page.text(
            f"Imagined success is what judge {answer['judge']} says of dreams whose fidelity is {answer['fidelity']}. "
            "Read it with both in mind."
        )
    page.section("Success")
    headers = ["policy", *(f"{w} success" for w in worlds)]
    rows = [[one["policy"], *(_rate(one[w]) for w in worlds)] for one in each]
    if len(worlds) == 2:
        headers += [f"{worlds[1]} less {worlds[0]}", "same outcome on the same start"]
        for line, one in zip(rows, each, strict=True):
            line += [_points(one["difference"]), f"{one['same_outcome']:.0%}"]
    page.table(headers, rows)
    tasks = sorted({t for one in each for w in worlds for t in one[w]["per_task"]})
    page.table(
        ["policy", "world", *tasks],
        [
            [one["policy"], w, *(_rate(one[w]["per_task"][t]) if t in one[w]["per_task"] else "" for t in tasks)]
            for one in each
            for w in worlds
        ],
        "By task.",
    )
    if len(worlds) == 2:
        if "pearson" in answer:
            page.section("Does imagination agree with the truth?")
            names = ("pearson", "spearman", "kendall", "mmrv", "pairs", "regret", "bias", "rmse")
            page.table(
                ["measure", "value", "95 % interval"],
                [[n, answer[n]["value"], f"{answer[n]['ci_low']} to {answer[n]['ci_high']}"] for n in names],
                "Resampling starts; see agents/agreement.py.",
            )
        picture = correlation_figure(each, worlds)
        picture.savefig(folder / "agreement.png", dpi=130)
        page.figure(picture, "Each point is a policy; on the line dream and truth agree.")
        if args.films:
            _films(page, args, worker, policies, worlds, seeds, table)
    page.write(folder / "report.html")


def write_trials(folder: RunFolder, answer: dict[str, Any]) -> None:
    """``report.html`` of real trials beside dreams, from :func:`imagine.agents.trials.compare`'s answer."""
    page = Report("Do dreams tell what the real trials tell?", "Intervals are 95 %; n counts real trials.")
    page.text(f"The judge is {answer['judge']}, the dream's fidelity {answer['fidelity']}. Read it with both in mind.")
    page.section("Success")
    headers = ["policy", "real", "imagined, same starts", "imagined less real", "same outcome", "real by PPI++"]
    keys = ("real", "imagined", "difference", "same_outcome", "ppi")
    rows = [[one["policy"], *(_with_interval(one[k]) for k in keys)] for one in answer["policies"]]
    page.table(headers, rows, "PPI++ also counts starts that were only dreamt; without any it is left out.")
    page.section("Agreement", f"Over all policies, on {answer['starts']} starts that each of them tried.")
    measures = [[name, _with_interval(x)] for name, x in answer["agreement"].items()]
    page.table(["measure", "value"], measures, "See agents/agreement.py.")
    page.write(folder / "report.html")


def _with_interval(x: dict[str, Any] | None) -> str:
    return "" if x is None else f"{x['value']:.3g} [{x['ci_low']:.3g}, {x['ci_high']:.3g}] n={x['n']}"


def correlation_figure(each: Sequence[dict[str, Any]], worlds: Sequence[str]) -> Any:
    """Success in one world against success in the other, with error bars."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(6.4, 5.6), layout="constrained")
    axes = figure.subplots()
    axes.plot([0, 1], [0, 1], color="0.7", linewidth=1, zorder=0)
    for k, one in enumerate(each):
        at = [one[w]["success_rate"] for w in worlds]
        bars = [
            [[one[w]["success_rate"] - one[w]["ci_low"]], [one[w]["ci_high"] - one[w]["success_rate"]]] for w in worlds
        ]
        axes.errorbar(
            at[0], at[1], xerr=bars[0], yerr=bars[1], fmt="os^v"[k // 10 % 4], markersize=5, linewidth=1,
            color=f"C{k % 10}", label=f"{one['policy']}",
        )  # fmt: skip
    axes.set(
        xlabel=f"{worlds[0]} success", ylabel=f"{worlds[1]} success", xlim=(-0.03, 1.03), ylim=(-0.03, 1.03),
        aspect="equal",
    )  # fmt: skip
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(fontsize=7, frameon=False, loc="upper left", bbox_to_anchor=(1, 1))
    return figure


def _films(
    page: Report, args: Any, worker: Any, policies: Sequence[str], worlds: Sequence[str], seeds: Sequence[int],
    table: Any,
) -> None:  # fmt: skip
    """Episodes that ended differently in the two worlds, side by side; one per policy first."""
    if "recorded" in worlds:  # what was recorded is the dataset's to show
        return
    true, dreamt = (outcomes(table, policies, w, seeds) for w in worlds)
    apart = [np.flatnonzero(true[p] != dreamt[p]) for p in range(len(policies))]
    wanted = [(p, int(at[k])) for k in range(args.films) for p, at in enumerate(apart) if len(at) > k][: args.films]
    if not wanted:
        return
    body = worker.body
    page.section("Where they disagree", "The same policy from the same start, acting in each world.")
    for p, i in wanted:
        films = [(w, worker.episodes(Part(policies[p], w, (int(seeds[i]),)), frames=True)[0].frames) for w in worlds]
        how = {True: "done", False: "not done"}
        page.videos_side_by_side(
            films, body.control_hz / body.frame_stride,
            f"{policies[p]}, start {seeds[i]}: {worlds[0]} {how[bool(true[p, i])]}, "
            f"{worlds[1]} {how[bool(dreamt[p, i])]}",
        )  # fmt: skip


def _rate(x: dict[str, Any]) -> str:
    return f"{x['success_rate']:.0%} [{x['ci_low']:.0%}, {x['ci_high']:.0%}] n={x['n']}"


def _points(x: dict[str, Any]) -> str:
    return f"{100 * x['value']:+.0f} [{100 * x['ci_low']:+.0f}, {100 * x['ci_high']:+.0f}]"
