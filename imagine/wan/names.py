"""What Wan and DreamZero call things: tensors, fields of a config, prompts, and where each camera is on the canvas.

Original names are those of Wan's own repository, which DreamZero keeps; diffusers' are ours already. The two disagree
about more than words: the affine norm before the cross-attention is ``norm3`` there and ``norm2`` here, and a register
is a matrix ``W`` (1, in, out) there and a linear layer's ``weight`` (out, in) here.

Source: the checkpoints and configs of Wan 2.1 and 2.2, of diffusers 0.42 and of DreamZero (arXiv:2602.15922).
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any, Literal, TypeVar

import numpy as np
from torch import Tensor

from imagine.types import ShapeError

Dialect = Literal["original", "diffusers"]

# ---------------------------------------------------------------------------------------------------------- tensors
_EMBEDDER = "condition_embedder"
_OUTER = {
    "patch_embedding": "patch_embedding",
    "time_embedding.0": f"{_EMBEDDER}.time_embedder.linear_1",
    "time_embedding.2": f"{_EMBEDDER}.time_embedder.linear_2",
    "time_projection.1": f"{_EMBEDDER}.time_proj",
    "text_embedding.0": f"{_EMBEDDER}.text_embedder.linear_1",
    "text_embedding.2": f"{_EMBEDDER}.text_embedder.linear_2",
    "img_emb.proj.0": f"{_EMBEDDER}.image_embedder.norm1",
    "img_emb.proj.1": f"{_EMBEDDER}.image_embedder.ff.net.0.proj",
    "img_emb.proj.3": f"{_EMBEDDER}.image_embedder.ff.net.2",
    "img_emb.proj.4": f"{_EMBEDDER}.image_embedder.norm2",
    "head.head": "proj_out",
}
_ATTENTION = {"q": "to_q", "k": "to_k", "v": "to_v", "o": "to_out.0", "norm_q": "norm_q", "norm_k": "norm_k"}
_IMAGE = {"k_img": "add_k_proj", "v_img": "add_v_proj", "norm_k_img": "norm_added_k"}
_INNER = (
    {f"self_attn.{theirs}": f"attn1.{ours}" for theirs, ours in _ATTENTION.items()}
    | {f"cross_attn.{theirs}": f"attn2.{ours}" for theirs, ours in (_ATTENTION | _IMAGE).items()}
    | {"norm3": "norm2", "ffn.0": "ffn.net.0.proj", "ffn.2": "ffn.net.2"}
)
REGISTERS = (
    {f"action_encoder.W{i}": f"registers.action_encoder.w{i}" for i in (1, 2, 3)}
    | {f"state_encoder.layer{i}": f"registers.state_encoder.linear_{i}" for i in (1, 2)}
    | {f"action_decoder.layer{i}": f"registers.action_decoder.linear_{i}" for i in (1, 2)}
)
"""DreamZero's action and state modules, and ours; each has ``W`` and ``b`` there, ``weight`` and ``bias`` here."""

_BACK = {ours: theirs for theirs, ours in REGISTERS.items()}

_BLOCK = re.compile(r"blocks\.(\d+)\.(.+)")
_HOME = re.compile(r"(.*?)blocks\.\d+\.(self_attn|attn1)\.")
_REGISTER = re.compile(rf"(?:.*\.)?({'|'.join(map(re.escape, REGISTERS))})\.([Wb])")
_LORA = re.compile(r"(.+)\.lora_([AB])(?:\.default)?\.weight")
KEPT_FLOAT32 = re.compile(r"(^|\.)(scale_shift_table|time_embedder|norm\w*)(\.|$)")
"""Our parameters that stay float32 in a half-precision model, as in Wan's own code."""
PARTS = {
    "text_encoder": "action_head.text_encoder.",
    "image_encoder": "action_head.image_encoder.model.",
    "vae": "action_head.vae.model.",
}
"""What else a DreamZero checkpoint holds, by the beginning of the names."""


def home(name: str) -> tuple[str, Dialect] | None:
    """What comes before the network's own names in a tensor of a block's self-attention, and whose names those are."""
    found = _HOME.match(name)
    return None if found is None else (found[1], "original" if found[2] == "self_attn" else "diffusers")


def ours(name: str, dialect: Dialect) -> str | None:
    """Our name of a network's tensor, its prefix taken off; None where the dialect has no such name."""
    if register := _REGISTER.fullmatch(name):
        return f"{REGISTERS[register[1]]}.{'weight' if register[2] == 'W' else 'bias'}"
    if dialect == "diffusers":
        return name
    if name == "head.modulation":
        return "scale_shift_table"
    block = _BLOCK.fullmatch(name)
    inner = name if block is None else block[2]
    if block is not None and inner == "modulation":
        return f"blocks.{block[1]}.scale_shift_table"
    stem, _, leaf = inner.rpartition(".")
    known = (_OUTER if block is None else _INNER).get(stem)
    return None if known is None else ("" if block is None else f"blocks.{block[1]}.") + f"{known}.{leaf}"


def lora(name: str) -> tuple[str, str] | None:
    """Layer and factor ("A" or "B") of a LoRA tensor, else None."""
    found = _LORA.fullmatch(name)
    return None if found is None else (found[1], found[2])


def register(name: str) -> bool:
    """Whether a foreign name is a register's, under whatever prefix."""
    return _REGISTER.fullmatch(name) is not None


def theirs(name: str) -> str:
    """DreamZero's name of one of our registers."""
    layer, _, leaf = name.rpartition(".")
    return f"{_BACK[layer]}.{'W' if leaf == 'weight' else 'b'}"


def is_register(name: str) -> bool:
    """Whether one of our names is a register's, and so is stored transposed and with a leading axis of 1."""
    return name.startswith("registers.")


def turned(shape: tuple[int, ...]) -> tuple[int, ...]:
    """Shape of a register's tensor as a linear layer holds it; unchanged where there is not exactly one embodiment."""
    return shape[:0:-1] if len(shape) > 1 and shape[0] == 1 else shape


# ---------------------------------------------------------------------------------------------------------- configs
NETWORKS = ("WanTransformer3DModel", "WanModel", "CausalWanModel", "DreamZeroCausalWanModel")
"""Classes whose weights fit; others of the family (VACE, Animate) have more."""
SECTION = "diffusion_model_cfg"
"""Where a DreamZero config keeps what describes the network, at whatever depth; fields not there may be further out."""
FIELDS = {
    "layers": ("num_layers",),
    "heads": ("num_attention_heads", "num_heads"),
    "head_dim": ("attention_head_dim",),
    "dim": ("dim",),
    "ffn_dim": ("ffn_dim",),
    "patch": ("patch_size",),
    "inputs": ("in_channels", "in_dim"),
    "channels": ("out_channels", "out_dim"),
    "text_dim": ("text_dim",),
    "freq_dim": ("freq_dim",),
    "image_dim": ("image_dim",),
    "eps": ("eps",),
    "action_horizon": ("num_action_per_block",),
    "block_frames": ("num_frame_per_block",),
    "block_states": ("num_state_per_block",),
    "max_chunks": ("max_chunk_size",),
    "first_frame": ("concat_first_frame_latent",),
    "frame_tokens": ("frame_seqlen",),
    "text_length": ("text_len",),
    "height": ("target_video_height",),
    "width": ("target_video_width",),
    "lora_alpha": ("lora_alpha",),
    "base": ("pretrained_model_path", "base_model_name_or_path"),
}
"""Our word for a field, and what the two dialects call it."""

# ------------------------------------------------------------------------------------------------ prompts and views
_FOUR = (
    "The video is split into four views: The top-left view shows the camera view from the robot's head, the top-right "
    "view shows the camera view from the right hand, the bottom-left view shows the camera view from the left hand, "
    "and the bottom-right view is a black screen (inactive view)."
)
_THREE = (
    "The video is split into three views: The top view shows the camera view from the robot's wrist, the bottom-left "
    "view shows the camera view from the left exterior camera, and the bottom-right view shows the camera view from "
    "the right exterior camera. During training, one of the two bottom exterior views may be a black screen (dropped "
    "view)."
)
_TWO = (
    "The video is split into two horizontal views: the left view shows the exterior camera and the right view shows "
    "the wrist camera."
)
PROMPTS = {
    name: f"A multi-view video shows that a robot {{task}} {views} The robot {{task}}"
    for name, views in (("agibot", _FOUR), ("droid", _THREE), ("libero", _TWO))
}
"""DreamZero's prompts, per embodiment; its words are part of what the model was trained on."""
NEGATIVE = (
    "Vibrant colors, overexposed, static, blurry details, text, subtitles, style, artwork, painting, image, still, "
    "grayscale, dull, worst quality, low quality, JPEG artifacts, ugly, mutilated, extra fingers, bad hands, bad face, "
    "deformed, disfigured, mutated limbs, fused fingers, stagnant image, cluttered background, three legs, many people "
    "in the background, walking backwards."
)
"""What guidance leads away from: DreamZero's English rendering of Wan's negative prompt."""
LAYOUTS: dict[str, tuple[tuple[str | None, ...], ...]] = {
    "agibot": (("head", "right_hand"), ("left_hand", None)),
    "droid": (("wrist",), ("left", "right")),
    "libero": (("exterior", "wrist"),),
}
"""Rows of views, from the top; None is black, and a row with fewer views stretches them to the full width."""

Frames = TypeVar("Frames", np.ndarray, Tensor)


def prompt(task: str, embodiment: str) -> str:
    """The instruction as DreamZero hears it, in lower case and in its template.

    Raises:
        ShapeError: no such embodiment.
    """
    return _of(PROMPTS, embodiment, "prompt").replace("{task}", task.lower())


def tile(views: Mapping[str, Frames], layout: str, *, height: int = 176, width: int = 320) -> Frames:
    """Lay views on DreamZero's canvas.

    Args:
        views: by name as in :data:`LAYOUTS`, each (..., height, width, 3) uint8 in [0, 255].
        layout: one of :data:`LAYOUTS`.
        height: of one view, in pixels.
        width: of one view, in pixels.

    Returns:
        (..., rows * height, columns * width, 3) uint8, of the kind that was given (numpy or torch).

    Raises:
        ShapeError: views of other names, sizes or dtypes, or no such layout.

    Source: DreamZero's published data transform.
    """
    rows = _of(LAYOUTS, layout, "layout")
    wanted = [name for row in rows for name in row if name]
    if sorted(views) != sorted(wanted):
        raise ShapeError(f"layout {layout!r} got views {sorted(views)}, expected {sorted(wanted)}.")
    first = views[wanted[0]]
    lead: tuple[int, ...] = tuple(first.shape[:-3])
    for name, view in views.items():
        fits = tuple(view.shape) == (*lead, height, width, 3) and str(view.dtype).endswith("uint8")
        if not fits or type(view) is not type(first):
            raise ShapeError(
                f"view {name!r}: got {type(view).__name__} {view.dtype} {tuple(view.shape)}, expected "
                f"{type(first).__name__} uint8 {(*lead, height, width, 3)}; resize the camera first."
            )
    columns = max(len(row) for row in rows)
    shape = (*lead, len(rows) * height, columns * width, 3)
    canvas: Any = first.new_zeros(shape) if isinstance(first, Tensor) else np.zeros(shape, np.uint8)
    for r, row in enumerate(rows):
        span = columns // len(row)
        for c, place in enumerate(row):
            if place is None:
                continue
            view = views[place]
            wide = view.repeat_interleave(span, -2) if isinstance(view, Tensor) else np.repeat(view, span, -2)
            canvas[..., r * height : (r + 1) * height, c * span * width : (c + 1) * span * width, :] = wide
    return canvas


T = TypeVar("T")


def _of(table: Mapping[str, T], name: str, what: str) -> T:
    if name not in table:
        raise ShapeError(f"no {what} of {name!r}, expected one of {', '.join(table)}.")
    return table[name]
