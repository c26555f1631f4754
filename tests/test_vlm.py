"""The vision-language judge: one loader for every family, packed prompts, honest refusals, votes."""

from __future__ import annotations

import importlib.util
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from vlm_models import FAMILIES, INSTRUCTIONS

from imagine.rewards.calibrate import Calibration, Calibrator
from imagine.rewards.local import Ask, LocalVLM
from imagine.rewards.pictures import QwenPictures
from imagine.rewards.prompts import (
    NO,
    PRESETS,
    PROGRESS,
    SUCCESS,
    TRUE,
    WORLD_GYMNAST,
    WORLDGYM,
    YES,
    Frames,
    Preset,
    Prompt,
    preset,
)
from imagine.rewards.vlm import VLMJudge, _verdict
from imagine.types import CheckpointMismatch, Clip, ImagineError, RewardModel, ShapeError


@pytest.fixture(scope="session")
def checkpoints(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    return {name: make(tmp_path_factory.mktemp(name)) for name, make in FAMILIES.items()}


@pytest.fixture(params=list(FAMILIES), scope="session")
def judge(request: pytest.FixtureRequest, checkpoints: dict[str, Path]) -> VLMJudge:
    judge = VLMJudge.load(checkpoints[request.param])
    judge.least_coverage = 0.0  # random weights say yes or no no more often than anything else
    return judge


def films(b: int = 2, t: int = 5, seed: int = 0) -> torch.Tensor:
    return torch.randint(0, 256, (b, t, 32, 48, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(seed))


def test_torchvision_is_absent_or_whole() -> None:
    if importlib.util.find_spec("torchvision") is not None:
        importlib.import_module("torchvision")


def test_every_family_keeps_the_reward_contract(judge: VLMJudge) -> None:
    frames = films()
    clip = Clip(torch.zeros(2, 5, 1, 1, 1), torch.zeros(2, 5, 1), lambda at=None: frames[:, list(at)])
    score = judge(clip, list(INSTRUCTIONS))
    assert isinstance(judge, RewardModel)
    for x in (score.reward, score.success, *score.terms.values()):
        assert x.shape == (2,) and x.dtype == torch.float32 and ((x >= 0) & (x <= 1)).all()
    assert score.valid.all() and list(score.terms) == ["success", "progress"]
    assert set(score.reward.tolist()) <= {0.0, 1.0}
    assert torch.equal(score.success, judge.score(frames, list(INSTRUCTIONS)).success)


def test_a_batch_is_as_many_batches_of_one(judge: VLMJudge) -> None:
    together = judge.score(films(), list(INSTRUCTIONS)).success
    alone = [judge.score(films()[i : i + 1], [INSTRUCTIONS[i]]).success[0] for i in range(2)]
    assert torch.allclose(together, torch.stack(alone), atol=1e-6)


def test_packed_questions_answer_as_separate_prompts_do(judge: VLMJudge) -> None:
    frames = films(t=9)
    packed = judge.progress(frames, list(INSTRUCTIONS), points=8)
    apart = judge.progress(frames, list(INSTRUCTIONS), points=8, share=False)
    assert packed.shape == (2, 8) and (packed - apart).abs().max() < 1e-3
    assert packed.std(1).min() > 0, "the points see different pictures"


def test_a_question_does_not_see_later_pictures_nor_other_questions(judge: VLMJudge) -> None:
    frames = films(t=9)
    changed = frames.clone()
    changed[:, 5:] = 255 - changed[:, 5:]
    before, after = (judge.progress(f, list(INSTRUCTIONS), points=8) for f in (frames, changed))
    assert torch.allclose(before[:, :4], after[:, :4], atol=1e-6)
    assert not torch.allclose(before[:, 4:], after[:, 4:], atol=1e-6)


def test_the_answer_is_the_models_own(checkpoints: dict[str, Path]) -> None:
    """Against transformers' own forward pass on a prompt written out by hand."""
    vlm = LocalVLM.load(checkpoints["qwen3_vl"])
    clip = films(1, 1)[:, :, None, None]
    text = SUCCESS.fill(INSTRUCTIONS[0])
    ids = vlm.tokenizer.encode(
        f"<|im_start|>user <|vision_start|>{'<|image_pad|>' * 6}<|vision_end|>{text}<|im_end|><|im_start|>assistant",
        return_tensors="pt",
    )
    kinds = (ids == vlm.model.config.image_token_id).int()
    pixels = vlm.pictures.pixels(clip)
    with torch.no_grad():
        logits = vlm.model(input_ids=ids, mm_token_type_ids=kinds, **pixels).logits[0, -1]
    said = torch.log_softmax(logits, -1)
    word = vlm.tokenizer.convert_tokens_to_ids
    yes, no = (torch.logsumexp(said[[word(w) for w in words]], 0) for words in (("yes", "Yes"), ("no", "No")))
    answer = vlm.ask(clip, [[Ask(text, 1, YES, NO)]])
    assert answer.margin.item() == pytest.approx((yes - no).item(), abs=1e-5)
    assert answer.coverage.item() == pytest.approx((yes.exp() + no.exp()).item(), abs=1e-5)


@pytest.mark.parametrize("size", [(32, 48), (30, 50), (64, 64)])
def test_patches_are_those_of_transformers(checkpoints: dict[str, Path], size: tuple[int, int]) -> None:
    from transformers import AutoImageProcessor

    vlm = LocalVLM.load(checkpoints["qwen2_5_vl"])
    assert isinstance(vlm.pictures, QwenPictures)
    image = np.random.default_rng(0).integers(0, 256, (*size, 3), np.uint8)
    theirs = AutoImageProcessor.from_pretrained(checkpoints["qwen2_5_vl"], min_pixels=1)(image, return_tensors="pt")
    ours = vlm.pictures.pixels(torch.from_numpy(image)[None, None, None, None])
    assert torch.equal(ours["image_grid_thw"], theirs["image_grid_thw"])
    difference = (ours["pixel_values"] - theirs["pixel_values"]).abs()
    if size == (30, 50):  # PIL rounds to whole grey levels between the two passes of its resizing
        assert difference.mean() < 0.02
    else:
        assert difference.max() < 1e-5


def test_pairs_are_merged_where_change_is_to_be_seen(checkpoints: dict[str, Path]) -> None:
    judge = VLMJudge.load(checkpoints["qwen3_vl"])
    frames = films(1, 2)
    shown = judge._pictures(frames)
    assert shown.shape == (1, 1, 1, 2, 32, 48, 3) and torch.equal(shown[0, 0, 0], frames[0])
    other = VLMJudge.load(checkpoints["idefics3"])
    assert other._pictures(frames).shape == (1, 2, 1, 1, 32, 48, 3), "one after the other where there are no pairs"


def test_views_strides_and_sizes(checkpoints: dict[str, Path]) -> None:
    boxes = ((0, 0, 32, 32), (0, 32, 16, 16))
    protocol = Preset(Frames(stride=2, most=3, size=(16, 16), views=boxes), (SUCCESS,))
    judge = VLMJudge.load(checkpoints["qwen3_vl"], protocol)
    assert protocol.frames.moments(9) == [4, 6, 8] and protocol.frames.moments(4) == [1, 3]
    shown = judge._pictures(films(1, 9)[:, [0, 4, 6, 8]])
    assert shown.shape == (1, 4, 2, 1, 16, 16, 3)
    judge.least_coverage = 0
    assert judge.score(films(1, 9), INSTRUCTIONS[:1]).valid.all()
    with pytest.raises(ImagineError, match="outside the canvas of 32 x 48"):
        VLMJudge(judge.backend, Preset(Frames(views=((0, 40, 32, 32),)), (SUCCESS,))).score(films(), INSTRUCTIONS)


def test_who_would_say_something_else_has_not_answered(checkpoints: dict[str, Path]) -> None:
    score = VLMJudge.load(checkpoints["qwen3_vl"]).score(films(), list(INSTRUCTIONS))
    assert not score.valid.any() and not score.reward.any() and score.terms["success"].isnan().all()


def test_an_unknown_word_is_no_answer(checkpoints: dict[str, Path]) -> None:
    judge = VLMJudge.load(checkpoints["qwen3_vl"])
    judge.least_coverage = 0
    valid = judge.score(films(), ["pick up the red block", "pick up the purple sock"]).valid
    assert valid.tolist() == [True, False]


def test_calibration_moves_probability_and_threshold(checkpoints: dict[str, Path]) -> None:
    path, frames = checkpoints["qwen3_vl"], films()
    raw, _ = VLMJudge.load(path).margin(frames, list(INSTRUCTIONS))
    family = Calibrator(temperature=2.0, bias=1.0, threshold=0.05)
    calibration = Calibration(families={"pick up the * block": family}, other=Calibrator(threshold=0.999))
    judge = VLMJudge(LocalVLM.load(path), calibration=calibration, least_coverage=0)
    score = judge.score(frames, list(INSTRUCTIONS))
    want = torch.sigmoid(torch.stack([(raw[0] - 1) / 2, raw[1]]))
    assert torch.allclose(score.success, want, atol=1e-6) and score.reward.tolist() == [1.0, 0.0]


@pytest.mark.parametrize(
    ("frames", "instruction", "message"),
    [
        (torch.zeros(2, 0, 32, 48, 3, dtype=torch.uint8), INSTRUCTIONS, r"at least one frame"),
        (torch.zeros(2, 3, 32, 48, 3), INSTRUCTIONS, r"float32, expected \(B, T, H, W, 3\) uint8"),
        (torch.zeros(2, 3, 32, 48, dtype=torch.uint8), INSTRUCTIONS, r"expected \(B, T, H, W, 3\) uint8"),
        (films(), ["pick up the red block", " "], "instruction is empty"),
        (films(), ["pick up the red block"], "1 instructions for 2 clips"),
        (films(), "pick up the red block", "expected a list with one per clip"),
        (films(2, 1), INSTRUCTIONS, "1 frame"),
    ],
)
def test_bad_input_gets_one_clear_sentence(
    checkpoints: dict[str, Path], frames: torch.Tensor, instruction: Any, message: str
) -> None:
    with pytest.raises(ImagineError, match=message):
        VLMJudge.load(checkpoints["qwen3_vl"]).score(frames, instruction)


def test_a_clip_shorter_than_the_stride_and_an_unknown_preset_are_refused(checkpoints: dict[str, Path]) -> None:
    with pytest.raises(ImagineError, match="5 frames, expected more than the stride of 20"):
        VLMJudge.load(checkpoints["qwen3_vl"], "worldgym").score(films(), INSTRUCTIONS)
    with pytest.raises(ImagineError, match="did you mean 'worldgym'"):
        preset("wordgym")
    with pytest.raises(ShapeError, match="8 points of 5 frames"):
        VLMJudge.load(checkpoints["qwen3_vl"]).progress(films(), INSTRUCTIONS)


def test_words_that_are_no_single_token_are_refused(checkpoints: dict[str, Path]) -> None:
    vlm = LocalVLM.load(checkpoints["qwen3_vl"])
    with pytest.raises(ImagineError, match="single token"):
        vlm.ask(films(1, 1)[:, :, None, None], [[Ask("Has it ?", 1, ("indubitably",), NO)]])


def test_a_folder_that_is_no_model_is_named(tmp_path: Path) -> None:
    with pytest.raises(CheckpointMismatch, match="image-text-to-text"):
        VLMJudge.load(tmp_path)
    (tmp_path / "judge.json").write_text('{"presett": 1}')
    with pytest.raises(CheckpointMismatch, match=r"judge\.json is damaged \(presett"):
        VLMJudge.load(tmp_path)


def test_a_checkpoint_that_lacks_weights_is_refused(checkpoints: dict[str, Path], tmp_path: Path) -> None:
    import shutil

    from safetensors.torch import load_file, save_file

    broken = tmp_path / "broken"
    shutil.copytree(checkpoints["qwen3_vl"], broken)
    state = load_file(broken / "model.safetensors")
    state.pop("model.visual.blocks.0.attn.qkv.weight")
    save_file(state, broken / "model.safetensors", {"format": "pt"})
    with pytest.raises(CheckpointMismatch, match="lacks 1 weights"):
        VLMJudge.load(broken)


class Talker:
    """A backend that says what it was given."""

    def __init__(self, *texts: str) -> None:
        self.texts = list(texts)

    def ask(self, clips: Any, asks: Any) -> Any:
        raise AssertionError("a vote reads no logits")

    def say(self, clips: Any, asks: Any, votes: int, tokens: int, temperature: float) -> list[list[list[str]]]:
        return [[self.texts[:votes] for _ in row] for row in asks]


def vote(prompt: Prompt, *texts: str) -> tuple[float, float, bool]:
    score = VLMJudge(Talker(*texts), Preset(Frames(), (prompt,))).score(films(1), INSTRUCTIONS[:1])
    return score.reward.item(), score.success.item(), bool(score.valid)


def test_worldgyms_vote_is_a_strict_majority() -> None:
    yes, no = "It is lifted. Answer: Yes", "Not there.\nAnswer: No"
    assert vote(WORLDGYM, yes, yes, yes, no, no) == (1.0, pytest.approx(3.5 / 6), True)
    assert vote(WORLDGYM, yes, yes, no, no, "I can not tell")[0] == 0.0
    assert not vote(WORLDGYM, yes, yes, "hm", "hm", "hm")[2], "two of five votes are too few"
    assert vote(WORLDGYM, *["hm"] * 5) == (0.0, 0.0, False), "no verdict is no answer, not a failure"
    assert vote(WORLDGYM, *["Answer: no? No. Answer: Yes"] * 5)[0] == 1.0, "the last verdict counts"


def test_world_gymnasts_ties_go_up_and_half_credit_is_no_success() -> None:
    score = "Final score: {}".format
    assert vote(WORLD_GYMNAST, score(1), score(1), score("0.5"), score("0.5"), score(0))[0] == 1.0
    assert vote(WORLD_GYMNAST, *[score("0.5")] * 4, score(1))[0] == 0.0
    assert _verdict([1.0, 0.0], replace(WORLD_GYMNAST, tie="down")) == 0.0


def test_free_text_is_sampled_from_the_same_model(judge: VLMJudge) -> None:
    clips = films(2, 1)[:, :, None, None]
    ask = [[Ask(SUCCESS.fill(i), 1, YES, NO)] for i in INSTRUCTIONS]
    said = judge.backend.say(clips, ask, 3, 4, 1.0)
    assert [len(r) for r in said] == [1, 1] and all(len(v) == 3 and isinstance(v[0], str) for r in said for v in r)


def test_prompts_are_plain_and_complete() -> None:
    for name, protocol in PRESETS.items():
        for p in protocol.questions:
            assert "{instruction}" in p.text and p.version >= 1, name
            assert p.fill("pick up the red block.") == p.fill("pick up the red block")
            assert not p.votes or (p.answer and p.scale), name
    assert PROGRESS.yes == YES and PRESETS["topreward"].questions[0].yes == TRUE
