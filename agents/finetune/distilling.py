"""Distilling the sampler: a LoRA adapter that answers in one step what the network itself answers in many.

The frozen teacher integrates a question in K steps from some noise. Wherever the student stands on the way it must
name, at once, where that integration ends. Nothing recorded is imitated: of a dataset only observations are used, and
the actions that DYNAMICS is asked about.

Source: the target is that of consistency distillation (arXiv:2303.01469) with the rest of the teacher's integration in
place of one step and of the student's own average; a teacher of many steps as in progressive distillation
(arXiv:2202.00512), in one round instead of log2 K; answers for every number of steps from one network as in shortcut
models (arXiv:2410.12557), without telling it the size of a step, for which Wan-shaped networks have no input.
What it departs from in all three: points lie on the teacher's path and on the straight line from the noise to its end
(rectified flow, arXiv:2209.03003), because that is where the Euler steps of a distilled sampler lead; and there is no
boundary condition, since the network predicts the clean chunk.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import torch
from pydantic import BaseModel, ConfigDict
from torch import Tensor, nn

from imagine.agents.finetune.cloning import newest_alone
from imagine.agents.finetune.fitting import fit_adapter, training_rows
from imagine.data.batches import WindowSampler
from imagine.data.windows import WindowBatch, Windows
from imagine.model.layers import LORA_IN_ALL, LORA_IN_BLOCKS
from imagine.model.model import WorldActionModel
from imagine.noise import expand, loss_weight, mix, schedule
from imagine.policy.adapter import Learner, merged
from imagine.questions import QUESTIONS, Question, require
from imagine.sampler import sample
from imagine.train.fit import FitConfig
from imagine.train.losses import JointConfig, disturb, masked_mse, to_tensors
from imagine.types import Chunk, Context, NoiseLevels
from imagine.wan.guidance import Guided

MODALITIES = ("video", "proprio", "action")
HELD_OUT = 32  # windows, twice, on which the gap to the teacher is watched


class DistillConfig(BaseModel):
    """How the adapter is shaped and fitted."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    rank: int = 8
    questions: tuple[str, ...] = ("POLICY", "DYNAMICS")
    teacher_steps: int = 8
    guidance: float = 1.0  # of the teacher on video, away from ``distill``'s ``negative``; 1: none
    pure: float = 0.6  # share of points at pure noise, all that a one-step answer is asked about
    straight: float = 0.5  # share of the other points that lie on the straight line, not on the teacher's path
    draws: int = 4  # noise draws per context where there is no video: they cost the action tokens only
    video_batch: int = 8  # windows per step for questions with video tokens; the others use the whole batch
    joint: JointConfig = JointConfig()  # noise on observed frames, and how much each modality counts
    fit: FitConfig = FitConfig(
        steps=400,
        batch=32,
        lr=1.5e-3,
        warmup=20,
        decay=0.5,
        weight_decay=0.0,
        ema=0.98,
        log_every=20,
        eval_every=200,
        save_every=100,
    )


def distill_loss(
    student: WorldActionModel,
    teacher: WorldActionModel | Guided,
    question: Question,
    context: Context,
    clean: Chunk,
    known: Tensor,
    cfg: DistillConfig,
    generator: torch.Generator,
    *,
    draws: int = 1,
) -> Tensor:
    """Squared error of the student's one-step answers against the ends of the teacher's integrations.

    Args:
        student: learns.
        teacher: frozen; integrates in ``cfg.teacher_steps`` steps. A guided one asks the network twice per step, and
            its student no longer needs to (arXiv:2210.03142).
        question: any path in the noise square.
        context: B contexts.
        clean: (B, ...) whatever the question is given, normalised; the rest is not looked at.
        known: (B,) bool, rows that count.
        cfg: points and weights.
        generator: all randomness.
        draws: noise draws per context.

    Returns:
        Scalar; squared normalised units, weighted by ``imagine.noise.loss_weight`` of each point's level.
    """
    paths = {"video": question.video, "proprio": question.video, "action": question.action}
    paths = {n: path for n, path in paths.items() if n in teacher.chunk_shapes}
    asked = [n for n in paths if paths[n] == (1.0, 0.0)]
    given = {n: getattr(clean, n).repeat_interleave(draws, 0) for n in paths if paths[n] == (0.0, 0.0)}
    b, device = len(context) * draws, context.video.device
    noise = {n: torch.randn(b, *teacher.chunk_shapes[n], generator=generator).to(device) for n in asked}
    way = integrate(teacher, question, context, given, Chunk(**noise), cfg.teacher_steps)
    at = torch.randint(cfg.teacher_steps, (b,), generator=generator)
    at = torch.where(torch.rand(b, generator=generator) < cfg.pure, torch.zeros_like(at), at)
    straight = (torch.rand(b, generator=generator) < cfg.straight).to(device)
    sigma = schedule(cfg.teacher_steps, teacher.schedule_shift)[at].to(device)
    x = {n: _points([getattr(w, n) for w in way], at.to(device), sigma, straight) for n in asked}
    levels = {n: sigma if n in asked else torch.full_like(sigma, path[0]) for n, path in paths.items()}
    cache = student.prefill(context).repeat(draws)
    guess = student.predict(Chunk(**given, **x), NoiseLevels(levels["video"], levels["action"]), cache)
    counts = {"video": 1.0, "proprio": cfg.joint.proprio_weight, "action": cfg.joint.action_weight}
    total, weight = torch.zeros((), device=device), loss_weight(sigma, cfg.joint.floor)
    for n in asked:
        end = getattr(way[-1], n)
        mask = known.repeat_interleave(draws)[:, None].expand(end.shape[:2])
        total = total + counts[n] * masked_mse(getattr(guess, n), end, mask, weight)
    return total


@torch.no_grad()
def integrate(
    teacher: WorldActionModel | Guided,
    question: Question,
    context: Context,
    given: dict[str, Tensor],
    noise: Chunk,
    steps: int,
) -> list[Chunk]:
    """Where a teacher's integration passes: ``steps`` + 1 chunks, from ``noise`` to the answer.

    Args:
        teacher: integrates.
        question: any path in the noise square.
        context: B contexts, each read once, for all N / B rows of ``noise`` that stand on it.
        given: (N, ...) what the question is given.
        noise: (N, ...) where it starts.
        steps: network calls.
    """
    n = next(len(x) for x in (noise.video, noise.action) if x is not None) // len(context)
    cache, way = teacher.prefill(context).repeat(n), [noise]
    keep = lambda step, chunk: way.append(chunk)  # noqa: E731
    sample(teacher, question, context.repeat(n), **given, steps=steps, noise=noise, cache=cache, callback=keep)  # type: ignore[arg-type]
    return way


def _points(way: list[Tensor], at: Tensor, sigma: Tensor, straight: Tensor) -> Tensor:
    """Per row the ``at``-th point (B,) of the way, or the point at level ``sigma`` of the line between its ends."""
    path = torch.stack(way)[at, torch.arange(len(at), device=at.device)]
    line = mix(way[-1], way[0], sigma)
    return torch.where(expand(straight, line), line, path)


def losses(
    student: WorldActionModel,
    teachers: Mapping[str, WorldActionModel | Guided],
    batch: WindowBatch,
    cfg: DistillConfig,
    generator: torch.Generator,
) -> dict[str, Tensor]:
    """:func:`distill_loss` of every question of ``cfg`` on one batch of latent windows."""
    context, clean, masks = to_tensors(student, batch)
    context, out = disturb(context, cfg.joint, generator), {}
    recorded = {"video": masks["proprio"].all(1), "action": masks["action"].all(1)}
    for name in cfg.questions:
        question = QUESTIONS[name]
        known = torch.ones_like(recorded["action"])
        for given in question.given:  # where that was not recorded, there is nothing to ask about
            known = known & recorded[given]
        seen = context if question.has_video else newest_alone(context)
        n, draws = (cfg.video_batch, 1) if question.has_video else (len(context), cfg.draws)
        chunk = Chunk(**{m: getattr(clean, m)[:n] for m in MODALITIES})
        some = torch.arange(min(n, len(context)), device=known.device)
        out[name.lower()] = distill_loss(
            student, teachers[name], question, seen.index(some), chunk, known[:n], cfg, generator, draws=draws
        )
    return out


def distill(
    model: WorldActionModel,
    windows: Windows,
    cfg: DistillConfig,
    folder: Path,
    *,
    start: Path | None = None,
    negative: str = "",
) -> Path:
    """Fit an adapter whose one-step answers are what ``model`` answers in many; ``model`` itself is not changed.

    Args:
        model: the base, and the teacher.
        windows: latent windows, of the model's own codec.
        cfg: adapter and fit.
        folder: run folder; resumes what it holds. The adapter is written to ``folder/adapter``.
        start: adapter of a policy to distil instead of the base's own. It is where the student begins, so ``cfg.rank``
            is not used; questions about video are still taught by the base, which is who dreams.
        negative: instruction that ``cfg.guidance`` leads away from.

    Returns:
        The adapter's folder.

    Raises:
        UntrainedQuestion: the model was not trained to answer a question of ``cfg``.
        DatasetError: there is nothing to train on.
        CheckpointMismatch: ``start`` holds no adapter, or one for another network.
    """
    asked = [QUESTIONS[name] for name in cfg.questions]
    for question in asked:
        require(question, model.answers)
    rows, held = training_rows(windows)
    targets = LORA_IN_ALL if any(q.has_video for q in asked) else LORA_IN_BLOCKS
    learner = Learner(model, rank=cfg.rank, start=start, seed=cfg.fit.seed, targets=targets)
    actor = model if start is None else merged(model, start)
    world = model if cfg.guidance == 1 else Guided(model, model.embed_text([negative]), cfg.guidance)
    teachers: dict[str, WorldActionModel | Guided] = {q.name: world if q.has_video else actor for q in asked}
    batches = WindowSampler(rows, cfg.fit.batch, cfg.fit.seed)
    check = WindowSampler(held, HELD_OUT, 1)
    weights = {q.name.lower(): 1.0 if q.has_video else cfg.joint.policy_weight for q in asked}

    def loss(step: int, generator: torch.Generator) -> tuple[Tensor, dict[str, float]]:
        parts = losses(learner.model, teachers, windows.batch(batches.at(step)), cfg, generator)
        total = torch.stack([weights[name] * value for name, value in parts.items()]).sum()
        return total, {name: value.item() for name, value in parts.items()}

    parts = [check.at(i) for i in range(2)]
    before = {f"{k}_before": v for k, v in gap(learner.model, teachers, windows, parts, cfg).items()}

    def evaluate(ema: nn.Module) -> dict[str, float]:
        assert isinstance(ema, WorldActionModel)
        return before | gap(ema, teachers, windows, parts, cfg)

    return fit_adapter(learner, loss, cfg.fit, folder, name="distill", evaluate=evaluate)


@torch.no_grad()
def gap(
    student: WorldActionModel,
    teachers: Mapping[str, WorldActionModel | Guided],
    windows: Windows,
    parts: Sequence[np.ndarray],
    cfg: DistillConfig,
) -> dict[str, float]:
    """Mean squared distance of one-step answers from the teacher's of many steps, from the same noise.

    Args:
        student: answers at once.
        teachers: by question.
        windows: latent windows.
        parts: batches of window numbers.
        cfg: questions and steps of the teacher.
    """
    cfg = cfg.model_copy(update={"pure": 1.0, "video_batch": HELD_OUT})
    sums: dict[str, float] = {}
    for i, part in enumerate(parts):
        batch = windows.batch(part)
        for name, value in losses(student, teachers, batch, cfg, torch.Generator().manual_seed(i)).items():
            sums[name] = sums.get(name, 0.0) + value.item() / len(parts)
    return {f"{name}_gap": value for name, value in sums.items()}
