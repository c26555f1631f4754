"""Advantage-weighted regression: imitate everything, the more the better it turned out.

What it departs from in its source: the advantage is an episode's within the batch, or its group of equal starts,
instead of a return less a learnt value; there is no replay of older policies' data.
Source: AWR, arXiv:1910.00177, equation 3 and its clipped weights.
"""

from __future__ import annotations

import torch
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor

from imagine.agents.finetune.experience import Decisions
from imagine.agents.finetune.filtered_bc import imitate
from imagine.agents.finetune.kernel import FlowKernel
from imagine.model.model import WorldActionModel


class AWR(BaseModel):
    """See the head of this file.

    Attributes:
        beta: temperature of the weights exp(A / beta).
        most: largest weight.
        kernel: how rollouts explore.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    beta: float = Field(default=0.5, gt=0)
    most: float = 20.0
    kernel: FlowKernel = FlowKernel(kind="ode")

    def usable(self, rows: Decisions) -> Tensor:
        """Decisions of groups in which something was better than something else."""
        return rows.advantage != 0

    def prepare(self, rows: Decisions, behaviour: WorldActionModel) -> Tensor:
        """The weights (R,)."""
        return (rows.advantage / self.beta).exp().clamp(max=self.most)

    def loss(
        self, learner: WorldActionModel, behaviour: WorldActionModel, base: WorldActionModel, rows: Decisions,
        prepared: Tensor, generator: torch.Generator,
    ) -> tuple[Tensor, dict[str, float]]:  # fmt: skip
        """The weighted flow-matching error on what was done."""
        return imitate(learner, rows, prepared, generator), {}
