"""TrajectoryJudge: was it done, judged by where things were and where the hands went?

It finds what the instruction is about in the episode's first frame, which is a real one, and follows the hands beside
it, where they were imagined and where their actions lead. Whether a grasp closes beside the block is a matter of
millimetres that a dream's pictures blur and may even paint as a success; the first frame and the path know them.

What this is not: a look at the dream. It does not see what was painted after the first frame, so it cannot be fooled
by it, and cannot tell that somebody else moved the block. ``latent`` and the vision-language judges look.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from imagine.rewards.calibrate import ThresholdFit
from imagine.rewards.heads import HeadJudge, HeadSettings
from imagine.types import Clip, Score, ShapeError


class TrajectoryConfig(HeadSettings):
    """Everything needed to rebuild a TrajectoryJudge around its weights; ``trajectory.json``.

    Attributes:
        actions: numbers of an action.
        ticks: actions since the frame before, in every row of a path.
        places: which numbers of proprioception are places of hands.
        targets: which numbers of an action lead there, in the same order.
        near: per place number, how many normalised units count as near (10 cm at the table).
        dim: width of the network.
        heads: ensemble size.
        dropout: in training.
        threshold: of the success probability, above which a clip is rewarded.
        discount: progress is this to the power of chunks until success.
    """

    actions: int
    ticks: int
    places: tuple[int, ...]
    targets: tuple[int, ...]
    near: tuple[float, ...]
    dim: int = 64
    heads: int = 3
    dropout: float = 0.2
    threshold: float = 0.5
    discount: float = 0.8

    @property
    def at(self) -> float:
        """See :class:`imagine.rewards.heads.HeadSettings`."""
        return self.threshold

    def calibrated(self, threshold: float, fit: ThresholdFit) -> TrajectoryConfig:
        """See :class:`imagine.rewards.heads.HeadSettings`."""
        return self.model_copy(update={"threshold": threshold, "threshold_fit": fit})


class _Locator(nn.Module):
    """(B, C, h, w) latents and (B, W) word counts to (B, places), in units of ``near``."""

    grid: Tensor

    def __init__(self, cfg: TrajectoryConfig, queries: int = 2, n: int = 48):
        super().__init__()
        self.words = nn.Linear(len(cfg.words), 2 * n)
        self.first = nn.Conv2d(cfg.channels, n, 3, padding=1)
        self.second = nn.Conv2d(n, n, 3, padding=1)
        self.third = nn.Conv2d(n, n, 3, padding=1)
        self.cell = nn.Parameter(0.02 * torch.randn(1, n, cfg.height, cfg.width))
        self.heat = nn.Conv2d(n, queries, 1)
        self.out = nn.Sequential(nn.Linear(queries * (n + 2), 96), nn.SiLU(), nn.Linear(96, len(cfg.places)))
        y, x = torch.meshgrid(torch.linspace(-1, 1, cfg.height), torch.linspace(-1, 1, cfg.width), indexing="ij")
        self.register_buffer("grid", torch.stack([x, y]).flatten(1), persistent=False)

    def forward(self, latents: Tensor, words: Tensor) -> Tensor:
        shift, scale = self.words(words)[:, :, None, None].chunk(2, 1)
        x = F.silu(self.first(latents) + shift + self.cell)
        x = F.silu(self.second(x) * (1 + scale) + x)
        x = F.silu(self.third(x)) + x
        look = torch.softmax(self.heat(x).flatten(2), -1)
        seen = torch.cat([x.flatten(2), self.grid.expand(len(x), -1, -1)], 1)
        return self.out(torch.einsum("bqp,bcp->bqc", look, seen).flatten(1))


class _TrajectoryHead(nn.Module):
    """(B, T, D) path beside a thing to (B, 2 + 3): logits of success and progress, and how far the thing moved."""

    def __init__(self, cfg: TrajectoryConfig, inputs: int):
        super().__init__()
        n = cfg.dim
        self.first = nn.Conv1d(inputs, n, 3)
        self.second = nn.Conv1d(n, n, 3)
        self.recurrent = nn.GRU(n, n, batch_first=True)
        self.out = nn.Sequential(nn.Linear(2 * n, n), nn.SiLU(), nn.Dropout(cfg.dropout), nn.Linear(n, 5))
        self.dropout = nn.Dropout(cfg.dropout)

    def forward(self, path: Tensor) -> Tensor:
        x = F.silu(self.first(F.pad(path.transpose(1, 2), (2, 0), mode="replicate")))
        x = F.silu(self.second(F.pad(x, (2, 0), mode="replicate"))) + x
        x, _ = self.recurrent(self.dropout(x.transpose(1, 2)))
        return self.out(torch.cat([x[:, -1], x.max(1).values], -1))


class TrajectoryJudge(HeadJudge):
    """A ``RewardModel``: success probability of a clip from its first frame and the trajectory of the hands since."""

    stem, former, settings = "trajectory", "path", TrajectoryConfig
    source = "train one with `imagine train --stages trajectory`, or use --judge latent."
    cfg: TrajectoryConfig
    near: Tensor

    def __init__(self, cfg: TrajectoryConfig):
        super().__init__(cfg)
        self.where = _Locator(cfg)
        inputs = cfg.proprio + cfg.ticks * cfg.actions + len(cfg.places) + len(cfg.words)
        self.heads = nn.ModuleList([_TrajectoryHead(cfg, inputs) for _ in range(cfg.heads)])
        self.register_buffer("near", torch.tensor(cfg.near), persistent=False)

    def locate(self, start: Tensor, words: Tensor) -> Tensor:
        """Where what is asked about is: the proprioception of hands that are there.

        Args:
            start: (B, C, h, w) float, normalised latents of the episode's first frame.
            words: (B, words) float, from :meth:`word_counts`.

        Returns:
            (B, places) float, normalised.
        """
        return self.where(start, words) * self.near

    def logits(self, place: Tensor, path: Tensor, words: Tensor) -> Tensor:
        """Every head's (heads, B, 5): logits of success and progress, then how far the thing moved, in ``near``.

        Args:
            place: (B, places) float, from :meth:`locate`.
            path: (B, T, P + S A) float; see :class:`imagine.types.Clip`.
            words: (B, words) float, from :meth:`word_counts`.
        """
        cfg = self.cfg
        hands = list(cfg.places)
        led = [[cfg.proprio + tick * cfg.actions + i for i in cfg.targets] for tick in range(cfg.ticks)]
        placed = {*hands, *(i for tick in led for i in tick)}
        rest = [i for i in range(path.shape[2]) if i not in placed]
        at_hands = path[..., hands]
        beside = [2 * torch.tanh((path[..., at] - place[:, None]) / self.near) for at in (hands, *led)]
        moved = F.pad(2 * (at_hands[:, 1:] - at_hands[:, :-1]) / self.near, (0, 0, 1, 0)).clamp(-3, 3)
        instruction = words[:, None].expand(-1, path.shape[1], -1)
        inputs = torch.cat([*beside, moved, path[..., rest], instruction], -1)
        return torch.stack([head(inputs) for head in self.heads])

    def probabilities(self, place: Tensor, path: Tensor, words: Tensor) -> Tensor:
        """Success and progress (B, 2) in [0, 1], the heads' mean; arguments as for :meth:`logits`."""
        return torch.sigmoid(self.logits(place, path, words)[..., :2].float()).mean(0)

    @torch.inference_mode()
    def __call__(self, clip: Clip, instruction: Sequence[str]) -> Score:  # type: ignore[override]
        """Judge B clips; see :class:`imagine.types.RewardModel`. Reward is 1 on judged success, else 0.

        The heads' mean probability counts; ``spread`` is how far they are apart.

        Raises:
            ShapeError: the clip is of another codec or robot, has no trajectory, or not one instruction.
        """
        cfg, numbers = self.cfg, self.cfg.proprio + self.cfg.ticks * self.cfg.actions
        self.require_latents(clip.latents, instruction)
        if clip.trajectory is None:
            raise ShapeError(
                "this judge follows the hands since the start, but the clip has no trajectory; see types.Clip."
            )
        if clip.trajectory.shape[-1] != numbers:
            raise ShapeError(
                f"judge got a trajectory of {clip.trajectory.shape[-1]} numbers per frame, expected {cfg.proprio} of "
                f"proprioception and {cfg.ticks} x {cfg.actions} of actions; use the judge of this model's folder."
            )
        words = self.word_counts(instruction).to(clip.trajectory)
        place = self.locate(clip.latents[:, 0].to(clip.trajectory), words)
        every = torch.sigmoid(self.logits(place, clip.trajectory, words)[..., :2].float())
        success, progress = every.mean(0).unbind(-1)
        return self.verdict(success, progress, every[..., 0].amax(0) - every[..., 0].amin(0), words)
