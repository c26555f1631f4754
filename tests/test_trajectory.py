"""Judging by where things were and where the hands went: the judge, and what tells it the path."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from test_agents import observation
from test_dream import SeededStarts, chunks
from torch import Tensor

from imagine.agents.memory import EpisodeContext
from imagine.agents.planner import DreamScorer, PlanningState
from imagine.agents.trajectory_labels import hands_of, loosened, questions_about
from imagine.embodiment import Embodiment
from imagine.model.model import SHIPPED, WorldActionModel
from imagine.policy.policy import JointPolicy
from imagine.policy.robots.g1_table.mirror import Mirror
from imagine.policy.robots.g1_table.scene import REST_Z
from imagine.policy.robots.g1_table.truth import NAMES
from imagine.policy.robots.plugin import RobotPlugin
from imagine.policy.robots.registry import load_robot
from imagine.rewards.trajectory import TrajectoryConfig, TrajectoryJudge
from imagine.types import CheckpointMismatch, Clip, RewardModel, Score, ShapeError
from imagine.world.dream import Dream, DreamConfig
from imagine.world.trajectory import TRAJECTORY_CHUNKS, extend, initial

WORDS = ("bowl", "push", "red", "the")
T = 9


def trajectory_judge(**changes: Any) -> TrajectoryJudge:
    torch.manual_seed(0)
    sizes = {"channels": 4, "height": 2, "width": 2, "proprio": 3, "actions": 2, "ticks": 2, "dim": 8}
    what = {"places": (0, 1), "targets": (0, 1), "near": (0.5, 0.5), "words": WORDS}
    return TrajectoryJudge(TrajectoryConfig(**{**sizes, **what, **changes})).eval()


def clip_of(n: int = 3, **changes: Any) -> Clip:
    g = torch.Generator().manual_seed(1)
    parts = {
        "latents": torch.randn(n, 3, 4, 2, 2, generator=g),
        "proprio": torch.randn(n, 3, 3, generator=g),
        "trajectory": torch.randn(n, T, 3 + 2 * 2, generator=g),
    }
    return Clip(**{**parts, "decode": lambda frames=None: torch.zeros(n, 3, 8, 8, 3), **changes})


# ---------------------------------------------------------------------- the judge
def test_it_keeps_the_contract_and_survives_its_folder(tmp_path: Path) -> None:
    judge, told = trajectory_judge(), ["push the red bowl", "xyzzy", "push"]
    assert isinstance(judge, RewardModel)
    score = judge(clip_of(), told)
    assert score.valid.tolist() == [True, False, True], "an instruction of unknown words cannot be judged"
    assert ((score.success > 0) & (score.success < 1)).all() and (score.terms["spread"] >= 0).all()
    assert score.reward.tolist() == (score.success > 0.5).float().tolist()
    judge.save(tmp_path)
    again = TrajectoryJudge.load(tmp_path)(clip_of(), told)
    torch.testing.assert_close(again.success, score.success, atol=2e-3, rtol=0)
    for i in range(3):
        every, own = clip_of(), slice(i, i + 1)
        alone = clip_of(latents=every.latents[own], proprio=every.proprio[own], trajectory=every.trajectory[own])
        one = judge(alone, told[own])
        torch.testing.assert_close(one.success, score.success[i : i + 1])


def test_files_under_the_former_name_still_load(tmp_path: Path) -> None:
    judge = trajectory_judge()
    judge.save(tmp_path)
    for file in list(tmp_path.iterdir()):
        file.rename(tmp_path / file.name.replace("trajectory", "path"))
    assert TrajectoryJudge.is_in(tmp_path) and TrajectoryJudge.load(tmp_path).cfg == judge.cfg
    shipped = TrajectoryJudge.load(SHIPPED / "g1-table-tiny")
    assert shipped.cfg.threshold == shipped.cfg.at == pytest.approx(0.4332, abs=1e-4)


def test_what_was_painted_after_the_first_frame_does_not_count() -> None:
    judge, told = trajectory_judge(), ["push the red bowl"] * 3
    painted = clip_of().latents.clone()
    painted[:, 1:] += 5
    assert torch.equal(judge(clip_of(latents=painted), told).success, judge(clip_of(), told).success)
    moved = clip_of().latents.clone()
    moved[:, 0] += 5
    assert not torch.equal(judge(clip_of(latents=moved), told).success, judge(clip_of(), told).success)


def test_only_the_way_beside_the_thing_counts() -> None:
    """Thing and hands moved alike give the same answer: nothing but the way relative to the thing is looked at."""
    judge = trajectory_judge()
    words, place, path = judge.word_counts(["push the red bowl"] * 3), torch.randn(3, 2), torch.randn(3, T, 7)
    off = torch.tensor([0.3, -0.7])
    far = path + torch.cat([off, torch.zeros(1), off, off])  # hands as imagined, something else, hands as commanded
    here = judge.logits(place, path, words)
    torch.testing.assert_close(judge.logits(place + off, far, words), here)
    assert not torch.allclose(judge.logits(place + off, path, words), here)


def test_what_does_not_fit_is_refused(tmp_path: Path) -> None:
    judge = trajectory_judge()
    with pytest.raises(ShapeError, match="the clip has no trajectory"):
        judge(clip_of(trajectory=None), ["push"] * 3)
    with pytest.raises(ShapeError, match="use the judge of this model's folder"):
        judge(clip_of(trajectory=torch.zeros(3, T, 5)), ["push"] * 3)
    with pytest.raises(ShapeError, match="expected"):
        judge(clip_of(), ["push"] * 2)
    with pytest.raises(CheckpointMismatch, match="no usable trajectory"):
        TrajectoryJudge.load(tmp_path)


def test_it_learns_where_a_thing_is_and_whether_the_hand_met_it() -> None:
    """A world of one dimension: the thing is as far right as the first frame is bright, and is met within 0.3."""
    judge = trajectory_judge(near=(0.5, 0.5), dropout=0.0, heads=1, dim=16)
    g = torch.Generator().manual_seed(0)

    def world(n: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        at, end = (torch.rand(n, 2, generator=g) * 2 - 1 for _ in range(2))
        close = torch.rand(n, generator=g) < 0.5
        end = torch.where(close[:, None], at + 0.3 * torch.randn(n, 2, generator=g), end)
        latents = torch.zeros(n, 4, 2, 2)
        latents[:, 0], latents[:, 1] = at[:, 0, None, None], at[:, 1, None, None]
        share = torch.linspace(0, 1, T)[:, None]
        way = share * end[:, None]
        path = torch.cat([way, torch.zeros(n, T, 1), way, way], -1)
        return latents, path, at, ((end - at).norm(dim=1) < 0.3).float()

    words = judge.word_counts(["push the red bowl"])
    optimiser = torch.optim.Adam(judge.parameters(), lr=5e-3)
    for _ in range(400):
        latents, path, at, met = world(128)
        told = words.expand(128, -1)
        here = judge.locate(latents, told)
        logit = judge.logits(here.detach(), path, told)[0, :, 0]
        loss = torch.nn.functional.binary_cross_entropy_with_logits(logit, met) + (here - at).square().mean()
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
    latents, path, at, met = world(512)
    film = latents[:, None].expand(-1, 3, -1, -1, -1)
    score = judge(clip_of(512, latents=film, trajectory=path), ["push the red bowl"] * 512)
    assert (judge.locate(latents, words.expand(512, -1)) - at).abs().mean() < 0.1
    assert (score.reward == met).float().mean() > 0.9


# ---------------------------------------------------------------------- who tells the path
class Keeper:
    """A judge that keeps what it was shown, and says no."""

    def __init__(self) -> None:
        self.clips: list[Clip] = []

    def __call__(self, clip: Clip, instruction: Sequence[str]) -> Score:
        self.clips.append(clip)
        zero = torch.zeros(len(clip.latents))
        return Score(zero, zero, zero == 0)


def test_a_dream_tells_the_path_since_the_lane_began(tiny_model: WorldActionModel) -> None:
    keeper = Keeper()
    dream = Dream(tiny_model, keeper, SeededStarts(), DreamConfig(tile=0))
    dream.allocate(2)
    dream.reset(np.arange(2), [1, 2], {})
    frames, first = tiny_model.chunk_shapes["video"][0], initial(tiny_model, dream.start_proprio)
    for seed in range(TRAJECTORY_CHUNKS + 1):
        before = dream.snapshot()
        dream.step(chunks(2, 1, seed)[0])
    for k, clip in enumerate(keeper.clips):
        assert clip.trajectory is not None and clip.trajectory.shape == (2, 1 + TRAJECTORY_CHUNKS * frames, 3 + 2 * 2)
        lived = torch.cat([first[..., :3], *(c.proprio[:, 1:] for c in keeper.clips[: k + 1])], 1)
        assert torch.equal(clip.trajectory[..., :3], lived[:, -clip.trajectory.shape[1] :]), f"after chunk {k}"
    dream.restore(before)
    dream.step(chunks(2, 1, TRAJECTORY_CHUNKS)[0])
    assert torch.equal(keeper.clips[-1].trajectory, keeper.clips[-2].trajectory), "a snapshot keeps the path"
    dream.reset(np.array([1]), [3], {})
    dream.step(chunks(2, 1)[0])
    last, still = keeper.clips[-1].trajectory, initial(tiny_model, dream.start_proprio)
    assert last is not None
    assert torch.equal(last[1, :-frames], still[1, frames:]), "lane 1 began anew"
    assert not torch.equal(last[0, :-frames], still[0, frames:])


def test_dead_reckoning_adds_up_what_was_commanded(tiny_model: WorldActionModel) -> None:
    """Actions of the tiny robot move its two joints; two chunks of 4 ticks are seen at every second one."""
    start, moves = torch.zeros(1, 3), torch.from_numpy(chunks(1, 2))
    std = tiny_model.proprio_std[tiny_model.anchor]
    path = initial(tiny_model, start)
    for chunk in moves:
        path = extend(tiny_model, path, torch.full((1, 2, 3), 9.0), chunk)
    led = path[0, -4:, 3:].unflatten(1, (2, 2)) * std
    torch.testing.assert_close(led[:2].flatten(0, 1), moves[0, 0])
    torch.testing.assert_close(led[2:].flatten(0, 1), moves[0, 0, 3] + moves[1, 0])
    assert (path[0, -4:, :3] == 9).all() and (path[0, :-4] == 0).all()


def test_a_planner_takes_the_way_between_two_looks_to_be_straight(tiny_model: WorldActionModel) -> None:
    frames, eyes = tiny_model.chunk_shapes["video"][0], JointPolicy(tiny_model)
    known = EpisodeContext(tiny_model)
    a, b = (eyes.context(observation(1, seed=s)) for s in (0, 1))
    _, path = known(a, [3])
    assert torch.equal(path, initial(tiny_model, a.proprio[:, -1]))
    start, path = known(b, [3])
    assert torch.equal(start.proprio, a.proprio)
    way = b.proprio[:, -1] - a.proprio[:, -1]
    for k in range(frames + 1):
        here = a.proprio[:, -1] + way * k / frames
        torch.testing.assert_close(path[:, -1 - frames + k, :3], here)
        torch.testing.assert_close(path[:, -1 - frames + k, -2:], here[:, tiny_model.anchor])
    torch.testing.assert_close(path[:, -1, 3:5], (a.proprio[:, -1] + way * 0.75)[:, tiny_model.anchor])
    scene = PlanningState(b, start, ("push",), (1,))
    torch.testing.assert_close(scene.known_trajectory(tiny_model), path)  # assumed of a scene that has no path


class Says(JointPolicy):
    """Always the same chunk."""

    def __init__(self, model: WorldActionModel, chunk: np.ndarray):
        super().__init__(model)
        self.chunk = chunk

    def act_on(self, context: Any, seeds: Any = None, cache: Any = None) -> np.ndarray:
        return self.chunk[None].repeat(len(context), 0)


def test_a_plan_of_two_chunks_is_scored_as_its_first_one_followed_by_the_second(tiny_model: WorldActionModel) -> None:
    context = JointPolicy(tiny_model).context(observation(2))
    scene = PlanningState(context, context, ("push the red bowl",) * 2, (5, 6))
    plan = torch.from_numpy(chunks(3, 2))
    second = chunks(1, 1, 9)[0, 0]
    whole = torch.cat([plan, torch.from_numpy(second).expand_as(plan)], 2)
    keeper, other = Keeper(), Keeper()
    followed = DreamScorer(tiny_model, keeper, depth=2, follow=Says(tiny_model, second))(scene, plan)
    planned = DreamScorer(tiny_model, other)(scene, whole)
    assert torch.equal(planned.value, followed.value) and torch.equal(planned.video, followed.video)
    assert all(torch.equal(a.trajectory, b.trajectory) for a, b in zip(keeper.clips, other.clips, strict=True))
    before, after = other.clips
    assert before.trajectory is not None and after.trajectory is not None  # of a tile of 8 rows, of which 6 are ours
    later = extend(tiny_model, before.trajectory[:6], after.proprio[:6, 1:], whole.flatten(0, 1)[:, 4:])
    assert torch.equal(after.trajectory[:6], later)
    with pytest.raises(ShapeError, match="expected"):
        DreamScorer(tiny_model, other)(scene, whole[:, :, :-1])


# ---------------------------------------------------------------------- teaching it
def test_loosened_paths_know_the_ends_of_chunks_and_the_newest_one(tiny_model: WorldActionModel) -> None:
    frames = tiny_model.chunk_shapes["video"][0]
    path = torch.randn(2, 1 + TRAJECTORY_CHUNKS * frames, 7)
    loose = loosened(tiny_model, path)
    assert loose.shape == path.shape
    torch.testing.assert_close(loose[:, :-frames:frames, :3], path[:, :-frames:frames, :3])
    assert torch.equal(loose[:, -frames:, :3], path[:, -frames:, :3])
    torch.testing.assert_close(loose[:, 1, :3], (path[:, 0, :3] + path[:, 2, :3]) / 2)  # two frames to a chunk
    began = -frames - 1
    torch.testing.assert_close(loose[:, began, 5:], path[:, began, :3][:, tiny_model.anchor])  # reckoned anew
    ours, lived = (x[:, -frames:, 3:].unflatten(2, (2, 2)) - x[:, [began], None, 5:] for x in (loose, path))
    torch.testing.assert_close(ours, lived)


def test_which_numbers_are_hands(tiny_model: WorldActionModel) -> None:
    assert hands_of(Embodiment.load("policy/robots/g1_table/g1_eef.yaml")) == ((0, 1, 2, 4, 5, 6),) * 2
    with pytest.raises(ShapeError, match="use --judge latent"):
        hands_of(tiny_model.body)


def test_every_question_is_answered_from_the_twins_truth() -> None:
    model = WorldActionModel.from_pretrained("g1-table-tiny")
    at = {name: i for i, name in enumerate(NAMES)}
    rows = np.zeros((1, 3, len(NAMES)))
    for colour, y in (("red", 0.1), ("blue", -0.2)):
        rows[0, :, at[f"{colour}_there"]] = 1
        for axis, value in (("x", 0.5), ("y", y), ("z", REST_Z)):
            rows[0, :, at[f"{colour}_{axis}"]] = value
    rows[0, 2, at["red_y"]] += 0.08  # left, more than is asked for, in the second chunk
    hands = (0, 1, 2, 4, 5, 6)
    done = np.zeros((1, 2), bool)
    own = "push the blue block to the left"
    asked = questions_about(load_robot("g1_table"), model, [own], rows, done, hands)
    assert len(asked.instruction[0]) == 6 and asked.instruction[0][0] == own and asked.done.shape == (1, 6, 2)
    assert asked.done.sum() == 1, "red was pushed to the left in the second chunk, and nothing else happened"
    i, q, t = np.argwhere(asked.done)[0].tolist()
    assert t == 1 and asked.instruction[i][q] == "push the red block to the left"
    np.testing.assert_allclose(asked.moved[i, q, 1], [0, 0.08, 0], atol=1e-6)
    state = torch.zeros(1, 8)
    state[:, list(hands)] = torch.from_numpy(asked.place[i, q])
    torch.testing.assert_close(
        model.restore_proprio(state)[0, list(hands)], torch.tensor([0.5, 0.1, REST_Z] * 2), atol=1e-5, rtol=0
    )


def test_without_a_true_state_only_the_own_instruction_is_asked_about() -> None:
    model = WorldActionModel.from_pretrained("g1-table-tiny")
    done, states = np.array([[False, True, True]]), np.zeros((1, 4, 0))
    asked = questions_about(RobotPlugin(), model, ["push the blue block to the left"], states, done, (0, 1, 2))
    assert asked.instruction == [["push the blue block to the left"]] and (asked.done[:, 0] == done).all()
    assert np.isnan(asked.place).all() and np.isnan(asked.moved).all()


def test_in_the_mirror_left_is_right() -> None:
    model = WorldActionModel.from_pretrained("g1-table-tiny")
    hands, words = (0, 1, 2, 4, 5, 6), ("left", "push", "right")
    mirror = Mirror(model, words, hands)
    body = torch.tensor([[0.4, 0.2, 0.7, 1.0, 0.5, -0.1, 0.8, 0.0]])  # left x, y, z, grip; right likewise
    seen = torch.tensor([[0.5, 0.1, 0.8, 0.0, 0.4, -0.2, 0.7, 1.0]])
    now, turned = model.normalise_proprio(body), model.normalise_proprio(seen)
    path, image = initial(model, now), initial(model, turned)
    torch.testing.assert_close(mirror.trajectory(path), image)
    chunk = torch.zeros(1, 24, 8)
    chunk[..., 1], chunk[..., 3], chunk[..., 7] = torch.linspace(0, 0.1, 24), 1.0, 0.5  # the left hand moves left
    other = torch.zeros(1, 24, 8)
    other[..., 5], other[..., 7], other[..., 3] = -chunk[..., 1], 1.0, 0.5
    torch.testing.assert_close(
        mirror.trajectory(extend(model, path, now[:, None].expand(-1, 4, -1), chunk)),
        extend(model, image, turned[:, None].expand(-1, 4, -1), other),
    )
    thing = model.normalise_proprio(torch.tensor([[0.4, 0.15, 0.6, 0, 0.4, 0.15, 0.6, 0]]))[:, list(hands)]
    beyond = model.normalise_proprio(torch.tensor([[0.4, -0.15, 0.6, 0, 0.4, -0.15, 0.6, 0]]))[:, list(hands)]
    torch.testing.assert_close(mirror.place(thing), beyond)
    assert mirror.words(torch.tensor([[1.0, 1.0, 0.0]])).tolist() == [[0.0, 1.0, 1.0]]
    torch.testing.assert_close(mirror.moved(torch.tensor([0.1, 0.2, 0.3])), torch.tensor([0.1, -0.2, 0.3]))
    wild = torch.randn(5, 17, path.shape[2])
    torch.testing.assert_close(mirror.trajectory(mirror.trajectory(wild)), wild)
