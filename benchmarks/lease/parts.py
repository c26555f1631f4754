"""What all stages on a lent GPU share: the clock, what has been measured, and what is to be sent back."""

from __future__ import annotations

import argparse
import io
import json
import os
import tarfile
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

from imagine.configs.load import load
from imagine.configs.recipe import Recipe
from imagine.files import atomic_write, write_json

ROOT = Path(__file__).resolve().parents[2]
PART = 15 * 2**20  # bytes of a file that is sent back
QUICK = (
    "codec.widths=[8,16]", "codec_fit.batch=8", "dit.layers=2", "dit.heads=2", "dit.head_dim=16", "dit.ffn_dim=64",
    "dit.decoder={blocks: 1, width: 16, memory: 8}",
    "model_fit.batch=8", "model_fit.warmup=5", "joint.policy_batch=8", "vlm_fit.batch=8", "judge_fit.batch=16",
    "vlm.tiny.width=32", "vlm.dreams=64", "judge_dreams=64",
)  # fmt: skip


class Lease:
    """One call: how much of its time is left, and where things go."""

    def __init__(self, args: argparse.Namespace) -> None:
        self.began, self.args = time.monotonic(), args
        self.folder: Path = args.folder.resolve()
        self.out: Path = args.out.resolve()
        self.model: Path = self.folder / args.name
        changes = tuple(c for c in args.set.split(",") if c) if args.set else ()
        self.recipe = load(Recipe, args.preset, (*(QUICK if args.quick else ()), *changes))
        self.workers = args.workers or max(1, (os.cpu_count() or 2) - 5)
        path = self.folder / "gpu.json"
        self.numbers: dict[str, Any] = json.loads(path.read_text()) if path.is_file() else {}

    @property
    def left(self) -> float:
        """Seconds."""
        return self.args.seconds - (time.monotonic() - self.began)

    @property
    def spent(self) -> float:
        """Seconds."""
        return time.monotonic() - self.began

    def say(self, stage: str, **numbers: Any) -> None:
        """Print what a stage measured, and keep it for who reads ``gpu.json``."""
        self.numbers.setdefault(stage, {}).update(numbers)
        for folder in (self.folder, self.out):
            write_json(folder / "gpu.json", self.numbers)
        shown = "  ".join(f"{k} {v:.4g}" if isinstance(v, float) else f"{k} {v}" for k, v in numbers.items())
        print(f"[{self.spent:6.1f} s] {stage}: {shown}", flush=True)

    def ship(self, folder: Path, name: str) -> None:
        """Put a folder into ``out`` as parts of a tar file; the parts before it are replaced one by one."""
        whole = io.BytesIO()
        with tarfile.open(fileobj=whole, mode="w") as tar:
            tar.add(folder, arcname=folder.name)
        data = whole.getvalue()
        parts = [data[at : at + PART] for at in range(0, len(data), PART)]
        for i, part in enumerate(parts):
            atomic_write(self.out / f"{name}.tar.{i:02d}", part)
        for old in sorted(self.out.glob(f"{name}.tar.*"))[len(parts) :]:
            old.unlink()
        self.say("shipped", **{name: f"{len(data) / 2**20:.1f} MiB in {len(parts)}"})

    def attempt(self, stage: str, work: Callable[[], Any]) -> Any:
        """Do a stage that others can do without; what went wrong is printed, and None."""
        try:
            return work()
        except Exception as error:
            traceback.print_exc()
            self.say("failed", **{stage: f"{type(error).__name__}: {error}"})
            return None

    def check(self) -> bool:
        """Import and try everything that a stage will need; False where it cannot go on."""
        import accelerate
        import gymnasium
        import mujoco
        import numpy as np
        import torch
        import transformers

        modules = (torch, np, transformers, accelerate, gymnasium, mujoco)
        self.say("versions", **{m.__name__: m.__version__ for m in modules}, cores=os.cpu_count())
        cuda = settle()
        if self.args.device != "cpu" and not cuda:
            print("There is no CUDA GPU here; --device cpu --quick is a dry run.")
            return False
        if cuda:
            os.nice(-10 if os.geteuid() == 0 else 0)  # before those that record; a GPU that waits is what costs
            memory = torch.cuda.get_device_properties(0).total_memory / 2**30
            self.say("device", name=torch.cuda.get_device_name(0), memory_gib=memory)
        return True


def settle() -> bool:
    """Set torch up as all of the processes want it; whether there is a GPU."""
    import torch

    torch.manual_seed(0)
    torch.set_float32_matmul_precision("high")
    torch.backends.cudnn.benchmark = True
    return torch.cuda.is_available()
