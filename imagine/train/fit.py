"""One training loop for codec, joint model and heads: accelerate, EMA, warm-up/stable/decay, bit-exact resume.

A step's randomness depends on (seed, step) alone, so a run killed at any moment continues to the same weights. A run
with a budget of seconds continues as well, and ends when they are used up, but how far it gets depends on the machine.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

import torch
from pydantic import BaseModel, ConfigDict
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from imagine.extras import extra
from imagine.files import named_errors, recover_folder, remove, replace_folder, write_json
from imagine.precision import has_bfloat16
from imagine.progress import Progress
from imagine.seeds import Stream, derive
from imagine.train.replay import Replay, Replayable
from imagine.types import CheckpointMismatch, ImagineError

Loss = Callable[[int, torch.Generator], tuple[Tensor, dict[str, Any]]]
"""Of a step and its randomness: the loss, and numbers to log, each a float or a tensor of one number."""


class FitConfig(BaseModel):
    """How long and how fast to train."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    steps: int = 10_000
    seconds: float = 0.0  # budget, over all resumes, by which rate and end go if it is used up before `steps`; 0: none
    pause: float = 0.0  # seconds after which a call evaluates, saves and returns, to be called again; 0: never
    batch: int = 64
    lr: float = 1e-3
    warmup: int = 200  # steps
    decay: float = 0.3  # last share of the steps, over which the rate falls to nothing
    weight_decay: float = 0.05
    ema: float = 0.999  # 0: no average, and states hold only what trains, for models that fit into memory but once
    clip: float = 1.0  # gradient norm
    mixed_precision: Literal["no", "bf16", "fp16"] = "bf16"
    replay: bool = False  # on a GPU, passes of a loss that can be replayed as one graph (`imagine.train.replay`)
    log_every: int = 50
    eval_every: int = 1000
    save_every: int = 500  # steps
    save_seconds: float = 60.0  # or seconds, whichever come first, but never more than a twentieth of the time
    seed: int = 0


def rate(step: int, cfg: FitConfig, elapsed: float = 0.0) -> float:
    """Learning rate at a step: linear warm-up, constant, linear decay (WSD, arXiv:2404.06395).

    The decay follows the steps or, of a run with a budget, the seconds that have elapsed, whichever are further on.
    """
    start = cfg.steps * (1 - cfg.decay)
    fall = 1.0 if step < start else max(0.0, (cfg.steps - step) / max(1.0, cfg.steps - start))
    if cfg.seconds and cfg.decay:
        fall = min(fall, max(0.0, (1 - elapsed / cfg.seconds) / cfg.decay))
    return cfg.lr * min(1.0, (step + 1) / max(1, cfg.warmup)) * fall


def step_generator(seed: int, step: int) -> torch.Generator:
    """A CPU generator for one training step; the same whatever happened before."""
    return torch.Generator().manual_seed(derive(seed, step, Stream.TRAIN))


def generator_on(device: torch.device, generator: torch.Generator) -> torch.Generator:
    """A generator on another device, seeded by a CPU generator's next number: large noise is drawn where it is used."""
    seed = int(torch.randint(2**62, (), generator=generator))
    return torch.Generator(device).manual_seed(seed)


def _groups(module: nn.Module, cfg: FitConfig) -> list[dict[str, Any]]:
    matrices = [p for p in module.parameters() if p.requires_grad and p.ndim > 1]
    vectors = [p for p in module.parameters() if p.requires_grad and p.ndim <= 1]
    return [{"params": matrices, "weight_decay": cfg.weight_decay}, {"params": vectors, "weight_decay": 0.0}]


class _Run:
    """A module under training: its optimiser, its average, how far it is, and all of it on disk."""

    def __init__(self, module: nn.Module, cfg: FitConfig, folder: Path, name: str) -> None:
        with extra("train"):
            from accelerate import Accelerator
            from accelerate.state import AcceleratorState
            from torch.utils.tensorboard import SummaryWriter

        from imagine.train.fsdp import Shards

        folder.mkdir(parents=True, exist_ok=True)
        AcceleratorState._reset_state(reset_partial_state=True)  # one process may train twice, at two precisions
        cpu = not torch.cuda.is_available()
        emulated = cpu and cfg.mixed_precision == "bf16" and not has_bfloat16("cpu")
        whole = all(p.dtype == torch.float32 for p in module.parameters())  # halved weights cannot do without autocast
        precision = "no" if emulated and whole else cfg.mixed_precision
        self.acc = Accelerator(mixed_precision=precision, cpu=cpu)
        module.to(self.acc.device)
        self.module, self.cfg, self.folder, self.name, self.step = module, cfg, folder, name, 0
        optimiser = torch.optim.AdamW(_groups(module, cfg), lr=cfg.lr, betas=(0.9, 0.95), fused=True)
        self.ema = AveragedModel(module, multi_avg_fn=get_ema_multi_avg_fn(cfg.ema)) if cfg.ema else None
        self.best: nn.Module = module if self.ema is None else self.ema.module
        self.shards = Shards(module, optimiser) if self.ema is None else None
        self.spent = 0.0  # seconds that earlier processes worked on this run
        self.optimiser = self.acc.prepare(optimiser)
        if self.ema is not None:
            self.acc.register_for_checkpointing(self, self.ema, _Weights(module))
        self.first = self.acc.is_main_process
        self._resume(folder / "state")
        self.log = SummaryWriter(str(folder / "log")) if self.first else None
        self.replay: Replay | None = None
        self.begin, self.begin_step, self.seen = time.monotonic(), self.step, dict[str, list[float | Tensor]]()
        self.elapsed = self.spent
        self.saved, self.saving = self.elapsed, 0.0  # when last, in seconds of the run; how many that took

    def state_dict(self) -> dict[str, float]:
        """What accelerate saves of this beside weights, optimiser and random states."""
        return {"step": self.step, "elapsed": self.elapsed}

    def load_state_dict(self, state: dict[str, float]) -> None:
        """Inverse of :meth:`state_dict`."""
        self.step, self.spent = int(state["step"]), float(state.get("elapsed", 0.0))

    @property
    def share(self) -> float:
        """How much of the run is done, in [0, 1]: of its steps or of its seconds, whichever are further on."""
        seconds = self.elapsed / self.cfg.seconds if self.cfg.seconds else 0.0
        return min(1.0, max(self.step / max(1, self.cfg.steps), seconds))

    @property
    def is_over(self) -> bool:
        """Whether all steps are done, or all seconds spent."""
        return self.step >= self.cfg.steps or bool(self.cfg.seconds and self.elapsed >= self.cfg.seconds)

    @property
    def is_paused(self) -> bool:
        """Whether this call is to end before the run is over."""
        return bool(self.cfg.pause and self.elapsed >= self.cfg.pause)

    def _clock(self) -> None:
        """Read the time once per step, so that all that is decided about a step agrees; in all processes alike."""
        self.elapsed = self.spent + time.monotonic() - self.begin
        if (self.cfg.seconds or self.cfg.pause or self.cfg.save_seconds) and self.acc.num_processes > 1:
            from accelerate.utils import broadcast

            self.elapsed = float(broadcast(torch.tensor(self.elapsed, device=self.acc.device)))

    def _resume(self, state: Path) -> None:
        if self.first:
            recover_folder(state)
        self.acc.wait_for_everyone()
        if not state.is_dir():
            return
        try:
            if self.shards is None:
                self.acc.load_state(str(state))
            else:
                self.step = self.shards.load(state)
        except Exception as error:  # each library has its own for a damaged file
            said = (str(error) or type(error).__name__).split("\n")[0][:200]
            raise CheckpointMismatch(
                f"{state} is damaged or of another model ({said}); delete it, and training starts again."
            ) from error

    def save(self) -> None:
        """Write ``state/``."""
        begin = time.monotonic()

        def write(to: Path) -> None:
            if self.shards is None:
                self.acc.save_state(str(to))
            else:
                self.shards.save(to, self.step)

        save_state(self.acc, self.folder, write)
        self.saved, self.saving = self.elapsed, time.monotonic() - begin

    @property
    def is_save_due(self) -> bool:
        """Whether so many steps, or so much time, is what a kill would cost now."""
        wait = max(self.cfg.save_seconds, 20 * self.saving)
        return self.due(self.cfg.save_every) or bool(self.cfg.save_seconds and self.elapsed >= self.saved + wait)

    def advance(self, loss: Loss) -> None:
        """One step of the optimiser, and of the average."""
        for group in self.optimiser.param_groups:
            group["lr"] = rate(self.step, self.cfg, self.elapsed)
        generator = step_generator(self.cfg.seed, self.step)
        if self.replay is None and self.cfg.replay and self.acc.device.type == "cuda" and isinstance(loss, Replayable):
            self.replay = Replay(loss, self.module, self.acc.device, self.acc.autocast)
        if self.replay is not None:
            value, numbers = self.replay(self.step, generator)
        else:
            with self.acc.autocast():
                value, numbers = loss(self.step, generator)
            self.acc.backward(value)
        self.acc.clip_grad_norm_(self.module.parameters(), self.cfg.clip)  # unscales fp16 gradients first
        self.optimiser.step()
        if self.replay is None:
            self.optimiser.zero_grad()
        if self.ema is not None:
            # A short memory at first: an average over 1000 steps would hide the first minutes of learning.
            share = min(self.cfg.ema, (1 + self.step) / (10 + self.step))
            self.ema.multi_avg_fn = get_ema_multi_avg_fn(share)
            self.ema.update_parameters(self.module)
        self.step += 1
        self._clock()
        self.newest = value.detach()
        for key, number in ({"loss": self.newest} | numbers).items():
            self.seen.setdefault(key, []).append(number)

    def check(self) -> None:
        """Refuse a loss that is no number; on a GPU only where something follows from it, for to look is to wait."""
        cfg = self.cfg
        if self.newest.is_cuda and not any(map(self.due, (cfg.log_every, cfg.eval_every, cfg.save_every))):
            return
        if not torch.isfinite(self.newest):
            raise ImagineError(
                f"{self.name}: loss is {self.newest.item()} at step {self.step - 1}; lower lr (now {cfg.lr})."
            )

    def due(self, every: int) -> bool:
        """Whether something that happens every so many steps, and at the end of a call, happens now."""
        return self.step % every == 0 or self.is_over or self.is_paused

    def means(self) -> tuple[dict[str, float], float]:
        """What was logged since the last call, averaged, and samples per second."""
        means = {k: sum(map(float, v)) / len(v) for k, v in self.seen.items()}
        self.seen.clear()
        return means, (self.step - self.begin_step) * self.cfg.batch / (time.monotonic() - self.begin)

    def write_scalars(self, name: str, numbers: dict[str, float]) -> None:
        """Into TensorBoard's files."""
        if self.log is not None:
            for key, number in numbers.items():
                self.log.add_scalar(f"{name}/{key}", number, self.step)


def fit(
    module: nn.Module,
    loss: Loss,
    cfg: FitConfig,
    folder: Path,
    *,
    evaluate: Callable[[nn.Module], dict[str, float]] | None = None,
    publish: Callable[[nn.Module, dict[str, float]], None] | None = None,
    on_share: Callable[[float], None] | None = None,
    name: str = "train",
) -> nn.Module:
    """Train ``module`` in place until ``cfg.steps`` or ``cfg.seconds``, resuming whatever ``folder`` already holds.

    Args:
        module: its trainable parameters are optimised; the returned EMA copy is what to use. Over several processes
            it is sharded (:func:`imagine.train.fsdp.shard`) and has no EMA.
        loss: (step, generator) to (scalar loss, numbers to log); called inside autocast.
        cfg: how long and how fast.
        folder: ``state/`` (resume), ``log/`` (TensorBoard) and ``metrics.json``.
        evaluate: given the EMA module, numbers on held-out data.
        publish: given the EMA module and its newest numbers, writes what others load.
        on_share: told before each step how much of the run is done, in [0, 1], for losses that change as it goes on.
        name: shown in the progress bar.

    Returns:
        The exponential moving average of ``module`` (itself without one), in eval mode; trained only so far where
        ``cfg.pause`` ended the call.

    Raises:
        ImagineError: the loss became NaN.
    """
    run = _Run(module, cfg, folder, name)
    with Progress(name, cfg.steps, run.step, silent=not run.first) as on_progress:
        while not run.is_over and not run.is_paused:
            if on_share is not None:
                on_share(run.share)
            run.advance(loss)
            run.check()
            if run.due(cfg.log_every):
                means, speed = run.means()
                run.write_scalars(name, means)
                on_progress.report(run.step, means, speed)
            if run.is_save_due:
                run.save()
            if evaluate is not None and run.due(cfg.eval_every):
                numbers = evaluate(run.best.eval())
                run.write_scalars(f"{name}/held-out", numbers)
                on_progress.report(run.step, numbers)
                numbers = {"step": run.step, **numbers}
                if run.first:
                    write_json(folder / "metrics.json", numbers)
                if publish is not None:
                    publish(run.best, numbers)
    if run.log is not None:
        run.log.close()
    return run.best.eval()


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
    new = folder / "state.new"  # the same for all processes, each of which writes its part
    if acc.is_main_process:
        remove(new)
    acc.wait_for_everyone()
    with named_errors(folder / "state"):
        write(new)
    acc.wait_for_everyone()
    if acc.is_main_process:
        replace_folder(new, folder / "state")
