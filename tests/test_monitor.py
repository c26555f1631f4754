"""What watches training: a second judge, negative controls, the cost of doubt, and starts from anywhere."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from test_agents import FarRight
from test_dream import SeededStarts

from imagine.agents.envs import DreamEnvs
from imagine.agents.monitor import Monitor, MonitorConfig
from imagine.model.model import WorldActionModel
from imagine.rewards.shadow import ShadowJudge
from imagine.types import Clip, RewardModel, Score
from imagine.world.dream import Dream, DreamConfig
from imagine.world.starts import MixedStarts, Start


class Gullible:
    """Calls everything a success, or nothing, or only what it was told to look for."""

    def __init__(self, verdict: float = 1.0, only: str = "") -> None:
        self.verdict, self.only = verdict, only

    def __call__(self, clip: Clip, instruction: Sequence[str]) -> Score:
        n = len(clip.latents)
        yes = torch.tensor([self.verdict * (self.only in i) for i in instruction])
        return Score(yes, yes, torch.ones(n, dtype=torch.bool))


def monitor_of(model: WorldActionModel, judge: RewardModel, **cfg: Any) -> Monitor:
    envs = DreamEnvs(Dream(model, judge, SeededStarts(), DreamConfig(inverse_steps=1)), 8)
    return Monitor(envs, lambda instruction, seed: "reach the bowl", MonitorConfig(starts=12, **cfg))


def test_the_second_judge_watches_and_has_no_say(tiny_model: WorldActionModel) -> None:
    judge = ShadowJudge(Gullible(0.0), Gullible(1.0))
    assert isinstance(judge, RewardModel)
    dream = Dream(tiny_model, judge, SeededStarts(), DreamConfig(inverse_steps=1))
    dream.allocate(2)
    dream.reset(np.arange(2), [1, 2], {})
    outcome = dream.step(np.zeros((2, 4, 2), np.float32))
    assert not outcome.terminated.any() and (outcome.reward == 0).all()
    assert outcome.info["reward_terms"]["second"].tolist() == [1, 1]


def test_an_invalid_second_verdict_is_no_success() -> None:
    class Silent(Gullible):
        def __call__(self, clip: Clip, instruction: Sequence[str]) -> Score:
            return replace(super().__call__(clip, instruction), valid=torch.zeros(1, dtype=torch.bool))

    clip = Clip(torch.zeros(1, 2, 1, 1, 1), torch.zeros(1, 2, 1), lambda frames=None: torch.zeros(1, 2, 1, 1, 3))
    assert ShadowJudge(Gullible(), Silent())(clip, ["push"]).terms["second"].tolist() == [0]


def test_a_judge_that_praises_everything_is_found_out_at_once(tiny_model: WorldActionModel) -> None:
    found = monitor_of(tiny_model, ShadowJudge(Gullible(), Gullible())).check(tiny_model, 2)
    assert found.numbers["floor"] == 1 and found.alarm is None, "the first look is what later ones are compared with"
    monitor = monitor_of(tiny_model, ShadowJudge(Gullible(0.0), Gullible(0.0)))
    assert monitor.check(tiny_model, 2).numbers["floor"] == 0
    monitor.envs.dream.judge = ShadowJudge(Gullible(), Gullible())
    alarm = monitor.check(tiny_model, 2).alarm
    assert alarm is not None and "100% of 36 negative controls" in alarm and "0% at the start" in alarm


def test_judges_that_drift_apart_ring_the_alarm(tiny_model: WorldActionModel) -> None:
    monitor = monitor_of(tiny_model, ShadowJudge(Gullible(0.0), Gullible(0.0)), floor=1.0)
    assert monitor.check(tiny_model, 1).alarm is None
    monitor.envs.dream.judge = ShadowJudge(Gullible(1.0), Gullible(0.0))
    alarm = monitor.check(tiny_model, 1).alarm
    assert alarm is not None and "+100% kinder" in alarm


def test_without_a_second_judge_the_controls_are_watched_all_the_same(tiny_model: WorldActionModel) -> None:
    monitor = monitor_of(tiny_model, Gullible(0.0))
    found = monitor.check(tiny_model, 2)
    assert found.alarm is None and "judge_gap" not in found.numbers and found.numbers["held_out_success"] == 0
    monitor.envs.dream.judge = Gullible()
    assert "negative controls" in (monitor.check(tiny_model, 2).alarm or "")


def test_the_absent_control_is_judged_by_another_instruction(tiny_model: WorldActionModel) -> None:
    numbers = monitor_of(tiny_model, ShadowJudge(Gullible(1.0, only="reach"), Gullible())).check(tiny_model, 1).numbers
    assert numbers["floor_absent"] == 1
    assert numbers["floor_still"] < 1, "half of the starts were told to push"


def test_a_resumed_monitor_remembers_its_first_look(tiny_model: WorldActionModel) -> None:
    monitor = monitor_of(tiny_model, ShadowJudge(Gullible(0.0), Gullible(0.0)))
    monitor.check(tiny_model, 1)
    again = monitor_of(tiny_model, ShadowJudge(Gullible(1.0), Gullible(1.0)))
    again.load(monitor.state())
    assert again.check(tiny_model, 1).alarm is not None


def test_inverse_error_costs_reward_and_never_makes_or_unmakes_a_success(tiny_model: WorldActionModel) -> None:
    outcomes = []
    for cost in (0.0, 0.5):
        dream = Dream(tiny_model, FarRight(0.5), SeededStarts(), DreamConfig(inverse_steps=1, inverse_error_cost=cost))
        dream.allocate(6)
        dream.reset(np.arange(6), list(range(6)), {})
        outcomes.append(dream.step(np.full((6, 4, 2), 0.1, np.float32)))
    free, paid = outcomes
    assert np.array_equal(free.terminated, paid.terminated)
    np.testing.assert_allclose(paid.reward, free.reward - 0.5 * free.info["hallucination"], rtol=1e-5)
    np.testing.assert_allclose(
        paid.info["reward_terms"]["inverse_error_cost"], -0.5 * free.info["hallucination"], rtol=1e-5
    )


@pytest.mark.parametrize("share", [0.0, 0.3, 1.0])
def test_a_share_of_the_starts_comes_from_elsewhere_and_a_seed_always_from_the_same_place(share: float) -> None:
    class Elsewhere:
        def __call__(self, seed: int, options: Mapping[str, Any]) -> Start:
            return Start(np.zeros((16, 16, 3), np.uint8), np.zeros(3, np.float32), "reach the bowl", f"row-{seed}")

    starts = MixedStarts(SeededStarts(), Elsewhere(), share)
    ids = [starts(seed, {}).start_id for seed in range(300)]
    assert ids == [starts(seed, {}).start_id for seed in range(300)]
    assert np.mean([i.startswith("row") for i in ids]) == pytest.approx(share, abs=0.1)
