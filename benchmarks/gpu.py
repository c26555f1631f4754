"""How fast are Wan and DreamZero on one GPU, and how far from what it can do at most?

    python benchmarks/gpu.py --models 14b --minutes 9 --json out.json
    python benchmarks/gpu.py --plan                      # floors by formula, needs no GPU

Random weights at the true shapes of Wan and DreamZero, made on the GPU; needs torch, numpy, safetensors, pydantic and
this repository, nothing from the network. Per model, the most important first: what matrix products and copies reach
here, one forward against its floor, environment steps with a clean pass and with kept keys and values, policy chunks,
the same work the way DreamZero's released code does it, every saving switched off one at a time, more lanes until
memory ends, the black quarter skipped, FP8. What does not fit into ``--minutes`` is left out and named. Contenders
take turns in one process; a number is the median of five or more, of three where one takes over a second.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "benchmarks")]

try:
    import torch
    from speed import report
    from speed.cells import Bench
    from speed.clock import Clock
    from speed.ours import clean_up
    from speed.shapes import NETWORKS, plan
except ModuleNotFoundError as missing:
    sys.exit(f"benchmarks/gpu.py needs {missing.name}: python -m pip install {missing.name}")

LANES = (1, 2, 4, 8, 16, 32)


def commit() -> str:
    """The commit of this tree, with a plus where it has been changed."""
    try:
        said = subprocess.run(
            ["git", "describe", "--always", "--dirty=+"], cwd=ROOT, capture_output=True, text=True, check=True
        )
    except (OSError, subprocess.CalledProcessError):
        return "unknown"
    return said.stdout.strip()


@torch.inference_mode()
def measure(names: Sequence[str], device: torch.device, options: argparse.Namespace) -> dict[str, Any]:
    """Every model in turn; each may use what is left of the time, shared evenly with those after it."""
    cuda = device.type == "cuda"
    result: dict[str, Any] = {
        "device": torch.cuda.get_device_name(device) if cuda else "CPU",
        "memory_gib": torch.cuda.get_device_properties(device).total_memory / 2**30 if cuda else None,
        "torch": torch.__version__, "commit": commit(), "arguments": " ".join(options.given), "models": {},
        "dropped": [], "failed": {},
    }  # fmt: skip
    end = time.monotonic() + 60 * options.minutes
    for i, name in enumerate(names):
        until = time.monotonic() + (end - time.monotonic()) / (len(names) - i)
        dtype = torch.bfloat16 if cuda else torch.float32
        bench = Bench(NETWORKS[name], Clock(device, options.quick), dtype, until, options.lanes, fuse=options.compile)
        try:
            bench.run()
        except torch.OutOfMemoryError:
            bench.failed["weights"] = "out of memory"
        result["models"][name] = bench.result
        result["dropped"] += bench.dropped
        result["failed"] |= {f"{name}: {what}": why for what, why in bench.failed.items()}
        del bench
        clean_up()
    return result


def main(given: Sequence[str] | None = None) -> int:
    """Measure, print, and write what was asked for; 2 where there is no GPU."""
    given = sys.argv[1:] if given is None else list(given)
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--models", default="14b,5b,1.3b", help=f"some of {', '.join(NETWORKS)}, in order of importance"
    )
    parser.add_argument("--lanes", default=",".join(map(str, LANES)), help="how many environments at once")
    parser.add_argument("--minutes", type=float, default=8.0, help="left out is what does not fit")
    parser.add_argument("--quick", action="store_true", help="two turns each: does it run at all?")
    parser.add_argument("--no-compile", dest="compile", action="store_false", help="without torch.compile")
    parser.add_argument("--device", default="cuda", help="cuda, cuda:1, or cpu for the tiny model")
    parser.add_argument("--json", type=Path, help="write everything here")
    parser.add_argument("--markdown", type=Path, help="write a page into this folder, named after GPU and commit")
    parser.add_argument("--plan", action="store_true", help="print floors by formula and stop")
    parser.add_argument("--tflops", type=float, default=790.0, help="for --plan, bfloat16 (H200: 790)")
    parser.add_argument("--gbs", type=float, default=4300.0, help="for --plan, memory (H200: 4300)")
    options = parser.parse_args(given)
    options.given = given
    if options.plan:
        told = plan(options.tflops, options.gbs)
        print(report.plain(*report.floors(told)), end="")
        if options.json:
            options.json.write_text(json.dumps(told, indent=1))
        return 0
    names = options.models.split(",")
    if unknown := [n for n in names if n not in NETWORKS]:
        parser.error(f"--models holds {', '.join(unknown)}, expected some of {', '.join(NETWORKS)}")
    try:
        options.lanes = sorted({int(n) for n in options.lanes.split(",")})
    except ValueError:
        parser.error(f"--lanes is {options.lanes!r}, expected numbers with commas between them")
    device = torch.device(options.device)
    if device.type == "cuda" and not torch.cuda.is_available():
        print("There is no CUDA GPU here; --plan gives the floors, --device cpu --models tiny a dry run.")
        return 2
    if device.type != "cuda" and names != ["tiny"]:
        print(f"{options.models} on {device.type} would take hours; --device {device.type} goes with --models tiny.")
        return 2
    torch.manual_seed(0)
    result = measure(names, device, options)
    if options.json:
        options.json.write_text(json.dumps(result, indent=1))
    if options.markdown:
        name = f"{result['device']}-{result['commit']}".lower().replace(" ", "-").replace("+", "-changed")
        (options.markdown / f"{name}.md").write_text(report.page(result))
    rows = [row for name, m in result["models"].items() for row in report.rows_of(name, m)]
    print(f"{result['device']}, commit {result['commit']}, torch {result['torch']}")
    print(report.plain(report.HEAD, rows), end="")
    for what in result["dropped"]:
        print(f"not measured, for want of time: {what}")
    for what, why in result["failed"].items():
        print(f"failed: {what}: {why}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
