"""Measures the shipped model with the commands of the README and writes what they print beside it.

``python benchmarks/results.py`` runs each command below, collects its JSON into ``metrics.json`` of the model's folder,
and renews the results table of the README. Seeds from 900000 on: nothing shipped was trained or tuned on them.
"""

from __future__ import annotations

import argparse
import json
import re
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parent.parent
MODEL = "g1-table-tiny"
COMMANDS = {
    "fidelity": "evaluate world-model --seed 950000 --episodes 120 --windows 800 --chunks 4",
    "objects": "evaluate world-model --objects --rollouts 96 --seed 900000",
    "expert": "evaluate --policy expert --world sim --episodes 100 --seed 900000",
    "real": "evaluate --policy base --world sim --episodes 200 --seed 900000",
    "imagined": "evaluate --policy base --world imagined --episodes 200 --seed 900000",
    "random_real": "evaluate --policy random --world sim --episodes 100 --seed 900000",
    "random_imagined": "evaluate --policy random --world imagined --episodes 100 --seed 900000",
    "told_colour": "evaluate --policy base --world sim --swap-instruction colour --episodes 100 --seed 900000",
    "told_colour_on": "evaluate --policy base --world sim --swap-instruction colour --until-horizon --episodes 100 "
    "--seed 900000",
    "told_task": "evaluate --policy base --world sim --swap-instruction task --episodes 100 --seed 900000",
    "zoo": "evaluate --zoo --episodes 200 --seed 980000",
    "zoo_8": "evaluate --zoo --episodes 100 --seed 900000 --horizon 8",
    "plan": "plan --policy base --candidates 8 --compare --episodes 200 --seed 900000",
    "plan_base": "plan --policy base --horizon 1 --candidates 8 --compare --episodes 200 --seed 900000",
    "improve": "finetune rl --preset nft --set look_every=100 --seed 1",
    "bench": "evaluate speed",
    "calibrate": "evaluate judge",
}


NAMES = ("auroc", "ece", "fpr", "fnr")


def measure(name: str) -> dict:
    """Run one command and return its JSON, with the commit that it was measured at as ``measured_at``."""
    line = COMMANDS[name].split()
    print(f"imagine {' '.join(line)}", file=sys.stderr)
    done = subprocess.run(
        [sys.executable, "-m", "imagine.configs.cli", *line, "--json"],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        text=True,
        check=True,
    )
    commit = subprocess.run(["git", "rev-parse", "--short", "HEAD"], cwd=ROOT, stdout=subprocess.PIPE, text=True)
    return {**json.loads(done.stdout), "measured_at": commit.stdout.strip()}


def rate(result: dict) -> str:
    """A success rate with its interval, in percent."""
    low, high = 100 * result["ci_low"], 100 * result["ci_high"]
    return f"{100 * result['success_rate']:.3g} % [{low:.0f}, {high:.0f}]"


def points(gain: dict) -> str:
    """A difference of rates with its interval, in points."""
    return f"{100 * gain['value']:+.0f} [{100 * gain['ci_low']:+.0f}, {100 * gain['ci_high']:+.0f}]"


def decibels(gain: dict) -> str:
    """A gain in dB with its interval."""
    return f"{gain['value']:+.1f} dB [{gain['ci_low']:+.1f}, {gain['ci_high']:+.1f}]"


def interval(x: dict) -> str:
    """A value with its interval."""
    return f"{x['value']:.2f} [{x['ci_low']:.2f}, {x['ci_high']:.2f}]"


def three(x: dict) -> str:
    """A value with its interval, three digits; a correlation with what never changes is none."""
    if x["value"] is None:
        return "none"
    return f"{x['value']:.3f} [{x['ci_low']:.3f}, {x['ci_high']:.3f}]"


def objects_of(m: dict) -> list[tuple[str, str]]:
    """The README's lines about objects: the dream beside a frozen first picture, no tokens, and the codec alone."""
    kinds = {"dream": "dream", "frozen": "frozen picture", "without_tokens": "without tokens", "codec": "codec"}

    def line(x: dict) -> str:
        return "; ".join(f"{name} {interval(x[k])}" for k, name in kinds.items() if k in x)

    things = ("target, never covered", "target, moved", "target, covered before", "target, back after 3 chunks")
    lines = [(f"… {what}", line(m["painted"][what])) for what in things if what in m["painted"]]
    lines[0] = (f"painted where it is over {m['chunks']} chunks, n = {m['n']} rollouts: {things[0]}", lines[0][1])
    db, last = m[f"db at chunk {m['chunks']}"], m["chunks"]
    lines += [(f"dreams with any object fault {w} chunks", line(x)) for w, x in m["any fault"].items()]
    lines.append((f"target at chunk {last}, dB", line(db["target"])))
    ratio = m["error_without_tokens"]
    lines.append(("squared error without the transformer's tokens, times", ", ".join(
        f"{what} {interval(ratio[what])}" for what in ("all", "target")
    )))  # fmt: skip
    for judge, shown in m.get("judges", {}).items():
        told = "; ".join(
            f"{what} {x['agreement'][2]['value']:.2f} / {x['agreement'][-1]['value']:.2f}"
            for what, x in shown.items() if isinstance(x, dict) and "agreement" in x
        )  # fmt: skip
        lines.append((f"`{judge}` agrees with the simulator by chunk 3 / {last}, of", told))
    return lines


def rows_of(name: str, m: dict) -> list[tuple[str, str]]:
    """The README's lines about one command's result."""
    if name == "fidelity":
        chunks = " ".join(f"{a:.1f} ({b:.1f})" for a, b in zip(m["horizon_psnr"], m["horizon_copy"], strict=True))
        others = f"{m['psnr_shuffled']:.1f} / {m['psnr_copy']:.1f} / {m['psnr_codec']:.1f} dB"
        return [
            (f"one chunk (0.8 s), dream against reality, n = {m['n']}", f"{m['psnr_true']:.1f} dB"),
            ("… under shuffled actions / still frame / codec alone", others),
            ("… gain over a still frame", decibels(m["gain_over_copy"])),
            ("… gain over shuffled actions", decibels(m["gain_over_shuffled"])),
            (
                "R² of actions read from real / imagined frames",
                f"{m['inverse_r2']:.2f} / {m['inverse_r2_imagined']:.2f}",
            ),
            ("policy error, right / wrong instruction", f"{m['policy_rms']:.2f} / {m['policy_rms_wrong']:.2f}"),
            ("own imagination, chunk 1 to 4 (still frame)", f"{chunks} dB"),
        ]
    if name == "objects":
        return objects_of(m)
    if name == "improve":
        tasks = ", ".join(f"{k.replace('_', ' ')} {points(v)}" for k, v in m["gain_per_task"].items())
        ratio, n = m.get("imagined_over_sim_gain", m.get("imagined_over_real_gain")), m["before"]["n"]
        return [
            (f"`base` → improved in the dream, real, n = {n}", f"{rate(m['before'])} → {rate(m['after'])}"),
            ("… paired difference, points", f"{points(m['gain'])}; {tasks}"),
            ("… the same in the dream", f"{rate(m['imagined_before'])} → {rate(m['imagined_after'])}"),
            ("… imagined gain / real gain", f"{points(m['imagined_gain'])} / {points(m['gain'])} = {ratio:.2f}"),
        ]
    if name in ("zoo", "zoo_8"):
        names = {"pearson": "Pearson's r", "spearman": "Spearman's ρ", "mmrv": "MMRV", "pairs": "pairs ordered alike"}
        names |= {"bias": "bias", "same_outcome": "same outcome per episode"} if "frozen" in m else {}
        title = f"imagined against real success of {len(m['policies'])} policies, n = {m['n']} starts each, 3 chunks"
        found = {title if name == "zoo" else "… within 8 chunks, other starts": m}
        found |= {"… of a frozen picture, by the same judge": m["frozen"]} if "frozen" in m else {}
        return [
            (
                line,
                ", ".join(f"{what} {three(x[k])}" for k, what in names.items()),
            )
            for line, x in found.items()
        ]
    if name in ("plan", "plan_base"):
        who = "`base`" if name == "plan" else "`base`, within 0.8 s"
        cost = f"{m['ms_per_decision'] / m['ms_alone']:.0f} times the time of one chunk, 16 environments at once"
        return [
            (f"{who}, one sample → best of 8, real, n = {m['n']}", f"{rate(m['alone'])} → {rate(m)}"),
            ("… paired difference, points", f"{points(m['gain'])}; {cost}"),
        ]
    if name == "bench":
        speed = ", ".join(f"{v:g} at {k}" for k, v in m["env_steps_per_s"].items())
        return [
            ("chunks per second of the dream, by environments", f"{speed} ({m['threads']} threads)"),
        ]
    if name == "calibrate":
        lines = []
        for kind, what in (("real", "judge, real clips"), ("imagined", "judge, imagined rollouts")):
            k = m[kind]
            parts = [f"{n.upper()} {k[n]:.3f} [{k[n + '_ci'][0]:.3f}, {k[n + '_ci'][1]:.3f}]" for n in NAMES]
            lines.append((f"{what}, n = {k['n']}", ", ".join(parts)))
        old = "exploitability_floor" in m  # as versions before 0.2 wrote it
        low, high = m["exploitability_ci" if old else "false_positive_rate_ci"]
        share = f"{m['exploitability_floor' if old else 'false_positive_rate']:.3f} [{low:.3f}, {high:.3f}]"
        n = m["canaries" if old else "negative_controls"]["n"]
        return [*lines, (f"false positives, n = {n} negative controls", share)]
    titles = {
        "expert": "scripted expert, real",
        "real": "base policy, real",
        "imagined": "base policy, imagined, same starts",
        "random_real": "random actions, real",
        "random_imagined": "… imagined, same starts",
        "told_colour": "base policy, real, told the other block's colour",
        "told_colour_on": "… and acting on after it has done what it was told",
        "told_task": "base policy, real, told another task",
    }
    tasks = ", ".join(f"{k.replace('_', ' ')} {100 * v['success_rate']:.0f}" for k, v in m["per_task"].items())
    return [(f"{titles[name]}, n = {m['n']}", f"{rate(m)}; {tasks}")]


def table(metrics: dict) -> str:
    """The README's results table, of what has been measured; what has not since noise is derived anew has a dagger."""
    lines = ["| what | measured | command |", "|---|---|---|"]
    for name, line in COMMANDS.items():
        for i, (what, value) in enumerate(rows_of(name, metrics[name]) if name in metrics else []):
            mark = "" if "measured_at" in metrics[name] else " †"
            lines.append(f"| {what}{mark} | {value} | {'' if i else f'`imagine {line}`'} |")
    return "\n".join(lines) + "\n"


def zoo_table(metrics: dict) -> str:
    """The zoo of docs/evaluate.md: every policy in both worlds, within 3 chunks and within 8, beside a frozen dream."""
    zoos = {chunks: metrics[name] for name, chunks in (("zoo", 3), ("zoo_8", 8)) if name in metrics}
    heads = [f"{what}, {n} chunks" for n in zoos for what in ("real", "imagined", "same outcome")]
    lines = [f"| policy | {' | '.join(heads)} |", "|---" * (1 + len(heads)) + "|"]
    for each in zip(*(zoo["policies"] for zoo in zoos.values()), strict=True):
        cells = [x for one in each for x in (rate(one["sim"]), rate(one["imagined"]), f"{one['same_outcome']:.2f}")]
        lines.append(f"| `{each[0]['policy']}` | {' | '.join(cells)} |")
    for k in ("pearson", "spearman", "kendall", "mmrv", "pairs", "regret", "bias", "rmse", "same_outcome"):
        cells = [cell for zoo in zoos.values() for cell in (three(zoo[k]), f"frozen: {three(zoo['frozen'][k])}", "")]
        lines.append(f"| {k.replace('_', ' ')} | {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def renew(path: Path, mark: str, body: str) -> None:
    """Put a table between its marks in a page."""
    text = f"<!-- {mark} -->\n{body}<!-- /{mark} -->"
    path.write_text(re.sub(rf"<!-- {mark} -->.*?<!-- /{mark} -->", lambda _: text, path.read_text(), flags=re.S))


def read(path: Path) -> dict:
    """What has been measured so far; others may be measuring beside us."""
    return json.loads(path.read_text()) if path.is_file() else {}


def main() -> None:
    """Measure what was asked for (by default everything) and renew metrics and README."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("names", nargs="*", help=f"some of {', '.join(COMMANDS)}; tables renews the pages alone")
    folder = ROOT / "imagine" / "checkpoints" / MODEL
    path = folder / "metrics.json"
    names = parser.parse_args().names
    for name in [] if names == ["tables"] else names or COMMANDS:
        found = measure(name)
        found.get("frozen", {}).pop("policies", None)  # all alike
        path.write_text(json.dumps({**read(path), name: found}, indent=1))
    metrics = read(path)
    renew(ROOT / "README.md", "results", table(metrics))
    if {"zoo", "zoo_8"} & metrics.keys():
        renew(ROOT / "docs" / "evaluate.md", "zoo", zoo_table(metrics))


if __name__ == "__main__":
    main()
