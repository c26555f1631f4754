"""Do agents of stock libraries get better in the dream, from one command each, and is it true on the simulator?

``python benchmarks/stock.py`` runs each command below with each seed on four scenes of its own (a finished run is
kept), and writes ``docs/stock.json`` and the table in ``docs/improve.md``. Scenes are starts from 900000 on; before and
after are tested on the same starts, dream noise and draws, none of which was learnt from. Settings were chosen on the
scenes 850000 to 850003, but for one exception that the page names.
"""

from __future__ import annotations

import argparse
import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np

from imagine.agents.statistics import Interval, mean_interval

ROOT = Path(__file__).parent.parent
SCENES = 4
COMMANDS = {
    "Stable-Baselines3 PPO": "--with sb3-ppo",
    "Stable-Baselines3 SAC in noise": "--with sb3-sac-noise",
    "RLlib PPO, two local Ray nodes": "--with rllib-ppo --runners 2 --nodes 2 --num-envs 8",
}
"""Name, and what ``imagine finetune steer`` is told."""


def words(name: str, seed: int) -> list[str]:
    """All that ``imagine finetune steer`` is told; every seed has scenes of its own."""
    first = 900_000 + SCENES * (seed - 1)
    return [*COMMANDS[name].split(), "--scenes", str(SCENES), "--test-seed", str(first), "--seed", str(seed)]


def learn(name: str, seed: int, runs: Path) -> dict[str, Any]:
    """What ``imagine finetune steer`` measured; it runs unless it has."""
    folder = runs / f"{re.sub(r'[^a-z0-9]+', '-', name.lower()).strip('-')}-{seed}"
    if not (folder / "metrics.json").is_file():
        line = ["finetune", "steer", *words(name, seed), "--out", str(folder)]
        subprocess.run(
            [sys.executable, "-m", "imagine.configs.cli", *line], cwd=ROOT, check=True, stdout=subprocess.DEVNULL
        )
    return json.loads((folder / "metrics.json").read_text())


def pooled(runs: list[dict[str, Any]], where: str) -> Interval:
    """Mean gain over seeds and their scenes; a scene is one cluster, since its episodes are alike."""
    told = [run[where]["each"] for run in runs]
    gains = [np.subtract(t["after"], t["before"]) for t in told]
    scenes = [SCENES * i + np.arange(len(g)) % SCENES for i, g in enumerate(gains)]
    return mean_interval(np.concatenate(gains), np.concatenate(scenes))


def shares(runs: list[dict[str, Any]], where: str) -> str:
    """Mean per seed, before and after, times 100: a return is a success here, since nothing else is paid for."""
    told = [run[where]["each"] for run in runs]
    return ", ".join(f"{100 * np.mean(t['before']):.0f} → {100 * np.mean(t['after']):.0f}" for t in told)


def row(name: str, runs: list[dict[str, Any]]) -> str:
    """One line of the table."""
    gains = [pooled(runs, where) for where in ("return", "sim")]
    told = [f"**{100 * g.value:+.0f} [{100 * g.low:+.0f}, {100 * g.high:+.0f}]**" for g in gains]
    minutes = np.mean([run["seconds"] for run in runs]) / 60
    cells = [name, shares(runs, "return"), told[0], shares(runs, "sim"), told[1], f"{minutes:.0f}"]
    return "| " + " | ".join(cells) + " |"


def main() -> None:
    """Learn, compare, write down."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, nargs="+", default=[1, 2, 3])
    parser.add_argument("--only", nargs="+", default=list(COMMANDS), choices=list(COMMANDS))
    parser.add_argument("--runs", type=Path, default=ROOT / "runs" / "stock")
    args = parser.parse_args()
    runs: dict[str, list[dict[str, Any]]] = {name: [] for name in args.only}
    for seed in args.seeds:  # one seed of every command before the next one: what is there early says most
        for name in args.only:
            runs[name].append(learn(name, seed, args.runs))
            print(row(name, runs[name]), file=sys.stderr, flush=True)
    lines = [
        "| `imagine finetune steer` | imagined return, per seed (× 100) | gain in points "
        "| the same on the simulator (%) | gain in points | minutes |",
        "|---|---|---|---|---|---|",
        *(row(name, own) for name, own in runs.items()),
    ]
    kept = {
        name: {
            "commands": [f"imagine finetune steer {' '.join(words(name, seed))}" for seed in args.seeds],
            **{where: vars(pooled(own, where)) for where in ("return", "sim")},
            **{f"{where}s": [run[where]["each"] for run in own] for where in ("return", "sim")},
            "seconds": [run["seconds"] for run in own],
        }
        for name, own in runs.items()
    }
    (ROOT / "docs" / "stock.json").write_text(json.dumps(kept, indent=1) + "\n")
    page = ROOT / "docs" / "improve.md"
    body = "<!-- stock -->\n" + "\n".join(lines) + "\n<!-- /stock -->"
    page.write_text(re.sub(r"<!-- stock -->.*?<!-- /stock -->", lambda _: body, page.read_text(), flags=re.S))
    print("\n".join(lines))


if __name__ == "__main__":
    main()
