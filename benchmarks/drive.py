"""Drives the table on the wall's clock: latency by latency, waiting beside it, and planning beside not planning.

``python benchmarks/drive.py --minutes 10`` gives every cell so many minutes on the same starts from ``--seed`` on: the
reference (simulated, no latency), then for each ``--latency`` thinking while moving (``overlap``) and standing still
(``wait``), then ``--plan`` candidates beside the policy alone. The file ``--out`` is written after every cell; started
again with the same options, it goes on from there. Differences are paired by start. The policy's own time counts too:
see ``median_latency_ms``.
"""

from __future__ import annotations

import argparse
import json
import time
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from imagine.agents.statistics import paired_difference
from imagine.configs import driving
from imagine.configs.commands.drive import Args
from imagine.files import write_json
from imagine.policy.drive import DriveConfig
from imagine.policy.guard import Guard

REFERENCE = "reference"


@dataclass(frozen=True)
class Cell:
    """One way to drive."""

    name: str
    clock: str = "wall"
    execution: str = "overlap"
    latency: float = 0.0
    plan: int = 1


def cells(args: argparse.Namespace) -> list[Cell]:
    """All that are asked for."""
    found = [Cell(REFERENCE, "simulated")]
    for ms in args.latency:
        found += [Cell(f"{how}, {ms:g} ms", args.clock, how, ms) for how in ("overlap", "wait")]
    if args.plan > 1:
        found += [Cell("no plan", args.clock), Cell(f"plan {args.plan}", args.clock, plan=args.plan)]
    return found


def drive(cell: Cell, args: argparse.Namespace) -> dict[str, Any]:
    """Drive one start after the other until the time is over; at least two."""
    options = Args(
        model=args.model, policy=args.policy, clock=cell.clock, latency=(f"{cell.latency:g}",), plan=cell.plan,
        budget_ms=args.budget_ms if cell.plan > 1 else None, episodes=args.episodes, seed=args.seed,
    )  # type: ignore[arg-type]  # fmt: skip
    loaded = options.load()
    body = loaded.model.body
    cfg = DriveConfig(
        seconds=options.seconds, every=args.every, execution=cell.execution,  # type: ignore[arg-type]
        patience=driving.PATIENCE + cell.latency / 1000,
    )  # fmt: skip
    with ExitStack() as stack:
        think = driving.thinking(options, loaded, cell.plan > 1, stack)
        guard, found, begin = Guard(body, loaded.robot.limits(body)), [], time.monotonic()
        for one in driving.driven(options, loaded, think, guard, cfg, cell.latency):
            found.append(one)
            if len(found) > 1 and time.monotonic() - begin >= 60 * args.minutes:
                break
    seconds = time.monotonic() - begin
    numbers = driving.summary(found, body.control_hz)
    return numbers | {"seconds": round(seconds, 1), "successes": [bool(one.success) for one in found]}


def gain(after: dict[str, Any], before: dict[str, Any]) -> dict[str, Any]:
    """Paired difference of success on the starts that both had."""
    n = min(len(after["successes"]), len(before["successes"]))
    return paired_difference(np.array(after["successes"][:n]), np.array(before["successes"][:n])).plain()


def differences(found: dict[str, Any], latencies: list[float], plan: int) -> dict[str, Any]:
    """Every cell against the reference, overlap against waiting, and planning against not."""
    pairs = [(name, REFERENCE) for name in found if name not in (REFERENCE, "no plan", f"plan {plan}")]
    pairs += [(f"overlap, {ms:g} ms", f"wait, {ms:g} ms") for ms in latencies]
    pairs += [(f"plan {plan}", "no plan")]
    return {f"{a} - {b}": gain(found[a], found[b]) for a, b in pairs if a in found and b in found}


def main() -> None:
    """Fill the cells that are not there yet and print one JSON object."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--minutes", type=float, default=10.0, help="of each cell")
    parser.add_argument("--episodes", type=int, default=10_000, help="of each cell at most")
    parser.add_argument("--latency", type=float, nargs="*", default=[50.0, 150.0, 300.0, 600.0], help="ms")
    parser.add_argument("--clock", choices=["wall", "simulated"], default="wall")
    parser.add_argument("--every", type=int, default=DriveConfig().every)
    parser.add_argument("--plan", type=int, default=8, help="1 leaves planning out")
    parser.add_argument("--budget-ms", type=float, default=400.0, help="of a decision with --plan")
    parser.add_argument("--model", default=Args().model)
    parser.add_argument("--policy", default="base")
    parser.add_argument("--seed", type=int, default=900_000)
    parser.add_argument("--out", type=Path, default=Path("runs") / "drive.json")
    args = parser.parse_args()
    setting = {k: v for k, v in vars(args).items() if k != "out"}
    answer: dict[str, Any] = {"setting": setting, "cells": {}}
    if args.out.exists():
        answer = json.loads(args.out.read_text())
        if answer["setting"] != setting:
            parser.error(f"{args.out} was begun with {answer['setting']}, expected {setting}; choose another --out.")
    for cell in cells(args):
        if cell.name not in answer["cells"]:
            answer["cells"][cell.name] = drive(cell, args)
            answer["differences"] = differences(answer["cells"], args.latency, args.plan)
            args.out.parent.mkdir(parents=True, exist_ok=True)
            write_json(args.out, answer)
    print(json.dumps(answer, indent=1))


if __name__ == "__main__":
    main()
