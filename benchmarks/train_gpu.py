"""Everything that a lent GPU is for, in two calls of known length: collect, train, ship; then judges and speed.

    python benchmarks/train_gpu.py model --seconds 470 --out OUT
    python benchmarks/train_gpu.py judges --seconds 230 --out OUT      # on the same machine, after the other

The first call records episodes on all cores but five while it trains, first the codec and then the joint model, on what
there is by then; every time the model's training pauses it takes in what has been recorded since. The second one lets
policies act in the model's dream on all cores, repeats their actions on the simulator, and teaches the judges. At any
moment, also of a call that is killed, ``--out`` holds the newest model as ``model.tar.00``, ``.01`` and so on
(``cat model.tar.* | tar x``), each part small enough to be sent back, beside ``gpu.json`` with what was measured.
``--device cpu --quick`` runs the same code in minutes without a GPU. Nothing is asked of the network.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "benchmarks")]


def arguments(given: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=("check", "model", "judges"))
    parser.add_argument("--seconds", type=float, default=470.0, help="from start to end; what does not fit is left out")
    parser.add_argument("--out", type=Path, default=Path("runs/gpu/out"), help="what is to be sent back")
    parser.add_argument("--folder", type=Path, default=Path("runs/gpu/work"), help="what need not be; resumed")
    parser.add_argument("--model", type=Path, help="judges: of this model folder instead of the one just trained")
    parser.add_argument("--init", default="", help="model: go on from these weights and their codec")
    parser.add_argument("--preset", default="tiny", help="recipe, a YAML file or the name of one in configs/")
    parser.add_argument("--set", default="", help="changes to the recipe, as model_fit.batch=256; joined by commas")
    parser.add_argument("--option", action="append", default=[], help="of the recorder, as families=pick_up,push_left")
    parser.add_argument("--workers", type=int, default=0, help="processes; 0: all cores but five")
    parser.add_argument("--episodes", type=int, default=60_000, help="at most")
    parser.add_argument("--first", type=int, default=600, help="episodes that the codec waits for")
    parser.add_argument("--codec-seconds", type=float, default=45.0)
    parser.add_argument("--rollouts", type=int, default=0, help="judges: imagined episodes; 0: one part per process")
    parser.add_argument("--together", type=int, default=5, help="judges: episodes that a process imagines at once")
    parser.add_argument("--dreams", type=int, default=-1, help="judges: moments to dream on from; -1: the recipe's")
    parser.add_argument("--head-seconds", type=float, default=30.0, help="judges: training of the heads in latents")
    parser.add_argument("--name", default="g1-table-tiny")
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--quick", action="store_true", help="tiny networks and few of everything: does it run at all?")
    return parser.parse_args(given)


def main(given: Sequence[str] | None = None) -> int:
    args = arguments(given)
    args.folder.mkdir(parents=True, exist_ok=True)
    args.out.mkdir(parents=True, exist_ok=True)
    from lease.parts import Lease

    lease = Lease(args)
    if not lease.check():
        return 2
    if args.what == "model":
        from lease.model import train_model

        train_model(lease)
    elif args.what == "judges":
        from lease.judges import train_judges

        train_judges(lease)
    return 0


if __name__ == "__main__":
    sys.exit(main())
