"""Serve a judge-tiny with ``transformers serve``: python serve_judge.py FOLDER PORT. Started by test_endpoint.py."""

from __future__ import annotations

import sys
from typing import Any

from transformers import AutoProcessor, Qwen3VLConfig, Qwen3VLProcessor
from transformers.cli.serve import Serve


class PicturesOnly(Qwen3VLProcessor):
    """Qwen3-VL's own processor less its films, for which alone it insists on torchvision."""

    def __init__(self, image_processor: Any = None, tokenizer: Any = None, chat_template: Any = None) -> None:
        super().__init__(image_processor, tokenizer, None, chat_template)
        # Where the answer begins, as a word-level tokenizer spells it: the server looks for Qwen's "assistant\n", and
        # where it does not find that, it answers with the end of the prompt glued to the first word.
        tokenizer.response_template = {
            "defaults": {"role": "assistant"},
            "start_anchor": "<|im_start|> assistant",
            "fields": {"content": {"close": "<|im_end|>", "content": "text"}},
        }


if __name__ == "__main__":
    AutoProcessor.register(Qwen3VLConfig, PicturesOnly, exist_ok=True)
    Serve(force_model=sys.argv[1], device="cpu", host="127.0.0.1", port=int(sys.argv[2]))
