"""``imagine finetune world-model``: a truer dream from recorded episodes, as an adapter on the joint model."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from imagine.configs.commands.common import Common, Words, at_least
from imagine.configs.commands.finetuning import fine_tune
from imagine.configs.defaults import MODEL


@dataclass(frozen=True, kw_only=True)
class Args(Common):
    """Refine a model's dream on a LeRobot dataset, above all on what its policies get wrong, as a LoRA adapter.

    Attributes:
        dataset: folder of a LeRobot dataset (v2.1 or v3.0); several, joined by commas, are used together.
        model: a shipped model's name, a folder, or a hub id; it is not changed.
        steps: training steps.
        lr: learning rate.
        rank: of the adapter.
    """

    dataset: Words = ("datasets/clumsy",)
    model: str = MODEL
    steps: int = 1000
    lr: float = 1.5e-3
    rank: int = 12


def run(args: Args) -> dict[str, Any]:
    """Refine; the adapter is written to ``adapter/`` of the run folder. Resumes after a kill.

    A model folder whose ``dream.json`` says ``"adapter": "dream"`` dreams with the adapter in its folder ``dream/``.

    Raises:
        ImagineError: an option is out of range, or the dataset is unusable.
    """
    at_least(args, steps=1, rank=1)
    from imagine.agents.finetune.refining import RefineConfig, refine

    return fine_tune(args, "refine", RefineConfig(rank=args.rank), refine)
