"""The table is worth dreaming: what is handled is seen, two blocks fit in the bowl, rest is shown, looks can be new."""

from __future__ import annotations

import numpy as np
import pytest

from imagine.policy.robots.g1_table.env import G1TableEnv
from imagine.policy.robots.g1_table.episodes import episode
from imagine.policy.robots.g1_table.expert import expert_target
from imagine.policy.robots.g1_table.looks import draw_look
from imagine.policy.robots.g1_table.render import visible
from imagine.policy.robots.g1_table.scene import COLOURS, WOOD
from imagine.policy.robots.g1_table.starts import FAMILIES, HOME
from imagine.policy.robots.g1_table.tasks import Task
from imagine.policy.robots.g1_table.truth import accomplished, left_alone, progress, truth
from imagine.policy.robots.g1_table.world import G1Table
from imagine.policy.robots.registry import load_robot
from imagine.types import ImagineError


@pytest.fixture(scope="module")
def world() -> G1Table:
    return G1Table()


def until_done(world: G1Table, ticks: int = 240) -> bool:
    for _ in range(ticks):
        world.tick(expert_target(world, world.task))
        if world.success():
            return True
    return False


@pytest.mark.parametrize("family", FAMILIES)
def test_the_head_camera_sees_what_was_done(world: G1Table, family: str) -> None:
    for seed in range(40, 48):
        world.reset(seed, families=(family,), blocks=(2, 3, 4))
        assert until_done(world)
        seen = visible(world, "top_head", 64, 64)
        assert min((seen == world.block_of(c)).sum() for c in world.task.colours) >= 12


def test_two_blocks_go_into_the_bowl_one_after_the_other(world: G1Table) -> None:
    world.reset(0, Task("put_both", "red", "blue"), blocks=3)
    start, rows = truth(world), []
    for _ in range(160):
        world.tick(expert_target(world, world.task))
        rows.append(truth(world))
    both = accomplished(start, np.stack(rows), world.task)
    red, blue = (accomplished(start, np.stack(rows), Task("put_in_bowl", c)) for c in ("red", "blue"))
    assert both[-1] and red.argmax() < blue.argmax() and (both == (red & blue)).all()
    assert (both == accomplished(start, np.stack(rows), Task("put_both", "blue", "red"))).all()
    far = progress(start, np.stack(rows), world.task)
    assert far[0] < 0.4 < far[red.argmax()] < 0.9 and far[-1] == 1
    assert left_alone(start, rows[-1], world.task) and not left_alone(start, rows[-1], Task("put_in_bowl", "red"))
    np.testing.assert_allclose(world.hands, HOME, atol=0.03)


def test_two_blocks_need_two_blocks(world: G1Table) -> None:
    with pytest.raises(ImagineError, match="fewer than the task is about"):
        world.reset(0, Task("put_both", "red", "blue"), blocks=1)
    assert {world.reset(seed, blocks=1).family for seed in range(20)} <= set(FAMILIES) - {"put_both"}


def test_the_number_of_blocks_can_be_drawn(world: G1Table) -> None:
    drawn = []
    for seed in range(30):
        world.reset(seed, blocks=(2, 3, 4))
        drawn.append(len(world.colours))
    assert set(drawn) == {2, 3, 4}
    with pytest.raises(ImagineError, match="expected 1 to 4"):
        world.reset(0, blocks=(2, 5))


@pytest.mark.parametrize("family", ["pick_up", "put_in_bowl", "put_both"])
def test_demonstrations_show_how_to_rest(family: str) -> None:
    made = [episode(seed, families=(family,), failure_share=0) for seed in (300, 301, 302, 303)]
    rests = [one.success & one.is_expert for one in made]
    assert np.mean([rest.sum() >= 15 for rest in rests]) > 0.7
    for one, rest in zip(made, rests, strict=True):
        if not rest[-4:].all():
            continue
        hands = one.state[rest, 20:26]
        assert np.abs(hands[-1] - hands[-4]).max() < 0.02, "still by the end"


def test_an_unseen_look_is_the_same_start_in_other_shades(world: G1Table) -> None:
    rng = np.random.default_rng(0)
    seen, unseen = (draw_look(rng, look, tuple(COLOURS)) for look in ("seen", "unseen"))
    assert seen.table == WOOD != unseen.table and not set(seen.shades) & set(unseen.shades)
    assert set(seen.shapes) == {"box"} and "box" not in unseen.shapes
    assert abs(seen.light.towards[0]) < 0.45 < abs(unseen.light.towards[0])
    world.reset(6, blocks=3)
    before, picture = world.snapshot(), world.views()["top_head"]
    task = world.reset(6, blocks=3, look="unseen")
    assert task == before.task and world.colours == before.colours
    np.testing.assert_allclose(truth(world)[:3], before.start[:3], atol=0.02)
    assert np.abs(world.views()["top_head"].astype(int) - picture).mean() > 3
    assert until_done(world)
    world.restore(before)
    assert world.views()["top_head"].tobytes() == picture.tobytes()


def test_an_unseen_look_is_an_option_of_the_robot() -> None:
    robot = load_robot("g1_table")
    body = robot.embodiment()
    assert body is not None
    env = robot.make_env(body, horizon=1, look="unseen").unwrapped
    assert isinstance(env, G1TableEnv)
    env.reset(seed=0)
    assert env.robot.world.look.table != WOOD
    env.reset(seed=0, options={"look": "seen"})
    assert env.robot.world.look.table == WOOD
    with pytest.raises(ImagineError, match="expected one of seen, unseen"):
        robot.make_env(body, horizon=1, look="odd")


def test_another_site_has_the_same_starts_and_is_seen_darker_from_elsewhere(world: G1Table) -> None:
    world.reset(6, blocks=3)
    usual, picture, mass = world.snapshot(), world.views()["top_head"], world.model.body("block0").mass.item()
    task = world.reset(6, blocks=3, site="shifted")
    assert task == usual.task and world.colours == usual.colours
    np.testing.assert_allclose(truth(world)[:3], usual.start[:3], atol=0.02)
    shifted, there = world.views()["top_head"], world.snapshot()
    assert shifted.mean() < 0.85 * picture.mean()
    assert world.model.body("block0").mass.item() == pytest.approx(2 * mass)
    assert until_done(world), "the expert, who needs no camera, gets along"
    world.restore(usual)
    assert world.views()["top_head"].tobytes() == picture.tobytes()
    world.restore(there)
    assert world.views()["top_head"].tobytes() == shifted.tobytes()


def test_a_site_is_an_option_of_the_robot() -> None:
    robot = load_robot("g1_table")
    body = robot.embodiment()
    assert body is not None
    env = robot.make_env(body, horizon=1, site="shifted").unwrapped
    assert isinstance(env, G1TableEnv)
    env.reset(seed=0)
    assert env.robot.world.site == "shifted"
    assert robot.other_instruction("colour", env.robot.instruction, 0, {"site": "shifted"}) is not None
    with pytest.raises(ImagineError, match="site is 'odd', expected one of usual, shifted"):
        robot.make_ticks(body, site="odd")
