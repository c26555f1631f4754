"""A robot of three joints and a model of a few thousand weights, small enough for every test to have its own."""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch

sys.path.insert(0, str(Path(__file__).parent))  # so that tests can import oracles.py, whatever started pytest

from imagine.embodiment import Embodiment
from imagine.model.codec import CodecConfig
from imagine.model.dit import DiTConfig
from imagine.model.model import ModelConfig, Statistics, WorldActionModel
from imagine.model.text import TextConfig
from imagine.questions import QUESTIONS
from imagine.rewards.latent import HeadConfig, JudgeConfig, LatentJudge
from imagine.types import Observation
from imagine.world.starts import Start, save_starts

TINY_BODY = {
    "name": "tiny",
    "robot_type": "tiny",
    "control_hz": 10,
    "chunk_actions": 4,
    "chunk_frames": 2,
    "canvas_height": 16,
    "canvas_width": 16,
    "views": [{"name": "head", "key": "observation.images.head", "height": 16, "width": 16}],
    "state": [
        {"name": "arm", "key": "observation.state", "start": 0, "stop": 2, "unit": "rad"},
        {"name": "grip", "key": "observation.state", "start": 2, "stop": 3, "unit": "m"},
    ],
    "proprio": ["arm", "grip"],
    "action": [
        {
            "name": "arm",
            "key": "action",
            "start": 0,
            "stop": 2,
            "unit": "rad",
            "relative_to": "arm",
            "low": -0.5,
            "high": 0.5,
        },
    ],
}
TINY_DIT = DiTConfig(
    layers=2, heads=2, head_dim=16, ffn_dim=48, channels=4, text_dim=16, freq_dim=32,
    action_dim=2, action_patch=2, proprio_dim=3,
)  # fmt: skip
TINY_CODEC = CodecConfig(channels=4, widths=(8, 8, 16))


def randomise(module: torch.nn.Module, seed: int = 0, scale: float = 0.2) -> torch.nn.Module:
    """Give every parameter a random value, so that heads that start at zero hide nothing."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, p in module.named_parameters():
            centre = 1.0 if "norm" in name and name.endswith("weight") else 0.0
            p.copy_(centre + scale * torch.randn(p.shape, generator=generator))
    return module


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """Small tensors: more threads only get in each other's way."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="session")
def tiny_body() -> Embodiment:
    return Embodiment.model_validate(TINY_BODY)


@pytest.fixture
def tiny_model(tiny_body: Embodiment) -> WorldActionModel:
    """A WorldActionModel with random weights everywhere, in eval mode; every question answered."""
    cfg = ModelConfig(
        name="tiny",
        embodiment=tiny_body,
        dit=TINY_DIT,
        codec=TINY_CODEC,
        text=TextConfig(words=("bowl", "push", "reach", "red", "the"), length=4, dim=16),
        statistics=Statistics(
            proprio_mean=(0.1, -0.2, 0.3), proprio_std=(0.5, 2.0, 0.1), action_mean=(0.05, -0.1), action_std=(0.2, 0.1)
        ),
        answers=tuple(QUESTIONS),
    )
    return randomise(WorldActionModel(cfg)).eval()  # type: ignore[return-value]


@pytest.fixture
def tiny_observation() -> Observation:
    """Three lanes, two frames."""
    g = torch.Generator().manual_seed(3)
    canvas = torch.randint(0, 256, (3, 2, 16, 16, 3), generator=g, dtype=torch.uint8)
    return Observation(canvas=canvas, proprio=torch.randn(3, 2, 3, generator=g))


@pytest.fixture
def foreign(tiny_model: WorldActionModel, tmp_path: Path) -> Path:
    """The model folder of a robot that has no plug-in: weights, three saved starts, and a judge in latents."""
    folder = tmp_path / "foreign"
    tiny_model.save_pretrained(folder)
    rng = np.random.default_rng(0)
    canvas = rng.integers(0, 256, (3, 16, 16, 3), np.uint8)
    texts = ["push the bowl", "reach the bowl", "push the red bowl"]
    save_starts([Start(canvas[i], np.full(3, 0.1 * i, np.float32), text, "") for i, text in enumerate(texts)], folder)
    _, channels, height, width = tiny_model.chunk_shapes["video"]
    words = tiny_model.text.cfg.words
    sizes = {"channels": channels, "height": height, "width": width, "proprio": 3, "words": words}
    LatentJudge(JudgeConfig(**sizes, head=HeadConfig(width=8))).save(folder)  # type: ignore[arg-type]
    return folder


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Files with the most slow tests first, so that no worker begins one when the others have finished."""
    slow = Counter(item.path for item in items if item.get_closest_marker("slow"))
    items.sort(key=lambda item: -slow[item.path])
