"""Flow-GRPO: a clipped policy gradient on the chain of denoising steps, with group advantages and no critic.

What it departs from in its source: the kernel is Flow-CPS by default, which carries out no noise (``sde`` is the
paper's); every minibatch visits one noisy denoising step per decision, drawn anew, instead of all of them; log
densities are summed over a chunk's numbers, not meaned, so the clip range is PPO's; the lower and upper clip differ
(DAPO, arXiv:2503.14476); advantages are by default against the batch, see ``experience.advantages``.
Source: Flow-GRPO, arXiv:2505.05470, equations 4 to 9; Flow-CPS, arXiv:2509.05952.
"""

from __future__ import annotations

import torch
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor

from imagine.agents.finetune.experience import Decisions, velocity
from imagine.agents.finetune.kernel import LEAST, FlowKernel
from imagine.model.model import WorldActionModel
from imagine.noise import schedule


class FlowGRPO(BaseModel):
    """See the head of this file.

    Attributes:
        low: the ratio is clipped at 1 - low from below.
        high: and at 1 + high from above.
        kl_weight: weight of the divergence from the base policy, nats per denoising step.
        most: advantages are clipped to +-most.
        kernel: how rollouts explore; must be random.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    low: float = Field(default=0.2, gt=0)
    high: float = Field(default=0.28, gt=0)
    kl_weight: float = Field(default=0.003, ge=0)
    most: float = 3.0
    kernel: FlowKernel = FlowKernel(kind="cps", noise=0.6)

    def usable(self, rows: Decisions) -> Tensor:
        """Decisions of groups in which something was better than something else."""
        return rows.advantage != 0

    @torch.no_grad()
    def prepare(self, rows: Decisions, behaviour: WorldActionModel) -> Tensor:
        """(R, S) log density of every step of the chain under the policy that acted."""
        parts = []
        for begin in range(0, len(rows), 256):
            some = rows.index(slice(begin, begin + 256))
            parts.append(self.log_probs(behaviour, some, list(range(rows.chain.shape[1] - 1))))
        return torch.cat(parts) if parts else torch.zeros(0, rows.chain.shape[1] - 1)

    def log_probs(self, model: WorldActionModel, rows: Decisions, steps: list[int]) -> Tensor:
        """(B, len(steps)) log density of some steps of the chain under ``model``."""
        levels = schedule(rows.chain.shape[1] - 1, model.schedule_shift).tolist()
        out = []
        for k in steps:
            v = velocity(model, rows.context, rows.chain[:, k], levels[k])
            out.append(self.kernel.log_prob(rows.chain[:, k + 1], rows.chain[:, k], v, levels[k], levels[k + 1]))
        return torch.stack(out, 1)

    def noisy_steps(self, steps: int, shift: float) -> list[int]:
        """Steps of the chain that have noise, and so a gradient."""
        levels, one = schedule(steps, shift).tolist(), torch.zeros(1)
        return [k for k in range(steps) if self.kernel.moments(one, one, levels[k], levels[k + 1])[1] > LEAST]

    def loss(
        self, learner: WorldActionModel, behaviour: WorldActionModel, base: WorldActionModel, rows: Decisions,
        prepared: Tensor, generator: torch.Generator,
    ) -> tuple[Tensor, dict[str, float]]:  # fmt: skip
        """The clipped surrogate and the divergence, at one noisy step of each decision's chain."""
        steps = rows.chain.shape[1] - 1
        levels = schedule(steps, learner.schedule_shift).tolist()
        noisy = self.noisy_steps(steps, learner.schedule_shift)
        k = noisy[int(torch.randint(len(noisy), (), generator=generator))]
        x, after = rows.chain[:, k], rows.chain[:, k + 1]
        v = velocity(learner, rows.context, x, levels[k])
        with torch.no_grad():
            reference = velocity(base, rows.context, x, levels[k])
        logp = self.kernel.log_prob(after, x, v, levels[k], levels[k + 1])
        ratio = (logp - prepared[:, k]).exp()
        advantage = rows.advantage.clamp(-self.most, self.most)
        gain = torch.minimum(ratio * advantage, ratio.clamp(1 - self.low, 1 + self.high) * advantage)
        divergence = self.kernel.kl(x, v, reference, levels[k], levels[k + 1])
        clipped = ((ratio < 1 - self.low) | (ratio > 1 + self.high)).float().mean()
        numbers = {"ratio": ratio.detach().mean().item(), "clipped": clipped.item()}
        return -gain.mean() + self.kl_weight * divergence.mean(), numbers
