"""The algorithms by name, and what the loop asks of each."""

from __future__ import annotations

from typing import Protocol

import torch
from torch import Tensor

from imagine.agents.finetune.awr import AWR
from imagine.agents.finetune.experience import Decisions
from imagine.agents.finetune.filtered_bc import FilteredBC
from imagine.agents.finetune.grpo import FlowGRPO
from imagine.agents.finetune.kernel import FlowKernel
from imagine.agents.finetune.nft import DiffusionNFT
from imagine.model.model import WorldActionModel

ALGORITHMS = {"filtered_bc": FilteredBC, "awr": AWR, "nft": DiffusionNFT, "grpo": FlowGRPO}


class Algorithm(Protocol):
    """How a policy learns from decisions."""

    @property
    def kernel(self) -> FlowKernel:
        """How its rollouts explore."""
        ...

    def usable(self, rows: Decisions) -> Tensor:
        """(R,) bool, decisions that there is something to learn from."""
        ...

    def prepare(self, rows: Decisions, behaviour: WorldActionModel) -> Tensor:
        """What is computed once per update about usable decisions, (R, ...); handed back to ``loss`` row by row."""
        ...

    def loss(
        self,
        learner: WorldActionModel,
        behaviour: WorldActionModel,
        base: WorldActionModel,
        rows: Decisions,
        prepared: Tensor,
        generator: torch.Generator,
    ) -> tuple[Tensor, dict[str, float]]:
        """A scalar to minimise, and numbers worth a curve.

        Args:
            learner: the policy under training.
            behaviour: the one that acted.
            base: the one that training began at.
            rows: a minibatch.
            prepared: its rows of :meth:`prepare`.
            generator: all randomness.
        """
        ...
