"""Refining a dream: a LoRA adapter that makes DYNAMICS true where the policies to come will be.

What it departs from: nothing; it is joint training with the noise levels that DYNAMICS and INVERSE ask about,
most of it on frames that the model has just dreamt itself; on sequences where the model has a memory, which is learnt
nowhere else. The policy keeps the base's weights; only the dream is another.
"""

from __future__ import annotations

from pathlib import Path

import torch
from pydantic import BaseModel, ConfigDict
from torch import Tensor, nn

from imagine.agents.finetune.fitting import fit_adapter, training_rows
from imagine.data.batches import WindowSampler
from imagine.data.windows import Windows
from imagine.model.layers import LORA_IN_ALL
from imagine.model.model import WorldActionModel
from imagine.noise import Shares
from imagine.policy.adapter import Learner
from imagine.train.fit import FitConfig, Loss, generator_on
from imagine.train.losses import JointConfig, joint_loss, on_own_frames
from imagine.train.sequences import Usual, draw_sequences, sequence_loss


class RefineConfig(BaseModel):
    """How the adapter is shaped and fitted; without a memory, ``joint.chunks`` says nothing."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    rank: int = 12
    joint: JointConfig = JointConfig(
        shares=Shares(dynamics=0.85, inverse=0.15, joint=0, free=0),
        video_only=0,
        video_pure=0.95,
        policy_passes=0,
        context_noise=0.05,
        context_repeat=0.25,
        own_frames=0.67,
        own_chunks=4,
        chunks=(4,),
    )
    fit: FitConfig = FitConfig(
        steps=1000,
        batch=24,
        lr=1.5e-3,
        warmup=50,
        decay=0.5,
        weight_decay=0.0,
        ema=0.99,
        eval_every=250,
        save_every=250,
    )


def refine(model: WorldActionModel, windows: Windows, cfg: RefineConfig, folder: Path) -> Path:
    """Fit an adapter that dreams what latent windows show; ``model`` itself is not changed.

    Args:
        model: the base.
        windows: latent windows, of the model's own codec.
        cfg: adapter and fit.
        folder: run folder; resumes what it holds. The adapter is written to ``folder/adapter``.

    Returns:
        The adapter's folder.

    Raises:
        DatasetError: there is nothing to train on.
    """
    rows, held = training_rows(windows)
    learner = Learner(model, rank=cfg.rank, seed=cfg.fit.seed, targets=LORA_IN_ALL)
    batches = WindowSampler(rows, cfg.fit.batch, cfg.fit.seed)
    check = WindowSampler(held, 128, 1)

    @torch.no_grad()
    def held_out(ema: nn.Module) -> dict[str, float]:
        """The same loss on held-out windows, the same ones every time: dreamt in full, and from real frames alone."""
        assert isinstance(ema, WorldActionModel)
        sums: dict[str, list[float]] = {}
        for share in (0.0, 1.0):
            asked = cfg.joint.model_copy(update={"own_frames": share, "shares": Shares(inverse=0, joint=0, free=0)})
            for i in range(4):
                generator, at = torch.Generator().manual_seed(i), check.at(i)
                batch = on_own_frames(ema, windows, at, windows.batch(at), asked, generator)
                for name, value in joint_loss(ema, batch, asked, generator)[1].items():
                    sums.setdefault(f"{name}_{'own' if share else 'real'}", []).append(value)
        return {k: sum(v) / len(v) for k, v in sums.items()}

    loss = (_on_sequences if model.cfg.dit.decoder.memory else _on_windows)(learner.model, windows, batches, cfg.joint)
    return fit_adapter(learner, loss, cfg.fit, folder, name="refine", evaluate=held_out)


def _on_windows(model: WorldActionModel, windows: Windows, batches: WindowSampler, cfg: JointConfig) -> Loss:
    """Of single chunks."""

    def loss(step: int, generator: torch.Generator) -> tuple[Tensor, dict[str, float]]:
        at = batches.at(step)
        batch = on_own_frames(model, windows, at, windows.batch(at), cfg, generator)
        return joint_loss(model, batch, cfg, generator)

    return loss


def _on_sequences(model: WorldActionModel, windows: Windows, batches: WindowSampler, cfg: JointConfig) -> Loss:
    """Of as many chunks in a row as the longest sequence of ``cfg`` has."""
    device = model.device
    if device.type == "cuda":
        windows.to(device)
    usual, words = Usual.of(windows), model.text.tokenize(list(windows.instructions)).to(device)

    def loss(step: int, generator: torch.Generator) -> tuple[Tensor, dict[str, Tensor]]:
        drawn = draw_sequences(windows, batches.at(step), max(cfg.chunks), cfg, generator)
        given = {name: value.to(device) for name, value in drawn.items()}
        return sequence_loss(model, windows, words, given, cfg, usual, generator_on(device, generator))

    return loss
