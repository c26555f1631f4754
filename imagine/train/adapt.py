"""Teaching a model further questions, by adapters or whole, in one process or many: above all a DreamZero DYNAMICS."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from imagine.data.batches import WindowSampler
from imagine.data.windows import Windows
from imagine.extras import extra
from imagine.model.dit import JointDiT
from imagine.model.layers import LORA_IN_ALL
from imagine.model.model import WorldActionModel
from imagine.questions import QUESTIONS
from imagine.train.adapt_loss import AdaptConfig, window_loss
from imagine.train.fit import Loss, fit
from imagine.train.fsdp import checkpoint_blocks, processes, shard, whole_state
from imagine.types import DatasetError


def adapt(
    dit: JointDiT,
    loss: Loss,
    cfg: AdaptConfig,
    folder: Path,
    *,
    evaluate: Callable[[nn.Module], dict[str, float]] | None = None,
) -> dict[str, Tensor]:
    """Train a network in place, or resume; over all processes of an ``accelerate launch``.

    Args:
        dit: it has adapters inside and may be sharded afterwards; use what is returned.
        loss: (step, generator) to (loss, numbers to log), of ``dit``; the generator is the same in every process.
        cfg: how.
        folder: run folder, as for :func:`imagine.train.fit.fit`.
        evaluate: numbers on held-out data.

    Returns:
        All weights under the names of a plain JointDiT, adapters merged, on the CPU; empty but in process 0.
    """
    dit.requires_grad_(cfg.method == "full")
    if cfg.method == "lora":
        _put_adapters(dit, cfg)
    for p in dit.parameters():
        if p.requires_grad:  # the steps of bfloat16 are larger than those of learning
            p.data = p.data.float()
    if cfg.checkpointing:
        checkpoint_blocks(dit)
    if processes()[1] > 1:
        cuda = torch.cuda.is_available()
        device = torch.device("cuda", torch.cuda.current_device()) if cuda else torch.device("cpu")
        shard(dit, device, half=cfg.fit.mixed_precision == "bf16")
    fit(dit, loss, cfg.fit.model_copy(update={"ema": 0}), folder, evaluate=evaluate, name="adapt")
    return _merged(whole_state(dit))


def _put_adapters(dit: JointDiT, cfg: AdaptConfig) -> None:
    """Adapters in the blocks; registers train whole, as they say how noisy an action is."""
    with extra("train"):
        from peft import LoraConfig, inject_adapter_in_model

    lora = LoraConfig(r=cfg.rank, lora_alpha=cfg.rank, target_modules=list(LORA_IN_ALL), bias="none")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(cfg.fit.seed)
        inject_adapter_in_model(lora, dit)
    if dit.cfg.registers:
        dit.registers.requires_grad_(True)


def _merged(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Adapters (of scale 1) added to the layers that they change, under the names of these layers."""
    plain = {}
    for name, value in state.items():
        if ".lora_" in name:
            continue
        stem, inside, leaf = name.rpartition(".base_layer.")
        if inside and leaf == "weight":
            down, up = (state[f"{stem}.lora_{end}.default.weight"].flatten(1).float() for end in "AB")
            value = (value.float() + (up @ down).view_as(value)).to(value.dtype)
        plain[f"{stem}.{leaf}" if inside else name] = value
    return plain


def settle(model: WorldActionModel, weights: dict[str, Tensor], trained: Sequence[str]) -> None:
    """Put what :func:`adapt` returned into a model, which from now on answers what was trained as well."""
    with torch.device("meta"):
        dit = JointDiT(model.cfg.dit)
    dit.load_state_dict(weights, assign=True)
    dit.chunk_blocks = model.dit.chunk_blocks
    model.dit = dit.to(model.device).eval()
    answers = tuple(name for name in QUESTIONS if name in {*model.cfg.answers, *trained})
    model.cfg = model.cfg.model_copy(update={"answers": answers})
    model.answers = frozenset(QUESTIONS[name] for name in answers)


def adapt_model(model: WorldActionModel, windows: Windows, cfg: AdaptConfig, folder: Path) -> bool:
    """Teach a model the questions of ``cfg`` on latent windows, in place; all processes call it alike.

    Args:
        model: on this process's device; in process 0 it has learnt when this returns.
        windows: latent windows of its own codec.
        cfg: ``fit.batch`` counts the windows of all processes together.
        folder: run folder; resumes what it holds.

    Returns:
        Whether this process has the result, which process 0 has.

    Raises:
        DatasetError: there is nothing to train on.
    """
    rows, held = windows.rows("train"), windows.rows("held_out")
    if not len(rows):
        raise DatasetError("the dataset has no training window; record more or longer episodes.")
    process, of = processes()
    each = cfg.fit.batch // of
    some = 64 if model.temporal == 1 else each  # a video codec costs as much as the network
    batches, check = (
        WindowSampler(rows, cfg.fit.batch, cfg.fit.seed),
        WindowSampler(held if len(held) else rows, some, 1),
    )
    of_rows = window_loss(model, windows, cfg)

    def loss(step: int, generator: torch.Generator) -> tuple[Tensor, dict[str, float]]:
        return of_rows(batches.at(step)[process * each : (process + 1) * each], generator)

    @torch.no_grad()
    def held_out(_: Any) -> dict[str, float]:
        """The same loss on held-out windows, the same ones with the same noise every time."""
        sums: dict[str, float] = {}
        for i in range(4):
            for key, value in of_rows(check.at(i), torch.Generator().manual_seed(i))[1].items():
                sums[key] = sums.get(key, 0.0) + value / 4
        return sums

    weights = adapt(model.dit, loss, cfg, folder, evaluate=held_out)
    if weights:
        settle(model, weights, cfg.draws.answers)
    return bool(weights)
