"""Who is acted for, and which noise: every policy acts in a batch as it would alone, whatever the seeds."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from test_agents import FarRight, observation
from test_dream import SeededStarts

from imagine.agents.envs import DreamEnvs
from imagine.agents.evaluate import Worker, carry_out, parts
from imagine.agents.finetune.experience import Explorer
from imagine.agents.finetune.kernel import FlowKernel
from imagine.agents.planner import DreamScorer, Planner, PlannerConfig
from imagine.agents.rollout import rollout
from imagine.agents.steer import SteerConfig, SteeredPolicy, Steering
from imagine.agents.zoo import Flaw, Flawed
from imagine.model.model import WorldActionModel
from imagine.policy.policy import JointPolicy, RandomPolicy
from imagine.seeds import FreshSeeds, derive
from imagine.types import ImagineError, Policy, ShapeError
from imagine.world.dream import Dream, DreamConfig

SEEDS = {
    "neighbours": [0, 1, 2, 3],
    "large": [2**63 - 1, 2**63, 10**25, 2**32],
    "negative": [-1, 1, -(2**40), 0],
    "equal": [5, 5, 5, 5],
}
EPISODES = [0, 1, 2, 3]


def agent(seen: np.ndarray) -> np.ndarray:
    """Looks at every number of an observation; no row at another's."""
    return np.stack([[np.tanh(row[i::4].sum()) for i in range(4)] for row in seen]).astype(np.float32)


def steered(model: WorldActionModel, how: Any) -> Policy:
    policy = None if how == "chunk" else JointPolicy(model, steps=2)
    return SteeredPolicy(Steering(model, policy, SteerConfig(how=how, slow=2)), agent)


def planner(model: WorldActionModel, method: Any, space: Any = "noise") -> Policy:
    cfg = PlannerConfig(method=method, space=space, candidates=3, iterations=2, slow=2, rungs=(1, 2))
    return Planner(JointPolicy(model, steps=2), DreamScorer(model, FarRight(0.5)), cfg)


def flawed(policy: Policy, model: WorldActionModel) -> Policy:
    return Flawed(policy, Flaw.parse("noise=0.05+bias=0.1+idle=0.3+grip=0.3+delay=1"), model.body)


MAKE: dict[str, Callable[[WorldActionModel], Policy]] = {
    "joint": lambda m: JointPolicy(m, steps=2),
    "random": lambda m: RandomPolicy(m.body.action_low, m.body.action_high, 4),
    "flawed": lambda m: flawed(JointPolicy(m, steps=2), m),
    "flawed planner": lambda m: flawed(planner(m, "best_of_n"), m),
    "explorer": lambda m: Explorer(m, FlowKernel(kind="cps", noise=0.5), 2),
    **{f"steered by {how}": partial(steered, how=how) for how in ("noise", "residual", "chunk")},
    **{method: partial(planner, method=method) for method in ("best_of_n", "halving", "cem", "mppi")},
    **{f"{method} of actions": partial(planner, method=method, space="action") for method in ("cem", "mppi")},
}


def rows(seen: dict[str, np.ndarray], at: Sequence[int]) -> dict[str, np.ndarray]:
    return {k: v[list(at)] for k, v in seen.items()}


# ------------------------------------------------------------------ policies
@pytest.mark.parametrize("seeds", SEEDS.values(), ids=SEEDS)
@pytest.mark.parametrize("name", MAKE)
def test_a_batch_acts_as_its_rows_would_alone(tiny_model: WorldActionModel, name: str, seeds: list[int]) -> None:
    """Over two decisions, the second one in another order and without those that are over."""
    make, first, second = MAKE[name], observation(4), observation(4, seed=1)
    together, left = make(tiny_model), [3, 0, 2]
    assert isinstance(together, Policy)
    begun = together.act(first, seeds, EPISODES)
    later = together.act(rows(second, left), [seeds[i] for i in left], [EPISODES[i] for i in left])
    assert begun.shape == (4, 4, 2)
    for i in range(4):
        alone = make(tiny_model)
        assert alone.act(rows(first, [i]), [seeds[i]], [EPISODES[i]])[0].tobytes() == begun[i].tobytes()
        if i in left:
            again = alone.act(rows(second, [i]), [seeds[i]], [EPISODES[i]])
            assert again[0].tobytes() == later[left.index(i)].tobytes()


@pytest.mark.parametrize("name", MAKE)
def test_another_seed_is_another_draw(tiny_model: WorldActionModel, name: str) -> None:
    if name == "steered by chunk":
        pytest.skip("no policy is asked, so nothing is drawn")
    seen = {k: np.repeat(v[:1], 4, 0) for k, v in observation(1).items()}
    chunks = MAKE[name](tiny_model).act(seen, [0, 1, 2, 3], EPISODES)
    assert len({chunk.tobytes() for chunk in chunks}) >= 3  # of a few candidates two may agree


@pytest.mark.parametrize("name", ["best_of_n", "steered by noise"])
def test_memory_is_of_episodes_and_not_of_seeds(tiny_model: WorldActionModel, name: str) -> None:
    first, second = observation(2), observation(2, seed=1)
    policy, fresh = MAKE[name](tiny_model), MAKE[name](tiny_model)
    policy.act(first, [0, 1], [7, 8])
    policy.reset([8])
    mixed, new = policy.act(second, [2, 3], [7, 8]), fresh.act(second, [2, 3], [7, 8])
    assert mixed[1].tobytes() == new[1].tobytes(), "episode 8 was forgotten"
    if name != "best_of_n":  # a planner's choice may be the same for another beginning
        assert mixed[0].tobytes() != new[0].tobytes(), "episode 7 was not"
    with pytest.raises(ShapeError, match="got 1 episodes for 2 rows"):
        policy.act(second, [2, 3], [7])


# ------------------------------------------------------------------ seeds
def test_paths_of_seeds_never_meet() -> None:
    paths = [(0,), (0, 0), (1,), (-1,), (1, 0), (1, 0, 0), (0, 1), (2**32,), (2**32 + 5,), (-5,), (5, 1), (0, 0, 0)]
    assert len({derive(*p) for p in paths}) == len(paths)
    grid = {derive(a, b, c) for a in range(12) for b in range(12) for c in range(12)}
    assert len(grid) == 12**3 and all(0 <= s < 2**63 for s in grid)
    fresh = FreshSeeds()
    assert not set(fresh(3)) & set(fresh(3)) and FreshSeeds()(2) == FreshSeeds()(2)


# ------------------------------------------------------------------ rollouts and evaluations
def tiny(folder: Path) -> Worker:
    """A worker of policies on a dream; made anew in every process."""
    model = WorldActionModel.from_pretrained(folder)

    def dream(world: str) -> DreamEnvs:
        return DreamEnvs(Dream(model, FarRight(0.6), SeededStarts(), DreamConfig()), 3, horizon=3)

    return Worker(lambda name: MAKE[name](model), dream, lambda text: text.split()[0], model.body)


@pytest.mark.parametrize("name", ["joint", "flawed planner", "steered by noise", "cem"])
def test_an_episode_does_not_depend_on_its_neighbours(tiny_model: WorldActionModel, name: str) -> None:
    def play(num_envs: int, seeds: Sequence[int]) -> list[bytes]:
        envs = DreamEnvs(Dream(tiny_model, FarRight(2.0), SeededStarts(), DreamConfig()), num_envs, horizon=3)
        return [np.stack(r.actions).tobytes() for r in rollout(envs, MAKE[name](tiny_model), seeds, keep=True)]

    together = play(4, [0, 1, 2, 3])
    assert play(3, [0, 1, 2, 3]) == together == [play(1, [seed])[0] for seed in range(4)]
    assert len(set(together)) == 4


def test_an_evaluation_in_parts_is_that_of_the_whole(tiny_model: WorldActionModel, tmp_path: Path) -> None:
    tiny_model.save_pretrained(tmp_path / "tiny")
    names, worker = ["joint", "flawed planner", "steered by noise"], tiny(tmp_path / "tiny")
    whole = carry_out(parts(names, ["imagined"], range(7), 7), lambda: worker, tmp_path / "whole")
    for size in (1, 3):
        some = carry_out(parts(names, ["imagined"], range(7), size), lambda: worker, tmp_path / str(size))
        assert some.equals(whole)
    assert 0 < sum(whole["success"].to_pylist()) < len(whole)


@pytest.mark.slow
def test_ray_workers_find_what_one_process_finds(
    tiny_model: WorldActionModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    paths = [str(Path(__file__).parent), os.environ.get("PYTHONPATH", "")]
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(p for p in paths if p))
    tiny_model.save_pretrained(tmp_path / "tiny")
    wanted = parts(["joint", "flawed planner", "steered by noise"], ["imagined"], range(4), 2)
    make = partial(tiny, tmp_path / "tiny")
    here = carry_out(wanted, make, tmp_path / "here")
    assert carry_out(wanted, make, tmp_path / "ray", ray="local", workers=2).equals(here)


def test_what_an_explorer_cannot_attribute_is_refused(tiny_model: WorldActionModel) -> None:
    with pytest.raises(ImagineError, match="give both"):
        MAKE["explorer"](tiny_model).act(observation(1), [1])
