"""RLlib on worlds that only count: what its runners collect and learn from, where they live, and that PPO learns."""

from __future__ import annotations

import sys
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import ray
import torch
from ray.rllib.algorithms.ppo.torch.ppo_torch_learner import PPOTorchLearner
from ray.rllib.env.single_agent_env_runner import SingleAgentEnvRunner

from imagine.agents.cluster import errors_as_ours, local_cluster
from imagine.agents.rllib import (
    DistinctLanes,
    FrankEnvRunner,
    RLlibConfig,
    learn_rllib,
    ppo_config,
    register_rllib,
    rllib_actor,
    rllib_env_creator,
)
from imagine.types import ImagineError
from imagine.world.env import EnvConfig, Outcome, WorldModelVectorEnv

ray.cloudpickle.register_pickle_by_value(sys.modules[__name__])  # runners cannot import tests

pytestmark = pytest.mark.filterwarnings("ignore:.*Overriding environment rllib")  # RLlib names all of them alike
HORIZON, LANES = 3, 4
SMALL = RLlibConfig(lanes=LANES, train_batch=40, minibatch=20, epochs=2, hidden=(8,))


class CounterWorld:
    """Observation: chunks so far, lane, episode of the lane. Lane i succeeds after i + 1 chunks; the last never can."""

    def __init__(self) -> None:
        self.single_observation_space: gym.Space[Any] = gym.spaces.Box(-1, 1e6, (3,), np.float32)
        self.single_action_space = gym.spaces.Box(-1, 1, (2,), np.float32)
        self.metadata: dict[str, Any] = {}

    def allocate(self, num_envs: int) -> None:
        self.state = np.stack([np.zeros(num_envs), np.arange(num_envs), -np.ones(num_envs)], 1).astype(np.float32)

    def reset(self, lanes: np.ndarray, seeds: Sequence[int], options: Mapping[str, Any]) -> dict[str, Any]:
        self.state[lanes, 0] = 0
        self.state[lanes, 2] += 1
        return {"seed": np.array(seeds)}

    def step(self, actions: np.ndarray) -> Outcome:
        self.state[:, 0] += 1
        chunk, lane, _ = self.state.T.copy()
        return Outcome(reward_of(lane, chunk), chunk == lane + 1, chunk > 0, {"reward_terms": {"chunk": chunk}})

    def observe(self) -> Any:
        return self.state.copy()

    def snapshot(self) -> np.ndarray:
        return self.state.copy()

    def restore(self, state: np.ndarray) -> None:
        self.state = state.copy()

    def frames(self, lane: int) -> np.ndarray:
        return np.zeros((1, 2, 2, 3), np.uint8)


def reward_of(lane: Any, chunk: Any) -> Any:
    return 10 * lane + chunk


class DictWorld(CounterWorld):
    def __init__(self) -> None:
        super().__init__()
        self.single_observation_space = gym.spaces.Dict({"count": self.single_observation_space})

    def observe(self) -> Any:
        return {"count": self.state.copy()}


class SquareWorld(CounterWorld):
    def __init__(self) -> None:
        super().__init__()
        self.single_action_space = gym.spaces.Box(-1, 1, (2, 2), np.float32)


class BrokenWorld(CounterWorld):
    def step(self, actions: np.ndarray) -> Outcome:
        raise ImagineError("the dream broke, expected it whole; mend it.")


class TargetWorld(CounterWorld):
    """The nearer an action is to its target, the better; a runner with more than one thread refuses to start."""

    def allocate(self, num_envs: int) -> None:
        if (threads := torch.get_num_threads()) != 1:
            raise ImagineError(f"a runner has {threads} threads, expected 1.")
        super().allocate(num_envs)

    def reset(self, lanes: np.ndarray, seeds: Sequence[int], options: Mapping[str, Any]) -> dict[str, Any]:
        return {}

    def step(self, actions: np.ndarray) -> Outcome:
        far = np.abs(actions - TARGET).sum(1).astype(np.float32)
        return Outcome(-far, far < 0.3, far > -1, {})


TARGET = np.array([0.5, -0.5])


def make(num_envs: int, world: type[CounterWorld] = CounterWorld, mode: str = "NextStep") -> WorldModelVectorEnv:
    return WorldModelVectorEnv(world(), num_envs, cfg=EnvConfig(horizon=HORIZON), autoreset_mode=mode)


def length(lane: int) -> int:
    return min(lane + 1, HORIZON)


@pytest.fixture(scope="module")
def cluster() -> Iterator[None]:
    """Two nodes with room for one runner each."""
    with local_cluster(nodes=2, cpus_per_node=1):
        yield
    assert not ray.is_initialized()


def collect(steps: int) -> tuple[dict[tuple[int, int], list[Any]], SingleAgentEnvRunner]:
    """Pieces of every episode, by (lane, episode of the lane), from RLlib's own runner in two calls."""
    config = ppo_config(register_rllib("counter", make), SMALL).env_runners(num_env_runners=0)
    runner = SingleAgentEnvRunner(config=config, worker_index=0)
    pieces = defaultdict(list)
    for piece in [*runner.sample(num_timesteps=steps // 2), *runner.sample(num_timesteps=steps // 2)]:
        pieces[tuple(piece.get_observations()[0, 1:].astype(int).tolist())].append(piece)
    return pieces, runner


def test_runners_collect_exactly_the_episodes_that_happened() -> None:
    pieces, _ = collect(400)
    assert {lane for lane, _ in pieces} == set(range(LANES))
    for (lane, number), parts in pieces.items():
        assert len({part.id_ for part in parts}) == 1
        seen = np.concatenate([parts[0].get_observations(), *(part.get_observations()[1:] for part in parts[1:])])
        rewards = np.concatenate([part.get_rewards() for part in parts])
        assert seen.tolist() == [[chunk, lane, number] for chunk in range(len(seen))]
        assert rewards.tolist() == [reward_of(lane, chunk) for chunk in range(1, len(seen))]
        if parts[-1].is_done:
            assert len(rewards) == length(lane)


def test_success_terminates_and_the_horizon_truncates() -> None:
    done = {key: parts[-1] for key, parts in collect(400)[0].items() if parts[-1].is_done}
    assert len(done) > 100
    for (lane, _), last in done.items():
        assert last.is_terminated == (lane < HORIZON) and last.is_truncated == (lane + 1 >= HORIZON)


def test_resets_are_not_counted_as_steps() -> None:
    pieces, runner = collect(400)
    counted = runner.get_metrics()["num_env_steps_sampled"].peek()
    assert counted == sum(len(part) for parts in pieces.values() for part in parts) >= 400


def test_runners_begin_in_different_places() -> None:
    def seeds(seed: int) -> list[int]:
        return DistinctLanes(make(LANES)).reset(seed=seed)[1]["seed"].tolist()

    assert seeds(0) == seeds(0) and len({*seeds(0), *seeds(1), *seeds(2)}) == 3 * LANES


@pytest.mark.parametrize("seed", [0, 800_000, 2**40])
def test_any_seed_will_do(seed: int) -> None:
    assert ppo_config("counter", SMALL, seed).seed == ppo_config("counter", SMALL, seed).seed < 2**32 - 1000


@pytest.mark.parametrize(
    ("how", "says"),
    [
        ({"mode": "SameStep"}, "SameStep, expected NextStep"),
        ({"mode": "Disabled"}, "Disabled, expected NextStep"),
        ({"world": DictWorld}, "a Dict, expected a Box"),
        ({"world": SquareWorld}, "expected a flat Box"),
    ],
)
def test_what_rllib_would_misread_is_refused(how: dict[str, Any], says: str) -> None:
    with pytest.raises(ImagineError, match=says):
        rllib_env_creator(partial(make, **how))({"num_envs": LANES})


def test_single_environments_are_refused() -> None:
    with pytest.raises(ImagineError, match="vector_entry_point"):
        rllib_env_creator(make)({})


class SeesAll(PPOTorchLearner):
    """Keeps what the loss is computed from."""

    rows: list[np.ndarray]  # observation, reward and mask

    def compute_loss_for_module(self, *, module_id: Any, config: Any, batch: Any, fwd_out: Any) -> Any:
        row = [batch["obs"], batch["rewards"][:, None], batch["loss_mask"][:, None]]
        self.rows = [*getattr(self, "rows", []), torch.cat([r.float() for r in row], 1).numpy()]
        return super().compute_loss_for_module(module_id=module_id, config=config, batch=batch, fwd_out=fwd_out)


@pytest.mark.slow
def test_nothing_is_learnt_from_resets(cluster: None) -> None:
    config = ppo_config(register_rllib("counter", make), SMALL.model_copy(update={"epochs": 1, "fixed": True}))
    algorithm = config.env_runners(num_env_runners=0).learners(learner_class=SeesAll).build_algo()
    result = algorithm.train()
    rows = np.concatenate(algorithm.learner_group._learner.rows)
    assert (algorithm.get_module().pi.log_std == np.log(np.float32(SMALL.initial_std))).all(), "it is fixed"
    algorithm.stop()
    assert result["env_runners"]["num_env_steps_sampled"] >= 40
    chunk, lane, _, reward, _ = rows[rows[:, 4] > 0].T
    assert (reward == reward_of(lane, chunk + 1)).all()  # a reset has reward 0 and no observation before it
    assert (chunk < np.minimum(lane + 1, HORIZON)).all()  # nothing starts from where an episode ended


AIM = RLlibConfig(lanes=8, steps=4800, train_batch=480, minibatch=96, lr=3e-3, hidden=(16,), window=480, save_every=5)


@pytest.fixture(scope="module")
def learnt(cluster: None, tmp_path_factory: pytest.TempPathFactory) -> tuple[dict[str, Any], Path]:
    folder, told = tmp_path_factory.mktemp("learnt"), list[tuple[int, int]]()
    make_env = partial(make, world=TargetWorld)
    result = learn_rllib(make_env, AIM, folder, 0, lambda done, steps: told.append((done, steps)))
    assert [steps for _, steps in told] == [4800] * 10 and told[-1][0] == 4800
    return result, folder


@pytest.mark.slow
def test_two_runners_live_on_two_nodes(learnt: tuple[dict[str, Any], Path]) -> None:
    nodes = learnt[0]["nodes"]
    assert len(nodes) == len(set(nodes)) == 2
    assert set(nodes) == {node["NodeID"] for node in ray.nodes()}


@pytest.mark.slow
def test_ppo_improves_in_a_world_that_is_easy(learnt: tuple[dict[str, Any], Path]) -> None:
    result, folder = learnt
    assert result["return_after"].low > result["return_before"].high + 0.5
    assert result["success_after"].low > result["success_before"].high
    curve = result["curve"]
    for number, update in enumerate(curve, 1):  # a lane that begins anew makes its runner step once more
        assert 480 * number <= update["steps"] < 480 * number + 2 * 8 * number
    assert result["return_before"].n == curve[0]["episodes"] and result["steps_per_second"] > 0
    action = rllib_actor(folder / "checkpoint")(np.array([[0.0, lane, -1.0] for lane in range(3)], np.float32))
    assert action.shape == (3, 2) and np.abs(action - TARGET).max() < 0.3
    draw = [rllib_actor(folder / "checkpoint", seed)(np.zeros((500, 3), np.float32)) for seed in (0, 0, 1)]
    assert (draw[0] == draw[1]).all() and (draw[0] != draw[2]).any() and (draw[0].std(0) > 0.01).all()
    assert list((folder / "log").glob("events.*"))


@pytest.mark.slow
def test_a_killed_run_goes_on_from_its_checkpoint(learnt: tuple[dict[str, Any], Path]) -> None:
    before, folder = learnt
    more = AIM.model_copy(update={"steps": before["curve"][-1]["steps"] + 1, "runners": 1})
    after = learn_rllib(partial(make, world=TargetWorld), more, folder, 0)
    *old, new = after["curve"]
    assert old == before["curve"] and new["return"] > old[0]["return"] + 0.5


def test_an_error_in_a_step_comes_back_as_it_was() -> None:
    config = ppo_config(register_rllib("broken", partial(make, world=BrokenWorld)), SMALL).env_runners(
        num_env_runners=0
    )
    runner = FrankEnvRunner(config=config, worker_index=0)
    with pytest.raises(ImagineError, match="the dream broke"):
        runner.apply(lambda self: self.sample())


def test_what_ray_wraps_is_unwrapped() -> None:
    with pytest.raises(ImagineError, match=r"^mend it"), errors_as_ours():
        raise ray.exceptions.RayTaskError("sample", "traceback", ImagineError("mend it"))
    with pytest.raises(ImagineError, match="a runner failed, expected none to: no memory"), errors_as_ours():
        raise ray.exceptions.RayTaskError("sample", "traceback", MemoryError("no memory"))


@pytest.mark.slow
def test_a_cluster_needs_nodes_and_is_not_nested(cluster: None) -> None:
    with pytest.raises(ImagineError, match="0 nodes"), local_cluster(0, 1):
        pass
    with pytest.raises(ImagineError, match="connected to a Ray cluster already"), local_cluster(1, 1):
        pass
