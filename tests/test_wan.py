"""Every layout of Wan and DreamZero loads, bit for bit and one tensor at a time; whatever does not fit is refused."""

from __future__ import annotations

import json
import re
import struct
import weakref
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import randomise
from dreamzero_dense import DreamZero
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

from imagine.model.action_registers import RegisterConfig
from imagine.model.dit import DiTConfig, JointDiT
from imagine.types import CheckpointMismatch, Chunk, Context, NoiseLevels, ShapeError
from imagine.wan import shards
from imagine.wan.convert import (
    LAYOUTS,
    NEGATIVE,
    PARTS,
    PROMPTS,
    compose_lora,
    inspect,
    load_dit,
    other_parts,
    prompt,
    save_diffusers,
    tile,
)

PREFIX = "action_head.model."
HORIZON = 6
PLAIN = DiTConfig(
    layers=2, heads=2, head_dim=12, ffn_dim=40, patch=(1, 2, 2), channels=4, text_dim=10, freq_dim=16, action_patch=1,
    see_last_frame=False, pooled_text=False, prediction="velocity",
)  # fmt: skip
IMAGE = PLAIN.model_copy(update={"condition_channels": 5, "image_dim": 14})
ZERO_FIELDS = {
    "registers": RegisterConfig(action_dim=5, state_dim=7, hidden=9), "action_dim": 5, "proprio_dim": 7,
    "block": 2, "first_alone": True, "max_context_blocks": 3,
}  # fmt: skip
ZERO = IMAGE.model_copy(update=ZERO_FIELDS)
ZERO_5B = PLAIN.model_copy(update=ZERO_FIELDS | {"image_dim": 14})


# ---------------------------------------------------------- the layouts, as published (shared/facts/dreamzero.md §1.7)
def original(
    layers: int, dim: int, ffn: int, inputs: int, outputs: int, text: int = 4096, freq: int = 256, image: int = 0
) -> dict[str, tuple[int, ...]]:
    """Names and shapes of Wan's own checkpoints."""
    shapes: dict[str, tuple[int, ...]] = {
        "patch_embedding.weight": (dim, inputs, 1, 2, 2),
        "patch_embedding.bias": (dim,),
    }

    def linear(name: str, out: int, into: int) -> None:
        shapes[f"{name}.weight"], shapes[f"{name}.bias"] = (out, into), (out,)

    def norm(name: str, width: int) -> None:
        shapes[f"{name}.weight"] = shapes[f"{name}.bias"] = (width,)

    linear("text_embedding.0", dim, text), linear("text_embedding.2", dim, dim)
    linear("time_embedding.0", dim, freq), linear("time_embedding.2", dim, dim)
    linear("time_projection.1", 6 * dim, dim), linear("head.head", 4 * outputs, dim)
    shapes["head.modulation"] = (1, 2, dim)
    if image:
        norm("img_emb.proj.0", image), norm("img_emb.proj.4", dim)
        linear("img_emb.proj.1", image, image), linear("img_emb.proj.3", dim, image)
    for i in range(layers):
        for part in ("self_attn", "cross_attn"):
            for layer in "qkvo":
                linear(f"blocks.{i}.{part}.{layer}", dim, dim)
            for which in ("norm_q", "norm_k"):
                shapes[f"blocks.{i}.{part}.{which}.weight"] = (dim,)
        if image:
            linear(f"blocks.{i}.cross_attn.k_img", dim, dim), linear(f"blocks.{i}.cross_attn.v_img", dim, dim)
            shapes[f"blocks.{i}.cross_attn.norm_k_img.weight"] = (dim,)
        norm(f"blocks.{i}.norm3", dim)
        linear(f"blocks.{i}.ffn.0", ffn, dim), linear(f"blocks.{i}.ffn.2", dim, ffn)
        shapes[f"blocks.{i}.modulation"] = (1, 6, dim)
    return shapes


def registers(dim: int, action: int = 32, state: int = 64, hidden: int = 1024) -> dict[str, tuple[int, ...]]:
    """Names and shapes of DreamZero's action and state modules."""
    widths = {
        "action_encoder.W1": (action, dim), "action_encoder.W2": (2 * dim, dim), "action_encoder.W3": (dim, dim),
        "state_encoder.layer1": (state, hidden), "state_encoder.layer2": (hidden, dim),
        "action_decoder.layer1": (dim, hidden), "action_decoder.layer2": (hidden, action),
    }  # fmt: skip
    return {f"{n}.W": (1, i, o) for n, (i, o) in widths.items()} | {f"{n}.b": (1, o) for n, (_, o) in widths.items()}


OURS_TO_ORIGINAL = (
    ("condition_embedder.time_embedder.linear_1", "time_embedding.0"),
    ("condition_embedder.time_embedder.linear_2", "time_embedding.2"),
    ("condition_embedder.text_embedder.linear_1", "text_embedding.0"),
    ("condition_embedder.text_embedder.linear_2", "text_embedding.2"),
    ("condition_embedder.time_proj", "time_projection.1"),
    ("condition_embedder.image_embedder.norm1", "img_emb.proj.0"),
    ("condition_embedder.image_embedder.ff.net.0.proj", "img_emb.proj.1"),
    ("condition_embedder.image_embedder.ff.net.2", "img_emb.proj.3"),
    ("condition_embedder.image_embedder.norm2", "img_emb.proj.4"),
    ("proj_out", "head.head"),
    ("attn1", "self_attn"), ("attn2", "cross_attn"), ("norm2", "norm3"),
    ("to_out.0", "o"), ("to_q", "q"), ("to_k", "k"), ("to_v", "v"),
    ("add_k_proj", "k_img"), ("add_v_proj", "v_img"), ("norm_added_k", "norm_k_img"),
    ("ffn.net.0.proj", "ffn.0"), ("ffn.net.2", "ffn.2"),
)  # fmt: skip


def in_original(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Our weights under Wan's and DreamZero's own names."""
    foreign = {}
    for name, value in state.items():
        if name.startswith("registers."):
            continue
        for ours, theirs in OURS_TO_ORIGINAL:
            name = name.replace(ours, theirs)
        name = "head.modulation" if name == "scale_shift_table" else name.replace("scale_shift_table", "modulation")
        foreign[name] = value
    return foreign | registers_of(state)


def registers_of(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Our registers under DreamZero's names: one embodiment, matrices applied from the right."""
    foreign = {}
    for name, value in state.items():
        if name.startswith("registers."):
            name = name.removeprefix("registers.").replace("linear_", "layer")
            name = re.sub(r"\.w(\d)", r".W\1", name).replace(".weight", ".W").replace(".bias", ".b")
            foreign[name] = value.T.contiguous()[None] if value.ndim == 2 else value[None]
    return foreign


def body_of(state: dict[str, Tensor]) -> dict[str, Tensor]:
    return {n: v for n, v in state.items() if not n.startswith("registers.")}


def wan_config(cfg: DiTConfig) -> dict[str, Any]:
    return {
        "_class_name": "WanModel", "model_type": "i2v" if cfg.image_dim else "t2v", "dim": cfg.dim, "eps": cfg.eps,
        "ffn_dim": cfg.ffn_dim, "freq_dim": cfg.freq_dim, "in_dim": cfg.channels + cfg.condition_channels,
        "num_heads": cfg.heads, "num_layers": cfg.layers, "out_dim": cfg.channels, "text_len": 512,
    }  # fmt: skip


def zero_config(cfg: DiTConfig, **more: Any) -> dict[str, Any]:
    """DreamZero's, with the sections around the network whose fields have the same names and mean something else."""
    network = wan_config(cfg) | {"_target_": "groot.CausalWanModel", "frame_seqlen": 6, "max_chunk_size": 3}
    network |= {"num_action_per_block": HORIZON, "num_frame_per_block": cfg.block, "num_state_per_block": 1}
    del network["_class_name"]
    inner = {
        "hidden_size": 64, "num_frame_per_block": 77, "action_dim": 5, "lora_rank": 3, "lora_alpha": 6,
        "vl_self_attention_cfg": {"num_layers": 4, "num_attention_heads": 24}, "vae_cfg": {"dim": 96, "z_dim": 16},
        "text_encoder_cfg": {"num_layers": 24, "dim": 4096}, "diffusion_model_cfg": network | more,
    }  # fmt: skip
    head = {"_target_": "groot.WANPolicyHead", "config": inner}
    return {"model_type": "vla", "architectures": ["VLA"], "action_horizon": 999, "action_head_cfg": head}


def diffusers_config(cfg: DiTConfig) -> dict[str, Any]:
    return {
        "_class_name": "WanTransformer3DModel", "_diffusers_version": "0.33.0", "attention_head_dim": cfg.head_dim,
        "added_kv_proj_dim": cfg.dim if cfg.image_dim else None, "cross_attn_norm": True, "eps": cfg.eps,
        "ffn_dim": cfg.ffn_dim, "freq_dim": cfg.freq_dim, "image_dim": cfg.image_dim or None,
        "in_channels": cfg.channels + cfg.condition_channels, "num_attention_heads": cfg.heads,
        "num_layers": cfg.layers, "out_channels": cfg.channels, "patch_size": list(cfg.patch),
        "pos_embed_seq_len": None, "qk_norm": "rms_norm_across_heads", "rope_max_seq_len": 1024,
        "text_dim": cfg.text_dim,
    }  # fmt: skip


BLOCKS = {"num_action_per_block": HORIZON, "num_frame_per_block": 2, "num_state_per_block": 1, "max_chunk_size": 3}


def store(folder: Path, config: dict[str, Any], state: dict[str, Tensor], parts: int = 1, stem: str = "model") -> Path:
    """Write a checkpoint, its weights in so many shards with an index."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(config))
    if parts == 1:
        save_file(state, folder / f"{stem}.safetensors")
        return folder
    weight_map = {}
    for i in range(parts):
        file = f"{stem}-{i + 1:05d}-of-{parts:05d}.safetensors"
        part = {n: state[n] for n in list(state)[i::parts]}
        save_file(part, folder / file)
        weight_map |= dict.fromkeys(part, file)
    (folder / f"{stem}.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))
    return folder


def made(cfg: DiTConfig, seed: int = 1) -> JointDiT:
    return randomise(JointDiT(cfg), seed=seed).eval()  # type: ignore[return-value]


def weights(cfg: DiTConfig, seed: int = 1) -> dict[str, Tensor]:
    return {n: v.clone() for n, v in made(cfg, seed).state_dict().items()}


def prefixed(state: dict[str, Tensor], prefix: str = PREFIX) -> dict[str, Tensor]:
    return {prefix + n: v for n, v in state.items()}


OTHERS = {
    "action_head.text_encoder.blocks.0.attn.q.weight": torch.ones(2, 2),
    "action_head.text_encoder.blocks.0.ffn.gate.0.weight": torch.ones(2, 2),
    "action_head.image_encoder.model.visual.patch_embedding.weight": torch.ones(2, 3, 2, 2),
    "action_head.vae.model.encoder.conv1.weight": torch.full((1, 2), 3.0),
}
LAYOUT: dict[str, tuple[DiTConfig, Callable[[Path, dict[str, Tensor]], Path], str]] = {
    "wan": (PLAIN, lambda at, w: store(at, wan_config(PLAIN), in_original(w), stem="diffusion_pytorch_model"), "wan"),
    "wan i2v": (IMAGE, lambda at, w: store(at, wan_config(IMAGE), in_original(w), 3, "diffusion_pytorch_model"), "wan"),
    "dreamzero": (
        ZERO,
        lambda at, w: store(at, zero_config(ZERO), prefixed(in_original(w)) | OTHERS, 4),
        "dreamzero",
    ),
    "dreamzero 5B": (
        ZERO_5B,
        lambda at, w: store(at, zero_config(ZERO_5B, concat_first_frame_latent=False), prefixed(in_original(w))),
        "dreamzero",
    ),
    "repacked": (  # SGLang's: a pipeline's folders, a Wan's names
        ZERO,
        lambda at, w: store(
            at / "transformer",
            wan_config(ZERO) | BLOCKS | {"_class_name": "DreamZeroCausalWanModel", "hidden_size": 9},
            in_original(w),
            2,
            "diffusion_pytorch_model",
        ),
        "dreamzero",
    ),
    "diffusers": (
        PLAIN,
        lambda at, w: store(at, diffusers_config(PLAIN), w, 2, "diffusion_pytorch_model"),
        "diffusers",
    ),
    "diffusers i2v": (
        IMAGE,
        lambda at, w: store(
            at / "transformer",
            diffusers_config(IMAGE),
            w | {"blocks.0.attn2.norm_added_q.weight": torch.ones(24)},
            stem="diffusion_pytorch_model.fp16",
        ),
        "diffusers",
    ),
    "diffusers with registers": (
        ZERO,
        lambda at, w: store(at, diffusers_config(ZERO) | BLOCKS, body_of(w) | registers_of(w)),
        "dreamzero-diffusers",
    ),
    "diffusers with prefixed registers": (
        ZERO,
        lambda at, w: store(
            at, diffusers_config(ZERO) | BLOCKS, prefixed(body_of(w), "dit.") | prefixed(registers_of(w), "robot.")
        ),
        "dreamzero-diffusers",
    ),
}


@pytest.fixture(params=LAYOUT)
def layout(request: pytest.FixtureRequest, tmp_path: Path) -> tuple[Path, DiTConfig, dict[str, Tensor], str]:
    cfg, write, called = LAYOUT[request.param]
    state = weights(cfg)
    write(tmp_path, {n: v.clone() for n, v in state.items()})
    return tmp_path, cfg, state, called


def assert_equal(dit: JointDiT, state: dict[str, Tensor]) -> None:
    own = dit.state_dict()
    assert own.keys() == state.keys()
    assert all(not p.is_meta and torch.equal(p, state[n]) for n, p in own.items())


# ------------------------------------------------------------------------------------------------ what is it, and load
def test_every_layout_loads_bit_for_bit(layout: tuple[Path, DiTConfig, dict[str, Tensor], str]) -> None:
    folder, cfg, state, _ = layout
    dit = load_dit(folder)
    assert_equal(dit, state)
    assert dit.cfg.model_dump(exclude={"max_context_blocks"}) == cfg.model_dump(exclude={"max_context_blocks"})
    assert not dit.training


def test_every_layout_says_what_it_is(layout: tuple[Path, DiTConfig, dict[str, Tensor], str]) -> None:
    folder, cfg, _, called = layout
    foreign = inspect(folder)
    assert foreign.layout == called and foreign.first_frame == (cfg.condition_channels > 0) and not foreign.lora
    if cfg.registers:
        assert (foreign.action_horizon, foreign.block_frames, foreign.max_chunks) == (HORIZON, 2, 3)
        assert foreign.dit.max_context_blocks == 3
    else:
        assert (foreign.action_horizon, foreign.block_frames, foreign.max_chunks) == (0, 1, 0)


@torch.no_grad()
@pytest.mark.parametrize("cfg", [ZERO, ZERO_5B], ids=["dreamzero", "dreamzero 5B"])
def test_a_loaded_dreamzero_answers_as_its_own_weights_say(cfg: DiTConfig, tmp_path: Path) -> None:
    state = in_original(weights(cfg))
    dit = load_dit(store(tmp_path, zero_config(cfg), prefixed(state) | OTHERS, 3), parity="dreamzero")
    g = torch.Generator().manual_seed(4)

    def random(*shape: int) -> Tensor:
        return torch.randn(3, *shape, generator=g)

    past, noisy, action, felt = random(3, 4, 4, 4), random(2, 4, 4, 4), random(HORIZON, 5), random(7)
    text, image = random(5, 10), random(6, 14)
    given = random(5, 5, 4, 4) if cfg.condition_channels else None
    level = torch.tensor([0.1, 0.5, 0.9])
    t = 1000 * level[:, None]
    want = DreamZero(state, heads=2, actions=HORIZON).chunk(
        past, noisy, action, felt, text, t.expand(3, 2), t.expand(3, HORIZON), image=image, condition=given
    )
    seen = Context(video=past, proprio=felt[:, None].expand(3, 3, 7), text=text, image=image, condition=given)
    got = dit(Chunk(video=noisy, proprio=None, action=action), NoiseLevels(level, level), dit.prefill(seen))
    torch.testing.assert_close((got.video, got.action), want, rtol=0, atol=2e-4)


def test_names_of_the_test_are_the_published_ones() -> None:
    for cfg in (PLAIN, IMAGE, ZERO):
        image = cfg.image_dim
        want = original(2, 24, 40, 4 + cfg.condition_channels, 4, 10, 16, image)
        want |= registers(24, 5, 7, 9) if cfg.registers else {}
        assert {n: tuple(v.shape) for n, v in in_original(weights(cfg)).items()} == want


PUBLISHED = {  # heads, names and shapes, weights in all (published)
    "Wan2.1-T2V-1.3B": (12, original(30, 1536, 8960, 16, 16), 1_418_996_800),
    "Wan2.1-T2V-14B": (40, original(40, 5120, 13824, 16, 16), 14_288_491_584),
    "Wan2.1-I2V-14B": (40, original(40, 5120, 13824, 36, 16, image=1280), 16_394_878_784),
    "Wan2.2-TI2V-5B": (24, original(30, 3072, 14336, 48, 48), 4_999_787_712),
    "DreamZero-14B": (40, original(40, 5120, 13824, 36, 16, image=1280) | registers(5120), 16_484_292_448),
    "DreamZero-5B": (24, original(30, 3072, 14336, 48, 48, image=1280) | registers(3072), None),
}


@pytest.mark.parametrize("name", PUBLISHED)
def test_a_network_is_known_by_its_headers(name: str, tmp_path: Path) -> None:
    heads, shapes, size = PUBLISHED[name]
    zero = name.startswith("DreamZero")
    about = {"num_heads": heads, "eps": 1e-6}  # all else is told by the tensors
    config = {"action_head_cfg": {"config": {"diffusion_model_cfg": about | BLOCKS | {"num_action_per_block": 24}}}}
    (tmp_path / "config.json").write_text(json.dumps(config if zero else about))
    sparse(tmp_path / "model.safetensors", {(PREFIX if zero else "") + n: s for n, s in shapes.items()})
    foreign = inspect(tmp_path)
    with torch.device("meta"):
        dit = JointDiT(foreign.dit)
    total = sum(p.numel() for p in dit.parameters())
    assert total == sum(int(np.prod(s)) for s in shapes.values()) and size in (total, None)
    assert foreign.action_horizon == (24 if zero else 0) and foreign.dit.head_dim == 128
    assert foreign.dit.registers == (RegisterConfig() if zero else None)


def sparse(file: Path, shapes: dict[str, tuple[int, ...]]) -> None:
    """A safetensors file of the right size with nothing in it: a hole on the disk."""
    header, at = {}, 0
    for name, shape in shapes.items():
        size = 2 * int(np.prod(shape))
        header[name] = {"dtype": "BF16", "shape": list(shape), "data_offsets": [at, at + size]}
        at += size
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    with file.open("wb") as f:
        f.write(struct.pack("<Q", len(text)) + text)
        f.truncate(8 + len(text) + at)


def test_what_the_config_lacks_is_told_by_the_tensors(tmp_path: Path) -> None:
    store(tmp_path, {"num_heads": 2, "eps": 1e-6}, in_original(weights(IMAGE)))
    assert_equal(load_dit(tmp_path), weights(IMAGE))


@pytest.mark.parametrize(
    "field",
    ["num_heads", "eps", "num_action_per_block", "num_frame_per_block", "num_state_per_block", "max_chunk_size"],
)
def test_what_nothing_tells_is_named(field: str, tmp_path: Path) -> None:
    config = zero_config(ZERO)
    inner = config["action_head_cfg"]["config"]
    inner.pop("num_frame_per_block")
    del inner["diffusion_model_cfg"][field]
    store(tmp_path, config, prefixed(in_original(weights(ZERO))))
    with pytest.raises(CheckpointMismatch, match=field):
        inspect(tmp_path)


def test_a_field_missing_inside_is_looked_for_further_out(tmp_path: Path) -> None:
    config = zero_config(ZERO, max_chunk_size=-1)
    del config["action_head_cfg"]["config"]["diffusion_model_cfg"]["num_action_per_block"]
    config["num_action_per_block"] = 48
    config = {"wrapped": {"more": config}}
    foreign = inspect(store(tmp_path, config, prefixed(in_original(weights(ZERO)))))
    assert foreign.action_horizon == 48 and foreign.block_frames == 2
    assert foreign.max_chunks == -1 and foreign.dit.max_context_blocks == 10  # 1 + 9 x 2 frames, and the chunk: 21


def test_the_canvas_and_the_other_parts_are_reported(tmp_path: Path) -> None:
    config = zero_config(ZERO)
    config["action_head_cfg"]["config"] |= {"target_video_height": 160, "target_video_width": 320}
    foreign = inspect(store(tmp_path, config, prefixed(in_original(weights(ZERO)))))
    assert foreign.canvas == (160, 320) and foreign.frame_tokens == 6 and foreign.text_length == 512
    pipeline = tmp_path / "pipeline"
    store(pipeline / "transformer", diffusers_config(PLAIN), weights(PLAIN))
    (pipeline / "vae").mkdir()
    (pipeline / "model_index.json").write_text(json.dumps({"transformer_2": [None, None]}))
    assert inspect(pipeline).components == {"vae": pipeline / "vae"}
    assert inspect(pipeline / "transformer").folder == pipeline / "transformer"


def test_what_the_checkpoint_leaves_open_is_ours_to_say(tmp_path: Path) -> None:
    store(tmp_path, zero_config(ZERO), prefixed(in_original(weights(ZERO))))
    dit = load_dit(tmp_path, action_dim=4, proprio_dim=6, parity="dreamzero", sink_blocks=1)
    assert (dit.cfg.action_dim, dit.cfg.proprio_dim, dit.cfg.parity, dit.cfg.sink_blocks) == (4, 6, "dreamzero", 1)
    assert dit.cfg.registers == ZERO.registers
    with pytest.raises(ValueError, match="wheels"):
        load_dit(tmp_path, wheels=4)


# ---------------------------------------------------------------------------------------------------- dtype and memory
@pytest.mark.parametrize("stored", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("dtype", [None, torch.bfloat16, torch.float16, torch.float32, torch.float64])
def test_norms_tables_and_the_time_embedder_stay_float32(
    stored: torch.dtype, dtype: torch.dtype | None, tmp_path: Path
) -> None:
    state = {n: v.to(stored) for n, v in in_original(weights(ZERO)).items()}
    dit = load_dit(store(tmp_path, zero_config(ZERO), prefixed(state)), dtype=dtype)
    want = dtype or stored
    kept = torch.float64 if dtype is torch.float64 else torch.float32
    held = weights(ZERO)
    for name, p in dit.named_parameters():
        of_kind = any(k in name for k in ("scale_shift_table", "norm", "time_embedder"))
        assert p.dtype == (kept if of_kind else want), name
        assert torch.equal(p, held[name].to(stored).to(p.dtype))


class Watched:
    """safetensors' reader, remembering what it gave away and how much of that was alive when it was asked for more."""

    given: list[weakref.ref[Tensor]]
    alive: list[int]
    devices: set[str]

    def __init__(self, *args: Any, device: str, **kwargs: Any):
        self.inner = safe_open(*args, device=device, **kwargs)
        self.devices.add(device)

    def __enter__(self) -> Watched:
        return self

    def __exit__(self, *_: object) -> None: ...

    def __getattr__(self, name: str) -> Any:
        return getattr(self.inner, name)

    def get_tensor(self, name: str) -> Tensor:
        self.alive.append(sum(ref() is not None for ref in self.given))
        tensor = self.inner.get_tensor(name)
        self.given.append(weakref.ref(tensor))
        return tensor


@pytest.fixture
def watched(monkeypatch: pytest.MonkeyPatch) -> Iterator[type[Watched]]:
    Watched.given, Watched.alive, Watched.devices = [], [], set()
    monkeypatch.setattr(shards, "safe_open", Watched)
    yield Watched


def test_loading_never_holds_a_second_tensor(tmp_path: Path, watched: type[Watched]) -> None:
    store(tmp_path, zero_config(ZERO), prefixed(in_original(weights(ZERO))) | OTHERS, 4)
    dit = load_dit(tmp_path, dtype=torch.bfloat16, device="cpu")
    assert len(watched.given) == len(dit.state_dict()) and set(watched.alive) == {0}
    assert watched.devices == {"cpu"}


def test_what_needs_no_change_is_the_tensor_that_was_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store(tmp_path, wan_config(PLAIN), in_original(weights(PLAIN)), 3)
    places: set[int] = set()
    stream = shards.stream

    def noted(*args: Any) -> Iterator[tuple[str, Tensor]]:
        for name, tensor in stream(*args):
            places.add(tensor.data_ptr())
            yield name, tensor

    monkeypatch.setattr("imagine.wan.convert.stream", noted)
    assert {p.data_ptr() for p in load_dit(tmp_path).parameters()} == places


def test_a_misfit_is_refused_before_any_weight_is_read(tmp_path: Path, watched: type[Watched]) -> None:
    state = in_original(weights(PLAIN))
    del state["head.head.bias"]
    with pytest.raises(CheckpointMismatch):
        load_dit(store(tmp_path, wan_config(PLAIN), state))
    assert not watched.given


@torch.no_grad()
def test_other_parts_are_streamed_under_their_own_names(tmp_path: Path, watched: type[Watched]) -> None:
    store(tmp_path, zero_config(ZERO), prefixed(in_original(weights(ZERO))) | OTHERS, 3)
    parts = {part: {n: v.clone() for n, v in other_parts(tmp_path, prefix)} for part, prefix in PARTS.items()}
    assert set(parts["text_encoder"]) == {"blocks.0.attn.q.weight", "blocks.0.ffn.gate.0.weight"}
    assert set(parts["image_encoder"]) == {"visual.patch_embedding.weight"}
    assert torch.equal(parts["vae"]["encoder.conv1.weight"], torch.full((1, 2), 3.0))
    assert len(watched.given) == 4 and max(watched.alive) <= 1
    with pytest.raises(CheckpointMismatch, match="wheels"):
        other_parts(tmp_path, "wheels.")


# ------------------------------------------------------------------------------------------------------------ refusals
def test_what_does_not_fit_is_listed_and_counted(tmp_path: Path) -> None:
    state = in_original(weights(PLAIN))
    lost = [n for n in state if n.startswith("blocks.1.self_attn.")]  # ten of them
    for name in lost:
        del state[name]
    state["blocks.0.ffn.0.weight"] = torch.zeros(41, 24)
    state["blocks.0.norm2.weight"] = torch.zeros(24)  # an affine norm where Wan has none
    state["wheels"] = torch.zeros(1)
    with pytest.raises(CheckpointMismatch) as caught:
        load_dit(store(tmp_path, wan_config(PLAIN), state))
    said = str(caught.value)
    assert "10 missing: " in said and said.count("blocks.1.attn1") == 8 and "... (10 in all)" in said
    assert "2 unexpected: " in said and "wheels" in said and "blocks.0.norm2.weight" in said
    assert "1 mis-shaped: blocks.0.ffn.net.0.proj.weight is (41, 24), expected (40, 24)" in said


@pytest.mark.parametrize("dialect", ["original", "diffusers"])
def test_a_checkpoint_without_its_registers_is_not_taken_for_a_plain_wan(dialect: str, tmp_path: Path) -> None:
    state = body_of(weights(ZERO))
    if dialect == "original":
        store(tmp_path, zero_config(ZERO), prefixed(in_original(state)))
    else:
        store(tmp_path, diffusers_config(ZERO) | BLOCKS, state)
    with pytest.raises(CheckpointMismatch, match=r"lacks registers: action_encoder\.W1\.W"):
        load_dit(tmp_path)


def broken_config(**change: Any) -> Callable[[Path], object]:
    return lambda at: store(at, diffusers_config(PLAIN) | change, weights(PLAIN))


def truncated(at: Path) -> None:
    store(at, wan_config(PLAIN), in_original(weights(PLAIN)), 3)
    file = at / "model-00002-of-00003.safetensors"
    file.write_bytes(file.read_bytes()[:-7])


def without_a_shard(at: Path) -> None:
    store(at, wan_config(PLAIN), in_original(weights(PLAIN)), 3)
    (at / "model-00002-of-00003.safetensors").unlink()


def without_index_and_shard(at: Path) -> None:
    without_a_shard(at)
    (at / "model.safetensors.index.json").unlink()


def index_of_more(at: Path) -> None:
    store(at, wan_config(PLAIN), in_original(weights(PLAIN)), 2)
    index = at / "model.safetensors.index.json"
    about = json.loads(index.read_text())
    about["weight_map"]["ghost"] = "model-00001-of-00002.safetensors"
    index.write_text(json.dumps(about))


def index_elsewhere(at: Path) -> None:
    store(at, wan_config(PLAIN), in_original(weights(PLAIN)), 2)
    (at / "model.safetensors.index.json").write_text(json.dumps({"weight_map": {"a": "../model.safetensors"}}))


def pickled(at: Path) -> None:
    (at / "config.json").write_text(json.dumps(wan_config(PLAIN)))
    torch.save({}, at / "pytorch_model.bin")


def two_sets(at: Path) -> None:
    (at / "config.json").write_text(json.dumps(wan_config(PLAIN)))
    for name in ("model.fp16.safetensors", "model.bf16.safetensors"):
        save_file(in_original(weights(PLAIN)), at / name)


def two_experts(at: Path) -> None:
    store(at / "transformer", diffusers_config(PLAIN), weights(PLAIN))
    about = {
        "transformer": ["diffusers", "WanTransformer3DModel"],
        "transformer_2": ["diffusers", "WanTransformer3DModel"],
    }
    (at / "model_index.json").write_text(json.dumps(about))


def two_networks(at: Path) -> None:
    state = in_original(weights(PLAIN))
    store(
        at, wan_config(PLAIN), prefixed(state, "student.") | prefixed({n: v + 1 for n, v in state.items()}, "teacher.")
    )


def many_embodiments(at: Path) -> None:
    state = in_original(weights(ZERO))
    state["action_encoder.W1.W"] = state["action_encoder.W1.W"].repeat(32, 1, 1)
    store(at, zero_config(ZERO), prefixed(state))


def twice(at: Path) -> None:
    state = in_original(weights(PLAIN))
    state["blocks.0.self_attn.q.base_layer.weight"] = state["blocks.0.self_attn.q.weight"] + 1
    store(at, wan_config(PLAIN), state)


def in_two_shards(at: Path) -> None:
    state = in_original(weights(PLAIN))
    store(at, wan_config(PLAIN), state, 2)
    file = at / "model-00001-of-00002.safetensors"
    with safe_open(file, "pt") as f:
        held = {n: f.get_tensor(n) for n in f.keys()}  # noqa: SIM118
    save_file(held | {"head.head.bias": state["head.head.bias"], "head.head.weight": state["head.head.weight"]}, file)


def not_json(at: Path) -> None:
    store(at, wan_config(PLAIN), in_original(weights(PLAIN)))
    (at / "config.json").write_text("{")


REFUSED: dict[str, tuple[Callable[[Path], object], str]] = {
    "nothing": (lambda at: None, "none of transformer/config.json, config.json"),
    "no weights": (lambda at: (at / "config.json").write_text("{}"), "holds no weights"),
    "another network": (lambda at: store(at, {}, {"model.layers.0.self_attn.q": torch.ones(1)}), "no Wan"),
    "another Wan": (broken_config(_class_name="WanVACETransformer3DModel"), "WanVACETransformer3DModel"),
    "other norms": (broken_config(qk_norm="layer_norm"), "qk_norm 'layer_norm'"),
    "no cross norm": (broken_config(cross_attn_norm=False), "cross_attn_norm False"),
    "first and last frame": (broken_config(pos_embed_seq_len=514), "pos_embed_seq_len 514"),
    "odd heads": (broken_config(num_attention_heads=7, attention_head_dim=None, dim=24), "7 heads"),
    "fewer inputs": (broken_config(in_channels=3), "3 input and 4 output"),
    "no number": (broken_config(ffn_dim="wide"), "'wide' as ffn_dim"),
    "no patch": (broken_config(patch_size=[2, 2]), "patch_size"),
    "no concatenation": (
        lambda at: store(at, zero_config(ZERO, concat_first_frame_latent=False), prefixed(in_original(weights(ZERO)))),
        "concat_first_frame_latent False",
    ),
    "concatenation of nothing": (
        lambda at: store(at, zero_config(PLAIN, concat_first_frame_latent=1), prefixed(in_original(weights(ZERO_5B)))),
        "concat_first_frame_latent 1",
    ),
    "two states": (
        lambda at: store(at, zero_config(ZERO, num_state_per_block=2), prefixed(in_original(weights(ZERO)))),
        "num_state_per_block 2",
    ),
    "embodiments": (many_embodiments, r"action_encoder\.W1\.W is \(32, 5, 24\)"),
    "truncated": (truncated, "model-00002-of-00003.safetensors is truncated"),
    "a shard short": (without_a_shard, "model-00002-of-00003.safetensors is missing"),
    "a part short": (without_index_and_shard, "lacks part 2"),
    "index of more": (index_of_more, "ghost"),
    "index elsewhere": (index_elsewhere, "its own folder"),
    "pickles": (pickled, r"pickled weights \(pytorch_model\.bin"),
    "two sets": (two_sets, "keep one"),
    "two experts": (two_experts, "per noise level"),
    "two networks": (two_networks, "student"),
    "twice": (twice, "same tensor"),
    "in two shards": (in_two_shards, "is both in"),
    "not JSON": (not_json, "not JSON"),
}  # fmt: skip


@pytest.mark.parametrize("case", REFUSED)
def test_what_is_broken_or_something_else_is_refused(case: str, tmp_path: Path) -> None:
    spoil, said = REFUSED[case]
    spoil(tmp_path)
    for look in (inspect, load_dit):
        with pytest.raises(CheckpointMismatch, match=said):
            look(tmp_path)


def test_parts_without_their_index_load_all_the_same(tmp_path: Path) -> None:
    store(tmp_path, wan_config(PLAIN), in_original(weights(PLAIN)), 3)
    (tmp_path / "model.safetensors.index.json").unlink()
    assert_equal(load_dit(tmp_path), weights(PLAIN))


# ---------------------------------------------------------------------------------------------------------------- LoRA
TARGETS = [f"blocks.{i}.{at}" for i in range(2) for at in ("self_attn.q", "cross_attn.o", "ffn.0", "ffn.2")]
INSIDE = PREFIX + "base_model.model."


def factors(cfg: DiTConfig, default: str = ".default", rank: int = 3) -> dict[str, Tensor]:
    shapes = {n: tuple(v.shape) for n, v in in_original(weights(cfg)).items()}
    g = torch.Generator().manual_seed(7)
    found = {}
    for target in TARGETS:
        out, into = shapes[f"{target}.weight"]
        found[f"{target}.lora_A{default}.weight"] = torch.randn(rank, into, generator=g)
        found[f"{target}.lora_B{default}.weight"] = torch.randn(out, rank, generator=g)
    return found


def merged(state: dict[str, Tensor], lora: dict[str, Tensor], scale: float) -> dict[str, Tensor]:
    """What the LoRA makes of original weights, back under our names."""
    changed = in_original(state)
    for target in TARGETS:
        a, b = (next(v for n, v in lora.items() if n.startswith(f"{target}.lora_{which}")) for which in "AB")
        changed[f"{target}.weight"] = changed[f"{target}.weight"].double() + scale * (b.double() @ a.double())
    back = dict(zip(in_original({n: torch.zeros(()) for n in body_of(state)}), body_of(state), strict=True))
    return {ours: changed[theirs] for theirs, ours in back.items()} | state_of_registers(state)


def state_of_registers(state: dict[str, Tensor]) -> dict[str, Tensor]:
    return {n: v for n, v in state.items() if n.startswith("registers.")}


def with_base(state: dict[str, Tensor], lora: dict[str, Tensor]) -> dict[str, Tensor]:
    """PEFT's names: the changed layers' own weights are called base_layer."""
    held = {}
    for name, value in in_original(state).items():
        stem, _, leaf = name.rpartition(".")
        held[f"{stem}.base_layer.{leaf}" if stem in TARGETS else name] = value
    return prefixed(held | lora, INSIDE)


def assert_close(dit: JointDiT, state: dict[str, Tensor]) -> None:
    own = dit.state_dict()
    assert own.keys() == state.keys()
    for name, value in own.items():
        torch.testing.assert_close(value, state[name].to(value.dtype), rtol=0, atol=1e-5)


@pytest.mark.parametrize("default", [".default", ""])
def test_a_lora_is_merged_on_the_base_it_carries(default: str, tmp_path: Path) -> None:
    lora = factors(ZERO, default)
    store(tmp_path, zero_config(ZERO), with_base(weights(ZERO), lora) | OTHERS, 3)
    assert_close(compose_lora(tmp_path), merged(weights(ZERO), lora, 6 / 3))
    assert inspect(tmp_path).lora and inspect(tmp_path).layout == "dreamzero"
    with pytest.raises(CheckpointMismatch, match="compose_lora"):
        load_dit(tmp_path)
    with pytest.raises(CheckpointMismatch, match="leave out base"):
        compose_lora(tmp_path, base=tmp_path)


def test_a_lora_is_added_before_rounding(tmp_path: Path) -> None:
    lora = {n: v / 100 for n, v in factors(ZERO).items()}
    store(tmp_path, zero_config(ZERO), with_base(weights(ZERO), lora))
    found = compose_lora(tmp_path, dtype=torch.bfloat16).state_dict()["blocks.0.ffn.net.0.proj.weight"]
    exact = merged(weights(ZERO), lora, 2)["blocks.0.ffn.net.0.proj.weight"]
    assert found.dtype == torch.bfloat16 and torch.equal(found, exact.float().bfloat16())
    assert not torch.equal(found, weights(ZERO)["blocks.0.ffn.net.0.proj.weight"].bfloat16())


def test_a_lora_alone_needs_the_base_it_was_trained_on(tmp_path: Path) -> None:
    """The trap of dreamzero#82: on a plain Wan such a LoRA loads, runs, and acts worse without a word."""
    lora, trained = factors(ZERO), registers_of(weights(ZERO, seed=9))
    config = zero_config(ZERO) | {"pretrained_model_path": "checkpoints/DreamZero-AgiBot"}
    alone = store(tmp_path / "lora", config, prefixed(lora | trained, INSIDE))
    zero = store(tmp_path / "zero", zero_config(ZERO), prefixed(in_original(weights(ZERO))) | OTHERS)
    wan = store(tmp_path / "wan", wan_config(IMAGE), in_original(weights(IMAGE)), stem="diffusion_pytorch_model")
    repacked = store(
        tmp_path / "repacked", diffusers_config(ZERO) | BLOCKS, body_of(weights(ZERO)) | registers_of(weights(ZERO))
    )

    state = body_of(weights(ZERO)) | state_of_registers(weights(ZERO, seed=9))  # the registers it was trained with
    for base in (zero, repacked):
        assert_close(compose_lora(alone, base=base, action_dim=3), merged(state, lora, 2))
    for attempt in (lambda: compose_lora(alone), lambda: inspect(alone)):
        with pytest.raises(CheckpointMismatch, match=r"give compose_lora base=.*DreamZero-AgiBot.*dreamzero#82"):
            attempt()
    with pytest.raises(CheckpointMismatch, match=r"plain Wan, without DreamZero's registers.*dreamzero#82"):
        compose_lora(alone, base=wan)
    with pytest.raises(CheckpointMismatch, match="no LoRA factors"):
        compose_lora(zero)
    both = store(tmp_path / "both", zero_config(ZERO), with_base(weights(ZERO), lora))
    with pytest.raises(CheckpointMismatch, match="itself a LoRA"):
        compose_lora(alone, base=both)


def test_peft_s_own_folder_on_a_plain_wan(tmp_path: Path) -> None:
    wan = store(tmp_path / "wan", wan_config(PLAIN), in_original(weights(PLAIN)))
    lora = factors(PLAIN, "")
    folder = tmp_path / "adapter"
    folder.mkdir()
    save_file(prefixed(lora, "base_model.model."), folder / "adapter_model.safetensors")
    about = {"peft_type": "LORA", "r": 3, "lora_alpha": 12, "rank_pattern": {}, "use_dora": False}
    (folder / "adapter_config.json").write_text(json.dumps(about))
    assert_close(compose_lora(folder, base=wan), merged(weights(PLAIN), lora, 4))
    (folder / "adapter_config.json").write_text(json.dumps(about | {"use_rslora": True}))
    with pytest.raises(CheckpointMismatch, match="use_rslora"):
        compose_lora(folder, base=wan)


@pytest.mark.parametrize("what", ["half a pair", "another width", "half a base", "no alpha", "another layer"])
def test_a_lora_that_does_not_fit_is_refused(what: str, tmp_path: Path) -> None:
    lora, config, state = factors(ZERO), zero_config(ZERO), weights(ZERO)
    said = "lora_alpha"
    if what == "half a pair":
        del lora[f"{TARGETS[0]}.lora_B.default.weight"]
        said = "blocks.0.attn1.to_q.weight"
    elif what == "another width":
        lora[f"{TARGETS[0]}.lora_A.default.weight"] = torch.zeros(3, 25)
        said = r"\(24, 3\) x \(3, 25\), expected \(24, 24\)"
    elif what == "another layer":
        lora |= {f"blocks.7.self_attn.q.lora_{f}.default.weight": torch.zeros(24, 24) for f in "AB"}
        said = "blocks.7.attn1.to_q.weight"
    elif what == "no alpha":
        del config["action_head_cfg"]["config"]["lora_alpha"]
    held = with_base(state, lora)
    if what == "half a base":
        del held[f"{INSIDE}{TARGETS[-1]}.base_layer.weight"]
        said = "blocks.1.ffn.net.2.weight"
    with pytest.raises(CheckpointMismatch, match=said):
        compose_lora(store(tmp_path, config, held))


# -------------------------------------------------------------------------------------------------------------- saving
@pytest.mark.parametrize("shard_bytes", [10**9, 4000, 1])
@pytest.mark.parametrize("cfg", [PLAIN, IMAGE, ZERO, ZERO_5B], ids=["t2v", "i2v", "dreamzero", "dreamzero 5B"])
def test_what_is_saved_loads_again(cfg: DiTConfig, shard_bytes: int, tmp_path: Path) -> None:
    dit = made(cfg)
    folder = save_diffusers(dit, tmp_path, shard_bytes=shard_bytes, action_horizon=HORIZON)
    assert folder == tmp_path / "transformer" and not list(tmp_path.glob("*.tmp"))
    for place in (tmp_path, folder):
        assert_equal(load_dit(place), dit.state_dict())
        assert load_dit(place).cfg.model_dump(exclude={"max_context_blocks"}) == cfg.model_dump(
            exclude={"max_context_blocks"}
        )
    files = sorted(folder.glob("diffusion_pytorch_model*.safetensors"))
    assert (folder / "registers.safetensors").exists() == (cfg.registers is not None)
    if shard_bytes == 10**9:
        assert [p.name for p in files] == ["diffusion_pytorch_model.safetensors"]
    else:
        index = json.loads((folder / "diffusion_pytorch_model.safetensors.index.json").read_text())
        body = body_of(dit.state_dict())
        assert index["metadata"]["total_size"] == sum(v.nbytes for v in body.values())
        assert set(index["weight_map"]) == set(body) and len(files) == len(set(index["weight_map"].values())) > 1
        biggest = max(v.nbytes for v in body.values())
        assert all(p.stat().st_size <= max(shard_bytes, biggest) + 5000 for p in files)  # and a header
    if cfg.registers:
        assert inspect(folder).action_horizon == HORIZON and inspect(folder).layout == "dreamzero-diffusers"
        with safe_open(folder / "registers.safetensors", "pt") as f:
            held = {n: tuple(f.get_tensor(n).shape) for n in f.keys()}  # noqa: SIM118
        assert held == registers(24, 5, 7, 9)
        (folder / "registers.safetensors").unlink()
        with pytest.raises(CheckpointMismatch, match="lacks registers"):
            load_dit(folder)


def test_what_is_no_wan_or_would_overwrite_one_is_not_saved(tmp_path: Path) -> None:
    for change in ({"see_last_frame": True}, {"pooled_text": True}, {"prediction": "clean"}, {"place_frequencies": 2}):
        with pytest.raises(CheckpointMismatch, match=next(iter(change))):
            save_diffusers(JointDiT(PLAIN.model_copy(update=change)), tmp_path)
    with pytest.raises(CheckpointMismatch, match="action_dim 3"):
        save_diffusers(JointDiT(PLAIN.model_copy(update={"action_dim": 3})), tmp_path)
    with pytest.raises(CheckpointMismatch, match="action_horizon"):
        save_diffusers(made(ZERO), tmp_path)
    assert not list(tmp_path.iterdir())
    save_diffusers(made(PLAIN), tmp_path)
    with pytest.raises(CheckpointMismatch, match="exists already"):
        save_diffusers(made(PLAIN), tmp_path)


def test_a_mixed_model_keeps_its_dtypes_through_a_file(tmp_path: Path) -> None:
    store(tmp_path / "a", zero_config(ZERO), prefixed(in_original(weights(ZERO))))
    dit = load_dit(tmp_path / "a", dtype=torch.bfloat16)
    again = load_dit(save_diffusers(dit, tmp_path / "b", action_horizon=HORIZON))
    assert_equal(again, dit.state_dict())
    assert {n: p.dtype for n, p in again.named_parameters()} == {n: p.dtype for n, p in dit.named_parameters()}


# ------------------------------------------------------------------------------------------- diffusers as the oracle
@pytest.mark.slow  # only because importing diffusers takes seconds
@pytest.mark.parametrize("cfg", [PLAIN, IMAGE], ids=["t2v", "i2v"])
def test_names_agree_with_diffusers_own_conversion(cfg: DiTConfig, tmp_path: Path) -> None:
    from diffusers.loaders.single_file_utils import convert_wan_transformer_to_diffusers

    shapes = original(2, 24, 40, 4 + cfg.condition_channels, 4, 10, 16, cfg.image_dim)
    g = torch.Generator().manual_seed(3)
    state = {n: torch.randn(s, generator=g) for n, s in shapes.items()}
    store(tmp_path, wan_config(cfg), state)
    assert_equal(load_dit(tmp_path), convert_wan_transformer_to_diffusers(dict(state)))


@pytest.mark.slow
@pytest.mark.parametrize("cfg", [PLAIN, IMAGE, ZERO], ids=["t2v", "i2v", "dreamzero"])
@pytest.mark.parametrize("shard_bytes", [10**9, 4000])
def test_diffusers_loads_what_we_save(cfg: DiTConfig, shard_bytes: int, tmp_path: Path) -> None:
    from diffusers import WanTransformer3DModel

    dit = made(cfg)
    save_diffusers(dit, tmp_path, shard_bytes=shard_bytes, action_horizon=HORIZON)
    theirs, report = WanTransformer3DModel.from_pretrained(tmp_path, subfolder="transformer", output_loading_info=True)
    assert not report["missing_keys"] and not report["unexpected_keys"] and not report["mismatched_keys"]
    want = body_of(dit.state_dict())
    assert theirs.state_dict().keys() == want.keys()
    assert all(torch.equal(v, want[n]) for n, v in theirs.state_dict().items())


@pytest.mark.slow
def test_we_load_what_diffusers_saves(tmp_path: Path) -> None:
    from diffusers import WanTransformer3DModel

    torch.manual_seed(0)
    theirs = WanTransformer3DModel(
        num_attention_heads=2, attention_head_dim=12, in_channels=9, out_channels=4, text_dim=10, freq_dim=16,
        ffn_dim=40, num_layers=2, image_dim=14, added_kv_proj_dim=24,
    )  # fmt: skip
    theirs.save_pretrained(tmp_path / "transformer", max_shard_size="8KB")
    assert len(list((tmp_path / "transformer").glob("*.safetensors"))) > 1
    dit = load_dit(tmp_path)
    assert dit.cfg.model_dump(exclude={"max_context_blocks"}) == IMAGE.model_dump(exclude={"max_context_blocks"})
    assert_equal(dit, theirs.state_dict())


# --------------------------------------------------------------------------------------------------- prompts and views
def test_prompts_are_word_for_word() -> None:
    assert prompt("Pick Up the {red} cup", "agibot") == (
        "A multi-view video shows that a robot pick up the {red} cup The video is split into four views: The top-left "
        "view shows the camera view from the robot's head, the top-right view shows the camera view from the right "
        "hand, the bottom-left view shows the camera view from the left hand, and the bottom-right view is a black "
        "screen (inactive view). The robot pick up the {red} cup"
    )
    assert all(p.count("{task}") == 2 and "  " not in p for p in PROMPTS.values())
    assert "three views" in PROMPTS["droid"] and "robot's wrist" in PROMPTS["droid"]
    assert set(PROMPTS) == set(LAYOUTS)
    assert NEGATIVE.startswith("Vibrant colors, overexposed, static, ") and NEGATIVE.endswith("walking backwards.")
    with pytest.raises(ShapeError, match="wheelchair"):
        prompt("go", "wheelchair")


@pytest.mark.parametrize("kind", ["numpy", "torch"])
def test_views_are_laid_as_dreamzero_lays_them(kind: str) -> None:
    def view(level: int, h: int = 176, w: int = 320) -> Any:
        ramp = (np.arange(2 * h * w * 3) % 40 + level).astype(np.uint8).reshape(2, h, w, 3)
        return ramp if kind == "numpy" else torch.from_numpy(ramp)

    head, left, right = view(10), view(60), view(110)
    canvas = tile({"left_hand": left, "head": head, "right_hand": right}, "agibot")
    assert type(canvas) is type(head) and canvas.shape == (2, 352, 640, 3) and "uint8" in str(canvas.dtype)
    assert (canvas[:, :176, :320] == head).all() and (canvas[:, 176:, :320] == left).all()
    assert (canvas[:, :176, 320:] == right).all() and (canvas[:, 176:, 320:] == 0).all()

    wrist, left, right = view(10), view(60), view(110)
    canvas = tile({"wrist": wrist, "left": left, "right": right}, "droid")
    assert canvas.shape == (2, 352, 640, 3)
    assert (canvas[:, :176, 0::2] == wrist).all() and (canvas[:, :176, 1::2] == wrist).all()
    assert (canvas[:, 176:, :320] == left).all() and (canvas[:, 176:, 320:] == right).all()

    small = tile({"exterior": view(1, 8, 6), "wrist": view(50, 8, 6)}, "libero", height=8, width=6)
    assert small.shape == (2, 8, 12, 3) and (small[:, :, :6] == view(1, 8, 6)).all()
    one = tile({"exterior": view(1, 8, 6)[0], "wrist": view(50, 8, 6)[0]}, "libero", height=8, width=6)
    assert one.shape == (8, 12, 3)


def test_views_that_do_not_fit_are_refused() -> None:
    good = np.zeros((8, 6, 3), np.uint8)
    size = {"height": 8, "width": 6}
    for views, said in (
        ({"exterior": good}, "expected \\['exterior', 'wrist'\\]"),
        ({"exterior": good, "wrist": good, "top": good}, "top"),
        ({"exterior": good, "wrist": good[:7]}, "wrist"),
        ({"exterior": good, "wrist": good.astype(np.float32)}, "float32"),
        ({"exterior": good, "wrist": torch.from_numpy(good)}, "Tensor"),
        ({"exterior": good[None], "wrist": good}, "wrist"),
    ):
        with pytest.raises(ShapeError, match=said):
            tile(views, "libero", **size)
    with pytest.raises(ShapeError, match="no layout"):
        tile({}, "tripod")
