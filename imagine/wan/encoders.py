"""The frozen helpers of a Wan or DreamZero checkpoint: its video codec, text encoder and image encoder.

Each puts a small interface before a model of diffusers or transformers, computes in the precision that model is in and
hands out float32. They never train: their weights take no gradient and they stay in evaluation mode whatever the
network around them does. Each loads from a diffusers pipeline (a folder or hub id) or from the tensors of an original
checkpoint under the names Wan and DreamZero gave them (:mod:`imagine.wan.encoder_names`).
"""

from __future__ import annotations

import html
from collections import OrderedDict
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from safetensors import SafetensorError
from torch import Tensor, nn

from imagine.extras import TRANSFORMERS_LOADING, extra
from imagine.types import CheckpointMismatch, ShapeError, UnknownWord
from imagine.wan import encoder_names
from imagine.wan.vae import Frozen, WanCodec

__all__ = [
    "ImageEncoder",
    "PromptEncoder",
    "WanCodec",
    "load_codec",
    "load_image_encoder",
    "load_prompts",
]

Source = str | Path | Iterable[tuple[str, Tensor]]

CLIP_MEAN = (0.48145466, 0.4578275, 0.40821073)
CLIP_STD = (0.26862954, 0.26130258, 0.27577711)


class PromptEncoder(Frozen):
    """Prompts into (B, L, D) float32, zero after the last token; each prompt is read once and remembered.

    A prompt is read alone and without padding, so its embedding does not depend on what it is batched with. That is
    Wan's, which pads to L and masks, up to rounding, and costs a prompt of 20 tokens 25 times less.
    """

    def __init__(self, model: nn.Module, tokenizer: Callable[..., Any], *, length: int = 512, remember: int = 1024):
        """Wrap a transformers ``UMT5EncoderModel``.

        Args:
            model: gives ``last_hidden_state``.
            tokenizer: of transformers, or any callable that is used like one.
            length: L, tokens per prompt at most.
            remember: prompts whose embeddings are kept, on the model's device; the least recently used goes first.
        """
        super().__init__(model)
        self.tokenizer = tokenizer
        self.length = length
        self.remember = remember
        self.dim: int = self.model.config.d_model
        self._known: OrderedDict[str, Tensor] = OrderedDict()

    def forward(self, prompts: Sequence[str]) -> Tensor:
        """Embed prompts.

        Raises:
            UnknownWord: a prompt has more than ``length`` tokens.
        """
        out = torch.zeros(len(prompts), self.length, self.dim, device=self._weight.device)
        for row, prompt in zip(out, prompts, strict=True):
            known = self._embed(prompt)
            row[: len(known)] = known
        return out

    def _embed(self, prompt: str) -> Tensor:
        # as Wan cleans its captions, but for the repair of wrongly decoded text
        text = " ".join(html.unescape(html.unescape(prompt)).split())
        if text not in self._known:
            with torch.inference_mode(False), torch.no_grad():  # what is remembered may later be trained upon
                self._known[text] = self._read(text)
        self._known.move_to_end(text)
        if len(self._known) > self.remember:
            self._known.popitem(last=False)
        return self._known[text]

    def _read(self, text: str) -> Tensor:
        tokens = self.tokenizer([text], add_special_tokens=True, return_tensors="pt")
        real = tokens["attention_mask"] > 0
        ids = tokens["input_ids"][real][None].to(self._weight.device)
        if ids.shape[1] > self.length:
            raise UnknownWord(f"prompt {text[:40]!r} has {ids.shape[1]} tokens, expected at most {self.length}.")
        return self.model(input_ids=ids, attention_mask=torch.ones_like(ids)).last_hidden_state[0]

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> PromptEncoder:
        self._known = OrderedDict((text, fn(value)) for text, value in self._known.items())
        return super()._apply(fn, recurse)


class ImageEncoder(Frozen):
    """Canvases into the image tokens that Wan I2V attends to: CLIP's last hidden states but one."""

    def __init__(self, model: nn.Module):
        """Wrap a transformers ``CLIPVisionModel``."""
        super().__init__(model)
        self.size: int = self.model.config.image_size

    @torch.no_grad()
    def forward(self, canvas: Tensor) -> Tensor:
        """(N, H, W, 3) uint8 to (N, 1 + patches, D) float32, (N, 257, 1280) for ViT-H/14.

        The whole canvas is squeezed into CLIP's square; nothing is cut off, unlike in diffusers' pipeline.

        Raises:
            ShapeError: not such a canvas.
        """
        if canvas.dtype != torch.uint8 or canvas.ndim != 4 or canvas.shape[-1] != 3:
            raise ShapeError(f"image encoder got {canvas.dtype} {tuple(canvas.shape)}, expected uint8 (N, H, W, 3).")
        x = canvas.to(self._weight.device).permute(0, 3, 1, 2).float() / 255
        x = F.interpolate(x, (self.size, self.size), mode="bicubic")
        mean, std = torch.tensor([CLIP_MEAN, CLIP_STD], device=x.device)[:, :, None, None]
        seen = self.model(pixel_values=((x - mean) / std).to(self._weight.dtype), output_hidden_states=True)
        return seen.hidden_states[-2].float()


# ---------------------------------------------------------------------- loading
def load_codec(source: Source, *, dtype: torch.dtype = torch.float32, **shape: Any) -> WanCodec:
    """The video codec of a pipeline (``vae``) or of original tensors.

    Args:
        source: folder, hub id, or (name, tensor) pairs without their prefix (DreamZero: ``action_head.vae.model.``).
        dtype: of the weights.
        shape: arguments of ``AutoencoderKLWan`` that original tensors do not tell; Wan 2.1 and 2.2 need none.

    Raises:
        CheckpointMismatch: nothing there, or names and shapes disagree; it names them.
    """
    with extra("wan"):
        from diffusers import AutoencoderKLWan

    if isinstance(source, str | Path):
        return WanCodec(_from_pipeline(AutoencoderKLWan, source, "vae", dtype))
    read, state = encoder_names.vae(dict(source))
    return WanCodec(_from_tensors(lambda: AutoencoderKLWan(**read | shape), state, dtype))


def load_prompts(
    source: Source,
    *,
    tokenizer: str | Path | Callable[..., Any] | None = None,
    dtype: torch.dtype = torch.float32,
    length: int = 512,
) -> PromptEncoder:
    """The text encoder of a pipeline (``text_encoder``, ``tokenizer``) or of original tensors.

    Args:
        source: folder, hub id, or (name, tensor) pairs without their prefix (DreamZero: ``action_head.text_encoder.``).
        tokenizer: a folder, hub id or callable; None is the pipeline's own, ``google/umt5-xxl`` for original tensors.
        dtype: of the weights.
        length: tokens per prompt at most.

    Raises:
        CheckpointMismatch: nothing there, or names and shapes disagree; it names them.
    """
    from transformers import AutoTokenizer, UMT5Config, UMT5EncoderModel

    inside = {}
    if tokenizer is None and isinstance(source, str | Path):
        tokenizer, inside = source, {"subfolder": "tokenizer"}
    if tokenizer is None or isinstance(tokenizer, str | Path):
        where = _place(tokenizer or "google/umt5-xxl")
        try:
            tokenizer = AutoTokenizer.from_pretrained(where, **inside)
        except (OSError, ValueError) as error:
            raise CheckpointMismatch(f"no tokenizer at {where!r}: {error}") from None
    if isinstance(source, str | Path):
        return PromptEncoder(_from_pipeline(UMT5EncoderModel, source, "text_encoder", dtype), tokenizer, length=length)
    shape, state = encoder_names.t5(dict(source))
    model = _from_tensors(lambda: UMT5EncoderModel(UMT5Config(**shape)), state, dtype)
    model.tie_weights()
    return PromptEncoder(model, tokenizer, length=length)


def load_image_encoder(source: Source, *, dtype: torch.dtype = torch.float32, heads: int = 16) -> ImageEncoder:
    """The image encoder of a pipeline (``image_encoder``) or of original tensors.

    Args:
        source: folder, hub id, or (name, tensor) pairs, ``visual.…`` (DreamZero: ``action_head.image_encoder.model.``).
        dtype: of the weights.
        heads: attention heads, which original tensors do not tell.

    Raises:
        CheckpointMismatch: nothing there, or names and shapes disagree; it names them.
    """
    from transformers import CLIPVisionConfig, CLIPVisionModel

    if isinstance(source, str | Path):
        return ImageEncoder(_from_pipeline(CLIPVisionModel, source, "image_encoder", dtype))
    shape, state = encoder_names.clip(dict(source), heads)
    return ImageEncoder(_from_tensors(lambda: CLIPVisionModel(CLIPVisionConfig(**shape)), state, dtype))


def _place(source: str | Path) -> str:
    """A folder or hub id as the libraries take it; a mistyped path is not asked of the hub."""
    where = str(source)
    if not Path(where).is_dir() and (where.count("/") != 1 or where.startswith((".", "/"))):
        raise CheckpointMismatch(f"there is no folder {where!r}; give a folder or a hub id.")
    return where


def _from_pipeline(kind: Any, source: str | Path, part: str, dtype: torch.dtype) -> Any:
    """``kind`` from the folder of one part of a pipeline; safetensors only, and nothing left at random."""
    where = _place(source)
    try:
        with TRANSFORMERS_LOADING:
            model, report = kind.from_pretrained(
                where,
                subfolder=part,
                use_safetensors=True,
                output_loading_info=True,
                ignore_mismatched_sizes=True,  # so that they are named rather than raised without their names
            )
    except (OSError, ValueError, RuntimeError, SafetensorError) as error:
        raise CheckpointMismatch(f"{part} of {where!r} cannot be loaded: {error}") from None
    wrong = [f"{name} is missing" for name in sorted(report["missing_keys"])]
    wrong += [f"{name} is unexpected" for name in sorted(report["unexpected_keys"])]
    wrong += [f"{name} is {tuple(a)}, expected {tuple(b)}" for name, a, b in sorted(report["mismatched_keys"])]
    _refuse(wrong, f"{part} of {where!r}")
    return model.to(dtype)


def _from_tensors(build: Callable[[], Any], state: Mapping[str, Tensor], dtype: torch.dtype) -> Any:
    """A module around given tensors, without ever holding a second, random copy of them."""
    with extra("wan"):
        from accelerate import init_empty_weights

    with init_empty_weights():
        module = build()
    own = module.state_dict()
    wrong = [f"{name} is missing" for name in own if name not in state]
    wrong += [f"{name} is unexpected" for name in state if name not in own]
    wrong += [
        f"{name} is {tuple(state[name].shape)}, expected {tuple(value.shape)}"
        for name, value in own.items()
        if name in state and state[name].shape != value.shape
    ]
    _refuse(wrong, f"tensors for {type(module).__name__}")
    module.load_state_dict({name: value.to(dtype) for name, value in state.items()}, assign=True)
    return module


def _refuse(wrong: Sequence[str], what: str) -> None:
    if wrong:
        raise CheckpointMismatch(f"{what} do not fit: {'; '.join(wrong[:8])} ({len(wrong)} in all).")
