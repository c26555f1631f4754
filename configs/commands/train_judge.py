"""Trains the success head, half on real frames and half on imagined ones with the real outcome as their label."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from imagine.configs.commands.imagined import Imagined, imagined
from imagine.data.windows import Windows, WindowSampler
from imagine.files import write_json
from imagine.model.model import WorldActionModel
from imagine.model.text import vocabulary
from imagine.rewards.latent import HeadConfig, JudgeConfig, LatentJudge
from imagine.train.fit import FitConfig, fit
from imagine.types import DatasetError

DREAMS = 9000  # real frames to dream on from; each gives up to three imagined frames with real labels
REPLAY_CHUNKS = 8  # as long as an evaluated episode
LOOKAHEAD = 3  # chunks over which progress is a TD(lambda) return; the recorded outcome stands for what comes after
LATENT_NOISE = 0.3  # imagined latents are off by about this much; a judge that only knew clean ones would be fooled


def train_judge(
    model: WorldActionModel, windows: Windows, head: HeadConfig, run: FitConfig, folder: Path
) -> LatentJudge:
    """Fit a LatentJudge to every frame's success label; held-out accuracy and error rates go to ``metrics.json``.

    Raises:
        DatasetError: the dataset does not record ``next.success``.
    """
    channels, height, width = model.chunk_shapes["video"][1:]
    words = vocabulary(windows.instructions)
    judge = LatentJudge(
        JudgeConfig(
            head=head, channels=channels, height=height, width=width, proprio=model.body.proprio_dim, words=words
        )
    )
    if not windows.batch(windows.rows("train")[:1]).success_valid.all():
        raise DatasetError(
            "the dataset records no `next.success`, so no judge can be trained; drop `judge` from --stages."
        )
    rows, held = windows.rows("train"), windows.rows("held_out")
    sampler = WindowSampler(rows, run.batch // 2, seed=run.seed)
    held = held if len(held) else rows  # a dataset of one episode holds nothing out
    held = held[np.random.default_rng(0).permutation(len(held))[:2000]]
    pick = np.random.default_rng(run.seed).permutation(len(rows))[:DREAMS]
    bank, held_bank = imagined(model, windows, rows[pick]), imagined(model, windows, held[:600])
    dreamt = WindowSampler(np.arange(len(bank.rows)), run.batch // 2, seed=run.seed)

    def returns(rows: np.ndarray) -> Tensor:
        """(n,) TD(lambda) targets of progress: partly the recorded outcome, partly what the judge itself expects."""
        _, last = windows.episode_rows(rows)
        later = rows[:, None] + np.arange(LOOKAHEAD + 1) * model.body.chunk_frames
        within = later <= last[:, None]
        later = np.where(within, later, rows[:, None])
        latents, proprio, counts, _, recorded = inputs(later.ravel())
        within &= (windows.instruction_ids(later.ravel()) == np.repeat(windows.instruction_ids(rows), LOOKAHEAD + 1)
                   ).reshape(within.shape)  # fmt: skip
        with torch.no_grad():
            expected = torch.sigmoid(judge.logits(latents, proprio, counts).float()).mean(0)[:, 1]
        shape = within.shape
        return lambda_return(expected.view(shape), recorded.view(shape), torch.from_numpy(within), head)

    def inputs(rows: np.ndarray, seen: tuple[Tensor, Tensor] | None = None) -> tuple[Tensor, ...]:
        """First and newest frame (real ones, or those ``seen`` in a dream), words, success and progress of windows."""
        batch = windows.batch(rows)
        now = windows.context_frames - 1
        proprio = model.normalise_proprio(torch.stack([batch.start_proprio, batch.proprio[:, now]], 1))
        latents = torch.stack([batch.start_video.float(), batch.video[:, now].float()], 1)
        if seen is not None:
            latents[:, 1], proprio[:, 1] = seen[0].float(), seen[1]
        counts = judge.word_counts([windows.instructions[i] for i in batch.instruction_id])
        chunks = batch.success_in * model.body.control_hz / model.body.chunk_actions
        return latents, proprio, counts, batch.success_now, head.discount**chunks

    def of(bank: Imagined, at: np.ndarray) -> tuple[Tensor, ...]:
        return inputs(bank.rows[at], (bank.latents[at], bank.proprio[at]))

    def loss(step: int, generator: torch.Generator) -> tuple[Tensor, dict[str, float]]:
        judge.train()
        real, dreams = sampler.at(step), dreamt.at(step)
        both = zip(inputs(real), of(bank, dreams), strict=True)
        latents, proprio, counts, label, progress = (torch.cat(pair) for pair in both)
        if head.trace < 1:
            progress = returns(np.concatenate([real, bank.rows[dreams]]))
        level = torch.rand(len(label), 1, 1, 1, generator=generator) * LATENT_NOISE
        latents[:, 1] += level * torch.randn(latents[:, 1].shape, generator=generator)
        return judge.loss(latents, proprio, counts, label, progress), {"base_rate": label.float().mean().item()}

    @torch.no_grad()
    def evaluate(ema: nn.Module) -> dict[str, float]:
        assert isinstance(ema, LatentJudge)
        dreams = of(held_bank, np.arange(len(held_bank.rows)))
        on_dreams = {f"imagined_{k}": v for k, v in errors(ema, *dreams).items()}
        return errors(ema, *inputs(held)) | on_dreams

    ema = fit(judge, loss, run, folder, evaluate=evaluate, name="judge")
    assert isinstance(ema, LatentJudge)
    chains = windows.chains(1, "held_out")[:, 0]
    if len(chains) > 1:
        replayed = imagined(model, windows, chains, chunks=REPLAY_CHUNKS)
        latents, proprio, counts, label, _ = of(replayed, np.arange(len(replayed.rows)))
        with torch.no_grad():
            said = torch.sigmoid(ema.logits(latents, proprio, counts)).min(0).values[:, 0]
        threshold, found = calibrate(said.numpy(), label.numpy(), replayed.dream)
        ema.cfg = ema.cfg.model_copy(update={"head": head.model_copy(update={"threshold": threshold})})
        metrics = json.loads((folder / "metrics.json").read_text())
        write_json(folder / "metrics.json", {**metrics, **evaluate(ema), **found})
    return ema


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


def calibrate(said: np.ndarray, label: np.ndarray, dream: np.ndarray) -> tuple[float, dict[str, float]]:
    """The threshold at which whole dreams succeed as often as what they replay really did.

    One success anywhere makes an episode a success: false alarms add up over its chunks, and a missed success has more
    chances, so a threshold that is right frame by frame is not right here. Even dreams choose it, odd ones tell how
    well it does.

    Args:
        said: (M,) success probability of each imagined frame.
        label: (M,) bool, the real outcome there.
        dream: (M,) int, the dream each frame belongs to.

    Returns:
        The threshold, and on the odd dreams the rates of success, judged and real, and how often they disagree.
    """
    names, group = np.unique(dream, return_inverse=True)
    best, real = np.zeros(len(names)), np.zeros(len(names), bool)
    np.maximum.at(best, group, said)
    np.logical_or.at(real, group, label)
    even = names % 2 == 0
    order = np.sort(best[even])[::-1]
    hits = int(real[even].sum())
    edge = np.concatenate([[1.0], order, [0.0]])
    threshold = float(np.clip((edge[hits] + edge[hits + 1]) / 2, 0.05, 0.95))
    judged = best[~even] > threshold
    return threshold, {
        "threshold": threshold,
        "replay_judged": float(judged.mean()),
        "replay_real": float(real[~even].mean()),
        "replay_disagreement": float((judged != real[~even]).mean()),
        "replay_n": float((~even).sum()),
    }


def errors(
    judge: LatentJudge, latents: Tensor, proprio: Tensor, counts: Tensor, label: Tensor, progress: Tensor
) -> dict[str, float]:
    """How often the judge is wrong at its threshold, and how its progress follows the truth."""
    success, nearness = torch.sigmoid(judge.logits(latents, proprio, counts)).min(0).values.unbind(-1)
    said = success > judge.cfg.head.threshold
    yes, no = label.float().sum().clamp(min=1), (~label).float().sum().clamp(min=1)
    return {
        "accuracy": (said == label).float().mean().item(),
        "false_positive": float((said & ~label).sum() / no),
        "false_negative": float((~said & label).sum() / yes),
        "progress_correlation": float(torch.corrcoef(torch.stack([nearness, progress]))[0, 1]),
        "n": float(len(label)),
    }
