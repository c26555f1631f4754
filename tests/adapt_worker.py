"""One process of a sharded adaptation of the tiny DreamZero; tests/test_adapt.py starts two of them."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import torch
from conftest import randomise

from imagine.model.action_registers import RegisterConfig
from imagine.model.dit import DiTConfig, JointDiT
from imagine.train.adapt import adapt
from imagine.train.adapt_loss import AdaptConfig, Latents, adapt_loss
from imagine.train.fit import FitConfig
from imagine.train.fsdp import checkpoint_blocks, processes, shard
from imagine.wan.names import KEPT_FLOAT32

TINY_ZERO = DiTConfig(
    layers=3, heads=2, head_dim=20, ffn_dim=36, patch=(1, 2, 2), channels=4, text_dim=14, freq_dim=16, action_dim=2,
    action_patch=1, proprio_dim=3, see_last_frame=False, pooled_text=False, prediction="velocity", image_dim=10,
    condition_channels=5, block=2, first_alone=True, registers=RegisterConfig(action_dim=6, state_dim=9, hidden=22),
)  # fmt: skip
BATCH, LONG = 4, 3  # lanes of all processes together, observed latent frames


def zero(cfg: DiTConfig = TINY_ZERO) -> JointDiT:
    return randomise(JointDiT(cfg), scale=0.1)  # type: ignore[return-value]


def latents(lanes: slice = slice(None), seed: int = 0, batch: int = BATCH) -> Latents:
    g = torch.Generator().manual_seed(seed)

    def randn(*shape: int) -> torch.Tensor:
        return torch.randn(batch, *shape, generator=g)

    everything = torch.ones(batch, 5, dtype=torch.bool)
    return Latents(
        video=randn(LONG + 2, 4, 4, 6), state=randn(3), action=randn(5, 2), text=randn(7, 14),
        video_valid=everything[:, :2], action_valid=everything, policy_valid=everything,
        image=randn(3, 10), condition=randn(LONG + 2, 5, 4, 6),
    ).index(lanes)  # fmt: skip


def steps(n: int, **changes: object) -> FitConfig:
    about = {"steps": n, "batch": BATCH, "lr": 1e-2, "warmup": 1, "decay": 1e-9, "mixed_precision": "no", "ema": 0}
    return FitConfig(**{**about, "log_every": 1, "save_every": 1, **changes})


def train(folder: Path, cfg: AdaptConfig) -> tuple[list[float], dict[str, torch.Tensor]]:
    """Losses over all processes, and all weights."""
    dit, losses = zero(), []
    if cfg.fit.mixed_precision == "bf16":  # as load_dit leaves it
        for name, p in dit.named_parameters():
            p.data = p.data if KEPT_FLOAT32.search(name) else p.data.bfloat16()

    def loss(step: int, generator: torch.Generator) -> tuple[torch.Tensor, dict[str, float]]:
        process, world = processes()
        n = BATCH // world
        value, numbers = adapt_loss(dit, latents(slice(process * n, (process + 1) * n), step), cfg, generator)
        seen = value.detach().clone()
        if world > 1:
            torch.distributed.all_reduce(seen)
        losses.append(seen.item() / world)
        return value, numbers

    return losses, adapt(dit, loss, cfg, folder)


def gradients(recompute: bool) -> dict[str, torch.Tensor]:
    """Of one step over all processes, by name, whole."""
    dit, (process, world) = zero(), processes()
    if recompute:
        checkpoint_blocks(dit)
    if world > 1:
        shard(dit, torch.device("cpu"), half=False)
    n = BATCH // world
    mine = latents(slice(process * n, (process + 1) * n))
    adapt_loss(dit, mine, AdaptConfig(), torch.Generator().manual_seed(0))[0].backward()
    found = {name: p.grad for name, p in dit.named_parameters() if p.grad is not None}
    return {name: g.full_tensor() if world > 1 else g for name, g in found.items()}  # type: ignore[attr-defined]


if __name__ == "__main__":
    from accelerate import PartialState

    PartialState(cpu=True)
    torch.set_num_threads(1)
    out = Path(sys.argv[1])
    sharded = [gradients(recompute) for recompute in (False, True)]
    if processes()[0] == 0:
        torch.save(sharded, out / "gradients.pt")
    for method in ("lora", "full"):
        begun, _ = train(out / method, AdaptConfig(method=method, rank=2, fit=steps(1)))
        resumed, weights = train(out / method, AdaptConfig(method=method, rank=2, fit=steps(2)))
        losses = begun + resumed
        if processes()[0] == 0:
            torch.save({"losses": losses, "weights": weights}, out / f"{method}.pt")
    losses, _ = train(out / "half", AdaptConfig(rank=2, fit=steps(2, mixed_precision="bf16")))
    if processes()[0] == 0:
        torch.save(losses, out / "half.pt")
    torch.distributed.barrier()
    os._exit(0)  # all is written; now and then gloo's threads abort a process that is torn down ("terminate called …")
