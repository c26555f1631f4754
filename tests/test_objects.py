"""What became of an object, on pictures drawn by hand and on the table's true ones."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from imagine.agents.object_fidelity import AWAY, ObjectTally
from imagine.agents.scripted import ExpertPolicy, HidingPolicy
from imagine.agents.statistics import ratio_interval
from imagine.agents.true_rollouts import TrueRollouts, WholeEpisodes, true_rollouts
from imagine.model.decoder import without_tokens
from imagine.policy.robots.registry import load_robot
from imagine.types import ImagineError, ShapeError
from imagine.world.objects import ObjectMasks, Palette, Scene, chroma

sys.path.append(str(Path(__file__).parent.parent / "benchmarks"))

SEEDS = (0, 1, 2, 3)
RED, GREEN, WOOD, GREY = (200, 40, 40), (30, 150, 40), (150, 130, 110), (120, 125, 130)
NAMES = ("red block", "green block", "robot", "background")
T, SIZE = 1 + 4 * 4, 32
WINDOW = slice(0, SIZE), slice(0, SIZE)


def drawn(red: list[tuple[int, int] | None], green: list[tuple[int, int] | None]) -> np.ndarray:
    """(T, 32, 40) masks of 5 x 5 blocks with their upper left corners there, and a strip that no view shows."""
    masks = np.full((T, SIZE, SIZE + 8), 3, np.int8)
    masks[:, :, SIZE:] = 2
    for k, places in enumerate((red, green)):
        for t, at in enumerate(places):
            if at is not None:
                masks[t, at[0] : at[0] + 5, at[1] : at[1] + 5] = k
    return masks


def painted(masks: np.ndarray, lamp: float = 1.0, seed: int | None = None) -> np.ndarray:
    """The picture (T, 32, 40, 3) of masks, under a lamp of some strength, with some noise."""
    colours = lamp * np.array([RED, GREEN, GREY, WOOD], np.float32)[masks]
    if seed is not None:
        colours = colours + np.random.default_rng(seed).normal(0, 6, colours.shape)
    return np.clip(colours, 0, 255).astype(np.uint8)


def objects(masks: np.ndarray) -> ObjectMasks:
    return ObjectMasks(masks, NAMES, (0, 1), (0,), "head")


def scene_of(masks: np.ndarray, seed: int | None = None, away: int = 4) -> Scene:
    frames = painted(masks, seed=seed)
    return Scene(frames, objects(masks), WINDOW, frames, away)


def still(at: tuple[int, int]) -> list[tuple[int, int] | None]:
    return [at] * T


@pytest.mark.parametrize("seed", SEEDS)
def test_the_truth_is_painted_whatever_the_lamp(seed: int) -> None:
    moving: list[tuple[int, int] | None] = [(4, 2 + t) for t in range(T)]
    masks = drawn(moving, still((20, 20)))
    scene = scene_of(masks, seed)
    assert scene.told_apart.all() and scene.seen.all()
    for lamp in (0.7, 1.0, 1.2):
        shown = painted(masks, lamp, seed + 10)
        assert scene.painted(shown).all() and not scene.ghosts(shown).any()


@pytest.mark.parametrize("seed", SEEDS)
def test_erased_moved_doubled_and_ghost_are_told(seed: int) -> None:
    masks = drawn(still((4, 4)), still((20, 20)))
    scene = scene_of(masks, seed)
    erased = painted(drawn([None] * T, still((20, 20))), seed=seed)
    assert not scene.painted(erased)[:, 0].any() and scene.painted(erased)[:, 1].all()
    assert not scene.ghosts(erased).any()
    moved = painted(drawn(still((4, 20)), still((20, 20))), seed=seed)
    assert not scene.painted(moved)[:, 0].any() and scene.ghosts(moved)[:, 0].any((1, 2)).all()
    near = painted(drawn(still((4, 6)), still((20, 20))), seed=seed)
    assert scene.painted(near)[:, 0].all() and not scene.ghosts(near).any(), "beside its place is no ghost"
    both = drawn(still((4, 4)), still((20, 20)))
    both[:, 12:17, 12:17] = 0
    twice = painted(both, seed=seed)
    assert scene.painted(twice).all() and scene.ghosts(twice)[:, 0].any((1, 2)).all()
    assert not scene.ghosts(twice)[:, 1].any()
    speck = drawn(still((4, 4)), still((20, 20)))
    speck[:, 12:13, 12:17] = 0
    assert not scene.ghosts(painted(speck, seed=seed)).any(), "five pixels are no thing"


def test_half_of_a_thing_is_enough_and_less_is_not() -> None:
    scene = scene_of(drawn(still((4, 4)), still((20, 20))))
    for rows, enough in ((3, True), (2, False)):
        part = drawn([None] * T, still((20, 20)))
        part[:, 4 : 4 + rows, 4:9] = 0
        assert (scene.painted(painted(part))[:, 0] == enough).all()


def test_covered_and_back_again() -> None:
    red: list[tuple[int, int] | None] = still((4, 4))
    red[5:10] = [None] * 5  # five frames
    masks = drawn(red, still((20, 20)))
    masks[7, 4, 4:6] = 0  # two pixels peep out
    scene = scene_of(masks, away=4)
    assert not scene.covered[:6, 0].any() and scene.covered[10:, 0].all() and not scene.covered[:, 1].any()
    assert not scene.returned[:9, 0].any() and scene.returned[10:, 0].all()
    assert not scene_of(masks, away=6).returned.any()
    assert not scene.seen[5:10, 0].any(), "nobody is blamed for what cannot be seen"


def test_what_has_no_colour_of_its_own_is_left_out() -> None:
    masks = drawn(still((4, 4)), still((20, 20)))
    frames = painted(masks)
    frames[masks == 1] = WOOD
    scene = Scene(frames, objects(masks), WINDOW, frames, 4)
    assert scene.told_apart.tolist() == [True, False] and not scene.seen[:, 1].any()
    tally = ObjectTally(4)
    tally.add([scene], {"dream": frames})
    assert tally.numbers()["left_out"] == ["green block"]


def test_things_that_are_never_seen_have_no_colour() -> None:
    scene = scene_of(drawn(still((4, 4)), [None] * T))
    assert scene.told_apart.tolist() == [True, False] and not scene.seen[:, 1].any()


def numbers(masks: np.ndarray, **pictures: np.ndarray) -> Any:
    frames = painted(masks)
    tally = ObjectTally(4)
    tally.add([Scene(frames, objects(masks), WINDOW, frames, 4 * AWAY)], {"codec": frames, **pictures})
    return tally.numbers()


def test_a_perfect_dream_is_as_good_as_the_codec_and_a_frozen_picture_scores_by_hand() -> None:
    red: list[tuple[int, int] | None] = [*still((4, 4))[:9], *still((4, 20))[9:]]  # moved in the third chunk
    masks = drawn(red, still((20, 20)))
    frames = painted(masks)
    got = numbers(masks, dream=frames, frozen=np.repeat(frames[:1], T, 0))
    assert got["painted"]["dream"] == got["painted"]["codec"] and got["db"]["dream"] == got["db"]["codec"]
    assert got["painted"]["dream"]["target, never covered"]["all"]["value"] == 1
    frozen = got["painted"]["frozen"]
    assert [x["value"] for x in frozen["target, never covered"]["by_chunk"]] == [1, 1, 0, 0]
    assert frozen["target, moved"]["all"]["value"] == 0 and frozen["target, moved"]["frames"] == 8
    assert frozen["other, never covered"]["all"]["value"] == 1
    error = np.mean([(a - b) ** 2 for a, b in zip(RED, WOOD, strict=True)])  # red stands where wood should be shown
    want = 10 * np.log10(255**2 / error)
    assert [x and x["value"] for x in got["db"]["frozen"]["target"]["by_chunk"]][2:] == pytest.approx(
        [want] * 2, abs=1e-3
    )
    share = 50 / (SIZE * (SIZE + 8))  # its new place and its old one
    want = 10 * np.log10(255**2 / (error * share))
    assert got["db"]["frozen"]["all"]["by_chunk"][3]["value"] == pytest.approx(want, abs=1e-3)
    faults = got["faults"]
    assert all(x["value"] == 0 for each in faults["dream"].values() for x in each.values())
    assert faults["frozen"]["erased"]["within 4"]["value"] == 1 == faults["frozen"]["ghost"]["within 4"]["value"]
    assert faults["frozen"]["erased"]["within 3"]["value"] == 1
    assert faults["frozen"]["duplicated"]["within 4"]["value"] == 0


def test_two_frames_are_a_flicker_and_three_a_fault() -> None:
    masks = drawn(still((4, 4)), still((20, 20)))
    for frames, fault in ((2, 0), (3, 1)):
        red: list[tuple[int, int] | None] = still((4, 4))
        red[3 : 3 + frames] = [None] * frames
        got = numbers(masks, dream=painted(drawn(red, still((20, 20)))))
        assert got["faults"]["dream"]["any"]["within 4"]["value"] == fault


def test_a_bad_codec_hides_nothing() -> None:
    masks = drawn(still((4, 4)), still((20, 20)))
    frames, lost, smeared = painted(masks), painted(drawn([None] * T, still((20, 20)))), painted(masks)
    smeared[:, 10:20, 10:20] = RED
    for codec, fault in ((lost, "erased"), (smeared, "ghost")):
        tally = ObjectTally(4)
        tally.add([Scene(frames, objects(masks), WINDOW, codec, 4)], {"codec": codec, "dream": codec})
        got = tally.numbers()["faults"]
        assert got["codec"][fault]["within 4"]["value"] == 1
        assert got["dream"][fault]["within 4"]["value"] == (fault == "erased"), "a ghost of the codec's is its own"


def test_colour_is_that_of_the_pixel_and_not_of_the_lamp() -> None:
    assert np.allclose(chroma(np.array([[100, 50, 50]], np.uint8)), chroma(np.array([[200, 100, 100]], np.uint8)))
    assert np.abs(chroma(np.array([[90, 90, 90]], np.uint8))).max() == 0
    masks = drawn(still((4, 4)), still((20, 20)))
    palette = Palette.measure(painted(masks)[:, :, :SIZE], masks[:, :, :SIZE], (0, 1))
    assert sorted(set(palette.owner.tolist())) == [-1, 0, 1]
    assert palette(painted(masks)[0])[masks[0] == 1].tolist() == [1] * 25


@pytest.mark.parametrize("seed", SEEDS)
def test_ratio_intervals_hold_the_ratio_of_sums(seed: int) -> None:
    rng = np.random.default_rng(seed)
    size = rng.integers(0, 9, 40)
    total = rng.binomial(size, 0.3)
    found = ratio_interval(total, size)
    assert found.value == pytest.approx(total.sum() / size.sum()) and found.low < found.value < found.high
    assert found.n == (size > 0).sum() and ratio_interval(total * 0, size * 0).n == 0
    assert ratio_interval(size, size).low == 1 == ratio_interval(size, size).high


def test_the_decoder_can_be_given_nothing() -> None:
    class Decoder(torch.nn.Module):
        def forward(self, noisy: torch.Tensor, tokens: torch.Tensor | None, scale: float = 1.0) -> torch.Tensor:
            return noisy if tokens is None else noisy + scale * tokens

    class Model:
        dit = torch.nn.Module()

    Model.dit.decoder = Decoder()
    one = torch.ones(2)
    with without_tokens(Model()):
        assert Model.dit.decoder(one, one).tolist() == [1, 1]
        assert Model.dit.decoder(one, tokens=one, scale=2.0).tolist() == [1, 1]
        assert Model.dit.decoder(one, None).tolist() == [1, 1]
    assert Model.dit.decoder(one, one).tolist() == [2, 2]
    Model.dit.decoder = torch.nn.Identity()
    with pytest.raises(ShapeError, match="no decoder that takes tokens"), without_tokens(Model()):
        pass


@pytest.mark.parametrize("seed", SEEDS)
def test_the_table_tells_its_objects_and_is_left_as_it_was(seed: int) -> None:
    robot = load_robot("g1_table")
    body = robot.embodiment()
    assert body is not None and robot.tells_objects
    env, other = (robot.make_env(body, horizon=2, blocks=3) for _ in range(2))
    (seen, _), _ = env.reset(seed=seed), other.reset(seed=seed)
    told = robot.objects(env)
    assert told is not None and told.masks.shape == (1, 64, 96) and told.names[-3:] == ("robot", "bowl", "background")
    assert len(told.things) == 3 and told.targets
    assert all(told.names[i].split()[0] in bytes(seen["instruction"]).decode() for i in told.targets)
    canvas = body.tile({v.name: seen[v.name] for v in body.views})[None]
    head = slice(0, 64), slice(0, 64)
    scene = Scene(canvas, told, head, canvas, 12)
    assert scene.told_apart.all() or (scene.visible.min() < 8)
    assert scene.painted(canvas).all() and not scene.ghosts(canvas).any()
    chunk = robot.expert(env)
    assert chunk is not None
    for _ in range(2):
        one, two = env.step(chunk), other.step(chunk)
        later = robot.objects(env)
        assert later is not None and later.masks.shape == (4, 64, 96) and len(one[4]["frames"]) == 4
        assert one[4]["frames"].tobytes() == two[4]["frames"].tobytes(), "looking changes nothing"


def test_the_command_tells_and_shows(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from imagine.configs.cli import main

    at = [
        "evaluate",
        "world-model",
        "--objects",
        "--rollouts",
        "2",
        "--chunks",
        "2",
        "--policy",
        "expert,random",
        "--seed",
        "900000",
    ]
    main([*at, "--kept", str(tmp_path / "kept"), "--out", str(tmp_path / "run"), "--json"])
    got = json.loads(capsys.readouterr().out)
    assert got["n"] == 2 and got["policies"] == {"expert": 1, "random": 1} and got["left_out"] == []
    beside = {"dream", "codec", "frozen", "shuffled", "without_tokens", "without_memory"}
    assert set(got["painted"]["target, never covered"]) == beside
    assert {p.name for p in (tmp_path / "run").iterdir()} >= {
        "metrics.json",
        "objects.md",
        "objects.png",
        "objects.mp4",
    }
    before = (tmp_path / "kept" / "rollouts.npz").stat().st_mtime_ns
    main([*at, "--kept", str(tmp_path / "kept"), "--out", str(tmp_path / "again"), "--json"])
    assert json.loads(capsys.readouterr().out) == got
    assert (tmp_path / "kept" / "rollouts.npz").stat().st_mtime_ns == before
    at[at.index("2")] = "3"
    assert main([*at, "--kept", str(tmp_path / "kept"), "--out", str(tmp_path / "third")]) == 2
    assert "holds rollouts of rollouts 2, not 3" in capsys.readouterr().err


@pytest.mark.parametrize("seed", SEEDS)
def test_what_is_hidden_comes_back(seed: int) -> None:
    robot = load_robot("g1_table")
    body = robot.embodiment()
    assert body is not None
    envs = WholeEpisodes(robot, lambda: robot.make_env(body, horizon=5), 2, body, 5)
    rollouts = true_rollouts(envs, {"hide": HidingPolicy(envs, 3)}, [seed, seed + 10])
    assert rollouts.frames.shape == (2, 21, 64, 96, 3) and rollouts.done.shape == (2, 5)
    for frames, objects in zip(rollouts.frames, rollouts.objects, strict=True):
        scene = Scene(frames, objects, (slice(0, 64), slice(0, 64)), frames, 12)
        away = (scene.visible[5:17] < 3).all(0)
        assert away.sum() == 1, "one thing, and for three chunks"
        assert (scene.seen & scene.returned)[17:, away].any(), "and it is seen again"


def test_rollouts_are_kept_with_what_they_are_of(tmp_path: Path) -> None:
    robot = load_robot("g1_table")
    body = robot.embodiment()
    assert body is not None
    envs = WholeEpisodes(robot, lambda: robot.make_env(body, horizon=1), 2, body, 1)
    made = true_rollouts(envs, {"expert": ExpertPolicy(envs)}, [0, 1, 2])
    made.save(tmp_path / "rollouts.npz", {"seed": 0})
    again = TrueRollouts.load(tmp_path / "rollouts.npz", {"seed": 0})
    for name, array in vars(made).items():
        if name != "objects":
            assert np.array_equal(array, getattr(again, name)), name
    assert again.objects[2].names == made.objects[2].names and again.objects[2].targets == made.objects[2].targets
    assert np.array_equal(again.objects[2].masks, made.objects[2].masks)
    assert again.pick([2]).seeds.tolist() == [2] and len(again.pick([2]).objects) == 1
    with pytest.raises(ImagineError, match="rollouts of seed 0, not 1"):
        TrueRollouts.load(tmp_path / "rollouts.npz", {"seed": 1})


def test_a_thing_is_where_its_colour_is_seen() -> None:
    from wam_probe import seen_at

    red: list[tuple[int, int] | None] = [(4, 2 + t) for t in range(T)]
    red[8] = None
    scene = scene_of(drawn(red, still((20, 20))))
    places = seen_at(scene, 0, None)
    assert places[:3].tolist() == [[4, 6], [5, 6], [6, 6]] and places[8].tolist() == places[7].tolist()
    assert np.array_equal(seen_at(scene, 0, scene.frames), places)
    assert (seen_at(scene, 0, np.repeat(scene.frames[:1], T, 0)) == places[0]).all()
