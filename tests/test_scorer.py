"""What a dream and a scorer show a judge of one chunk, and what dense rewards are worth to a planner."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
import torch
from test_dream import SeededStarts, chunks

from imagine.agents.planner import DreamScorer, PlanningState
from imagine.model.model import WorldActionModel
from imagine.policy.policy import JointPolicy
from imagine.rewards.guards import GuardConfig, GuardedJudge
from imagine.types import Clip, Score, ShapeError
from imagine.world.dream import Dream, DreamConfig


class Reach:
    """Pays how far the first joint is commanded out, sees no success, and keeps what it was shown."""

    def __init__(self) -> None:
        self.clips: list[Clip] = []

    def __call__(self, clip: Clip, instruction: Sequence[str]) -> Score:
        self.clips.append(clip)
        assert clip.action is not None
        reward = clip.action[:, -1, 0]
        return Score(reward, torch.zeros_like(reward), torch.ones_like(reward, dtype=torch.bool))


def dream_of(model: WorldActionModel, judge: Reach, cfg: DreamConfig) -> Dream:
    dream = Dream(model, judge, SeededStarts(), cfg)
    dream.allocate(8)
    dream.reset(np.arange(8), list(range(8)), {})
    return dream


def scene_of(dream: Dream) -> PlanningState:
    return PlanningState(dream.context(), dream.context(), tuple(dream.instruction), tuple(range(8)))


@pytest.mark.parametrize("inverse_steps", [0, 1, 2])
def test_a_dream_and_a_scorer_show_a_judge_the_same(tiny_model: WorldActionModel, inverse_steps: int) -> None:
    judge, cfg, action = Reach(), DreamConfig(inverse_steps=inverse_steps), chunks(8, 1)[0]
    dream = dream_of(tiny_model, judge, cfg)
    scene = scene_of(dream)
    DreamScorer(tiny_model, judge, cfg=cfg)(scene, torch.from_numpy(action)[:, None])
    dream.step(action)
    planned, lived = judge.clips
    for name in ("action", "pose"):
        assert torch.equal(getattr(planned, name), getattr(lived, name)), name
    assert torch.equal(planned.latents[:, 0], lived.latents[:, 0]) and planned.latents.shape == lived.latents.shape
    assert torch.equal(planned.decode([0]), lived.decode([0])), "the first frame as the codec keeps it"
    assert (planned.inverse_error is None) == (lived.inverse_error is None) == (inverse_steps == 0)


def test_a_scorer_follows_a_dense_reward(tiny_model: WorldActionModel) -> None:
    judge, cfg = Reach(), DreamConfig(inverse_steps=0)
    scene = scene_of(dream_of(tiny_model, judge, cfg))
    candidates = torch.zeros(8, 3, 4, 2)
    candidates[:, :, :, 0] = torch.tensor([-0.3, 0.3, 0.1])[:, None]
    value = DreamScorer(tiny_model, judge, cfg=cfg)(scene, candidates).value
    assert (value.argmax(1) == 1).all() and (value.argmin(1) == 0).all()
    torch.testing.assert_close(value[:, 1] - value[:, 0], torch.full((8,), 0.6))
    vetoing = GuardedJudge(judge, GuardConfig(blur=-2.0))
    vetoed = DreamScorer(tiny_model, vetoing, cfg=cfg)(scene, candidates).value
    torch.testing.assert_close(vetoed, value.clamp(max=0))


def test_an_unchecked_dream_costs_a_candidate_nothing(tiny_model: WorldActionModel) -> None:
    scene = scene_of(dream_of(tiny_model, Reach(), DreamConfig()))
    candidates = torch.zeros(8, 2, 4, 2)
    free, checked = (
        DreamScorer(tiny_model, Reach(), cfg=DreamConfig(inverse_steps=k))(scene, candidates) for k in (0, 2)
    )
    assert (free.terms["hallucination"] == 0).all() and (checked.terms["hallucination"] > 0).all()
    torch.testing.assert_close(checked.value, free.value - 0.1 * checked.terms["hallucination"])


def test_what_follows_the_end_of_an_episode_does_not_count(tiny_model: WorldActionModel) -> None:
    class EndsFirst(Reach):
        def __call__(self, clip: Clip, instruction: Sequence[str]) -> Score:
            self.clips.append(clip)
            k = len(self.clips) - 1
            one = torch.ones(len(clip.latents))
            return Score(one * k, one * 0, one > 0, {"chunk_reward": one * k}, terminated=one * (k == 1) > 0)

    state = scene_of(dream_of(tiny_model, Reach(), DreamConfig()))
    for end, at in (("max", 1), ("last", 1)):
        scorer = DreamScorer(tiny_model, EndsFirst(), cfg=DreamConfig(inverse_steps=0), end=end)  # type: ignore[arg-type]
        scores = scorer(state, torch.zeros(8, 1, 3 * 4, 2))
        assert (scores.terms["chunk"] == at).all() and (scores.value == 1).all(), end


class Says(JointPolicy):
    """Always the same chunk."""

    def __init__(self, model: WorldActionModel, chunk: np.ndarray):
        super().__init__(model)
        self.chunk = chunk

    def act_on(self, context: Any, seeds: Any = None, cache: Any = None) -> np.ndarray:
        return self.chunk[None].repeat(len(context), 0)


def test_a_plan_of_two_chunks_is_scored_as_its_first_one_followed_by_the_second(tiny_model: WorldActionModel) -> None:
    scene = scene_of(dream_of(tiny_model, Reach(), DreamConfig()))
    plan, second = torch.from_numpy(chunks(24, 1)[0]).unflatten(0, (8, 3)), chunks(1, 1, 9)[0, 0]
    whole = torch.cat([plan, torch.from_numpy(second).expand_as(plan)], 2)
    followed = DreamScorer(tiny_model, Reach(), depth=2, follow=Says(tiny_model, second))(scene, plan)
    planned = DreamScorer(tiny_model, Reach())(scene, whole)
    assert torch.equal(planned.value, followed.value) and torch.equal(planned.video, followed.video)
    with pytest.raises(ShapeError, match="expected"):
        DreamScorer(tiny_model, Reach())(scene, whole[:, :, :-1])
