"""Filtered behaviour cloning: act in the dream, keep what the judge calls a success, imitate it with a LoRA adapter.

What it is: the baseline that every RL method has to beat. What it departs from: nothing is learnt from failures, and
all chunks of a success count the same.
Source: Ctrl-World (arXiv:2510.10125) fine-tunes on judged imagined successes; LoRA: arXiv:2106.09685.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from pydantic import BaseModel, ConfigDict
from torch import Tensor, nn

from imagine.fit import FitConfig, fit
from imagine.losses import JointConfig, policy_loss
from imagine.model import WorldActionModel
from imagine.types import Context, ImagineError
from policy.policy import JointPolicy

from ..rollout import EpisodeRecord

TARGETS = ("to_q", "to_k", "to_v", "to_out.0", "net.0.proj", "net.2")


class BCConfig(BaseModel):
    """How the adapter is shaped and fitted."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    rank: int = 16
    fit: FitConfig = FitConfig(
        steps=300, batch=64, lr=3e-4, warmup=20, decay=0.5, weight_decay=0.0, ema=0.98, log_every=50, eval_every=10**9
    )


def keep(records: Sequence[EpisodeRecord]) -> list[EpisodeRecord]:
    """Judged successes in dreams that stayed believable to the end."""
    return [r for r in records if r.success and not r.unbelievable]


def filtered_bc(model: WorldActionModel, records: Sequence[EpisodeRecord], cfg: BCConfig, folder: Path) -> Path:
    """Fit a LoRA adapter to the chunks of successful episodes; the given model is not changed.

    Args:
        model: the base policy.
        records: episodes with observations and actions (``rollout(..., keep=True)``), failures among them or not.
        cfg: adapter and fit.
        folder: run folder; the adapter is written to ``folder/adapter``.

    Returns:
        The adapter's folder; :func:`policy.adapter.merged` applies it.

    Raises:
        ImagineError: no episode succeeded, so there is nothing to imitate.
    """
    from peft import LoraConfig, get_peft_model

    good = keep(records)
    if not good:
        raise ImagineError(
            f"none of {len(records)} imagined episodes was judged a success, so there is nothing to imitate; "
            "imagine more episodes, or with more candidates."
        )
    context, action = _examples(model, good)
    learner = copy.deepcopy(model)
    lora = LoraConfig(r=cfg.rank, lora_alpha=cfg.rank, target_modules=list(TARGETS), bias="none")
    torch.manual_seed(cfg.fit.seed)
    learner.requires_grad_(False)
    wrapped = get_peft_model(learner.dit, lora)  # type: ignore[arg-type]
    learner.dit = wrapped.base_model.model  # type: ignore[assignment]  # the same network, adapters inside

    def loss(step: int, generator: torch.Generator) -> tuple[Tensor, dict[str, float]]:
        rows = torch.randint(len(action), (cfg.fit.batch,), generator=generator)
        seen, chunk = context.index(rows), action[rows]
        all_valid = torch.ones(chunk.shape[:2], dtype=torch.bool, device=chunk.device)
        return policy_loss(learner, seen, chunk, all_valid, learner.prefill(seen), JointConfig(), generator), {}

    ema = fit(learner, loss, cfg.fit, folder / "fit", name="improve")
    _save(wrapped, ema, folder / "adapter")
    return folder / "adapter"


@torch.no_grad()
def _examples(model: WorldActionModel, records: Sequence[EpisodeRecord]) -> tuple[Context, Tensor]:
    policy = JointPolicy(model)
    flat = [(o, a) for r in records for o, a in zip(r.observations, r.actions, strict=True)]
    parts = []
    for begin in range(0, len(flat), 256):
        rows = [o for o, _ in flat[begin : begin + 256]]
        parts.append(policy.context({k: np.stack([r[k] for r in rows]) for k in rows[0]}))
    context = Context(*(torch.cat([getattr(p, f) for p in parts]).clone() for f in ("video", "proprio", "text")))
    actions = torch.from_numpy(np.stack([a for _, a in flat])).to(model.device)
    return context, model.normalise_action(actions).clone()


def _save(wrapped: nn.Module, ema: nn.Module, folder: Path) -> None:
    from peft import get_peft_model_state_dict
    from safetensors.torch import save_file

    own = get_peft_model_state_dict(wrapped)  # type: ignore[arg-type]
    average = dict(ema.dit.named_parameters())  # type: ignore[union-attr, operator]
    state = {}
    for name in own:
        inner = name.removeprefix("base_model.model.").replace(".weight", ".default.weight")
        state[name] = average[inner].detach().cpu().half().contiguous()
    folder.mkdir(parents=True, exist_ok=True)
    wrapped.peft_config["default"].save_pretrained(str(folder))  # type: ignore[union-attr, index, operator]
    save_file(state, folder / "adapter_model.safetensors.tmp")
    (folder / "adapter_model.safetensors.tmp").rename(folder / "adapter_model.safetensors")
