"""Trains the success heads of a LatentJudge on labelled clips, recorded and imagined ones.

A head that only knew recorded frames would be lost in a dream's blur, and one that only knew recorded behaviour takes a
dream's faults for failures; so it learns from dreams too, with what really happened as their label.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from imagine.files import write_json
from imagine.labels import LabelledPairs, PairSource
from imagine.rewards.calibrate import auroc, by_kind, fit_threshold
from imagine.rewards.latent import HeadConfig, LatentJudge
from imagine.train.fit import FitConfig, Loss, fit

LOOKAHEAD = 3  # chunks over which progress is a TD(lambda) return; the recorded outcome stands for what comes after
LATENT_NOISE = 0.3  # imagined latents are off by about this much; a judge that only knew clean ones would be fooled


def train_head(
    judge: LatentJudge,
    sources: Sequence[PairSource],
    held: Mapping[str, PairSource],
    run: FitConfig,
    folder: Path,
    *,
    replays: PairSource | None = None,
    kinds: np.ndarray | None = None,
    trace: float = 1.0,
    name: str = "judge",
) -> LatentJudge:
    """Train a LatentJudge; whole held-out episodes then set its threshold. Numbers go to ``metrics.json``.

    Args:
        judge: to begin with, or to go on from; trained in place.
        sources: each gives an equal share of every batch.
        held: held-out clips by a prefix of their numbers' names.
        run: how long and how fast.
        folder: resumes what it holds.
        replays: held-out clips of whole episodes, by which the threshold is set; None leaves it alone.
        kinds: whose each of those episodes is, for a table of judged and true success.
        trace: lambda of progress's TD(lambda) targets; 1 is the recorded outcome alone.
        name: shown in the progress bar.

    Returns:
        The trained judge.
    """

    def evaluate(ema: nn.Module) -> dict[str, float]:
        assert isinstance(ema, LatentJudge)
        return {f"{prefix}{k}": v for prefix, source in held.items() for k, v in errors(ema, source).items()}

    torch.manual_seed(run.seed)  # dropout and each head's share of a batch
    ema = fit(judge, _loss(judge, sources, run.batch, trace), run, folder, evaluate=evaluate, name=name)
    assert isinstance(ema, LatentJudge)
    found = {} if replays is None or not len(replays) else _set_threshold(ema, replays, kinds)
    step = json.loads((folder / "metrics.json").read_text())["step"]  # a budget of seconds may end before run.steps
    write_json(folder / "metrics.json", {"step": step, **evaluate(ema), **found})
    return ema


def _loss(judge: LatentJudge, sources: Sequence[PairSource], batch: int, trace: float) -> Loss:
    """What :func:`imagine.train.fit.fit` minimises: equal shares of a batch from each source, latents made noisy."""
    cfg = judge.cfg.head.model_copy(update={"trace": trace})
    shares = [len(part) for part in np.array_split(np.arange(batch), len(sources))]

    def loss(step: int, generator: torch.Generator) -> tuple[Tensor, dict[str, Any]]:
        drawn = [
            (source, torch.randint(len(source), (share,), generator=generator).numpy())
            for source, share in zip(sources, shares, strict=True)
        ]
        device = next(judge.parameters()).device
        clips = LabelledPairs.cat([source.at(rows).to(device) for source, rows in drawn])
        if trace < 1:
            target = torch.cat([_returns(judge.eval(), source, rows, cfg) for source, rows in drawn])
        else:
            target = cfg.discount**clips.chunks_left
        level = torch.rand(len(target), 1, 1, 1, generator=generator) * LATENT_NOISE
        noise = level * torch.randn(clips.latents[:, 1].shape, generator=generator)
        clips.latents[:, 1] += noise.to(device)
        words = judge.word_counts(clips.instruction).to(device)
        value = judge.train().loss(clips.latents, clips.proprio, words, clips.success, target)
        return value, {"base_rate": clips.success.float().mean()}

    return loss


def _set_threshold(judge: LatentJudge, replays: PairSource, kinds: np.ndarray | None) -> dict[str, Any]:
    """Set the threshold by whole episodes; returns what is known of it."""
    label = replays.at(np.arange(len(replays))).success.numpy()
    best, success = best_of_episodes(probabilities(judge, replays)[:, 0], label, replays.episode)
    threshold, how = fit_threshold(best, success, default=judge.cfg.head.threshold)
    judge.calibrate(threshold, how)
    policies = {} if kinds is None else {"policies": by_kind(best > threshold, success, kinds)}
    return {"threshold": threshold, **how.numbers(), **policies}


def lambda_return(expected: Tensor, recorded: Tensor, within: Tensor, head: HeadConfig) -> Tensor:
    """What progress is trained towards: TD(lambda) over a few chunks, then the recorded outcome.

    Where an outcome is binary, the minimiser of the sequential Brier score is the value function; bootstrapping makes
    successive judgements of an episode agree.

    Args:
        expected: (n, L) float in [0, 1], what the judge expects now and 1 to L - 1 chunks later.
        recorded: (n, L) float in [0, 1], the discount to the power of chunks until the recorded success; 1 on success.
        within: (n, L) bool, False past the end of the episode or of its instruction; the first column is True.
        head: its ``discount`` and ``trace`` (lambda: 1 is the recorded outcome, 0 is what is expected a chunk later).

    Returns:
        (n,) float in [0, 1].

    Source: Sutton (1988), TD(lambda); arXiv:2604.20472 for success predictors.
    """
    target = recorded[:, -1]
    for k in range(recorded.shape[1] - 2, -1, -1):
        ahead = head.discount * ((1 - head.trace) * expected[:, k + 1] + head.trace * target)
        follows = within[:, k + 1] & (recorded[:, k] < 1)
        target = torch.where(follows, ahead, recorded[:, k])
    return target


@torch.no_grad()
def _returns(judge: LatentJudge, source: PairSource, rows: np.ndarray, head: HeadConfig) -> Tensor:
    """(n,) TD(lambda) targets of progress: partly the recorded outcome, partly what the judge itself expects."""
    device = next(judge.parameters()).device
    pairs, within = source.later(rows, LOOKAHEAD)
    pairs = pairs.to(device)
    logits = judge.logits(pairs.latents, pairs.proprio, judge.word_counts(pairs.instruction).to(device))
    expected = torch.sigmoid(logits.float()).mean(0)[:, 1].view(within.shape)
    recorded = (head.discount**pairs.chunks_left).view(within.shape)
    return lambda_return(expected, recorded, torch.from_numpy(within).to(device), head)


@torch.no_grad()
def probabilities(judge: LatentJudge, source: PairSource) -> np.ndarray:
    """(n, 2) success probability and progress of every clip, as the judge reports them."""
    parts, device = [], next(judge.parameters()).device
    for rows in np.array_split(np.arange(len(source)), max(1, len(source) // 512)):
        clips = source.at(rows).to(device)
        words = judge.word_counts(clips.instruction).to(device)
        parts.append(judge.probabilities(clips.latents, clips.proprio, words).float().cpu())
    return torch.cat(parts).numpy()


def errors(judge: LatentJudge, source: PairSource) -> dict[str, float]:
    """How well the judge knows successes frame by frame, and how its progress follows the truth."""
    success, progress = probabilities(judge, source).T
    clips = source.at(np.arange(len(source)))
    label, near = clips.success.numpy(), (judge.cfg.head.discount**clips.chunks_left).numpy()
    follows = {}
    if np.std(progress) > 0 and np.std(near) > 0:
        follows = {"progress_correlation": float(np.corrcoef(progress, near)[0, 1])}
    return {
        "auroc": auroc(success, label),
        "accuracy": float(((success > judge.cfg.head.threshold) == label).mean()),
        "brier": float(np.square(success - label).mean()),
        **follows,
        "n": float(len(label)),
    }


def best_of_episodes(p: np.ndarray, label: np.ndarray, episode: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Clips (n,) to episodes: the largest success probability in each, and whether it succeeded at any moment."""
    names, group = np.unique(episode, return_inverse=True)
    best, success = np.zeros(len(names)), np.zeros(len(names), bool)
    np.maximum.at(best, group, p)
    np.logical_or.at(success, group, label)
    return best, success
