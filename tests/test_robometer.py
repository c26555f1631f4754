"""Robometer's layout on a random Qwen3-VL a few thousand weights small."""

from __future__ import annotations

import json
import shutil
from collections.abc import Sequence
from pathlib import Path

import pytest
import torch
from conftest import randomise
from safetensors.torch import load_file, save_file

from imagine.rewards.robometer import RobometerJudge
from imagine.rewards.robometer_heads import RobometerConfig, RobometerHeads, expectation
from imagine.rewards.tiny import TinyConfig, build_tiny, save_tiny
from imagine.types import CheckpointMismatch, Clip, RewardModel, ShapeError

TOKEN = "<|prog_token|>"
CONFIG = RobometerConfig(prompt="task {instruction}", max_frames=4)
TOLD = ["push the red bowl", "reach"]
SIZE = TinyConfig(width=32, heads=2, image_layers=2, layers=2, patch=8, grid=4)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint with heads in a file of their own, as ``save`` writes it."""
    torch.manual_seed(0)
    vlm = build_tiny(SIZE, ["task push the red bowl reach"])
    vlm.tokenizer.add_special_tokens({"additional_special_tokens": [TOKEN]}, replace_extra_special_tokens=False)
    vlm.model.resize_token_embeddings(len(vlm.tokenizer))
    randomise(vlm.model, scale=0.3)
    heads = RobometerHeads(SIZE.width, CONFIG.bins)
    randomise(heads, seed=1, scale=0.5)
    where = tmp_path_factory.mktemp("robometer")
    save_tiny(vlm, where)
    RobometerJudge(vlm, heads, CONFIG).save(where)
    return where


@pytest.fixture(scope="module")
def judge(folder: Path) -> RobometerJudge:
    return RobometerJudge.load(folder)


@pytest.fixture
def copy(folder: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(folder, tmp_path / "copy"))


def film(batch: int = 2, frames: int = 4, seed: int = 0) -> torch.Tensor:
    g = torch.Generator().manual_seed(seed)
    return torch.randint(0, 256, (batch, frames, 32, 48, 3), generator=g, dtype=torch.uint8)


def clip(frames: torch.Tensor) -> Clip:
    """A clip that gives only the frames asked for, and remembers which."""
    asked: list[int] = []

    def decode(indices: Sequence[int]) -> torch.Tensor:
        asked.extend(indices)
        return frames[:, list(indices)]

    made = Clip(torch.zeros(*frames.shape[:2], 1, 1, 1), torch.zeros(*frames.shape[:2], 1), decode)
    decode.asked = asked  # type: ignore[attr-defined]
    return made


@pytest.mark.parametrize("bins", [2, 10])
def test_expectation_is_the_mean_over_centres_from_0_to_1(bins: int) -> None:
    assert expectation(torch.zeros(bins)).item() == pytest.approx(0.5)
    for i in range(bins):
        sure = torch.full((bins,), -1e4)
        sure[i] = 0
        assert expectation(sure).item() == pytest.approx(i / (bins - 1))
    chances = torch.arange(1.0, bins + 1)  # p_i = (i + 1) / (n (n + 1) / 2), so the mean of i / (n - 1) is 2 / 3
    assert expectation(chances.log()).item() == pytest.approx(2 / 3)


def test_heads_are_linear_norm_gelu_linear() -> None:
    heads = RobometerHeads(6, 4).eval()
    randomise(heads, scale=1.0)
    w = heads.state_dict()
    x = torch.randn(2, 3, 6)
    for head, out in zip(("progress_head", "success_head"), heads(x), strict=True):
        y = x @ w[f"{head}.0.weight"].T + w[f"{head}.0.bias"]
        y = (y - y.mean(-1, keepdim=True)) / (y.var(-1, keepdim=True, correction=0) + 1e-5).sqrt()
        y = y * w[f"{head}.1.weight"] + w[f"{head}.1.bias"]
        y = y * 0.5 * (1 + torch.erf(y / 2**0.5))
        y = y @ w[f"{head}.4.weight"].T + w[f"{head}.4.bias"]
        torch.testing.assert_close(out, y if head == "progress_head" else y[..., 0])


@pytest.mark.parametrize("changed", range(4))
def test_a_frame_changes_only_what_is_said_from_it_on(judge: RobometerJudge, changed: int) -> None:
    frames = film()
    other = frames.clone()
    other[:, changed] = 255 - other[:, changed]
    for name in ("progress", "success"):
        before, after = (getattr(judge.curve(x, TOLD), name) for x in (frames, other))
        torch.testing.assert_close(after[:, :changed], before[:, :changed], rtol=0, atol=1e-6)
        assert ((after - before)[:, changed:].abs() > 1e-5).all(), f"{name} ignores frame {changed}"


def test_a_longer_clip_begins_with_what_the_shorter_one_said(judge: RobometerJudge) -> None:
    whole = judge.curve(film(), TOLD).progress
    assert whole.shape == (2, 4) and whole.dtype == torch.float32 and (whole >= 0).all() and (whole <= 1).all()
    for n in (1, 2, 3):
        torch.testing.assert_close(judge.curve(film()[:, :n], TOLD).progress, whole[:, :n], rtol=0, atol=1e-6)


def test_the_instruction_is_read_before_the_first_frame(judge: RobometerJudge) -> None:
    one = judge.curve(film(1).repeat(2, 1, 1, 1, 1), TOLD).progress
    assert ((one[0] - one[1]).abs() > 1e-5).all()


def test_clips_of_one_batch_do_not_touch_each_other(judge: RobometerJudge) -> None:
    together = judge.curve(film(), TOLD)  # instructions of different lengths: the shorter one is padded
    for i in range(2):
        alone = judge.curve(film()[i : i + 1], TOLD[i : i + 1])
        torch.testing.assert_close(alone.progress[0], together.progress[i], rtol=0, atol=1e-6)
        torch.testing.assert_close(alone.success[0], together.success[i], rtol=0, atol=1e-6)


def test_the_heads_read_the_hidden_state_behind_each_frame(judge: RobometerJudge) -> None:
    """One prompt by the model's own forward, with its own positions, against the judge."""
    frames, vlm = film(1, 3), judge.vlm
    said = "<|im_start|>user task reach" + f"<|vision_start|><|image_pad|><|vision_end|>{TOKEN}" * 3 + "<|im_end|>"
    ids = torch.tensor([vlm.pictures.ids(said, 3, vlm.pictures.grid(frames[:, :, None, None]))])
    pixels = vlm.pictures.pixels(frames[:, :, None, None])
    kinds = (ids == vlm.pictures.token).int()
    with torch.inference_mode():
        out = vlm.model(
            input_ids=ids, attention_mask=torch.ones_like(ids), mm_token_type_ids=kinds, output_hidden_states=True,
            **pixels,
        )  # fmt: skip
        at = [i for i, token in enumerate(ids[0]) if token == vlm.tokenizer.convert_tokens_to_ids(TOKEN)]
        progress, success = judge.heads(out.hidden_states[-1][0, at])
    curve = judge.curve(frames, ["reach"])
    torch.testing.assert_close(curve.progress[0], expectation(progress), rtol=0, atol=1e-6)
    torch.testing.assert_close(curve.success[0], success.sigmoid(), rtol=0, atol=1e-6)


@pytest.mark.parametrize(
    ("length", "shown"),
    [(1, [0]), (2, [0, 1]), (4, [0, 1, 2, 3]), (5, [0, 1, 3, 4]), (7, [0, 2, 4, 6]), (16, [0, 5, 10, 15])],
)
def test_a_long_clip_is_shown_in_evenly_spread_frames(judge: RobometerJudge, length: int, shown: list[int]) -> None:
    frames = film(frames=length)
    made = clip(frames)
    curve = judge.progress(made, TOLD)
    assert made.decode.asked == shown  # type: ignore[attr-defined]
    torch.testing.assert_close(curve, judge.curve(frames[:, shown], TOLD).progress)


def test_with_one_frame_to_show_it_is_the_newest(judge: RobometerJudge) -> None:
    one = RobometerJudge(judge.vlm, judge.heads, judge.cfg.model_copy(update={"max_frames": 1}))
    assert one.shown(9) == [8]


def test_the_newest_frame_decides(judge: RobometerJudge) -> None:
    assert isinstance(judge, RewardModel)
    frames = film(8, 4)
    told = ["push the red bowl"] * 8
    curve = judge.curve(frames, told)
    middle = judge.cfg.model_copy(update={"threshold": curve.success[:, -1].median().item()})
    judge = RobometerJudge(judge.vlm, judge.heads, middle)
    score = judge(clip(frames), told)
    torch.testing.assert_close(score.success, curve.success[:, -1])
    torch.testing.assert_close(score.terms["progress"], curve.progress[:, -1])
    assert score.terms["success"] is score.success and score.valid.all()
    assert torch.equal(score.reward, (score.success > judge.cfg.threshold).float())
    assert 0 < score.reward.sum() < 8


def test_a_word_it_never_learnt_is_not_judged(judge: RobometerJudge) -> None:
    assert judge(clip(film()), ["push the red bowl", "push the violin"]).valid.tolist() == [True, False]


def test_one_forward_pass_gives_the_whole_curve(judge: RobometerJudge) -> None:
    calls = []
    hook = judge.vlm.model.model.language_model.register_forward_hook(lambda *_: calls.append(1))
    judge.progress(clip(film()), TOLD)
    hook.remove()
    assert len(calls) == 1


def test_saved_and_loaded_it_says_the_same(judge: RobometerJudge, copy: Path) -> None:
    before = judge.curve(film(), TOLD)
    judge.save(copy)
    after = RobometerJudge.load(copy).curve(film(), TOLD)
    assert torch.equal(before.progress, after.progress) and torch.equal(before.success, after.success)


def test_heads_inside_the_checkpoint_are_found(judge: RobometerJudge, copy: Path) -> None:
    """The published layout: one state dict with the backbone, and heads that are not asked."""
    heads = load_file(copy / "heads.safetensors")
    (copy / "heads.safetensors").unlink()
    backbone = load_file(copy / "model.safetensors")
    others = {"preference_head.0.weight": torch.zeros(2, 2), "frame_pool_attn.weight": torch.zeros(1, 2)}
    save_file({**backbone, **heads, **others}, copy / "model.safetensors", metadata={"format": "pt"})
    assert torch.equal(RobometerJudge.load(copy).curve(film(), TOLD).progress, judge.curve(film(), TOLD).progress)


def test_heads_under_other_names_are_found(judge: RobometerJudge, copy: Path) -> None:
    heads = load_file(copy / "heads.safetensors")
    save_file({k.replace("_head.", ".net."): v for k, v in heads.items()}, copy / "heads.safetensors")
    settings = json.loads((copy / "robometer.json").read_text())
    settings |= {"progress_prefix": "progress.net.", "success_prefix": "success.net."}
    (copy / "robometer.json").write_text(json.dumps(settings))
    loaded = RobometerJudge.load(copy)
    assert torch.equal(loaded.curve(film(), TOLD).success, judge.curve(film(), TOLD).success)
    loaded.save(copy)
    assert "success.net.4.bias" in load_file(copy / "heads.safetensors")


def test_heads_that_do_not_fit_are_named(copy: Path) -> None:
    heads = load_file(copy / "heads.safetensors")
    heads["progress_head.4.weight"] = torch.zeros(7, SIZE.width // 2)
    heads["success_head.5.bias"] = heads.pop("success_head.4.bias")
    save_file(heads, copy / "heads.safetensors")
    with pytest.raises(CheckpointMismatch) as refused:
        RobometerJudge.load(copy)
    said = str(refused.value)
    assert "missing: success_head.4.bias;" in said and "unexpected: success_head.5.bias;" in said
    assert "mis-shaped: progress_head.4.weight is (7, 16), expected (10, 16)" in said


def test_a_folder_without_heads_or_settings_is_refused(copy: Path) -> None:
    (copy / "heads.safetensors").unlink()
    with pytest.raises(CheckpointMismatch, match=r"missing: progress_head\.0\.bias.*success_head\.4\.weight"):
        RobometerJudge.load(copy)
    (copy / "robometer.json").write_text('{"bins": 10, "window": 3}')
    with pytest.raises(CheckpointMismatch, match="window"):
        RobometerJudge.load(copy)
    (copy / "robometer.json").unlink()
    with pytest.raises(CheckpointMismatch, match=r"no usable robometer\.json"):
        RobometerJudge.load(copy)


def test_a_truncated_file_of_heads_is_refused(copy: Path) -> None:
    whole = (copy / "heads.safetensors").read_bytes()
    (copy / "heads.safetensors").write_bytes(whole[:-100])
    with pytest.raises(CheckpointMismatch, match=r"heads\.safetensors cannot be read"):
        RobometerJudge.load(copy)


def test_a_tokenizer_without_the_token_is_refused(copy: Path) -> None:
    settings = json.loads((copy / "robometer.json").read_text()) | {"token": "<|other_token|>"}
    (copy / "robometer.json").write_text(json.dumps(settings))
    with pytest.raises(CheckpointMismatch, match=r"<\|other_token\|>"):
        RobometerJudge.load(copy)


@pytest.mark.parametrize(
    ("frames", "told"),
    [
        (film().float(), TOLD),
        (film()[0], TOLD),
        (film(frames=5), TOLD),
        (film(), TOLD[:1]),
        (film(), ["reach", f"reach {TOKEN}"]),
        (film(), ["reach", "reach <|image_pad|>"]),
    ],
)
def test_what_cannot_be_shown_is_refused(judge: RobometerJudge, frames: torch.Tensor, told: list[str]) -> None:
    with pytest.raises(ShapeError, match="expected"):
        judge.curve(frames, told)


def test_a_prompt_must_have_a_place_for_the_instruction() -> None:
    with pytest.raises(ValueError, match="instruction"):
        RobometerConfig(prompt="how far is it?")
