"""JointDiT with DreamZero's registers answers as DreamZero's published forward pass, restated in dreamzero_dense.py.

Everything runs on the CPU in float32 on random weights of every kind. Where nothing else is said, the largest
difference is at most 1e-5 of the largest value.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Any

import pytest
import torch
from conftest import randomise
from dreamzero_dense import DreamZero
from torch import Tensor

from imagine.model.action_registers import RegisterConfig
from imagine.model.dit import DiTConfig, JointDiT
from imagine.model.kv_cache import ContextCache
from imagine.noise import schedule
from imagine.questions import JOINT, QUESTIONS, Question
from imagine.sampler import sample
from imagine.types import Chunk, Context, NoiseLevels

B, BLOCK, BLOCKS, ACTIONS = 2, 2, 3, 5
FRAMES = 1 + BLOCK * BLOCKS
CHANNELS, HEIGHT, WIDTH = 4, 4, 6
WORDS, PICTURE = 7, 3

COMMON: dict[str, Any] = {
    "layers": 2, "heads": 2, "head_dim": 20, "ffn_dim": 36, "patch": (1, 2, 2), "channels": CHANNELS, "text_dim": 14,
    "freq_dim": 16, "action_dim": 6, "action_patch": 1, "proprio_dim": 9, "see_last_frame": False,
    "pooled_text": False, "prediction": "velocity", "image_dim": 10, "block": BLOCK, "first_alone": True,
    "registers": RegisterConfig(action_dim=6, state_dim=9, hidden=22),
}  # fmt: skip
LAYOUTS = {"14B": {"condition_channels": 5}, "5B": {"condition_channels": 0}}  # 14B: Wan I2V, a mask and latents given


# ---------------------------------------------------------------------- weights by their original names
def original_weights(cfg: DiTConfig, seed: int) -> dict[str, Tensor]:
    """Random weights of every kind, none of them zero or one, under DreamZero's own names."""
    dim, registers, g = cfg.dim, cfg.registers, torch.Generator().manual_seed(seed)
    assert registers is not None
    w: dict[str, Tensor] = {}

    def randn(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=g)

    def linear(name: str, into: int, out: int) -> None:
        w[f"{name}.weight"], w[f"{name}.bias"] = randn(out, into) * into**-0.5, 0.2 * randn(out)

    def register(name: str, into: int, out: int) -> None:
        w[f"{name}.W"], w[f"{name}.b"] = randn(1, into, out) * into**-0.5, 0.2 * randn(1, out)

    def norm(name: str, width: int, bias: bool) -> None:
        w[f"{name}.weight"] = 1 + 0.2 * randn(width)
        if bias:
            w[f"{name}.bias"] = 0.2 * randn(width)

    inputs = CHANNELS + cfg.condition_channels
    w["patch_embedding.weight"] = randn(dim, inputs, *cfg.patch) * (4 * inputs) ** -0.5
    w["patch_embedding.bias"] = 0.2 * randn(dim)
    linear("time_embedding.0", cfg.freq_dim, dim)
    linear("time_embedding.2", dim, dim)
    linear("time_projection.1", dim, 6 * dim)
    linear("text_embedding.0", cfg.text_dim, dim)
    linear("text_embedding.2", dim, dim)
    norm("img_emb.proj.0", cfg.image_dim, bias=True)
    linear("img_emb.proj.1", cfg.image_dim, cfg.image_dim)
    linear("img_emb.proj.3", cfg.image_dim, dim)
    norm("img_emb.proj.4", dim, bias=True)
    for i in range(cfg.layers):
        for attention in ("self_attn", "cross_attn"):
            for part in "qkvo":
                linear(f"blocks.{i}.{attention}.{part}", dim, dim)
            for part in "qk":
                norm(f"blocks.{i}.{attention}.norm_{part}", dim, bias=False)
        linear(f"blocks.{i}.cross_attn.k_img", dim, dim)
        linear(f"blocks.{i}.cross_attn.v_img", dim, dim)
        norm(f"blocks.{i}.cross_attn.norm_k_img", dim, bias=False)
        norm(f"blocks.{i}.norm3", dim, bias=True)
        linear(f"blocks.{i}.ffn.0", dim, cfg.ffn_dim)
        linear(f"blocks.{i}.ffn.2", cfg.ffn_dim, dim)
        w[f"blocks.{i}.modulation"] = 0.5 * randn(1, 6, dim)
    linear("head.head", dim, 4 * CHANNELS)
    w["head.modulation"] = 0.5 * randn(1, 2, dim)
    register("state_encoder.layer1", registers.state_dim, registers.hidden)
    register("state_encoder.layer2", registers.hidden, dim)
    register("action_encoder.W1", registers.action_dim, dim)
    register("action_encoder.W2", 2 * dim, dim)
    register("action_encoder.W3", dim, dim)
    register("action_decoder.layer1", dim, registers.hidden)
    register("action_decoder.layer2", registers.hidden, registers.action_dim)
    return w


OURS = {
    "patch_embedding": "patch_embedding",
    "time_embedding.0": "condition_embedder.time_embedder.linear_1",
    "time_embedding.2": "condition_embedder.time_embedder.linear_2",
    "time_projection.1": "condition_embedder.time_proj",
    "text_embedding.0": "condition_embedder.text_embedder.linear_1",
    "text_embedding.2": "condition_embedder.text_embedder.linear_2",
    "img_emb.proj.0": "condition_embedder.image_embedder.norm1",
    "img_emb.proj.1": "condition_embedder.image_embedder.ff.net.0.proj",
    "img_emb.proj.3": "condition_embedder.image_embedder.ff.net.2",
    "img_emb.proj.4": "condition_embedder.image_embedder.norm2",
    "head.head": "proj_out",
    "state_encoder.layer1": "registers.state_encoder.linear_1",
    "state_encoder.layer2": "registers.state_encoder.linear_2",
    "action_encoder.W1": "registers.action_encoder.w1",
    "action_encoder.W2": "registers.action_encoder.w2",
    "action_encoder.W3": "registers.action_encoder.w3",
    "action_decoder.layer1": "registers.action_decoder.linear_1",
    "action_decoder.layer2": "registers.action_decoder.linear_2",
}
OURS_IN_A_BLOCK = {
    "self_attn.q": "attn1.to_q",
    "self_attn.k": "attn1.to_k",
    "self_attn.v": "attn1.to_v",
    "self_attn.o": "attn1.to_out.0",
    "self_attn.norm_q": "attn1.norm_q",
    "self_attn.norm_k": "attn1.norm_k",
    "norm3": "norm2",
    "cross_attn.q": "attn2.to_q",
    "cross_attn.k": "attn2.to_k",
    "cross_attn.v": "attn2.to_v",
    "cross_attn.o": "attn2.to_out.0",
    "cross_attn.norm_q": "attn2.norm_q",
    "cross_attn.norm_k": "attn2.norm_k",
    "cross_attn.k_img": "attn2.add_k_proj",
    "cross_attn.v_img": "attn2.add_v_proj",
    "cross_attn.norm_k_img": "attn2.norm_added_k",
    "ffn.0": "ffn.net.0.proj",
    "ffn.2": "ffn.net.2",
}


def renamed(original: dict[str, Tensor]) -> dict[str, Tensor]:
    """The same weights under JointDiT's names."""
    ours = {}
    for name, x in original.items():
        if name.endswith("modulation"):
            ours[name.replace("head.modulation", "scale_shift_table").replace("modulation", "scale_shift_table")] = x
            continue
        module, _, what = name.rpartition(".")
        if module.startswith("blocks."):
            _, i, part = module.split(".", 2)
            module = f"blocks.{i}.{OURS_IN_A_BLOCK[part]}"
        else:
            module = OURS[module]
        if what == "W":  # (1, in, out) to (out, in)
            what, x = "weight", x[0].T
        elif what == "b":
            what, x = "bias", x[0]
        ours[f"{module}.{what}"] = x
    return ours


# ---------------------------------------------------------------------- a pair that should agree, and its questions
@dataclass
class Pair:
    """Ours and the restatement over the same weights."""

    dit: JointDiT
    dense: DreamZero


def made(layout: str = "14B", seed: int = 1, loudness: float = 1.0, **options: Any) -> Pair:
    """A pair; ``loudness`` scales every linear map."""
    cfg = DiTConfig(**{**COMMON, **LAYOUTS[layout], **options})
    weights = original_weights(cfg, seed)
    weights |= {n: loudness * x for n, x in weights.items() if "norm" not in n and "modulation" not in n}
    dit = JointDiT(cfg).eval()
    dit.load_state_dict(renamed(weights), strict=True)
    return Pair(dit, DreamZero(weights, heads=cfg.heads, actions=ACTIONS, block=BLOCK))


@pytest.fixture(params=list(LAYOUTS))
def layout(request: pytest.FixtureRequest) -> str:
    return request.param


@dataclass
class Episode:
    """Clean and noisy frames of an episode, actions and states of its blocks, and a noise level for each."""

    clean: Tensor
    noisy: Tensor
    action: Tensor
    state: Tensor
    text: Tensor
    image: Tensor
    condition: Tensor
    video_sigma: Tensor  # (B, frames)
    action_sigma: Tensor  # (B, blocks)

    @classmethod
    def draw(cls, blocks: int = BLOCKS, lanes: int = B, seed: int = 2) -> Episode:
        g = torch.Generator().manual_seed(seed)
        frames = 1 + BLOCK * blocks
        per_block = torch.rand(lanes, blocks, generator=g).repeat_interleave(BLOCK, 1)
        return cls(
            clean=torch.randn(lanes, frames, CHANNELS, HEIGHT, WIDTH, generator=g),
            noisy=torch.randn(lanes, frames, CHANNELS, HEIGHT, WIDTH, generator=g),
            action=torch.randn(lanes, blocks * ACTIONS, 6, generator=g),
            state=torch.randn(lanes, blocks, 9, generator=g),
            text=torch.randn(lanes, WORDS, 14, generator=g),
            image=0.03 * torch.randn(lanes, PICTURE, 10, generator=g),  # small, so that the norm's epsilon is seen
            condition=torch.randn(lanes, frames, 5, HEIGHT, WIDTH, generator=g),
            video_sigma=torch.cat([torch.rand(lanes, 1, generator=g), per_block], 1),
            action_sigma=torch.rand(lanes, blocks, generator=g),  # decoupled from the video's
        )

    def given(self, pair: Pair, frames: slice | list[int] = slice(None)) -> dict[str, Tensor | None]:
        """Picture, and condition if the layout has it, for the restatement."""
        condition = self.condition[:, frames] if pair.dit.cfg.condition_channels else None
        return {"image": self.image, "condition": condition}

    def context(self, pair: Pair, frames: int, block: int, state: Tensor | None = None) -> Context:
        """The first ``frames`` frames with the state of ``block`` as the newest proprioception."""
        state = self.state[:, block] if state is None else state
        proprio = torch.zeros(len(state), max(frames, 1), state.shape[-1])
        proprio[:, -1] = state
        until = slice(0, max(frames + BLOCK, 1))
        return Context(video=self.clean[:, :frames], proprio=proprio, text=self.text, **self.given(pair, until))

    def chunk(self, block: int) -> Chunk:
        return Chunk(video=self.noisy[:, frames_of(block)], action=self.action[:, actions_of(block)])

    def levels(self, block: int) -> NoiseLevels:
        return NoiseLevels(self.video_sigma[:, frames_of(block)], self.action_sigma[:, block])


def frames_of(block: int) -> slice:
    return slice(1 + BLOCK * block, 1 + BLOCK * (block + 1))


def actions_of(block: int) -> slice:
    return slice(ACTIONS * block, ACTIONS * (block + 1))


def training(pair: Pair, e: Episode) -> tuple[Tensor, Tensor]:
    t_action = 1000 * e.action_sigma.repeat_interleave(ACTIONS, 1)
    return pair.dense.training(
        e.clean, e.noisy, e.action, e.state, e.text, 1000 * e.video_sigma, t_action, **e.given(pair)
    )


def inference(pair: Pair, e: Episode, block: int, **options: bool) -> tuple[Tensor, Tensor | None]:
    """The dense pass of one block after the clean frames before it."""
    x, s, now = e.chunk(block), e.levels(block), frames_of(block)
    return pair.dense.chunk(
        e.clean[:, : now.start], x.video, x.action, e.state[:, block], e.text, 1000 * s.video,
        1000 * s.action[:, None].expand(-1, ACTIONS), **e.given(pair, slice(0, now.stop)), **options,
    )  # fmt: skip


def cached(pair: Pair, e: Episode, block: int) -> Chunk:
    """The same from ours: clean frames into a cache, then the block."""
    context = e.context(pair, frames_of(block).start, block)
    return pair.dit(e.chunk(block), e.levels(block), pair.dit.prefill(context))


def assert_close(got: Tensor | None, want: Tensor | None, tolerance: float = 1e-5) -> None:
    assert got is not None and want is not None and got.shape == want.shape
    assert (got - want).abs().max() <= tolerance * want.abs().max()


def difference(a: Tensor, b: Tensor) -> float:
    return float((a - b).abs().max() / b.abs().max())


# ---------------------------------------------------------------------- the restatement agrees with itself
@torch.no_grad()
def test_restatement_reads_no_future_and_no_other_block(layout: str) -> None:
    """A changed clean block, action block or state reaches only the blocks that the published mask lets see it."""
    pair, e = made(layout), Episode.draw()
    video, action = training(pair, e)
    changes: dict[str, Callable[[], Episode]] = {
        "clean": lambda: replace(e, clean=bumped(e.clean, frames_of(1))),
        "noisy": lambda: replace(e, noisy=bumped(e.noisy, frames_of(1))),
        "action": lambda: replace(e, action=bumped(e.action, actions_of(1))),
        "state": lambda: replace(e, state=bumped(e.state, slice(1, 2))),
        "first clean": lambda: replace(e, clean=bumped(e.clean, slice(0, 1))),
        "first noisy": lambda: replace(e, noisy=bumped(e.noisy, slice(0, 1))),
    }
    moves = {"clean": [2], "noisy": [1], "action": [1], "state": [1], "first clean": [0, 1, 2], "first noisy": [-1]}
    for what, change in changes.items():
        new_video, new_action = training(pair, change())
        for block in range(-1, BLOCKS):
            frames = frames_of(block) if block >= 0 else slice(0, 1)
            moved = [difference(new_video[:, frames], video[:, frames])]
            if block >= 0:
                moved.append(difference(new_action[:, actions_of(block)], action[:, actions_of(block)]))
            assert all((m > 1e-4) == (block in moves[what]) for m in moved), (what, block, moved)
            assert block in moves[what] or max(moved) < 1e-6, (what, block, moved)


def bumped(x: Tensor, where: slice) -> Tensor:
    x = x.clone()
    x[:, where] += 1
    return x


@torch.no_grad()
def test_restatement_treats_lanes_alike() -> None:
    pair, e, swap = made(), Episode.draw(), torch.tensor([1, 0])
    swapped = Episode(**{name: x[swap] for name, x in vars(e).items()})
    for a, b in zip(training(pair, swapped), training(pair, e), strict=True):
        assert_close(a, b[swap], 1e-6)


@torch.no_grad()
def test_restated_inference_with_a_private_state_is_restated_training(layout: str) -> None:
    """The two masks, written apart, differ in the state's row alone."""
    pair, e = made(layout), Episode.draw()
    video, action = training(pair, e)
    for block in range(BLOCKS):
        alone = inference(pair, e, block, state_sees_all=False)
        assert_close(alone[0], video[:, frames_of(block)], 1e-6)
        assert_close(alone[1], action[:, actions_of(block)], 1e-6)
        released = inference(pair, e, block)
        assert difference(released[0], alone[0]) > 1e-3 and difference(released[1], alone[1]) > 1e-3


# ---------------------------------------------------------------------- 1: the training sequence, block by block
@torch.no_grad()
def test_cached_blocks_equal_one_training_sequence(layout: str) -> None:
    """Each block after a prefill of the clean frames before it; noise levels of their own for video and action."""
    pair, e = made(layout), Episode.draw()
    video, action = training(pair, e)
    for block in range(BLOCKS):
        got = cached(pair, e, block)
        assert_close(got.video, video[:, frames_of(block)])
        assert_close(got.action, action[:, actions_of(block)])


@torch.no_grad()
def test_noise_levels_of_two_frames_of_a_block_may_differ(layout: str) -> None:
    pair, e = made(layout), Episode.draw()
    e.video_sigma = torch.rand(e.video_sigma.shape, generator=torch.Generator().manual_seed(4))
    video, action = training(pair, e)
    for block in range(BLOCKS):
        got = cached(pair, e, block)
        assert_close(got.video, video[:, frames_of(block)])
        assert_close(got.action, action[:, actions_of(block)])


@torch.no_grad()
def test_quiet_values_are_normalised_with_the_published_epsilons(layout: str) -> None:
    """Variances near 1e-4, so that adding 1e-6 or 1e-5 to them is not the same."""
    pair, e = made(layout, loudness=0.03), Episode.draw()
    video, action = training(pair, e)
    got = cached(pair, e, 1)
    assert_close(got.video, video[:, frames_of(1)])
    assert_close(got.action, action[:, actions_of(1)])


@torch.no_grad()
def test_noisy_first_frame_sees_itself_alone(layout: str) -> None:
    """A chunk of one frame without actions, where nothing has been observed yet."""
    pair, e = made(layout), Episode.draw()
    want, _ = training(pair, e)
    context = e.context(pair, 0, 0)
    first = Chunk(video=e.noisy[:, :1])
    for cache in (pair.dit.read(context), pair.dit.prefill(context)):
        got = pair.dit(first, NoiseLevels(e.video_sigma[:, :1], e.action_sigma[:, 0]), cache)
        assert_close(got.video, want[:, :1])
        assert got.action is None


@torch.no_grad()
def test_one_level_for_all_frames_is_the_same_as_that_level_for_each(layout: str) -> None:
    pair, e = made(layout), Episode.draw()
    cache = pair.dit.prefill(e.context(pair, frames_of(1).start, 1))
    each = e.levels(1)
    one = NoiseLevels(each.video[:, 0], each.action)
    a, b = (pair.dit(e.chunk(1), levels, cache) for levels in (one, each))
    assert_close(a.video, b.video, 1e-6)
    assert_close(a.action, b.action, 1e-6)


@torch.no_grad()
def test_observed_block_by_block_is_observed_at_once(layout: str) -> None:
    """The first frame, then blocks of two, appended as an episode goes on."""
    pair, e = made(layout), Episode.draw()
    last = BLOCKS - 1
    whole = e.context(pair, frames_of(last).start, last)
    cache = pair.dit.prefill(replace(whole, video=e.clean[:, :1], proprio=e.state[:, :1]))
    for block in range(last):
        seen = e.clean[:, frames_of(block)]
        pair.dit.extend(cache, seen, e.state[:, block + 1 : block + 2].expand(-1, BLOCK, -1))
    got, want = pair.dit(e.chunk(last), e.levels(last), cache), cached(pair, e, last)
    assert_close(got.video, want.video, 1e-6)
    assert_close(got.action, want.action, 1e-6)


# ---------------------------------------------------------------------- 2: inference, as released and as trained
@torch.no_grad()
def test_parity_dreamzero_is_the_released_inference(layout: str) -> None:
    """There the state's query sees everything."""
    pair, e = made(layout, parity="dreamzero"), Episode.draw()
    for block in range(BLOCKS):
        got, (video, action) = cached(pair, e, block), inference(pair, e, block)
        assert_close(got.video, video)
        assert_close(got.action, action)


@torch.no_grad()
def test_parity_clean_is_inference_as_trained(layout: str) -> None:
    pair, e = made(layout), Episode.draw()
    for block in range(BLOCKS):
        got, (video, action) = cached(pair, e, block), inference(pair, e, block, state_sees_all=False)
        assert_close(got.video, video)
        assert_close(got.action, action)


@torch.no_grad()
@pytest.mark.parametrize("parity", ["clean", "dreamzero"])
def test_a_lane_answers_alone_as_in_a_batch(layout: str, parity: str) -> None:
    pair, e = made(layout, parity=parity), Episode.draw(lanes=3)
    want = cached(pair, e, 1)
    for lane in range(3):
        one = Episode(**{name: x[lane : lane + 1] for name, x in vars(e).items()})
        got = cached(pair, one, 1)
        assert_close(got.video, want.video[lane : lane + 1], 2e-6)
        assert_close(got.action, want.action[lane : lane + 1], 2e-6)


@torch.no_grad()
def test_numbers_a_robot_does_not_have_are_zeros(layout: str) -> None:
    """A robot of four action and five state numbers in registers made for six and nine."""
    pair, e = made(layout, action_dim=4, proprio_dim=5), Episode.draw()
    x = replace(e, action=e.action * (torch.arange(6) < 4), state=e.state * (torch.arange(9) < 5))
    video, action = inference(pair, x, 1, state_sees_all=False)
    cache = pair.dit.prefill(x.context(pair, frames_of(1).start, 1, x.state[:, 1, :5]))
    chunk = x.chunk(1)
    got = pair.dit(replace(chunk, action=chunk.action[..., :4]), x.levels(1), cache)
    assert_close(got.video, video)
    assert_close(got.action, action[..., :4])


# ---------------------------------------------------------------------- 3: a whole sampled chunk
class Thin:
    """What the sampler needs of a model, around a bare JointDiT that predicts velocities."""

    schedule_shift = 5.0
    answers: frozenset[Question] = frozenset(QUESTIONS.values())

    def __init__(self, dit: JointDiT):
        self.dit = dit
        self.chunk_shapes: dict[str, tuple[int, ...]] = {
            "video": (BLOCK, CHANNELS, HEIGHT, WIDTH),
            "proprio": (BLOCK, 9),
            "action": (ACTIONS, 6),
        }

    def prefill(self, context: Context) -> ContextCache:
        return self.dit.prefill(context)

    def velocity(self, noisy: Chunk, sigma: NoiseLevels, context: Context, cache: ContextCache, **_: Any) -> Chunk:
        """A DreamZero predicts no proprioception, so that whatever the sampler carries as such stands still."""
        out = self.dit(replace(noisy, proprio=None), sigma, cache)
        return replace(out, proprio=None if noisy.proprio is None else torch.zeros_like(noisy.proprio))


@torch.no_grad()
@pytest.mark.parametrize("parity", ["clean", "dreamzero"])
def test_joint_sample_equals_an_euler_loop_over_the_dense_pass(layout: str, parity: str) -> None:
    """Four steps on the grid 5 s / (1 + 4 s), both modalities at one level."""
    pair, e, block, steps = made(layout, parity=parity), Episode.draw(), 1, 4
    got = sample(
        Thin(pair.dit), JOINT, e.context(pair, frames_of(block).start, block), steps=steps, noise=e.chunk(block)
    )
    assert schedule(steps, 5.0).tolist() == pytest.approx([1, 15 / 16, 5 / 6, 5 / 8, 0])
    grid = [5 * s / (1 + 4 * s) for s in (1, 0.75, 0.5, 0.25, 0)]
    x = replace(e, noisy=e.noisy.clone(), action=e.action.clone())
    for now, then in pairwise(grid):
        x.video_sigma, x.action_sigma = torch.full_like(e.video_sigma, now), torch.full_like(e.action_sigma, now)
        video, action = inference(pair, x, block, state_sees_all=parity == "dreamzero")
        x.noisy[:, frames_of(block)] += (then - now) * video
        x.action[:, actions_of(block)] += (then - now) * action
    assert_close(got.video, x.noisy[:, frames_of(block)])
    assert_close(got.action, x.action[:, actions_of(block)])


# ---------------------------------------------------------------------- 4: a bounded memory
LONG = 6  # blocks observed before the one that is predicted


KEEP = 2  # newest of them that are kept behind the first frame


def on_kept_frames(pair: Pair, e: Episode) -> tuple[Tensor, Tensor | None]:
    """The dense pass over the kept frames and the newest block, as if nothing else had been observed.

    A condition belongs to a place in the window, not to a time: the first frame had place 0, and every block that came
    when the window was full had the place behind it, as the newest block has now.
    """
    x, s = e.chunk(LONG), e.levels(LONG)
    kept = [0, *range(frames_of(LONG - KEEP).start, frames_of(LONG).start)]
    behind = frames_of(KEEP)
    places = [0, *[*range(behind.start, behind.stop)] * (KEEP + 1)]
    return pair.dense.chunk(
        e.clean[:, kept], x.video, x.action, e.state[:, LONG], e.text, 1000 * s.video,
        1000 * s.action[:, None].expand(-1, ACTIONS), **e.given(pair, places),
        state_sees_all=pair.dit.cfg.parity == "dreamzero",
    )  # fmt: skip


@torch.no_grad()
@pytest.mark.parametrize("parity", ["clean", "dreamzero"])
def test_forgotten_blocks_are_as_if_never_seen(layout: str, parity: str) -> None:
    """The first frame is kept for good, with the two newest blocks behind it, numbered as if nothing lay between.

    One layer alone: from the second on, keys and values of a block still carry what it saw before that was forgotten.
    """
    pair = made(layout, layers=1, sink_blocks=1, max_context_blocks=1 + KEEP, parity=parity)
    e = Episode.draw(blocks=LONG + 1)
    got, (video, action) = cached(pair, e, LONG), on_kept_frames(pair, e)
    assert_close(got.video, video)
    assert_close(got.action, action)


@torch.no_grad()
def test_deeper_layers_remember_what_was_forgotten(layout: str) -> None:
    """Why the test above has one layer: what is kept was computed with the block before it still in sight."""
    pair = made(layout, layers=2, sink_blocks=1, max_context_blocks=1 + KEEP)
    e = Episode.draw(blocks=LONG + 1)
    got, (video, _) = cached(pair, e, LONG), on_kept_frames(pair, e)
    assert got.video is not None and difference(got.video, video) > 1e-4
    for block, reaches in ((LONG - KEEP - 1, True), (0, False)):  # a layer hands on what KEEP blocks before it said
        other = cached(pair, replace(e, clean=bumped(e.clean, frames_of(block))), LONG).video
        assert other is not None and (difference(other, got.video) > 1e-4) == reaches


@torch.no_grad()
def test_a_window_that_is_not_full_forgets_nothing(layout: str) -> None:
    wide = made(layout, sink_blocks=1, max_context_blocks=1 + LONG)
    e = Episode.draw(blocks=LONG + 1)
    got, (video, action) = cached(wide, e, LONG), inference(wide, e, LONG, state_sees_all=False)
    assert_close(got.video, video)
    assert_close(got.action, action)


@torch.no_grad()
def test_hard_reset_is_a_fresh_prefill_of_the_newest_frame(layout: str) -> None:
    """DreamZero drops all history after four chunks and starts over from what it sees then."""
    pair, e = made(layout, parity="dreamzero", sink_blocks=1, max_context_blocks=5), Episode.draw(blocks=5)
    assert_close(cached(pair, e, 3).video, inference(pair, e, 3)[0])  # the fourth chunk still remembers it all
    newest = frames_of(4).start - 1
    new = replace(e, clean=e.clean[:, newest:], noisy=e.noisy[:, newest:], state=e.state[:, 4:])
    assert_close(cached(pair, new, 0).video, inference(pair, new, 0)[0])
    assert_close(cached(pair, new, 0).action, inference(pair, new, 0)[1])


# ---------------------------------------------------------------------- 5: what a Wan can do without registers
@pytest.mark.slow  # only because importing diffusers takes seconds
@pytest.mark.parametrize("image_dim", [10, 0], ids=["picture", "no picture"])
@torch.no_grad()
def test_image_to_video_layout_is_diffusers_wan(image_dim: int) -> None:
    """Channels given besides the noisy ones, and a picture to look at (512 words, where diffusers parts the two)."""
    theirs, ours = wan(in_channels=9, condition_channels=5, image_dim=image_dim)
    g = torch.Generator().manual_seed(2)
    video, condition = (torch.randn(2, 3, c, HEIGHT, WIDTH, generator=g) for c in (CHANNELS, 5))
    text, sigma = torch.randn(2, 512, 14, generator=g), torch.tensor([0.937, 0.25])
    image = torch.randn(2, PICTURE, image_dim, generator=g) if image_dim else None
    want = theirs(
        torch.cat([video, condition], 2).transpose(1, 2), 1000 * sigma, text, image, return_dict=False
    )[0].transpose(1, 2)  # fmt: skip
    context = Context(video[:, :0], torch.zeros(2, 1, 0), text, image=image, condition=condition)
    got = ours(Chunk(video=video), NoiseLevels(sigma, sigma), ours.read(context))
    assert_close(got.video, want)


@pytest.mark.slow  # only because importing diffusers takes seconds
@torch.no_grad()
def test_a_noise_level_per_frame_is_diffusers_wan() -> None:
    """Wan 2.2 TI2V: a timestep per token, the first frame clean."""
    theirs, ours = wan(in_channels=CHANNELS, condition_channels=0, image_dim=0)
    g = torch.Generator().manual_seed(2)
    video, text = torch.randn(2, 3, CHANNELS, HEIGHT, WIDTH, generator=g), torch.randn(2, 5, 14, generator=g)
    sigma = torch.tensor([[0.0, 0.937, 0.4], [0.0, 0.25, 0.625]])
    per_token = sigma.repeat_interleave(HEIGHT * WIDTH // 4, 1)
    want = theirs(video.transpose(1, 2), 1000 * per_token, text, return_dict=False)[0].transpose(1, 2)
    context = Context(video[:, :0], torch.zeros(2, 1, 0), text)
    got = ours(Chunk(video=video), NoiseLevels(sigma, torch.zeros(2)), ours.read(context))
    assert_close(got.video, want)


def wan(*, in_channels: int, condition_channels: int, image_dim: int) -> tuple[Any, JointDiT]:
    """A diffusers Wan and ours with its weights, of which not one name is mapped."""
    diffusers = pytest.importorskip("diffusers")
    theirs = diffusers.WanTransformer3DModel(
        patch_size=(1, 2, 2), num_attention_heads=2, attention_head_dim=20, in_channels=in_channels,
        out_channels=CHANNELS, text_dim=14, freq_dim=16, ffn_dim=36, num_layers=2, cross_attn_norm=True, eps=1e-6,
        image_dim=image_dim or None, added_kv_proj_dim=40 if image_dim else None,
    )  # fmt: skip
    randomise(theirs, seed=1).eval()
    plain = {"registers": None, "action_dim": 0, "proprio_dim": 0, "image_dim": image_dim}
    ours = JointDiT(DiTConfig(**{**COMMON, **plain, "condition_channels": condition_channels})).eval()
    ours.load_state_dict(theirs.state_dict(), strict=True)
    return theirs, ours
