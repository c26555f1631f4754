"""``imagine finetune distill``: answers in one step instead of many, as an adapter on the joint model."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from imagine.configs.commands.common import Common, Words, at_least
from imagine.configs.commands.finetuning import fine_tune
from imagine.configs.defaults import MODEL
from imagine.types import ImagineError


@dataclass(frozen=True, kw_only=True)
class Args(Common):
    """Distil a model's sampler into fewer steps on the observations of a LeRobot dataset, as a LoRA adapter.

    Attributes:
        dataset: folder of a LeRobot dataset (v2.1 or v3.0); several, joined by commas, are used together. Observations
            count, and what was done in them; whether it was done well does not.
        model: a shipped model's name, a folder, or a hub id; it is the teacher and is not changed.
        policy: whose actions are to come in fewer steps: base, or the folder of an adapter.
        questions: which answers are distilled: policy, dynamics, inverse, joint or video; several joined by commas.
        teacher_steps: denoising steps of the teacher.
        guidance: classifier-free guidance of the teacher on video; the student then needs none. 1: none.
        negative: instruction that guidance leads away from; by default Wan's, for models that understand it.
        steps: training steps.
        lr: learning rate.
        rank: of the adapter; one that begins at another policy's has that one's.
    """

    dataset: Words = ("datasets/g1",)
    model: str = MODEL
    policy: str = "base"
    questions: Words = ("policy", "dynamics")
    teacher_steps: int = 8
    guidance: float = 1.0
    negative: str = ""
    steps: int = 400
    lr: float = 1.5e-3
    rank: int = 8


def run(args: Args) -> dict[str, Any]:
    """Distil; the adapter is written to ``adapter/`` of the run folder. Resumes after a kill.

    It is a policy for ``imagine evaluate --policy FOLDER --steps 1``. A model folder whose ``dream.json`` says
    ``"adapter": "dream"`` dreams with the adapter in its folder ``dream/``.

    Raises:
        ImagineError: an option is out of range, there is no such question or policy, or the dataset is unusable.
    """
    at_least(args, steps=1, rank=1, teacher_steps=2, guidance=1)
    if not args.lr > 0:
        raise ImagineError(f"--lr is {args.lr:g}, expected more than 0.")
    questions = tuple(q.upper() for q in args.questions)
    from imagine.questions import QUESTIONS

    unknown = [q for q in questions if q not in QUESTIONS]
    if unknown or not questions or len(set(questions)) < len(questions):
        known = ", ".join(QUESTIONS).lower()
        raise ImagineError(f"--questions is {','.join(args.questions)!r}, expected some of {known}, each once.")
    from imagine.agents.finetune.distilling import DistillConfig, distill
    from imagine.configs.paid import note
    from imagine.configs.policies import adapter_of
    from imagine.wan.convert import NEGATIVE

    start, negative = adapter_of(args.policy, args.model), args.negative or NEGATIVE
    cfg = DistillConfig(rank=args.rank, questions=questions, teacher_steps=args.teacher_steps, guidance=args.guidance)
    answer = fine_tune(args, "distill", cfg, partial(distill, start=start, negative=negative))
    note(Path(answer["adapter"]), start)
    return answer
