"""What a model folder's ``config.json`` says: all that is needed to rebuild a model around its weights."""

from __future__ import annotations

from pathlib import Path

from pydantic import BaseModel, ConfigDict, ValidationError, model_validator

from imagine.embodiment import Embodiment
from imagine.model.codec import CodecConfig
from imagine.model.dit import DiTConfig
from imagine.model.text import TextConfig
from imagine.questions import QUESTIONS
from imagine.types import ImagineError, first_fault

FORMAT = 1


class Statistics(BaseModel):
    """Mean and standard deviation of proprioception and of (relative) actions, in robot units."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    proprio_mean: tuple[float, ...]
    proprio_std: tuple[float, ...]
    action_mean: tuple[float, ...]
    action_std: tuple[float, ...]

    @classmethod
    def load(cls, path: str | Path) -> Statistics:
        """Read a JSON file of the four lists.

        Raises:
            ImagineError: it cannot be read, or a list is missing or holds something else than numbers.
        """
        try:
            return cls.model_validate_json(Path(path).read_bytes())
        except ValidationError as error:
            where, what = first_fault(error)
            raise ImagineError(f"statistics {path}: {where + ': ' if where else ''}{what}.") from None
        except OSError as error:
            raise ImagineError(f"statistics {path} cannot be read ({error.strerror}); give a JSON file.") from None


class VideoCodecConfig(BaseModel):
    """A pretrained video codec and image encoder, frozen and left where they are: Wan's autoencoder, CLIP."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    source: str  # folder or hub id
    channels: int
    factor: int  # pixels per latent cell along each side

    @property
    def temporal(self) -> int:
        """Frames per latent frame after the first."""
        return 4


class PromptConfig(BaseModel):
    """A pretrained text encoder, frozen and left where it is: UMT5."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    source: str  # folder or hub id
    template: str = "{task}"  # the prompts that the model was trained on
    length: int = 512
    dim: int = 4096


class ModelConfig(BaseModel):
    """Everything needed to rebuild a model around its weights; ``config.json`` in its folder."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    name: str
    weights: str | None = None  # folder or hub id of a pretrained transformer, where it is not in this folder
    format: int = FORMAT
    embodiment: Embodiment
    dit: DiTConfig
    codec: CodecConfig | VideoCodecConfig
    text: TextConfig | PromptConfig
    statistics: Statistics
    context_frames: int = 2  # latent frames
    answers: tuple[str, ...] = ()
    schedule_shift: float = 1.0

    @model_validator(mode="after")
    def _known(self) -> ModelConfig:
        if self.format != FORMAT:
            raise ValueError(f"format is {self.format}, expected {FORMAT}; use the version of imagine that wrote it")
        if unknown := set(self.answers) - set(QUESTIONS):
            raise ValueError(f"answers hold {sorted(unknown)}, expected some of {sorted(QUESTIONS)}")
        return self
