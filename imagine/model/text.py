"""Instructions into vectors: a small word-level encoder, trained with the model, that refuses words it never saw.

A large model brings its own text encoder (UMT5 for Wan); both give (B, L, D), zero after the last word.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable, Sequence

import torch
from pydantic import BaseModel, ConfigDict
from torch import Tensor, nn

from imagine.types import UnknownWord


class TextConfig(BaseModel):
    """The vocabulary and shape of a WordEncoder."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    words: tuple[str, ...]
    length: int = 10  # words per instruction, at most
    dim: int = 128


def split_words(instruction: str) -> list[str]:
    """Lower-case words, punctuation dropped."""
    return re.findall(r"\w+", instruction.lower())


def vocabulary(instructions: Iterable[str]) -> tuple[str, ...]:
    """Every word of some instructions, sorted."""
    return tuple(sorted({w for text in instructions for w in split_words(text)}))


class WordEncoder(nn.Module):
    """Word and position embeddings; the cross-attention of every block does the reading."""

    def __init__(self, cfg: TextConfig):
        super().__init__()
        self.cfg = cfg
        self.ids = {w: i + 1 for i, w in enumerate(cfg.words)}
        self.embedding = nn.Embedding(len(cfg.words) + 1, cfg.dim, padding_idx=0)
        self.position = nn.Parameter(torch.randn(cfg.length, cfg.dim) * 0.02)

    def tokenize(self, instructions: Sequence[str]) -> Tensor:
        """(B, L) int64 word ids, 0 after the last word.

        Raises:
            UnknownWord: a word was not in the training instructions, or the instruction is empty or too long.
        """
        rows = torch.zeros(len(instructions), self.cfg.length, dtype=torch.long)
        for i, text in enumerate(instructions):
            words = split_words(text)
            unknown = [w for w in words if w not in self.ids]
            if unknown:
                near = difflib.get_close_matches(unknown[0], self.cfg.words, 1)
                hint = f" Did you mean {near[0]!r}?" if near else ""
                raise UnknownWord(
                    f"instruction {text!r} holds {unknown[0]!r}, which this model was not trained on; "
                    f"it knows: {', '.join(self.cfg.words)}.{hint}"
                )
            if not 0 < len(words) <= self.cfg.length:
                raise UnknownWord(f"instruction {text!r} has {len(words)} words, expected 1 to {self.cfg.length}.")
            rows[i, : len(words)] = torch.tensor([self.ids[w] for w in words])
        return rows

    def forward(self, ids: Tensor) -> Tensor:
        """(B, L) ids to (B, L, D) float, zero at padding."""
        return (self.embedding(ids) + self.position) * (ids > 0)[..., None]
