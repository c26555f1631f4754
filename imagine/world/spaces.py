"""Gymnasium spaces of an embodiment: the dream and the real robot share them to the letter."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import gymnasium as gym
import numpy as np
import torch
from torch.nn import functional as F

from imagine.embodiment import Embodiment
from imagine.types import INSTRUCTION_BYTES, ImagineError

OBSERVATIONS = ("dict", "pixels", "proprio")
"""What ``obs_type`` may be, see :class:`ObservationType`."""


def observation_space(body: Embodiment) -> gym.spaces.Dict:
    """One uint8 image per view, ``proprio`` (P,) float32 in robot units, ``instruction`` (512,) uint8 UTF-8 bytes."""
    images = {v.name: gym.spaces.Box(0, 255, (v.height, v.width, 3), np.uint8) for v in body.views}
    return gym.spaces.Dict(
        {
            **images,
            "proprio": gym.spaces.Box(-np.inf, np.inf, (body.proprio_dim,), np.float32),
            "instruction": gym.spaces.Box(0, 255, (INSTRUCTION_BYTES,), np.uint8),
        }
    )


def action_space(body: Embodiment) -> gym.spaces.Box:
    """One chunk: (K, A) float32 in robot units."""
    shape = (body.chunk_actions, body.action_dim)
    low = np.broadcast_to(body.action_low, shape).copy()
    return gym.spaces.Box(low, np.broadcast_to(body.action_high, shape).copy(), shape, np.float32)


@dataclass(frozen=True)
class ObservationType:
    """How much of an observation is handed out, and how large its pictures are.

    Attributes:
        body: whose observations.
        obs_type: ``dict``, all of it, as :func:`observation_space` has it; ``pixels``, one picture of all views as they
            lie on the canvas, for stock networks that look; ``proprio``, (P,) float32 in robot units. The last two
            leave the instruction out, so an agent that is to be told what to do needs the first.
        view_size: (height, width) of every picture, or one number for both; None: as the robot has them.

    Raises:
        ImagineError: there is no such type, a size is below 1, or there is nothing to resize.
    """

    body: Embodiment
    obs_type: str = "dict"
    view_size: int | tuple[int, int] | None = None

    def __post_init__(self) -> None:
        if self.obs_type not in OBSERVATIONS:
            raise ImagineError(f"obs_type is {self.obs_type!r}, expected one of {', '.join(OBSERVATIONS)}.")
        if self.view_size is not None:
            size = (self.view_size,) * 2 if isinstance(self.view_size, int) else tuple(self.view_size)
            if len(size) != 2 or not all(isinstance(x, int) and x > 0 for x in size) or self.obs_type == "proprio":
                raise ImagineError(
                    f"view_size is {self.view_size!r} of {self.obs_type}, expected pixels, or (height, width) in "
                    "pixels, of an obs_type that has pictures."
                )
            object.__setattr__(self, "view_size", size)

    @property
    def space(self) -> gym.Space[Any]:
        """Of one environment."""
        everything, body = observation_space(self.body), self.body
        if self.obs_type == "proprio":
            return everything["proprio"]
        if self.obs_type == "pixels":
            return self._picture(body.canvas_height, body.canvas_width)
        sizes = {v.name: self._picture(v.height, v.width) for v in body.views}
        return gym.spaces.Dict({**everything, **sizes})

    def __call__(self, observation: Mapping[str, np.ndarray]) -> Any:
        """The same observation, of one environment or of several, in :attr:`space`."""
        if self.obs_type == "proprio":
            return observation["proprio"]
        views = {v.name: observation[v.name] for v in self.body.views}
        if self.obs_type == "pixels":
            return self._resized(self.body.tile(views))
        return {**observation, **{name: self._resized(image) for name, image in views.items()}}

    def _picture(self, height: int, width: int) -> gym.spaces.Box:
        return gym.spaces.Box(0, 255, (*(self.view_size or (height, width)), 3), np.uint8)  # type: ignore[misc]

    def _resized(self, image: np.ndarray) -> np.ndarray:
        """(..., h, w, 3) uint8 at the size of the views."""
        if self.view_size in (None, image.shape[-3:-1]):
            return image
        pixels = torch.from_numpy(np.array(image)).reshape(-1, *image.shape[-3:]).movedim(-1, 1).float()
        sized = F.interpolate(pixels, self.view_size, mode="bilinear", antialias=True)  # type: ignore[arg-type]
        sized = sized.round().clamp(0, 255).to(torch.uint8).movedim(1, -1)
        return sized.reshape(*image.shape[:-3], *sized.shape[1:]).numpy()
