"""FlowKernel: one move from noise towards action, as a Gaussian whose likelihood and divergence are known.

The deterministic sampler of a flow model has no likelihoods. A kernel replaces its step by a random one that leads to
the same distribution, so that policy gradients apply. ``cps`` keeps the path's coefficients of data and noise in every
single step and makes the last one without noise, which is why it is the default for actions that a robot carries out
(over many steps it loses a little of the data's own spread); ``sde`` is Flow-GRPO's.

Source: Flow-GRPO, arXiv:2505.05470 (sde); Flow-CPS, arXiv:2509.05952 (cps). Levels: 1 is noise, 0 is clean.
"""

from __future__ import annotations

import math
from typing import Literal

import torch
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor

from imagine.sampler import draw_noise, euler
from imagine.seeds import Stream, derive

LEAST = 1e-6  # a smaller standard deviation counts as none


class FlowKernel(BaseModel):
    """A family of transitions x at level ``sigma`` to x at level ``to`` < sigma, all computed in float32.

    Attributes:
        kind: ``ode``, ``sde`` or ``cps``.
        noise: how random: for ``sde`` the factor a of sigma_t = a sqrt(t / (1 - t)), for ``cps`` eta in [0, 1].
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    kind: Literal["ode", "sde", "cps"] = "cps"
    noise: float = Field(default=0.5, ge=0)

    def moments(self, x: Tensor, velocity: Tensor, sigma: float, to: float) -> tuple[Tensor, float]:
        """Mean (same shape as x) and standard deviation of the next x.

        Args:
            x: (B, ...) at level ``sigma``.
            velocity: eps - clean, predicted at x.
            sigma: level now, in (0, 1].
            to: next level, in [0, sigma).
        """
        x, velocity = x.float(), velocity.float()
        if self.kind == "ode" or self.noise == 0:
            return euler(0, x, velocity, sigma, to), 0.0
        clean, eps = x - sigma * velocity, x + (1 - sigma) * velocity
        if self.kind == "cps":
            angle = min(self.noise, 1.0) * math.pi / 2
            return clean * (1 - to) + eps * (to * math.cos(angle)), to * math.sin(angle)
        step = sigma - to
        # At sigma = 1 the factor is infinite; the published code takes the next level in its denominator instead.
        spread = self.noise * math.sqrt(sigma / (1 - (to if sigma == 1 else sigma)))
        drift = spread**2 / (2 * sigma)
        mean = x - step * (velocity + drift * (x + (1 - sigma) * velocity))
        return mean, spread * math.sqrt(step)

    def step(self, x: Tensor, velocity: Tensor, sigma: float, to: float, eps: Tensor) -> Tensor:
        """Draw the next x with standard normal ``eps`` of its shape."""
        mean, std = self.moments(x, velocity, sigma, to)
        return mean if std < LEAST else mean + std * eps.to(mean)

    def log_prob(self, after: Tensor, x: Tensor, velocity: Tensor, sigma: float, to: float) -> Tensor:
        """(B,) log density of ``after``, summed over its numbers; zeros where a move has no noise."""
        mean, std = self.moments(x, velocity, sigma, to)
        if std < LEAST:
            return torch.zeros(len(x), device=mean.device)
        z = (after.float() - mean) / std
        return (-0.5 * z.square() - math.log(std) - 0.5 * math.log(2 * math.pi)).flatten(1).sum(1)

    def kl(self, x: Tensor, velocity: Tensor, other: Tensor, sigma: float, to: float) -> Tensor:
        """(B,) divergence from the move under ``velocity`` to that under ``other``, in nats, summed over all numbers.

        Both have one variance, so it is ||mean - mean'||^2 / (2 std^2); zeros where a move has no noise.
        """
        mean, std = self.moments(x, velocity, sigma, to)
        if std < LEAST:
            return torch.zeros(len(x), device=mean.device)
        theirs, _ = self.moments(x, other, sigma, to)
        return ((mean - theirs) / std).square().flatten(1).sum(1) / 2


class Moves:
    """A kernel as the sampler's ``move``; row i's noise at step k depends on (seeds[i], k) alone."""

    def __init__(self, kernel: FlowKernel, seeds: list[int]) -> None:
        self.kernel, self.seeds = kernel, seeds

    def __call__(self, step: int, x: Tensor, velocity: Tensor, sigma: float, to: float) -> Tensor:
        """See :data:`imagine.sampler.Transition`."""
        if self.kernel.kind == "ode" or self.kernel.noise == 0:
            return euler(step, x, velocity, sigma, to)
        own = [derive(s, step, Stream.ACTION) for s in self.seeds]
        return self.kernel.step(x, velocity, sigma, to, draw_noise(tuple(x.shape[1:]), len(x), own, None))
