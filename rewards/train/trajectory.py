"""Trains a TrajectoryJudge on whole imagined episodes of many policies, about which several questions are asked.

What the same actions really did tells for every question where the thing was, how far it went, and whether it was done.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from imagine.files import write_json
from imagine.labels import Flip, LabelledRollouts, Questions
from imagine.rewards.calibrate import auroc, by_kind, fit_threshold
from imagine.rewards.trajectory import TrajectoryJudge
from imagine.train.fit import FitConfig, fit

NEAR = 0.1
"""m; the unit of places and movements in the losses, see ``TrajectoryConfig.near``."""

OWN = 0.65  # share of a batch that is judged by the episode's own instruction, rather than by another question
LOOSE = 0.3  # share of a batch whose past chunks are known at their ends only, as a planner on a robot knows them
LATENT_NOISE = 0.1
BETA = 0.05, 0.3  # of the smooth L1 losses of places and of movements, in units of NEAR


class _Lessons:
    """Rollouts and questions as tensors."""

    def __init__(self, judge: TrajectoryJudge, rollouts: LabelledRollouts, questions: Questions, history: int) -> None:
        self.start = torch.from_numpy(rollouts.latents[:, 0]).float()
        self.path = torch.from_numpy(rollouts.trajectory)
        self.done = torch.from_numpy(questions.done)
        self.before = F.pad(self.done, (1, 0))[..., :-1]
        first = torch.where(self.done.any(2), self.done.int().argmax(2), 10**6)[..., None]
        left = (first - torch.arange(self.done.shape[2])).clamp(min=0)
        self.near = judge.cfg.discount ** left.float()
        count = self.done.shape[1]
        self.words = judge.word_counts([text for row in questions.instruction for text in row]).unflatten(
            0, (-1, count)
        )
        self.place = torch.from_numpy(questions.place)
        self.moved = torch.from_numpy((questions.moved / NEAR).clip(-3, 3))
        self.frames, self.history = (self.path.shape[1] - 1) // self.done.shape[2], history

    def clips(self, episodes: np.ndarray, batch: int) -> tuple[list[Tensor], list[int]]:
        """(n, 3) episode, question and chunk of what is taught of ``episodes`` (N,) bool, and shares of a batch.

        The first are about an episode's own instruction; the others, if there are any, about other questions.
        """
        taught = ~self.before & torch.from_numpy(episodes)[:, None, None]
        own = torch.arange(taught.shape[1]).eq(0)[:, None]
        both, share = [(taught & own).nonzero(), (taught & ~own).nonzero()], int(batch * OWN)
        return (both, [share, batch - share]) if len(both[1]) else (both[:1], [batch])

    def window(self, i: Tensor, t: Tensor) -> Tensor:
        """(n, 1 + history, P + S A), as a judge is shown the trajectory after chunk t."""
        back = torch.arange(-self.history, 1)
        return self.path[i[:, None], ((t[:, None] + 1) * self.frames + back).clamp(min=0)]

    @torch.no_grad()
    def chances(self, judge: TrajectoryJudge, rows: np.ndarray) -> np.ndarray:
        """(n, T) success probability of each episode's own instruction, as the judge reports it."""
        i = torch.from_numpy(rows)
        words = self.words[i, 0]
        place = torch.cat([judge.locate(*p) for p in zip(self.start[i].split(256), words.split(256), strict=True)])
        steps = range(self.done.shape[2])
        each = [judge.probabilities(place, self.window(i, torch.full_like(i, t)), words)[:, 0] for t in steps]
        return torch.stack(each, 1).numpy()


def train_trajectory(
    judge: TrajectoryJudge,
    rollouts: LabelledRollouts,
    questions: Questions,
    held: np.ndarray,
    run: FitConfig,
    folder: Path,
    *,
    history: int,
    loosen: Callable[[Tensor], Tensor],
    flip: Flip | None = None,
) -> TrajectoryJudge:
    """Train a TrajectoryJudge and return it; held-out episodes set its threshold. Numbers go to ``metrics.json``.

    Args:
        judge: trained in place.
        rollouts: N episodes.
        questions: about them.
        held: (N,) bool, episodes that are held out.
        run: how long and how fast.
        folder: resumes what it holds.
        history: frames before the newest that a judge is shown.
        loosen: turns windows (n, 1 + history, P + S A) into what a planner on a robot knows of them.
        flip: shown to half of a batch.
    """
    lessons, rows = _Lessons(judge, rollouts, questions, history), np.flatnonzero(held)
    clips, shares = lessons.clips(~held, run.batch)

    def loss(step: int, generator: torch.Generator) -> tuple[Tensor, dict[str, float]]:
        drawn = [c[torch.randint(len(c), (n,), generator=generator)] for c, n in zip(clips, shares, strict=True)]
        return _loss(judge.train(), lessons, torch.cat(drawn), generator, loosen, flip)

    def evaluate(ema: nn.Module) -> dict[str, float]:
        assert isinstance(ema, TrajectoryJudge)
        return _errors(ema, lessons, rows)

    torch.manual_seed(run.seed)  # dropout
    ema = fit(judge, loss, run, folder, evaluate=evaluate, name="trajectory")
    assert isinstance(ema, TrajectoryJudge)
    found = _set_threshold(ema, lessons, rows, rollouts.kind[rows])
    write_json(folder / "metrics.json", {"step": run.steps, **evaluate(ema), **found})
    return ema


def _set_threshold(judge: TrajectoryJudge, lessons: _Lessons, rows: np.ndarray, kinds: np.ndarray) -> dict[str, Any]:
    """Set the threshold by whole episodes; returns what is known of it."""
    best, success = lessons.chances(judge, rows).max(1), lessons.done[rows, 0].any(1).numpy()
    threshold, how = fit_threshold(best, success, default=judge.cfg.at)
    judge.calibrate(threshold, how)
    return {"threshold": threshold, **how.numbers(), "policies": by_kind(best > threshold, success, kinds)}


def _loss(
    judge: TrajectoryJudge,
    lessons: _Lessons,
    clips: Tensor,
    generator: torch.Generator,
    loosen: Callable[[Tensor], Tensor],
    flip: Flip | None,
) -> tuple[Tensor, dict[str, float]]:
    """Of clips (n, 3): episode, question and chunk."""
    i, q, t = clips.T
    start, words, path = lessons.start[i], lessons.words[i, q], lessons.window(i, t)
    start = start + LATENT_NOISE * torch.randn(start.shape, generator=generator)
    loose = torch.rand(len(i), generator=generator) < LOOSE
    path = torch.where(loose[:, None, None], loosen(path), path)
    here = judge.locate(start, words)
    place, gone = here.detach(), lessons.moved[i, q, t]
    if flip is not None:
        turn = torch.rand(len(i), generator=generator) < 0.5
        changes = ((flip.place, place), (flip.trajectory, path), (flip.words, words), (flip.moved, gone))
        place, path, words, gone = (
            torch.where(turn.view(-1, *[1] * (x.dim() - 1)), change(x), x) for change, x in changes
        )
    answer = judge.logits(place, path, words)
    target = torch.stack([lessons.done[i, q, t].float(), lessons.near[i, q, t]], -1).expand(len(answer), -1, -1)
    success = F.binary_cross_entropy_with_logits(answer[..., :2], target)
    moved = _known_l1(answer[..., 2:], gone.expand(len(answer), -1, -1), BETA[1])
    off = _known_l1(here / judge.near, lessons.place[i, q] / judge.near, BETA[0])
    return 2 * success + moved / 2 + off, {"success": success.item(), "moved": moved.item(), "off": off.item()}


def _known_l1(x: Tensor, target: Tensor, beta: float) -> Tensor:
    """Smooth L1 where the target is known, averaged over those; 0 where it is known nowhere."""
    known = torch.isfinite(target)
    error = F.smooth_l1_loss(x, torch.where(known, target, x.detach()), beta=beta, reduction="sum")
    return error / known.sum().clamp(min=1)


@torch.no_grad()
def _errors(judge: TrajectoryJudge, lessons: _Lessons, rows: np.ndarray) -> dict[str, float]:
    """How well held-out clips are told apart, and how far from the thing the judge looks for it."""
    p, truth = lessons.chances(judge, rows), lessons.done[rows, 0].numpy()
    shown, i = ~lessons.before[rows, 0].numpy(), torch.from_numpy(rows)
    off = ((judge.locate(lessons.start[i], lessons.words[i, 0]) - lessons.place[i, 0]) / judge.near)[:, :2].norm(dim=1)
    known = off[torch.isfinite(off)]
    return {
        "auroc": auroc(p[shown], truth[shown]),
        "episode_auroc": auroc(p.max(1), truth.max(1)),
        "brier": float(np.square(p - truth)[shown].mean()),
        **({"off_cm": float(100 * NEAR * known.median())} if len(known) else {}),
        "n": float(shown.sum()),
    }
