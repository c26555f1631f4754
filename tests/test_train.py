"""Training resumes to the same bits, learns, and never learns from what was not recorded."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import TINY_BODY, TINY_CODEC, TINY_DIT, randomise
from torch import nn

import imagine.train.fit
from imagine.agents.finetune.refining import RefineConfig, refine
from imagine.data.read import LeRobotDataset
from imagine.data.shard import EpisodeData
from imagine.data.windows import WindowBatch, Windows, build_cache
from imagine.data.write import DatasetWriter
from imagine.embodiment import Embodiment
from imagine.model.codec import FrameCodec
from imagine.model.decoder import DecoderConfig
from imagine.model.dit import DiTConfig
from imagine.model.model import WorldActionModel
from imagine.noise import Shares
from imagine.policy.adapter import merged, weights_hash
from imagine.rewards.latent import HeadConfig
from imagine.rewards.train.head import lambda_return
from imagine.rewards.vlm import VLMJudge
from imagine.train.fit import FitConfig, fit, generator_on, rate
from imagine.train.joint import build_model, train_codec, train_joint
from imagine.train.losses import JointConfig, joint_loss, masked_mse, on_own_frames
from imagine.types import ImagineError
from imagine.world.dream import DreamConfig

TICKS = 13  # an odd number, so that the last chunk of every episode is cut short
STEPS = FitConfig(
    steps=4, batch=4, lr=1e-2, warmup=2, mixed_precision="no", log_every=1, eval_every=1000, save_every=2, seed=3
)  # fmt: skip

SCENE = TINY_DIT.model_copy(update={"decoder": DecoderConfig(blocks=1, width=16, memory=8)})


def only(edge: str) -> Shares:
    """Draws from one edge of the noise square and no other."""
    return Shares(**{**dict.fromkeys(Shares.model_fields, 0.0), edge: 1.0})


def episode(seed: int, *, with_action: bool = True) -> EpisodeData:
    """A bright square follows the arm; the action is where the arm goes next; odd seeds turn careless at tick 8."""
    rng = np.random.default_rng(seed)
    state = np.cumsum(rng.normal(0, 0.1, (TICKS + 1, 3)), 0).astype(np.float32)
    frames = np.full((TICKS, 16, 16, 3), 40 + 20 * (seed % 3), np.uint8)
    for t, (x, y) in enumerate((8 + 6 * np.tanh(state[:-1, :2])).astype(int)):
        frames[t, y - 2 : y + 2, x - 2 : x + 2] = 250
    features = {"observation.state": state[:-1], "is_expert": (np.arange(TICKS) < 8) | (seed % 2 == 0)}
    if with_action:
        features["action"] = state[1:, :2]
    views = {"observation.images.head": frames}
    return EpisodeData(features, ["push the bowl"] * TICKS, views, np.arange(TICKS), seed=seed)


def recorded(root: Path, body: Embodiment, *, with_action: bool = True) -> Path:
    """Write a real dataset of six episodes (seed 20 is held out) and build its cache with a random codec."""
    writer = DatasetWriter(root / "data", "tiny", 10)
    writer.write_shard(0, [episode(s, with_action=with_action) for s in (1, 2, 3, 4, 5, 20)])
    writer.finalize()
    codec = randomise(FrameCodec(TINY_CODEC)).eval()
    return build_cache(LeRobotDataset.open(root / "data"), body, codec.encode, root / "cache", workers=0)


@pytest.fixture(scope="module")
def windows(tmp_path_factory: pytest.TempPathFactory) -> Windows:
    body = Embodiment.model_validate(TINY_BODY)
    caches = [recorded(tmp_path_factory.mktemp(n), body, with_action=n == "robot") for n in ("robot", "film")]
    return Windows(caches, body, context_frames=2)


def model_of(windows: Windows, *, heads: bool = True, dit: DiTConfig = TINY_DIT) -> WorldActionModel:
    """A fresh model; with ``heads`` its output layers are random instead of zero, so that inputs matter."""
    torch.manual_seed(0)
    codec = randomise(FrameCodec(TINY_CODEC))
    model = build_model(windows, codec, DiTConfig(**dit.model_dump()), JointConfig(), name="tiny", text_dim=16)  # type: ignore[arg-type]
    return randomise(model) if heads else model  # type: ignore[return-value]


def rows_of(windows: Windows, *, with_action: bool) -> np.ndarray:
    has = windows.batch(np.arange(len(windows))).action_valid.any(1).numpy()
    return np.flatnonzero(has == with_action)


def losses(model: nn.Module, batch: WindowBatch, cfg: JointConfig, draws: int = 6) -> list[dict[str, float]]:
    """The loss and its parts for several fixed draws of noise."""
    out = []
    for seed in range(draws):
        total, parts = joint_loss(model, batch, cfg, torch.Generator().manual_seed(seed))  # type: ignore[arg-type]
        out.append({"total": total.item(), **parts})
    return out


class Killed(BaseException):
    """Not an Exception: nothing may swallow it."""


@pytest.fixture
def kill_at(monkeypatch: pytest.MonkeyPatch) -> Iterator[object]:
    """A function after which the training loop dies at the start of a step; None lets it live."""
    honest = imagine.train.fit.step_generator

    def arm(step: int | None) -> None:
        def deadly(seed: int, now: int) -> torch.Generator:
            if now == step:
                raise Killed
            return honest(seed, now)

        monkeypatch.setattr(imagine.train.fit, "step_generator", deadly)

    return arm  # type: ignore[return-value]


def assert_bits(a: nn.Module, b: nn.Module) -> None:
    assert a.state_dict().keys() == b.state_dict().keys()
    for name, value in a.state_dict().items():
        assert torch.equal(value, b.state_dict()[name]), name


# ---------------------------------------------------------------------- a refined dream
def small_refine() -> RefineConfig:
    return RefineConfig(rank=2, fit=STEPS.model_copy(update={"eval_every": 4}))


@pytest.mark.parametrize("dit", [TINY_DIT, SCENE], ids=["linear", "scene"])
def test_a_killed_refinement_resumes_to_the_same_adapter_and_leaves_the_base_alone(
    windows: Windows,
    tmp_path: Path,
    kill_at,  # type: ignore[no-untyped-def]
    dit: DiTConfig,
) -> None:
    model = model_of(windows, dit=dit)
    frozen = weights_hash(model)
    straight = refine(model, windows, small_refine(), tmp_path / "straight")
    kill_at(3)
    with pytest.raises(Killed):
        refine(model, windows, small_refine(), tmp_path / "killed")
    kill_at(None)
    resumed = refine(model, windows, small_refine(), tmp_path / "killed")
    name = "adapter_model.safetensors"
    assert (straight / name).read_bytes() == (resumed / name).read_bytes()
    assert weights_hash(model) == frozen
    changed = merged(model, straight).dit.state_dict()
    same = {name for name, value in model.dit.state_dict().items() if torch.equal(changed[name], value)}
    assert len(same) < len(changed)
    drawn = {name for name in changed if name.startswith("decoder.") and name.endswith("weight") and "norm" not in name}
    assert {name for name in drawn if name in same} == {name for name in drawn if ".open." in name}


# ---------------------------------------------------------------------- resume
@pytest.mark.parametrize("dies_at", [2, 3])  # right after a save, and one lost step later
def test_killed_codec_training_resumes_to_the_same_bits(tmp_path: Path, kill_at, dies_at: int) -> None:  # type: ignore[no-untyped-def]
    frames = np.random.default_rng(0).integers(0, 256, (230, 16, 16, 3), np.uint8)

    def train(folder: str) -> FrameCodec:
        torch.manual_seed(0)
        return train_codec(frames, TINY_CODEC, STEPS, tmp_path / folder)

    straight = train("straight")
    kill_at(dies_at)
    with pytest.raises(Killed):
        train("killed")
    kill_at(None)
    torch.manual_seed(99)  # another process starts from other random weights
    resumed = train_codec(frames, TINY_CODEC, STEPS, tmp_path / "killed")
    assert_bits(straight, resumed)
    torch.manual_seed(0)
    start = FrameCodec(TINY_CODEC)
    assert not torch.equal(start.encoder[1].weight, straight.encoder[1].weight)  # it did train


@pytest.mark.parametrize("dies_at", [2, 3])
def test_killed_joint_training_resumes_to_the_same_bits(
    windows: Windows,
    tmp_path: Path,
    kill_at,
    dies_at: int,  # type: ignore[no-untyped-def]
) -> None:
    def train(folder: str) -> tuple[WorldActionModel, WorldActionModel]:
        model = model_of(windows, heads=False)
        return train_joint(
            windows, model, JointConfig(), STEPS, tmp_path / folder, out=tmp_path / folder / "out"
        ), model

    straight, raw = train("straight")
    kill_at(dies_at)
    with pytest.raises(Killed):
        train("killed")
    assert not (tmp_path / "killed" / "out").exists()  # nothing half-trained is published
    kill_at(None)
    resumed, again = train("killed")
    assert_bits(straight, resumed)
    assert_bits(raw, again)
    published = WorldActionModel.from_pretrained(tmp_path / "killed" / "out")
    assert published.answers == resumed.answers
    assert json.loads((tmp_path / "killed" / "metrics.json").read_text())["step"] == 4
    assert not torch.equal(
        model_of(windows, heads=False).dit.action_in.linear_1.weight, raw.dit.action_in.linear_1.weight
    )


def test_finished_run_is_not_trained_again(windows: Windows, tmp_path: Path, kill_at) -> None:  # type: ignore[no-untyped-def]
    def train() -> WorldActionModel:
        model = model_of(windows, heads=False)
        return train_joint(windows, model, JointConfig(), STEPS, tmp_path, out=tmp_path / "out")

    first = train()
    kill_at(4)
    assert_bits(first, train())


def simple_fit(folder: Path, cfg: FitConfig = STEPS) -> nn.Module:
    torch.manual_seed(0)
    module = nn.Linear(3, 1)

    def loss(step: int, generator: torch.Generator) -> tuple[torch.Tensor, dict[str, float]]:
        return module(torch.randn(4, 3, generator=generator)).square().mean(), {}

    return fit(module, loss, cfg, folder)


@pytest.mark.parametrize("at_rename", [1, 2])
def test_kill_between_the_renames_of_a_save_loses_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, at_rename: int
) -> None:
    """The second save moves the old state away and the new one in; death at either leaves a state to resume from."""
    honest, renames, steps_seen = Path.rename, [], []

    def deadly(self: Path, target: Path) -> Path:
        if self.name.startswith("state"):
            renames.append(self)
            if len(renames) == 1 + at_rename:  # the first save renames once
                raise Killed
        return honest(self, target)

    straight = simple_fit(tmp_path / "straight")
    monkeypatch.setattr(Path, "rename", deadly)
    with pytest.raises(Killed):
        simple_fit(tmp_path / "killed")
    monkeypatch.setattr(Path, "rename", honest)
    watched = imagine.train.fit.step_generator
    monkeypatch.setattr(imagine.train.fit, "step_generator", lambda s, n: (steps_seen.append(n), watched(s, n))[1])
    resumed = simple_fit(tmp_path / "killed")
    assert steps_seen == [2, 3]  # not from the start
    assert_bits(straight, resumed)


def test_one_process_trains_at_two_precisions(tmp_path: Path) -> None:
    for name, precision in (("half", "bf16"), ("full", "no")):
        simple_fit(tmp_path / name, STEPS.model_copy(update={"mixed_precision": precision}))


def test_loss_that_is_not_finite_stops_training(tmp_path: Path) -> None:
    module = nn.Linear(1, 1)
    with pytest.raises(ImagineError, match=r"loss is nan at step 0; lower lr \(now 0\.01\)"):
        fit(module, lambda step, g: (module.weight.sum() * float("nan"), {}), STEPS, tmp_path)
    assert not (tmp_path / "state").exists()


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Time stands still but for one second per training step."""
    now, honest = [100.0], imagine.train.fit.step_generator

    def tick(seed: int, step: int) -> torch.Generator:
        now[0] += 1
        return honest(seed, step)

    monkeypatch.setattr(imagine.train.fit, "step_generator", tick)
    monkeypatch.setattr(imagine.train.fit.time, "monotonic", lambda: now[0])
    yield


BUDGET = STEPS.model_copy(update={"steps": 1000, "seconds": 8.0, "decay": 0.5, "save_every": 3, "eval_every": 100})


def test_a_run_ends_with_its_budget_and_the_rate_falls_with_the_time(
    tmp_path: Path, clock: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    honest, rates = imagine.train.fit.rate, list[float]()
    monkeypatch.setattr(imagine.train.fit, "rate", lambda *a: (rates.append(honest(*a)), rates[-1])[1])
    published, shares = list[int](), list[float]()
    module = nn.Linear(3, 1)
    fit(
        module, lambda step, g: (module(torch.ones(3)).square().sum(), {}), BUDGET, tmp_path,
        evaluate=lambda m: {}, publish=lambda m, numbers: published.append(int(numbers["step"])),
        on_share=shares.append,
    )  # fmt: skip
    assert shares == [n / 8 for n in range(8)]
    assert rates[::2] == pytest.approx([0.005, *[0.01] * 4, 0.0075, 0.005, 0.0025])
    assert published == [8]  # the end is evaluated, whenever it comes
    assert honest(10, BUDGET, 8.0) == 0 and honest(10, BUDGET, 9.0) == 0  # never negative
    assert honest(999, BUDGET.model_copy(update={"seconds": 1e9})) < 1e-4  # steps may be used up first


def test_a_paused_run_goes_on_within_the_same_budget(tmp_path: Path, clock: None) -> None:
    straight = simple_fit(tmp_path / "straight", BUDGET)
    paused = simple_fit(tmp_path / "paused", BUDGET.model_copy(update={"pause": 4.0}))
    assert not torch.equal(straight.weight, paused.weight)  # type: ignore[arg-type]
    assert_bits(straight, simple_fit(tmp_path / "paused", BUDGET))


def test_noise_drawn_on_a_device_follows_from_the_step_alone() -> None:
    draws = [
        torch.randn(4, generator=generator_on(torch.device("cpu"), imagine.train.fit.step_generator(0, step)))
        for step in (1, 1, 2)
    ]
    assert torch.equal(draws[0], draws[1]) and not torch.equal(draws[0], draws[2])


def test_learning_rate_warms_up_holds_and_falls_to_almost_nothing() -> None:
    cfg = FitConfig(steps=1000, lr=2.0, warmup=100, decay=0.25)
    rates = np.array([rate(i, cfg) for i in range(cfg.steps)])
    assert (np.diff(rates[:100]) > 0).all() and (np.diff(rates[750:]) < 0).all()
    assert (rates[100:750] == 2.0).all()
    assert 0 < rates[0] <= 2.0 / 100 and 0 < rates[-1] <= 2.0 / 250


# ---------------------------------------------------------------------- standing on dreamt frames
def on_dreams(
    windows: Windows, rows: np.ndarray, share: float = 1.0, chunks: int = 1
) -> tuple[WindowBatch, WindowBatch]:
    """The same windows as recorded, and on frames that a random model dreamt."""
    model, cfg = model_of(windows), JointConfig(own_frames=share, own_chunks=chunks)
    real = windows.batch(rows)
    return real, on_own_frames(model, windows, rows, real, cfg, torch.Generator().manual_seed(1))


def test_only_windows_with_recorded_actions_behind_them_stand_on_dreams(windows: Windows) -> None:
    rows = np.arange(len(windows))
    real, dreamt = on_dreams(windows, rows)
    changed = (real.video != dreamt.video).flatten(1).any(1).numpy()
    expected = np.isin(windows.earlier(rows, 1), rows_of(windows, with_action=True))
    assert changed.any() and not changed.all() and (changed == expected).all()


def test_what_follows_a_dreamt_frame_stays_real(windows: Windows) -> None:
    t = windows.context_frames
    real, dreamt = on_dreams(windows, rows_of(windows, with_action=True))
    assert torch.equal(real.video[:, t:], dreamt.video[:, t:]) and torch.equal(
        real.proprio[:, t:], dreamt.proprio[:, t:]
    )
    assert all(torch.equal(getattr(real, k), getattr(dreamt, k)) for k in ("action_valid", "video_valid", "success_in"))


def test_action_on_dreamt_frames_leads_to_the_recorded_pose(windows: Windows) -> None:
    """Relative actions are measured from the newest pose, real or dreamt; their sum is where the robot was sent."""
    now = windows.context_frames - 1
    real, dreamt = on_dreams(windows, rows_of(windows, with_action=True), chunks=2)
    assert not torch.equal(real.action, dreamt.action)
    for batch in (real, dreamt):
        torch.testing.assert_close(
            batch.action + batch.proprio[:, None, now, :2], real.action + real.proprio[:, None, now, :2]
        )


def test_share_of_lanes_on_dreams(windows: Windows) -> None:
    rows = np.flatnonzero(np.isin(windows.earlier(np.arange(len(windows)), 1), rows_of(windows, with_action=True)))
    for share, lanes in ((0.0, 0), (0.5, len(rows) // 2), (1.0, len(rows))):
        real, dreamt = on_dreams(windows, rows, share)
        assert (real.video != dreamt.video).flatten(1).any(1).sum() == lanes


def test_earlier_windows_are_whole_chunks_back_in_the_same_episode(windows: Windows) -> None:
    rows, frames = np.arange(len(windows)), windows.embodiment.chunk_frames
    back = windows.earlier(rows, 2)
    found = back >= 0
    assert found.any() and (~found).any() and (back[found] == rows[found] - 2 * frames).all()
    before, now = windows.batch(back[found]), windows.batch(rows[found])
    assert torch.equal(before.episode, now.episode)
    assert (np.diff(windows.batch(rows).episode) != 0).sum() <= (~found).sum()


# ---------------------------------------------------------------------- sizes
def test_sizes_that_follow_from_the_robot_are_set_from_it(windows: Windows) -> None:
    """A preset made for one robot serves another: only whether they are used is its own choice."""
    steered = SCENE.model_copy(update={"action_frequencies": 2, "steer_tokens": 2})
    other = steered.model_copy(update={"steer_tokens": 7})
    assert model_of(windows, dit=other).cfg.dit == model_of(windows, dit=steered).cfg.dit
    assert model_of(windows).cfg.dit.steer_tokens == 0


def test_decoder_of_an_impossible_width_is_refused(windows: Windows) -> None:
    with pytest.raises(ImagineError, match=r"decoder has width 12 .* change dit\.decoder"):
        model_of(windows, dit=SCENE.model_copy(update={"decoder": DecoderConfig(blocks=1, width=12, memory=8)}))


# ---------------------------------------------------------------------- masks
def test_fixture_holds_every_kind_of_window(windows: Windows) -> None:
    """What the tests below rely on: films, cut-short chunks, careless ticks."""
    robot = windows.batch(rows_of(windows, with_action=True))
    assert len(rows_of(windows, with_action=False)) and len(windows.rows("held_out"))
    assert (~robot.action_valid).any() and (robot.action_valid & ~robot.policy_valid).any()
    assert (~robot.video_valid).any()


@pytest.mark.parametrize("video_only", [0.0, 1.0])
def test_film_without_actions_gives_no_gradient_to_the_action_head(windows: Windows, video_only: float) -> None:
    model, cfg = model_of(windows), JointConfig(video_only=video_only)
    film = windows.batch(rows_of(windows, with_action=False)[:8])
    for seed in range(6):
        joint_loss(model, film, cfg, torch.Generator().manual_seed(seed))[0].backward()
    for p in (*model.dit.action_out.parameters(),):
        assert p.grad is None or (p.grad == 0).all()
    assert model.dit.proj_out.weight.grad.abs().max() > 0
    model.zero_grad()
    robot = windows.batch(rows_of(windows, with_action=True)[:8])
    joint_loss(model, robot, cfg, torch.Generator().manual_seed(0))[0].backward()
    assert model.dit.action_out.weight.grad.abs().max() > 0


def test_contents_of_actions_that_were_never_recorded_change_no_loss(windows: Windows) -> None:
    """In a film every action is missing: whatever stands in its place must not be seen, even as an input."""
    model = model_of(windows)
    film = windows.batch(rows_of(windows, with_action=False)[:8])
    other = replace(film, action=film.action + 100)
    assert losses(model, film, JointConfig()) == losses(model, other, JointConfig())


def test_invalid_actions_are_never_targets(windows: Windows) -> None:
    """An untrained model predicts zeros whatever it reads, so here actions count as targets only."""
    model = model_of(windows, heads=False)
    robot = windows.batch(rows_of(windows, with_action=True))
    cfg = JointConfig(video_only=0.0)
    before = losses(model, robot, cfg)
    unseen = ~robot.action_valid & ~robot.policy_valid | ~robot.action_valid
    filler = torch.where(unseen[..., None], 50.0, robot.action)
    assert losses(model, replace(robot, action=filler), cfg) == before
    seen = torch.where(unseen[..., None], robot.action, robot.action + 1)
    assert all(
        a["policy"] != b["policy"] for a, b in zip(losses(model, replace(robot, action=seen), cfg), before, strict=True)
    )


def test_careless_actions_teach_dynamics_and_inverse_but_not_the_policy(windows: Windows) -> None:
    model = model_of(windows, heads=False)
    robot = windows.batch(rows_of(windows, with_action=True))
    careless = robot.action_valid & ~robot.policy_valid
    other = replace(robot, action=torch.where(careless[..., None], robot.action + 1, robot.action))
    for shares, changes in (("inverse", True), ("joint", False), ("free", False)):
        cfg = JointConfig(shares=only(shares), video_only=0.0)
        a, b = losses(model, robot, cfg, 2), losses(model, other, cfg, 2)
        assert all(x["policy"] == y["policy"] for x, y in zip(a, b, strict=True))
        assert all((x["action"] != y["action"]) == changes for x, y in zip(a, b, strict=True)), shares


def test_frames_after_the_end_of_an_episode_are_never_targets(windows: Windows) -> None:
    model = model_of(windows, heads=False)
    rows = np.arange(len(windows))
    batch = windows.batch(rows)
    t = windows.context_frames
    beyond = torch.cat([torch.zeros(len(rows), t, dtype=torch.bool), ~batch.video_valid], 1)
    video = torch.where(beyond[:, :, None, None, None], 9.0, batch.video)
    proprio = torch.where(beyond[:, :, None], 9.0, batch.proprio)
    assert losses(model, batch, JointConfig()) == losses(
        model, replace(batch, video=video, proprio=proprio), JointConfig()
    )


def test_masked_mean_counts_valid_entries_only() -> None:
    error = torch.tensor([[[1.0], [3.0]], [[2.0], [5.0]]])
    mask = torch.tensor([[True, False], [True, True]])
    weight = torch.tensor([1.0, 2.0])
    got = masked_mse(error, torch.zeros_like(error), mask, weight)
    assert got.item() == pytest.approx((1 * 1**2 + 2 * (2**2 + 5**2)) / 3)
    assert masked_mse(error, error + 1, torch.zeros_like(mask), weight).item() == 0


def test_given_modality_is_no_target(windows: Windows) -> None:
    """DYNAMICS gets its action clean and INVERSE its video: reciting them must earn nothing."""
    robot = windows.batch(rows_of(windows, with_action=True)[:8])
    for share, part in (("dynamics", "action"), ("inverse", "video"), ("inverse", "proprio")):
        parts = losses(model_of(windows), robot, JointConfig(shares=only(share), video_only=0.0), 2)
        assert all(x[part] == 0 for x in parts), share


# ---------------------------------------------------------------------- learning
def test_joint_loss_falls_on_a_batch_it_sees_again_and_again(windows: Windows) -> None:
    model = model_of(windows, heads=False)
    # Expert windows whose chunk lies inside the episode: everything is a target.
    batch = windows.batch(rows_of(windows, with_action=True))
    batch = batch.index(torch.where(batch.policy_valid.all(1) & batch.video_valid.all(1))[0][:6])
    assert len(batch) == 6
    cfg = JointConfig(context_noise=0.0)

    def average() -> dict[str, float]:
        with torch.no_grad():
            parts = losses(model, batch, cfg, 12)
        return {k: float(np.mean([p[k] for p in parts if k in p])) for k in ("total", "video", "proprio", "policy")}

    before = average()
    optimiser = torch.optim.AdamW(model.dit.parameters(), lr=5e-3)
    for step in range(60):
        optimiser.zero_grad()
        joint_loss(model, batch, cfg, torch.Generator().manual_seed(1000 + step))[0].backward()
        nn.utils.clip_grad_norm_(model.dit.parameters(), 1.0)
        optimiser.step()
    after = average()
    assert after["total"] < 0.8 * before["total"]
    assert all(after[k] < before[k] for k in before), (before, after)


def test_joint_training_reaches_the_words_and_leaves_the_codec_alone(windows: Windows) -> None:
    model = model_of(windows)
    batch = windows.batch(np.arange(4))
    joint_loss(model, batch, JointConfig(), torch.Generator().manual_seed(0))[0].backward()
    assert all(p.grad is None and not p.requires_grad for p in model.codec.parameters())
    assert any(p.grad is not None and p.grad.abs().max() > 0 for p in model.text.parameters())


def test_loss_is_a_function_of_its_generator(windows: Windows) -> None:
    model, batch = model_of(windows), windows.batch(np.arange(6))
    torch.manual_seed(1)
    first = losses(model, batch, JointConfig())
    torch.manual_seed(2)
    assert losses(model, batch, JointConfig()) == first
    assert first[0] != first[1]


# ---------------------------------------------------------------------- judges
def test_lambda_returns_have_their_closed_forms() -> None:
    expected, recorded = torch.tensor([[0.1, 0.6, 0.4]]), torch.tensor([[0.64, 0.8, 1.0]])
    inside = torch.ones(1, 3, dtype=torch.bool)

    def target(trace: float, within: torch.Tensor = inside, seen: torch.Tensor = recorded) -> float:
        return lambda_return(expected, seen, within, HeadConfig(discount=0.8, trace=trace)).item()

    assert target(1.0) == pytest.approx(0.64), "lambda 1 is the recorded outcome"
    assert target(0.0) == pytest.approx(0.8 * 0.6), "lambda 0 is the discounted expectation a chunk later"
    second = 0.8 * (0.5 * 0.4 + 0.5 * 1.0)
    assert target(0.5) == pytest.approx(0.8 * (0.5 * 0.6 + 0.5 * second))
    assert target(0.5, torch.tensor([[True, False, False]])) == pytest.approx(0.64), "nothing follows the end"
    assert target(0.0, seen=torch.tensor([[1.0, 0.8, 1.0]])) == 1.0, "a success is not bootstrapped"


@pytest.mark.slow
def test_judge_tiny_is_trained_resumed_and_loads_like_any_other(tmp_path: Path) -> None:
    """Two steps and a resume give the weights of three steps at once; what is saved is a transformers folder."""
    from safetensors.torch import load_file

    from imagine.agents.collect import collect
    from imagine.configs import cli

    data = tmp_path / "data"
    options = {"families": ["pick_up", "push_left"], "seconds": 2.0}
    collect(
        data, "imagine.policy.robots.g1_table.episodes:episode", 6, 100, 1, options=options, progress=lambda *_: None
    )
    small = "vlm.dreams=8,vlm.chunks=1,vlm_fit.batch=4,vlm_fit.eval_every=9,vlm_fit.save_every=2,vlm_fit.warmup=1"
    small += ",vlm.tiny.width=32,vlm.tiny.image_layers=1,vlm.tiny.layers=1,vlm_fit.log_every=9"

    def train(out: str, steps: int) -> Path:
        line = f"train --stages vlm --init g1-table-tiny --dataset {data} --out {tmp_path / out} --json --set "
        assert cli.main([*line.split(), f"{small},vlm_fit.steps={steps},vlm_fit.decay=0"]) == 0
        return tmp_path / out / "judge-tiny"

    whole = load_file(train("whole", 3) / "model.safetensors")
    interrupted = tmp_path / "parts"
    recipe = train("parts", 2)
    for name in ("config.yaml", "recipe.yaml"):  # they differ by the number of steps; a kill would not change them
        (interrupted / name).unlink()
    again = load_file(train("parts", 3) / "model.safetensors")
    assert whole.keys() == again.keys() and all(torch.equal(whole[k], again[k]) for k in whole)
    judge = VLMJudge.load(recipe)
    frames = torch.zeros(1, 2, 64, 96, 3, dtype=torch.uint8)
    assert judge.score(frames, ["push the red block to the left"]).success.shape == (1,)
    assert not judge.score(frames, ["fetch the purple sock"]).valid.any()


def test_hindsight_questions_are_answered_by_the_truth() -> None:
    from imagine.labels import Clips
    from imagine.policy.robots.g1_table.expert import expert_target
    from imagine.policy.robots.g1_table.truth import truth
    from imagine.policy.robots.g1_table.world import G1Table
    from imagine.policy.robots.registry import load_robot
    from imagine.rewards.train.vlm import draw_questions

    world = G1Table()
    world.reset(3, families=("pick_up",))
    before, mine = truth(world), world.task
    for _ in range(120):
        world.tick(expert_target(world, mine))
    picture = np.zeros((1, 1, 4, 4, 3), np.uint8)
    clips = Clips(picture[:, 0], picture, before[None], truth(world)[None, None])
    robot = load_robot("g1_table")
    asks, target = draw_questions(robot, clips, np.random.default_rng(0), 400)
    said = [(a.text, t) for a, t in zip(asks[0], target[0], strict=True) if a.text.startswith("Has the robot done")]
    assert 0.3 < np.mean([t for _, t in said]) < 0.7, "as many to be answered yes as no"
    done = {text for text, t in said if t == 1}
    assert len(done) == 1 and mine.instruction in done.pop()
    assert len({text for text, t in said if t == 0}) > len(robot.instructions()) / 2


@pytest.mark.parametrize("dreamt", ["grey", "noise"])
def test_success_may_look_as_honest_dreams_look(windows: Windows, tmp_path: Path, monkeypatch, dreamt: str) -> None:
    """Dreams that always lose, or win, sharpness are no reason to believe nothing; sharp ones keep the defaults."""
    from imagine.configs.dream_limits import measured_limits

    model, usual = model_of(windows).eval(), DreamConfig()
    body = windows.embodiment
    data = LeRobotDataset.open(recorded(tmp_path, body).parent / "data")
    canvases = Windows([build_cache(data, body, None, tmp_path / "canvas", workers=0)], body, context_frames=2)
    start = canvases.batch(canvases.chains(1, "held_out")[:, 0]).start_video
    noise = torch.randint(0, 256, start[:1].shape, dtype=torch.uint8)
    shown = torch.full_like(noise, 90) if dreamt == "grey" else noise
    monkeypatch.setattr(
        WorldActionModel, "decode", lambda self, video: shown[:, None].expand(len(video), 1, -1, -1, -1)
    )
    found = measured_limits(model, windows, canvases)
    assert 0 < found.hallucination_limit < float("inf")
    if dreamt == "grey":
        assert found.blur_limit == pytest.approx(1.0) and found.noise_limit == usual.noise_limit
    else:
        assert found.noise_limit > usual.noise_limit and found.blur_limit == usual.blur_limit
