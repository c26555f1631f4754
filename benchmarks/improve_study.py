"""Every algorithm at an equal budget of imagined episodes: what it is worth on the simulator.

``python benchmarks/improve_study.py`` trains each recipe with each seed (a finished run is kept, a killed one goes on),
evaluates every adapter on the same simulated starts, and writes ``docs/improve.json`` and the table in
``docs/improve.md``. Starts from 900000 on; none of them was learnt from or tuned on.
"""

from __future__ import annotations

import argparse
import json
import re
import subprocess
import sys
from pathlib import Path

import numpy as np

from imagine.agents.evaluate import evaluate
from imagine.agents.statistics import Interval, mean_interval
from imagine.configs import build
from imagine.configs.policies import load_policy

ROOT = Path(__file__).parent.parent
MODEL = "g1-table-tiny"
RECIPES = {"DiffusionNFT": "nft", "filtered BC": "filtered-bc"}
"""Name and preset; all else is the same for all."""
BUDGET = ["--set", "look_every=100,updates=3"]
"""What ``imagine finetune rl`` is told; looks at the beginning and the end alone save time."""


def train(preset: str, seed: int, folder: Path) -> dict:
    """Run ``imagine finetune rl`` unless it is finished."""
    if not (folder / "metrics.json").is_file():
        line = ["finetune", "rl", "--preset", preset, *BUDGET, "--seed", str(seed), "--test-episodes", "0"]
        command = [sys.executable, "-m", "imagine.configs.cli", *line, "--out", str(folder)]
        subprocess.run(command, cwd=ROOT, check=True, stdout=subprocess.DEVNULL)
    return json.loads((folder / "metrics.json").read_text())


def outcomes(loaded: build.Loaded, policy: str, world: str, episodes: int, kept: Path) -> tuple[np.ndarray, np.ndarray]:
    """(episodes,) bool success and their tasks; kept in a file."""
    if not kept.is_file():
        envs = build.parallel_envs(loaded, world, 20 if world == "sim" else 50)
        seeds = range(900_000, 900_000 + episodes)
        acts = load_policy(policy, loaded.model, loaded.folder)
        _, records = evaluate(envs, acts, seeds, task_of=loaded.robot.task_of)
        found = {"success": [bool(r.success) for r in records]}
        found["task"] = [loaded.robot.task_of(r.instruction) for r in records]
        kept.write_text(json.dumps(found))
    found = json.loads(kept.read_text())
    return np.array(found["success"], bool), np.array(found["task"])


def gain(after: list[np.ndarray], before: list[np.ndarray], some: np.ndarray) -> Interval:
    """Mean difference over seeds and some starts; a start is one cluster, whatever the seed."""
    pairs = zip(after, before, strict=True)
    difference = np.concatenate([(a.astype(float) - b)[some] for a, b in pairs])
    return mean_interval(difference, np.tile(np.arange(some.sum()), len(after)))


def points(x: Interval) -> str:
    """A difference in points with its interval."""
    return f"{100 * x.value:+.0f} [{100 * x.low:+.0f}, {100 * x.high:+.0f}]"


def main() -> None:
    """Train, evaluate, write."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--runs", type=Path, default=ROOT / "runs" / "improve-study")
    parser.add_argument("--seeds", type=int, nargs="+", default=[1, 2, 3])
    parser.add_argument("--episodes", type=int, default=100)
    parser.add_argument("--imagined", type=int, default=100, help="episodes in the dream; 0 leaves them out")
    parser.add_argument("--recipes", nargs="+", choices=list(RECIPES), default=list(RECIPES))
    parser.add_argument("--finished", action="store_true", help="evaluate finished runs, train nothing")
    args = parser.parse_args()
    args.runs.mkdir(parents=True, exist_ok=True)
    loaded, real = build.load(MODEL), dict[str, list[np.ndarray]]()
    worlds = {"sim": args.episodes} | ({"imagined": args.imagined} if args.imagined else {})
    base = {w: outcomes(loaded, "base", w, n, args.runs / f"base-{w}-{n}.json") for w, n in worlds.items()}
    tasks = sorted(set(base["sim"][1].tolist()))
    lines = [f"| policy | success per seed | gain over base | {' | '.join(tasks)} | imagined gain | KL |"]
    lines += ["|---" * (5 + len(tasks)) + "|"]
    report: dict[str, dict] = {"base": {w: float(x.mean()) for w, (x, _) in base.items()}}
    lines.append(f"| base | {100 * base['sim'][0].mean():.0f} % | | {' | '.join(_rates(*base['sim'], tasks))} | | 0 |")
    for name in args.recipes:
        folders = [args.runs / f"{RECIPES[name]}-{seed}" for seed in args.seeds]
        if args.finished:
            folders = [f for f in folders if (f / "metrics.json").is_file()]
        told = [train(RECIPES[name], seed, folder) for seed, folder in zip(args.seeds, folders, strict=False)]
        if not folders:
            continue
        found = {
            w: [outcomes(loaded, str(f / "adapter"), w, n, f / f"{w}-{n}.json")[0] for f in folders]
            for w, n in worlds.items()
        }
        real[name] = found["sim"]
        every = {w: gain(x, [base[w][0]] * len(x), np.ones(worlds[w], bool)) for w, x in found.items()}
        each = [gain(real[name], [base["sim"][0]] * len(folders), base["sim"][1] == task) for task in tasks]
        rates, kl = [float(x.mean()) for x in real[name]], [row["curve"][-1]["kl"] for row in told]
        lines.append(
            f"| {name} | {', '.join(f'{100 * r:.0f}' for r in rates)} % | **{points(every['sim'])}** "
            f"| {' | '.join(points(x) for x in each)} "
            f"| {points(every['imagined']) if 'imagined' in every else ''} | {', '.join(f'{x:.1f}' for x in kl)} |"
        )
        report[name] = {"per_seed": rates, "kl": kl, **{f"gain_{w}": x.__dict__ for w, x in every.items()}}
        report[name] |= {"gain_per_task": {t: x.__dict__ for t, x in zip(tasks, each, strict=True)}}
    if len(real) == 2:
        n = min(map(len, real.values()))
        first, second = (x[:n] for x in real.values())
        over = gain(first, second, np.ones(args.episodes, bool))
        report["over_filtered_bc"] = over.__dict__ | {"seeds": n}
        lines += ["", f"{' over '.join(real)}, {n} seeds: {points(over)}."]
    (ROOT / "docs" / "improve.json").write_text(json.dumps(report, indent=1) + "\n")
    page = ROOT / "docs" / "improve.md"
    body = "<!-- study -->\n" + "\n".join(lines) + "\n<!-- /study -->"
    page.write_text(re.sub("<!-- study -->.*?<!-- /study -->", lambda _: body, page.read_text(), flags=re.S))


def _rates(success: np.ndarray, task: np.ndarray, tasks: list[str]) -> list[str]:
    return [f"{100 * success[task == t].mean():.0f} %" for t in tasks]


if __name__ == "__main__":
    main()
