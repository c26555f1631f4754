"""Small random vision-language checkpoints of several families, saved as anybody's would be."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from imagine.rewards.prompts import PRESETS
from imagine.rewards.tiny import TinyConfig, build_tiny, save_tiny, word_tokenizer

INSTRUCTIONS = ("pick up the red block", "push the blue block to the left")
SENTENCES = [p.fill(i) for preset in PRESETS.values() for p in preset.questions for i in INSTRUCTIONS] + [
    "yes no true false Answer: Yes No FINAL SCORE: 0 1"
]


def qwen3_vl(folder: Path) -> Path:
    torch.manual_seed(0)
    cfg = TinyConfig(width=32, heads=2, image_layers=2, layers=2, deepstack=(0,))
    save_tiny(build_tiny(cfg, SENTENCES), folder)
    return folder


def qwen2_5_vl(folder: Path) -> Path:
    from transformers import Qwen2_5_VLConfig, Qwen2_5_VLForConditionalGeneration, Qwen2VLImageProcessorPil

    torch.manual_seed(0)
    tokenizer = word_tokenizer(SENTENCES)
    token = tokenizer.convert_tokens_to_ids
    text = {
        "vocab_size": len(tokenizer), "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2,
        "num_attention_heads": 2, "num_key_value_heads": 2, "tie_word_embeddings": True,
        "pad_token_id": 0, "bos_token_id": None, "eos_token_id": token("<|im_end|>"),
        "rope_parameters": {"rope_type": "default", "rope_theta": 10000.0, "mrope_section": [2, 3, 3]},
    }  # fmt: skip
    eye = {
        "depth": 2, "hidden_size": 32, "intermediate_size": 64, "num_heads": 2, "patch_size": 8, "window_size": 32,
        "spatial_merge_size": 2, "temporal_patch_size": 2, "out_hidden_size": 32, "fullatt_block_indexes": [1],
    }  # fmt: skip
    config = Qwen2_5_VLConfig(
        text_config=text, vision_config=eye, image_token_id=token("<|image_pad|>"),
        video_token_id=token("<|video_pad|>"), vision_start_token_id=token("<|vision_start|>"),
        vision_end_token_id=token("<|vision_end|>"), tie_word_embeddings=True,
    )  # fmt: skip
    Qwen2_5_VLForConditionalGeneration(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    Qwen2VLImageProcessorPil(patch_size=8, merge_size=2, temporal_patch_size=2).save_pretrained(folder)
    return folder


def idefics3(folder: Path) -> Path:
    from transformers import Idefics3Config, Idefics3ForConditionalGeneration

    return _idefics(folder, Idefics3Config, Idefics3ForConditionalGeneration)


def smolvlm(folder: Path) -> Path:
    from transformers import SmolVLMConfig, SmolVLMForConditionalGeneration

    return _idefics(folder, SmolVLMConfig, SmolVLMForConditionalGeneration)


def _idefics(folder: Path, config_class: Any, model_class: Any) -> Path:
    from tokenizers import AddedToken
    from transformers import Idefics3ImageProcessorPil
    from transformers import Idefics3Processor as Processor

    torch.manual_seed(0)
    tokenizer = word_tokenizer(SENTENCES)
    own = ["<fake_token_around_image>", "<image>", "<global-img>", "<end_of_utterance>"]
    tokenizer.add_special_tokens({"additional_special_tokens": [AddedToken(t, special=True) for t in own]})
    tokenizer.chat_template = (
        "{% for m in messages %}{{ m.role }} {% for p in m.content %}{% if p.type == 'text' %}{{ p.text }}"
        "{% else %}<image>{% endif %}{% endfor %}<end_of_utterance>{% endfor %}"
        "{% if add_generation_prompt %}assistant {% endif %}"
    )
    text = {
        "model_type": "llama", "vocab_size": len(tokenizer), "hidden_size": 32, "intermediate_size": 64,
        "num_hidden_layers": 2, "num_attention_heads": 2, "num_key_value_heads": 2, "pad_token_id": 0,
        "bos_token_id": None, "eos_token_id": None,
    }  # fmt: skip
    eye = {
        "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2,
        "image_size": 32, "patch_size": 8,
    }  # fmt: skip
    image = tokenizer.convert_tokens_to_ids("<image>")
    config = config_class(
        text_config=text, vision_config=eye, scale_factor=2, image_token_id=image, pad_token_id=0
    )  # fmt: skip
    model_class(config).save_pretrained(folder)
    size = {"longest_edge": 32}
    processor = Processor(
        Idefics3ImageProcessorPil(size=size, max_image_size=size, do_image_splitting=False), tokenizer, image_seq_len=4
    )
    processor.save_pretrained(folder)
    return folder


def llava(folder: Path) -> Path:
    """A family whose questions are not packed: each is a prompt of its own."""
    from tokenizers import AddedToken
    from transformers import (
        CLIPImageProcessorPil,
        CLIPVisionConfig,
        LlamaConfig,
        LlavaConfig,
        LlavaForConditionalGeneration,
        LlavaProcessor,
    )

    torch.manual_seed(0)
    tokenizer = word_tokenizer(SENTENCES)
    tokenizer.add_special_tokens({"additional_special_tokens": [AddedToken("<image>", special=True)]})
    tokenizer.chat_template = (
        "{% for m in messages %}{{ m.role }} {% for p in m.content %}{% if p.type == 'text' %}{{ p.text }}"
        "{% else %}<image>{% endif %}{% endfor %}{% endfor %}{% if add_generation_prompt %} assistant {% endif %}"
    )
    small = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2}
    eye = CLIPVisionConfig(**small, image_size=32, patch_size=8)
    text = LlamaConfig(
        **small, vocab_size=len(tokenizer), pad_token_id=0, bos_token_id=None, eos_token_id=None
    )  # fmt: skip
    image = tokenizer.convert_tokens_to_ids("<image>")
    LlavaForConditionalGeneration(
        LlavaConfig(vision_config=eye, text_config=text, image_token_index=image)
    ).save_pretrained(folder)
    square = {"height": 32, "width": 32}
    images = CLIPImageProcessorPil(size=square, crop_size=square)
    LlavaProcessor(
        images, tokenizer, patch_size=8, vision_feature_select_strategy="default", num_additional_image_tokens=1
    ).save_pretrained(folder)
    return folder


FAMILIES = {"qwen3_vl": qwen3_vl, "qwen2_5_vl": qwen2_5_vl, "idefics3": idefics3, "smolvlm": smolvlm, "llava": llava}
