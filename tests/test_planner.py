"""Planners against scorers whose answer is known in closed form; budgets with a clock of our own."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from test_agents import FarRight, observation
from torch import Tensor

from imagine.agents.planner import BestOfN, DreamScorer, Plain, Plan, Planner, PlannerConfig, PlanningState, Scores
from imagine.agents.scorer import read
from imagine.agents.search import cosines, fit, mix, unmix
from imagine.model.batching import in_tiles
from imagine.model.model import WorldActionModel
from imagine.policy.policy import JointPolicy
from imagine.types import Clip, Context, ImagineError, Policy, Score, ShapeError

sys.path.append(str(Path(__file__).parent.parent / "benchmarks"))

from dream_cost import WORST, DreamCost, SolverPolicy

METHODS = [
    {"method": "best_of_n"},
    {"method": "halving"},
    {"method": "cem", "space": "noise"},
    {"method": "mppi", "space": "noise"},
    {"method": "cem", "space": "action"},
    {"method": "mppi", "space": "action"},
]
IDS = ["-".join(m.values()) for m in METHODS]


class Near:
    """Value is minus the squared distance to a target chunk, plus a blur that fades with the steps."""

    def __init__(self, target: Tensor, blur: Tensor | None = None, steps: int = 1):
        self.target, self.blur, self.steps, self.asked = target, blur, steps, []

    def at(self, steps: int) -> Near:
        other = Near(self.target, self.blur, steps)
        other.asked = self.asked
        return other

    def __call__(self, scene: PlanningState, candidates: Tensor) -> Scores:
        self.asked.append((self.steps, candidates.shape[1]))
        value = -(candidates - self.target).square().sum((2, 3))
        if self.blur is not None:
            value = value + self.blur[: candidates.shape[1]] / self.steps
        return Scores(value, torch.zeros_like(value), {"distance": -value})


class Clock:
    """Seconds that pass only when somebody works."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


class Slow:
    """A scorer that takes so many seconds per call."""

    def __init__(self, clock: Clock, seconds: float | Sequence[float], score: Any):
        self.clock, self.score, self.steps = clock, score, 1
        self.seconds = iter([seconds] * 1000 if isinstance(seconds, float) else seconds)

    def at(self, steps: int) -> Slow:
        return self

    def __call__(self, scene: PlanningState, candidates: Tensor) -> Scores:
        self.clock.now += next(self.seconds)
        return self.score(scene, candidates)


def first_joint(context: Context, candidates: Tensor) -> Tensor:
    return candidates[:, :, -1, 0]


def planner(
    model: WorldActionModel, score: Any = None, clock: Callable[[], float] | None = None, **cfg: Any
) -> Planner:
    score = DreamScorer(model, FarRight(0.5)) if score is None else score
    given = {} if clock is None else {"clock": clock}
    return Planner(JointPolicy(model), score, PlannerConfig(**cfg), **given)


def scene_of(model: WorldActionModel, n: int = 2) -> PlanningState:
    context = JointPolicy(model).context(observation(n))
    return PlanningState(context, context, ("push the red bowl",) * n, tuple(range(5, 5 + n)))


# ---------------------------------------------------------------------- the policy's contract
@pytest.mark.parametrize("how", METHODS, ids=IDS)
def test_a_planner_is_a_policy(tiny_model: WorldActionModel, how: dict[str, str]) -> None:
    obs, seeds = observation(11), list(range(11))
    make = lambda: planner(tiny_model, candidates=3, iterations=2, **how)  # noqa: E731
    act = make()
    assert isinstance(act, Policy)
    many = act.act(obs, seeds)
    assert many.shape == (11, 4, 2) and many.dtype == np.float32
    assert tiny_model.body.check_action(many).tobytes() == many.tobytes(), "within the embodiment's bounds"
    assert make().act(obs, seeds).tobytes() == many.tobytes(), "same seeds, same bytes"
    for i in (0, 10):
        alone = make()
        one = alone.act({k: v[i : i + 1] for k, v in obs.items()}, [seeds[i]])
        assert one[0].tobytes() == many[i].tobytes(), "a lane does not see its neighbours"
        assert torch.equal(alone.plans[0].lower[0], act.plans[0].lower[i])
    assert make().act(obs, [s + 11 for s in seeds]).tobytes() != many.tobytes()


@pytest.mark.parametrize("how", METHODS, ids=IDS)
def test_candidate_0_is_what_the_policy_does(tiny_model: WorldActionModel, how: dict[str, str]) -> None:
    policy, obs, seeds = JointPolicy(tiny_model), observation(3), [1, 2, 3]
    act = planner(tiny_model, candidates=4, iterations=2, **how)
    act.act(obs, seeds)
    own = policy.act(obs, seeds)
    assert act.plans[0].candidates[:, 0].tobytes() == own.tobytes()
    assert planner(tiny_model, candidates=1, iterations=2, **how).act(obs, seeds).tobytes() == own.tobytes()


def test_a_plan_keeps_every_candidate_with_its_score_reasons_and_video(tiny_model: WorldActionModel) -> None:
    act = BestOfN(JointPolicy(tiny_model), DreamScorer(tiny_model, FarRight(0.5)), 5)
    action = act.act(observation(3), [1, 2, 3])
    (plan,) = act.plans
    assert plan.candidates.shape == (3, 5, 4, 2) and plan.judged == 5 and not plan.fallback.any()
    assert plan.scores.video is not None and plan.scores.video.shape == (3, 5, *tiny_model.chunk_shapes["video"])
    assert {"success", "progress", "spread", "hallucination"} <= set(plan.scores.terms)
    assert all(v.shape == (3, 5) for v in plan.scores.terms.values())
    assert plan.chosen.tolist() == plan.scores.value.argmax(1).tolist()
    assert np.array_equal(action, plan.candidates[np.arange(3), plan.chosen])


def test_calls_without_seeds_differ_and_are_told_apart_by_row(tiny_model: WorldActionModel) -> None:
    act, obs = planner(tiny_model, Plain(first_joint), candidates=2), observation(2)
    assert act.act(obs).tobytes() != act.act(obs).tobytes()
    act.act(obs, episodes=[0, 1])
    later = observation(2, seed=9)
    now = act.policy.context(later)
    first = act._episodes(now, [0, 1])
    assert not torch.equal(first.video, now.video), "both lanes began with the first observation"
    act.reset([1])
    again = act._episodes(now, [0, 1])
    assert torch.equal(again.video[1], now.video[1]) and not torch.equal(again.video[0], now.video[0])


# ---------------------------------------------------------------------- closed forms
def test_best_of_n_takes_the_argmax(tiny_model: WorldActionModel) -> None:
    act = planner(tiny_model, Plain(first_joint), candidates=9, slice=2)
    act.act(observation(3), [1, 2, 3])
    (plan,) = act.plans
    assert plan.chosen.tolist() == plan.candidates[:, :, -1, 0].argmax(1).tolist()
    assert len(set(plan.chosen.tolist())) > 1


@pytest.mark.parametrize("method", ["cem", "mppi"])
def test_a_search_over_actions_finds_the_target(tiny_model: WorldActionModel, method: Any) -> None:
    target = torch.tensor([[0.3, -0.2], [0.1, 0.1], [-0.2, 0.25], [0.0, -0.3]])
    cfg = {"method": method, "space": "action", "candidates": 128, "iterations": 12, "slow": None, "least": 0.01}
    act = planner(tiny_model, Near(target), **cfg, reach=1.0, elites=16)
    best = act.act(observation(2), [1, 2])
    assert np.abs(best - target.numpy()).max() < 0.03
    (plan,) = act.plans
    (of_n,) = [planner(tiny_model, Near(target), candidates=256)]
    assert (
        np.square(best - target.numpy()).sum((1, 2)).max()
        < 0.1 * np.square(of_n.act(observation(2), [1, 2]) - target.numpy()).sum((1, 2)).min()
    ), "samples of the policy do not get there"
    per_round = torch.stack([plan.lower[:, plan.round == r].amax(1) for r in range(12)])
    assert (per_round[-1] > per_round[0]).all()


@pytest.mark.parametrize("method", ["cem", "mppi"])
def test_a_search_over_noise_finds_a_chunk_that_the_policy_can_choose(
    tiny_model: WorldActionModel, method: Any
) -> None:
    hidden = JointPolicy(tiny_model).act(observation(2), [41, 42])  # reachable: some noise leads there
    goal = Plain(lambda context, c: -(c - torch.from_numpy(hidden)[:, None]).square().sum((2, 3)))
    cfg = {"method": method, "candidates": 32, "iterations": 6, "slow": None, "elites": 6, "temperature": 0.01}
    found = planner(tiny_model, goal, **cfg).plan(observation(2), [7, 8])
    drawn = planner(tiny_model, goal, candidates=32 * 6).plan(observation(2), [7, 8])
    best, luck = found.lower.amax(1), drawn.lower.amax(1)
    assert (best > luck).all() and (best > 0.3 * found.lower[:, 0]).all()


def test_cem_and_mppi_fit_what_a_hand_computes() -> None:
    points = torch.tensor([0.0, 1.0, 2.0, 10.0]).view(1, 4, 1, 1)
    low = torch.tensor([[-1.0, -2.0, 0.0, -torch.inf]])
    nothing = torch.zeros(1, 1, 1), torch.ones(1, 1, 1)
    cem = PlannerConfig(method="cem", candidates=4, elites=2)
    mean, deviation = fit(points, low, *nothing, cem)
    assert (mean.item(), deviation.item()) == pytest.approx((1.0, 1.0)), "elites 2 and 0, equally"
    mean, _ = fit(points, low, *nothing, replace(cem, method="mppi", temperature=0.5, elites=4))
    w = np.exp([-2.0, -4.0, 0.0])
    assert mean.item() == pytest.approx((w * [0, 1, 2]).sum() / w.sum()), "the unjudged one weighs nothing"
    mean, deviation = fit(points, torch.full((1, 4), -torch.inf), *nothing, cem)
    assert (mean.item(), deviation.item()) == (0, 1), "nothing judged, nothing learnt"


def test_slow_parts_are_orthonormal() -> None:
    rows, points = cosines(3, 8), torch.randn(2, 5, 3, 4)
    torch.testing.assert_close(torch.stack([unmix(rows, mix(rows, points)[:, i]) for i in range(5)], 1), points)


def test_halving_keeps_the_best_and_asks_ever_closer(tiny_model: WorldActionModel) -> None:
    target = torch.full((4, 2), 0.1)
    score = Near(target)
    act = planner(tiny_model, score, method="halving", candidates=8)
    act.act(observation(2), [1, 2])
    (plan,) = act.plans
    assert score.asked == [(1, 8), (2, 4), (4, 2)] and plan.round.tolist() == [0] * 8 + [1] * 4 + [2] * 2
    whole = planner(tiny_model, Near(target), candidates=8)
    assert act.plans[0].action.tobytes() == whole.act(observation(2), [1, 2]).tobytes()
    for r, n in ((1, 4), (2, 2)):  # survivors are the best of the round before, in their old order
        before, here = (np.flatnonzero(plan.round == x) for x in (r - 1, r))
        for lane in range(2):
            order = np.argsort(-plan.lower[lane, before].numpy(), kind="stable")[:n]
            kept = plan.candidates[lane, before[np.sort(order)]]
            assert kept.tobytes() == plan.candidates[lane, here].tobytes()


def test_halving_believes_the_closer_look(tiny_model: WorldActionModel) -> None:
    blur = torch.tensor([100.0, 99.0, 0.0, 0.0])  # at a glance candidates 0 and 1 shine; at 1000 steps nothing does
    score = Near(torch.full((4, 2), 0.1), blur)
    act = planner(tiny_model, score, method="halving", candidates=4, rungs=(1, 1_000_000))
    act.act(observation(2), [1, 2])
    (plan,) = act.plans
    assert set(plan.chosen.tolist()) <= {4, 5}, "the newest round decides, though the first glance promised more"
    assert (plan.lower[:, :4].amax(1) > plan.lower[:, 4:].amax(1)).all()


def test_pessimism_changes_the_choice_as_computed_by_hand(tiny_model: WorldActionModel) -> None:
    value, spread = torch.tensor([[0.5, 1.0, 0.8]] * 2), torch.tensor([[0.0, 1.0, 0.2]] * 2)
    score = Plain(lambda context, candidates: (value, spread))
    chosen = {}
    for pessimism in (0.0, 0.5, 2.0):  # 0.5 1.0 0.8; 0.5 0.5 0.7; 0.5 -1.0 0.4
        plan = planner(tiny_model, score, candidates=3, pessimism=pessimism).plan(observation(2), [1, 2])
        chosen[pessimism] = plan.chosen.tolist()
    assert chosen == {0.0: [1, 1], 0.5: [2, 2], 2.0: [0, 0]}


def test_where_nothing_can_be_judged_the_policys_own_is_done_and_said(tiny_model: WorldActionModel) -> None:
    value = torch.tensor([[torch.nan, -torch.inf, torch.nan], [0.0, 1.0, torch.nan]])
    act = planner(tiny_model, Plain(lambda context, candidates: value), candidates=3)
    action = act.act(observation(2), [1, 2])
    (plan,) = act.plans
    assert plan.fallback.tolist() == [True, False] and plan.chosen.tolist() == [0, 1]
    assert action[0].tobytes() == JointPolicy(tiny_model).act(observation(2), [1, 2])[0].tobytes()


# ---------------------------------------------------------------------- time
def budgeted(model: WorldActionModel, seconds: float | Sequence[float], **cfg: Any) -> tuple[Plan, Plan]:
    """Two decisions by a clock on which each slice takes so long; the first one has nothing to go by."""
    clock = Clock()
    act = planner(model, Slow(clock, seconds, Plain(first_joint)), clock, slice=2, **cfg)
    return act.plan(observation(1), [1]), act.plan(observation(1), [2])


def test_no_slice_begins_that_would_end_too_late(tiny_model: WorldActionModel) -> None:
    for plan in budgeted(tiny_model, 0.1, candidates=9, budget_ms=350):
        assert plan.judged == 6 and plan.stopped and not plan.late and plan.used_ms == pytest.approx(300)
        assert plan.chosen[0] == plan.candidates[0, :, -1, 0].argmax() and plan.candidates.shape[1] == 6
    for plan in budgeted(tiny_model, 0.1, candidates=6, budget_ms=350):
        assert plan.judged == 6 and not plan.stopped


def test_out_of_time_the_policys_own_is_done(tiny_model: WorldActionModel) -> None:
    first, second = budgeted(tiny_model, 0.1, candidates=9, budget_ms=50)
    assert first.judged == 2 and first.late, "the first decision has no slice to go by"
    assert second.judged == 0 and second.stopped and second.fallback.all() and not second.late
    assert second.action.tobytes() == JointPolicy(tiny_model).act(observation(1), [2]).tobytes()
    assert second.scores.video is None and not second.scores.value.isfinite().any()


def test_a_slice_that_slows_down_makes_the_next_one_wait(tiny_model: WorldActionModel) -> None:
    first, second = budgeted(tiny_model, [0.1, 0.3, *[0.1] * 9], candidates=9, budget_ms=600)
    assert first.judged == 4 and first.used_ms == pytest.approx(400), "0.4 s used, 0.3 s more would be too many"
    assert second.judged == 9, "the pace is the newest slice's: 0.1 s again after the first one"


def test_a_search_stops_where_its_time_does(tiny_model: WorldActionModel) -> None:
    plan, _ = budgeted(tiny_model, 0.1, method="cem", candidates=4, iterations=9, budget_ms=520)
    assert plan.judged == 10 and plan.round.max() == 2 and plan.stopped and not plan.late
    assert plan.chosen[0] == plan.lower[0].argmax()
    plan, _ = budgeted(tiny_model, 0.1, method="halving", candidates=8, budget_ms=520)
    assert plan.stopped and plan.round.max() == 0 and plan.chosen[0] < 8, "at two steps a slice takes twice as long"


# ---------------------------------------------------------------------- the dream
class Ramp:
    """Progress is the brightness of the newest frame; invalid where a call says so."""

    def __init__(self, valid: Sequence[bool] = (True,), spread: float = 0.0):
        self.valid, self.calls, self.spread, self.clips = valid, 0, spread, []

    def __call__(self, clip: Clip, instruction: Sequence[str]) -> Score:
        ok = self.valid[self.calls % len(self.valid)]
        self.calls += 1
        self.clips.append(clip)
        x = clip.proprio[:, -1, 0]
        terms = {"progress": x, "spread": torch.full_like(x, self.spread), "own": 2 * x}
        return Score(x * 0, x * 0, torch.full((len(x),), ok), terms)


def test_a_deeper_dream_goes_on_with_the_policy(tiny_model: WorldActionModel) -> None:
    scene, chunks = scene_of(tiny_model), torch.zeros(2, 3, 4, 2)
    greedy = JointPolicy(tiny_model, temperature=0.0)
    near = DreamScorer(tiny_model, Ramp())(scene, chunks)
    deep = {
        end: DreamScorer(tiny_model, Ramp(), depth=3, follow=greedy, end=end)(scene, chunks) for end in ("max", "last")
    }
    f = tiny_model.chunk_shapes["video"][0]
    assert deep["max"].video.shape[2] == 3 * f
    assert torch.equal(deep["max"].video[:, :, :f], near.video), "the first chunk is the same dream"
    progress = [d.terms["progress"] for d in (near, deep["max"], deep["last"])]
    assert (progress[1] >= progress[0] - 1e-6).all() and (progress[1] >= progress[2] - 1e-6).all()
    assert set(deep["last"].terms["chunk"].unique().tolist()) == {2.0}
    torch.testing.assert_close(deep["max"].terms["own"], 2 * progress[1])
    judge = Ramp()
    DreamScorer(tiny_model, judge, depth=2, follow=greedy)(scene, chunks)
    before, after = judge.clips
    assert torch.equal(before.latents[:, 0], after.latents[:, 0]), "both are compared with the episode's start"
    torch.testing.assert_close(after.pose[:, :2], tiny_model.restore_proprio(before.proprio[:, -1])[:, :2])


def test_what_cannot_be_judged_at_the_end_is_minus_infinity(tiny_model: WorldActionModel) -> None:
    scene, chunks, greedy = scene_of(tiny_model), torch.zeros(2, 3, 4, 2), JointPolicy(tiny_model, temperature=0.0)
    never = DreamScorer(tiny_model, Ramp([False]))(scene, chunks)
    assert (never.value == -torch.inf).all() and (never.spread == 0).all()
    once = {"depth": 2, "follow": greedy}
    assert DreamScorer(tiny_model, Ramp([True, False]), **once)(scene, chunks).value.isfinite().all()
    assert (DreamScorer(tiny_model, Ramp([True, False]), **once, end="last")(scene, chunks).value == -torch.inf).all()


def test_several_dreams_measure_luck(tiny_model: WorldActionModel) -> None:
    scene, chunks = scene_of(tiny_model), torch.randn(2, 2, 4, 2) * 0.1
    each = [
        DreamScorer(tiny_model, Ramp())(replace(scene, seeds=seeds), chunks).value
        for seeds in (scene.seeds, tuple(s + 1 for s in scene.seeds))
    ]
    assert not torch.equal(*each), "another seed is another dream"
    one = DreamScorer(tiny_model, Ramp(spread=0.3))(scene, chunks)
    torch.testing.assert_close(one.spread, torch.full((2, 2), 0.3))
    many = DreamScorer(tiny_model, Ramp(spread=0.3), draws=4)(scene, chunks)
    assert (many.spread > 0.3).all() and not torch.equal(many.value, one.value)


def test_candidates_dream_under_one_noise(tiny_model: WorldActionModel) -> None:
    same = DreamScorer(tiny_model, Ramp())(scene_of(tiny_model), torch.zeros(2, 9, 4, 2))
    assert (same.value == same.value[:, :1]).all() and torch.equal(same.video[:, 0], same.video[:, 8])


def test_what_is_read_of_a_lane_does_not_depend_on_the_others(tiny_model: WorldActionModel) -> None:
    context = scene_of(tiny_model, 11).context
    many, alone = read(tiny_model, context), read(tiny_model, context.index([10]))
    assert torch.equal(many.keys[0][10], alone.keys[0][0]) and torch.equal(many.origin[10], alone.origin[0])
    (whole,) = in_tiles(lambda rows: (tiny_model.prefill(context.index(rows)).values[1],), 11)
    assert torch.equal(many.values[1], whole)


def test_another_model_may_dream_than_acts(tiny_model: WorldActionModel) -> None:
    import copy

    other = copy.deepcopy(tiny_model)
    with torch.no_grad():
        for p in other.codec.parameters():
            p.mul_(1.1)
    seen: list[Context] = []

    class Watching(DreamScorer):
        def __call__(self, scene: PlanningState, candidates: Tensor) -> Scores:
            seen.append(scene.context)
            return super().__call__(scene, candidates)

    planner(tiny_model, Watching(other, Ramp()), candidates=2).act(observation(1), [1])
    assert torch.equal(seen[0].video, JointPolicy(other).context(observation(1)).video)


# ---------------------------------------------------------------------- errors
@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"candidates": 0}, "0 candidates, expected at least 1"),
        ({"candidates": -3}, "-3 candidates"),
        ({"method": "cem", "candidates": 4, "elites": 5}, "elites is 5 of 4 candidates"),
        ({"method": "anneal"}, "method is 'anneal', expected one of best_of_n"),
        ({"space": "latent"}, "space is 'latent'"),
        ({"iterations": 0}, "iterations is 0"),
        ({"budget_ms": 0.0}, "budget_ms is 0.0, expected more than 0"),
        ({"pessimism": -1.0}, "pessimism is -1.0"),
        ({"pessimism": float("nan")}, "pessimism is nan"),
        ({"keep": 0.0}, "keep is 0.0"),
        ({"rungs": ()}, "rungs are"),
    ],
)
def test_a_wrong_number_is_named(wrong: dict[str, Any], message: str) -> None:
    with pytest.raises(ImagineError, match=message):
        PlannerConfig(**wrong)


def test_wrong_parts_are_named(tiny_model: WorldActionModel) -> None:
    with pytest.raises(ImagineError, match="has no at"):
        planner(tiny_model, Plain(first_joint), method="halving")
    with pytest.raises(ImagineError, match="slow is 9, expected at most the 4"):
        planner(tiny_model, method="cem", slow=9)
    with pytest.raises(ImagineError, match="nobody acts after"):
        DreamScorer(tiny_model, Ramp(), depth=2)
    with pytest.raises(ImagineError, match="draws is 0"):
        DreamScorer(tiny_model, Ramp(), draws=0)
    with pytest.raises(ShapeError, match=r"values of shape \(2, 4\)"):
        planner(tiny_model, Plain(lambda context, c: c[:, :, 0, 0].repeat(1, 2)), candidates=2).plan(
            observation(2), [1, 2]
        )
    scene = scene_of(tiny_model)
    with pytest.raises(ShapeError, match="1 instructions"):
        replace(scene, instruction=("push",))


@pytest.mark.parametrize("shape", [(2, 0, 4, 2), (2, 3, 5, 2), (1, 3, 4, 2), (2, 4, 2)])
def test_candidates_of_another_shape_are_refused(tiny_model: WorldActionModel, shape: tuple[int, ...]) -> None:
    with pytest.raises(ShapeError, match="N >= 1"):
        DreamScorer(tiny_model, FarRight(0.5))(scene_of(tiny_model), torch.zeros(shape))


def test_a_chunk_that_is_not_a_number_is_refused(tiny_model: WorldActionModel) -> None:
    chunks = torch.zeros(2, 3, 4, 2)
    chunks[1, 2, 0, 0] = torch.nan
    with pytest.raises(ShapeError, match="candidate 2 of row 1 holds NaN"):
        DreamScorer(tiny_model, FarRight(0.5))(scene_of(tiny_model), chunks)
    obs = observation(1)
    obs["proprio"][:] = np.nan
    with pytest.raises(ShapeError, match="holds NaN"):
        planner(tiny_model, Plain(first_joint), candidates=2).act(obs, [1])


# ---------------------------------------------------------------------- other people's solvers
class RandomShooting:
    """A solver with the manners of stable-worldmodel's: slices by lane, repeats per candidate."""

    def __init__(self, cost: DreamCost, samples: int, horizon: int, width: int):
        self.cost, self.samples, self.horizon, self.width = cost, samples, horizon, width

    def solve(self, info_dict: dict[str, Any], init_action: Tensor | None = None) -> dict[str, Any]:
        lanes = len(next(iter(info_dict.values())))
        start = init_action
        assert start is not None and start.shape == (lanes, self.horizon, self.width)
        found = []
        for i in range(lanes):
            info = {k: v[i : i + 1].unsqueeze(1).expand(1, self.samples, *v.shape[1:]) for k, v in info_dict.items()}
            noise = torch.randn(1, self.samples, self.horizon, self.width, generator=torch.Generator().manual_seed(i))
            candidates = start[i : i + 1, None] + noise
            candidates[:, 0] = start[i]
            costs = self.cost.get_cost(info, candidates)
            assert costs.shape == (1, self.samples)
            found.append(candidates[0, costs[0].argmin()])
        return {"actions": torch.stack(found)}


@pytest.mark.parametrize(("horizon", "block"), [(4, 1), (2, 2), (1, 4)])
def test_a_solver_searches_in_our_dream(tiny_model: WorldActionModel, horizon: int, block: int) -> None:
    policy, obs, seeds = JointPolicy(tiny_model), observation(3), [1, 2, 3]
    target = torch.full((4, 2), 0.1)
    cost = DreamCost(tiny_model, Near(target), policy)
    acts = SolverPolicy(RandomShooting(cost, 64, horizon, 2 * block), cost, policy)
    assert isinstance(acts, Policy) and cost.action_space(3).shape == (3, 2)
    found, own = acts.act(obs, seeds), policy.act(obs, seeds)
    assert tiny_model.body.check_action(found).tobytes() == found.tobytes()
    near, far = (np.square(x - target.numpy()).sum((1, 2)) for x in (found, own))
    assert (near < far).all()


def test_a_cost_is_minus_the_pessimistic_value(tiny_model: WorldActionModel) -> None:
    value, spread = torch.tensor([[0.5, -torch.inf]]), torch.tensor([[0.2, 0.0]])
    cost = DreamCost(tiny_model, Plain(lambda context, c: (value, spread)), pessimism=2.0)
    scene = scene_of(tiny_model, 1)
    info = {k: v[:, None].expand(1, 2, *v.shape[1:]) for k, v in cost.info(scene).items()}
    got = cost.get_cost(info, torch.zeros(1, 2, 4, 2))
    assert got.tolist() == [[pytest.approx(-0.1), WORST]] and got.isfinite().all()
    back = cost._scene({k: v[:, 0] for k, v in info.items()})
    assert back.seeds == scene.seeds and back.instruction == scene.instruction
    assert torch.equal(back.context.video, scene.context.video) and torch.equal(back.start.text, scene.start.text)
    assert cost.get_action(cost.info(scene), 3, torch.zeros(1, 1, 2)).shape == (1, 3, 2)
    with pytest.raises(ShapeError, match=r"\(3, 2\) \(horizon, action_dim\), expected \(4, 2\)"):
        cost.get_cost(info, torch.zeros(1, 2, 3, 2))
    with pytest.raises(ShapeError, match="no 'now_video'"):
        cost.get_cost({"pixels": torch.zeros(1, 2, 3)}, torch.zeros(1, 2, 4, 2))
