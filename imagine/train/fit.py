"""One training loop for codec, joint model and heads: accelerate, EMA, warm-up/stable/decay, bit-exact resume.

A step's randomness depends on (seed, step) alone, so a run killed at any moment continues to the same weights.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

import torch
from pydantic import BaseModel, ConfigDict
from torch import Tensor, nn

from imagine.extras import extra
from imagine.files import recover_folder, replace_folder, write_json
from imagine.types import ImagineError


class FitConfig(BaseModel):
    """How long and how fast to train."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    steps: int = 10_000
    batch: int = 64
    lr: float = 1e-3
    warmup: int = 200  # steps
    decay: float = 0.3  # last share of the steps, over which the rate falls to nothing
    weight_decay: float = 0.05
    ema: float = 0.999  # 0: no average, and states hold only what trains, for models that fit into memory but once
    clip: float = 1.0  # gradient norm
    mixed_precision: Literal["no", "bf16", "fp16"] = "bf16"
    compile: bool = False  # fuse each block with torch.compile; needs a C++ compiler on a CPU
    log_every: int = 50
    eval_every: int = 1000
    save_every: int = 500
    seed: int = 0


def rate(step: int, cfg: FitConfig) -> float:
    """Learning rate at a step: linear warm-up, constant, linear decay (WSD, arXiv:2404.06395)."""
    start = cfg.steps * (1 - cfg.decay)
    fall = 1.0 if step < start else max(0.0, (cfg.steps - step) / max(1.0, cfg.steps - start))
    return cfg.lr * min(1.0, (step + 1) / max(1, cfg.warmup)) * fall


def step_generator(seed: int, step: int) -> torch.Generator:
    """A CPU generator for one training step; the same whatever happened before."""
    return torch.Generator().manual_seed((seed * 1_000_003 + step) % (2**63 - 1))


class _Step:
    """The step counter, checkpointed by accelerate beside weights, optimiser and random states."""

    def __init__(self) -> None:
        self.value = 0

    def state_dict(self) -> dict[str, int]:
        return {"step": self.value}

    def load_state_dict(self, state: dict[str, int]) -> None:
        self.value = int(state["step"])


def _groups(module: nn.Module, cfg: FitConfig) -> list[dict[str, Any]]:
    matrices = [p for p in module.parameters() if p.requires_grad and p.ndim > 1]
    vectors = [p for p in module.parameters() if p.requires_grad and p.ndim <= 1]
    return [{"params": matrices, "weight_decay": cfg.weight_decay}, {"params": vectors, "weight_decay": 0.0}]


def fit(
    module: nn.Module,
    loss: Callable[[int, torch.Generator], tuple[Tensor, dict[str, float]]],
    cfg: FitConfig,
    folder: Path,
    *,
    evaluate: Callable[[nn.Module], dict[str, float]] | None = None,
    publish: Callable[[nn.Module, dict[str, float]], None] | None = None,
    name: str = "train",
) -> nn.Module:
    """Train ``module`` in place until ``cfg.steps``, resuming whatever ``folder`` already holds.

    Args:
        module: its trainable parameters are optimised; the returned EMA copy is what to use. Over several processes
            it is sharded (:func:`imagine.train.fsdp.shard`) and has no EMA.
        loss: (step, generator) to (scalar loss, numbers to log); called inside autocast.
        cfg: how long and how fast.
        folder: ``state/`` (resume), ``log/`` (TensorBoard) and ``metrics.json``.
        evaluate: given the EMA module, numbers on held-out data.
        publish: given the EMA module and its newest numbers, writes what others load.
        name: shown in the progress bar.

    Returns:
        The exponential moving average of ``module`` (itself without one), in eval mode.

    Raises:
        ImagineError: the loss became NaN.
    """
    with extra("train"):
        from accelerate import Accelerator
        from accelerate.state import AcceleratorState
        from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn
        from torch.utils.tensorboard import SummaryWriter

    from imagine.train.fsdp import Shards

    folder.mkdir(parents=True, exist_ok=True)
    AcceleratorState._reset_state(reset_partial_state=True)  # one process may train twice, at two precisions
    acc = Accelerator(mixed_precision=cfg.mixed_precision, cpu=not torch.cuda.is_available())
    module.to(acc.device)
    optimiser = torch.optim.AdamW(_groups(module, cfg), lr=cfg.lr, betas=(0.9, 0.95), fused=True)
    ema = AveragedModel(module, multi_avg_fn=get_ema_multi_avg_fn(cfg.ema)) if cfg.ema else None
    best = module if ema is None else ema.module
    shards = Shards(module, optimiser) if ema is None else None
    optimiser = acc.prepare(optimiser)
    at = _Step()
    if ema is not None:
        acc.register_for_checkpointing(at, ema, _Weights(module))
    state, first_process = folder / "state", acc.is_main_process
    if first_process:
        recover_folder(state)
    acc.wait_for_everyone()
    if state.is_dir():
        if shards is None:
            acc.load_state(str(state))
        else:
            at.value = shards.load(state)

    def write(to: Path) -> None:
        if shards is None:
            acc.save_state(str(to))
        else:
            shards.save(to, at.value)

    log = SummaryWriter(str(folder / "log")) if first_process else None
    with progress(name, cfg.steps, at.value, silent=not first_process) as tell:
        begin, first, seen = time.time(), at.value, dict[str, list[float]]()
        while at.value < cfg.steps:
            for group in optimiser.param_groups:
                group["lr"] = rate(at.value, cfg)
            with acc.autocast():
                value, numbers = loss(at.value, step_generator(cfg.seed, at.value))
            if not torch.isfinite(value):
                raise ImagineError(f"{name}: loss is {value.item()} at step {at.value}; lower lr (now {cfg.lr}).")
            acc.backward(value)
            acc.clip_grad_norm_(module.parameters(), cfg.clip)  # unscales fp16 gradients first
            optimiser.step()
            optimiser.zero_grad()
            if ema is not None:
                # A short memory at first: an average over 1000 steps would hide the first minutes of learning.
                ema.multi_avg_fn = get_ema_multi_avg_fn(min(cfg.ema, (1 + at.value) / (10 + at.value)))
                ema.update_parameters(module)
            at.value += 1
            for key, number in ({"loss": value.item()} | numbers).items():
                seen.setdefault(key, []).append(number)
            if at.value % cfg.log_every == 0 or at.value == cfg.steps:
                means = {k: sum(v) / len(v) for k, v in seen.items()}
                speed = (at.value - first) * cfg.batch / (time.time() - begin)
                _write_scalars(log, name, means, at.value)
                tell(at.value, means, speed)
                seen.clear()
            done = at.value == cfg.steps
            if evaluate is not None and (at.value % cfg.eval_every == 0 or done):
                numbers = evaluate(best.eval())
                _write_scalars(log, f"{name}/held-out", numbers, at.value)
                tell(at.value, numbers, None)
                numbers = {"step": at.value, **numbers}
                if first_process:
                    write_json(folder / "metrics.json", numbers)
                if publish is not None:
                    publish(best, numbers)
            if at.value % cfg.save_every == 0 or done:
                save_state(acc, folder, write)
    if log is not None:
        log.close()
    return best.eval()


def _write_scalars(log: Any, name: str, numbers: dict[str, float], step: int) -> None:
    if log is not None:
        for key, number in numbers.items():
            log.add_scalar(f"{name}/{key}", number, step)


class _Weights:
    """Raw weights of the module under training (compiled or not), saved beside its average."""

    def __init__(self, module: nn.Module):
        self.module = module

    def state_dict(self) -> dict[str, Tensor]:
        return self.module.state_dict()

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        self.module.load_state_dict(state)


def save_state(acc: Any, folder: Path, write: Callable[[Path], None]) -> None:
    """Write ``state/`` by rename, so that a kill at any moment leaves a whole one; all processes together."""
    import shutil

    new = folder / "state.new"  # the same for all processes, each of which writes its part
    if acc.is_main_process:
        shutil.rmtree(new, ignore_errors=True)
    acc.wait_for_everyone()
    write(new)
    acc.wait_for_everyone()
    if acc.is_main_process:
        replace_folder(new, folder / "state")


def columns() -> tuple[Any, ...]:
    """Columns of every progress bar: what, how far, since when, until when."""
    from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeElapsedColumn, TimeRemainingColumn

    what = TextColumn("{task.description}")
    return what, BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(), TimeRemainingColumn()


class progress:
    """A progress bar with ETA on stderr; plain lines where stderr is a file."""

    def __init__(self, name: str, total: int, done: int = 0, *, silent: bool = False):
        from rich.console import Console
        from rich.progress import Progress

        self.console = Console(stderr=True, width=None if Console(stderr=True).is_terminal else 220, quiet=silent)
        self.bar = Progress(*columns(), console=self.console, disable=not self.console.is_terminal)
        self.name, self.task = name, self.bar.add_task(name, total=total, completed=done)

    def __enter__(self) -> Callable[[int, dict[str, float], float | None], None]:
        self.bar.start()
        return self._tell

    def _tell(self, step: int, numbers: dict[str, float], speed: float | None) -> None:
        text = "  ".join(f"{k} {v:.4g}" for k, v in numbers.items())
        rate = f"  {speed:.0f}/s" if speed is not None else ""
        self.bar.update(self.task, completed=step)
        self.console.print(f"{self.name} {step}  {text}{rate}", highlight=False, soft_wrap=True)

    def __exit__(self, *_: object) -> None:
        self.bar.stop()
