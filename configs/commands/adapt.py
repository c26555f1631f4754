"""``imagine adapt``: teach a model questions on a dataset, by LoRA or in full, on one GPU or many."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from imagine.configs.commands.common import Common, Words, console
from imagine.configs.defaults import MODEL
from imagine.configs.runfolder import RunFolder
from imagine.types import ImagineError

if TYPE_CHECKING:
    import numpy as np
    import torch
    from torch import Tensor

    from imagine.data.windows import Windows
    from imagine.model.model import WorldActionModel
    from imagine.train.adapt import AdaptConfig
    from imagine.train.memory_estimate import Plan

    Loss = Callable[[np.ndarray, torch.Generator], tuple[Tensor, dict[str, float]]]


@dataclass(frozen=True, kw_only=True)
class Args(Common):
    """Fine-tune a model so that it answers questions it was never trained for, as DYNAMICS of a DreamZero.

    Attributes:
        model: a shipped model's name, a folder, or a hub id; it is not changed.
        dataset: folder of a LeRobot dataset (v2.1 or v3.0); several, joined by commas, are used together.
        method: train low-rank adapters (merged at the end) or every weight of the network.
        questions: all, flash, or some of POLICY, DYNAMICS, INVERSE, JOINT, VIDEO.
        steps: training steps.
        batch: windows per step, on each GPU.
        lr: learning rate.
        rank: of the adapters.
        gradient_checkpointing: recompute blocks instead of keeping what happened inside them.
        plan: print the plan for a DreamZero of that size, or for the model, and stop.
        gpus: how many GPUs that plan is for; a run knows how many it has.
        name: name of the new model; it is written to OUT/NAME.
    """

    model: str = MODEL
    dataset: Words = ("datasets/g1",)
    method: Literal["lora", "full"] = "lora"
    questions: Words = ("all",)
    steps: int = 1000
    batch: int = 8
    lr: float = 1e-4
    rank: int = 16
    gradient_checkpointing: bool = False
    plan: Literal["", "5b", "14b", "model"] = ""
    gpus: int = 1
    name: str = "model"


def run(args: Args) -> dict[str, Any]:
    """Print the plan, then train; kill it at any moment and run it again to go on.

    Raises:
        ImagineError: an option is out of range, or the dataset is unusable.
    """
    for name in ("steps", "batch", "rank", "gpus"):
        if getattr(args, name) < 1:
            raise ImagineError(f"--{name} is {getattr(args, name)}, expected at least 1.")
    from imagine.train.adapt import draws

    asked = draws(args.questions)
    if args.plan in ("5b", "14b"):
        from imagine.train.memory_estimate import GIANTS

        dit, sample = GIANTS[args.plan]
        return plan_of(args, dit, sample, args.gpus).table()
    from imagine.model.model import WorldActionModel

    model = WorldActionModel.from_pretrained(args.model)
    if args.plan == "model":
        return plan_of(args, model.cfg.dit, sample_of(model), args.gpus).table()
    if not model.cfg.dit.registers and not (asked.video_only or any(asked.shares.model_dump().values())):
        raise ImagineError("--questions is POLICY alone; that is what imagine clone is for, or name another as well.")
    return train(args, model)


def plan_of(args: Args, dit: Any, sample: dict[str, int], gpus: int) -> Plan:
    """The plan for these options."""
    from imagine.train.memory_estimate import plan

    return plan(
        dit,
        **sample,  # type: ignore[arg-type]
        batch=args.batch,
        method=args.method,
        rank=args.rank,
        world_size=gpus,
        sharding="fsdp" if gpus > 1 else "none",
        checkpointing=args.gradient_checkpointing,
    )


def sample_of(model: WorldActionModel) -> dict[str, int]:
    """Sizes of a sample of a model's own robot, as :func:`imagine.train.memory_estimate.plan` takes them."""
    future, _, height, width = model.chunk_shapes["video"]
    words = {} if model.cfg.dit.registers else {"text": model.cfg.text.length}
    return {
        "frames": model.cfg.context_frames + future,
        "height": height,
        "width": width,
        "actions": model.body.chunk_actions,
        "chunk": future,
        **words,
    }


def train(args: Args, model: WorldActionModel) -> dict[str, Any]:
    """Train over all processes of an ``accelerate launch``; the first one writes."""
    import torch
    from accelerate import PartialState

    from imagine.configs.commands.latents import latent_windows
    from imagine.data.batches import WindowSampler
    from imagine.train.adapt import AdaptConfig, adapt, draws, settle
    from imagine.types import DatasetError

    state = PartialState(cpu=not torch.cuda.is_available())
    folder = RunFolder.of("adapt", args) if state.is_main_process else None
    console.quiet = not state.is_main_process
    table = plan_of(args, model.cfg.dit, sample_of(model), state.num_processes).table()
    for key, value in table.items():
        console.print(f"{key.replace('_', ' ')}: {value}", highlight=False, soft_wrap=True)
    state.wait_for_everyone()
    folder = folder or RunFolder.of("adapt", args)
    model.to(state.device)
    with state.main_process_first():  # the first one encodes, the others find it done
        windows, episodes = latent_windows(model, args.dataset, folder / "cache")
    rows, held = windows.rows("train"), windows.rows("held_out")
    if not len(rows):
        raise DatasetError("the dataset has no training window; record more or longer episodes.")
    cfg = AdaptConfig(
        draws=draws(args.questions), method=args.method, rank=args.rank, checkpointing=args.gradient_checkpointing
    )
    asked = {"steps": args.steps, "lr": args.lr, "seed": args.seed, "batch": args.batch * state.num_processes}
    if not torch.cuda.is_available():
        asked["mixed_precision"] = "no"
    cfg = cfg.model_copy(update={"fit": cfg.fit.model_copy(update=asked)})
    of_rows = loss_of(model, windows, cfg)
    some = 64 if model.temporal == 1 else args.batch  # a film codec costs as much as the network
    batches, check = WindowSampler(rows, cfg.fit.batch, args.seed), WindowSampler(held if len(held) else rows, some, 1)
    mine = slice(state.process_index * args.batch, (state.process_index + 1) * args.batch)

    def loss(step: int, generator: torch.Generator) -> tuple[Tensor, dict[str, float]]:
        return of_rows(batches.at(step)[mine], generator)

    @torch.no_grad()
    def held_out(_: Any) -> dict[str, float]:
        """The same loss on held-out windows, the same ones with the same noise every time."""
        sums: dict[str, float] = {}
        for i in range(4):
            for key, value in of_rows(check.at(i), torch.Generator().manual_seed(i))[1].items():
                sums[key] = sums.get(key, 0.0) + value / 4
        return sums

    weights = adapt(model.dit, loss, cfg, folder / "fit", evaluate=held_out)
    out = folder / args.name
    answer: dict[str, Any] = {"model": str(out), "episodes": episodes, "windows": len(windows)}
    if state.is_main_process:
        settle(model, weights, cfg.draws.answers)
        model.save_pretrained(out)
        answer |= {"answers": ",".join(model.cfg.answers), "plan": table["verdict"]}
        folder.save_metrics(answer)
    state.wait_for_everyone()
    if not state.is_main_process:
        raise SystemExit(0)  # one process answers
    return answer


def loss_of(model: WorldActionModel, windows: Windows, cfg: AdaptConfig) -> Loss:
    """What a batch of windows costs: our own joint loss, or :func:`imagine.train.adapt.adapt_loss` of a Wan model."""
    from imagine.noise import Shares
    from imagine.train.adapt import adapt_loss, from_windows
    from imagine.train.losses import JointConfig, joint_loss

    if model.cfg.dit.registers:
        return lambda rows, generator: adapt_loss(model.dit, from_windows(model, windows.batch(rows)), cfg, generator)
    shares = cfg.draws.shares if cfg.draws.video_only < 1 else Shares()  # then no level of the square is drawn
    joint = JointConfig(shares=shares, video_only=cfg.draws.video_only, policy_passes=int(cfg.draws.policy))
    return lambda rows, generator: joint_loss(model, windows.batch(rows), joint, generator)
