"""What small trained judges share: words as counts, a verdict at a threshold, and a folder for weights and settings."""

from __future__ import annotations

import re
from abc import ABC, abstractmethod
from collections.abc import Sequence
from pathlib import Path
from typing import ClassVar, Self

import torch
from pydantic import BaseModel, ConfigDict, ValidationError
from safetensors import SafetensorError
from safetensors.torch import load_file, save
from torch import Tensor, nn

from imagine.files import atomic_write
from imagine.rewards.calibrate import ThresholdFit
from imagine.types import CheckpointMismatch, Score, ShapeError


class HeadSettings(BaseModel, ABC):
    """What every small judge must know to be rebuilt around its weights.

    Attributes:
        channels: of a latent frame, likewise height and width.
        proprio: numbers of proprioception.
        words: that an instruction may hold.
        threshold_fit: how the threshold was found and how far the data carry it; None where it is not known.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    channels: int
    height: int
    width: int
    proprio: int
    words: tuple[str, ...]
    threshold_fit: ThresholdFit | None = None

    @property
    @abstractmethod
    def at(self) -> float:
        """The success probability above which a clip is judged a success."""

    @abstractmethod
    def calibrated(self, threshold: float, fit: ThresholdFit) -> Self:
        """The same settings with another threshold."""


def word_counts(instruction: Sequence[str], words: Sequence[str]) -> Tensor:
    """(B, words) float, how often each instruction has each of ``words``; others are left out."""
    index = {w: i for i, w in enumerate(words)}
    counts = torch.zeros(len(instruction), len(index))
    for row, text in enumerate(instruction):
        for word in re.findall(r"\w+", text.lower()):
            if word in index:
                counts[row, index[word]] += 1
    return counts


class HeadJudge(nn.Module):
    """A small judge of latents or trajectories; subclasses say what they look at.

    Attributes:
        stem: names its files, ``STEM.json`` and ``STEM.safetensors``, in a model folder.
        former: what they were called before, and still may be; the same as ``stem`` where there is no such name.
        settings: the class of its settings.
        source: where such a judge comes from, for the message when there is none.
    """

    stem: ClassVar[str]
    former: ClassVar[str]
    settings: ClassVar[type[HeadSettings]]
    source: ClassVar[str]
    cfg: HeadSettings

    def __init__(self, cfg: HeadSettings) -> None:
        super().__init__()
        self.cfg = cfg

    def word_counts(self, instruction: Sequence[str]) -> Tensor:
        """(B, words) float; words that it does not know are left out."""
        return word_counts(instruction, self.cfg.words)

    def calibrate(self, threshold: float, fit: ThresholdFit) -> None:
        """Judge at another threshold from now on."""
        self.cfg = self.cfg.calibrated(threshold, fit)

    def verdict(self, success: Tensor, progress: Tensor, spread: Tensor, words: Tensor) -> Score:
        """The score of B clips: reward 1 and the end of the episode above the threshold; valid if a word is known.

        Args:
            success: (B,) float in [0, 1].
            progress: (B,) float in [0, 1].
            spread: (B,) float, how far the heads are apart.
            words: (B, words) float, from :meth:`word_counts`.
        """
        done = success > self.cfg.at
        terms = {"success": success, "progress": progress, "spread": spread}
        return Score(done.float(), success, words.sum(1) > 0, terms, terminated=done)

    def require_latents(self, latents: Tensor, instruction: Sequence[str]) -> None:
        """Raise ShapeError unless (B, frames, C, h, w) latents are of this judge's codec, one instruction each."""
        expected = (self.cfg.channels, self.cfg.height, self.cfg.width)
        if tuple(latents.shape[2:]) != expected or len(instruction) != len(latents):
            raise ShapeError(
                f"judge got latents {tuple(latents.shape)} and {len(instruction)} instructions, expected "
                f"(B, 1 + F, {', '.join(map(str, expected))}) and B; use the judge of this model's folder."
            )

    def save(self, folder: str | Path) -> None:
        """Write ``STEM.json`` and ``STEM.safetensors`` (half precision)."""
        state = {k: v.detach().cpu().half().contiguous() for k, v in self.state_dict().items()}
        atomic_write(Path(folder) / f"{self.stem}.safetensors", save(state))
        atomic_write(Path(folder) / f"{self.stem}.json", self.cfg.model_dump_json(indent=1))

    @classmethod
    def is_in(cls, folder: str | Path) -> bool:
        """Whether a folder has such a judge."""
        return any((Path(folder) / f"{stem}.json").is_file() for stem in (cls.stem, cls.former))

    @classmethod
    def load(cls, folder: str | Path) -> Self:
        """Read a judge from a model folder.

        Raises:
            CheckpointMismatch: missing, truncated, or its weights do not fit its settings.
        """
        folder = Path(folder)
        stem = cls.stem if (folder / f"{cls.stem}.json").is_file() else cls.former
        try:
            head = cls(cls.settings.model_validate_json((folder / f"{stem}.json").read_bytes()))
            head.load_state_dict({k: v.float() for k, v in load_file(folder / f"{stem}.safetensors").items()})
        except (OSError, ValidationError, SafetensorError, RuntimeError) as error:
            why = " ".join(str(error).split())[:200]
            raise CheckpointMismatch(f"no usable {cls.stem} in {folder}: {why}; {cls.source}") from None
        return head.eval()
