"""Any per-tick environment becomes a robot: the same contracts as the robot that is shipped."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import yaml
from gymnasium.utils.env_checker import check_env

from imagine.agents.collect import collect
from imagine.data.cache import build_cache
from imagine.data.read import LeRobotDataset
from imagine.data.windows import Windows
from imagine.embodiment import Embodiment
from imagine.policy.robots.gym import GymRobot
from imagine.policy.robots.per_tick import resized
from imagine.policy.robots.plugin import RobotPlugin
from imagine.policy.robots.registry import load_robot, remember, robot_of
from imagine.types import DatasetError, ImagineError, ShapeError

POINT = '''
import gymnasium, numpy

class Point(gymnasium.Env):
    """A point is pulled over a field of 1 m; the goal is its right (or left) edge."""
    metadata = {"render_modes": ["rgb_array"]}
    observation_space = gymnasium.spaces.Dict(where=gymnasium.spaces.Dict(x=gymnasium.spaces.Box(-1, 1, (2,))))
    action_space = gymnasium.spaces.Box(-0.1, 0.1, (3,), numpy.float32)

    def __init__(self, side=1, render_mode=None):
        self.side, self.render_mode = side, render_mode

    def reset(self, seed=None, options=None):
        super().reset(seed=seed)
        self.x = self.np_random.uniform(-0.3, 0.3, 2)
        return self.look(), {"is_success": False}

    def look(self):
        return {"where": {"x": self.x.astype(numpy.float32)}}

    def step(self, action):
        assert self.action_space.contains(action)
        self.x = numpy.clip(self.x + action[1:], -0.5, 0.5)
        done = bool(self.side * self.x[0] > 0.4)
        return self.look(), float(self.x[0]), False, False, {"is_success": done}

    def render(self):
        image = numpy.zeros((40, 60, 3), numpy.uint8)
        row, column = ((self.x + 0.5) * [38, 58]).astype(int)
        image[row : row + 2, column : column + 2] = 255
        return image

def expert(env, observation, info):
    return numpy.array([0, env.side * 0.05, 0])

def where(env, observation, info):
    return env.x
'''
BODY = {
    "name": "point", "robot_type": "point", "control_hz": 10, "chunk_actions": 8, "chunk_frames": 4,
    "canvas_height": 16, "canvas_width": 24,
    "views": [{"name": "top", "key": "observation.images.top", "height": 16, "width": 24}],
    "state": [{"name": "at", "key": "observation.state", "start": 0, "stop": 2, "unit": "m", "kind": "position"}],
    "proprio": ["at"],
    "action": [
        {"name": "by", "key": "action", "start": 1, "stop": 3, "unit": "m", "kind": "position", "mode": "delta",
         "low": -0.1, "high": 0.1}
    ],
}  # fmt: skip
FILE = {
    "name": "point",
    "embodiment": "body.yaml",
    "state": ["where.x"],
    "tasks": [
        {"instruction": "go right", "env": "point_lab:Point", "expert": "point_lab:expert"},
        {"instruction": "go left", "env": "point_lab:Point", "kwargs": {"side": -1}, "expert": "point_lab:expert"},
    ],
}


@pytest.fixture(scope="module")
def lab(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """A user's project with an environment, an embodiment file and a robot file; it is the working directory."""
    folder = tmp_path_factory.mktemp("lab")
    (folder / "point_lab.py").write_text(POINT)
    (folder / "body.yaml").write_text(yaml.safe_dump(BODY))
    (folder / "robot.yaml").write_text(yaml.safe_dump(FILE))
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.syspath_prepend(folder)
        patch.setenv("PYTHONPATH", str(folder), prepend=":")
        yield folder


@pytest.fixture(params=["point", "g1_table"])
def robot(request: pytest.FixtureRequest, lab: Path) -> RobotPlugin:
    return load_robot("g1_table" if request.param == "g1_table" else lab / "robot.yaml")


def made(robot: RobotPlugin, horizon: int = 2) -> gym.Env:
    body = robot.embodiment()
    assert body is not None
    return robot.make_env(body, horizon=horizon)


def same(a: dict[str, Any], b: dict[str, Any]) -> bool:
    return a.keys() == b.keys() and all(np.array_equal(a[k], b[k]) for k in a)


@pytest.mark.parametrize("seed", [0, 1, 2, 3])
def test_the_same_seed_and_actions_give_the_same_bytes(robot: RobotPlugin, seed: int) -> None:
    one, other = made(robot), made(robot)
    other.reset(seed=17)
    (first, info), (again, _) = one.reset(seed=seed), other.reset(seed=seed)
    assert same(first, again) and one.observation_space.contains(first) and info["is_success"] is False
    one.action_space.seed(seed)
    chunk = one.action_space.sample() * 0.3
    seen, told = one.step(chunk), other.step(chunk)
    assert same(seen[0], told[0]) and seen[1:4] == told[1:4] and one.observation_space.contains(seen[0])
    assert np.array_equal(seen[4]["frames"], told[4]["frames"])


def test_an_episode_ends_at_its_horizon_and_frames_are_canvases(robot: RobotPlugin) -> None:
    env, body = made(robot), robot.embodiment()
    assert body is not None
    start, _ = env.reset(seed=0)
    still = body.hold(start["proprio"])
    ends = [env.step(still)[2:] for _ in range(2)]
    assert [(terminated, truncated) for terminated, truncated, _ in ends] == [(False, False), (False, True)]
    frames = ends[-1][2]["frames"]
    assert frames.shape == (body.chunk_frames, body.canvas_height, body.canvas_width, 3) and frames.dtype == np.uint8


def test_gymnasiums_checker_accepts_it(robot: RobotPlugin) -> None:
    check_env(made(robot), skip_render_check=True)


def test_an_instruction_can_be_chosen_and_a_wrong_one_is_refused(robot: RobotPlugin) -> None:
    env = made(robot)
    instructions = {env.reset(seed=s)[1]["instruction"] for s in range(12)}
    assert len(instructions) > 1
    for text in instructions:
        assert env.reset(seed=0, options={"instruction": text})[1]["instruction"] == text
    with pytest.raises(ImagineError, match="fold the towel"):
        env.reset(seed=0, options={"instruction": "fold the towel"})
    with pytest.raises(ImagineError, match="colour_of_sky"):
        env.reset(seed=0, options={"colour_of_sky": 1})
    with pytest.raises(ImagineError, match="is unknown"):
        robot.make_env(env.body, horizon=1, wind=3)  # type: ignore[attr-defined]


@pytest.mark.slow
def test_what_is_collected_can_be_trained_on(robot: RobotPlugin, tmp_path: Path) -> None:
    how, body = robot.recorder(), robot.embodiment()
    assert how is not None and body is not None
    info = collect(
        tmp_path / "data", how.episode, 4, 0, 1, options=dict(how.options), robot_type=how.robot_type, fps=how.fps,
        names=how.names, progress=lambda *_: None,
    )  # fmt: skip
    assert info["total_episodes"] == 4
    dataset = LeRobotDataset.open(tmp_path / "data")
    windows = Windows(build_cache(dataset, body, None, tmp_path / "cache", workers=0), body, 2)
    actions, valid = windows.actions(windows.rows("all"))
    inside = (actions >= body.action_low - 1e-4) & (actions <= body.action_high + 1e-4)
    assert len(windows) > 4 and inside[valid].mean() > 0.98


def test_success_is_seen_at_any_tick_and_the_reward_is_the_environments(lab: Path) -> None:
    env = made(load_robot(lab / "robot.yaml"), horizon=5)
    env.reset(seed=1, options={"instruction": "go left"})
    chunk = np.full(env.action_space.shape, [-0.1, 0], np.float32)
    total = 0.0
    for _ in range(5):
        _, reward, terminated, _, info = env.step(chunk)
        total += reward
        assert terminated == info["is_success"]
        if terminated:
            break
    assert terminated and total < 0


def test_state_and_success_may_be_functions(lab: Path) -> None:
    single = {k: v for k, v in FILE.items() if k not in ("tasks", "state")}
    robot = GymRobot(
        **{**single, "embodiment": BODY}, instruction="go right", env="point_lab:Point", state="point_lab:where",
        success=lambda env, observation, reward, terminated, info: reward > 0.2,
    )  # fmt: skip
    env = made(robot, horizon=9)
    start, _ = env.reset(seed=3)
    np.testing.assert_allclose(start["proprio"], env.ticks.env.unwrapped.x, rtol=1e-6)  # type: ignore[attr-defined]
    done = [env.step(np.full(env.action_space.shape, [0.02, 0], np.float32))[2] for _ in range(9)]
    assert not done[0] and done[-1]


def play(env: gym.Env, robot: RobotPlugin, chunks: int) -> tuple[list[np.ndarray], dict[str, Any]]:
    acted, info = [], {}
    for _ in range(chunks):
        chunk = robot.expert(env)
        assert chunk is not None and env.action_space.contains(chunk)
        acted.append(chunk)
        info = env.step(chunk)[4]
    return acted, info


def test_an_expert_of_single_ticks_acts_in_chunks(lab: Path) -> None:
    robot = load_robot(lab / "robot.yaml")
    env = made(robot, 3)
    for seed in (0, 1, 0):
        _, info = env.reset(seed=seed)
        toward = 0.05 if info["instruction"] == "go right" else -0.05
        acted, info = play(env, robot, 2)
        assert info["is_success"]
        np.testing.assert_array_equal(acted[0], np.full((8, 2), [toward, 0], np.float32))
    other = made(robot, 3)
    other.reset(seed=0, options={"instruction": "go left"})
    away = np.full(other.action_space.shape, [0.03, 0.02], np.float32)  # the expert goes on from where others led
    other.step(away)
    before = robot.expert(other)
    assert before is not None
    shown = other.unwrapped._shown["go left"]  # type: ignore[attr-defined]
    other.step(before)
    np.testing.assert_array_equal(shown.ticks.state(), other.unwrapped.ticks.state())  # type: ignore[attr-defined]
    nobody = GymRobot(**{**FILE, "embodiment": BODY, "tasks": [{"instruction": "go", "env": "point_lab:Point"}]})
    alone = made(nobody)
    alone.reset(seed=0)
    assert nobody.expert(alone) is None


def test_chunks_repeated_where_nobody_looks_lead_to_the_same_end(robot: RobotPlugin) -> None:
    seen, unseen = made(robot), made(robot)
    _, info = seen.reset(seed=2)
    unseen.reset(seed=2)
    acted, last = play(seen, robot, 2)
    done = [robot.carry_out(unseen, chunk) for chunk in acted]
    for env in (seen, unseen):
        assert robot.carried_out(env, info["instruction"]) == done[-1] == last["is_success"]
    np.testing.assert_array_equal(state_of(seen), state_of(unseen))


def state_of(env: gym.Env) -> np.ndarray:
    inner: Any = env.unwrapped
    return inner.ticks.state() if hasattr(inner, "ticks") else inner.robot.world.state()


def test_limits_and_pictures_may_be_given(lab: Path) -> None:
    robot = GymRobot(
        **{**FILE, "embodiment": BODY}, limits={"control_hz": 10, "velocity": [2, None]},
        views={"top": lambda env, observation, info: np.full((32, 48, 3), 7, np.uint8)},
    )  # fmt: skip
    body, limits = robot.embodiment(), robot.limits(robot.embodiment())
    assert limits is not None and limits.velocity == (2, None)
    env = made(robot)
    assert (env.reset(seed=0)[0]["top"] == 7).all() and env.observation_space["top"].shape == (16, 24, 3)  # type: ignore[index]
    assert load_robot(lab / "robot.yaml").limits(body) is None, "displacements of a tick are bounded already"
    with pytest.raises(ImagineError, match="are for 3 actions, expected 2"):
        GymRobot(**{**FILE, "embodiment": BODY}, limits={"control_hz": 10, "velocity": [2, 1, 1]}).limits(body)


def test_a_robot_file_travels_in_the_model_folder(lab: Path, tmp_path: Path) -> None:
    remember(lab / "robot.yaml", tmp_path)
    body = load_robot(lab / "robot.yaml").embodiment()
    assert body is not None
    again = robot_of(tmp_path, body)
    assert again.embodiment() == body and again.options() == load_robot(lab / "robot.yaml").options()


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        ({"sucess": "done"}, "sucess"),
        ({"tasks": []}, "tasks"),
        ({"success": "done"}, "set success"),
        ({"state": ["where.y"]}, "no 'where.y'"),
        ({"tasks": [{"instruction": "go", "env": "Nowhere-v0"}]}, "cannot be made"),
        ({"tasks": [{"instruction": "go", "env": "point_lab:Lost"}]}, "cannot be imported"),
        ({"embodiment": {**BODY, "chunk_frames": 3}}, "no multiple"),
        ({"embodiment": {**BODY, "state": [{**BODY["state"][0], "key": "pose"}]}}, "expected 'observation.state'"),
        ({"embodiment": {**BODY, "action": [{**BODY["action"][0], "stop": 5}]}}, "at least 5 numbers"),
    ],
)
def test_a_wrong_robot_file_is_answered_in_one_sentence(change: dict, expected: str, lab: Path) -> None:
    (lab / "wrong.yaml").write_text(yaml.safe_dump({**FILE, **change}))
    with pytest.raises(ImagineError, match=expected) as caught:
        env = made(load_robot(lab / "wrong.yaml"))
        env.reset(seed=0)
        env.step(np.zeros(env.action_space.shape, np.float32))
    assert "\n" not in str(caught.value)


def test_views_are_averaged_where_they_shrink() -> None:
    image = np.zeros((4, 4, 3), np.uint8)
    image[::2] = 200
    assert (resized(image, 2, 2) == 100).all() and resized(image, 4, 4) is image
    with pytest.raises(ShapeError, match="expected uint8"):
        resized(image.astype(np.float32), 2, 2)


@pytest.mark.slow
def test_actions_per_tick_are_not_read_at_another_rate(lab: Path, tmp_path: Path) -> None:
    how = load_robot(lab / "robot.yaml").recorder()
    assert how is not None
    collect(tmp_path / "data", how.episode, 1, 0, 1, options=dict(how.options), fps=20, progress=lambda *_: None)
    with pytest.raises(DatasetError, match="no other rate"):
        LeRobotDataset.open(tmp_path / "data").check_embodiment(Embodiment.model_validate(BODY))
