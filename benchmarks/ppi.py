"""What imagined episodes save: PPI++ from 30 real and 970 imagined episodes against the 30 real ones alone.

``python benchmarks/ppi.py --policies base,base+idle=0.7`` runs each policy from 1,000 starts (from 920000 on) in both
worlds, then draws 30 of them 500 times: those are known in both worlds, the rest in the dream alone. It prints how wide
both intervals are, and how often each holds the real rate of all 1,000. Of a dream the judge's probability counts.
Episodes must succeed within three chunks, as in the zoo, and dreams break off where they cannot be believed.
``expected`` is what the correlation alone promises for many pairs; 30 of them cost the rest.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import numpy as np

from imagine.agents.correction import ppi_mean
from imagine.agents.evaluate import carry_out, outcomes, parts
from imagine.agents.statistics import success_rate
from imagine.configs.evaluation import Setup, stamp, worker

MODEL = "g1-table-tiny"


def compare(real: np.ndarray, dreamt: np.ndarray, few: int, draws: int) -> dict[str, Any]:
    """PPI++ against Wilson's interval, from ``few`` of the starts known in both worlds, ``draws`` times over."""
    rng, widths, holds = np.random.default_rng(0), [], []
    for _ in range(draws):
        known = np.zeros(len(real), bool)
        known[rng.permutation(len(real))[:few]] = True
        both, alone = ppi_mean(real[known], dreamt[known], dreamt[~known]), success_rate(real[known])
        widths.append([x.high - x.low for x in (both, alone)])
        holds.append([x.low <= real.mean() <= x.high for x in (both, alone)])
    width, hold = np.mean(widths, 0), np.mean(holds, 0)
    correlation = float(np.corrcoef(real, dreamt)[0, 1])
    return {
        "real_rate": float(real.mean()),
        "imagined_rate": float(dreamt.mean()),
        "correlation": correlation,
        "width": {"ppi": float(width[0]), "real_alone": float(width[1])},
        "narrower": float(1 - width[0] / width[1]),
        "expected": float(1 - np.sqrt(1 - correlation**2 * (1 - few / len(real)))),
        "coverage": {"ppi": float(hold[0]), "real_alone": float(hold[1])},
    }


def main() -> None:
    """Run, resample, compare."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--policies", default="base")
    parser.add_argument("--judge", default="judge-tiny")
    parser.add_argument("--horizon", type=int, default=3)
    parser.add_argument("--episodes", type=int, default=1000)
    parser.add_argument("--real", type=int, default=30)
    parser.add_argument("--draws", type=int, default=500)
    parser.add_argument("--seed", type=int, default=920_000)
    parser.add_argument("--out", type=Path, default=Path("runs") / "ppi")
    args = parser.parse_args()
    seeds, policies = range(args.seed, args.seed + args.episodes), args.policies.split(",")
    setup = Setup(MODEL, args.judge, horizon=args.horizon)
    here = worker(setup)
    table = carry_out(
        parts(policies, ["sim", "imagined"], seeds, 16), lambda: here, args.out / f"within-{args.horizon}",
        stamp=stamp(setup, policies),
    )  # fmt: skip
    judged = {(r["policy"], r["seed"]): r["judged"] for r in table.to_pylist() if r["world"] == "imagined"}
    answer = {
        name: compare(
            outcomes(table, [name], "sim", seeds)[0], np.array([judged[name, s] for s in seeds]), args.real, args.draws
        )
        for name in policies
    }
    print(json.dumps({"horizon": args.horizon, "n": [args.real, args.episodes - args.real, args.draws], **answer}))


if __name__ == "__main__":
    main()
