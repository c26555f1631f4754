"""judge-tiny before it is trained: a small Qwen3-VL with a word-level tokenizer of its own."""

from __future__ import annotations

import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict

from imagine.rewards.local import LocalVLM
from imagine.rewards.pictures import QwenPictures

_SPECIAL = (
    "<pad>", "<unk>", "<|im_start|>", "<|im_end|>", "<|vision_start|>", "<|vision_end|>", "<|image_pad|>",
    "<|video_pad|>",
)  # fmt: skip
_TEMPLATE = (
    "{% for m in messages %}<|im_start|>{{ m.role }} {% if m.content is string %}{{ m.content }}{% else %}"
    "{% for part in m.content %}{% if part.type == 'text' %}{{ part.text }}{% else %}"
    "<|vision_start|><|image_pad|><|vision_end|>{% endif %}{% endfor %}{% endif %}<|im_end|>{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant {% endif %}"
)


class TinyConfig(BaseModel):
    """Size of a judge-tiny."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    width: int = 128
    heads: int = 4
    image_layers: int = 4
    layers: int = 3
    patch: int = 8
    grid: int = 12  # learned places along a side, stretched over the picture
    deepstack: tuple[int, ...] = ()


def build_tiny(cfg: TinyConfig, sentences: Iterable[str]) -> LocalVLM:
    """A random judge-tiny that knows the words of some sentences, and no others."""
    from transformers import Qwen3VLConfig, Qwen3VLForConditionalGeneration

    tokenizer = word_tokenizer(sentences)
    token = tokenizer.convert_tokens_to_ids
    head = cfg.width // cfg.heads
    turn = head // 2
    text = {
        "vocab_size": len(tokenizer), "hidden_size": cfg.width, "intermediate_size": 3 * cfg.width,
        "num_hidden_layers": cfg.layers, "num_attention_heads": cfg.heads, "num_key_value_heads": cfg.heads,
        "head_dim": head, "max_position_embeddings": 4096, "pad_token_id": token("<pad>"),
        "bos_token_id": None, "eos_token_id": token("<|im_end|>"), "tie_word_embeddings": True,
        "rope_parameters": {
            "rope_type": "default", "rope_theta": 10000.0, "mrope_interleaved": True,
            "mrope_section": [turn - 2 * (turn // 3), turn // 3, turn // 3],
        },
    }  # fmt: skip
    image = {
        "depth": cfg.image_layers, "hidden_size": cfg.width, "intermediate_size": 4 * cfg.width,
        "num_heads": cfg.heads, "patch_size": cfg.patch, "spatial_merge_size": 2, "temporal_patch_size": 2,
        "out_hidden_size": cfg.width, "num_position_embeddings": cfg.grid**2,
        "deepstack_visual_indexes": list(cfg.deepstack),
    }  # fmt: skip
    config = Qwen3VLConfig(
        text_config=text,
        vision_config=image,
        image_token_id=token("<|image_pad|>"),
        video_token_id=token("<|video_pad|>"),
        vision_start_token_id=token("<|vision_start|>"),
        vision_end_token_id=token("<|vision_end|>"),
        tie_word_embeddings=True,
    )
    model = Qwen3VLForConditionalGeneration(config)
    return LocalVLM(model, tokenizer, QwenPictures(model, tokenizer, [0.5] * 3, [0.5] * 3))


def word_tokenizer(sentences: Iterable[str]) -> Any:
    """A word-level tokenizer with Qwen's special tokens; what it never saw becomes ``<unk>``."""
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    words = sorted({w for s in sentences for w in re.findall(r"\w+|[^\w\s]+", s)} | {"user", "assistant"})
    vocabulary = {w: i for i, w in enumerate([*_SPECIAL, *words])}
    core = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    core.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=core, unk_token="<unk>", pad_token="<pad>", eos_token="<|im_end|>", padding_side="left",
        additional_special_tokens=list(_SPECIAL[2:]),
    )  # fmt: skip
    tokenizer.chat_template = _TEMPLATE
    return tokenizer


def teach_words(vlm: LocalVLM, sentences: Iterable[str]) -> LocalVLM:
    """The same judge-tiny with room for words of some sentences that it does not know; what it knows stays."""
    known = vlm.tokenizer.get_vocab()
    tokenizer = word_tokenizer([*sentences, " ".join(set(known) - set(_SPECIAL))])
    words = tokenizer.get_vocab()
    if set(words) <= set(known):
        return vlm
    old = vlm.model.get_input_embeddings().weight.detach().clone()
    vlm.model.resize_token_embeddings(len(tokenizer), mean_resizing=False)
    weight = vlm.model.get_input_embeddings().weight.data
    weight.copy_(old.mean(0).expand_as(weight))
    for word, at in words.items():
        if word in known:
            weight[at] = old[known[word]]
    pictures = vlm.pictures
    assert isinstance(pictures, QwenPictures)
    return LocalVLM(vlm.model, tokenizer, QwenPictures(vlm.model, tokenizer, [0.5] * 3, [0.5] * 3))


def save_tiny(vlm: LocalVLM, folder: str | Path) -> None:
    """Write a judge-tiny as any ``transformers`` checkpoint folder, in half precision."""
    from transformers import Qwen2VLImageProcessorPil

    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    pictures = vlm.pictures
    assert isinstance(pictures, QwenPictures)
    dtype = vlm.model.dtype
    vlm.model.generation_config.do_sample = True  # or a server takes the likeliest word, and all votes are one
    vlm.model.half().save_pretrained(folder)
    vlm.model.to(dtype)
    vlm.tokenizer.save_pretrained(folder)
    side = {"shortest_edge": 16, "longest_edge": 4096 * 4096}
    Qwen2VLImageProcessorPil(
        patch_size=pictures.patch, merge_size=pictures.merge, temporal_patch_size=pictures.merged,
        image_mean=[0.5] * 3, image_std=[0.5] * 3, size=side,
    ).save_pretrained(folder)  # fmt: skip
