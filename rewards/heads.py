"""What small trained judges share: an instruction as word counts, and a folder for weights and config."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TypeVar

import torch
from pydantic import BaseModel, ValidationError
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from imagine.types import CheckpointMismatch

_Config = TypeVar("_Config", bound=BaseModel)
_Head = TypeVar("_Head", bound=nn.Module)


def word_counts(instruction: Sequence[str], words: Sequence[str]) -> Tensor:
    """(B, words) float, how often each instruction has each of ``words``; others are left out."""
    index = {w: i for i, w in enumerate(words)}
    counts = torch.zeros(len(instruction), len(index))
    for row, text in enumerate(instruction):
        for word in re.findall(r"\w+", text.lower()):
            if word in index:
                counts[row, index[word]] += 1
    return counts


def save_head(head: nn.Module, cfg: BaseModel, folder: str | Path, stem: str) -> None:
    """Write ``STEM.json`` and ``STEM.safetensors`` (half precision)."""
    folder = Path(folder)
    state = {k: v.detach().cpu().half().contiguous() for k, v in head.state_dict().items()}
    save_file(state, folder / f"{stem}.safetensors.tmp")
    (folder / f"{stem}.safetensors.tmp").rename(folder / f"{stem}.safetensors")
    (folder / f"{stem}.json").write_text(cfg.model_dump_json(indent=1))


def load_head(
    make: Callable[[_Config], _Head], config: type[_Config], folder: str | Path, stem: str, how: str
) -> _Head:
    """Read what :func:`save_head` wrote; ``how`` says where such a judge comes from.

    Raises:
        CheckpointMismatch: missing, truncated, or its weights do not fit its config.
    """
    folder = Path(folder)
    try:
        head = make(config.model_validate_json((folder / f"{stem}.json").read_bytes()))
        head.load_state_dict({k: v.float() for k, v in load_file(folder / f"{stem}.safetensors").items()})
    except (OSError, ValidationError, SafetensorError, RuntimeError) as error:
        raise CheckpointMismatch(f"no usable {stem} in {folder}: {' '.join(str(error).split())[:200]}; {how}") from None
    return head.eval()
