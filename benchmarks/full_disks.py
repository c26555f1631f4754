"""Commands on a disk that is full, one that may not be written, and below a file: one sentence each, and exit code 2.

``python benchmarks/full_disks.py`` runs each command with ``--out`` on a file system of its own (it must be allowed to
mount some) that is too small, mounted read-only, or below a file, and prints what each said as one JSON object.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from pathlib import Path

COMMANDS = {
    "record": ["--episodes", "2", "--workers", "1"],
    "train": ["--preset", "nano", "--dataset", "DATASET"],
    "rollout": ["--world", "sim", "--policy", "random"],
    "evaluate": ["--policy", "random", "--world", "sim", "--episodes", "2"],
    "plan": ["--episodes", "1"],
    "finetune rl": [],
    "finetune bc": ["--dataset", "DATASET"],
    "finetune world-model": ["--dataset", "DATASET"],
    "finetune distill": ["--dataset", "DATASET"],
    "evaluate world-model": [],
    "evaluate judge": ["--episodes", "4"],
    "serve": ["--port", "0", "--policy", "random", "--judge", "none"],
}
DISKS = {"full": "size=KIBk", "read-only": "size=64k,ro", "below a file": ""}


def attempt(name: str, options: list[str], disk: str, kib: int, seconds: float) -> dict[str, object]:
    """One command on one disk."""
    with tempfile.TemporaryDirectory() as folder:
        place = Path(folder) / "disk"
        place.mkdir()
        if disk:
            how = disk.replace("KIB", str(kib))
            subprocess.run(["mount", "-t", "tmpfs", "-o", how, "tmpfs", place], check=True)
            out = place / "run"
        else:
            (place / "file").touch()
            out = place / "file" / "run"
        words = [sys.executable, "-m", "imagine.configs.cli", *name.split(), *options, "--out", str(out), "--json"]
        try:
            done = subprocess.run(words, capture_output=True, text=True, timeout=seconds)
            said = [line for line in done.stderr.splitlines() if line.startswith("imagine: ")]
            good = done.returncode == 2 and len(said) == 1 and not done.stdout and "Traceback" not in done.stderr
            return {"good": good, "exit": done.returncode, "said": said[-1] if said else done.stderr[-300:]}
        except subprocess.TimeoutExpired:
            return {"good": False, "exit": None, "said": f"still at work after {seconds:g} s"}
        finally:
            if disk:
                subprocess.run(["umount", "-l", place], check=True)


def main() -> None:
    """All commands on all disks."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--dataset", required=True, help="for those that learn from one")
    parser.add_argument("--commands", default=",".join(COMMANDS))
    parser.add_argument("--disks", default=",".join(DISKS))
    parser.add_argument("--kib", type=int, default=4, help="of the full disk: room for a configuration at most")
    parser.add_argument("--seconds", type=float, default=300.0)
    args = parser.parse_args()
    found: dict[str, dict[str, object]] = {}
    for disk in args.disks.split(","):
        for name in args.commands.split(","):
            options = [args.dataset if word == "DATASET" else word for word in COMMANDS[name]]
            key = f"{name}, {disk}"
            found[key] = attempt(name, options, DISKS[disk], args.kib, args.seconds)
            print(key, found[key], file=sys.stderr, flush=True)
    good = sum(bool(one["good"]) for one in found.values())
    print(json.dumps({"good": good, "of": len(found), "each": found}, indent=1))


if __name__ == "__main__":
    main()
