"""The only place that knows how noise is mixed in: x = (1 - sigma) clean + sigma eps, velocity = eps - clean.

Source: flow matching (Lipman et al., arXiv:2210.02747) with rectified paths; timestep shift as in Wan and SD3
(Esser et al., arXiv:2403.03206); decoupled levels per modality as in UWM (arXiv:2504.02792).
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from pydantic import BaseModel, ConfigDict
from torch import Tensor

from imagine.types import Chunk, NoiseLevels

SIGMA_FLOOR = 1e-3  # a clean prediction is divided by sigma to become a velocity; zero would give infinity


def expand(sigma: Tensor, like: Tensor) -> Tensor:
    """(B,) to (B, 1, ..., 1) for broadcasting against ``like``."""
    return sigma.view(-1, *([1] * (like.ndim - 1)))


def mix(clean: Tensor, eps: Tensor, sigma: Tensor) -> Tensor:
    """Noisy sample at level ``sigma`` (B,): (1 - sigma) clean + sigma eps."""
    s = expand(sigma, clean)
    return (1 - s) * clean + s * eps


def velocity_from_clean(noisy: Tensor, clean: Tensor, sigma: Tensor) -> Tensor:
    """The velocity that points from a predicted ``clean`` to ``noisy``: (noisy - clean) / sigma."""
    return (noisy - clean) / expand(sigma, noisy).clamp(min=SIGMA_FLOOR)


def clean_from_velocity(noisy: Tensor, velocity: Tensor, sigma: Tensor) -> Tensor:
    """The clean sample that a predicted ``velocity`` points away from: noisy - sigma velocity."""
    return noisy - expand(sigma, noisy) * velocity


def of_each(
    convert: Callable[[Tensor, Tensor, Tensor], Tensor], noisy: Chunk, other: Chunk, sigma: NoiseLevels
) -> Chunk:
    """:func:`velocity_from_clean` or :func:`clean_from_velocity` for each modality that both chunks have."""
    levels = {"video": sigma.video, "proprio": sigma.video, "action": sigma.action}
    both = {n: (getattr(noisy, n), getattr(other, n), level) for n, level in levels.items()}
    return Chunk(**{n: None if x is None or y is None else convert(x, y, level) for n, (x, y, level) in both.items()})


def shift(sigma: Tensor, by: float) -> Tensor:
    """Move mass towards noise: by * s / (1 + (by - 1) s); ``by`` = 1 leaves it."""
    return by * sigma / (1 + (by - 1) * sigma)


def schedule(steps: int, by: float = 1.0) -> Tensor:
    """Levels from 1 to 0 inclusive, (steps + 1,) float32, shifted towards noise."""
    return shift(torch.linspace(1, 0, steps + 1), by)


class Shares(BaseModel):
    """Relative weight of the edges and the inside of the noise square among training draws.

    Attributes:
        dynamics: action clean.
        inverse: video clean.
        joint: both at one level.
        free: independent levels.
        flash: independent levels too, video mostly noise: sigma_video ~ Beta(7, 1), mean 7/8, sigma_action uniform.
            DreamZero writes t = 1 - eta for its time, the *clean* share, with eta ~ Beta(7, 1) and E[t] = 1/8; ours is
            the noise, sigma = 1 - t = eta. Such a model acts after one step, on video that is hardly begun.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    dynamics: float = 0.75
    inverse: float = 0.1
    joint: float = 0.08
    free: float = 0.07
    flash: float = 0.0


def draw_levels(
    n: int, shares: Shares, *, video_shift: float, generator: torch.Generator, pure: float = 0.15
) -> NoiseLevels:
    """Training draws of decoupled noise levels, with mass on the edges so that every question is in distribution.

    Args:
        n: how many samples.
        shares: how often each edge, and the inside of the square, is drawn.
        video_shift: moves video levels towards noise, where a few-step sampler spends its steps.
        generator: draws on the CPU.
        pure: share of video levels that are exactly 1, all that a one-step sampler ever asks about.

    Source: UWM, arXiv:2504.02792; flash: DreamZero-Flash, arXiv:2602.15922.
    """
    weights = torch.tensor([shares.dynamics, shares.inverse, shares.joint, shares.free])
    if shares.flash:  # appended only then, so that all else draws what it always drew
        weights = torch.cat([weights, torch.tensor([shares.flash])])
    kind = torch.multinomial(weights, n, replacement=True, generator=generator)
    video = shift(torch.rand(n, generator=generator), video_shift)
    action = torch.rand(n, generator=generator)
    # Exactly pure noise is where every sample starts; uniform draws would never hit it.
    video = torch.where(torch.rand(n, generator=generator) < pure, torch.ones(n), video)
    action = torch.where(torch.rand(n, generator=generator) < 0.15, torch.ones(n), action)
    zero = torch.zeros(n)
    action = torch.where(kind == 0, zero, torch.where(kind == 2, video, action))
    video = torch.where(kind == 1, zero, video)
    if shares.flash:
        most, any_ = torch.rand(n, generator=generator) ** (1 / 7), torch.rand(n, generator=generator)
        video, action = torch.where(kind == 4, most, video), torch.where(kind == 4, any_, action)
    return NoiseLevels(video=video, action=action)


def loss_weight(sigma: Tensor, floor: float = 0.3) -> Tensor:
    """Weight of a squared error in ``clean``: 1 / max(sigma, floor)^2, a velocity loss that does not blow up.

    Source: min-SNR weighting (arXiv:2303.09556), restated for rectified flow.
    """
    return sigma.clamp(min=floor) ** -2
