"""The two heads of a Robometer and their files: its own ``heads.safetensors``, or among the checkpoint's weights."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Annotated

import torch
from pydantic import BaseModel, ConfigDict, Field, field_validator
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from imagine.types import CheckpointMismatch

PROMPT = (
    "The robot was told: {instruction}. Frames of what it did follow in order of time. After each frame, say how far "
    "it has come, from 0 at the start to 1 when it is done."
)
"""Our own wording. Weights trained with another one want that one: put it into ``robometer.json``."""


class RobometerConfig(BaseModel):
    """How the heads are read; ``robometer.json``."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    bins: Annotated[int, Field(ge=2)] = 10  # of progress, with evenly spaced centres from 0 to 1
    max_frames: Annotated[int, Field(ge=1)] = 8  # most frames of one clip
    threshold: Annotated[float, Field(ge=0, le=1)] = 0.5  # on success; reward is 1 above it
    token: str = "<|prog_token|>"  # stands after each frame
    prompt: str = PROMPT  # stands before the frames
    progress_prefix: str = "progress_head."  # of the tensors' names in the file
    success_prefix: str = "success_head."

    @field_validator("prompt")
    @classmethod
    def _asks(cls, prompt: str) -> str:
        if "{instruction}" not in prompt:
            raise ValueError(f"the prompt {prompt[:40]!r} has no {{instruction}}, expected a place for it")
        return prompt


class RobometerHeads(nn.Module):
    """Both heads on hidden states. Each is linear, layer norm, GELU, dropout, linear."""

    def __init__(self, width: int, bins: int, dropout: float = 0.1) -> None:
        """Make random heads.

        Args:
            width: size of a hidden state.
            bins: of progress.
            dropout: while training.
        """
        super().__init__()
        self.progress_head, self.success_head = _head(width, bins, dropout), _head(width, 1, dropout)

    def forward(self, hidden: Tensor) -> tuple[Tensor, Tensor]:
        """Logits of the progress bins (..., bins) and of success (...), float, for hidden states (..., width)."""
        return self.progress_head(hidden), self.success_head(hidden)[..., 0]


def expectation(logits: Tensor) -> Tensor:
    """Mean of a distribution over bins whose centres are spaced evenly from 0 to 1, both included.

    Args:
        logits: (..., bins) float.

    Returns:
        (...) float, in [0, 1].

    Source: Bellemare, Dabney & Munos, "A distributional perspective on reinforcement learning" (C51; ICML 2017).
    """
    centres = torch.linspace(0, 1, logits.shape[-1], dtype=logits.dtype, device=logits.device)
    return (logits.softmax(-1) * centres).sum(-1)


def _head(width: int, out: int, dropout: float) -> nn.Sequential:
    half = width // 2
    return nn.Sequential(
        nn.Linear(width, half), nn.LayerNorm(half), nn.GELU(), nn.Dropout(dropout), nn.Linear(half, out)
    )


def prefixes(cfg: RobometerConfig) -> list[tuple[str, str]]:
    """(in the module, in the file) of both heads."""
    return [("progress_head.", cfg.progress_prefix), ("success_head.", cfg.success_prefix)]


def head_tensors(folder: Path, cfg: RobometerConfig) -> dict[str, Tensor]:
    """The heads' tensors by their names in the module, from their own file or from among the checkpoint's."""
    own = folder / "heads.safetensors"
    files: Iterable[Path] = [own] if own.is_file() else sorted(folder.glob("*.safetensors"))
    found: dict[str, Tensor] = {}
    for file in files:
        try:
            with safe_open(file, framework="pt") as tensors:
                for key in tensors.keys():  # noqa: SIM118  (it is no mapping)
                    ours = [our + key[len(their) :] for our, their in prefixes(cfg) if key.startswith(their)]
                    if ours or file == own:  # in a file of heads only, a stranger is an error
                        found[ours[0] if ours else key] = tensors.get_tensor(key).float()
        except (OSError, SafetensorError) as error:
            raise CheckpointMismatch(f"{file} cannot be read: {error}; copy the whole folder again.") from None
    return found


def fitting(found: dict[str, Tensor], wanted: dict[str, Tensor], folder: Path) -> dict[str, Tensor]:
    """The tensors, if they are just those that are wanted.

    Raises:
        CheckpointMismatch: names all that are not.
    """
    shapes = [
        f"{k} is {tuple(found[k].shape)}, expected {tuple(wanted[k].shape)}"
        for k in sorted(wanted.keys() & found.keys())
        if found[k].shape != wanted[k].shape
    ]
    wrong = {
        "missing": sorted(wanted.keys() - found.keys()),
        "unexpected": sorted(found.keys() - wanted.keys()),
        "mis-shaped": shapes,
    }
    if any(wrong.values()):
        differences = "; ".join(f"{kind}: {', '.join(names)}" for kind, names in wrong.items() if names)
        raise CheckpointMismatch(
            f"heads in {folder} do not fit ({differences}); expected a progress head with as many bins as "
            "robometer.json says and a success head, named as it says."
        )
    return found
