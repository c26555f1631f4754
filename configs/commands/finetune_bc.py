"""``imagine finetune bc``: a policy from recorded episodes, as an adapter on the joint model."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from imagine.configs.commands.common import Common, Words, at_least
from imagine.configs.commands.finetuning import fine_tune
from imagine.configs.defaults import MODEL


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
    at_least(args, steps=1, rank=1)
    from imagine.agents.finetune.cloning import CloneConfig, clone

    return fine_tune(args, "clone", CloneConfig(rank=args.rank, everything=args.everything), clone)
