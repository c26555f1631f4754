"""A model folder loads as it was saved or says what is wrong with it; bodies and instructions are checked in words."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from conftest import TINY_BODY
from safetensors.torch import load_file, save_file

from imagine.embodiment import Embodiment
from imagine.model.model import WorldActionModel, as_observation
from imagine.model.text import vocabulary
from imagine.questions import DYNAMICS, INVERSE, JOINT, POLICY, QUESTIONS
from imagine.sampler import sample
from imagine.types import (
    CheckpointMismatch,
    Chunk,
    ImagineError,
    NoiseLevels,
    Observation,
    ShapeError,
    UnknownWord,
    UntrainedQuestion,
    pack_instruction,
    unpack_instruction,
)

WORDS = ["reach the bowl", "push the red bowl", "reach"]
HALF = 2.0**-11  # relative rounding of float16


@pytest.fixture
def folder(tiny_model: WorldActionModel, tmp_path: Path) -> Path:
    tiny_model.save_pretrained(tmp_path / "saved")
    return tmp_path / "saved"


# ---------------------------------------------------------------------- folders
def test_model_comes_back_from_its_folder_within_float16(tiny_model: WorldActionModel, folder: Path) -> None:
    again = WorldActionModel.from_pretrained(folder)
    assert again.cfg == tiny_model.cfg and again.answers == tiny_model.answers and not again.training
    assert again.state_dict().keys() == tiny_model.state_dict().keys()
    for name, value in tiny_model.state_dict().items():
        torch.testing.assert_close(
            again.state_dict()[name], value, rtol=HALF, atol=1e-7, msg=lambda m, n=name: f"{n}: {m}"
        )
    assert torch.equal(again.proprio_std, tiny_model.proprio_std)  # statistics live in config.json, in full precision


@torch.no_grad()
def test_loaded_model_answers_as_the_saved_one(
    tiny_model: WorldActionModel, folder: Path, tiny_observation: Observation
) -> None:
    again = WorldActionModel.from_pretrained(folder)
    a, b = (
        sample(m, POLICY, m.encode(tiny_observation, WORDS), steps=2, seeds=[0, 1, 2]).action
        for m in (tiny_model, again)
    )
    assert (a - b).abs().max() < 0.02 * a.abs().max()  # a few roundings of every weight, through two layers
    full = folder.parent / "full"
    tiny_model.save_pretrained(full, dtype=torch.float32)
    exact = WorldActionModel.from_pretrained(full)
    c = sample(exact, POLICY, exact.encode(tiny_observation, WORDS), steps=2, seeds=[0, 1, 2]).action
    assert torch.equal(a, c)


def test_saving_leaves_no_temporary_file(folder: Path) -> None:
    files = ["README.md", "codec.safetensors", "config.json", "env.py", "model.safetensors"]
    assert sorted(p.name for p in folder.iterdir()) == files


@pytest.mark.parametrize("name", ["painter", "decoder"])
def test_decoders_of_version_0_1_are_refused(folder: Path, name: str) -> None:
    """They remembered nothing; models that have none are the same as ever, whatever their config calls it."""
    config = json.loads((folder / "config.json").read_text())
    del config["dit"]["decoder"]
    config["dit"][name] = {"blocks": 0, "width": 144, "frames": 4}
    (folder / "config.json").write_text(json.dumps(config))
    assert not WorldActionModel.from_pretrained(folder).cfg.dit.decoder.blocks
    config["dit"][name]["blocks"] = 1
    (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(CheckpointMismatch, match=r"without memory is of version 0\.1: train the model anew"):
        WorldActionModel.from_pretrained(folder)


@pytest.mark.parametrize("file", ["config.json", "model.safetensors", "codec.safetensors"])
def test_missing_file_is_named(folder: Path, file: str) -> None:
    (folder / file).unlink()
    with pytest.raises(CheckpointMismatch, match=file):
        WorldActionModel.from_pretrained(folder)


@pytest.mark.parametrize("file", ["config.json", "model.safetensors", "codec.safetensors"])
@pytest.mark.parametrize("keep", [0.0, 0.01, 0.5, 0.999])
def test_truncated_file_is_named(folder: Path, file: str, keep: float) -> None:
    whole = (folder / file).read_bytes()
    (folder / file).write_bytes(whole[: int(len(whole) * keep)])
    with pytest.raises(CheckpointMismatch, match=file):
        WorldActionModel.from_pretrained(folder)


@pytest.mark.parametrize(("file", "name"), [("model.safetensors", "dit.proj_out.bias"), ("codec.safetensors", "mean")])
def test_wrong_tensors_are_named(folder: Path, file: str, name: str) -> None:
    good = load_file(folder / file)
    shown = name if file == "model.safetensors" else f"codec.{name}"
    wrong = {
        f"{shown} is missing": {k: v for k, v in good.items() if k != name},
        "stranger is unexpected": {**good, "stranger": torch.zeros(1)},
        rf"{shown} is \(1, {len(good[name])}\), expected \({len(good[name])},\)": {**good, name: good[name][None]},
    }
    for message, state in wrong.items():
        save_file({k: v.contiguous() for k, v in state.items()}, folder / file)
        with pytest.raises(CheckpointMismatch, match=message) as caught:
            WorldActionModel.from_pretrained(folder)
        assert str(folder) in str(caught.value)


def test_unknown_key_in_the_config_is_refused(folder: Path) -> None:
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"colour": "red"}))
    with pytest.raises(CheckpointMismatch, match="colour"):
        WorldActionModel.from_pretrained(folder)


@pytest.mark.parametrize(("key", "value"), [("format", 99), ("answers", ["POLICY", "PROPHECY"])])
def test_config_of_another_time_is_refused(folder: Path, key: str, value: object) -> None:
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {key: value}))
    with pytest.raises(CheckpointMismatch, match=key):
        WorldActionModel.from_pretrained(folder)


def test_name_that_is_nothing_tells_what_there_is() -> None:
    with pytest.raises(CheckpointMismatch, match=r"no model at .*give a folder, a hub id"):
        WorldActionModel.from_pretrained("no-such-model")


@torch.no_grad()
def test_checkpoint_with_fewer_answers_refuses_the_others(folder: Path, tiny_observation: Observation) -> None:
    config = json.loads((folder / "config.json").read_text()) | {"answers": ["JOINT", "POLICY"]}
    (folder / "config.json").write_text(json.dumps(config))
    model = WorldActionModel.from_pretrained(folder)
    context = model.encode(tiny_observation, WORDS)
    sample(model, JOINT, context, steps=1, seeds=[0, 1, 2])
    with pytest.raises(
        UntrainedQuestion, match="answers JOINT, POLICY; DYNAMICS starts at sigma_video=1, sigma_action=0"
    ):
        sample(model, DYNAMICS, context, action=torch.zeros(3, 4, 2))


# ---------------------------------------------------------------------- units
def test_normalising_and_restoring_are_inverse(tiny_model: WorldActionModel) -> None:
    g = torch.Generator().manual_seed(0)
    proprio, action = torch.randn(5, 3, generator=g), torch.rand(5, 4, 2, generator=g) - 0.5  # within the bounds
    for there, back, x in (
        (tiny_model.normalise_proprio, tiny_model.restore_proprio, proprio),
        (tiny_model.normalise_action, tiny_model.restore_action, action),
    ):
        torch.testing.assert_close(back(there(x)), x, rtol=1e-5, atol=1e-6)
    assert torch.equal(tiny_model.normalise_proprio(tiny_model.proprio_mean), torch.zeros(3))
    torch.testing.assert_close(
        tiny_model.normalise_proprio(tiny_model.proprio_mean + tiny_model.proprio_std), torch.ones(3)
    )


def test_restored_action_never_leaves_the_bounds(tiny_model: WorldActionModel) -> None:
    out = tiny_model.restore_action(torch.tensor([[[-100.0, 100.0]]]))
    assert out.tolist() == [[[-0.5, 0.5]]]


# ---------------------------------------------------------------------- encode and decode
def test_encode_gives_what_the_model_was_made_for(tiny_model: WorldActionModel, tiny_observation: Observation) -> None:
    context = tiny_model.encode(tiny_observation, WORDS)
    assert context.video.shape == (3, 2, 4, 2, 2) and context.proprio.shape == (3, 2, 3)
    assert context.text.shape == (3, 4, 16)
    assert (context.text[0, 3:] == 0).all() and (context.text[2, 1:] == 0).all()  # zero after the last word
    out = tiny_model.decode(context.video)
    assert out.shape == tiny_observation.canvas.shape and out.dtype == torch.uint8


def test_one_frame_is_a_context_whose_history_repeats_it(
    tiny_model: WorldActionModel, tiny_observation: Observation
) -> None:
    newest = Observation(tiny_observation.canvas[:, -1:], tiny_observation.proprio[:, -1:])
    one, two = tiny_model.encode(newest, WORDS), tiny_model.encode(tiny_observation, WORDS)
    assert one.video.shape == two.video.shape
    assert torch.equal(one.video[:, 0], one.video[:, 1])
    torch.testing.assert_close(one.video[:, 1], two.video[:, 1])
    longer = Observation(
        torch.cat([tiny_observation.canvas.flip(1), tiny_observation.canvas], 1),
        torch.cat([tiny_observation.proprio.flip(1), tiny_observation.proprio], 1),
    )
    torch.testing.assert_close(tiny_model.encode(longer, WORDS).video, two.video)


def test_codec_statistics_make_latents_zero_mean_and_unit_variance(
    tiny_model: WorldActionModel, tiny_observation: Observation
) -> None:
    codec, canvas = tiny_model.codec, tiny_observation.canvas.flatten(0, 1)
    with torch.no_grad():
        raw, before = codec.encode_raw(canvas), codec.decode(codec.encode(canvas))
        codec.mean.copy_(raw.mean((0, 2, 3))), codec.std.copy_(raw.std((0, 2, 3)))
        z = codec.encode(canvas)
        torch.testing.assert_close(z.mean((0, 2, 3)), torch.zeros(4), rtol=0, atol=1e-5)
        torch.testing.assert_close(z.std((0, 2, 3)), torch.ones(4))
        # Normalising is undone before decoding, up to a rounding of the uint8.
        assert (codec.decode(z).int() - before.int()).abs().max() <= 1


def test_observation_of_the_wrong_size_is_refused_in_one_sentence(
    tiny_model: WorldActionModel, tiny_observation: Observation
) -> None:
    wide = Observation(torch.zeros(3, 2, 16, 24, 3, dtype=torch.uint8), tiny_observation.proprio)
    with pytest.raises(ShapeError, match=r"canvas \(16, 24, 3\).*expected \(16, 16, 3\).*'tiny'"):
        tiny_model.encode(wide, WORDS)
    with pytest.raises(ShapeError, match=r"5 proprio values, expected .* and 3"):
        tiny_model.encode(Observation(tiny_observation.canvas, torch.zeros(3, 2, 5)), WORDS)
    with pytest.raises(ShapeError, match="expected uint8"):
        tiny_model.encode(Observation(tiny_observation.canvas.float(), tiny_observation.proprio), WORDS)


def test_wrong_number_of_instructions_is_refused(tiny_model: WorldActionModel, tiny_observation: Observation) -> None:
    with pytest.raises(ShapeError, match="got 2 instructions for 3 observations; give one each"):
        tiny_model.encode(tiny_observation, WORDS[:2])


def test_unknown_word_is_refused_with_what_is_known(
    tiny_model: WorldActionModel, tiny_observation: Observation
) -> None:
    with pytest.raises(UnknownWord) as caught:
        tiny_model.encode(tiny_observation, ["reach the bowls", *WORDS[1:]])
    message = str(caught.value)
    assert "'bowls'" in message and "Did you mean 'bowl'?" in message
    assert all(word in message for word in tiny_model.cfg.text.words)


@pytest.mark.parametrize("text", ["", " ,. ", "reach the red bowl the"])
def test_empty_or_long_instruction_is_refused(tiny_model: WorldActionModel, text: str) -> None:
    with pytest.raises(UnknownWord, match="expected 1 to 4"):
        tiny_model.embed_text([text])


def test_instruction_is_read_without_case_and_punctuation(tiny_model: WorldActionModel) -> None:
    a, b = tiny_model.embed_text(["Push the red bowl!", "push the red bowl"])
    assert torch.equal(a, b)
    assert vocabulary(["Push the red bowl!", "reach"]) == ("bowl", "push", "reach", "red", "the")


def test_same_word_at_another_place_is_another_vector(tiny_model: WorldActionModel) -> None:
    first, last = tiny_model.embed_text(["bowl the reach", "reach the bowl"])
    assert (first[0] - last[2]).abs().max() > 0.01  # "bowl"
    torch.testing.assert_close(first[1], last[1])  # "the"


def test_packed_instruction_comes_back() -> None:
    for text in ("push the red bowl", "schiebe die Schüssel", "x" * 512):
        assert unpack_instruction(pack_instruction(text)) == text
    for bad in ("", "x" * 513, "ü" * 257):
        with pytest.raises(ShapeError, match="expected 1 to 512"):
            pack_instruction(bad)


# ---------------------------------------------------------------------- velocities
@torch.no_grad()
@pytest.mark.parametrize("name", QUESTIONS)
def test_every_question_has_an_answer_of_the_right_shape(
    tiny_model: WorldActionModel, tiny_observation: Observation, name: str
) -> None:
    question, context = QUESTIONS[name], tiny_model.encode(tiny_observation, WORDS)
    shapes = {k: (3, *v) for k, v in tiny_model.chunk_shapes.items()}
    clean = {"action": torch.zeros(shapes["action"])} if question is DYNAMICS else {}
    if question is INVERSE:
        clean = {k: torch.zeros(shapes[k]) for k in ("video", "proprio")}
    out = sample(tiny_model, question, context, steps=2, seeds=[0, 1, 2], **clean)
    for k, shape in shapes.items():
        x = getattr(out, k)
        there = question.has_action if k == "action" else question.has_video
        assert (x.shape == shape and x.isfinite().all()) if there else x is None


@torch.no_grad()
@pytest.mark.parametrize("prediction", ["clean", "velocity"])
def test_clean_and_velocity_say_the_same(
    tiny_model: WorldActionModel, tiny_observation: Observation, prediction: str
) -> None:
    """noisy - sigma velocity is the clean chunk that the network predicts, for each modality at its own level."""
    dit = tiny_model.cfg.dit.model_copy(update={"prediction": prediction})
    tiny_model.cfg = tiny_model.cfg.model_copy(update={"dit": dit})
    tiny_model.dit.cfg = dit
    context = tiny_model.encode(tiny_observation, WORDS)
    cache, g = tiny_model.prefill(context), torch.Generator().manual_seed(1)
    noisy = Chunk(**{k: torch.randn(3, *v, generator=g) for k, v in tiny_model.chunk_shapes.items()})
    sigma = NoiseLevels(torch.tensor([1.0, 0.5, 0.1]), torch.tensor([0.2, 1.0, 0.6]))
    clean, v = tiny_model.predict(noisy, sigma, cache), tiny_model.velocity(noisy, sigma, context)
    for k, level in (("video", sigma.video), ("proprio", sigma.video), ("action", sigma.action)):
        x = getattr(noisy, k)
        back = x - level.view(-1, *[1] * (x.ndim - 1)) * getattr(v, k)
        torch.testing.assert_close(back, getattr(clean, k), rtol=0, atol=1e-5 * float(x.abs().max()))


# ---------------------------------------------------------------------- embodiment files
def write(tmp_path: Path, **change: object) -> Path:
    path = tmp_path / "body.yaml"
    path.write_text(yaml.safe_dump(TINY_BODY | change))
    return path


def test_embodiment_file_loads_as_written(tmp_path: Path, tiny_body: Embodiment) -> None:
    body = Embodiment.load(write(tmp_path))
    assert body == tiny_body == Embodiment.model_validate_json(body.model_dump_json())
    assert (body.proprio_dim, body.action_dim, body.frame_stride) == (3, 2, 2)
    assert body.action_names == ["arm.0", "arm.1"]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"colour": "red"}, "colour"),
        ({"proprio": ["arm", "leg"]}, "slice 'leg' is used but not among state slices"),
        ({"chunk_actions": 5}, "chunk_actions 5 is no multiple of chunk_frames 2"),
        ({"canvas_width": 8}, "view 'head' leaves the canvas 16x8"),
        ({"control_hz": 0}, "control_hz"),
        ({"views": [TINY_BODY["views"][0] | {"depth": True}]}, "depth"),  # type: ignore[index]
    ],
)
def test_unusable_embodiment_file_says_why(tmp_path: Path, change: dict[str, object], message: str) -> None:
    path = write(tmp_path, **change)
    with pytest.raises(ImagineError, match=message) as caught:
        Embodiment.load(path)
    assert str(path) in str(caught.value)


def test_missing_embodiment_file_says_so(tmp_path: Path) -> None:
    with pytest.raises(ImagineError, match="does not exist"):
        Embodiment.load(tmp_path / "none.yaml")


def test_actions_are_measured_from_the_slice_that_anchors_them(tiny_body: Embodiment) -> None:
    state, action = np.arange(12.0).reshape(4, 3), 100 + np.arange(8.0).reshape(4, 2)
    row = {"observation.state": state, "action": action}
    assert np.array_equal(tiny_body.anchor_of(row), state[:, :2])
    assert np.array_equal(tiny_body.proprio_of(row), state)
    assert np.array_equal(tiny_body.action_of(row), action)
    free = Embodiment.model_validate(TINY_BODY | {"action": [TINY_BODY["action"][0] | {"relative_to": None}]})  # type: ignore[index]
    assert np.array_equal(free.anchor_of(row), np.zeros((4, 2)))


# ---------------------------------------------------------------------- actions and views
def test_good_chunk_passes_unchanged_and_a_little_too_much_is_clipped(tiny_body: Embodiment) -> None:
    good = np.linspace(-0.5, 0.5, 8).reshape(1, 4, 2)
    assert np.array_equal(tiny_body.check_action(good), good.astype(np.float32))
    assert tiny_body.check_action(good * 1.5).max() == 0.5


def test_nan_action_is_refused(tiny_body: Embodiment) -> None:
    for bad in (np.nan, np.inf):
        chunk = np.zeros((1, 4, 2))
        chunk[0, 2, 1] = bad
        with pytest.raises(ShapeError, match="NaN or infinity"):
            tiny_body.check_action(chunk)


def test_action_in_degrees_is_refused_with_its_name_and_unit(tiny_body: Embodiment) -> None:
    chunk = np.zeros((2, 4, 2))
    chunk[1, 3, 1] = -25.0
    with pytest.raises(
        ShapeError, match=r"action arm\.1 reaches 25, expected within \[-0\.5, 0\.5\] rad; are the units"
    ):
        tiny_body.check_action(chunk)


@pytest.mark.parametrize("shape", [(4, 2), (1, 5, 2), (1, 4, 3)])
def test_chunk_of_the_wrong_shape_is_refused(tiny_body: Embodiment, shape: tuple[int, ...]) -> None:
    with pytest.raises(ShapeError, match=r"expected \(lanes, 4, 2\)"):
        tiny_body.check_action(np.zeros(shape))


def test_tiling_and_cutting_are_inverse() -> None:
    views = [
        {"name": "head", "key": "h", "height": 8, "width": 16},
        {"name": "left", "key": "l", "height": 8, "width": 8, "top": 8},
        {"name": "right", "key": "r", "height": 8, "width": 8, "top": 8, "left": 8},
    ]
    body = Embodiment.model_validate(TINY_BODY | {"views": views})
    rng = np.random.default_rng(0)
    images = {v["name"]: rng.integers(0, 256, (5, 2, v["height"], v["width"], 3), np.uint8) for v in views}  # type: ignore[misc]
    canvas = body.tile(images)
    assert canvas.shape == (5, 2, 16, 16, 3)
    back = body.untile(canvas)
    assert back.keys() == images.keys() and all(np.array_equal(back[k], v) for k, v in images.items())
    assert np.array_equal(body.tile(back), canvas)


@pytest.mark.parametrize("views", [{}, {"head": np.zeros((16, 8, 3), np.uint8)}, {"head": np.zeros((16, 16, 3))}])
def test_missing_or_misshapen_view_is_named(tiny_body: Embodiment, views: dict[str, np.ndarray]) -> None:
    with pytest.raises(ShapeError, match=r"view 'head': got .*, expected uint8"):
        tiny_body.tile(views)


def test_numpy_becomes_an_observation(tiny_model: WorldActionModel) -> None:
    frames = np.zeros((1, 2, 16, 16, 3), np.uint8)[:, :, ::-1]  # a view with a negative stride
    observation = as_observation(frames, np.zeros((1, 2, 3)))
    assert observation.proprio.dtype == torch.float32
    tiny_model.encode(observation, WORDS[:1])


def test_origin_is_where_a_zero_action_leads(tiny_model: WorldActionModel, tiny_observation: Observation) -> None:
    """Any two states and relative actions that lead to the same pose differ in origin by what their actions differ."""
    m = tiny_model
    context = m.encode(tiny_observation, ["push the bowl"] * 3)
    origin = m.prefill(context).origin
    pose = torch.tensor([[0.3, -0.4]])
    leads = m.normalise_action(pose - m.restore_proprio(context.proprio[:, -1])[:, :2]) + origin
    torch.testing.assert_close(leads, leads[:1].expand_as(leads))


def test_absolute_actions_have_no_origin(tiny_body: Embodiment, tiny_model: WorldActionModel) -> None:
    free = Embodiment.model_validate(TINY_BODY | {"action": [TINY_BODY["action"][0] | {"relative_to": None}]})  # type: ignore[index]
    assert free.anchors_in_proprio() == [-1, -1] and tiny_body.anchors_in_proprio() == [0, 1]
    cfg = tiny_model.cfg.model_copy(update={"embodiment": free})
    assert (WorldActionModel(cfg).origin(torch.ones(2, 3)) == 0).all()
