"""The decoder with memory: what it keeps, what it knows, and that a dream carries its memory along."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from imagine.model.decoder import DecoderConfig, SceneDecoder, without_tokens
from imagine.model.model import WorldActionModel, as_observation
from imagine.questions import DYNAMICS, VIDEO
from imagine.sampler import sample
from imagine.types import Context, ShapeError
from imagine.world.step import DreamConfig, predict_chunk
from tests.conftest import randomise

PATCH, CHANNELS, DIM, H, W = (2, 4, 4), 6, 32, 8, 12
DREAM = DreamConfig(inverse_steps=0)


def decoder(seed: int = 0, **change: int) -> SceneDecoder:
    torch.manual_seed(seed)
    made = SceneDecoder(DecoderConfig(blocks=1, width=16, memory=8, **change), CHANNELS, DIM, PATCH)
    made.initialise()
    return made.eval()


def inputs(b: int = 3, frames: int = 4) -> dict[str, torch.Tensor]:
    g = torch.Generator().manual_seed(b)
    shapes = {
        "noisy": (b, frames, CHANNELS, H, W),
        "last": (b, CHANNELS, H, W),
        "tokens": (b, frames // 2 * (H // 4) * (W // 4), DIM),
        "memory": (b, 8, H, W),
    }
    return {k: torch.randn(s, generator=g) for k, s in shapes.items()} | {"sigma": torch.ones(b)}


def test_an_untrained_scene_hardly_changes_and_neither_does_its_memory() -> None:
    given = inputs()
    given["last"] = given["last"].mean((2, 3), keepdim=True).expand(-1, -1, H, W)  # moving it changes nothing
    with torch.no_grad():
        made = decoder()
        made.write.weight.zero_()
        given["memory"] = torch.zeros_like(given["memory"])
        video, memory = made(**given)
    assert (video - given["last"][:, None]).abs().max() < 0.15 * given["last"].abs().max()
    assert memory.abs().max() < 1e-6


@pytest.mark.parametrize("shift", [(0, 0), (1, 0), (0, -2), (-2, 2)])
def test_what_is_moved_arrives_unchanged(shift: tuple[int, int]) -> None:
    """Weights that ask for one shift move every group of channels by it, exactly."""
    made, x = decoder(), torch.randn(2, 8, H, W)
    weights = torch.zeros(2, 4, 25, H, W)
    down, right = shift
    weights[:, :, (2 - down) * 5 + (2 - right)] = 1.0  # a cell takes what lies on the other side of it
    moved = made._moved(x, weights)
    inner = slice(2, -2)
    assert torch.equal(moved[:, :, inner, inner], torch.roll(x, shift, (2, 3))[:, :, inner, inner])


def test_pure_noise_is_not_looked_at_and_a_clean_video_is() -> None:
    given, made = inputs(), decoder()
    torch.nn.init.normal_(made.draw.weight, std=0.1)
    other = dict(given, noisy=torch.randn_like(given["noisy"]))
    with torch.no_grad():
        assert torch.equal(made(**given)[0], made(**other)[0])
        clean = torch.zeros(3)
        assert not torch.equal(made(**given | {"sigma": clean})[0], made(**other | {"sigma": clean})[0])


@torch.inference_mode()
def test_without_tokens_nothing_is_known_of_the_actions(memory_model: WorldActionModel) -> None:
    context = start(memory_model, 2)
    given = {"steps": 1, "seeds": [0, 1]}
    one = sample(memory_model, DYNAMICS, context, action=actions(memory_model, 0.0), **given)
    other = sample(memory_model, DYNAMICS, context, action=actions(memory_model, 1.0), **given)
    assert one.video is not None and other.video is not None
    assert not torch.equal(one.video, other.video)
    with without_tokens(memory_model):
        one = sample(memory_model, DYNAMICS, context, action=actions(memory_model, 0.0), **given)
        other = sample(memory_model, DYNAMICS, context, action=actions(memory_model, 1.0), **given)
    assert one.video is not None and other.video is not None
    assert torch.equal(one.video, other.video)


@pytest.fixture
def memory_model(tiny_model: WorldActionModel) -> WorldActionModel:
    """The tiny model with a scene decoder instead of its own linear head."""
    cfg = tiny_model.cfg
    drawn = DecoderConfig(blocks=1, width=16, memory=8)
    dit = cfg.dit.model_copy(update={"decoder": drawn})
    return randomise(WorldActionModel(cfg.model_copy(update={"dit": dit}))).eval()  # type: ignore[return-value]


def actions(model: WorldActionModel, value: float) -> torch.Tensor:
    return torch.full((2, *model.chunk_shapes["action"]), value)


def start(model: WorldActionModel, n: int, seed: int = 0) -> Context:
    rng = np.random.default_rng(seed)
    body = model.body
    frames = rng.integers(0, 255, (n, 1, body.canvas_height, body.canvas_width, 3), np.uint8)
    proprio = rng.normal(size=(n, 1, body.proprio_dim)).astype(np.float32)
    return model.encode(as_observation(frames, proprio), ["push the red bowl"] * n)


@torch.inference_mode()
def test_memory_is_carried_and_matters(memory_model: WorldActionModel) -> None:
    model, action = memory_model, actions(memory_model, 0.0)
    context = start(model, 2)
    assert context.memory is not None
    first = predict_chunk(model, context, action, DREAM, seeds=[0, 1])
    carried = model.after(context, first.video, first.proprio, first.memory)
    anew = model.after(context, first.video, first.proprio)
    assert first.memory is not None and torch.equal(carried.memory, first.memory)
    assert not torch.equal(carried.memory, anew.memory)
    then = [predict_chunk(model, c, action, DREAM, seeds=[0, 1]).video for c in (carried, anew)]
    assert not torch.equal(*then)


@pytest.mark.parametrize("seed", [0, 1, 2, 3])
def test_gradients_reach_the_first_chunk_through_memory_alone(seed: int) -> None:
    made = decoder(seed)
    torch.nn.init.normal_(made.draw.weight, std=0.1)
    given = inputs()
    memory = made.begin(given["last"])
    memory.retain_grad()
    video, _ = made(**given | {"last": torch.zeros(3, CHANNELS, H, W), "memory": memory})
    video.square().sum().backward()
    assert memory.grad is not None and memory.grad.abs().sum() > 0


@torch.inference_mode()
def test_video_without_actions_leaves_a_memory_too(memory_model: WorldActionModel) -> None:
    chunk = sample(memory_model, VIDEO, start(memory_model, 1), steps=2, seeds=[3])
    assert chunk.memory is not None and chunk.memory.shape == start(memory_model, 1).memory.shape


def test_sizes_that_cannot_work_are_refused() -> None:
    with pytest.raises(ShapeError, match="memory 6"):
        SceneDecoder(DecoderConfig(blocks=1, width=16, memory=6), CHANNELS, DIM, PATCH)
    with pytest.raises(ShapeError, match="patches of 1 x 4"):
        SceneDecoder(DecoderConfig(blocks=1, width=16, memory=8), CHANNELS, DIM, (2, 1, 4))
