"""Distillation: answers in one step are taught where many end, resume to the same bits, and leave the base alone."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from test_train import STEPS, Killed, kill_at, recorded  # noqa: F401

from imagine.agents.finetune.distilling import DistillConfig, distill, distill_loss, losses
from imagine.configs import cli
from imagine.data.windows import Windows
from imagine.model.model import WorldActionModel
from imagine.noise import loss_weight, velocity_from_clean
from imagine.policy.adapter import Learner, merged, weights_hash
from imagine.questions import DYNAMICS, JOINT, POLICY, QUESTIONS, Question
from imagine.sampler import sample
from imagine.train.losses import JointConfig, to_tensors
from imagine.types import Chunk, Context, NoiseLevels, UntrainedQuestion
from imagine.wan.guidance import Guided

CFG = DistillConfig(rank=2, teacher_steps=3, draws=2, video_batch=2, fit=STEPS.model_copy(update={"eval_every": 4}))


class Line:
    """A model that always names the same clean chunk, whatever the noise: its flow is straight."""

    answers = frozenset(QUESTIONS.values())
    schedule_shift = 3.0

    def __init__(self, off: float = 0.0) -> None:
        self.off = off
        self.chunk_shapes = {"video": (2, 4, 2, 2), "proprio": (2, 3), "action": (4, 2)}

    def prefill(self, context: Context) -> Context:
        return context

    def predict(self, noisy: Chunk, sigma: NoiseLevels, cache: Context, **_: Any) -> Chunk:
        told = cache.text.mean((1, 2)) + self.off
        return Chunk(**{
            n: None if (x := getattr(noisy, n)) is None else told.view(-1, *[1] * (x.ndim - 1)).expand_as(x)
            for n in self.chunk_shapes
        })  # fmt: skip

    def velocity(self, noisy: Chunk, sigma: NoiseLevels, context: Context, cache: Context, **_: Any) -> Chunk:
        guess = self.predict(noisy, sigma, cache)
        levels = {"video": sigma.video, "proprio": sigma.video, "action": sigma.action}
        return Chunk(**{
            n: None if (x := getattr(noisy, n)) is None else velocity_from_clean(x, getattr(guess, n), levels[n])
            for n in self.chunk_shapes
        })  # fmt: skip


@pytest.fixture(scope="module")
def windows(tmp_path_factory: pytest.TempPathFactory, tiny_body) -> Windows:  # type: ignore[no-untyped-def]
    return Windows([recorded(tmp_path_factory.mktemp("robot"), tiny_body)], tiny_body, context_frames=2)


@pytest.fixture
def seen(tiny_model: WorldActionModel, windows: Windows) -> tuple[Context, Chunk]:
    context, clean, _ = to_tensors(tiny_model, windows.batch(np.arange(6)))
    return context, clean


def loss_of(student: Any, teacher: Any, question: Question, seen: tuple[Context, Chunk], **changes: Any) -> float:
    cfg, known = CFG.model_copy(update=changes), torch.ones(len(seen[0]), dtype=torch.bool)
    generator = torch.Generator().manual_seed(1)
    return distill_loss(student, teacher, question, *seen, known, cfg, generator, draws=2).item()


# ---------------------------------------------------------------------- closed forms
@pytest.mark.parametrize("question", QUESTIONS.values(), ids=lambda q: q.name)
def test_a_straight_flow_has_nothing_to_distil(question: Question, seen) -> None:  # type: ignore[no-untyped-def]
    assert loss_of(Line(), Line(), question, seen) < 1e-9


def test_a_straight_flow_that_ends_elsewhere_is_as_wrong_as_the_distance(seen) -> None:  # type: ignore[no-untyped-def]
    assert loss_of(Line(0.5), Line(), POLICY, seen, pure=1.0) == pytest.approx(0.25, rel=1e-4)
    both = 1 + CFG.joint.proprio_weight
    assert loss_of(Line(0.5), Line(), DYNAMICS, seen, pure=1.0) == pytest.approx(0.25 * both, rel=1e-4)
    everywhere = loss_of(Line(0.5), Line(), POLICY, seen, pure=0.0, teacher_steps=2)  # levels 1 and 0.75
    least, most = (0.25 * float(loss_weight(torch.tensor(s), JointConfig().floor)) for s in (1.0, 0.75))
    assert least < everywhere < most


@pytest.mark.parametrize("question", [POLICY, DYNAMICS, JOINT], ids=lambda q: q.name)
def test_a_teacher_of_one_step_teaches_its_student_nothing(tiny_model, question, seen) -> None:  # type: ignore[no-untyped-def]
    assert loss_of(tiny_model, tiny_model, question, seen, teacher_steps=1) < 1e-9
    assert loss_of(tiny_model, tiny_model, question, seen, teacher_steps=4) > 1e-4


def test_the_target_at_pure_noise_is_what_the_sampler_answers(tiny_model, seen) -> None:  # type: ignore[no-untyped-def]
    context, clean = seen
    noise = torch.randn(len(context), *tiny_model.chunk_shapes["action"], generator=torch.Generator().manual_seed(1))
    many, once = (
        sample(tiny_model, POLICY, context, steps=k, noise=Chunk(action=noise)).action.detach() for k in (3, 1)
    )
    known, generator = torch.ones(len(context), dtype=torch.bool), torch.Generator().manual_seed(1)
    cfg = CFG.model_copy(update={"pure": 1.0})
    loss = distill_loss(tiny_model, tiny_model, POLICY, context, clean, known, cfg, generator)
    assert loss.item() == pytest.approx((many - once).square().mean().item(), rel=1e-4)


@torch.no_grad()
def test_a_guided_teacher_teaches_where_guidance_leads(tiny_model, seen) -> None:  # type: ignore[no-untyped-def]
    """Guided constant answers are constant again, so a student that gives them has nothing to learn."""
    context, clean = seen
    negative = torch.full((1, *context.text.shape[1:]), 0.5)
    guided = Guided(Line(), negative, 3.0)  # type: ignore[arg-type]
    told = context.text.mean((1, 2))
    moved = replace(context, text=context.text + (2.0 * (told - 0.5))[:, None, None])  # told + 2 (told - 0.5)
    question = QUESTIONS["DYNAMICS"]
    known, cfg = torch.ones(len(context), dtype=torch.bool), CFG

    def loss(student_sees: Context) -> float:
        class Student(Line):
            def prefill(self, _: Context) -> Context:
                return student_sees

        g = torch.Generator().manual_seed(1)
        return distill_loss(Student(), guided, question, context, clean, known, cfg, g).item()  # type: ignore[arg-type]

    assert loss(moved) < 1e-6 < 1e-2 < loss(context)


def test_lanes_that_are_not_known_do_not_count(tiny_model, seen) -> None:  # type: ignore[no-untyped-def]
    context, clean = seen
    known = torch.tensor([True] * 3 + [False] * 3)
    other = replace(clean, action=torch.where(known[:, None, None], clean.action, 9.0))  # type: ignore[arg-type]
    a, b = (
        distill_loss(Line(0.5), tiny_model, DYNAMICS, context, c, known, CFG, torch.Generator().manual_seed(0))  # type: ignore[arg-type]
        for c in (clean, other)
    )
    assert torch.equal(a, b)


# ---------------------------------------------------------------------- training
def test_an_adapter_comes_closer_to_its_teacher(tiny_model: WorldActionModel, windows: Windows) -> None:
    learner = Learner(tiny_model, rank=4, seed=0)
    generator = torch.Generator().manual_seed(0)
    for value in learner.parameters().values():
        value.data.copy_(0.1 * torch.randn(value.shape, generator=generator))
    teachers, batch = dict.fromkeys(CFG.questions, tiny_model), windows.batch(np.arange(12))
    optimiser = torch.optim.Adam(learner.parameters().values(), lr=1e-2)
    seen = []
    for _ in range(20):
        parts = losses(learner.model, teachers, batch, CFG, torch.Generator().manual_seed(5))
        seen.append({k: v.item() for k, v in parts.items()})
        optimiser.zero_grad()
        torch.stack(list(parts.values())).sum().backward()
        optimiser.step()
    assert all(seen[-1][name] < 0.8 * seen[0][name] for name in ("policy", "dynamics"))


@pytest.mark.parametrize("begins", ["base", "policy"])
def test_a_killed_distillation_resumes_to_the_same_adapter_and_leaves_the_base_alone(
    tiny_model: WorldActionModel,
    windows: Windows,
    tmp_path: Path,
    kill_at,  # type: ignore[no-untyped-def]  # noqa: F811
    begins: str,
) -> None:
    frozen, start = weights_hash(tiny_model), None
    if begins == "policy":
        start = Learner(tiny_model, rank=3, seed=1).save(tmp_path / "start")
    straight = distill(tiny_model, windows, CFG, tmp_path / "straight", start=start)
    kill_at(2)
    with pytest.raises(Killed):
        distill(tiny_model, windows, CFG, tmp_path / "killed", start=start)
    kill_at(None)
    resumed = distill(tiny_model, windows, CFG, tmp_path / "killed", start=start)
    name = "adapter_model.safetensors"
    assert (straight / name).read_bytes() == (resumed / name).read_bytes()
    assert weights_hash(tiny_model) == frozen != weights_hash(merged(tiny_model, straight))
    again = Learner(tiny_model, start=straight)  # whatever layers it changes, learning can go on from it
    assert again.rank == (3 if start else 2)


def test_a_question_that_the_model_was_not_trained_for_is_refused(
    tiny_model: WorldActionModel, windows: Windows, tmp_path: Path
) -> None:
    tiny_model.answers = frozenset({POLICY})
    with pytest.raises(UntrainedQuestion, match="DYNAMICS"):
        distill(tiny_model, windows, CFG, tmp_path)


# ---------------------------------------------------------------------- the command
@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["--steps", "0"], "--steps is 0, expected at least 1"),
        (["--rank", "0"], "--rank is 0"),
        (["--teacher-steps", "1"], "--teacher-steps is 1, expected at least 2"),
        (["--lr", "-1"], "--lr is -1"),
        (["--questions", "policy,dream"], "expected some of policy, dynamics, inverse, joint, video"),
        (["--questions", "policy,policy"], "each once"),
        (["--policy", "nobody"], "no adapter 'nobody'"),
        (["--dataset", "nowhere"], "nowhere"),
    ],
)
def test_a_bad_request_is_answered_in_one_sentence(words: list[str], expected: str, tmp_path: Path, capfd) -> None:  # type: ignore[no-untyped-def]
    assert cli.main(["finetune", "distill", "--out", str(tmp_path / "run"), *words]) == 2
    out, err = capfd.readouterr()
    assert out == "" and expected in err
