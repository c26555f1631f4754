"""``imagine clone``: a policy from recorded episodes, as an adapter on the joint model."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from imagine.types import ImagineError

from ..runfolder import RunFolder
from .common import Common, Words, console


@dataclass(frozen=True, kw_only=True)
class Args(Common):
    """Clone the behaviour of a LeRobot dataset into a LoRA adapter on the policy.

    Attributes:
        dataset: folder of a LeRobot dataset (v2.1 or v3.0); several, joined by commas, are used together.
        model: a shipped model's name, a folder, or a hub id; it is not changed.
        everything: imitate failures and disturbances too, not what the expert did alone.
        steps: training steps.
        lr: learning rate.
        rank: of the adapter.
    """

    dataset: Words = ("datasets/g1",)
    model: str = "g1-table-tiny"
    everything: bool = False
    steps: int = 1500
    lr: float = 5e-4
    rank: int = 16


def run(args: Args) -> dict[str, Any]:
    """Clone; the adapter is written to ``adapter/`` of the run folder. Resumes after a kill.

    Raises:
        ImagineError: an option is out of range, or the dataset is unusable or has nothing to imitate.
    """
    for name in ("steps", "rank"):
        if getattr(args, name) < 1:
            raise ImagineError(f"--{name} is {getattr(args, name)}, expected at least 1.")
    from agents.finetune.cloning import CloneConfig, clone
    from imagine.data.lerobot import LeRobotDataset
    from imagine.data.windows import Windows, build_cache
    from imagine.model import WorldActionModel

    model = WorldActionModel.from_pretrained(args.model)
    datasets = [LeRobotDataset.open(Path(d)) for d in args.dataset]
    folder = RunFolder.of("clone", args)
    codec = model.codec
    tag = hashlib.sha256(b"".join(v.numpy().tobytes() for v in codec.state_dict().values())).hexdigest()[:8]

    @torch.no_grad()
    def encode(canvas: torch.Tensor) -> torch.Tensor:
        return codec.encode(canvas)

    caches = []
    for i, dataset in enumerate(datasets):
        console.print(f"encoding {dataset.root}")
        caches.append(build_cache(dataset, model.body, encode, folder / "cache" / str(i), tag=tag))
    windows = Windows(caches, model.body, context_frames=model.cfg.context_frames)
    cfg = CloneConfig(rank=args.rank, everything=args.everything)
    cfg = cfg.model_copy(
        update={"fit": cfg.fit.model_copy(update={"steps": args.steps, "lr": args.lr, "seed": args.seed})}
    )
    adapter = clone(model, windows, cfg, folder.path)
    answer = {"adapter": str(adapter), "episodes": sum(len(d) for d in datasets), "windows": len(windows)}
    folder.save_metrics(answer)
    return answer
