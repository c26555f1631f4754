"""Teaches the success heads on whole dreams of many policies, labelled by what their actions did on the twin.

A head that only knew recorded behaviour takes a dream's faults for failures: a block that fades under a hand has still
been pushed. So it is shown such dreams with the truth, of good policies and of flawed ones, up to the first success, as
far as an evaluation watches.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from pydantic import BaseModel, ConfigDict
from torch import Tensor, nn

from imagine.configs.commands.train_judge import LATENT_NOISE, calibrate
from imagine.configs.commands.worlds import bar
from imagine.configs.material import FAST_LANES, rollouts
from imagine.data.processes import process_pool
from imagine.files import atomic_path, write_json
from imagine.model.model import WorldActionModel
from imagine.rewards.calibrate import auroc
from imagine.rewards.latent import LatentJudge
from imagine.train.fit import FitConfig, fit

WORKERS = 2
MOST = 20.0  # of a normalised latent; wild actions may drive a dream out of half precision


class RolloutConfig(BaseModel):
    """Whose dreams teach.

    Attributes:
        policies: see :func:`imagine.configs.material.rollouts`.
        episodes: of all policies together; those whose seed 5 divides are held out.
        chunks: per episode.
        first_seed: of the starts.
        blocks: on the table; where several numbers are given, parts of the episodes take turns.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    policies: tuple[str, ...] = ("base", "clumsy", "misled", "random")
    episodes: int = 256
    chunks: int = 6
    first_seed: int = 860_000
    blocks: tuple[int, ...] = (2,)


def train_rollouts(
    model: WorldActionModel, dreamer: str | Path, judge: LatentJudge, cfg: RolloutConfig, run: FitConfig, folder: Path
) -> LatentJudge:
    """Go on training a LatentJudge on rollouts; its threshold then makes held-out dreams succeed as often as the twin.

    Held-out numbers go to ``metrics.json``, what was rolled out to ``dreams-*.npz``.

    Args:
        model: dreams.
        dreamer: its folder.
        judge: to go on from.
        cfg: whose dreams.
        run: how long and how fast.
        folder: resumes what it holds.
    """
    made = dreams(dreamer, cfg, folder)
    latents = torch.from_numpy(np.clip(made["latents"], -MOST, MOST))
    done = made["label"]  # (N, T), by the end of each chunk
    ends = made["path"][:, :: (made["path"].shape[1] - 1) // done.shape[1]]
    proprio = torch.from_numpy(ends[..., : model.body.proprio_dim])
    before = np.concatenate([np.zeros((len(done), 1), bool), done[:, :-1]], 1)
    words = judge.word_counts(made["instruction"].tolist())
    held: np.ndarray = np.equal(made["seed"] % 5, 0)
    clips = np.argwhere(~before & ~held[:, None])
    near, wanted = nearness(done, judge.cfg.head.discount), torch.from_numpy(done)

    def inputs(i: np.ndarray, t: np.ndarray) -> tuple[Tensor, Tensor, Tensor]:
        pair = np.stack([np.zeros_like(t), t + 1], 1)
        return latents[i[:, None], pair].float(), proprio[i[:, None], pair], words[i]

    def loss(step: int, generator: torch.Generator) -> tuple[Tensor, dict[str, float]]:
        judge.train()
        pick = torch.randint(len(clips), (run.batch,), generator=generator).numpy()
        i, t = clips[pick].T
        seen, felt, told = inputs(i, t)
        level = torch.rand(len(i), 1, 1, 1, generator=generator) * LATENT_NOISE
        seen[:, 1] += level * torch.randn(seen[:, 1].shape, generator=generator)
        return judge.loss(seen, felt, told, wanted[i, t], torch.from_numpy(near[i, t])), {}

    @torch.no_grad()
    def said(ema: nn.Module, rows: np.ndarray) -> np.ndarray:
        """(n, T) success probability as the judge reports it, of its most doubtful head."""
        assert isinstance(ema, LatentJudge)
        steps = range(done.shape[1])
        each = [torch.sigmoid(ema.logits(*inputs(rows, np.full(len(rows), t)))).min(0).values[:, 0] for t in steps]
        return torch.stack(each, 1).numpy()

    def evaluate(ema: nn.Module) -> dict[str, float]:
        rows = np.flatnonzero(held)
        p, shown = said(ema, rows), ~before[held]
        brier = float(np.square(p - done[held])[shown].mean())
        return {"auroc": auroc(p[shown], done[held][shown]), "brier": brier, "n": float(shown.sum())}

    torch.manual_seed(run.seed)  # dropout and each head's share of a batch
    ema = fit(judge, loss, run, folder, evaluate=evaluate, name="rollouts")
    assert isinstance(ema, LatentJudge)
    rows = np.flatnonzero(held)
    threshold, found = verdicts(said(ema, rows), done[rows], made["kind"][rows])
    ema.cfg = ema.cfg.model_copy(update={"head": ema.cfg.head.model_copy(update={"threshold": threshold})})
    write_json(folder / "metrics.json", {**evaluate(ema), **found})
    return ema


def verdicts(p: np.ndarray, done: np.ndarray, kind: np.ndarray) -> tuple[float, dict[str, Any]]:
    """The threshold at which held-out dreams succeed as often as the twin, and how often a judge is wrong at it.

    Args:
        p: (N, T) success probability after each chunk.
        done: (N, T) bool, the truth.
        kind: (N,) whose dreams.
    """
    threshold, found = calibrate(p.ravel(), done.ravel(), np.repeat(np.arange(len(p)), p.shape[1]))
    judged = np.asarray(p.max(1) > threshold, bool).reshape(-1)
    true = done.max(1)
    wrong = {
        "false_positive": float((judged & ~true).sum() / max(1, (~true).sum())),
        "false_negative": float((~judged & true).sum() / max(1, true.sum())),
    }
    per = {
        str(k): {"judged": float(judged[np.isin(kind, [k])].mean()), "twin": float(true[np.isin(kind, [k])].mean())}
        for k in dict.fromkeys(kind.tolist())
    }
    return threshold, {**found, **wrong, "episodes": len(p), "policies": per}


def dreams(dreamer: str | Path, cfg: RolloutConfig, folder: Path) -> dict[str, np.ndarray]:
    """What :class:`imagine.configs.material.Rollouts` holds, by name; made in parts by processes, but for those there.

    Frames at the ends of chunks only (``latents``), proprioception of all (``path``), the twin's ``truths``, ``label``,
    ``seed``, ``kind`` and ``instruction``.
    """
    folder.mkdir(parents=True, exist_ok=True)
    seeds = range(cfg.first_seed, cfg.first_seed + cfg.episodes)
    size = FAST_LANES * len(cfg.policies)
    parts = [seeds[i : i + size] for i in range(0, len(seeds), size)]
    files = [folder / f"dreams-{part[0]}-{len(part)}.npz" for part in parts]
    jobs = [
        (part, cfg, cfg.blocks[i % len(cfg.blocks)], file)
        for i, (part, file) in enumerate(zip(parts, files, strict=True))
        if not file.is_file()
    ]
    if jobs:
        with (
            bar("dreaming for the judge") as tell,
            process_pool(min(WORKERS, len(jobs)), _wake, (str(dreamer),)) as pool,
        ):
            done = len(seeds) - sum(len(job[0]) for job in jobs)
            for count in pool.map(_dream, jobs):
                done += count
                tell(done, len(seeds))
    made = []
    for file in files:
        with np.load(file) as kept:
            made.append(dict(kept))
    return {name: np.concatenate([part[name] for part in made]) for name in made[0]}


_dreamer: tuple[WorldActionModel, str]


def _wake(dreamer: str) -> None:
    """Runs once in each process."""
    global _dreamer
    _dreamer = WorldActionModel.from_pretrained(dreamer), dreamer


def _dream(job: tuple[range, RolloutConfig, int, Path]) -> int:
    """Dream one part and write it whole; returns how many episodes it has."""
    seeds, cfg, blocks, file = job
    model, name = _dreamer
    r = rollouts(
        model, name, seeds, lambda done, of: None, kinds=cfg.policies, workers=0, chunks=cfg.chunks, fast=True,
        blocks=blocks,
    )  # fmt: skip
    with atomic_path(file) as temporary, open(temporary, "wb") as out:
        np.savez(
            out, latents=r.latents, path=r.path, truths=r.truths, label=r.label, seed=r.seeds, kind=r.kind,
            instruction=np.array(r.instruction),
        )  # fmt: skip
    return len(seeds)


def nearness(done: np.ndarray, discount: float) -> np.ndarray:
    """(N, T) float32 progress: the discount to the power of chunks until the first success; 0 where there is none."""
    first = np.where(done.any(1), done.argmax(1), 10**6)
    return np.asarray(discount ** np.clip(first[:, None] - np.arange(done.shape[1]), 0, 10**4), np.float32)
