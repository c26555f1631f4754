"""DreamZero's own way of sampling, to compare with: UniPC, and a network call before 8 (or 5) of 16 steps only."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from imagine.sampler import Transition

REUSED = {8: (0, 1, 2, 6, 10, 13, 14, 15), 5: (0, 1, 2, 7, 12)}
"""Of 16 steps, those before which DreamZero's static masks ask the network; ``calls`` of :func:`imagine.sample`."""


def unipc(steps: int = 16, shift: float = 5.0) -> tuple[Tensor, Mapping[str, Transition]]:
    """DreamZero's solver: ``grid`` and ``move`` of :func:`imagine.sample`, good for one sample.

    The network is told whole timesteps of 1000, as the reference does; the solver itself knows the exact levels.

    Args:
        steps: moves.
        shift: of the levels towards noise.

    Source: UniPC, arXiv:2302.04867, second order, through diffusers.
    """
    from diffusers import UniPCMultistepScheduler

    def one() -> Any:
        scheduler: Any = UniPCMultistepScheduler(
            num_train_timesteps=1000, solver_order=2, prediction_type="flow_prediction", use_flow_sigmas=True,
            flow_shift=shift,
        )  # fmt: skip
        scheduler.set_timesteps(steps)
        return scheduler

    def move(scheduler: Any) -> Transition:
        def go(step: int, x: Tensor, velocity: Tensor, sigma: float, to: float) -> Tensor:
            return scheduler.step(velocity, scheduler.timesteps[step], x, return_dict=False)[0]

        return go

    grid = torch.cat([one().timesteps.float().floor() / 1000, torch.zeros(1)])
    return grid, {name: move(one()) for name in ("video", "proprio", "action")}
