"""A foreign checkpoint as a WorldActionModel: loaded, asked, dreamt with, saved; small random weights, real layouts."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from test_wan import PLAIN, ZERO, diffusers_config, in_original, prefixed, store, weights, zero_config
from test_wan_encoders import Tokenizer, make_clip, make_t5, make_vae

from imagine.data.windows import Windows
from imagine.data.write import DatasetWriter, EpisodeData
from imagine.embodiment import Embodiment
from imagine.model.model import WorldActionModel
from imagine.policy.policy import JointPolicy
from imagine.questions import DYNAMICS, JOINT, QUESTIONS, VIDEO
from imagine.sampler import sample
from imagine.types import (
    CheckpointMismatch,
    Chunk,
    Clip,
    ImagineError,
    NoiseLevels,
    Observation,
    Score,
    ShapeError,
    UntrainedQuestion,
)
from imagine.wan.encoders import ImageEncoder, PromptEncoder, WanCodec
from imagine.wan.guidance import Guided
from imagine.wan.load import adopt, describe, load_pretrained, read_statistics, remembered
from imagine.world.dream import Dream, DreamConfig
from imagine.world.starts import Start

sys.path.append(str(Path(__file__).parent.parent / "benchmarks"))

from speed.unipc import REUSED, unipc

pytestmark = pytest.mark.slow  # importing diffusers and transformers takes seconds

BODY = Embodiment.model_validate(
    {
        "name": "small", "robot_type": "small", "control_hz": 30, "chunk_actions": 8, "chunk_frames": 8,
        "canvas_height": 32, "canvas_width": 32,
        "views": [{"name": "head", "key": "observation.images.head", "height": 16, "width": 32},
                  {"name": "hand", "key": "observation.images.hand", "height": 16, "width": 16, "top": 16}],
        "state": [{"name": "arm", "key": "observation.state", "start": 0, "stop": 2, "unit": "rad"},
                  {"name": "grip", "key": "observation.state", "start": 2, "stop": 3, "unit": "1"}],
        "proprio": ["arm", "grip"],
        "action": [{"name": "arm", "key": "action", "start": 0, "stop": 2, "unit": "rad", "relative_to": "arm",
                    "low": -0.5, "high": 0.5},
                   {"name": "grip", "key": "action", "start": 2, "stop": 3, "unit": "1", "low": 0, "high": 1}],
    }
)  # fmt: skip
CFG = ZERO.model_copy(update={"condition_channels": 8, "image_dim": 24, "text_dim": 24})
STATISTICS = {
    "small": {
        "statistics": {
            "state": {"arm": {"q01": [-1, 0], "q99": [1, 2]}, "grip": {"q01": [0], "q99": [1]}},
            "action": {"arm": {"q01": [9, 9], "q99": [10, 10]}, "grip": {"q01": [0], "q99": [1]}},
        }
    }
}
ALL = tuple(QUESTIONS)
TEMPLATE = "a robot {task} now"


def parts() -> dict[str, Any]:
    return {
        "codec": WanCodec(make_vae()),
        "text": PromptEncoder(make_t5(), Tokenizer(), length=6),
        "image_encoder": ImageEncoder(make_clip()),
    }


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A DreamZero in its original layout, with statistics beside it."""
    at = tmp_path_factory.mktemp("wan") / "DreamZero-Small"
    store(at, zero_config(CFG, num_action_per_block=8), prefixed(in_original(weights(CFG))), 3)
    (at / "experiment_cfg").mkdir()
    (at / "experiment_cfg" / "metadata.json").write_text(json.dumps(STATISTICS))
    moved = {"arm": {"q01": [-0.2, -0.2], "q99": [0.2, 0.4]}}
    (at / "experiment_cfg" / "relative_stats_dreamzero.json").write_text(json.dumps(moved))
    return at


def loaded(folder: Path, **more: Any) -> WorldActionModel:
    return load_pretrained(folder, BODY, template=TEMPLATE, **parts() | more)


@pytest.fixture(scope="module")
def model(folder: Path) -> WorldActionModel:
    """Said to answer everything, which random weights do as well as anything else."""
    return loaded(folder, answers=ALL, sink_blocks=1)


@pytest.fixture(scope="module")
def forgetful(folder: Path) -> WorldActionModel:
    """It remembers a first frame and one block, three latents: cheap to film."""
    return loaded(folder, answers=ALL, sink_blocks=1, max_context_blocks=2)


def seen(lanes: int = 2, frames: int = 1, seed: int = 0) -> Observation:
    g = torch.Generator().manual_seed(seed)
    canvas = torch.randint(0, 256, (lanes, frames, 32, 32, 3), generator=g, dtype=torch.uint8)
    return Observation(canvas, torch.rand(lanes, frames, 3, generator=g))


def told(lanes: int = 2) -> list[str]:
    return ["Push it", "grasp it"][:lanes]


# ---------------------------------------------------------------------- loading
def test_a_released_checkpoint_answers_what_it_was_trained_for(folder: Path) -> None:
    model = loaded(folder)
    assert model.answers == {JOINT} and model.cfg.context_frames == remembered(model.cfg.dit) == 5
    assert model.chunk_shapes == {"video": (2, 4, 4, 4), "action": (8, 5)}  # no next state; the registers' full width
    context = model.encode(seen(), told())
    with pytest.raises(UntrainedQuestion, match="answers JOINT; DYNAMICS starts at"):
        sample(model, DYNAMICS, context, action=torch.zeros(2, 8, 5))
    chunk = sample(model, JOINT, context, steps=2, seeds=[1, 2])
    assert chunk.video is not None and chunk.video.shape == (2, 2, 4, 4, 4) and chunk.proprio is None
    assert model.restore_action(chunk.action).shape == (2, 8, 3)  # type: ignore[arg-type]
    film = model.decode_frames(chunk.video, context.video)
    assert film.shape == (2, 8, 32, 32, 3) and torch.equal(film[:, 3::4], model.decode(chunk.video, context.video))


def test_statistics_are_quantiles_and_relative_where_actions_are(folder: Path) -> None:
    found = read_statistics(folder, BODY)
    assert found.proprio_mean == (0, 1, 0.5) and found.proprio_std == (1, 1, 0.5)
    assert np.allclose(found.action_mean, (0, 0.1, 0.5)) and np.allclose(found.action_std, (0.2, 0.3, 0.5))
    other = BODY.model_copy(update={"proprio": ("arm",), "name": "other"})
    assert read_statistics(folder, other).proprio_mean == (0, 1)  # the only robot that the file knows


def test_what_does_not_fit_is_said(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(ShapeError, match="checkpoint's chunk is 8 actions, that of 'small' 16"):
        load_pretrained(folder, BODY.model_copy(update={"chunk_actions": 16}), **parts())
    with pytest.raises(ShapeError, match="checkpoint's chunk is 8 frames, that of 'small' 4"):
        load_pretrained(folder, BODY.model_copy(update={"chunk_frames": 4}), **parts())
    with pytest.raises(CheckpointMismatch, match="no metadata"):
        read_statistics(tmp_path, BODY)
    with pytest.raises(CheckpointMismatch, match="no quantiles of 2 numbers for 'arm'"):
        (tmp_path / "metadata.json").write_text(json.dumps({"small": {"statistics": {"state": {"arm": {}}}}}))
        read_statistics(tmp_path, BODY)


def test_what_is_saved_is_loaded_again(folder: Path, model: WorldActionModel, tmp_path: Path) -> None:
    from imagine.model.config import ModelConfig
    from imagine.wan.load import rebuild

    model.save_pretrained(tmp_path / "mine")
    cfg = ModelConfig.model_validate_json((tmp_path / "mine" / "config.json").read_text())
    again = rebuild(cfg, tmp_path / "mine", **parts())
    assert cfg == model.cfg.model_copy(update={"weights": None}) and again.answers == model.answers
    state = again.dit.state_dict()
    assert all(torch.equal(v, state[n]) for n, v in model.dit.state_dict().items())
    (tmp_path / "mine" / "model.safetensors").unlink()
    with pytest.raises(CheckpointMismatch):
        rebuild(cfg, tmp_path / "mine", **parts())


def test_a_foreign_folder_is_told_from_a_broken_one(folder: Path) -> None:
    with pytest.raises(CheckpointMismatch, match=r"is foreign \(dreamzero\); `imagine convert"):
        WorldActionModel.from_pretrained(folder)


def test_an_adopted_checkpoint_stays_where_it_is(folder: Path, tmp_path: Path) -> None:
    """The command reads headers alone, and what it writes is a model folder like any other."""
    import yaml

    from imagine.configs.commands.convert import Args, run
    from imagine.model.config import ModelConfig
    from imagine.wan.load import rebuild

    (tmp_path / "body.yaml").write_text(yaml.safe_dump(BODY.model_dump(mode="json")))
    asked: dict[str, Any] = {"checkpoint": str(folder), "embodiment": str(tmp_path / "body.yaml"), "prompt": "droid"}
    with pytest.raises(CheckpointMismatch, match="4 channels are none of Wan's codecs"):
        run(Args(out=tmp_path / "a", **asked))
    cfg = describe(folder, BODY, template=TEMPLATE, factor=8, length=6)
    model = loaded(folder)
    assert cfg == model.cfg and cfg.weights == str(folder)
    adopt(folder, BODY, tmp_path / "mine", template=TEMPLATE, factor=8, length=6)
    read = ModelConfig.model_validate_json((tmp_path / "mine" / "config.json").read_text())
    again = rebuild(read, tmp_path / "mine", **parts())
    assert all(torch.equal(v, again.dit.state_dict()[n]) for n, v in model.dit.state_dict().items())
    for wrong, said in (
        ({"checkpoint": ""}, "--checkpoint is missing"),
        ({"parity": "exact"}, "--parity is 'exact'"),
        ({"answers": ("TASTE",)}, "--answers holds"),
        ({"prompt": "mars"}, "--prompt is 'mars'"),
        ({"skip_black": True}, "--skip-black knows the canvas of agibot"),
    ):
        with pytest.raises(ImagineError, match=said):
            run(Args(out=tmp_path / "b", **asked | wrong))


@torch.no_grad()
def test_a_plain_wan_is_adopted_without_statistics(tmp_path: Path) -> None:
    from imagine.configs.commands.convert import Args, run
    from imagine.model.config import ModelConfig

    cfg = PLAIN.model_copy(update={"channels": 16})
    store(tmp_path / "Wan" / "transformer", diffusers_config(cfg), weights(cfg), 2)
    asked: dict[str, Any] = {"checkpoint": str(tmp_path / "Wan"), "embodiment": "agibot_g1", "prompt": "plain"}
    assert run(Args(out=tmp_path / "a", **asked))["answers"] == ["VIDEO"]
    read = ModelConfig.model_validate_json((tmp_path / "a" / "model" / "config.json").read_bytes())
    assert len(read.statistics.action_mean) == 22 and read.dit.action_dim == 0

    given = read.statistics.model_copy(update={"proprio_mean": (0.5,) * 20})
    (tmp_path / "own.json").write_text(given.model_dump_json())
    run(Args(out=tmp_path / "b", **asked, statistics=str(tmp_path / "own.json")))
    again = ModelConfig.model_validate_json((tmp_path / "b" / "model" / "config.json").read_bytes())
    assert again.statistics == given
    (tmp_path / "own.json").write_text('{"proprio_mean": [1, "two"]}')
    with pytest.raises(ImagineError, match=r"own\.json: proprio_mean\.1: Input should be a valid number"):
        run(Args(out=tmp_path / "c", **asked, statistics=str(tmp_path / "own.json")))


@torch.no_grad()
def test_a_plain_wan_films(tmp_path: Path) -> None:
    cfg = PLAIN.model_copy(update={"text_dim": 24})
    store(tmp_path, diffusers_config(cfg), weights(cfg), 1)
    model = loaded(tmp_path)
    film = sample(model, VIDEO, model.encode(seen(), told()), steps=1, seeds=[0, 1])
    assert film.video is not None and film.video.isfinite().all() and film.action is None


@pytest.mark.parametrize("name", ["agibot_g1"])
def test_shipped_embodiments_fit_their_canvas(name: str) -> None:
    body = Embodiment.load(Path(__file__).parent.parent / "policy" / "robots" / f"{name}.yaml")
    assert (body.action_dim, body.proprio_dim, body.canvas_height, body.canvas_width) == (22, 20, 352, 640)


# ---------------------------------------------------------------------- what it is told
@torch.no_grad()
def test_a_context_is_what_wan_i2v_is_told(model: WorldActionModel) -> None:
    """A robot that has stood still: film of one frame, held; mask, first frame, image tokens and the whole prompt."""
    held = seen()
    context = model.encode(held, told())
    film = held.canvas.expand(-1, 17, -1, -1, -1)
    assert torch.equal(context.video, model.codec.encode(film)) and context.video.shape[1] == 5
    assert torch.equal(context.condition, model.codec.condition(held.canvas[:, 0], 5 + 2))  # type: ignore[arg-type]
    assert torch.equal(context.image, model.image_encoder(held.canvas[:, 0]))  # type: ignore[arg-type, misc]
    assert torch.equal(context.text, model.text(["a robot push it now", "a robot grasp it now"]))
    assert torch.equal(context.proprio[:, -1], model.normalise_proprio(held.proprio[:, -1]))
    longer = seen(frames=30)
    assert torch.equal(model.encode(longer, told()).video, model.codec.encode(longer.canvas[:, -17:]))


@torch.no_grad()
def test_numbers_beyond_the_robots_are_noise_to_be_cut_off(model: WorldActionModel) -> None:
    """The network was trained with noise in all its action dimensions, so it gets noise, and zeros where clean."""
    given = model.normalise_action(torch.zeros(2, 8, 3))
    assert given.shape == (2, 8, 5) and (given[..., 3:] == 0).all()
    noisy = []
    inner = model.dit.registers.action_encoder
    hook = inner.register_forward_pre_hook(lambda _, args: noisy.append(args[0]))
    sample(model, JOINT, model.encode(seen(), told()), steps=1, seeds=[0, 1])
    hook.remove()
    assert (noisy[0][..., 3:].abs() > 1e-3).all()


def test_state_follows_the_commanded_joints(model: WorldActionModel) -> None:
    context = model.encode(seen(), told())
    move = torch.zeros(2, 8, 3)
    move[:, :, 0] = torch.linspace(0.05, 0.4, 8)
    move[:, :, 2] = 0.75
    felt = model.restore_proprio(model.integrate_proprio(context, Chunk(action=model.normalise_action(move))))
    before = model.restore_proprio(context.proprio[:, -1])
    torch.testing.assert_close(felt[:, 0, 0] - before[:, 0], torch.full((2,), 0.2))  # after the fourth action
    torch.testing.assert_close(felt[:, 1, 0] - before[:, 0], torch.full((2,), 0.4))
    torch.testing.assert_close(felt[:, :, 1], before[:, None, 1].expand(2, 2))
    torch.testing.assert_close(felt[:, :, 2], torch.full((2, 2), 0.75))


@torch.no_grad()
def test_half_precision_agrees(folder: Path) -> None:
    whole, half = loaded(folder), loaded(folder, dtype=torch.bfloat16)
    context = whole.encode(seen(), told())
    x = Chunk(video=torch.randn(2, 2, 4, 4, 4), action=torch.randn(2, 8, 5))
    a, b = (m.velocity(x, NoiseLevels(torch.full((2,), 0.5), torch.ones(2)), context) for m in (whole, half))
    for name in ("video", "action"):
        want, got = getattr(a, name), getattr(b, name)
        assert (got.float() - want).norm() < 0.05 * want.norm()


def test_it_drives_a_robot(folder: Path) -> None:
    policy = JointPolicy(loaded(folder), steps=2)
    assert policy.question is JOINT
    from imagine.types import pack_instruction

    seen = {
        "head": np.zeros((1, 16, 32, 3), np.uint8), "hand": np.zeros((1, 16, 16, 3), np.uint8),
        "proprio": np.zeros((1, 3), np.float32), "instruction": pack_instruction("push it")[None],
    }  # fmt: skip
    assert policy.act(seen, [3]).shape == (1, 8, 3)
    assert policy.propose(policy.context(seen), [3], range(2)).shape == (1, 2, 8, 3)


# ---------------------------------------------------------------------- the gym
class Judge:
    """Never satisfied."""

    def __init__(self, looks: bool = False):
        self.looks = looks

    def __call__(self, clip: Clip, instruction: Any) -> Score:
        if self.looks:
            assert clip.decode().shape[:2] == clip.latents.shape[:2]
        n = len(clip.latents)
        return Score(torch.zeros(n), torch.zeros(n), torch.ones(n, dtype=torch.bool))


def start(seed: int, options: Any) -> Start:
    draw = np.random.default_rng(seed)
    return Start(
        draw.integers(0, 256, (32, 32, 3), dtype=np.uint8), draw.random(3, dtype=np.float32), "push it", str(seed)
    )


def dream(model: WorldActionModel, history: str, lanes: int = 2) -> Dream:
    cfg = DreamConfig(steps=1, tile=1, inverse_steps=1, history=history)  # type: ignore[arg-type]
    world = Dream(model, Judge(looks=history == "read"), start, cfg)  # type: ignore[arg-type]
    world.allocate(lanes)
    world.reset(np.arange(lanes), list(range(lanes)), {})
    return world


def chunk(lanes: int = 2, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).uniform(0, 0.3, (lanes, 8, 3)).astype(np.float32)


@pytest.mark.parametrize("history", ["read", "extend", "kept"])
def test_a_giant_is_a_gym(forgetful: WorldActionModel, history: str) -> None:
    """Chunk after chunk on its own frames; a lane's bytes are its own; a fork goes on as the original."""
    model = forgetful
    world, alone = dream(model, history), dream(model, history, lanes=1)
    outcome = world.step(chunk())
    alone.step(chunk()[:1])
    assert np.isfinite(outcome.info["hallucination"]).all()
    assert torch.equal(world.video[:1], alone.video) and world.observe()["head"].shape == (2, 16, 32, 3)
    assert world.frames(1).shape == (8, 32, 32, 3)
    fork = world.snapshot()
    world.step(chunk(seed=5))
    first = world.video.clone()
    for _ in range(2):
        world.restore(fork)
        world.step(chunk(seed=5))
        assert torch.equal(world.video, first)
    world.reset(np.array([1]), [77], {})
    fresh = dream(model, history)
    fresh.reset(np.array([1]), [77], {})
    fresh.step(chunk(seed=9)), world.step(chunk(seed=9))
    torch.testing.assert_close(world.video[1], fresh.video[1], rtol=0, atol=1e-5)


def test_the_first_frame_stays_and_the_newest_follow(forgetful: WorldActionModel) -> None:
    world = dream(forgetful, "extend")
    first = world.video[:, 0].clone()
    for k in range(2):
        world.step(chunk(seed=k))
    assert torch.equal(world.video[:, 0], first) and world.video.shape[1] == 3
    assert torch.equal(world.video[:, -2:], world.newest)


@torch.no_grad()
def test_extending_is_reading_until_something_is_forgotten(folder: Path) -> None:
    """With a memory as long as the episode, reading the newest chunk alone equals reading everything anew."""
    model = loaded(folder, answers=ALL, max_context_blocks=4)
    context = model.encode(seen(1), told(1))
    cache = model.prefill(context.index([0]))
    read = model.prefill(context)
    new = torch.randn(1, 2, 4, 4, 4, generator=torch.Generator().manual_seed(1))
    felt = context.proprio[:, -2:]
    assert cache.frames == model.cfg.context_frames == 7
    short = model.dit.read(context)
    for i, j in ((0, 1), (1, 3), (3, 5)):
        model.dit.extend(short, context.video[:, i:j], context.proprio[:, i:j])
    model.dit.extend(short, new, felt)
    from dataclasses import replace

    whole = replace(context, video=torch.cat([context.video[:, :5], new], 1))
    again = model.dit.prefill(whole)
    x = Chunk(video=torch.randn(1, 2, 4, 4, 4), action=torch.randn(1, 8, 5))
    level = NoiseLevels(torch.ones(1), torch.ones(1))
    a, b = model.dit(x, level, short), model.dit(x, level, again)
    torch.testing.assert_close(a.video, b.video, rtol=0, atol=1e-5)
    assert read.frames == 7


def test_the_references_memory_is_dropped_whenever_it_is_full(forgetful: WorldActionModel) -> None:
    """One frame, then one block, full at three latents; then a film that begins with the newest frame."""
    world = dream(forgetful, "reset")
    lengths = []
    for k in range(4):
        lengths.append([c.frames for c in world.history.caches])  # type: ignore[union-attr]
        world.step(chunk(seed=k))
        if k == 1:
            world.reset(np.array([0]), [5], {})
    assert lengths == [[1, 1], [3, 3], [1, 1], [3, 3]]
    with pytest.raises(ImagineError, match="tile=1"):
        Dream(forgetful, Judge(), start, DreamConfig(history="reset")).allocate(2)  # type: ignore[arg-type]


def test_a_model_whose_chunks_are_no_blocks_cannot_remember(tiny_model: WorldActionModel) -> None:
    world = Dream(tiny_model, Judge(), start, DreamConfig(history="kept"))  # type: ignore[arg-type]
    with pytest.raises(ImagineError, match="use history='read'"):
        world.allocate(2)


# ---------------------------------------------------------------------- learning DYNAMICS
def recorded(at: Path) -> Path:
    """Four episodes of noise, as LeRobot data of this robot."""
    writer, episodes = DatasetWriter(at, "small", 30), []
    for seed in (1, 2, 3, 20):
        draw = np.random.default_rng(seed)
        state = np.cumsum(draw.normal(0, 0.02, (25, 3)), 0).astype(np.float32)
        state[:, 2] = np.abs(state[:, 2])  # the gripper's opening, 0 to 1
        features = {"observation.state": state[:-1], "action": state[1:]}
        views = {
            "observation.images.head": draw.integers(0, 256, (24, 16, 32, 3), dtype=np.uint8),
            "observation.images.hand": draw.integers(0, 256, (24, 16, 16, 3), dtype=np.uint8),
        }
        episodes.append(EpisodeData(features, ["push it"] * 24, views, np.arange(24), seed=seed))
    writer.write_shard(0, episodes)
    writer.finalize()
    return at


def test_a_dreamzero_is_taught_dynamics(folder: Path, tmp_path: Path) -> None:
    """From a checkpoint that answers JOINT alone to a folder whose every question is answered, on recorded film."""
    from imagine.configs.commands.finetune_joint import Args, train
    from imagine.model.config import ModelConfig
    from imagine.train.adapt_loss import from_windows
    from imagine.wan.load import rebuild

    model = loaded(folder, max_context_blocks=2)
    asked = Args(
        dataset=(str(recorded(tmp_path / "data")),), steps=2, batch=2, rank=2, method="lora", out=tmp_path / "run"
    )
    answer = train(asked, model)
    assert set(answer["answers"].split(",")) == set(ALL)
    cfg = ModelConfig.model_validate_json((Path(answer["model"]) / "config.json").read_text())
    again = rebuild(cfg, Path(answer["model"]), **parts())
    context = again.encode(seen(), told())
    dream = sample(again, DYNAMICS, context, action=again.normalise_action(torch.zeros(2, 8, 3)), steps=1, seeds=[0, 1])
    assert dream.video is not None and dream.video.isfinite().all()

    windows = Windows([tmp_path / "run" / "cache" / "0"], BODY, context_frames=9)
    batch = windows.batch(windows.rows("all")[-2:])
    got = from_windows(model, batch)
    film = batch.video
    assert film.shape[1] == 9 + 8 and torch.equal(got.video, model.codec.encode(film)) and got.video.shape[1] == 3 + 2
    assert torch.equal(got.image, model.image_encoder(film[:, 0]))  # type: ignore[arg-type, misc]
    assert torch.equal(got.condition, model.codec.condition(film[:, 0], 5))  # type: ignore[arg-type]
    assert torch.equal(got.state, model.normalise_proprio(batch.proprio[:, 8]))
    assert torch.equal(got.video_valid, batch.video_valid[:, [3, 7]])


# ---------------------------------------------------------------------- DreamZero's own way of sampling
@torch.no_grad()
def test_dreamzeros_sampler_is_unipc_guided_on_video_alone(folder: Path) -> None:
    """Sixteen steps of which eight ask the network, against an explicit loop over diffusers' scheduler."""
    from dataclasses import replace

    from diffusers import UniPCMultistepScheduler

    model = loaded(folder, parity="dreamzero")
    context, negative = model.encode(seen(), told()), model.text(["static"])
    grid, move = unipc(16, 5.0)
    guided = Guided(model, negative, 5.0)
    noise = Chunk(video=torch.randn(2, 2, 4, 4, 4), action=torch.randn(2, 8, 5))
    got = sample(guided, JOINT, context, steps=16, grid=grid, move=move, calls=REUSED[8], noise=noise)

    plain, without = model.prefill(context), model.prefill(replace(context, text=negative.expand(2, -1, -1)))
    solvers = []
    for _ in range(2):
        solver: Any = UniPCMultistepScheduler(
            num_train_timesteps=1000, prediction_type="flow_prediction", use_flow_sigmas=True, flow_shift=5.0
        )
        solver.set_timesteps(16)
        solvers.append(solver)
    video, action = noise.video, noise.action
    for k, t in enumerate(solvers[0].timesteps):
        if k in (0, 1, 2, 6, 10, 13, 14, 15):
            level = NoiseLevels(*[(t / 1000).float().expand(2)] * 2)
            a = model.dit(Chunk(video=video, action=action), level, plain)
            b = model.dit(Chunk(video=video, action=action), level, without)
            flow = b.video + 5 * (a.video - b.video), a.action  # type: ignore[operator]
        video = solvers[0].step(flow[0], t, video, return_dict=False)[0]
        action = solvers[1].step(flow[1], t, action, return_dict=False)[0]
    torch.testing.assert_close(got.video, video, rtol=1e-4, atol=1e-4 * float(video.abs().max()))  # type: ignore[union-attr]
    torch.testing.assert_close(got.action, action, rtol=1e-4, atol=1e-4 * float(action.abs().max()))  # type: ignore[union-attr]
