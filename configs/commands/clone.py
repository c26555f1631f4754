"""``imagine clone``: a policy from recorded episodes, as an adapter on the joint model."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from imagine.configs.commands.common import Common, Words
from imagine.configs.defaults import MODEL
from imagine.configs.runfolder import RunFolder
from imagine.types import ImagineError


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
    model: str = MODEL
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
    from imagine.agents.finetune.cloning import CloneConfig, clone
    from imagine.configs.commands.latents import latent_windows
    from imagine.model.model import WorldActionModel

    model = WorldActionModel.from_pretrained(args.model)
    folder = RunFolder.of("clone", args)
    windows, episodes = latent_windows(model, args.dataset, folder.path / "cache")
    cfg = CloneConfig(rank=args.rank, everything=args.everything)
    cfg = cfg.model_copy(
        update={"fit": cfg.fit.model_copy(update={"steps": args.steps, "lr": args.lr, "seed": args.seed})}
    )
    adapter = clone(model, windows, cfg, folder.path)
    answer = {"adapter": str(adapter), "episodes": episodes, "windows": len(windows)}
    folder.save_metrics(answer)
    return answer
