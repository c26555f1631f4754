"""DiffusionNFT: learn from good and bad chunks alike, without likelihoods, by contrasting two implicit policies.

The policy that acted is pushed along the learner's change where a chunk turned out well, and against it where not; both
implicit policies are trained by plain flow matching on chunks carried out, so any sampler may have made them.
What it departs from in its source: rewards are advantages of whole imagined episodes, shared by their chunks;
errors have no adaptive weights.
Source: DiffusionNFT, arXiv:2509.16117, equations 5 to 9 and its soft-updated rollout policy.
"""

from __future__ import annotations

import torch
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor

from imagine.agents.finetune.experience import Decisions, velocity
from imagine.agents.finetune.kernel import FlowKernel
from imagine.model.model import WorldActionModel
from imagine.noise import clean_from_velocity, loss_weight, mix


class DiffusionNFT(BaseModel):
    """See the head of this file.

    Attributes:
        beta: how far the implicit policies lie from the one that acted, in units of the learner's change.
        most: advantages are clipped to +-most before they become the probability (A / most + 1) / 2 of being good.
        kernel: how rollouts explore.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    beta: float = Field(default=1.0, gt=0)
    most: float = Field(default=1.5, gt=0)
    kernel: FlowKernel = FlowKernel(kind="ode")

    def usable(self, rows: Decisions) -> Tensor:
        """Decisions of groups in which something was better than something else."""
        return rows.advantage != 0

    def prepare(self, rows: Decisions, behaviour: WorldActionModel) -> Tensor:
        """The probability (R,) that a chunk was good."""
        return (rows.advantage.clamp(-self.most, self.most) / self.most + 1) / 2

    def loss(
        self, learner: WorldActionModel, behaviour: WorldActionModel, base: WorldActionModel, rows: Decisions,
        prepared: Tensor, generator: torch.Generator,
    ) -> tuple[Tensor, dict[str, float]]:  # fmt: skip
        """Errors of both implicit policies, weighted by how good the chunk was."""
        clean = rows.chain[:, -1]
        sigma = torch.rand(len(clean), generator=generator).to(clean)
        noisy = mix(clean, torch.randn(clean.shape, generator=generator).to(clean), sigma)
        with torch.no_grad():
            old = velocity(behaviour, rows.context, noisy, sigma)
        change = self.beta * (velocity(learner, rows.context, noisy, sigma) - old)
        errors = [
            (clean_from_velocity(noisy, old + sign * change, sigma) - clean).square().mean((1, 2)) for sign in (1, -1)
        ]
        each = prepared * errors[0] + (1 - prepared) * errors[1]
        return (loss_weight(sigma, 0.6) * each).mean(), {"change": change.detach().square().mean().sqrt().item()}
