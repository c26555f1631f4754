"""Filtered behaviour cloning: act in the dream, keep what is judged a success, imitate it.

What it is: the baseline that every RL method has to beat. What it departs from in its source: it is repeated, every
update imitating what the newest policy did, and the judge is a model; nothing is learnt from failures, and all chunks
of a success count the same.
Source: Ctrl-World (arXiv:2510.10125) fine-tunes on judged imagined successes.
"""

from __future__ import annotations

from typing import Any

import torch
from pydantic import BaseModel, ConfigDict
from torch import Tensor

from imagine.agents.finetune.experience import Decisions
from imagine.agents.finetune.kernel import FlowKernel
from imagine.model.model import WorldActionModel
from imagine.train.losses import JointConfig, policy_loss


class FilteredBC(BaseModel):
    """See the head of this file.

    Attributes:
        kernel: how rollouts explore; the flow's own noise is all that imitation needs.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    kernel: FlowKernel = FlowKernel(kind="ode")

    def usable(self, rows: Decisions) -> Tensor:
        """Decisions of successes."""
        return rows.success > 0

    def prepare(self, rows: Decisions, behaviour: WorldActionModel) -> Tensor:
        """Nothing."""
        return torch.zeros(len(rows))

    def loss(
        self, learner: WorldActionModel, behaviour: WorldActionModel, base: WorldActionModel, rows: Decisions,
        prepared: Tensor, generator: torch.Generator,
    ) -> tuple[Tensor, dict[str, float]]:  # fmt: skip
        """The flow-matching error on what was done."""
        return imitate(learner, rows, torch.ones(len(rows)), generator), {}


def imitate(
    learner: WorldActionModel, rows: Decisions, weight: Tensor, generator: torch.Generator, **how: Any
) -> Tensor:
    """Flow-matching error of chunks carried out, ``weight`` (B,) each."""
    chunk = rows.chain[:, -1]
    each = weight.to(chunk)[:, None].expand(chunk.shape[:2])
    cache = learner.prefill(rows.context)
    return policy_loss(learner, rows.context, chunk, each, cache, JointConfig(**how), generator)
