"""The same actions in a dream: what is shown, what is left out of it, and judges who are asked about it."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest
import torch

from imagine.agents.frozen_dream import FrozenDream
from imagine.agents.judges_compared import compare_judges
from imagine.agents.object_fidelity import measure_objects
from imagine.agents.same_actions import FirstFrames, SameActions
from imagine.agents.true_rollouts import TrueRollouts
from imagine.configs.pages.objects import tables
from imagine.model.decoder import DecoderConfig
from imagine.model.model import WorldActionModel
from imagine.types import Clip, Score
from imagine.world.objects import ObjectMasks
from imagine.world.step import DreamConfig
from tests.conftest import randomise

N, CHUNKS = 5, 3


@pytest.fixture(params=[False, True], ids=["no decoder", "decoder"])
def model(tiny_model: WorldActionModel, request: pytest.FixtureRequest) -> WorldActionModel:
    cfg = tiny_model.cfg
    drawn = DecoderConfig(blocks=1, width=16, memory=8) if request.param else DecoderConfig()
    dit = cfg.dit.model_copy(update={"decoder": drawn})
    return randomise(WorldActionModel(cfg.model_copy(update={"dit": dit}))).eval()  # type: ignore[return-value]


@pytest.fixture
def rollouts(model: WorldActionModel) -> TrueRollouts:
    body, rng = model.body, np.random.default_rng(0)
    frames = 1 + CHUNKS * body.chunk_frames
    shape = body.canvas_height, body.canvas_width
    low, high = body.action_low, body.action_high
    masks = ObjectMasks(np.zeros((frames, *shape), np.int8), ("scene",), (), (), body.views[0].name)
    return TrueRollouts(
        seeds=np.arange(N), policies=np.array(["random"] * N), instructions=np.array(["push the red bowl"] * N),
        frames=rng.integers(0, 255, (N, frames, *shape, 3), np.uint8),
        proprio=rng.normal(size=(N, frames, body.proprio_dim)).astype(np.float32),
        actions=rng.uniform(low, high, (N, CHUNKS, body.chunk_actions, len(low))).astype(np.float32),
        done=np.array([[0, 0, 0], [0, 0, 1], [0, 1, 1], [1, 1, 1], [1, 1, 1]], bool), objects=(masks,) * N,
    )  # fmt: skip


def test_pictures_begin_with_the_truth_and_lack_what_they_are_to_lack(
    model: WorldActionModel, rollouts: TrueRollouts
) -> None:
    same, rows, f = SameActions(model, rollouts, DreamConfig()), np.arange(N), model.body.chunk_frames
    remembers = bool(model.cfg.dit.decoder.memory)
    assert ("without_memory" in same.kinds) == ("without_tokens" in same.kinds) == remembers
    shown = {kind: same.pictures(kind, rows) for kind in same.kinds}
    for kind, pictures in shown.items():
        assert pictures.shape == rollouts.frames.shape and pictures.dtype == np.uint8, kind
        if kind != "codec":
            assert np.array_equal(pictures[:, 0], rollouts.frames[:, 0]), kind
    assert (shown["frozen"] == rollouts.frames[:, :1]).all()
    assert not np.array_equal(shown["dream"], shown["shuffled"])
    assert np.array_equal(shown["dream"], same.pictures("dream", rows)), "an ablation leaves nothing behind"
    assert np.array_equal(shown["dream"][2:], same.pictures("dream", rows[2:])), "whoever is dreamt beside it"
    if remembers:
        assert not np.array_equal(shown["dream"], shown["without_tokens"])
        first, later = np.s_[:, : 1 + f], np.s_[:, 1 + f :]
        assert np.array_equal(shown["dream"][first], shown["without_memory"][first])
        assert not np.array_equal(shown["dream"][later], shown["without_memory"][later])


def test_without_things_the_whole_picture_is_measured(model: WorldActionModel, rollouts: TrueRollouts) -> None:
    same = SameActions(model, rollouts, DreamConfig())
    got = measure_objects(same)
    assert got["n"] == N and got["chunks"] == CHUNKS and got["left_out"] == []
    assert all(x["frames"] == 0 for kind in got["painted"].values() for x in kind.values())
    assert got["db"]["dream"]["all"] == got["db"]["dream"]["scene"] and not got["db"]["dream"]["target"]["all"]
    error = (same.pictures("frozen", np.arange(N))[:, 1:].astype(float) - rollouts.frames[:, 1:]) ** 2
    assert got["db"]["frozen"]["all"]["all"]["value"] == pytest.approx(10 * np.log10(255**2 / error.mean()), abs=1e-3)
    assert "dB" in tables(got) and "target" not in tables(got)


class Looks:
    """Sees a success wherever the newest picture is not the first one."""

    def __call__(self, clip: Clip, instruction: Sequence[str]) -> Score:
        frames = clip.decode().float()
        changed = (frames[:, -1] - frames[:, 0]).abs().amax((1, 2, 3)) > 0
        return Score(changed.float(), changed.float(), torch.ones_like(changed))


class Always:
    """Sees a success everywhere, but cannot tell in the first rollout."""

    def __call__(self, clip: Clip, instruction: Sequence[str]) -> Score:
        one = torch.ones(len(clip.latents))
        return Score(one, one, torch.arange(len(one)) > 0)


def test_judges_are_held_against_the_truth_of_the_same_actions(model: WorldActionModel, rollouts: TrueRollouts) -> None:
    got = compare_judges(SameActions(model, rollouts, DreamConfig()), {"looks": Looks(), "always": Always()})
    true = rollouts.done.mean(0)
    assert [x["value"] for x in got["looks"]["frozen"]["agreement"]] == pytest.approx(1 - true)
    assert [x["value"] for x in got["looks"]["frozen"]["bias"]] == pytest.approx(-true)
    assert [x["value"] for x in got["looks"]["real"]["agreement"]] == pytest.approx(true)
    for shown in ("real", "frozen"):
        assert [x["value"] for x in got["always"][shown]["bias"]] == pytest.approx(0.8 - true)
        assert [x["value"] for x in got["always"][shown]["agreement"]] == pytest.approx([0.6, 0.8, 1.0])
    assert len(got["always"]["dream"]["agreement"]) == CHUNKS


def test_a_frozen_dream_draws_nothing_and_moves_as_commanded(model: WorldActionModel, rollouts: TrueRollouts) -> None:
    same = SameActions(model, rollouts, DreamConfig(inverse_steps=0))
    starts, judge = FirstFrames(rollouts), Looks()
    dream = FrozenDream(model, judge, starts, same.cfg)
    dream.allocate(2)
    dream.reset(np.arange(2), [0, 1], {})
    before, first = dream.observe(), dream.start_canvas.clone()
    for chunk in range(CHUNKS):
        outcome = dream.step(rollouts.actions[:2, chunk])
        assert not outcome.terminated.any() and torch.equal(dream.canvas, first)
    after = dream.observe()
    assert not np.array_equal(before["proprio"], after["proprio"])
    saved = dream.snapshot()
    dream.step(rollouts.actions[:2, 0])
    dream.restore(saved)
    assert np.array_equal(dream.observe()["proprio"], after["proprio"])
