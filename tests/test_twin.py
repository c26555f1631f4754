"""The simulated robot: honest starts, a reliable expert, faithful actions, and refusals in plain words."""

from __future__ import annotations

import pickle
import warnings

import gymnasium as gym
import numpy as np
import pytest
from gymnasium.utils.env_checker import check_env

from imagine.embodiment import Embodiment
from imagine.policy.robots.g1_table.env import FOLDER, G1TableEnv, TableRobot
from imagine.policy.robots.g1_table.episodes import episode
from imagine.policy.robots.g1_table.expert import expert_target
from imagine.policy.robots.g1_table.render import BOWL, ROBOT, TABLE, visible
from imagine.policy.robots.g1_table.scene import COLOURS
from imagine.policy.robots.g1_table.tasks import FAMILIES, Task, tasks_of
from imagine.policy.robots.g1_table.truth import (
    NAMES,
    accomplished,
    held,
    is_there,
    left_alone,
    progress,
    touched,
    truth,
)
from imagine.policy.robots.g1_table.world import G1Table
from imagine.types import ImagineError, Robot, ShapeError, unpack_instruction


@pytest.fixture(scope="module")
def world() -> G1Table:
    return G1Table()


@pytest.fixture(scope="module")
def env() -> G1TableEnv:
    return G1TableEnv()


def expert_ticks(world: G1Table, ticks: int) -> list[np.ndarray]:
    commands = []
    for _ in range(ticks):
        world.tick(expert_target(world, world.task))
        commands.append(world.command())
    return commands


def test_gymnasium_accepts_the_environment(env: G1TableEnv) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # it remarks on infinite proprioception bounds
        check_env(env, skip_render_check=True)


def test_same_seed_gives_the_same_bytes(env: G1TableEnv) -> None:
    runs = []
    for _ in range(2):
        first, _ = env.reset(seed=11)
        env.action_space.seed(5)
        last, *_, info = env.step(env.action_space.sample() * 0.3)
        runs.append([*(v.tobytes() for v in (*first.values(), *last.values())), info["frames"].tobytes()])
        env.reset(seed=12, options={"blocks": 4})  # whatever happened in between
    assert runs[0] == runs[1]


@pytest.mark.parametrize("family", FAMILIES)
def test_expert_succeeds_from_random_starts(world: G1Table, family: str) -> None:
    done = 0
    for seed in range(6):
        world.reset(seed, families=(family,))
        for _ in range(192):
            world.tick(expert_target(world, world.task))
            if world.success():
                done += 1
                break
    assert done == 6


def test_expert_is_a_function_of_the_present_state(world: G1Table) -> None:
    world.reset(3)
    expert_ticks(world, 10)
    saved = world.snapshot()
    target = expert_target(world, world.task)
    expert_ticks(world, 7)
    world.restore(saved)
    assert expert_target(world, world.task).tobytes() == target.tobytes()


def test_snapshot_replays_byte_for_byte(world: G1Table) -> None:
    world.reset(4, Task("put_in_bowl", "green"), blocks=3)
    expert_ticks(world, 25)
    saved, runs = world.snapshot(), []
    for _ in range(2):
        world.restore(saved)
        commands = expert_ticks(world, 15)
        runs.append((world.state().tobytes(), commands[-1].tobytes(), world.views()["hand_left"].tobytes()))
        world.reset(5)
    assert runs[0] == runs[1]


def test_joint_and_hand_chunks_reach_the_same_place() -> None:
    hand = TableRobot()
    joint = TableRobot(Embodiment.load(FOLDER / "g1_joints.yaml"))
    planner = G1Table()
    planner.reset(21, home=True)
    row = {"observation.state": planner.state(), "action": np.stack(expert_ticks(planner, 24))}
    for robot in (hand, joint):
        robot.reset(21, home=True)
        robot.execute(robot.body.action_of(row) - robot.body.anchor_of(row))
        # Actions travel as float32, so the places agree to micrometres, not to the bit.
        np.testing.assert_allclose(robot.world.state(), planner.state(), atol=1e-4)


def test_environment_pays_once_and_says_what_it_saw() -> None:
    env = G1TableEnv(families=("pick_up",), colours=("red",), max_chunks=4)
    observation, info = env.reset(seed=2)
    assert unpack_instruction(observation["instruction"]) == info["instruction"] == "pick up the red block"
    rewards = []
    for _ in range(4):
        world = env.robot.world
        saved = world.snapshot()
        row = {"observation.state": world.state(), "action": np.stack(expert_ticks(world, 24))}
        world.restore(saved)
        observation, reward, terminated, truncated, info = env.step(env.body.action_of(row) - env.body.anchor_of(row))
        rewards.append(reward)
    assert sum(rewards) == 1.0 and terminated and truncated and info["is_success"]
    assert info["frames"].shape == (4, 64, 96, 3) and info["proprio_frames"].shape == (4, 8)
    assert (env.body.untile(info["frames"][-1])["top_head"] == observation["top_head"]).all()


def test_instruction_option_sets_the_task(env: G1TableEnv) -> None:
    _, info = env.reset(seed=0, options={"instruction": "Push the yellow block to the left."})
    assert info["instruction"] == "push the yellow block to the left"
    assert "yellow" in env.robot.world.colours


def test_bad_chunks_are_refused(env: G1TableEnv) -> None:
    env.reset(seed=0)
    good = np.zeros(env.action_space.shape, np.float32)
    nan = good.copy()
    nan[0, 0] = np.nan
    for bad in (nan, good[:3], good + 50.0, good[0]):
        with pytest.raises(ShapeError):
            env.step(bad)


def test_unknown_sentences_are_answered_with_the_known_ones() -> None:
    with pytest.raises(ImagineError, match=r"put the <colour> block in the bowl.*yellow"):
        Task.parse("make me a sandwich")
    for task in tasks_of(FAMILIES, tuple(COLOURS)):
        assert Task.parse(task.instruction) == task
    for wrong in (("put_both", "red"), ("put_both", "red", "red"), ("pick_up", "red", "blue")):
        with pytest.raises(ImagineError, match="about"):
            Task(*wrong)


def test_head_camera_sees_every_block_in_its_colour(world: G1Table) -> None:
    world.reset(8, blocks=4, home=True)
    image = world.views()["top_head"].astype(np.float32)
    assert image.std() > 15
    hue = image / image.sum(-1, keepdims=True).clip(1)
    for rgb in COLOURS.values():
        want = np.array(rgb) / sum(rgb)
        assert (np.abs(hue - want).max(-1) < 0.08).sum() >= 9


def test_what_is_visible_is_told_pixel_by_pixel(world: G1Table) -> None:
    world.reset(8, blocks=4, home=True)
    seen, image = visible(world, "top_head", 64, 64), world.view("top_head", 64, 64).astype(np.float32)
    assert seen.shape == (64, 64) and seen.dtype == np.int8
    assert set(np.unique(seen)) >= {0, 1, 2, 3, ROBOT, BOWL, TABLE}
    hue = image / image.sum(-1, keepdims=True).clip(1)
    for block, colour in enumerate(world.colours):
        want = np.array(COLOURS[colour]) / sum(COLOURS[colour])
        assert np.abs(np.median(hue[seen == block], 0) - want).max() < 0.08


def test_episodes_follow_from_their_seed_and_line_up() -> None:
    one, two = episode(77), episode(77)
    assert one.action.tobytes() == two.action.tobytes()
    assert all((one.views[v] == two.views[v]).all() for v in one.views)
    ticks = len(one.state)
    assert one.action.shape == (ticks, 28) and len(one.task) == len(one.is_expert) == len(one.view_index) == ticks
    assert one.view_index[-1] == len(one.views["top_head"]) - 1
    assert (np.diff(one.view_index) >= 0).all() and one.view_index[6] == 1


def test_a_clumsy_hand_fails_on_demand_and_often_nearly_succeeds() -> None:
    told = {"families": ("pick_up",), "failure_share": 1, "modes": ("clumsy",)}
    made = [episode(s, seconds=2.0, **told) for s in range(220, 228)]
    assert {e.failure_mode for e in made} == {"clumsy"} and not any(e.is_expert.any() for e in made)
    won = [bool(e.success[:45].any()) for e in made]  # within a second and a half
    assert any(won) and not all(won)
    with pytest.raises(ImagineError, match="expected some of miss, drop, wrong, wander, clumsy"):
        episode(0, modes=("careless",))


def test_failures_are_never_shown_as_expert_work() -> None:
    failed = [e for e in (episode(s, seconds=1.6) for s in range(200, 212)) if e.failure_mode != "none"]
    assert failed and not any(e.is_expert.any() for e in failed)


def test_robot_and_environment_cross_process_borders() -> None:
    assert isinstance(TableRobot(), Robot)
    env = gym.vector.SyncVectorEnv([lambda: G1TableEnv(), lambda: G1TableEnv()])
    observation, _ = env.reset(seed=[1, 2])
    assert observation["top_head"].shape == (2, 64, 64, 3)
    pickle.loads(pickle.dumps(episode(1, seconds=1.0)))


# ------------------------------------------------------------------ truth


@pytest.mark.parametrize("family", FAMILIES)
def test_truth_tells_afterwards_what_the_world_told_then(world: G1Table, family: str) -> None:
    """Success read from two recorded rows is the world's own answer, and progress ends at 1."""
    world.reset(3, families=(family,))
    start, seen = truth(world).astype(np.float32), []
    for _ in range(160):
        world.tick(expert_target(world, world.task))
        seen.append((truth(world).astype(np.float32), world.success()))
    rows, said = np.stack([r for r, _ in seen]), np.array([s for _, s in seen])
    done = accomplished(start, rows, world.task)
    assert (done == said).mean() > 0.99 and said.any(), "float32 may differ on the very edge"
    far = progress(start, rows, world.task)
    assert ((far >= 0) & (far <= 1)).all() and (far[done] == 1).all() and (far[~done] < 1).all()
    assert far[0] < 0.5 < far[said.argmax()]


def test_truth_answers_for_instructions_that_were_not_given(world: G1Table) -> None:
    world.reset(3, families=("pick_up",))
    start, mine = truth(world), world.task
    for _ in range(120):
        world.tick(expert_target(world, mine))
    now = truth(world)
    other = next(c for c in world.colours if c != mine.colour)
    absent = next(c for c in COLOURS if c not in world.colours)
    assert accomplished(start, now, mine) and held(now, mine.colour) and touched(now, mine.colour)
    assert not accomplished(start, now, Task("pick_up", other)) and not held(now, other)
    assert not is_there(now, absent) and not accomplished(start, now, Task("pick_up", absent))
    assert progress(start, now, Task("pick_up", absent)) == 0
    assert left_alone(start, now, mine) and not left_alone(start, now, Task("pick_up", other))


def test_a_film_played_backwards_is_judged_by_where_it_ends(world: G1Table) -> None:
    world.reset(5, families=("push_left",))
    start = truth(world)
    for _ in range(150):
        world.tick(expert_target(world, world.task))
    now, back = truth(world), Task("push_right", world.task.colour)
    assert accomplished(start, now, world.task) and not accomplished(now, start, world.task)
    assert accomplished(now, start, back)


def test_a_recording_keeps_the_truth() -> None:
    one = episode(11, seconds=1.0)
    assert one.truth.shape == (len(one.state), len(NAMES)) and one.truth.dtype == np.float32
    hands = one.truth[:, -6:]
    np.testing.assert_allclose(hands, one.state[:, 20:26], atol=1e-6)
