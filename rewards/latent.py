"""LatentJudge: small heads for success and progress on the joint model's latents, so that judging decodes no frame.

It compares the newest frame with the episode's first one ("pushed to the left" means nothing without the start) under
the instruction. Three independent heads vote and the lowest counts: where they disagree, nobody should be rewarded.
It is no vision-language model; that judge implements the same ``RewardModel`` protocol on decoded frames.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from pydantic import BaseModel, ConfigDict
from torch import Tensor, nn

from imagine.rewards.calibrate import ThresholdFit
from imagine.rewards.heads import HeadJudge, HeadSettings
from imagine.types import Clip, Score


class HeadConfig(BaseModel):
    """Shape and threshold of a LatentJudge."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    width: int = 48
    heads: int = 3  # ensemble size
    threshold: float = 0.5  # on the lowest head's success probability
    discount: float = 0.8  # progress is this to the power of chunks until success
    dropout: float = 0.1
    trace: float = 1.0  # lambda of progress's TD(lambda) targets; 1 is the recorded outcome alone


class JudgeConfig(HeadSettings):
    """Everything needed to rebuild a LatentJudge around its weights; ``judge.json``."""

    head: HeadConfig

    @property
    def at(self) -> float:
        """See :class:`imagine.rewards.heads.HeadSettings`."""
        return self.head.threshold

    def calibrated(self, threshold: float, fit: ThresholdFit) -> JudgeConfig:
        """See :class:`imagine.rewards.heads.HeadSettings`."""
        head = self.head.model_copy(update={"threshold": threshold})
        return self.model_copy(update={"head": head, "threshold_fit": fit})


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


class LatentJudge(HeadJudge):
    """A ``RewardModel``: success probability of a clip from its first and newest latent frame."""

    stem = former = "judge"
    settings = JudgeConfig
    source = "train one with `imagine train --stages judge`, or copy the whole model folder."
    cfg: JudgeConfig

    def __init__(self, cfg: JudgeConfig):
        super().__init__(cfg)
        self.heads = nn.ModuleList([_Head(cfg) for _ in range(cfg.head.heads)])

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

        Raises:
            ShapeError: the latents are of another codec, or there is not one instruction per clip.
        """
        self.require_latents(clip.latents, instruction)
        pair = [0, clip.latents.shape[1] - 1]
        words = self.word_counts(instruction).to(clip.latents)
        every = torch.sigmoid(self.logits(clip.latents[:, pair], clip.proprio[:, pair], words))
        lowest, highest = every.min(0).values, every.max(0).values
        success, progress = lowest.unbind(-1)
        return self.verdict(success, progress, (highest - lowest)[:, 1], words)
