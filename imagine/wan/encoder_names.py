"""The names Wan and DreamZero gave the tensors of their frozen helpers, in those of diffusers and transformers.

Each function takes one state dict under its original names, without the prefix of the part, and returns the arguments
that rebuild the module, read from the shapes, and the state dict under the module's own names. It renames and reshapes
and refuses nothing else; :mod:`imagine.wan.encoders` compares the result with the module, name by name.

Source: the released modules of Wan 2.1, Wan 2.2 and DreamZero (arXiv:2503.20314, arXiv:2602.15922).
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from math import isqrt
from typing import Any

from torch import Tensor

from imagine.extras import extra
from imagine.types import CheckpointMismatch

State = dict[str, Tensor]

# per channel of Wan 2.2's latents; those of Wan 2.1 are the defaults of diffusers
_MEAN_48 = (
    -0.2289, -0.0052, -0.1323, -0.2339, -0.2799, 0.0174, 0.1838, 0.1557, -0.1382, 0.0542, 0.2813, 0.0891,
    0.1570, -0.0098, 0.0375, -0.1825, -0.2246, -0.1207, -0.0698, 0.5109, 0.2665, -0.2108, -0.2158, 0.2502,
    -0.2055, -0.0322, 0.1109, 0.1567, -0.0729, 0.0899, -0.2799, -0.1230, -0.0313, -0.1649, 0.0117, 0.0723,
    -0.2839, -0.2083, -0.0520, 0.3748, 0.0152, 0.1957, 0.1433, -0.2944, 0.3573, -0.0548, -0.1681, -0.0667,
)  # fmt: skip
_STD_48 = (
    0.4765, 1.0364, 0.4514, 1.1677, 0.5313, 0.4990, 0.4818, 0.5013, 0.8158, 1.0344, 0.5894, 1.0901,
    0.6885, 0.6165, 0.8454, 0.4978, 0.5759, 0.3523, 0.7135, 0.6804, 0.5833, 1.4146, 0.8986, 0.5659,
    0.7069, 0.5338, 0.4889, 0.4917, 0.4069, 0.4999, 0.6866, 0.4093, 0.5709, 0.6065, 0.6415, 0.4944,
    0.5726, 1.2042, 0.5458, 1.6887, 0.3971, 1.0600, 0.3943, 0.5537, 0.5444, 0.4089, 0.7468, 0.7744,
)  # fmt: skip

_RESIDUAL = {
    "residual.0.": "norm1.",
    "residual.2.": "conv1.",
    "residual.3.": "norm2.",
    "residual.6.": "conv2.",
    "shortcut.": "conv_shortcut.",
}
_T5_BLOCK = {
    "attn.": "layer.0.SelfAttention.",
    "pos_embedding.embedding.": "layer.0.SelfAttention.relative_attention_bias.",
    "norm1.": "layer.0.layer_norm.",
    "norm2.": "layer.1.layer_norm.",
    "ffn.gate.0.": "layer.1.DenseReluDense.wi_0.",
    "ffn.fc1.": "layer.1.DenseReluDense.wi_1.",
    "ffn.fc2.": "layer.1.DenseReluDense.wo.",
}
_T5 = {"token_embedding.": "shared.", "norm.": "encoder.final_layer_norm."}
_CLIP_BLOCK = {
    "norm1.": "layer_norm1.",
    "norm2.": "layer_norm2.",
    "attn.proj.": "self_attn.out_proj.",
    "mlp.0.": "mlp.fc1.",
    "mlp.2.": "mlp.fc2.",
}
_CLIP = {
    "visual.patch_embedding.": "embeddings.patch_embedding.",
    "visual.cls_embedding": "embeddings.class_embedding",
    "visual.pos_embedding": "embeddings.position_embedding.weight",
    "visual.pre_norm.": "pre_layrnorm.",  # sic
    "visual.post_norm.": "post_layernorm.",
}
_CLIP_UNUSED = ("visual.head", "log_scale", "textual.")  # the half of CLIP that compares with text


def vae(state: Mapping[str, Tensor]) -> tuple[dict[str, Any], State]:
    """Wan's video autoencoder, 2.1 (194 tensors) or 2.2, as ``AutoencoderKLWan``."""
    with extra("wan"):
        from diffusers.loaders.single_file_utils import convert_wan_vae_to_diffusers

    first, last = _shape(state, "encoder.conv1.weight", 5), _shape(state, "decoder.head.2.weight", 5)
    z = _shape(state, "conv2.weight", 5)[0]
    shape: dict[str, Any] = {"base_dim": first[0], "decoder_base_dim": last[1], "z_dim": z}
    if first[1] != 3:  # pixels come in patches, and every level has a shortcut around it
        patch = isqrt(first[1] // 3)
        shape |= {"in_channels": first[1], "out_channels": last[0], "patch_size": patch, "is_residual": True}
        shape |= {"scale_factor_spatial": 8 * patch}
    if z == len(_MEAN_48):
        shape |= {"latents_mean": list(_MEAN_48), "latents_std": list(_STD_48)}
    # diffusers has the flat names of 2.1 and leaves those it does not know, so the levels of 2.2 are named before
    return shape, convert_wan_vae_to_diffusers({_vae_level(name): value for name, value in state.items()})


def _vae_level(name: str) -> str:
    """``encoder.downsamples.1.downsamples.2.…`` is resnet 2 of level 1, or its resampling; as 2.1 has no such names."""
    if not (at := re.match(r"(encoder|decoder)\.(down|up)samples\.(\d+)\.(?:down|up)samples\.(\d+)\.(.+)", name)):
        return name
    part, way, level, i, rest = at.groups()
    inner = _renamed(rest, _RESIDUAL)
    return f"{part}.{way}_blocks.{level}." + (f"{way}sampler.{rest}" if inner == rest else f"resnets.{i}.{inner}")


def t5(state: Mapping[str, Tensor]) -> tuple[dict[str, Any], State]:
    """Wan's text encoder, UMT5-XXL (242 tensors), as ``UMT5EncoderModel``; every layer has its own position bias."""
    vocabulary, dim = _shape(state, "token_embedding.weight", 2)
    buckets, heads = _shape(state, "blocks.0.pos_embedding.embedding.weight", 2)
    shape = {
        "vocab_size": vocabulary,
        "d_model": dim,
        "d_kv": _shape(state, "blocks.0.attn.q.weight", 2)[0] // heads,
        "d_ff": _shape(state, "blocks.0.ffn.gate.0.weight", 2)[0],
        "num_layers": _layers(state, r"blocks\.(\d+)\."),
        "num_heads": heads,
        "relative_attention_num_buckets": buckets,
        "feed_forward_proj": "gated-gelu",
    }
    new: State = {}
    for name, value in state.items():
        block = re.match(r"blocks\.(\d+)\.(.+)", name)
        new[f"encoder.block.{block[1]}.{_renamed(block[2], _T5_BLOCK)}" if block else _renamed(name, _T5)] = value
    new["encoder.embed_tokens.weight"] = new["shared.weight"]  # one tensor under two names
    return shape, new


def clip(state: Mapping[str, Tensor], heads: int) -> tuple[dict[str, Any], State]:
    """The looking half of Wan's CLIP ViT-H/14 (391 tensors) as ``CLIPVisionModel``; its head count is in no shape."""
    width, _, patch, _ = _shape(state, "visual.patch_embedding.weight", 4)
    shape = {
        "hidden_size": width,
        "intermediate_size": _shape(state, "visual.transformer.0.mlp.0.weight", 2)[0],
        "num_hidden_layers": _layers(state, r"visual\.transformer\.(\d+)\."),
        "num_attention_heads": heads,
        "image_size": patch * isqrt(_shape(state, "visual.pos_embedding", 3)[1] - 1),
        "patch_size": patch,
        "hidden_act": "gelu",
    }
    new: State = {}
    for name, value in state.items():
        if name.startswith(_CLIP_UNUSED):
            continue
        block = re.match(r"visual\.transformer\.(\d+)\.(.+)", name)
        if block is None:
            flat = {"visual.cls_embedding": (-1,), "visual.pos_embedding": value.shape[1:]}.get(name)
            new[_renamed(name, _CLIP)] = value if flat is None else value.reshape(flat)
        elif block[2].startswith("attn.to_qkv."):
            at, kind = f"encoder.layers.{block[1]}.self_attn.", block[2].removeprefix("attn.to_qkv.")
            new |= {f"{at}{x}_proj.{kind}": part for x, part in zip("qkv", value.tensor_split(3), strict=True)}
        else:
            new[f"encoder.layers.{block[1]}.{_renamed(block[2], _CLIP_BLOCK)}"] = value
    return shape, new


def _renamed(name: str, table: Mapping[str, str]) -> str:
    """The name with the beginning that the table knows exchanged; unknown ones stay, to be refused by name later."""
    return next((new + name.removeprefix(old) for old, new in table.items() if name.startswith(old)), name)


def _layers(state: Mapping[str, Tensor], pattern: str) -> int:
    return 1 + max(int(at[1]) for name in state if (at := re.match(pattern, name)))


def _shape(state: Mapping[str, Tensor], name: str, axes: int) -> tuple[int, ...]:
    """Shape of a tensor without which nothing can be built.

    Raises:
        CheckpointMismatch: it is missing or has another number of axes.
    """
    if name not in state:
        some = ", ".join(list(state)[:3]) or "nothing"
        raise CheckpointMismatch(f"{name} is missing; got {some}. Give the part's own names, without its prefix.")
    if state[name].ndim != axes:
        raise CheckpointMismatch(f"{name} is {tuple(state[name].shape)}, expected {axes} axes.")
    return tuple(state[name].shape)
