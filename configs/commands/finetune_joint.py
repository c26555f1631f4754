"""``imagine finetune joint``: teach a model questions on a dataset, by LoRA or in full, on one GPU or many."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from imagine.configs.commands.common import Common, Words, at_least, console
from imagine.configs.defaults import MODEL
from imagine.configs.runfolder import RunFolder
from imagine.types import ImagineError

if TYPE_CHECKING:
    from imagine.model.model import WorldActionModel


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
    """Print what training needs, then train; kill it at any moment and run it again to go on.

    Raises:
        ImagineError: an option is out of range, or the dataset is unusable.
    """
    at_least(args, steps=1, batch=1, rank=1, gpus=1)
    from imagine.train.adapt_loss import draws
    from imagine.train.memory_estimate import DREAMZERO, sample_sizes

    asked = draws(args.questions)
    if args.plan in ("5b", "14b"):
        return estimate_table(args, *DREAMZERO[args.plan], gpus=args.gpus)
    from imagine.model.model import WorldActionModel

    model = WorldActionModel.from_pretrained(args.model)
    if args.plan == "model":
        return estimate_table(args, model.cfg.dit, sample_sizes(model), gpus=args.gpus)
    if not model.cfg.dit.registers and not (asked.video_only or any(asked.shares.model_dump().values())):
        raise ImagineError(
            "--questions is POLICY alone; that is what imagine finetune bc is for, or name another as well."
        )
    return train(args, model)


def estimate_table(args: Args, dit: Any, sample: dict[str, int], *, gpus: int) -> dict[str, Any]:
    """What these options will need."""
    from imagine.train.memory_estimate import estimate

    how: dict[str, Any] = {"batch": args.batch, "method": args.method, "rank": args.rank, "world_size": gpus}
    how |= {"sharding": "fsdp" if gpus > 1 else "none", "checkpointing": args.gradient_checkpointing}
    return estimate(dit, **{**sample, **how}).table()


def train(args: Args, model: WorldActionModel) -> dict[str, Any]:
    """Train over all processes of an ``accelerate launch``; the first one writes."""
    import torch

    from imagine.configs.commands.finetuning import checked
    from imagine.extras import extra
    from imagine.train.adapt import adapt_model
    from imagine.train.adapt_loss import AdaptConfig, draws
    from imagine.train.latents import latent_windows
    from imagine.train.memory_estimate import sample_sizes

    with extra("train"):
        from accelerate import PartialState

    state = PartialState(cpu=not torch.cuda.is_available())
    folder = RunFolder.of("finetune-joint", args) if state.is_main_process else None
    console.quiet = not state.is_main_process
    table = estimate_table(args, model.cfg.dit, sample_sizes(model), gpus=state.num_processes)
    for key, value in table.items():
        console.print(f"{key.replace('_', ' ')}: {value}", highlight=False, soft_wrap=True)
    state.wait_for_everyone()
    folder = folder or RunFolder.of("finetune-joint", args)
    model.to(state.device)
    with state.main_process_first():  # the first one encodes, the others find it done
        windows, episodes = latent_windows(model, checked(folder, args.dataset, model), folder / "cache")
    how = {"draws": draws(args.questions), "method": args.method, "rank": args.rank}
    cfg = AdaptConfig(**how, checkpointing=args.gradient_checkpointing)  # type: ignore[arg-type]
    asked = {"steps": args.steps, "lr": args.lr, "seed": args.seed, "batch": args.batch * state.num_processes}
    asked |= {} if torch.cuda.is_available() else {"mixed_precision": "no"}
    cfg = cfg.model_copy(update={"fit": cfg.fit.model_copy(update=asked)})
    out = folder / args.name
    answer: dict[str, Any] = {"model": str(out), "episodes": episodes, "windows": len(windows)}
    if adapt_model(model, windows, cfg, folder / "fit"):
        model.save_pretrained(out)
        answer |= {"answers": ",".join(model.cfg.answers), "estimate": table["verdict"]}
        folder.save_metrics(answer)
    state.wait_for_everyone()
    if not state.is_main_process:
        raise SystemExit(0)  # one process answers
    return answer
