"""Dream and robot are one to a client: what one refuses or says, the other refuses or says, in the same words."""

from __future__ import annotations

import copy
import pickle
import threading
from dataclasses import replace
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch

import imagine
import imagine.world.spaces
from imagine.memo import Memo
from imagine.types import ImagineError, ShapeError

pytestmark = pytest.mark.slow


def never(frames: torch.Tensor, instructions: Any) -> torch.Tensor:
    return torch.zeros(len(frames))


PLAIN: dict[str, Any] = {"judge": never, "inverse_check": False, "guarded": False, "truncate_unbelievable": False}
KINDS = ("imagine/G1Table-v0", "sim/G1Table-v0")


def make(kind: str, **options: Any) -> gym.Env[Any, Any]:
    return gym.make(kind, disable_env_checker=True, **(PLAIN if kind.startswith("imagine") else {}), **options)


@pytest.fixture(scope="module")
def envs() -> dict[str, gym.Env[Any, Any]]:
    return {kind: make(kind) for kind in KINDS}


def hold(env: gym.Env[Any, Any]) -> np.ndarray:
    return np.zeros(env.action_space.shape or (), np.float32)


def refusals(env: gym.Env[Any, Any]) -> list[tuple[str, str]]:
    """What a client is told that does everything wrong that can be done wrong; the environment is over afterwards."""
    wrong = np.full_like(hold(env), np.nan)
    calls = [
        *(lambda s=s: env.reset(seed=s) for s in (2**63, -7, 2.5, "one")),
        *(lambda o=o: env.reset(seed=3, options=o) for o in (["blocks"], {"bricks": 2}, {"blocks": 12})),
        *(lambda i=i: env.reset(seed=3, options={"instruction": i}) for i in ("sing", "", 12)),
        *(lambda a=a: env.step(a) for a in (wrong, hold(env)[0], hold(env) + 77, "up")),
    ]
    told = []
    for call in calls:
        with pytest.raises(Exception) as caught:
            call()
        told.append((caught.type.__name__, str(caught.value)))
    return told


def test_both_refuse_the_same_and_a_refusal_changes_nothing(envs: dict[str, gym.Env[Any, Any]]) -> None:
    for env in envs.values():
        env.reset(seed=41)
        want = env.step(hold(env))[0]
        env.reset(seed=41)
        told = refusals(env)
        assert all(kind in ("ShapeError", "ImagineError") for kind, _ in told), told
        got = env.step(hold(env))[0]
        assert all(np.array_equal(want[k], got[k]) for k in want)
    dream, robot = (refusals(env) for env in envs.values())
    assert [kind for kind, _ in dream] == [kind for kind, _ in robot]
    assert [text for _, text in dream[4:10]] == [text for _, text in robot[4:10]], "options, word for word"


@pytest.mark.parametrize("kind", KINDS)
def test_an_episode_has_a_beginning_and_an_end(kind: str) -> None:
    env = make(kind, horizon=2)
    with pytest.raises(gym.error.ResetNeeded):
        env.step(hold(env))
    env.reset(seed=5)
    env.step(hold(env))
    assert env.step(hold(env))[3]
    with pytest.raises(gym.error.ResetNeeded, match=r"environments \[0\] are over"):
        env.step(hold(env))
    env.reset()
    env.step(hold(env))
    env.close()
    for late in (lambda: env.step(hold(env)), env.reset, env.render):
        with pytest.raises(gym.error.ClosedEnvironmentError):
            late()
    env.close()


def alike(a: dict[str, np.ndarray], b: dict[str, np.ndarray]) -> bool:
    """The same pictures and words; a dream keeps its proprioception normalised, so that its last bits may differ."""
    exact = all(np.array_equal(a[k], b[k]) for k in a if k != "proprio")
    return exact and np.allclose(a["proprio"], b["proprio"], atol=1e-5)


def test_every_episode_of_one_seed_begins_alike(envs: dict[str, gym.Env[Any, Any]]) -> None:
    dream, robot = envs.values()
    for seed in (11, None, None, 12, None):
        a, b = (env.reset(seed=seed) for env in (dream, robot))
        assert alike(a[0], b[0]) and a[1]["instruction"] == b[1]["instruction"]
    a, b = (env.reset(seed=3, options={"blocks": 3, "families": ["pick_up"]})[0] for env in (dream, robot))
    assert alike(a, b)


@pytest.mark.parametrize("kind", KINDS)
def test_info_is_plain_and_the_spec_knows_the_horizon(kind: str) -> None:
    env = make(kind, horizon=3)
    assert env.spec is not None and env.spec.max_episode_steps == 3
    again = gym.make(env.spec)
    assert again.spec is not None and again.spec.max_episode_steps == 3
    env.reset(seed=1)
    *_, info = env.step(hold(env))

    def check(value: Any) -> None:
        if isinstance(value, dict):
            for own in value.values():
                check(own)
        assert not isinstance(value, np.generic), value

    check(info)


@pytest.mark.parametrize("kind", KINDS)
def test_all_render_modes(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SDL_VIDEODRIVER", "dummy")
    want = make(kind, render_mode="rgb_array")
    want.reset(seed=2)
    frame: Any = want.render()
    assert frame.shape == (64, 96, 3) and frame.dtype == np.uint8
    listed = make(kind, render_mode="rgb_array_list")
    listed.reset(seed=2)
    frames: Any = listed.render()
    assert np.array_equal(frames[0], frame)
    with pytest.warns(UserWarning, match="HumanRendering"):
        shown = make(kind, render_mode="human")
    shown.reset(seed=2)
    assert shown.render() is None
    shown.close()
    with pytest.raises(ImagineError, match="render_mode 'ansi'"):
        make(kind, render_mode="ansi")


@pytest.mark.parametrize("kind", KINDS)
def test_one_picture_or_the_state_alone(kind: str) -> None:
    everything, picture = make(kind), make(kind, obs_type="pixels", view_size=(40, 60))
    large, state = make(kind, view_size=40), make(kind, obs_type="proprio")
    seen = {name: env.reset(seed=8)[0] for name, env in
            {"dict": everything, "pixels": picture, "large": large, "proprio": state}.items()}  # fmt: skip
    assert seen["pixels"].shape == (40, 60, 3) and np.array_equal(seen["proprio"], seen["dict"]["proprio"])
    for name, env in (("pixels", picture), ("large", large), ("proprio", state)):
        assert env.observation_space.contains(seen[name]), name
        assert env.observation_space.contains(env.step(hold(env))[0])
    for view, image in seen["large"].items():
        assert image.shape == ((40, 40, 3) if seen["dict"][view].ndim == 3 else seen["dict"][view].shape)
    for wrong in ({"obs_type": "smell"}, {"view_size": 0}, {"obs_type": "proprio", "view_size": 64}):
        with pytest.raises(ImagineError, match=r"obs_type|view_size"):
            make(kind, **wrong)  # type: ignore[arg-type]


def test_pictures_shrink_and_grow_by_averaging() -> None:
    body = make("sim/G1Table-v0").unwrapped.body  # type: ignore[attr-defined]
    kind = imagine.world.spaces.ObservationType(body, "pixels", (32, 48))
    canvas = np.random.default_rng(0).integers(0, 256, (2, 64, 96, 3), np.uint8)
    small = kind(body.untile(canvas))
    assert small.shape == (2, 32, 48, 3) and abs(float(small.mean()) - float(canvas.mean())) < 0.5
    flat = np.full((64, 96, 3), 17, np.uint8)
    assert (kind(body.untile(flat)) == 17).all()


def test_a_dream_goes_through_a_pickle_and_dreams_on() -> None:
    env = make("imagine/G1Table-v0").unwrapped
    env.reset(seed=9)
    other = pickle.loads(pickle.dumps(env))
    a, b = (e.step(hold(e))[0] for e in (env, other))
    assert all(np.array_equal(a[k], b[k]) for k in a)


def test_what_is_remembered_is_forgotten_by_copies() -> None:
    class Once:
        def __init__(self) -> None:
            self.calls, self.answer = 0, Memo(self._answer, 4)

        def _answer(self, x: int) -> int:
            self.calls += 1
            return x + 1

    one = Once()
    assert [one.answer(1), one.answer(1)] == [2, 2] and one.calls == 1
    two = copy.deepcopy(one)
    assert two.answer(1) == 2 and (one.calls, two.calls) == (1, 2)


def test_a_snapshot_that_does_not_fit_is_refused_before_anything_is_written() -> None:
    env = imagine.make_env(num_envs=2, **PLAIN)
    env.reset(seed=5)
    good, quiet = env.snapshot(), np.zeros(env.action_space.shape, np.float32)  # type: ignore[arg-type]
    want = env.step(quiet)[0]
    world = good.world
    for wrong in (
        None, replace(good, elapsed=np.zeros(3, int)), replace(good, generator={"state": 0}), replace(good, world=7),
        replace(good, over=np.ones(5, bool)), replace(good, episodes=(1, 2)), replace(good, episodes=(None,)),
        *(replace(good, world={**world, **part}) for part in (
            {"steps": "many"}, {"video": world["video"].double()}, {"instruction": ["one"]},
            {"shaping": torch.zeros(2)},
        )),
    ):  # fmt: skip
        env.restore(good)
        with pytest.raises(ImagineError):
            env.restore(wrong)
        got = env.step(quiet)[0]
        assert all(np.array_equal(want[k], got[k]) for k in want), wrong


def test_environments_are_built_in_several_threads_at_once() -> None:
    """transformers changes switches of the whole process while it loads a judge."""
    faults: list[BaseException] = []

    def build() -> None:
        try:
            imagine.make_env(judge="judge-tiny")
        except BaseException as error:
            faults.append(error)

    threads = [threading.Thread(target=build) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not faults


def test_a_vector_environment_says_its_autoreset_mode() -> None:
    env = gym.make_vec("imagine/G1Table-v0", num_envs=2, autoreset_mode="SameStep", horizon=5, **PLAIN)
    assert env.autoreset_mode is gym.vector.AutoresetMode.SAME_STEP is env.metadata["autoreset_mode"]  # type: ignore[attr-defined]
    assert env.spec is not None and env.spec.max_episode_steps == 5
    with pytest.raises(ShapeError):
        env.reset(seed=[1, 2**63])
