"""The gym's contract, on a world that only counts: every number it gives can be derived by hand."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
from gymnasium.utils.env_checker import check_env
from gymnasium.vector import AutoresetMode, SyncVectorEnv
from gymnasium.wrappers.vector import RecordEpisodeStatistics

from imagine.types import ImagineError, ShapeError
from imagine.world.env import EnvConfig, EnvState, Outcome, World, WorldModelEnv, WorldModelVectorEnv, episode_seed

HORIZON = 5
SUCCESS, DOUBT = 0.8, 0.8  # an action above them ends the episode
OBSERVATIONS = gym.spaces.Box(-100, float(2**63), (3,), np.float64)
ACTIONS = gym.spaces.Box(-1, 1, (2, 2), np.float32)


def success(action: np.ndarray) -> Any:
    return action[..., 0, 0] > SUCCESS


def doubt(action: np.ndarray) -> Any:
    return action[..., 1, 1] > DOUBT


class CounterWorld:
    """Observation (3,): seed of the episode, sum of all actions, chunks so far."""

    def __init__(self) -> None:
        self.single_observation_space, self.single_action_space = OBSERVATIONS, ACTIONS
        self.metadata: dict[str, Any] = {"render_fps": 6, "control_hz": 30}
        self.steps = 0
        self.told: list[Mapping[str, Any]] = []

    def allocate(self, num_envs: int) -> None:
        self.state = np.zeros((num_envs, 3))

    def reset(self, envs: np.ndarray, seeds: Sequence[int], options: Mapping[str, Any]) -> dict[str, Any]:
        self.told.append(options)
        self.state[envs] = [(seed, 0, 0) for seed in seeds]
        return {
            "instruction": np.array([f"count from {s}" for s in seeds], object),
            "lucky": np.array([s % 7 for s in seeds]),
        }

    def step(self, actions: np.ndarray) -> Outcome:
        self.steps += 1
        self.state[:, 1] += actions.sum((1, 2))
        self.state[:, 2] += 1
        reward = (self.state[:, 2] + actions.sum((1, 2))).astype(np.float32)
        info = {
            "hallucination": actions.max((1, 2)),
            "reward_terms": {"steps": self.state[:, 2].copy(), "pair": actions[:, 0].copy()},
            "lucky": np.full(len(actions), 9),
        }
        return Outcome(reward, success(actions), ~doubt(actions), info)

    def observe(self) -> np.ndarray:
        return self.state.copy()

    def snapshot(self) -> np.ndarray:
        return self.state.copy()

    def restore(self, state: np.ndarray) -> None:
        self.state = state.copy()

    def frames(self, env: int) -> np.ndarray:
        return np.full((2, 4, 4, 3), self.state[env, 2], np.uint8)


class ScalarCounter(gym.Env[np.ndarray, np.ndarray]):
    """The same by hand, one lane, for Gymnasium's own vectoriser."""

    def __init__(self) -> None:
        self.observation_space, self.action_space = OBSERVATIONS, ACTIONS
        self.first, self.number, self.total, self.chunks = 0, 0, 0.0, 0

    def observe(self) -> np.ndarray:
        return np.array([episode_seed(self.first, self.number), self.total, self.chunks], float)

    def reset(self, *, seed: int | None = None, options: Any = None) -> tuple[np.ndarray, dict[str, Any]]:
        self.first, self.number = (self.first, self.number + 1) if seed is None else (seed, 0)
        self.total, self.chunks = 0.0, 0
        now = episode_seed(self.first, self.number)
        return self.observe(), {"instruction": f"count from {now}", "lucky": now % 7, "elapsed_chunks": 0}

    def step(self, action: np.ndarray) -> tuple[np.ndarray, float, bool, bool, dict[str, Any]]:
        self.total += action.sum()
        self.chunks += 1
        truncated = self.chunks >= HORIZON or bool(doubt(action))
        info = {
            "hallucination": action.max(),
            "reward_terms": {"steps": float(self.chunks), "pair": action[0]},
            "lucky": 9,
            "unbelievable": bool(doubt(action)),
            "elapsed_chunks": self.chunks,
        }
        return self.observe(), float(self.chunks + action.sum()), bool(success(action)), truncated, info


def make(num_envs: int = 1, **kwargs: Any) -> WorldModelVectorEnv:
    return WorldModelVectorEnv(CounterWorld(), num_envs, cfg=EnvConfig(horizon=HORIZON), **kwargs)


def chunks(num_envs: int, steps: int, seed: int = 0) -> np.ndarray:
    """Random, and of so few digits that sums are exact in any order."""
    return (np.random.default_rng(seed).integers(-64, 65, (steps, num_envs, 2, 2)) / 64).astype(np.float32)


def quiet(num_envs: int) -> np.ndarray:
    return np.zeros((num_envs, 2, 2), np.float32)


def assert_same(ours: Any, theirs: Any, where: str = "") -> None:
    if isinstance(theirs, dict):
        assert set(ours) == set(theirs), where
        for key in theirs:
            assert_same(ours[key], theirs[key], f"{where}/{key}")
    elif isinstance(theirs, np.ndarray) and theirs.dtype.hasobject:
        for a, b in zip(ours, theirs, strict=True):
            assert (a is None) == (b is None), where
            np.testing.assert_array_equal(a, b, where)
    else:
        np.testing.assert_array_equal(ours, theirs, where)
        if where and isinstance(theirs, np.ndarray):
            assert ours.dtype == theirs.dtype, where


MODES = list(AutoresetMode)


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("seed", [0, 1])
def test_every_mode_is_gymnasiums_own_over_a_few_episodes(mode: AutoresetMode, seed: int) -> None:
    ours = make(4, autoreset_mode=mode)
    theirs = SyncVectorEnv([ScalarCounter] * 4, autoreset_mode=mode)
    began, as_they_do = ours.reset(seed=10), theirs.reset(seed=10)
    np.testing.assert_array_equal(began[0], as_they_do[0])
    assert_same(began[1], as_they_do[1], "info")
    ended = np.zeros(4, int)
    for actions in chunks(4, 60, seed):
        got, want = ours.step(actions), theirs.step(actions)
        for mine, other in zip(got[:4], want[:4], strict=True):
            np.testing.assert_array_equal(mine, other)
        assert_same(got[4], want[4], "info")
        done = want[2] | want[3]
        ended += done
        if mode is AutoresetMode.DISABLED and done.any():
            got, want = (env.reset(options={"reset_mask": done.copy()}) for env in (ours, theirs))
            np.testing.assert_array_equal(got[0], want[0])
            assert_same(got[1], want[1], "info")
    assert (ended >= 3).all()


def test_next_step_shows_the_last_observation_and_then_the_first() -> None:
    env = make(2)
    env.reset(seed=3)
    for _ in range(HORIZON):
        obs, _, terminated, truncated, info = env.step(quiet(2))
    assert obs[:, 2].tolist() == [HORIZON] * 2
    assert truncated.all() and not terminated.any() and not info["unbelievable"].any()
    obs, reward, terminated, truncated, info = env.step(quiet(2) + 0.9)  # the action is ignored
    assert obs[:, 1:].tolist() == [[0, 0]] * 2 and not reward.any() and not (terminated | truncated).any()
    assert info["instruction"][0] == f"count from {episode_seed(3, 1)}"
    assert env.world.steps == HORIZON  # type: ignore[attr-defined]  # nothing was imagined for nobody


def test_same_step_keeps_the_last_observation_and_info_aside() -> None:
    env = make(2, autoreset_mode="SameStep")
    env.reset(seed=3)
    actions = quiet(2)
    actions[1, 0, 0] = 0.9
    obs, _, terminated, truncated, info = env.step(actions)
    assert terminated.tolist() == [False, True] and not truncated.any()
    assert info["_final_obs"].tolist() == info["_final_info"].tolist() == [False, True]
    assert info["final_obs"][0] is None and info["final_obs"][1].tolist() == [4, np.float32(0.9), 1]
    assert info["final_info"]["elapsed_chunks"].tolist() == [0, 1]
    assert obs[1].tolist() == [float(episode_seed(4, 1)), 0, 0] and info["elapsed_chunks"].tolist() == [1, 0]
    assert "final_obs" not in env.step(quiet(2))[4]


def test_success_and_disbelief_are_kept_apart() -> None:
    env = make(4)
    env.reset(seed=0)
    actions = quiet(4)
    actions[1, 0, 0] = actions[2, 1, 1] = actions[3, 0, 0] = actions[3, 1, 1] = 0.9
    _, _, terminated, truncated, info = env.step(actions)
    assert terminated.tolist() == [False, True, False, True]
    assert truncated.tolist() == info["unbelievable"].tolist() == [False, False, True, True]


def test_disbelief_only_truncates_when_asked_to() -> None:
    env = WorldModelVectorEnv(CounterWorld(), cfg=EnvConfig(truncate_unbelievable=False))
    env.reset(seed=0)
    actions = quiet(1)
    actions[0, 1, 1] = 0.9
    _, _, _, truncated, info = env.step(actions)
    assert info["unbelievable"].all() and not truncated.any()


def test_an_unbelievable_first_chunk_ends_the_episode_one_chunk_later_and_pays_nothing_more() -> None:
    world = CounterWorld()
    env = WorldModelVectorEnv(world, 3, cfg=EnvConfig(horizon=HORIZON, min_chunks=2), autoreset_mode="SameStep")
    env.reset(seed=0)
    lost, won = quiet(3), quiet(3)
    lost[0, 1, 1] = 0.9
    won[:2, 0, 0] = 0.9
    _, reward, terminated, truncated, info = env.step(lost)
    assert info["unbelievable"].tolist() == [True, False, False] and not (truncated | terminated).any()
    assert reward[0] > 0, "the chunk itself is paid as it was judged"
    state, after = env.snapshot(), []
    for _ in range(2):
        env.restore(state)
        after.append(env.step(won))
        _, reward, terminated, truncated, info = after[-1]
        assert info["final_info"]["unbelievable"].tolist() == [True, False, False]
        assert truncated.tolist() == [True, False, False] and terminated.tolist() == [False, True, False]
        assert reward[0] == 0 and (reward[1:] > 0).all()
    late = quiet(3)
    late[2, 1, 1] = 0.9
    assert env.step(late)[3].tolist() == [False, False, True], "later chunks end it at once"
    assert not env.step(quiet(3))[4]["unbelievable"].any()


@pytest.mark.parametrize("mode", [AutoresetMode.NEXT_STEP, AutoresetMode.SAME_STEP])
def test_a_lane_of_many_is_a_lane_alone(mode: AutoresetMode) -> None:
    many, alone = make(3, autoreset_mode=mode), [make(1, autoreset_mode=mode) for _ in range(3)]
    batch, _ = many.reset(seed=20)
    for i, env in enumerate(alone):
        np.testing.assert_array_equal(env.reset(seed=20 + i)[0][0], batch[i])
    for actions in chunks(3, 40, 1):
        batch = many.step(actions)
        for i, env in enumerate(alone):
            for mine, whole in zip(env.step(actions[i : i + 1])[:4], batch[:4], strict=True):
                assert mine[0].tobytes() == whole[i].tobytes()


def test_autoreset_mode_does_not_change_which_episodes_follow() -> None:
    def starts(mode: str) -> list[float]:
        env, seen = make(autoreset_mode=mode), []
        obs, _ = env.reset(seed=8)
        while len(seen) < 4:
            if obs[0, 2] == 0:
                seen.append(obs[0, 0])
            obs, _, _, truncated, _ = env.step(quiet(1))
            if mode == "Disabled" and truncated.any():
                obs, _ = env.reset()
        return seen

    assert starts("NextStep") == starts("SameStep") == starts("Disabled") == [episode_seed(8, n) for n in range(4)]


def as_bytes(result: Any) -> Iterator[bytes]:
    if isinstance(result, dict):
        for key in sorted(result):
            yield from as_bytes(result[key])
    elif isinstance(result, tuple):
        for part in result:
            yield from as_bytes(part)
    else:
        yield repr(result.tolist()).encode() if result.dtype == object else result.tobytes()


def replay(env: WorldModelVectorEnv, actions: np.ndarray) -> list[bytes]:
    return [part for a in actions for part in as_bytes(env.step(a))]


@pytest.mark.parametrize("mode", [AutoresetMode.NEXT_STEP, AutoresetMode.SAME_STEP])
def test_a_restored_dream_goes_on_with_the_same_bytes(mode: AutoresetMode) -> None:
    env, actions = make(4, autoreset_mode=mode), chunks(4, 30, 2)
    env.reset(seed=5)
    for before in range(0, 12, 3):  # snapshots in the middle of episodes and at their ends
        replay(env, actions[before : before + 3])
        state = env.snapshot()
        first = replay(env, actions)
        for again in (env, make(4, autoreset_mode=mode)):
            again.restore(state)
            assert replay(again, actions) == first


def test_what_a_step_gave_is_not_changed_by_the_next() -> None:
    env = make(3, autoreset_mode="SameStep")
    given = [env.reset(seed=1)]
    before = [list(as_bytes(given[0]))]
    for actions in chunks(3, 12, 3):
        given.append(env.step(actions))
        before.append(list(as_bytes(given[-1])))
    assert [list(as_bytes(copy.deepcopy(g))) for g in given] == before


def test_without_a_seed_the_first_episodes_are_drawn_and_the_next_follow() -> None:
    drawn = [make(2).reset()[0][:, 0] for _ in range(2)]
    assert len(np.unique(drawn)) == 4
    env = make(2)
    env.reset(seed=4)
    np.testing.assert_array_equal(env.reset()[0][:, 0], [episode_seed(4, 1), episode_seed(5, 1)])
    np.testing.assert_array_equal(env.reset(seed=[9, None])[0][:, 0], [9, episode_seed(5, 2)])


def test_options_reach_the_world_once() -> None:
    env = make(1)
    options = {"instruction": "count", "reset_mask": np.ones(1, bool)}
    env.reset(seed=0, options=options)
    for _ in range(HORIZON + 1):
        env.step(quiet(1))
    assert env.world.told == [{"instruction": "count"}, {}]  # type: ignore[attr-defined]
    assert "reset_mask" in options


@pytest.mark.parametrize("mode", MODES)
def test_a_partial_reset_leaves_the_other_lanes_alone(mode: AutoresetMode) -> None:
    env = make(3, autoreset_mode=mode)
    env.reset(seed=0)
    env.step(quiet(3))
    obs, info = env.reset(options={"reset_mask": np.array([False, True, False])})
    assert obs[:, 2].tolist() == [1, 0, 1]
    assert info["_instruction"].tolist() == [False, True, False] and info["instruction"][0] is None
    assert env.step(quiet(3))[4]["elapsed_chunks"].tolist() == [2, 1, 2]


def test_spaces_metadata_and_config() -> None:
    env = make(3, autoreset_mode="SameStep", max_episode_steps=2)
    assert isinstance(env.world, World)
    assert env.metadata["autoreset_mode"] is AutoresetMode.SAME_STEP and env.metadata["control_hz"] == 30
    assert env.metadata["render_fps"] == 6 and env.cfg.horizon == 2
    assert env.action_space.shape == (3, 2, 2) and env.reset(seed=0)[0] in env.observation_space
    env.step(quiet(3))
    assert env.step(quiet(3))[3].all()
    assert WorldModelVectorEnv.metadata["autoreset_mode"] is AutoresetMode.NEXT_STEP


def test_rendering_shows_the_newest_frame_of_every_lane() -> None:
    env = make(2, render_mode="rgb_array")
    env.reset(seed=0)
    env.step(quiet(2))
    frames = env.render()
    assert frames is not None and [f.shape for f in frames] == [(4, 4, 3)] * 2 and frames[1].max() == 1
    silent = make(1)
    silent.reset(seed=0)
    assert silent.render() is None


class DictWorld(CounterWorld):
    """The same with a Dict observation, as robots have it."""

    def __init__(self) -> None:
        super().__init__()
        self.single_observation_space = gym.spaces.Dict({"count": OBSERVATIONS})  # type: ignore[assignment]

    def observe(self) -> Any:
        return {"count": self.state.copy()}


@pytest.mark.parametrize("world", [CounterWorld, DictWorld])
@pytest.mark.filterwarnings("ignore::UserWarning")
def test_the_single_lane_passes_gymnasiums_checker(world: type[CounterWorld]) -> None:
    def build(**kwargs: Any) -> WorldModelEnv:
        return WorldModelEnv(world(), **kwargs)

    env = build(render_mode="rgb_array")
    env.spec = gym.envs.registration.EnvSpec("CounterDream-v0", build, nondeterministic=False)
    check_env(env)


def test_the_single_lane_is_lane_zero() -> None:
    one, vector = WorldModelEnv(CounterWorld(), render_mode="rgb_array"), make(1, autoreset_mode="Disabled")
    obs, info = one.reset(seed=6)
    assert obs.tolist() == [6, 0, 0] and info == {"instruction": "count from 6", "lucky": 6, "elapsed_chunks": 0}
    vector.reset(seed=6)
    action = quiet(1)[0] + 0.5
    obs, reward, terminated, truncated, info = one.step(action)
    batch = vector.step(action[None])
    assert obs.tobytes() == batch[0][0].tobytes() and reward == batch[1][0]
    assert terminated is False and truncated is False and isinstance(reward, float)
    assert info["reward_terms"]["steps"] == 1 and set(info) == {k for k in batch[4] if not k.startswith("_")}
    frame = one.render()
    assert frame is not None and frame.shape == (4, 4, 3)
    state = one.snapshot()
    assert isinstance(state, EnvState)
    after = one.step(action)[0]
    one.restore(state)
    np.testing.assert_array_equal(one.step(action)[0], after)


def test_dict_observations_keep_their_final_rows() -> None:
    env = WorldModelVectorEnv(DictWorld(), 2, cfg=EnvConfig(horizon=1), autoreset_mode="SameStep")
    env.reset(seed=0)
    obs, _, _, _, info = env.step(quiet(2))
    assert info["final_obs"][1]["count"].tolist() == [1, 0, 1] and obs["count"][1, 2] == 0


@pytest.mark.parametrize("mode", [AutoresetMode.NEXT_STEP, AutoresetMode.SAME_STEP])
def test_episode_statistics_of_gymnasium_work(mode: AutoresetMode) -> None:
    env = RecordEpisodeStatistics(make(2, autoreset_mode=mode))
    env.reset(seed=0)
    for _ in range(HORIZON):
        info = env.step(quiet(2))[4]
    assert info["episode"]["l"].tolist() == [HORIZON] * 2
    assert info["episode"]["r"].tolist() == [sum(range(1, HORIZON + 1))] * 2
    for _ in range(HORIZON + 1):
        env.step(quiet(2))
    assert env.episode_count == 4


def counter_vector_env(num_envs: int = 1, **kwargs: Any) -> WorldModelVectorEnv:
    return WorldModelVectorEnv(CounterWorld(), num_envs, **kwargs)


def counter_env(**kwargs: Any) -> WorldModelEnv:
    return WorldModelEnv(CounterWorld(), **kwargs)


def test_gymnasium_makes_it() -> None:
    name = "test/CounterDream-v0"
    gym.register(name, counter_env, vector_entry_point=counter_vector_env, max_episode_steps=3)
    try:
        vector = gym.make_vec(name, num_envs=2, autoreset_mode="SameStep")
        assert isinstance(vector, WorldModelVectorEnv) and vector.spec is not None
        vector.reset(seed=0)
        assert [bool(vector.step(quiet(2))[3].all()) for _ in range(4)] == [False, False, True, False]
        vector.close()
        single = gym.make(name, render_mode="rgb_array")
        single.reset(seed=0)
        assert [single.step(quiet(1)[0])[3] for _ in range(3)] == [False, False, True]
        single.close()
    finally:
        gym.registry.pop(name)


@pytest.mark.parametrize(
    ("actions", "sentence"),
    [
        (np.zeros((2, 2), np.float32), r"shape \(2, 2\), expected \(2, 2, 2\)"),
        (np.zeros((3, 2, 2)), r"shape \(3, 2, 2\), expected \(2, 2, 2\); give one chunk per environment"),
        (
            np.array([[[0, 0], [0, 0]], [[0, np.nan], [0, 0]]]),
            r"environments \[1\] hold NaN or infinity, expected numbers",
        ),
        (np.full((2, 2, 2), np.inf), r"environments \[0, 1\] hold NaN"),
        ("wave", r"no array of numbers .* expected float32 \(2, 2, 2\)"),
        ([[1], [1, 2]], r"no array of numbers"),
    ],
)
def test_bad_actions_are_refused_in_a_sentence(actions: Any, sentence: str) -> None:
    env = make(2)
    env.reset(seed=0)
    with pytest.raises(ShapeError, match=sentence):
        env.step(actions)
    assert env.step(quiet(2))[4]["elapsed_chunks"].tolist() == [1, 1]  # nothing had been imagined


@pytest.mark.parametrize(
    ("kwargs", "sentence"),
    [
        ({"num_envs": 0}, "num_envs is 0"),
        ({"max_episode_steps": 0}, "horizon 0 chunks"),
        ({"autoreset_mode": "sometimes"}, "'sometimes' is unknown, expected one of NextStep, SameStep, Disabled"),
        ({"render_mode": "human"}, "'human' is unknown, expected None or 'rgb_array'"),
    ],
)
def test_bad_arguments_are_refused_in_a_sentence(kwargs: dict[str, Any], sentence: str) -> None:
    with pytest.raises(ImagineError, match=sentence):
        make(**kwargs)


@pytest.mark.parametrize("seed", [[1], [1, -1], -3, [1, 2, 3], 2**63, 2**63 - 1])
def test_bad_seeds_are_refused(seed: Any) -> None:
    with pytest.raises(ShapeError, match=r"expected 2 in \[0, 2\^63\)"):
        make(2).reset(seed=seed)


class Refusing(CounterWorld):
    """Has no start for even seeds."""

    def reset(self, envs: np.ndarray, seeds: Sequence[int], options: Mapping[str, Any]) -> dict[str, Any]:
        if any(s % 2 == 0 for s in seeds) or options.get("refuse"):
            raise ImagineError("no such start.")
        return super().reset(envs, seeds, options)


def test_a_reset_that_fails_changes_nothing() -> None:
    for make_env in (lambda: WorldModelVectorEnv(Refusing(), 1), lambda: WorldModelEnv(Refusing())):
        env: Any = make_env()
        env.reset(seed=3)
        before, generator = env.snapshot(), copy.deepcopy(env.np_random.bit_generator.state)
        for bad in ({"seed": 4}, {"seed": 2**63}, {"options": {"refuse": True}}):
            with pytest.raises(ImagineError):
                env.reset(**bad)
            now = env.snapshot()
            assert now.episodes == before.episodes and now.generator == before.generator
            assert (now.world == before.world).all() and (now.elapsed == before.elapsed).all()
            assert env.np_random.bit_generator.state == generator


@pytest.mark.parametrize("mask", [np.zeros(2, bool), np.ones(3, bool), np.ones(2), [True, False]])
def test_bad_reset_masks_are_refused(mask: Any) -> None:
    env = make(2)
    env.reset(seed=0)
    with pytest.raises(ShapeError, match=r"reset_mask is .*, expected bool \(2,\)"):
        env.reset(options={"reset_mask": mask})


def test_nothing_goes_on_before_a_reset_after_the_end_or_when_closed() -> None:
    env = make(2, autoreset_mode="Disabled", render_mode="rgb_array")
    for early in (lambda: env.step(quiet(2)), env.render, env.snapshot):
        with pytest.raises(gym.error.ResetNeeded, match="call reset first"):
            early()
    with pytest.raises(gym.error.ResetNeeded, match="reset all environments first"):
        env.reset(options={"reset_mask": np.array([True, False])})
    env.reset(seed=0)
    state = env.snapshot()
    with pytest.raises(ShapeError, match="has 2 environments, expected 3"):
        make(3).restore(state)
    actions = quiet(2)
    actions[1, 0, 0] = 0.9
    env.step(actions)
    with pytest.raises(gym.error.ResetNeeded, match=r"environments \[1\] are over"):
        env.step(quiet(2))
    env.reset(options={"reset_mask": np.array([False, True])})
    env.step(quiet(2))
    env.close()
    later = (env.reset, lambda: env.step(quiet(2)), env.render, env.snapshot, lambda: env.restore(state))
    for late in later:
        with pytest.raises(gym.error.ClosedEnvironmentError, match="is closed; build a new one"):
            late()
    alone = WorldModelEnv(CounterWorld())
    alone.reset(seed=0)
    alone.close()
    with pytest.raises(gym.error.ClosedEnvironmentError):
        alone.step(quiet(1)[0])
