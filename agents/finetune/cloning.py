"""Behaviour cloning: a LoRA adapter that imitates recorded episodes, the policy that reinforcement learning begins at.

What it departs from: nothing; it is the POLICY part of the joint loss on one's own demonstrations. With ``everything``
it also imitates what no expert did, as a policy does whose demonstrations nobody filtered.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from pydantic import BaseModel, ConfigDict
from torch import Tensor

from imagine.agents.finetune.fitting import fit_adapter
from imagine.data.batches import WindowSampler
from imagine.data.windows import Windows
from imagine.model.model import WorldActionModel
from imagine.policy.adapter import Learner
from imagine.train.fit import FitConfig
from imagine.train.losses import JointConfig, policy_loss, to_tensors
from imagine.types import Context, DatasetError


class CloneConfig(BaseModel):
    """How the adapter is shaped and fitted."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    rank: int = 16
    everything: bool = False  # imitate failures and disturbances too
    fit: FitConfig = FitConfig(
        steps=1500, batch=64, lr=5e-4, warmup=50, decay=0.5, weight_decay=0.0, ema=0.99, log_every=50, eval_every=10**9
    )


def clone(model: WorldActionModel, windows: Windows, cfg: CloneConfig, folder: Path) -> Path:
    """Fit an adapter to the demonstrations among latent windows; ``model`` itself is not changed.

    Args:
        model: the base.
        windows: latent windows, of the model's own codec.
        cfg: adapter and fit.
        folder: run folder; resumes what it holds. The adapter is written to ``folder/adapter``.

    Returns:
        The adapter's folder.

    Raises:
        DatasetError: nothing in the windows may be imitated.
    """
    rows = windows.rows("train")
    rows = rows if cfg.everything else rows[windows.imitable(rows)]
    if not len(rows):
        raise DatasetError("no recorded action may be imitated (is_expert is False throughout); try --everything.")
    learner = Learner(model, rank=cfg.rank, seed=cfg.fit.seed)
    batches = WindowSampler(rows, cfg.fit.batch, cfg.fit.seed)

    def loss(step: int, generator: torch.Generator) -> tuple[Tensor, dict[str, float]]:
        context, chunk, masks = to_tensors(model, windows.batch(np.asarray(batches.at(step))))
        seen = newest_alone(context)
        assert chunk.action is not None
        valid = masks["action" if cfg.everything else "policy"]
        cache = learner.model.prefill(seen)
        return policy_loss(learner.model, seen, chunk.action, valid, cache, JointConfig(), generator), {}

    return fit_adapter(learner, loss, cfg.fit, folder, name="clone")


def newest_alone(context: Context) -> Context:
    """The context as a policy sees it on the robot: the newest frame, repeated."""
    t = context.video.shape[1]
    video = context.video[:, -1:].expand(-1, t, -1, -1, -1)
    return replace(context, video=video, proprio=context.proprio[:, -1:].expand(-1, t, -1))
