"""Stable-Baselines3 on our environments: worlds that only count, so that every number can be derived by hand."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
from stable_baselines3 import PPO, SAC
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.monitor import Monitor
from stable_baselines3.common.vec_env import VecEnv, VecMonitor

from imagine.agents.practice import episodes, improvement
from imagine.agents.sb3 import PPOConfig, SACConfig, learn_sb3, sb3_actor, to_sb3
from imagine.agents.steer import AgentPolicy
from imagine.configs import cli
from imagine.types import ImagineError
from imagine.world.env import EnvConfig, Outcome, WorldModelVectorEnv, episode_seed

HORIZON = 4
NAMES = 997  # episodes are told apart by their seed modulo this prime


def length(seed: int) -> int:
    return 2 + seed % 4


def succeeds(seed: int) -> bool:
    """At its full length; else it becomes unbelievable then, or is cut short by the horizon before."""
    return seed % 3 > 0


class CounterWorld:
    """Observation (t, episode): episodes of 2 to 5 chunks, of which some terminate and some truncate."""

    def __init__(self) -> None:
        self.single_observation_space: gym.Space[Any] = gym.spaces.Box(0, 1000, (2,), np.float32)
        self.single_action_space = gym.spaces.Box(-2, 2, (3,), np.float32)
        self.metadata: dict[str, Any] = {"render_fps": 6}

    def allocate(self, num_envs: int) -> None:
        self.t, self.seeds = np.zeros(num_envs, int), np.zeros(num_envs, np.int64)

    def reset(self, lanes: np.ndarray, seeds: Sequence[int], options: Mapping[str, Any]) -> dict[str, Any]:
        self.t[lanes], self.seeds[lanes] = 0, seeds
        told = options.get("instruction", "count")
        return {"instruction": np.array([told for _ in seeds], object), "start_id": np.array(seeds)}

    def step(self, actions: np.ndarray) -> Outcome:
        self.t += 1
        over = self.t >= [length(s) for s in self.seeds]
        won = over & np.array([succeeds(s) for s in self.seeds])
        info = {"valid": np.ones(len(over), bool), "reward_terms": {"steps": self.t.astype(np.float32)}}
        return Outcome(self.t.astype(np.float32), won, ~(over & ~won), info)

    def observe(self) -> Any:
        return np.stack([self.t, self.seeds % NAMES], 1).astype(np.float32)

    def snapshot(self) -> Any:
        return self.t.copy(), self.seeds.copy()

    def restore(self, state: Any) -> None:
        self.t, self.seeds = (x.copy() for x in state)

    def frames(self, lane: int) -> np.ndarray:
        return np.full((2, 4, 4, 3), self.t[lane], np.uint8)


class DictWorld(CounterWorld):
    """The same with a Dict observation."""

    def __init__(self) -> None:
        super().__init__()
        self.single_observation_space = gym.spaces.Dict({"count": self.single_observation_space})

    def observe(self) -> Any:
        return {"count": super().observe()}


class TargetWorld(CounterWorld):
    """An episode shows a sign and is one chunk long; it succeeds if the action is near half that sign."""

    def step(self, actions: np.ndarray) -> Outcome:
        self.t += 1
        error = np.abs(actions - 0.5 * self.observe()[:, 1:]).max(1)
        return Outcome(-(error**2).astype(np.float32), error < 0.5, error < 0.5, {})

    def observe(self) -> Any:
        return np.stack([self.t, self.seeds % 2 * 2 - 1], 1).astype(np.float32)


def make(world: CounterWorld | None = None, lanes: int = 5, mode: str = "SameStep", **kwargs: Any) -> Any:
    cfg = EnvConfig(horizon=HORIZON)
    return WorldModelVectorEnv(world or CounterWorld(), lanes, cfg=cfg, autoreset_mode=mode, **kwargs)


class Reference:
    """One lane of the counter world by hand."""

    def __init__(self, seed: int) -> None:
        self.first, self.number, self.t = seed, 0, 0

    @property
    def seed(self) -> int:
        return episode_seed(self.first, self.number)

    def observe(self) -> list[float]:
        return [self.t, self.seed % NAMES]

    def step(self) -> tuple[list[float], bool, bool]:
        """Last observation of this step's episode, whether it succeeded and whether it was cut short."""
        self.t += 1
        seen, over = self.observe(), self.t >= length(self.seed)
        won = over and succeeds(self.seed)
        cut = (over and not won) or self.t >= HORIZON
        if won or cut:
            self.number, self.t = self.number + 1, 0
        return seen, won, cut


@pytest.mark.parametrize("world", [CounterWorld, DictWorld])
def test_every_step_is_what_the_library_expects(world: type[CounterWorld]) -> None:
    def plain(observation: Any) -> np.ndarray:
        return observation["count"] if world is DictWorld else observation

    env = to_sb3(make(world()))
    env.seed(40)
    lanes = [Reference(40 + i) for i in range(5)]
    kinds = set()
    assert plain(env.reset()).tolist() == [lane.observe() for lane in lanes]
    for _ in range(60):
        observation, reward, done, infos = env.step(np.zeros((5, 3), np.float32))
        for i, lane in enumerate(lanes):
            last, won, cut = lane.step()
            assert reward[i] == last[0] and done[i] == (won or cut)
            assert plain(observation)[i].tolist() == lane.observe(), "the next episode's first, where one has ended"
            told = infos[i]
            assert told["elapsed_chunks"] == last[0] and told["reward_terms"] == {"steps": last[0]}
            assert told["valid"] is True and isinstance(told["elapsed_chunks"], int)
            assert ("terminal_observation" in told) == done[i] == ("TimeLimit.truncated" in told)
            if done[i]:
                assert plain(told["terminal_observation"]).tolist() == last
                assert told["TimeLimit.truncated"] is (cut and not won) and told["is_success"] is won
                assert env.reset_infos[i]["start_id"] == lane.seed
                kinds.add((won, cut))
    assert kinds == {(True, False), (False, True), (True, True)}


@pytest.mark.parametrize("mode", ["NextStep", "Disabled"])
def test_another_autoreset_mode_is_refused_with_the_remedy(mode: str) -> None:
    with pytest.raises(ImagineError, match=f"{mode}, expected SameStep.*autoreset_mode='SameStep'"):
        to_sb3(make(mode=mode))


def test_seeds_and_options_reach_the_next_reset_alone() -> None:
    env = to_sb3(make(lanes=2))
    env.seed(7)
    env.set_options({"instruction": "go"})
    first = env.reset()
    assert first[:, 1].tolist() == [7, 8] and env.reset_infos[1] == {
        "instruction": "go", "start_id": 8, "elapsed_chunks": 0,
    }  # fmt: skip
    second = env.reset()
    assert second[:, 1].tolist() == [episode_seed(s, 1) % NAMES for s in (7, 8)]
    assert env.reset_infos[0]["instruction"] == "count"
    env.set_options([{"instruction": "go"}, {}])
    with pytest.raises(ImagineError, match="expected one for all"):
        env.reset()


def test_lanes_are_one_environment_to_whoever_asks() -> None:
    env = to_sb3(make(lanes=3, render_mode="rgb_array"))
    assert isinstance(env, VecEnv) and env.render_mode == "rgb_array" and env.num_envs == 3
    assert env.get_attr("num_envs") == [3, 3, 3] and env.get_attr("num_envs", 1) == [3]
    assert env.has_attr("world") and not env.has_attr("nothing")
    env.set_attr("mark", 5)
    assert env.get_attr("mark", [0, 2]) == [5, 5] and env.env_is_wrapped(Monitor) == [False] * 3
    env.reset()
    assert len(env.env_method("snapshot")) == 3
    for call in (lambda: env.set_attr("mark", 6, 0), lambda: env.env_method("snapshot", indices=[1])):
        with pytest.raises(ImagineError, match="they are one environment"):
            call()
    env.step(np.zeros((3, 3), np.float32))
    picture = env.render()
    assert picture is not None and picture.max() == 1
    env.close()
    with pytest.raises(gym.error.ClosedEnvironmentError):
        env.reset()


class Watch(BaseCallback):
    """Keeps what PPO took for the start of an episode."""

    def __init__(self) -> None:
        super().__init__()
        self.rollouts: list[tuple[np.ndarray, np.ndarray]] = []

    def _on_step(self) -> bool:
        return True

    def _on_rollout_end(self) -> None:
        buffer = self.locals["rollout_buffer"]
        self.rollouts.append((buffer.observations.copy(), buffer.episode_starts.copy()))


def test_sac_remembers_where_each_step_led_and_how_it_ended() -> None:
    agent = SAC("MlpPolicy", to_sb3(make()), learning_starts=10_000, seed=3)
    agent.learn(300)
    memory = agent.replay_buffer
    assert memory is not None
    before, after = memory.observations[:60], memory.next_observations[:60]  # type: ignore[attr-defined]
    done, cut = memory.dones[:60], memory.timeouts[:60]  # type: ignore[attr-defined]
    np.testing.assert_array_equal(after[..., 0], before[..., 0] + 1)
    np.testing.assert_array_equal(after[..., 1], before[..., 1], "never the next episode's")
    np.testing.assert_array_equal(before[1:, :, 0] == 0, done[:-1] > 0)
    assert cut.any() and (done > cut).any() and not (cut > done).any()


def test_ppo_begins_episodes_where_they_begin() -> None:
    watch = Watch()
    PPO("MlpPolicy", VecMonitor(to_sb3(make())), n_steps=32, batch_size=160, n_epochs=1, seed=3).learn(320, watch)
    assert len(watch.rollouts) == 2
    for observations, starts in watch.rollouts:
        np.testing.assert_array_equal(observations[..., 0] == 0, starts > 0)


def test_dict_observations_are_learnt_from() -> None:
    for algorithm, how in ((PPO, {"n_steps": 8, "batch_size": 40}), (SAC, {"learning_starts": 20, "batch_size": 8})):
        agent = algorithm("MultiInputPolicy", to_sb3(make(DictWorld())), seed=0, **how)  # type: ignore[operator]
        assert agent.learn(80).num_timesteps == 80


FAST: dict[str, Any] = {"width": 16, "layers": 1, "points": 4}


def returns(folder: Path, algorithm: Any, drawn: int | None = None) -> np.ndarray:
    """Of the agent in a folder, over 20 episodes that it did not learn from."""
    env = make(TargetWorld(), lanes=10)
    return episodes(env, AgentPolicy(sb3_actor(folder / "model.zip", algorithm, drawn)), range(70, 90))[0]


@pytest.mark.parametrize(
    ("algorithm", "cfg"),
    [
        ("ppo", PPOConfig(steps=2560, lr=3e-3, rollout=32, batch=64, **FAST)),
        (
            "sac",
            SACConfig(steps=400, lr=1e-2, warmup=100, batch=32, updates=1, temperature=None, target_entropy=-3, **FAST),
        ),
    ],
)
def test_both_learn_what_is_easy(algorithm: Any, cfg: PPOConfig | SACConfig, tmp_path: Path) -> None:
    told: list[tuple[int, int]] = []
    env = make(TargetWorld(), lanes=10)
    answer = learn_sb3(env, algorithm, cfg, tmp_path, 5, lambda done, total: told.append((done, total)))
    untrained = episodes(env, AgentPolicy(lambda seen: np.zeros((len(seen), 3), np.float32)), range(70, 90))[0]
    gain = improvement(untrained, returns(tmp_path, algorithm))["gain"]
    assert gain["ci_low"] > 0.1 and gain["n"] == 20
    assert episodes(env, AgentPolicy(sb3_actor(tmp_path / "model.zip", algorithm)), range(70, 90))[1].all(), (
        "every one succeeds"
    )
    curve = answer["curve"]
    assert [p["steps"] for p in curve] == [cfg.steps * k // 4 for k in (1, 2, 3, 4)]
    assert sum(p["episodes"] for p in curve) == cfg.steps, "an episode is one step here"
    assert curve[-1]["return"] > curve[0]["return"] and told[-1] == (cfg.steps, cfg.steps)
    assert {p.name for p in tmp_path.iterdir()} == {"model.zip", "tensorboard"}
    assert list(tmp_path.glob("tensorboard/*/events*"))
    assert (PPO if algorithm == "ppo" else SAC).load(tmp_path / "model.zip").num_timesteps == cfg.steps


def test_the_same_seed_learns_and_draws_the_same(tmp_path: Path) -> None:
    cfg = PPOConfig(steps=160, rollout=8, batch=40, **FAST)
    seeds = {"a": 5, "b": 5, "c": 6}
    one, two, other = (learn_sb3(make(TargetWorld()), "ppo", cfg, tmp_path / n, s) for n, s in seeds.items())
    assert one == two != other
    assert (returns(tmp_path / "a", "ppo") == returns(tmp_path / "b", "ppo")).all()
    assert (returns(tmp_path / "a", "ppo", 1) == returns(tmp_path / "b", "ppo", 1)).all()
    for name, drawn in (("c", None), ("a", 1), ("a", 2)):
        assert (returns(tmp_path / name, "ppo", drawn) != returns(tmp_path / "a", "ppo")).any()


def test_ppo_begins_at_zero(tmp_path: Path) -> None:
    cfg = PPOConfig(steps=40, rollout=8, batch=40, lr=1e-12, **FAST)
    learn_sb3(make(TargetWorld()), "ppo", cfg, tmp_path, 5)
    assert returns(tmp_path, "ppo") == pytest.approx(-0.25), "mean 0, half a sign away"


def test_a_fixed_deviation_stays_and_a_free_one_moves(tmp_path: Path) -> None:
    for fixed in (True, False):
        cfg = PPOConfig(steps=80, rollout=8, batch=40, log_std=-0.5, fixed=fixed, **FAST)
        learn_sb3(make(TargetWorld()), "ppo", cfg, tmp_path, 5)
        deviation = PPO.load(tmp_path / "model.zip").policy.log_std.detach().numpy()
        assert (deviation == -0.5).all() == fixed


def test_episodes_are_whole_first_ones_of_their_own_starts() -> None:
    env = make()
    total, won = episodes(
        env, AgentPolicy(lambda seen: np.zeros((len(seen), *env.single_action_space.shape))), range(70, 77)
    )
    runs = [min(length(s), HORIZON) for s in range(70, 77)]
    assert total.tolist() == [sum(range(1, n + 1)) for n in runs]
    assert won.tolist() == [succeeds(s) and length(s) <= HORIZON for s in range(70, 77)]


def test_what_cannot_be_learnt_is_refused_in_a_sentence(tmp_path: Path) -> None:
    cases: list[tuple[Any, Any, str]] = [
        ("ppo", SACConfig(), "got algorithm 'ppo' with SACConfig, expected ppo or sac"),
        ("td3", PPOConfig(), "got algorithm 'td3'"),
    ]
    for algorithm, cfg, sentence in cases:
        with pytest.raises(ImagineError, match=sentence):
            learn_sb3(make(), algorithm, cfg, tmp_path, 0)


@pytest.mark.slow
@pytest.mark.parametrize("words", [["--with", "sb3-ppo", "--how", "residual"], ["--with", "sb3-sac-noise"]])
def test_the_command_learns_on_the_shipped_model(
    words: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    few = ["--steps", "16", "--num-envs", "2", "--test-episodes", "2"]
    few += ["--sim-episodes", "2", "--horizon", "1", "--json"]
    assert cli.main(["finetune", "steer", *words, *few, "--out", str(tmp_path)]) == 0
    answer = json.loads(capsys.readouterr().out)
    assert answer["with"] == words[1] and answer["success"]["after"]["n"] == 2 and answer["curve"]
    assert answer["judge"] == "judge-tiny" and answer["second_judge"]["name"] == "latent" and answer["warning"]
    assert {"model.zip", "metrics.json", "config.yaml"} <= {p.name for p in tmp_path.iterdir()}
    assert answer["return"]["gain"]["n"] == answer["sim"]["gain"]["n"] == len(answer["sim"]["each"]["after"]) == 2


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["--with", "sb3-dqn"], "expected one of sb3-ppo, sb3-sac-noise, rllib-ppo"),
        (["--with", "sb3-sac-noise", "--how", "chunk"], "steers noise, got --how chunk"),
        (["--how", "magic"], "expected one of noise, residual, chunk"),
        (["--test-episodes", "0"], "--test-episodes is 0, expected at least 1"),
        (["--adapter", "random"], "cannot be steered"),
        (["--seed", "900000"], "among the test's"),
    ],
)
def test_a_bad_request_to_learn_is_one_sentence(
    words: list[str], told: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(["finetune", "steer", *words, "--out", str(tmp_path)]) == 2
    assert told in " ".join(capsys.readouterr().err.split())
