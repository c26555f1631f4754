"""Every algorithm at an equal budget of imagined episodes: what it is worth on the real twin.

``python benchmarks/improve_study.py`` trains each recipe of a table below with each seed (a finished run is kept, a
killed one goes on), evaluates every adapter on the same real starts, and writes ``docs/improve.json`` and the table in
``docs/improve.md``. Starts from 900000 on; none of them was learnt from or tuned on. ``--table longer --seeds 1 2 3 4``
gives the first two twice the updates; ``--table horizon --seeds 1`` spends one budget of chunks on short episodes or on
long ones.
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
from imagine.agents.statistics import Interval, mean_interval, success_rate
from imagine.configs import build
from imagine.configs.policies import load_policy

ROOT = Path(__file__).parent.parent
MODEL = "g1-table-tiny"
TABLES = {
    "study": {
        "filtered BC": ("filtered-bc",),
        "DiffusionNFT": ("nft",),
        "AWR": ("awr",),
        "Flow-GRPO (CPS)": ("grpo",),
        "DiffusionNFT, baseline per start": ("nft", "baseline=group", "nft.pure=0.6"),
        "AWR, baseline per start": ("awr", "baseline=group"),
        "Flow-GRPO (CPS), baseline per start": ("grpo", "baseline=group", "lr=0.0002"),
        "DiffusionNFT, unguarded": ("nft", "--unguarded"),
    },
    "longer": {
        "filtered BC": ("filtered-bc", "updates=16"),
        "DiffusionNFT": ("nft", "updates=16"),
    },
    "horizon": {
        f"DiffusionNFT, {updates} updates of {chunks} chunks": (
            "nft", f"updates={updates}", f"first_horizon={chunks}", f"last_horizon={chunks}",
        )
        for chunks, updates in ((2, 12), (4, 6), (8, 3))
    },
}  # fmt: skip
"""Table, name, preset and what else ``imagine improve`` is told; all else is the same for all of a table."""


def options(recipe: tuple[str, ...]) -> list[str]:
    """Words after ``imagine improve``; looks at the beginning and the end alone save time and change nothing else."""
    preset, *more = recipe
    changes = ["look_every=100", *(m for m in more if not m.startswith("--"))]
    return ["--preset", preset, "--set", ",".join(changes), *(m for m in more if m.startswith("--"))]


def folder_of(table: str, name: str, seed: int, runs: Path) -> Path:
    """Where one run lies."""
    return runs / table / f"{re.sub(r'[^a-z0-9]+', '-', name.lower()).strip('-')}-{seed}"


def train(recipe: tuple[str, ...], seed: int, folder: Path) -> Path:
    """Run ``imagine improve`` unless it is finished; returns the adapter's folder."""
    if not (folder / "metrics.json").is_file():
        line = ["improve", *options(recipe), "--seed", str(seed), "--test-episodes", "0", "--out", str(folder)]
        subprocess.run(
            [sys.executable, "-m", "imagine.configs.cli", *line], cwd=ROOT, check=True, stdout=subprocess.DEVNULL
        )
    return folder / "adapter"


def outcomes(loaded: build.Loaded, policy: str, episodes: int, chunks: tuple[int, ...]) -> dict[int, np.ndarray]:
    """(episodes,) bool by time limit in chunks: was the task done by then, on the real twin? Kept beside an adapter."""
    kept = Path(policy).parent / f"real-{episodes}.json" if Path(policy).is_dir() else None
    if kept is not None and kept.is_file():
        took = np.array(json.loads(kept.read_text()))
    else:
        lanes = build.parallel_envs(loaded, "sim", 16)
        seeds = range(900_000, 900_000 + episodes)
        _, records = evaluate(lanes, load_policy(policy, loaded.model, MODEL), seeds, task_of=loaded.robot.task_of)
        took = np.array([len(r.rewards) if r.success else 10**6 for r in records])
        if kept is not None:
            kept.write_text(json.dumps(took.tolist()))
    return {h: took <= h for h in chunks}


def gain(after: list[np.ndarray], before: np.ndarray) -> Interval:
    """Mean difference over seeds and starts; a start is one cluster, whatever the seed."""
    difference = np.concatenate([a.astype(float) - before for a in after])
    return mean_interval(difference, np.tile(np.arange(len(before)), len(after)))


def points(x: Interval) -> str:
    """A difference in points with its interval."""
    return f"{100 * x.value:+.0f} [{100 * x.low:+.0f}, {100 * x.high:+.0f}]"


def main() -> None:
    """Train, evaluate, write."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--runs", type=Path, default=ROOT / "runs" / "improve-study")
    parser.add_argument("--table", choices=list(TABLES), default="study")
    parser.add_argument("--seeds", type=int, nargs="+", default=[1, 2, 3])
    parser.add_argument("--episodes", type=int, default=200)
    parser.add_argument("--finished", action="store_true", help="evaluate finished runs, train nothing")
    args = parser.parse_args()
    loaded, chunks = build.load(MODEL), (4, 8)
    before = outcomes(loaded, "base", args.episodes, chunks)
    found: dict[str, list[dict[int, np.ndarray]]] = {}
    curves: dict[str, list[dict[str, float]]] = {}
    for name, recipe in TABLES[args.table].items():
        for seed in args.seeds:
            folder = folder_of(args.table, name, seed, args.runs)
            if args.finished and not (folder / "metrics.json").is_file():
                continue
            adapter = train(recipe, seed, folder)
            curve = json.loads((adapter.parent / "metrics.json").read_text())["curve"]
            found.setdefault(name, []).append(outcomes(loaded, str(adapter), args.episodes, chunks))
            curves.setdefault(name, []).append({**curve[0], **curve[-1]})
            print(name, seed, {h: x.mean() for h, x in found[name][-1].items()}, file=sys.stderr)
    lines = [
        "| policy | seeds | real success, per seed | gain over base | … within 4 chunks | over filtered BC "
        "| imagined gain (held-out starts, 4 chunks) | KL | doubt |",
        "|---|---|---|---|---|---|---|---|---|",
        f"| base | | {100 * success_rate(before[8]).value:.0f} % | | | | | 0 | |",
    ]
    report: dict[str, dict] = {"base": {"success": before[8].mean(), "within_4": before[4].mean()}}
    for name, each in found.items():
        overall, quick = (gain([e[h] for e in each], before[h]) for h in chunks[::-1])
        ours, theirs = [e[8] for e in each], [e[8] for e in found.get("filtered BC", [])]
        pairs = list(zip(ours, theirs, strict=False)) if name != "filtered BC" else []
        against = gain([a.astype(float) - b for a, b in pairs], np.zeros(args.episodes)) if pairs else None
        dreamt = [c["final_held_out_success"] - c["held_out_success"] for c in curves[name] if "floor" in c]
        kl, error = (float(np.mean([c[k] for c in curves[name]])) for k in ("kl", "inverse_error"))
        per_seed = ", ".join(f"{100 * e[8].mean():.0f}" for e in each)
        lines.append(
            f"| {name} | {len(each)} | {per_seed} % | **{points(overall)}** | {points(quick)} "
            f"| {points(against) if against else ''} | {f'{100 * np.mean(dreamt):+.0f}' if dreamt else 'not looked'} "
            f"| {kl:.0f} | {error:.3f} |"
        )
        report[name] = {
            "per_seed": [float(e[8].mean()) for e in each],
            "gain": overall.__dict__,
            "gain_within_4": quick.__dict__,
            "over_filtered_bc": against.__dict__ if against else None,
            "imagined_gain": float(np.mean(dreamt)) if dreamt else None,
            "kl": kl,
        }
    kept = ROOT / "docs" / "improve.json"
    kept.write_text(json.dumps({**json.loads(kept.read_text()), args.table: report}, indent=1) + "\n")
    page, mark = ROOT / "docs" / "improve.md", args.table
    body = f"<!-- {mark} -->\n" + "\n".join(lines) + f"\n<!-- /{mark} -->"
    page.write_text(re.sub(f"<!-- {mark} -->.*?<!-- /{mark} -->", lambda _: body, page.read_text(), flags=re.S))


if __name__ == "__main__":
    main()
