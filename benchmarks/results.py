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
    "fidelity": "fidelity --seed 950000 --episodes 120 --windows 800 --chunks 4",
    "expert": "evaluate --policy expert --world real --episodes 100 --seed 900000",
    "real": "evaluate --policy base --world real --episodes 200 --seed 900000",
    "imagined": "evaluate --policy base --world imagined --episodes 200 --seed 900000",
    "told_colour": "evaluate --policy base --world real --told colour --episodes 100 --seed 900000",
    "told_task": "evaluate --policy base --world real --told task --episodes 100 --seed 900000",
    "plan_1": "plan --candidates 1 --episodes 100 --seed 900000",
    "plan_8": "plan --candidates 8 --episodes 100 --seed 900000",
    "improve": "improve --test-episodes 100 --test-seed 900000",
    "bench": "bench",
}


def measure(name: str) -> dict:
    """Run one command and return its JSON."""
    line = COMMANDS[name].split()
    print(f"imagine {' '.join(line)}", file=sys.stderr)
    done = subprocess.run(
        [sys.executable, "-m", "configs.cli", *line, "--json"], cwd=ROOT, stdout=subprocess.PIPE, text=True, check=True
    )
    return json.loads(done.stdout)


def rate(result: dict) -> str:
    """A success rate with its interval, in percent."""
    low, high = 100 * result["ci_low"], 100 * result["ci_high"]
    return f"{100 * result['success_rate']:.0f} % [{low:.0f}, {high:.0f}]"


def decibels(gain: dict) -> str:
    """A gain in dB with its interval."""
    return f"{gain['value']:+.1f} dB [{gain['ci_low']:+.1f}, {gain['ci_high']:+.1f}]"


def table(metrics: dict) -> str:
    """The README's results table."""
    f = metrics["fidelity"]
    gain = metrics["improve"]["gain"]
    chunks = " ".join(f"{a:.1f} ({b:.1f})" for a, b in zip(f["horizon_psnr"], f["horizon_copy"], strict=True))
    rows = [
        ("one chunk (0.8 s), dream against reality", f"{f['psnr_true']:.1f} dB", "fidelity"),
        ("… under shuffled actions / still frame / codec alone",
         f"{f['psnr_shuffled']:.1f} / {f['psnr_copy']:.1f} / {f['psnr_codec']:.1f} dB", "fidelity"),
        ("… gain over a still frame", decibels(f["gain_over_copy"]), "fidelity"),
        ("… gain over shuffled actions", decibels(f["gain_over_shuffled"]), "fidelity"),
        ("actions read back: R² from real / imagined frames",
         f"{f['inverse_r2']:.2f} / {f['inverse_r2_imagined']:.2f}", "fidelity"),
        ("own imagination, chunk 1 … 4 (still frame)", f"{chunks} dB", "fidelity"),
        ("scripted expert, real", rate(metrics["expert"]), "expert"),
        ("base policy, real", rate(metrics["real"]), "real"),
        ("base policy, imagined, same starts", rate(metrics["imagined"]), "imagined"),
        ("… told the other block's colour", rate(metrics["told_colour"]), "told_colour"),
        ("… told another task", rate(metrics["told_task"]), "told_task"),
        ("one sample / best of 8, real", f"{rate(metrics['plan_1'])} / {rate(metrics['plan_8'])}", "plan_8"),
        ("improved in the dream, real, before → after",
         f"{rate(metrics['improve']['before'])} → {rate(metrics['improve']['after'])}", "improve"),
        ("… paired difference",
         f"{100 * gain['value']:+.0f} points [{100 * gain['ci_low']:+.0f}, {100 * gain['ci_high']:+.0f}]", "improve"),
    ]  # fmt: skip
    per_task = "; ".join(f"{k.replace('_', ' ')} {rate(v)}" for k, v in metrics["real"]["per_task"].items())
    lines = ["| what | measured | command |", "|---|---|---|"]
    lines += [f"| {what} | {value} | `imagine {COMMANDS[name]}` |" for what, value, name in rows]
    return "\n".join(lines) + f"\n\nBase policy per task, real: {per_task}.\n"


def main() -> None:
    """Measure what was asked for (by default everything) and renew metrics and README."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("names", nargs="*", help=f"some of {', '.join(COMMANDS)}")
    folder = ROOT / "imagine" / "checkpoints" / MODEL
    path = folder / "metrics.json"
    metrics = json.loads(path.read_text()) if path.is_file() else {}
    for name in parser.parse_args().names or COMMANDS:
        metrics[name] = measure(name)
        path.write_text(json.dumps(metrics, indent=1))
    if all(name in metrics for name in COMMANDS):
        readme = ROOT / "README.md"
        body = f"<!-- results -->\n{table(metrics)}<!-- /results -->"
        readme.write_text(
            re.sub(r"<!-- results -->.*?<!-- /results -->", lambda _: body, readme.read_text(), flags=re.S)
        )


if __name__ == "__main__":
    main()
