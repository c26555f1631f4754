"""The dream behind the gym: bytes, snapshots, doubt, judgement, with a tiny random model."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch
from gymnasium.utils.env_checker import check_env
from gymnasium.vector import AutoresetMode

from imagine.dream import Dream, DreamConfig
from imagine.env import EnvConfig, WorldModelEnv, WorldModelVectorEnv
from imagine.model import WorldActionModel
from imagine.starts import Start
from imagine.types import Clip, Score, ShapeError, UnknownWord


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
        return Score((bright > self.threshold).float(), bright, valid, {"bright": bright})


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
