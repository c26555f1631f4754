"""Adapting: what it needs is known before, what it draws is right, it learns, and it resumes to the same bits."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from adapt_worker import TINY_ZERO, gradients, latents, steps, train, zero
from conftest import TINY_BODY, TINY_CODEC, TINY_DIT, randomise
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

import imagine.model.layers
import imagine.train.fit
from imagine.configs import cli
from imagine.data.write import DatasetWriter, EpisodeData
from imagine.embodiment import Embodiment
from imagine.model.dit import JointDiT
from imagine.model.model import ModelConfig, Statistics, WorldActionModel
from imagine.model.text import TextConfig
from imagine.noise import Shares, draw_levels
from imagine.questions import DYNAMICS, QUESTIONS
from imagine.sampler import sample
from imagine.train.adapt import adapt
from imagine.train.adapt_loss import NO_SHARES, AdaptConfig, Latents, adapt_loss, draws
from imagine.train.fsdp import checkpoint_blocks
from imagine.train.memory_estimate import DREAMZERO, MemoryEstimate, estimate
from imagine.types import Chunk, Context, ImagineError, NoiseLevels, ShapeError

PLAIN = TINY_ZERO.model_copy(update={"image_dim": 0, "condition_channels": 0})


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


# ---------------------------------------------------------------------- the plan
def test_the_networks_have_as_many_parameters_as_they_are_known_for() -> None:
    dit, sizes = DREAMZERO["14b"]
    assert estimate(dit, **sizes).parameters == 16_484_292_448
    assert estimate(dit, **sizes).tokens == 7945  # nine latent frames of 880, 24 actions, a state
    assert 5.5e9 < estimate(DREAMZERO["5b"][0], **DREAMZERO["5b"][1]).parameters < 5.7e9


def test_what_trains_is_counted_as_it_is_made() -> None:
    from imagine.train.adapt import _put_adapters

    dit = zero()
    _put_adapters(dit, AdaptConfig(rank=3))
    trains = sum(p.numel() for p in dit.parameters() if p.requires_grad)
    assert estimate(TINY_ZERO, frames=5, height=4, width=6, actions=5, rank=3).trainable == trains


def test_memory_of_14b_is_near_what_others_report() -> None:
    """110 GB per GPU of eight for DreamZero's own full fine-tune, which keeps weights whole and the text encoder by."""
    dit, sizes = DREAMZERO["14b"]
    ours = estimate(dit, **sizes, method="full", world_size=8, sharding="fsdp")
    assert 55e9 < ours.total < 80e9
    whole_weights, text_encoder = 7 / 8 * 2 * ours.parameters, 11.4e9
    assert 90e9 < ours.total + whole_weights + text_encoder < 130e9
    alone = estimate(dit, **sizes, method="full")
    assert alone.total > 250e9 and "no GPU" in alone.fits
    lora = estimate(dit, **sizes, method="lora")
    assert 45e9 < lora.total < 80e9 and "80 GB" in lora.fits
    assert estimate(dit, **sizes, method="lora", checkpointing=False).total > 141e9
    assert 200e12 < lora.forward < 260e12 and lora.forward < lora.backward < 2 * lora.forward


MIDDLING = DREAMZERO["14b"][0].model_copy(
    update={"layers": 3, "heads": 4, "head_dim": 64, "ffn_dim": 691, "text_dim": 32, "image_dim": 24}
)


def one_pass(dit: JointDiT) -> Tensor:
    """A context, a chunk and POLICY, as :func:`adapt_loss` makes them."""
    context = Context(
        torch.randn(1, 3, 16, 16, 20), torch.randn(1, 3, 64), torch.randn(1, 512, 32), torch.randn(1, 257, 24),
        torch.randn(1, 5, 20, 16, 20),
    )  # fmt: skip
    cache, ones, action = dit.prefill(context), torch.ones(1), torch.randn(1, 24, 32)
    both = dit(Chunk(torch.randn(1, 2, 16, 16, 20), action=action), NoiseLevels(ones, ones), cache)
    alone = dit(Chunk(action=action), NoiseLevels(ones, ones), cache)
    return sum(x.float().square().mean() for x in (both.video, both.action, alone.action))  # type: ignore[union-attr, return-value]


@pytest.fixture
def middling() -> MemoryEstimate:
    return estimate(MIDDLING, frames=5, height=16, width=20, actions=24, method="full")


def test_arithmetic_is_what_a_counter_counts(middling: MemoryEstimate) -> None:
    dit = JointDiT(MIDDLING)
    checkpoint_blocks(dit)
    with FlopCounterMode(display=False) as forward:
        loss = one_pass(dit)
    assert forward.get_total_flops() == pytest.approx(middling.forward, rel=0.01)
    with FlopCounterMode(display=False) as backward:
        loss.backward()
    # A little less: nothing asks for gradients of what comes in, nor of observed tokens behind the last attention.
    assert 0.85 < backward.get_total_flops() / (middling.recompute + middling.backward) < 1.0


def test_activations_are_what_autograd_keeps(middling: MemoryEstimate, monkeypatch: pytest.MonkeyPatch) -> None:
    def attend(*qkv: Tensor) -> Tensor:  # as on a GPU: no matrix of scores is kept
        return F.scaled_dot_product_attention(*(x.transpose(1, 2) for x in qkv)).transpose(1, 2).flatten(2)

    monkeypatch.setattr(imagine.model.layers, "attend", attend)
    kept = []
    for recompute in (False, True):
        dit, seen = JointDiT(MIDDLING), {}
        if recompute:
            checkpoint_blocks(dit)
        own = {p.untyped_storage().data_ptr() for p in dit.parameters()}
        copies = {tuple(p.flatten(1).shape) for p in dit.parameters() if p.ndim > 1}
        copies |= {shape[::-1] for shape in copies}

        def keep(x: Tensor, seen: dict[int, Any] = seen, own: set[int] = own, copies: set[Any] = copies) -> Tensor:
            if x.untyped_storage().data_ptr() not in own and not (x.ndim == 2 and tuple(x.shape) in copies):
                seen[x.untyped_storage().data_ptr()] = x.untyped_storage()
            return x

        with torch.autograd.graph.saved_tensors_hooks(keep, lambda x: x), torch.autocast("cpu", torch.bfloat16):
            one_pass(dit)
        kept.append(sum(storage.nbytes() for storage in seen.values()))
    assert kept[0] == pytest.approx(middling.kept, rel=0.1)
    assert kept[1] < middling.recomputed < 0.5 * kept[0]  # ours counts the memory of the cache and one block as well


# ---------------------------------------------------------------------- draws
def test_flash_draws_noisy_video_and_any_action() -> None:
    shares = draws(("flash",)).shares
    levels = draw_levels(40_000, shares, video_shift=5.0, generator=seeded(), pure=0.5)
    video, action = levels.video, levels.action
    assert video.min() > 0 and video.max() < 1 and 0 <= action.min() < 0.001 and 0.999 < action.max() < 1
    assert video.mean() == pytest.approx(7 / 8, abs=2e-3) and video.var() == pytest.approx(7 / 576, rel=0.03)
    assert action.mean() == pytest.approx(1 / 2, abs=5e-3) and action.var() == pytest.approx(1 / 12, rel=0.03)
    assert abs(np.corrcoef(video, action)[0, 1]) < 0.02
    half = Shares(**{**NO_SHARES, "flash": 1.0, "dynamics": 1.0})
    mixed = draw_levels(10_000, half, video_shift=5.0, generator=seeded())
    assert (mixed.action == 0).float().mean() == pytest.approx(0.5, abs=0.02)


OLD_VIDEO = [0.06411445885896683, 0.3786873519420624, 0.5552828907966614, 1.0, 0.8737828135490417, 0.0]
OLD_ACTION = [0.16102945804595947, 0.0, 0.0, 1.0, 0.0, 1.0]


def test_without_flash_draws_are_what_they_always_were() -> None:
    levels = draw_levels(6, Shares(), video_shift=3.0, generator=seeded())
    assert levels.video.tolist() == OLD_VIDEO and levels.action.tolist() == OLD_ACTION


@pytest.mark.parametrize(
    ("asked", "answers"),
    [
        ("all", "POLICY,DYNAMICS,INVERSE,JOINT,VIDEO"),
        ("flash", "DYNAMICS,JOINT"),
        ("DYNAMICS", "DYNAMICS"),
        ("DYNAMICS,POLICY", "POLICY,DYNAMICS"),
        ("VIDEO,INVERSE", "INVERSE,VIDEO"),
        ("VIDEO", "VIDEO"),
        ("POLICY", "POLICY"),
    ],
)
def test_draws_answer_what_was_asked_and_no_more(asked: str, answers: str) -> None:
    chosen = draws(asked.split(","))
    assert ",".join(chosen.answers) == answers
    dit, cfg = zero(), AdaptConfig(draws=chosen)
    parts = [adapt_loss(dit, latents(), cfg, seeded(i))[1] for i in range(25)]
    assert any("policy" in p for p in parts) == ("POLICY" in answers)
    assert all("action" not in p for p in parts) == (answers in ("VIDEO", "POLICY"))


def test_other_questions_are_refused() -> None:
    for words in (("dynamics",), (), ("all", "POLICY")):
        with pytest.raises(ImagineError, match="expected all, flash, or some of POLICY"):
            draws(words)


# ---------------------------------------------------------------------- the loss
@pytest.mark.parametrize("question", ["JOINT", "POLICY", "INVERSE"])
def test_padded_actions_are_noisy_going_in_and_no_target_coming_out(question: str) -> None:
    dit, seen = zero(), dict[str, Tensor]()

    def look(_: nn.Module, inputs: tuple[Tensor, ...], out: Tensor) -> None:
        out.retain_grad()
        seen["out"] = out

    dit.registers.action_decoder.register_forward_hook(look)
    dit.registers.action_encoder.register_forward_pre_hook(lambda _, inputs: seen.update(into=inputs[0]))
    cfg = AdaptConfig(draws=draws((question,)), pure=1.0)
    adapt_loss(dit, latents(), cfg, seeded())[0].backward()
    robot = 2
    assert seen["out"].grad[..., :robot].abs().min() > 0 and (seen["out"].grad[..., robot:] == 0).all()
    assert seen["into"].shape[-1] == 6 and seen["into"][..., robot:].std() > 0.4


def only(batch: Latents, **changes: Tensor) -> Latents:
    return Latents(**{**vars(batch), **changes})


def test_what_is_not_valid_is_no_target() -> None:
    dit, batch = zero(), latents()
    none = torch.zeros_like(batch.policy_valid)
    parts = adapt_loss(dit, only(batch, action_valid=none, policy_valid=none), AdaptConfig(), seeded())[1]
    assert parts["action"] == parts["policy"] == 0 and parts["video"] > 0
    cfg = AdaptConfig(draws=draws(("VIDEO",)))
    assert adapt_loss(dit, only(batch, video_valid=none[:, :2]), cfg, seeded())[0] == 0
    other = only(batch, action=batch.action + 5)
    assert adapt_loss(dit, batch, cfg, seeded())[1] == adapt_loss(dit, other, cfg, seeded())[1]  # absent, so unseen


def test_a_given_modality_is_no_target() -> None:
    dit = zero()
    given_action = adapt_loss(dit, latents(), AdaptConfig(draws=draws(("DYNAMICS",))), seeded())[1]
    given_video = adapt_loss(dit, latents(), AdaptConfig(draws=draws(("INVERSE",))), seeded())[1]
    assert given_action["action"] == 0 < given_action["video"] and given_video["video"] == 0 < given_video["action"]


def test_weights_of_the_parts_add_up() -> None:
    dit = zero()
    cfg = AdaptConfig(video_weight=2.0, action_weight=3.0, policy_weight=5.0)
    total, parts = adapt_loss(dit, latents(), cfg, seeded())
    expected = 2 * parts["video"] + 3 * parts["action"] + 5 * parts["policy"]
    assert total.item() == pytest.approx(expected, rel=1e-6)


def test_recomputed_blocks_give_the_same_gradients() -> None:
    grads = []
    for recompute in (False, True):
        dit = zero()
        if recompute:
            checkpoint_blocks(dit)
        adapt_loss(dit, latents(), AdaptConfig(), seeded())[0].backward()
        grads.append({n: p.grad for n, p in dit.named_parameters()})
    assert grads[0].keys() == grads[1].keys()
    assert all(torch.equal(g, grads[1][n]) for n, g in grads[0].items() if g is not None)


def test_networks_and_frames_that_do_not_fit_are_refused() -> None:
    with pytest.raises(ShapeError, match="use joint_loss"):
        adapt_loss(JointDiT(TINY_DIT), latents(), AdaptConfig(), seeded())
    batch = latents()
    with pytest.raises(ShapeError, match="2 observed frames do not fill blocks of 2 after a first frame"):
        adapt_loss(zero(), only(batch, video=batch.video[:, 1:]), AdaptConfig(), seeded())


# ---------------------------------------------------------------------- learning
class Zero:
    """The tiny DreamZero as the sampler wants it."""

    answers = frozenset(QUESTIONS.values())
    schedule_shift = 1.0

    def __init__(self, dit: JointDiT):
        self.dit = dit
        self.chunk_shapes: dict[str, tuple[int, ...]] = {"video": (2, 4, 4, 6), "proprio": (2, 3), "action": (5, 6)}
        self.prefill = dit.prefill

    def velocity(self, noisy: Chunk, sigma: NoiseLevels, context: Context, cache: Any, **_: Any) -> Chunk:
        return replace(self.dit(noisy, sigma, cache), proprio=torch.zeros_like(noisy.proprio))  # not predicted


def moved_by_actions(seed: int, batch: int = 16) -> Latents:
    """A world in which the next frames are the newest one, shifted in brightness by what is done."""
    base = latents(seed=seed, batch=batch)
    video = 0.3 * base.video
    video[:, -2:] = video[:, -3:-2] + base.action.mean(1)[:, :1, None, None, None] * 2
    return only(base, video=video)


@torch.no_grad()
def error_of_dreams(dit: JointDiT, action: str = "true") -> float:
    """Mean squared error of DYNAMICS in four steps, in worlds never trained on."""
    batch = moved_by_actions(10_000, 64)
    told = F.pad(batch.action, (0, 4))
    told = told if action == "true" else told.roll(1, 0)
    felt = batch.state[:, None].expand(-1, 3, -1)
    context = Context(batch.video[:, :3], felt, batch.text, batch.image, batch.condition)
    dream = sample(Zero(dit), DYNAMICS, context, action=told, steps=4, generator=seeded())  # type: ignore[arg-type]
    return float((dream.video - batch.video[:, -2:]).square().mean())


@pytest.mark.slow
def test_dynamics_is_learnt_by_a_few_dozen_steps(tmp_path: Path) -> None:
    dit = JointDiT(TINY_ZERO.model_copy(update={"layers": 2}))
    run = steps(120, lr=4e-3, save_every=1000)
    cfg = AdaptConfig(draws=draws(("DYNAMICS",)), video_shift=1.0, method="full", checkpointing=False, fit=run)
    before, seen = error_of_dreams(dit), []

    def loss(step: int, generator: torch.Generator) -> tuple[Tensor, dict[str, float]]:
        value, numbers = adapt_loss(dit, moved_by_actions(step), cfg, generator)
        seen.append(value.item())
        return value, numbers

    adapt(dit, loss, cfg, tmp_path)
    assert np.mean(seen[-10:]) < 0.5 * np.mean(seen[:10])
    after = error_of_dreams(dit)
    assert after < 0.35 * before and after < 0.6 * error_of_dreams(dit, "shuffled")


# ---------------------------------------------------------------------- training, resuming
class Killed(BaseException):
    """Not an Exception: nothing may swallow it."""


@pytest.mark.parametrize("method", ["lora", "full"])
def test_killed_adaptation_resumes_to_the_same_bits(
    method: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cfg, honest = AdaptConfig(method=method, rank=2, fit=steps(3)), imagine.train.fit.step_generator
    losses, straight = train(tmp_path / "straight", cfg)

    def deadly(seed: int, now: int) -> torch.Generator:
        if now == 2:
            raise Killed
        return honest(seed, now)

    monkeypatch.setattr(imagine.train.fit, "step_generator", deadly)
    with pytest.raises(Killed):
        train(tmp_path / "killed", cfg)
    monkeypatch.setattr(imagine.train.fit, "step_generator", honest)
    last, resumed = train(tmp_path / "killed", cfg)
    assert last == losses[2:]
    start = zero().state_dict()
    assert straight.keys() == resumed.keys() == start.keys()
    assert all(torch.equal(straight[n], resumed[n]) for n in start)
    moved = {n for n in start if not torch.equal(start[n], straight[n])}
    assert "blocks.0.attn1.to_q.weight" in moved and "registers.action_decoder.linear_2.weight" in moved
    assert ("patch_embedding.weight" in moved) == (method == "full")


def test_merged_adapters_say_what_they_said_inside(tmp_path: Path) -> None:
    dit, cfg = zero(), AdaptConfig(rank=2, checkpointing=False, fit=steps(2))
    weights = adapt(dit, lambda step, g: adapt_loss(dit, latents(), cfg, g), cfg, tmp_path)
    plain = JointDiT(TINY_ZERO)
    plain.load_state_dict(weights)
    with torch.no_grad():
        a, b = (adapt_loss(d, latents(), cfg, seeded())[1] for d in (dit, plain))
    assert a == pytest.approx(b, rel=1e-4)


@pytest.mark.slow
def test_two_processes_with_sharded_weights_train_as_one(tmp_path: Path) -> None:
    """Each has half the lanes; what they saved together is resumed by one process alone."""
    worker = Path(__file__).with_name("adapt_worker.py")
    found = {"PYTHONPATH": f"{worker.parents[1]}:{worker.parent}", "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    # What accelerate launch starts on GPUs; on CPUs it would want MPI.
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
    done = subprocess.run(
        [*launch, str(worker), str(tmp_path)], capture_output=True, text=True, env={**os.environ, **found}
    )
    assert done.returncode == 0, done.stderr[-3000:]
    whole = gradients(False)
    for sharded in torch.load(tmp_path / "gradients.pt"):
        assert sharded.keys() == whole.keys()
        assert all((sharded[n] - g).norm() <= 1e-4 * g.norm() for n, g in whole.items())
    for method in ("lora", "full"):
        together = torch.load(tmp_path / f"{method}.pt")
        losses, weights = train(tmp_path / "alone" / method, AdaptConfig(method=method, rank=2, fit=steps(3)))
        assert together["losses"] == pytest.approx(losses[:2], rel=1e-4)
        last, resumed = train(tmp_path / method, AdaptConfig(method=method, rank=2, fit=steps(3)))
        assert last == pytest.approx(losses[2:], rel=1e-4)
        for name, value in resumed.items():
            # Adam makes steps of gradients that are but rounding, so not every single number agrees.
            assert (value - weights[name]).norm() <= 1e-3 * weights[name].norm()
    half, _ = train(tmp_path / "alone" / "half", AdaptConfig(rank=2, fit=steps(2, mixed_precision="bf16")))
    assert torch.load(tmp_path / "half.pt") == pytest.approx(half, rel=1e-2)


# ---------------------------------------------------------------------- the command
OURS = TINY_DIT
WAN = PLAIN.model_copy(update={"text_dim": 16})


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Six short episodes in which a bright square follows the arm."""
    root = tmp_path_factory.mktemp("data")
    writer, episodes = DatasetWriter(root / "data", "tiny", 10), []
    for seed in (1, 2, 3, 4, 5, 20):
        state = np.cumsum(np.random.default_rng(seed).normal(0, 0.1, (14, 3)), 0).astype(np.float32)
        frames = np.full((13, 16, 16, 3), 60, np.uint8)
        for t, (x, y) in enumerate((8 + 6 * np.tanh(state[:-1, :2])).astype(int)):
            frames[t, y - 2 : y + 2, x - 2 : x + 2] = 250
        features = {"observation.state": state[:-1], "action": state[1:, :2]}
        views = {"observation.images.head": frames}
        episodes.append(EpisodeData(features, ["push the bowl"] * 13, views, np.arange(13), seed=seed))
    writer.write_shard(0, episodes)
    writer.finalize()
    return root / "data"


@pytest.fixture(params=[OURS, WAN], ids=["ours", "wan"])
def saved(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Path]:
    """A folder of a model that answers JOINT alone."""
    cfg = ModelConfig(
        name="tiny",
        embodiment=Embodiment.model_validate(TINY_BODY),
        dit=request.param,
        codec=TINY_CODEC,
        text=TextConfig(words=("bowl", "push", "the"), length=4, dim=16),
        statistics=Statistics(proprio_mean=(0, 0, 0), proprio_std=(1, 1, 1), action_mean=(0, 0), action_std=(0.1, 0.1)),
        answers=("JOINT",),
        context_frames=3 if request.param.registers else 2,
    )
    randomise(WorldActionModel(cfg)).save_pretrained(tmp_path / "saved")  # type: ignore[operator]
    yield tmp_path / "saved"


@pytest.mark.parametrize("method", ["lora", "full"])
def test_adapt_command_trains_a_folder_that_answers_more(
    saved: Path, dataset: Path, tmp_path: Path, method: str, capfd: pytest.CaptureFixture[str]
) -> None:
    def command(steps: int, *more: str) -> dict[str, Any]:
        words = [
            "finetune",
            "joint",
            "--model",
            str(saved),
            "--dataset",
            str(dataset),
            "--method",
            method,
            "--batch",
            "4",
        ]
        assert cli.main([*words, "--steps", str(steps), "--rank", "2", "--json", *more]) == 0
        out, err = capfd.readouterr()
        assert "parameters: " in err and "GB per GPU" in err  # the plan comes first
        return json.loads(out)

    to = ["--out", str(tmp_path / "run"), "--questions", "DYNAMICS,POLICY", "--gradient-checkpointing"]
    answer = command(2, *to)
    assert answer["answers"] == "POLICY,DYNAMICS,JOINT"
    base, new = (WorldActionModel.from_pretrained(p) for p in (saved, answer["model"]))
    assert {q.name for q in new.answers} == {"POLICY", "DYNAMICS", "JOINT"} and DYNAMICS not in base.answers
    before, after = base.state_dict(), new.state_dict()
    assert {n.split(".")[0] for n in before if not torch.equal(before[n], after[n])} == {"dit"}
    weights = (tmp_path / "run" / "model" / "model.safetensors").read_bytes()
    command(2, *to)  # finished: nothing is trained again
    assert (tmp_path / "run" / "model" / "model.safetensors").read_bytes() == weights


def test_adapt_command_plans_without_a_checkpoint(capfd: pytest.CaptureFixture[str]) -> None:
    options = "--plan 14b --gpus 8 --method full --gradient-checkpointing --batch 1 --json"
    assert cli.main(["finetune", "joint", *options.split()]) == 0
    table = json.loads(capfd.readouterr().out)
    assert table["parameters"] == "16,484,292,448" and "fits a GPU of 80 GB" in table["verdict"]
    assert cli.main(["finetune", "joint", "--plan", "model", "--json"]) == 0
    assert "fits a GPU of 80 GB" in json.loads(capfd.readouterr().out)["verdict"]


def test_policy_alone_is_refused_with_its_remedy(capfd: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["finetune", "joint", "--questions", "POLICY"]) == 2
    assert "imagine finetune bc" in capfd.readouterr().err
