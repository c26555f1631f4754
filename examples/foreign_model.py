"""A world model that is not ours, measured and used as a gym: an adapter, and a tiny random model to adapt.

    imagine evaluate world-model --foreign examples.foreign_model:adapter --windows 64 --episodes 8
    python examples/foreign_model.py

``VideoModel`` stands for what others publish: pixels in [-1, 1] with the channels first, one action per tick, a video
out. Its weights are random, so it fails every measure but the codec's; put your own in its place.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn


class VideoModel(nn.Module):
    """From a picture (B, 3, H, W) in [-1, 1] and actions (B, K, A) to a video (B, 3, F, H, W)."""

    def __init__(self, actions: int = 8, frames: int = 4) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.frames = frames
        self.drive, self.paint = nn.Linear(actions, 3 * frames), nn.Conv2d(3, 3 * frames, 3, padding=1)

    def generate(self, picture: Tensor, actions: Tensor) -> Tensor:
        moved = self.paint(picture) + self.drive(actions.mean(1))[:, :, None, None]
        return (picture[:, :, None] + 0.1 * moved.unflatten(1, (3, self.frames)).tanh()).clamp(-1, 1)


class Adapter:
    """The three methods that ``imagine`` asks for; a state is the newest video."""

    def __init__(self, model: VideoModel) -> None:
        self.model = model.eval()

    def encode(self, frames: np.ndarray, proprio: np.ndarray, instructions: Sequence[str]) -> Tensor:
        return torch.from_numpy(frames).movedim(-1, 1).float() / 127.5 - 1

    @torch.inference_mode()
    def predict(self, state: Tensor, actions: np.ndarray, seeds: Sequence[int]) -> Tensor:
        return self.model.generate(state[:, :, -1], torch.from_numpy(actions).float())

    def decode(self, state: Tensor) -> np.ndarray:
        return ((state + 1) * 127.5).round().to(torch.uint8).movedim(1, -1).numpy()


def adapter() -> Adapter:
    return Adapter(VideoModel())


def main() -> None:
    """Step it as an environment, under a judge of one's own."""
    import gymnasium

    def judge(frames: np.ndarray, instructions: Sequence[str]) -> Any:
        return np.zeros(len(frames))

    env = gymnasium.make("imagine:imagine/Dream-v0", foreign=adapter(), judge=judge, starts="saved")
    env.reset(seed=0)
    observation, reward, *_ = env.step(env.action_space.sample() * 0.1)
    print(sorted(observation), reward)


if __name__ == "__main__":
    main()
