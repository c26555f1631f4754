"""The dream behind the gym: bytes, snapshots, doubt, judgement, with a tiny random model."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch
from gymnasium.utils.env_checker import check_env
from gymnasium.vector import AutoresetMode

from imagine.model.model import WorldActionModel
from imagine.precision import has_bfloat16
from imagine.rewards.guards import GuardConfig, GuardedJudge
from imagine.rewards.progress import Potential
from imagine.types import Clip, ImagineError, RewardUnavailable, Score, ShapeError, UnknownWord
from imagine.world.dream import Dream, DreamConfig
from imagine.world.env import EnvConfig, WorldModelEnv, WorldModelVectorEnv
from imagine.world.starts import Start


class SeededStarts:
    """A different random observation for every seed."""

    def __call__(self, seed: int, options: Mapping[str, Any]) -> Start:
        rng = np.random.default_rng(seed)
        canvas = rng.integers(0, 256, (16, 16, 3), np.uint8)
        told = options.get("instruction") or ("push the red bowl", "reach the bowl")[seed % 2]
        return Start(canvas, rng.normal(size=3).astype(np.float32), told, f"seed-{seed}")


class Brightness:
    """A judge that looks at pixels; invalid where the instruction says reach."""

    def __init__(self, threshold: float = 2.0):
        self.threshold = threshold

    def __call__(self, clip: Clip, instruction: list[str]) -> Score:
        bright = clip.decode()[:, -1].float().flatten(1).mean(1) / 255
        valid = torch.tensor(["reach" not in i for i in instruction])
        done = bright > self.threshold
        return Score(done.float(), bright, valid, {"bright": bright}, terminated=done)


def dream(model: WorldActionModel, *, threshold: float = 2.0, **cfg: Any) -> Dream:
    return Dream(model, Brightness(threshold), SeededStarts(), DreamConfig(**cfg))


def chunks(n: int, count: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).uniform(-0.4, 0.4, (count, n, 4, 2)).astype(np.float32)


def play(env: WorldModelVectorEnv, actions: np.ndarray, seed: int = 5) -> list[tuple[Any, ...]]:
    obs, _ = env.reset(seed=seed)
    return [(obs,), *(env.step(a) for a in actions)]


def same(a: Any, b: Any) -> bool:
    if isinstance(a, Mapping):
        return a.keys() == b.keys() and all(same(a[k], b[k]) for k in a)
    return np.array_equal(np.asarray(a), np.asarray(b))


@pytest.mark.parametrize("n", [2, 9])
def test_a_lane_gives_the_same_bytes_whatever_the_number_of_lanes(tiny_model: WorldActionModel, n: int) -> None:
    actions = chunks(n, 3)
    many = play(WorldModelVectorEnv(dream(tiny_model), n), actions)
    for lane in (0, n - 1):
        alone = play(WorldModelVectorEnv(dream(tiny_model), 1), actions[:, lane : lane + 1], seed=5 + lane)
        for x, y in zip(many, alone, strict=True):
            for k, v in x[0].items():
                assert v[lane].tobytes() == y[0][k][0].tobytes(), k
        assert many[-1][4]["hallucination"][lane] == alone[-1][4]["hallucination"][0]


def test_same_seed_and_actions_replay_and_another_seed_does_not(tiny_model: WorldActionModel) -> None:
    actions = chunks(2, 3)
    a, b = (play(WorldModelVectorEnv(dream(tiny_model), 2), actions) for _ in range(2))
    assert all(same(x[0], y[0]) for x, y in zip(a, b, strict=True))
    c = play(WorldModelVectorEnv(dream(tiny_model), 2), actions, seed=6)
    assert not same(a[-1][0]["proprio"], c[-1][0]["proprio"])


def test_bfloat16_is_computed_in_where_the_chip_has_it_and_nowhere_else(tiny_model: WorldActionModel) -> None:
    def video(**cfg: Any) -> torch.Tensor:
        world = dream(tiny_model, **cfg)
        world.allocate(2)
        world.reset(np.arange(2), [3, 4], {})
        world.step(chunks(2, 1)[0])
        return world.newest

    assert torch.equal(video(), video(autocast=True)) != has_bfloat16("cpu")


def test_a_snapshot_forks_the_dream(tiny_model: WorldActionModel) -> None:
    env = WorldModelVectorEnv(dream(tiny_model), 2)
    env.reset(seed=1)
    first, *rest = chunks(2, 4)
    env.step(first)
    fork = env.snapshot()
    futures = []
    for _ in range(2):
        env.restore(fork)
        futures.append([env.step(a)[0] for a in rest])
    assert all(same(x, y) for x, y in zip(*futures, strict=True))
    env.restore(fork)
    assert not same(env.step(-rest[0])[0]["proprio"], futures[0][0]["proprio"])


def test_the_scalar_view_passes_gymnasiums_checker(tiny_model: WorldActionModel) -> None:
    check_env(WorldModelEnv(dream(tiny_model)), skip_render_check=True)


def test_judged_success_terminates_and_the_horizon_truncates(tiny_model: WorldActionModel) -> None:
    mode = AutoresetMode.DISABLED
    bright = WorldModelVectorEnv(dream(tiny_model, threshold=-1), 2, autoreset_mode=mode)
    bright.reset(seed=4)  # lane 0 pushes, lane 1 reaches: there the judge abstains
    _, reward, terminated, truncated, info = bright.step(chunks(2, 1)[0])
    assert terminated.tolist() == [True, False] and reward.tolist() == [1, 0] and not truncated.any()
    assert info["valid"].tolist() == [True, False], "an abstaining judge must be visible, not a silent 0"
    dark = WorldModelVectorEnv(dream(tiny_model), 1, cfg=EnvConfig(horizon=2), autoreset_mode=mode)
    dark.reset(seed=0)
    ends = [dark.step(a)[2:4] for a in chunks(1, 2)]
    assert [(bool(t[0]), bool(u[0])) for t, u in ends] == [(False, False), (False, True)]


def test_a_dream_nobody_can_believe_is_truncated_and_says_so(tiny_model: WorldActionModel) -> None:
    env = WorldModelVectorEnv(dream(tiny_model, hallucination_limit=0.0), 1)
    env.reset(seed=0)
    _, _, terminated, truncated, info = env.step(chunks(1, 1)[0])
    assert truncated[0] and not terminated[0] and info["unbelievable"][0] and info["hallucination"][0] > 0


def test_the_instruction_of_reset_is_followed_and_unknown_words_are_refused(tiny_model: WorldActionModel) -> None:
    env = WorldModelVectorEnv(dream(tiny_model), 2)
    obs, info = env.reset(seed=0, options={"instruction": "push the bowl"})
    assert info["instruction"].tolist() == ["push the bowl"] * 2
    assert bytes(obs["instruction"][1]).rstrip(b"\0") == b"push the bowl"
    with pytest.raises(UnknownWord, match=r"'schiebe'.*it knows: bowl"):
        env.reset(seed=0, options={"instruction": "schiebe the bowl"})


@pytest.mark.parametrize("spoil, told", [(np.nan, "NaN"), (50.0, "are the units right")])
def test_actions_in_wrong_units_are_refused(tiny_model: WorldActionModel, spoil: float, told: str) -> None:
    env = WorldModelVectorEnv(dream(tiny_model), 1)
    env.reset(seed=0)
    bad = chunks(1, 1)[0]
    bad[0, 1, 1] = spoil
    with pytest.raises(ShapeError, match=told):
        env.step(bad)


def test_frames_of_a_chunk_end_with_the_observation(tiny_model: WorldActionModel) -> None:
    world = dream(tiny_model)
    env = WorldModelVectorEnv(world, 1, render_mode="rgb_array")
    env.reset(seed=0)
    obs = env.step(chunks(1, 1)[0])[0]
    frames = world.frames(0)
    assert frames.shape == (2, 16, 16, 3) and frames.dtype == np.uint8
    assert np.abs(frames[-1].astype(int) - obs["head"][0]).max() <= 1
    picture = env.render()
    assert picture is not None and np.array_equal(picture[0], frames[-1])


def test_gymnasium_finds_the_dream_by_name() -> None:
    import imagine  # noqa: F401  (its import registers)

    assert gym.spec("imagine/G1Table-v0").vector_entry_point is not None


class Unreliable(Brightness):
    """A judge that cannot be reached at times, and keeps what it was shown."""

    def __init__(self, failures: int):
        super().__init__()
        self.failures, self.seen = failures, list[Clip]()

    def __call__(self, clip: Clip, instruction: list[str]) -> Score:
        self.seen.append(clip)
        if self.failures:
            self.failures -= 1
            raise RewardUnavailable("the judge is down, tried 4 times; start it.")
        return super().__call__(clip, instruction)


def test_a_judge_that_is_down_loses_no_rollout(tiny_model: WorldActionModel) -> None:
    """The step can be taken again: nothing had happened."""
    actions = chunks(2, 3)
    want = play(WorldModelVectorEnv(dream(tiny_model), 2), actions)
    judge = Unreliable(0)
    env = WorldModelVectorEnv(Dream(tiny_model, judge, SeededStarts(), DreamConfig()), 2)
    env.reset(seed=5)
    env.step(actions[0])
    judge.failures = 2
    for _ in range(2):
        with pytest.raises(RewardUnavailable):
            env.step(actions[1])
    for step, got in ((2, env.step(actions[1])), (3, env.step(actions[2]))):
        assert same(got[0], want[step][0]) and same(got[4], want[step][4])


def test_a_judge_is_told_what_was_commanded_and_from_where(tiny_model: WorldActionModel) -> None:
    judge = Unreliable(0)
    env = WorldModelVectorEnv(Dream(tiny_model, judge, SeededStarts(), DreamConfig(inverse_steps=1, tile=0)), 2)
    first, _ = env.reset(seed=5)
    actions = chunks(2, 1)[0]
    now, *_, info = env.step(actions)
    clip = judge.seen[0]
    assert clip.action is not None and clip.pose is not None and clip.inverse_error is not None
    np.testing.assert_allclose(clip.pose, first["proprio"][:, :2], atol=1e-4)
    np.testing.assert_allclose(clip.action, actions + first["proprio"][:, None, :2], atol=1e-4)
    assert clip.inverse_error.tolist() == info["hallucination"].tolist()
    shown = clip.decode()
    assert torch.equal(clip.decode([0, -1]), shown[:, [0, -1]])
    assert same(shown[:, -1].numpy(), now["head"])
    world = env.world
    assert torch.equal(shown[:, 0], world.start_canvas), "of the first frame, too, a judge sees what the codec keeps"
    assert same(first["head"], np.stack([SeededStarts()(s, {}).canvas for s in (5, 6)])), "who acts sees it whole"


class Halfway(Brightness):
    """Progress is brightness; the second step of lane 0 is a success."""

    def __call__(self, clip: Clip, instruction: list[str]) -> Score:
        score = super().__call__(clip, instruction)
        return Score(score.reward, score.success, torch.ones(len(instruction), dtype=torch.bool),
                     {"progress": score.success}, terminated=score.reward > 0)  # fmt: skip


def test_shaping_pays_differences_of_progress_and_ends_nothing(tiny_model: WorldActionModel) -> None:
    actions, gamma = chunks(2, 4), 0.9
    world = Dream(tiny_model, Halfway(), SeededStarts(), DreamConfig(), lambda lanes: Potential(lanes, gamma))
    env = WorldModelVectorEnv(world, 2, cfg=EnvConfig(horizon=3), autoreset_mode=AutoresetMode.SAME_STEP)
    env.reset(seed=4)
    fork, phi = env.snapshot(), np.zeros(2, np.float32)
    steps = [env.step(a) for a in actions[:2]]
    for _, reward, terminated, _, info in steps:
        terms = info["reward_terms"]
        np.testing.assert_allclose(terms["shaping"], gamma * terms["progress"] - phi, atol=1e-6)
        np.testing.assert_allclose(reward, terms["shaping"])
        assert not terminated.any()
        phi = terms["progress"]
    env.restore(fork)
    assert same(env.step(actions[0])[1], steps[0][1]), "a snapshot remembers the potential"
    env.step(actions[1])
    last = env.step(actions[2])
    assert last[3].all(), "the horizon: truncated, and the next episode starts from no potential"
    again = env.step(actions[3])
    np.testing.assert_allclose(
        again[4]["reward_terms"]["shaping"], gamma * again[4]["reward_terms"]["progress"], atol=1e-6
    )


class Dense:
    """Pays every chunk and sees no success; reports progress where asked to."""

    def __init__(self, pay: float = 0.01, *, progress: bool = False):
        self.pay, self.progress = pay, progress

    def __call__(self, clip: Clip, instruction: list[str]) -> Score:
        n = len(clip.latents)
        terms = {"progress": torch.full((n,), 0.5)} if self.progress else {}
        return Score(torch.full((n,), self.pay), torch.zeros(n), torch.ones(n, dtype=torch.bool), terms)


@pytest.mark.parametrize("guarded", [False, True])
@pytest.mark.parametrize("pay", [0.01, -0.01])
def test_a_dense_reward_is_paid_and_ends_nothing(tiny_model: WorldActionModel, pay: float, guarded: bool) -> None:
    judge: Any = Dense(pay)
    judge = GuardedJudge(judge, GuardConfig()) if guarded else judge
    env = WorldModelVectorEnv(Dream(tiny_model, judge, SeededStarts()), 2, cfg=EnvConfig(horizon=3))
    env.reset(seed=0)
    for k in range(3):
        _, reward, terminated, truncated, info = env.step(np.zeros(env.action_space.shape, np.float32))
        np.testing.assert_allclose(reward, [pay, pay], rtol=1e-6)
        assert terminated.tolist() == [False, False] and truncated.tolist() == [k == 2] * 2
        assert not info["success_probability"].any()


def test_shaping_comes_on_top_of_a_dense_reward_and_needs_the_term_progress(tiny_model: WorldActionModel) -> None:
    def step(judge: Dense) -> tuple[Any, ...]:
        world = Dream(tiny_model, judge, SeededStarts(), shaping=lambda n: Potential(n, 0.9))
        env = WorldModelVectorEnv(world, 2)
        env.reset(seed=0)
        return env.step(np.zeros(env.action_space.shape, np.float32))

    _, reward, terminated, *_ = step(Dense(progress=True))
    np.testing.assert_allclose(reward, [0.01 + 0.9 * 0.5] * 2, rtol=1e-6)
    assert not terminated.any()
    with pytest.raises(ImagineError, match="'progress', but Dense reports no terms"):
        step(Dense())


def test_a_judged_end_needs_neither_reward_nor_a_likely_success(tiny_model: WorldActionModel) -> None:
    class Says(Dense):
        def __call__(self, clip: Clip, instruction: list[str]) -> Score:
            score = super().__call__(clip, instruction)
            return replace(score, terminated=torch.tensor([True, True]), valid=torch.tensor([True, False]))

    env = WorldModelVectorEnv(Dream(tiny_model, Says(-1.0), SeededStarts(), DreamConfig(tile=0)), 2)
    env.reset(seed=0)
    _, reward, terminated, *_ = env.step(np.zeros(env.action_space.shape, np.float32))
    assert reward.tolist() == [-1.0, 0.0] and terminated.tolist() == [True, False]


def test_a_snapshot_of_another_dream_is_refused_and_changes_nothing(tiny_model: WorldActionModel) -> None:
    env = WorldModelVectorEnv(dream(tiny_model), 2)
    env.reset(seed=1)
    env.step(chunks(2, 1)[0])
    own = env.snapshot()
    cut = {**own.world, "video": own.world["video"][:, :, :, :1], "canvas": own.world["canvas"] + 1}
    for world, match in (
        (cut, "the snapshot's video is"),
        ({**own.world, "shaping": torch.zeros(2)}, "the snapshot's shaping is"),
        ({k: v for k, v in own.world.items() if k != "proprio"}, "differs from this dream in .'proprio'."),
    ):
        with pytest.raises(ShapeError, match=match):
            env.restore(replace(own, world=world))
        assert same(env.snapshot().world, own.world)


def test_a_dream_with_an_unknown_word_is_as_it_was(tiny_model: WorldActionModel) -> None:
    env = WorldModelVectorEnv(dream(tiny_model), 2)
    env.reset(seed=1)
    env.step(chunks(2, 1)[0])
    before = env.snapshot()
    for bad in ("push the violin", "x" * 200):
        with pytest.raises(ImagineError):
            env.reset(seed=2, options={"instruction": bad})
        assert same(env.snapshot().world, before.world) and env.snapshot().episodes == before.episodes


def test_settings_of_earlier_versions_load() -> None:
    cfg = DreamConfig.model_validate_json('{"steps": 2, "memory": "kept", "doubt_cost": 0.1}')
    assert (cfg.steps, cfg.history, cfg.inverse_error_cost) == (2, "kept", 0.1)
    assert DreamConfig.model_validate(cfg.model_dump()) == cfg
