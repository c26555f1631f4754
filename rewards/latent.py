"""LatentJudge: small heads for success and progress on the joint model's latents, so that judging decodes no frame.

It compares the newest frame with the episode's first one ("pushed to the left" means nothing without the start) under
the instruction. Three independent heads vote and the lowest counts: where they disagree, nobody should be rewarded.
It is no vision-language model; that judge implements the same ``RewardModel`` protocol on decoded frames.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

import torch
import torch.nn.functional as F
from pydantic import BaseModel, ConfigDict
from safetensors.torch import load_file, save
from torch import Tensor, nn

from imagine.files import atomic_write
from imagine.intact import intact
from imagine.rewards.calibrate import ThresholdFit
from imagine.types import Clip, Score, ShapeError

SETTINGS, WEIGHTS = "judge.json", "judge.safetensors"
"""Files of a LatentJudge in the folder of the model whose latents it reads."""


class HeadConfig(BaseModel):
    """Shape and threshold of a LatentJudge."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    width: int = 48
    heads: int = 3  # ensemble size
    threshold: float = 0.5  # on the lowest head's success probability
    discount: float = 0.8  # progress is this to the power of chunks until success
    dropout: float = 0.1
    trace: float = 1.0  # lambda of progress's TD(lambda) targets; 1 is the recorded outcome alone


class JudgeConfig(BaseModel):
    """Everything needed to rebuild a LatentJudge around its weights; ``judge.json``.

    Attributes:
        head: shape and threshold.
        channels: of a latent frame, likewise height and width.
        proprio: numbers of proprioception.
        words: that an instruction may hold.
        threshold_fit: how the threshold was found and how far the data carry it; None where it is not known.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    head: HeadConfig
    channels: int
    height: int
    width: int
    proprio: int
    words: tuple[str, ...]
    threshold_fit: ThresholdFit | None = None


class _Head(nn.Module):
    """(B, 2, C, h, w) latents, (B, 2, P) proprioception and word counts to two logits: success and progress."""

    def __init__(self, cfg: JudgeConfig):
        super().__init__()
        n = cfg.head.width
        self.text = nn.Linear(len(cfg.words), n)
        self.proprio = nn.Linear(2 * cfg.proprio, n)
        self.first = nn.Conv2d(3 * cfg.channels, n, 3, padding=1)
        self.second = nn.Conv2d(n, n, 3, padding=1)
        self.third = nn.Conv2d(n, n, 4, 2, 1)
        self.out = nn.Sequential(
            nn.Linear(n * (cfg.height // 2) * (cfg.width // 2) + 2 * n, 128),
            nn.SiLU(),
            nn.Dropout(cfg.head.dropout),
            nn.Linear(128, 2),
        )

    def forward(self, latents: Tensor, proprio: Tensor, words: Tensor) -> Tensor:
        text, body = self.text(words), self.proprio(proprio.flatten(1))
        start, now = latents.unbind(1)
        x = F.silu(self.first(torch.cat([start, now, now - start], 1)) + text[:, :, None, None])
        x = F.silu(self.second(x) * (1 + text[:, :, None, None]) + x)
        x = F.silu(self.third(x)).flatten(1)
        return self.out(torch.cat([x, text, body], 1))


class LatentJudge(nn.Module):
    """A ``RewardModel``: success probability of a clip from its first and newest latent frame."""

    def __init__(self, cfg: JudgeConfig):
        super().__init__()
        self.cfg = cfg
        self.heads = nn.ModuleList([_Head(cfg) for _ in range(cfg.head.heads)])

    def word_counts(self, instruction: Sequence[str]) -> Tensor:
        """(B, words) float, how often each instruction has each known word; others are left out."""
        index = {w: i for i, w in enumerate(self.cfg.words)}
        counts = torch.zeros(len(instruction), len(index))
        for row, text in enumerate(instruction):
            for word in re.findall(r"\w+", text.lower()):
                if word in index:
                    counts[row, index[word]] += 1
        return counts

    def calibrate(self, threshold: float, fit: ThresholdFit) -> None:
        """Judge at another threshold from now on."""
        head = self.cfg.head.model_copy(update={"threshold": threshold})
        self.cfg = self.cfg.model_copy(update={"head": head, "threshold_fit": fit})

    def logits(self, latents: Tensor, proprio: Tensor, words: Tensor) -> Tensor:
        """Every head's logits of success and progress, (heads, B, 2), for the pair (first, newest) of frames.

        Args:
            latents: (B, 2, C, h, w) float, normalised.
            proprio: (B, 2, P) float, normalised.
            words: (B, words) float, from :meth:`word_counts`.
        """
        return torch.stack([head(latents, proprio, words) for head in self.heads])

    def probabilities(self, latents: Tensor, proprio: Tensor, words: Tensor) -> Tensor:
        """Success and progress (B, 2) in [0, 1] as the lowest head sees them; arguments as for :meth:`logits`."""
        return torch.sigmoid(self.logits(latents, proprio, words)).min(0).values

    def loss(self, latents: Tensor, proprio: Tensor, words: Tensor, success: Tensor, progress: Tensor) -> Tensor:
        """Binary cross-entropy of both answers, each head on its own random three quarters of the batch.

        Args:
            latents: as for :meth:`logits`.
            proprio: likewise.
            words: likewise.
            success: (B,) bool.
            progress: (B,) float in [0, 1], the discounted nearness of success that the recorded behaviour reached.
        """
        logits = self.logits(latents, proprio, words)
        kept = torch.rand(logits.shape[:2], device=logits.device) < 0.75
        target = torch.stack([success.float(), progress], -1).expand_as(logits)
        error = F.binary_cross_entropy_with_logits(logits.float(), target, reduction="none")
        return (error.sum(-1) * kept).mean()

    @torch.inference_mode()
    def __call__(self, clip: Clip, instruction: Sequence[str]) -> Score:  # type: ignore[override]
        """Judge B clips; see :class:`imagine.types.RewardModel`. Reward is 1 on judged success, else 0.

        A clip is judged a success, which ends its episode, above the threshold; it is valid if a word is known.

        Raises:
            ShapeError: the latents are of another codec, or there is not one instruction per clip.
        """
        expected = (self.cfg.channels, self.cfg.height, self.cfg.width)
        if tuple(clip.latents.shape[2:]) != expected or len(instruction) != len(clip.latents):
            raise ShapeError(
                f"judge got latents {tuple(clip.latents.shape)} and {len(instruction)} instructions, expected "
                f"(B, 1 + F, {', '.join(map(str, expected))}) and B; use the judge of this model's folder."
            )
        pair = [0, clip.latents.shape[1] - 1]
        words = self.word_counts(instruction).to(clip.latents)
        every = torch.sigmoid(self.logits(clip.latents[:, pair], clip.proprio[:, pair], words))
        lowest, highest = every.min(0).values, every.max(0).values
        success, progress = lowest.unbind(-1)
        done = success > self.cfg.head.threshold
        terms = {"success": success, "progress": progress, "spread": (highest - lowest)[:, 1]}
        return Score(done.float(), success, words.sum(1) > 0, terms, terminated=done)

    def save(self, folder: str | Path) -> None:
        """Write ``judge.json`` and ``judge.safetensors`` (half precision)."""
        state = {k: v.detach().cpu().half().contiguous() for k, v in self.state_dict().items()}
        atomic_write(Path(folder) / WEIGHTS, save(state))
        atomic_write(Path(folder) / SETTINGS, self.cfg.model_dump_json(indent=1))

    @staticmethod
    def is_in(folder: str | Path) -> bool:
        """Whether a folder has such a judge."""
        return (Path(folder) / SETTINGS).is_file()

    @classmethod
    def load(cls, folder: str | Path) -> LatentJudge:
        """Read a judge from a model folder.

        Raises:
            CheckpointMismatch: missing, truncated, or its weights do not fit its settings.
        """
        folder = Path(folder)
        remedy = "train a judge with `imagine train --stages judge`, or copy the whole model folder"
        with intact(folder / SETTINGS, remedy):
            head = cls(JudgeConfig.model_validate_json((folder / SETTINGS).read_bytes()))
        with intact(folder / WEIGHTS, remedy):
            head.load_state_dict({k: v.float() for k, v in load_file(folder / WEIGHTS).items()})
            if not all(v.isfinite().all() for v in head.state_dict().values()):
                raise ValueError("it holds NaN or infinity")
        return head.eval()
