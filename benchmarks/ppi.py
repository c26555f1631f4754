"""What imagined episodes save: PPI++ from 30 real and 1,000 imagined episodes against 30 real ones alone.

``python benchmarks/ppi.py --policy novice`` runs the policy from 1,000 starts (from 920000 on) in both worlds, then
draws 30 of them 500 times: those are known in both worlds, the rest in the dream alone. It prints how wide both
intervals are, and how often each holds the real rate of all 1,000. Of a dream the judge's probability counts.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import numpy as np

from agents.correction import ppi_mean
from agents.evaluate import carry_out, outcomes, parts
from agents.statistics import success_rate
from configs.evaluation import Setup, Worker

MODEL = "g1-table-tiny"


def main() -> None:
    """Run, resample, compare."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--policy", default="novice")
    parser.add_argument("--judge", default="latent")
    parser.add_argument("--episodes", type=int, default=1000)
    parser.add_argument("--real", type=int, default=30)
    parser.add_argument("--draws", type=int, default=500)
    parser.add_argument("--seed", type=int, default=920_000)
    parser.add_argument("--out", type=Path, default=Path("runs") / "ppi")
    args = parser.parse_args()
    seeds = range(args.seed, args.seed + args.episodes)
    worker = Worker(Setup(MODEL, args.judge))
    table = carry_out(parts([args.policy], ["real", "imagined"], seeds, 16), lambda: worker, args.out)
    real = outcomes(table, [args.policy], "real", seeds)[0]
    judged = {r["seed"]: r["judged"] for r in table.to_pylist() if r["world"] == "imagined"}
    dreamt = np.array([judged[s] for s in seeds])
    rng, widths, holds = np.random.default_rng(0), [], []
    for _ in range(args.draws):
        few = np.zeros(len(seeds), bool)
        few[rng.permutation(len(seeds))[: args.real]] = True
        both, alone = ppi_mean(real[few], dreamt[few], dreamt[~few]), success_rate(real[few])
        widths.append([x.high - x.low for x in (both, alone)])
        holds.append([x.low <= real.mean() <= x.high for x in (both, alone)])
    width, hold = np.mean(widths, 0), np.mean(holds, 0)
    answer = {
        "policy": args.policy,
        "real_rate": float(real.mean()),
        "correlation": float(np.corrcoef(real, dreamt)[0, 1]),
        "width": {"ppi": float(width[0]), "real_alone": float(width[1])},
        "narrower": float(1 - width[0] / width[1]),
        "coverage": {"ppi": float(hold[0]), "real_alone": float(hold[1])},
        "n": [args.real, args.episodes - args.real, args.draws],
    }
    print(json.dumps(answer))


if __name__ == "__main__":
    main()
