"""The frozen helpers of Wan and DreamZero, on small random weights: what they compute, and whose names they read."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file
from torch import Tensor

from imagine.types import CheckpointMismatch, ShapeError, UnknownWord
from imagine.wan.encoders import (
    ImageEncoder,
    PromptEncoder,
    WanCodec,
    load_codec,
    load_image_encoder,
    load_prompts,
)

pytestmark = pytest.mark.slow  # importing diffusers and transformers takes seconds

MEAN, STD = [0.5, -0.25, 0.1, -0.9], [1.5, 0.5, 2.0, 0.75]
STATISTICS = {"latents_mean": MEAN, "latents_std": STD}
SMALL = {"base_dim": 8, "z_dim": 4, **STATISTICS}
VERSIONS: dict[str, dict[str, Any]] = {
    "2.1": SMALL,
    "2.2": SMALL
    | {"decoder_base_dim": 16, "is_residual": True, "patch_size": 2}
    | {"in_channels": 12, "out_channels": 12, "scale_factor_spatial": 16},
}
SIDE = {"2.1": 16, "2.2": 32}  # pixels, for 2 x 2 latents
T5 = {"vocab_size": 40, "d_model": 24, "d_kv": 4, "d_ff": 48, "num_layers": 3, "num_heads": 6}
T5 |= {"feed_forward_proj": "gated-gelu"}
CLIP = {"hidden_size": 24, "intermediate_size": 48, "num_hidden_layers": 3, "num_attention_heads": 4}
CLIP |= {"image_size": 28, "patch_size": 14, "hidden_act": "gelu"}


def make_vae(version: str = "2.1", **change: Any) -> Any:
    from diffusers import AutoencoderKLWan

    torch.manual_seed(0)
    return AutoencoderKLWan(**VERSIONS[version] | change)


def make_t5() -> Any:
    from transformers import UMT5Config, UMT5EncoderModel

    torch.manual_seed(1)
    model = UMT5EncoderModel(UMT5Config(**T5))
    return shaken(model)


def make_clip() -> Any:
    from transformers import CLIPVisionConfig, CLIPVisionModel

    torch.manual_seed(2)
    return shaken(CLIPVisionModel(CLIPVisionConfig(**CLIP)))


def shaken(model: Any) -> Any:
    """Random in every weight, norms and biases too, so that no two of them can be exchanged unnoticed."""
    with torch.no_grad():
        for p in model.parameters():
            p.add_(0.2 * torch.randn_like(p))
    return model.eval()


def video(frames: int, version: str = "2.1", n: int = 1, seed: int = 0) -> Tensor:
    shape = (n, frames, SIDE[version], SIDE[version], 3)
    return torch.randint(0, 256, shape, dtype=torch.uint8, generator=torch.Generator().manual_seed(seed))


def pixels(canvas: Tensor) -> Tensor:
    """(N, T, H, W, 3) uint8 to what diffusers' autoencoder reads."""
    return canvas.permute(0, 4, 1, 2, 3).float() / 127.5 - 1


class Tokenizer:
    """One token per word, by its length; 1 ends a text and 0 fills it up, if asked to."""

    def __call__(
        self, texts: list[str], padding: str | bool = False, max_length: int = 0, **_: Any
    ) -> dict[str, Tensor]:
        ids = [[2 + len(word) for word in text.split()] + [1] for text in texts]
        full = max_length if padding == "max_length" else max(map(len, ids))
        return {
            "input_ids": torch.tensor([row + [0] * (full - len(row)) for row in ids]),
            "attention_mask": torch.tensor([[1] * len(row) + [0] * (full - len(row)) for row in ids]),
        }


@pytest.fixture(scope="module", params=list(VERSIONS))
def version(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.fixture(scope="module")
def codec(version: str) -> WanCodec:
    return WanCodec(make_vae(version))


@pytest.fixture
def prompts() -> PromptEncoder:
    return PromptEncoder(make_t5(), Tokenizer(), length=12)


# ---------------------------------------------------------------------- codec
def test_a_video_and_its_latents_have_wans_shapes(codec: WanCodec, version: str) -> None:
    assert (codec.temporal, codec.factor, codec.channels) == (4, {"2.1": 8, "2.2": 16}[version], 4)
    latents = codec.encode(video(9, version, n=2))
    assert latents.shape == (2, 3, 4, 2, 2) and latents.dtype == torch.float32
    canvas = codec.decode(latents)
    assert canvas.shape == video(9, version, n=2).shape and canvas.dtype == torch.uint8


def test_latents_are_normalised_by_the_codecs_own_mean_and_deviation(codec: WanCodec, version: str) -> None:
    canvas = video(5, version)
    mu = codec.model.encode(pixels(canvas)).latent_dist.mode()
    wanted = (mu - torch.tensor(MEAN).view(1, 4, 1, 1, 1)) / torch.tensor(STD).view(1, 4, 1, 1, 1)
    torch.testing.assert_close(codec.encode(canvas), wanted.transpose(1, 2))
    shown = codec.model.decode(mu).sample.permute(0, 2, 3, 4, 1)
    assert (codec.decode(wanted.transpose(1, 2)).float() - 127.5 * (shown + 1)).abs().max() <= 0.51


def test_no_latent_depends_on_later_frames(codec: WanCodec, version: str) -> None:
    canvas = video(9, version)
    latents = codec.encode(canvas)
    torch.testing.assert_close(codec.encode(canvas[:, :1]), latents[:, :1])
    torch.testing.assert_close(codec.encode(canvas[:, :5]), latents[:, :2])
    assert (codec.encode(canvas.flip(1))[:, 0] - latents[:, 0]).abs().max() > 1e-3  # and it does look at the film


def test_a_video_does_not_depend_on_what_it_is_batched_with(codec: WanCodec, version: str) -> None:
    canvas = video(5, version, n=3)
    latents = codec.encode(canvas)
    assert torch.equal(codec.encode(canvas[1:2]), latents[1:2])
    assert torch.equal(codec.decode(latents[1:2]), codec.decode(latents)[1:2])


def test_half_precision_stays_close_and_hands_out_float32(version: str) -> None:
    device = "cuda" if torch.cuda.is_available() else "cpu"
    exact, half = WanCodec(make_vae(version)), WanCodec(make_vae(version)).to(device, torch.bfloat16)
    canvas = video(5, version)
    with torch.inference_mode():
        latents = half.encode(canvas.to(device)).cpu()
    assert latents.dtype == torch.float32
    assert (latents - exact.encode(canvas)).abs().max() < 0.02
    off = (half.decode(latents.to(device)).cpu().float() - exact.decode(latents).float()).abs()
    assert off.mean() < 1 and off.max() < 16


def test_the_condition_is_that_of_diffusers_pipeline(codec: WanCodec, version: str) -> None:
    from diffusers import WanImageToVideoPipeline

    first = video(1, version, n=2)[:, 0]
    self = SimpleNamespace(
        vae=codec.model,
        vae_scale_factor_temporal=codec.temporal,
        vae_scale_factor_spatial=codec.factor,
        config=SimpleNamespace(expand_timesteps=False),
    )
    side = SIDE[version]
    for i, image in enumerate(first):  # the pipeline makes films of one image
        picture = pixels(image[None, None])[:, :, 0]
        _, wanted = WanImageToVideoPipeline.prepare_latents(
            self, picture, 1, 4, side, side, 9, torch.float32, torch.device("cpu")
        )
        torch.testing.assert_close(codec.condition(first, 3)[i], wanted[0].transpose(0, 1))


def test_the_condition_marks_the_first_frame_alone(codec: WanCodec, version: str) -> None:
    first = video(1, version)[:, 0]
    given = codec.condition(first, 3)
    assert given.shape == (1, 3, 8, 2, 2)
    assert given[:, 0, :4].eq(1).all() and given[:, 1:, :4].eq(0).all()
    torch.testing.assert_close(given[:, :1, 4:], codec.encode(first[:, None]))
    torch.testing.assert_close(codec.condition(first, 1), given[:, :1])


@pytest.mark.parametrize("version", VERSIONS, indirect=True)
def test_a_continued_film_is_the_film(version: str) -> None:
    codec = WanCodec(make_vae(version, num_res_blocks=1))
    assert codec.receptive == 31
    latents = torch.randn(1, 44, 4, 2, 2, generator=torch.Generator().manual_seed(0))
    whole = codec.decode(latents)
    for at in (1, 2, 7, 42):
        more = codec.decode_after(latents[:, :at], latents[:, at : at + 2])
        wanted = whole[:, 1 + 4 * (at - 1) : 1 + 4 * (at + 1)]
        assert more.shape == wanted.shape
        assert (more.int() - wanted.int()).abs().max() <= 1  # rounding
    assert torch.equal(codec.decode_after(latents[:, :0], latents[:, :2]), codec.decode(latents[:, :2]))
    off = {}  # root mean square, in grey levels, of a chunk decoded with few latents before it
    for memory in (4, 16, codec.receptive):
        more = codec.decode_after(latents[:, :42], latents[:, 42:], memory).float()
        off[memory] = (more - whole[:, -8:].float()).square().mean().sqrt().item()
    assert off[codec.receptive] == pytest.approx(0, abs=0.1)
    assert off[4] == pytest.approx({"2.1": 39.1, "2.2": 25.1}[version], rel=0.2)
    assert off[16] == pytest.approx({"2.1": 1.5, "2.2": 0.26}[version], rel=0.2)


def test_wans_decoders_look_39_latents_back() -> None:
    assert WanCodec(make_vae()).receptive == 39


def test_a_codec_refuses_what_does_not_fit(codec: WanCodec, version: str) -> None:
    good, latents = video(5, version), torch.zeros(1, 2, 4, 2, 2)
    for bad in (good[:, :4], good[:, :0], good.float(), good[0], good[:, :, :-4], good[..., :2]):
        with pytest.raises(ShapeError):
            codec.encode(bad)
    for bad in (latents[:, :0], latents[:, :, :3], latents[0]):
        with pytest.raises(ShapeError):
            codec.decode(bad)
    for previous, memory in ((latents[:, :, :3], 4), (latents, 0), (latents[..., :1], 4), (latents[0], 4)):
        with pytest.raises(ShapeError):
            codec.decode_after(previous, latents, memory)
    with pytest.raises(ShapeError):
        codec.condition(good[:, 0], 0)


def test_a_codec_must_halve_time_twice_and_know_its_statistics() -> None:
    with pytest.raises(CheckpointMismatch, match="twice"):
        WanCodec(make_vae(temperal_downsample=[False, False, True]))
    with pytest.raises(CheckpointMismatch, match="latents_mean"):
        WanCodec(make_vae(latents_mean=[0.0] * 3))


# ---------------------------------------------------------------------- prompts
def test_prompts_are_read_as_wan_reads_them_padded_and_masked(prompts: PromptEncoder) -> None:
    texts = ["pick up the red bowl", "push", ""]
    tokens = Tokenizer()(texts, padding="max_length", max_length=12)
    mask = tokens["attention_mask"]
    wanted = prompts.model(**tokens).last_hidden_state * mask[..., None]
    found = prompts(texts)
    assert found.shape == (3, 12, 24) and found.dtype == torch.float32
    torch.testing.assert_close(found, wanted, rtol=1e-4, atol=1e-5)
    assert found[mask == 0].eq(0).all() and found[mask == 1].abs().sum(-1).gt(0).all()
    assert prompts([]).shape == (0, 12, 24)


def test_each_prompt_is_read_once_and_alone(prompts: PromptEncoder) -> None:
    read: list[int] = []
    prompts.model.register_forward_hook(lambda *_: read.append(1))
    first = prompts(["a bowl", "a cup", "a bowl"])
    assert len(read) == 2 and torch.equal(first[0], first[2])
    assert torch.equal(prompts(["a cup", "  a \n cup ", "a bowl"]), first[[1, 1, 0]]) and len(read) == 2
    assert torch.equal(PromptEncoder(make_t5(), Tokenizer(), length=12)(["a bowl"]), first[:1])


def test_the_least_recently_used_prompt_is_forgotten_first() -> None:
    read: list[int] = []
    prompts = PromptEncoder(make_t5(), Tokenizer(), length=12, remember=2)
    prompts.model.register_forward_hook(lambda *_: read.append(1))
    for text, reads in (("a", 1), ("bb", 2), ("a", 2), ("ccc", 3), ("a", 3), ("bb", 4)):
        prompts([text])
        assert len(read) == reads, text


def test_html_is_undone_as_wan_undoes_it(prompts: PromptEncoder) -> None:
    assert torch.equal(prompts(["bowl &amp;amp; cup"]), prompts(["bowl & cup"]))


def test_a_prompt_that_is_too_long_is_refused_rather_than_cut(prompts: PromptEncoder) -> None:
    prompts(["w " * 11])
    with pytest.raises(UnknownWord, match="13 tokens, expected at most 12"):
        prompts(["w " * 12])


def test_what_is_remembered_can_be_trained_upon_and_follows_the_weights(prompts: PromptEncoder) -> None:
    with torch.inference_mode():
        prompts(["a bowl"])
    layer = torch.nn.Linear(24, 2)
    layer(prompts(["a bowl"])).sum().backward()
    assert layer.weight.grad is not None
    wide = prompts(["a bowl"])
    assert (prompts.to(torch.bfloat16)(["a bowl"]) - wide).abs().max() < 0.02 * wide.abs().max()


def test_helpers_stay_in_evaluation_mode_and_take_no_gradient(prompts: PromptEncoder) -> None:
    model = torch.nn.ModuleList([prompts, ImageEncoder(make_clip()), WanCodec(make_vae())]).train()
    assert model.training and not any(m.training for helper in model for m in helper.modules())
    assert not any(p.requires_grad for p in model.parameters())


# ---------------------------------------------------------------------- image encoder
def test_image_tokens_are_clips_hidden_states_but_the_last() -> None:
    clip = make_clip()
    canvas = video(1, "2.2", n=2)[:, 0, :, :20]  # not square: squeezed, not cut
    # as DreamZero does it: resized in [-1, 1], then brought to CLIP's mean and deviation, then all layers but one
    x = F.interpolate(canvas.permute(0, 3, 1, 2) / 127.5 - 1, (28, 28), mode="bicubic", align_corners=False)
    mean, std = torch.tensor([0.48145466, 0.4578275, 0.40821073]), torch.tensor([0.26862954, 0.26130258, 0.27577711])
    x = (x * 0.5 + 0.5 - mean[:, None, None]) / std[:, None, None]
    found = ImageEncoder(clip)(canvas)
    torch.testing.assert_close(found, clip(x, output_hidden_states=True).hidden_states[-2])
    clip.encoder.layers = clip.encoder.layers[:-1]
    torch.testing.assert_close(found, clip(x).last_hidden_state)
    assert found.shape == (2, 5, 24)
    assert ImageEncoder(make_clip()).to(torch.bfloat16)(canvas).dtype == torch.float32
    for bad in (canvas.float(), canvas[0], canvas[..., :1]):
        with pytest.raises(ShapeError):
            ImageEncoder(clip)(bad)


# ---------------------------------------------------------------------- original names
def original_vae(vae: Any, version: str) -> Iterator[tuple[str, Tensor]]:
    """The state dict under the names of Wan's own modules, from where their layers sit in them."""
    residual = {"norm1": "residual.0", "conv1": "residual.2", "norm2": "residual.3", "conv2": "residual.6"}
    residual["conv_shortcut"] = "shortcut"

    def inner(name: str) -> str:
        head, _, rest = name.partition(".")
        return f"{residual[head]}.{rest}" if head in residual else name

    flat = {"quant_conv": "conv1", "post_quant_conv": "conv2"}
    for name, value in vae.state_dict().items():
        part, _, rest = name.partition(".")
        if part in flat:
            yield f"{flat[part]}.{rest}", value
        elif at := re.fullmatch(r"mid_block\.resnets\.(\d)\.(.+)", rest):
            yield f"{part}.middle.{2 * int(at[1])}.{inner(at[2])}", value
        elif at := re.fullmatch(r"mid_block\.attentions\.0\.(.+)", rest):
            yield f"{part}.middle.1.{at[1]}", value
        elif at := re.fullmatch(r"(down|up)_blocks\.(\d+)\.resnets\.(\d)\.(.+)", rest):
            way, level, i = at[1], int(at[2]), int(at[3])
            where = f"{level}.{way}samples.{i}" if version == "2.2" else f"{4 * level + i}"
            yield f"{part}.{way}samples.{where}.{inner(at[4])}", value
        elif at := re.fullmatch(r"(down|up)_blocks\.(\d+)\.(?:downsampler|upsamplers?)\.(?:0\.)?(.+)", rest):
            way, level, i = at[1], int(at[2]), 2 if at[1] == "down" else 3
            where = f"{level}.{way}samples.{i}" if version == "2.2" else f"{4 * level + i}"
            yield f"{part}.{way}samples.{where}.{at[3]}", value
        elif at := re.fullmatch(r"down_blocks\.(\d+)\.(.+)", rest):  # 2.1 numbers them through
            yield f"{part}.downsamples.{at[1]}.{inner(at[2])}", value
        else:
            top = {"conv_in": "conv1", "norm_out": "head.0", "conv_out": "head.2"}
            head, _, kind = rest.partition(".")
            yield f"{part}.{top[head]}.{kind}", value


def original_t5(model: Any) -> Iterator[tuple[str, Tensor]]:
    inside = {
        "layer.0.layer_norm": "norm1",
        "layer.1.layer_norm": "norm2",
        "layer.0.SelfAttention.relative_attention_bias": "pos_embedding.embedding",
        "layer.1.DenseReluDense.wi_0": "ffn.gate.0",
        "layer.1.DenseReluDense.wi_1": "ffn.fc1",
        "layer.1.DenseReluDense.wo": "ffn.fc2",
    } | {f"layer.0.SelfAttention.{x}": f"attn.{x}" for x in "qkvo"}
    yield "token_embedding.weight", model.shared.weight.data
    yield "norm.weight", model.encoder.final_layer_norm.weight.data
    for i, block in enumerate(model.encoder.block):
        for name, value in block.state_dict().items():
            yield f"blocks.{i}.{inside[name.removesuffix('.weight')]}.weight", value


def original_clip(model: Any) -> Iterator[tuple[str, Tensor]]:
    """The looking half; with the projection and the temperature that DreamZero's checkpoint has beside it."""
    width = model.config.hidden_size
    yield "visual.cls_embedding", model.embeddings.class_embedding.data.reshape(1, 1, width)
    yield "visual.pos_embedding", model.embeddings.position_embedding.weight.data[None]
    yield "visual.patch_embedding.weight", model.embeddings.patch_embedding.weight.data
    yield "visual.head", torch.zeros(width, 8)
    yield "log_scale", torch.zeros(())
    for kind in ("weight", "bias"):
        yield f"visual.pre_norm.{kind}", getattr(model.pre_layrnorm, kind).data
        yield f"visual.post_norm.{kind}", getattr(model.post_layernorm, kind).data
        for i, layer in enumerate(model.encoder.layers):
            at, own = f"visual.transformer.{i}", layer.self_attn
            yield (
                f"{at}.attn.to_qkv.{kind}",
                torch.cat([getattr(x, kind).data for x in (own.q_proj, own.k_proj, own.v_proj)]),
            )
            for name, part in {
                "norm1": layer.layer_norm1,
                "attn.proj": own.out_proj,
                "norm2": layer.layer_norm2,
                "mlp.0": layer.mlp.fc1,
                "mlp.2": layer.mlp.fc2,
            }.items():
                yield f"{at}.{name}.{kind}", getattr(part, kind).data


def same(one: torch.nn.Module, other: torch.nn.Module) -> None:
    a, b = one.state_dict(), other.state_dict()
    assert a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


def test_an_original_codec_is_read(version: str) -> None:
    vae = make_vae(version)
    codec = load_codec(original_vae(vae, version), **STATISTICS)
    same(codec.model, vae)
    canvas = video(5, version)
    assert torch.equal(codec.encode(canvas), WanCodec(vae).encode(canvas))
    assert torch.equal(codec.decode(codec.encode(canvas)), WanCodec(vae).decode(codec.encode(canvas)))


def test_the_statistics_of_released_codecs_are_known() -> None:
    for version, z, mean, std in (("2.1", 16, -0.7571, 2.8184), ("2.2", 48, -0.2289, 0.4765)):
        nothing = {"latents_mean": [0.0] * z, "latents_std": [1.0] * z}
        cfg = load_codec(original_vae(make_vae(version, z_dim=z, **nothing), version)).model.config
        assert len(cfg.latents_mean) == len(cfg.latents_std) == z
        assert (cfg.latents_mean[0], cfg.latents_std[0]) == (mean, std)


def test_an_original_prompt_encoder_is_read(prompts: PromptEncoder) -> None:
    found = load_prompts(original_t5(prompts.model), tokenizer=Tokenizer(), length=12)
    same(found.model, prompts.model)
    assert found.model.encoder.embed_tokens.weight is found.model.shared.weight
    assert torch.equal(found(["a red bowl"]), prompts(["a red bowl"]))
    half = load_prompts(original_t5(prompts.model), tokenizer=Tokenizer(), dtype=torch.bfloat16)
    assert {p.dtype for p in half.parameters()} == {torch.bfloat16} and half(["a"]).shape == (1, 512, 24)


def test_an_original_image_encoder_is_read() -> None:
    clip = make_clip()
    encoder = load_image_encoder(original_clip(clip), heads=4)
    same(encoder.model, clip)
    canvas = video(1)[:, 0]
    assert torch.equal(encoder(canvas), ImageEncoder(clip)(canvas))


def test_at_true_size_the_counts_and_shapes_are_those_of_the_released_checkpoints() -> None:
    from diffusers import AutoencoderKLWan
    from transformers import CLIPVisionConfig, CLIPVisionModel, UMT5Config, UMT5EncoderModel

    xxl = {"vocab_size": 256384, "d_model": 4096, "d_kv": 64, "d_ff": 10240, "num_layers": 24, "num_heads": 64}
    huge = {"hidden_size": 1280, "intermediate_size": 5120, "num_hidden_layers": 32, "num_attention_heads": 16}
    huge |= {"image_size": 224, "patch_size": 14, "hidden_act": "gelu"}
    with torch.device("meta"):
        t5 = dict(original_t5(UMT5EncoderModel(UMT5Config(**xxl, feed_forward_proj="gated-gelu"))))
        clip = dict(original_clip(CLIPVisionModel(CLIPVisionConfig(**huge))))
        vae = dict(original_vae(AutoencoderKLWan(), "2.1"))
    assert len(t5) == 242 and len(clip) + len(vae) == 587  # of DreamZero's 2146; the other 1317 are its transformer
    assert sum(x.numel() for x in t5.values()) == 5_680_910_336
    read = load_prompts(t5.items(), tokenizer=Tokenizer()).model.config
    assert all(getattr(read, name) == value for name, value in xxl.items())
    seen = load_image_encoder(clip.items()).model
    assert all(getattr(seen.config, name) == value for name, value in huge.items())
    assert not seen.embeddings.position_ids.is_meta  # what is in no checkpoint is real
    codec = load_codec(vae.items())
    assert (codec.channels, codec.factor, codec.receptive) == (16, 8, 39)


def damaged(state: dict[str, Tensor], name: str) -> Iterator[tuple[dict[str, Tensor], str]]:
    """The state dict without one tensor, with one too many, and with one of another shape; and what must be named."""
    yield {k: v for k, v in state.items() if k != name}, "is missing"
    yield state | {"stray.weight": torch.zeros(2)}, "stray.weight is unexpected"
    yield state | {name: torch.zeros(5, *state[name].shape[1:])}, r"is \(5"


def test_tensors_that_do_not_fit_are_named() -> None:
    loaders: list[tuple[Any, Iterable[tuple[str, Tensor]], str]] = [
        (lambda x: load_codec(x, **STATISTICS), original_vae(make_vae(), "2.1"), "decoder.upsamples.4.residual.2.bias"),
        (lambda x: load_prompts(x, tokenizer=Tokenizer()), original_t5(make_t5()), "blocks.1.ffn.fc2.weight"),
        (lambda x: load_image_encoder(x, heads=4), original_clip(make_clip()), "visual.transformer.1.attn.proj.weight"),
    ]
    for load, tensors, name in loaders:
        for state, told in damaged(dict(tensors), name):
            with pytest.raises(CheckpointMismatch, match=told):
                load(state.items())
        with pytest.raises(CheckpointMismatch, match="is missing; got nothing"):
            load([])
    with pytest.raises(CheckpointMismatch, match="prefix"):
        load_codec((f"action_head.vae.model.{name}", value) for name, value in original_vae(make_vae(), "2.1"))
    with pytest.raises(CheckpointMismatch, match="expected 5 axes"):
        load_codec((dict(original_vae(make_vae(), "2.1")) | {"conv2.weight": torch.zeros(4, 4)}).items())


# ---------------------------------------------------------------------- pipelines
@pytest.fixture
def pipeline(tmp_path: Path) -> Path:
    from tokenizers import Tokenizer as Words
    from tokenizers.models import WordLevel
    from tokenizers.pre_tokenizers import Whitespace
    from tokenizers.processors import TemplateProcessing
    from transformers import PreTrainedTokenizerFast

    words = Words(WordLevel({"<pad>": 0, "</s>": 1, "<unk>": 2, "bowl": 3, "red": 4}, unk_token="<unk>"))
    words.pre_tokenizer = Whitespace()
    words.post_processor = TemplateProcessing(single="$A </s>", special_tokens=[("</s>", 1)])
    PreTrainedTokenizerFast(
        tokenizer_object=words, pad_token="<pad>", eos_token="</s>", unk_token="<unk>"
    ).save_pretrained(tmp_path / "tokenizer")
    for part, model in {"vae": make_vae(), "text_encoder": make_t5(), "image_encoder": make_clip()}.items():
        model.save_pretrained(tmp_path / part)
    return tmp_path


def test_a_pipeline_is_read(pipeline: Path, prompts: PromptEncoder) -> None:
    same(load_codec(pipeline).model, make_vae())
    assert load_codec(str(pipeline), dtype=torch.bfloat16).encode(video(1)).shape == (1, 1, 4, 2, 2)
    found = load_prompts(pipeline, length=12)
    same(found.model, prompts.model)
    ids = torch.tensor([[4, 3, 1]])
    torch.testing.assert_close(found(["red bowl"])[:, :3], prompts.model(input_ids=ids).last_hidden_state)
    assert load_prompts(pipeline, tokenizer=pipeline / "tokenizer", length=12)(["bowl"]).shape == (1, 12, 24)
    same(load_image_encoder(pipeline).model, make_clip())


def test_an_image_encoder_saved_under_the_older_names_of_transformers_are_read(pipeline: Path) -> None:
    path = pipeline / "image_encoder/model.safetensors"
    old = {f"vision_model.{name.removeprefix('vision_model.')}": value for name, value in load_file(path).items()}
    save_file(old, path, metadata={"format": "pt"})
    same(load_image_encoder(pipeline).model, make_clip())


@pytest.mark.parametrize(
    ("load", "file", "name"),
    [
        (load_codec, "vae/diffusion_pytorch_model.safetensors", "quant_conv.bias"),
        (load_prompts, "text_encoder/model.safetensors", "encoder.final_layer_norm.weight"),
        (load_image_encoder, "image_encoder/model.safetensors", "post_layernorm.bias"),
    ],
)
def test_a_pipeline_that_does_not_fit_is_refused(load: Any, file: str, name: str, pipeline: Path) -> None:
    path = pipeline / file
    good = path.read_bytes()
    for state, told in damaged(load_file(path), name):
        save_file(state, path, metadata={"format": "pt"})
        with pytest.raises(CheckpointMismatch, match=f"{path.parent.name} of .*{told}"):
            load(pipeline)
    path.write_bytes(good[:-100])
    with pytest.raises(CheckpointMismatch, match=path.parent.name):
        load(pipeline)
    path.rename(path.with_suffix(".bin"))  # pickles are not opened
    with pytest.raises(CheckpointMismatch, match="safetensors"):
        load(pipeline)
    with pytest.raises(CheckpointMismatch, match="no folder"):
        load(pipeline / "nowhere")
