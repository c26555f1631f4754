"""An adapter is what it says: peft's options hold, what does not fit is refused, and its base is known."""

from __future__ import annotations

import copy
import json
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from imagine import DYNAMICS, INVERSE, POLICY, CheckpointMismatch, Observation, WorldActionModel, sample
from imagine.policy.adapter import Learner, is_adapter, merged, weights_hash

WEIGHTS = "adapter_model.safetensors"


def filled(learner: Learner) -> Learner:
    """A learner whose adapter changes something."""
    generator = torch.Generator().manual_seed(5)
    learner.load({k: 0.1 * torch.randn(v.shape, generator=generator) for k, v in learner.state().items()})
    return learner


def action(model: Any, observation: Observation) -> Tensor:
    context = model.encode(observation, ["push the bowl"] * 3)
    return sample(model, POLICY, context, steps=2, seeds=[1, 2, 3]).action


def by_peft(model: WorldActionModel, folder: Path, **options: Any) -> dict[str, Tensor]:
    """Save an adapter with peft; returns the weights that peft itself makes of it."""
    from peft import LoraConfig, get_peft_model

    config = {"r": 4, "lora_alpha": 12, "target_modules": ["to_q", "net.0.proj"], **options}
    torch.manual_seed(0)
    net = get_peft_model(copy.deepcopy(model.dit), LoraConfig(**config))
    for name, value in net.named_parameters():
        if "lora_B" in name or "lora_magnitude" in name:
            value.data.add_(0.1 * torch.rand(value.shape))
    net.save_pretrained(folder)
    return dict(net.merge_and_unload().state_dict())


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"use_rslora": True},
        {"rank_pattern": {"blocks.1.attn1.to_q": 7}},
        {"alpha_pattern": {r"blocks.\d+.ffn.net.0.proj": 2}},
        {"use_dora": True},
        {"lora_bias": True},
        {"bias": "lora_only"},
        {"target_modules": "all-linear"},
    ],
    ids=str,
)
def test_what_peft_can_be_asked_for_is_what_is_merged_and_learnt_on(
    options: dict[str, Any], tiny_model: WorldActionModel, tmp_path: Path
) -> None:
    truth = by_peft(tiny_model, tmp_path, **options)
    torch.testing.assert_close(dict(merged(tiny_model, tmp_path).dit.state_dict()), truth)
    if "target_modules" not in options:
        again = Learner(tiny_model, start=tmp_path).save(tmp_path / "again")
        torch.testing.assert_close(dict(merged(tiny_model, again).dit.state_dict()), truth, atol=1e-3, rtol=1e-2)


@pytest.mark.parametrize(
    "fault", ["another program's names", "a layer too few", "a factor too few", "a layer too many"]
)
def test_weights_that_are_not_all_used_are_refused(fault: str, tiny_model: WorldActionModel, tmp_path: Path) -> None:
    filled(Learner(tiny_model, rank=3)).save(tmp_path)
    state = load_file(tmp_path / WEIGHTS)
    last = sorted(state)[-1].split(".lora_")[0]
    if fault == "another program's names":
        state = {k.replace("base_model.model.", "diffusion_model."): v for k, v in state.items()}
    elif fault == "a layer too few":
        state = {k: v for k, v in state.items() if not k.startswith(last)}
    elif fault == "a factor too few":
        del state[f"{last}.lora_A.weight"]
    else:
        state |= {k.replace("blocks.0.", "blocks.9."): v.clone() for k, v in state.items()}
    save_file(state, tmp_path / WEIGHTS)
    for use in (lambda: merged(tiny_model, tmp_path), lambda: Learner(tiny_model, start=tmp_path)):
        with pytest.raises(CheckpointMismatch, match="do not fit: "):
            use()


@pytest.mark.parametrize(
    "change, message",
    [
        ({"peft_type": "IA3"}, "is a 'IA3', expected LORA"),
        ({"an_option_of_next_year": {"a": 1}}, "asks for an_option_of_next_year, which is not supported"),
        ({"alora_invocation_tokens": [1, 2]}, "asks for alora_invocation_tokens"),
        ({"init_lora_weights": "pissa_niter_4"}, "changes the base as well"),
        ({"r": "many"}, "no usable LoRA adapter"),
        ({"target_modules": ["nothing_here"]}, "cannot be attached"),
        ({"rank_pattern": {"to_q": 2**40}}, "do not fit: "),
    ],
)
def test_options_that_cannot_be_honoured_are_refused(
    change: dict[str, Any], message: str, tiny_model: WorldActionModel, tmp_path: Path
) -> None:
    by_peft(tiny_model, tmp_path)
    file = tmp_path / "adapter_config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | change))
    with pytest.raises(CheckpointMismatch, match=message):
        merged(tiny_model, tmp_path)


def test_an_adapter_knows_its_base(tiny_model: WorldActionModel, tmp_path: Path) -> None:
    folder = filled(Learner(tiny_model, rank=3)).save(tmp_path)
    again = Learner(tiny_model, start=folder).save(tmp_path / "again")
    other = copy.deepcopy(tiny_model)
    other.dit.blocks[0].attn1.to_v.weight.data[0, 0] += 0.1
    for made in (folder, again):
        merged(tiny_model, made)
        with pytest.raises(CheckpointMismatch, match="made for other weights"):
            merged(other, made)
    half = copy.deepcopy(tiny_model).to(torch.bfloat16)
    assert weights_hash(half) != weights_hash(tiny_model)
    merged(half, folder)  # the same base, computed with less precision


@pytest.mark.parametrize("on", ["model", "dit"])
def test_peft_attaches_it_to_the_model_and_to_its_transformer(
    on: str, tiny_model: WorldActionModel, tiny_observation: Observation, tmp_path: Path
) -> None:
    from peft import PeftModel

    folder = filled(Learner(tiny_model, rank=3)).save(tmp_path)
    want, before = action(merged(tiny_model, folder), tiny_observation), action(tiny_model, tiny_observation)
    model: Any = copy.deepcopy(tiny_model)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        if on == "model":
            model = PeftModel.from_pretrained(model, folder)
        else:
            model.dit = PeftModel.from_pretrained(model.dit, folder).base_model.model
    outside = [n for n, _ in model.named_modules() if "lora_" in n and ".dit." not in f".{n}"]
    got = action(model, tiny_observation)
    assert not outside and not torch.allclose(want, before, atol=1e-2)
    torch.testing.assert_close(got, want, atol=1e-3, rtol=1e-2)


@pytest.mark.slow
@pytest.mark.parametrize("noted", [True, False])
def test_the_layout_of_diffusers_is_read(noted: bool, tiny_model: WorldActionModel, tmp_path: Path) -> None:
    from diffusers.loaders import WanLoraLoaderMixin
    from peft import LoraConfig, get_peft_model, get_peft_model_state_dict

    scale = 3.0 if noted else 1.0  # without a note, alpha is the rank, as in diffusers
    config = LoraConfig(
        r=2, lora_alpha=int(2 * scale), target_modules=["to_k"], rank_pattern={"blocks.0.attn1.to_k": 2}
    )
    net = get_peft_model(copy.deepcopy(tiny_model.dit), config)
    for value in net.parameters():
        if value.requires_grad:
            value.data.normal_(std=0.1)
    layers = {k.removeprefix("base_model.model."): v for k, v in get_peft_model_state_dict(net).items()}
    about = config.to_dict() | {"target_modules": ["to_k"]} if noted else None
    WanLoraLoaderMixin.save_lora_weights(
        tmp_path, transformer_lora_layers=layers, transformer_lora_adapter_metadata=about
    )
    assert is_adapter(tmp_path) and (tmp_path / "pytorch_lora_weights.safetensors").is_file()
    truth = dict(net.merge_and_unload().state_dict())
    torch.testing.assert_close(dict(merged(tiny_model, tmp_path).dit.state_dict()), truth)
    Learner(tiny_model, start=tmp_path)


def test_a_file_of_nothing_but_nan_is_to_blame(tiny_model: WorldActionModel, tmp_path: Path) -> None:
    tiny_model.save_pretrained(tmp_path)
    state = load_file(tmp_path / "model.safetensors")
    name = max(state, key=lambda k: state[k].numel())
    save_file(state | {name: torch.full_like(state[name], float("nan"))}, tmp_path / "model.safetensors")
    with pytest.raises(CheckpointMismatch, match=rf"model\.safetensors: {name} holds NaN"):
        WorldActionModel.from_pretrained(tmp_path)


# ---------------------------------------------------------------------- half precision
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_a_model_in_half_precision_answers_all_questions(
    dtype: torch.dtype, tiny_model: WorldActionModel, tiny_observation: Observation
) -> None:
    def answers(model: WorldActionModel) -> list[Tensor]:
        context = model.encode(tiny_observation, ["push the bowl"] * 3)
        dreamt = sample(model, DYNAMICS, context, action=commanded, steps=1, seeds=[1, 2, 3])
        assert dreamt.video is not None and dreamt.proprio is not None
        next_ = model.after(context, dreamt.video, dreamt.proprio, dreamt.memory)
        read = sample(model, INVERSE, next_, video=dreamt.video, proprio=dreamt.proprio, steps=1, seeds=[1, 2, 3])
        return [action(model, tiny_observation), dreamt.video, dreamt.proprio, read.action, model.decode(dreamt.video)]

    commanded = torch.randn(3, *tiny_model.chunk_shapes["action"], generator=torch.Generator().manual_seed(0))
    half = copy.deepcopy(tiny_model).to(dtype)
    assert torch.equal(half.action_std, tiny_model.action_std), "robot units keep their precision"
    for got, want in zip(answers(half), answers(tiny_model), strict=True):
        error = (got.float() - want.float()).square().mean().sqrt() / want.float().std()
        assert got.dtype == want.dtype and error < 0.1


def test_links_out_of_a_model_folder_are_not_followed(tiny_model: WorldActionModel, tmp_path: Path) -> None:
    tiny_model.save_pretrained(tmp_path / "mine")
    (tmp_path / "mine" / "model.safetensors").rename(tmp_path / "theirs")
    (tmp_path / "mine" / "model.safetensors").symlink_to(tmp_path / "theirs")
    with pytest.raises(CheckpointMismatch, match=r"mine/model\.safetensors is a link out of its folder"):
        WorldActionModel.from_pretrained(tmp_path / "mine")
    (tmp_path / "hub" / "blobs").mkdir(parents=True)  # as huggingface_hub keeps its files
    (tmp_path / "hub" / "snapshots").mkdir()
    snapshot = (tmp_path / "mine").rename(tmp_path / "hub" / "snapshots" / "abc")
    (snapshot / "model.safetensors").unlink()
    (tmp_path / "theirs").rename(tmp_path / "hub" / "blobs" / "0123")
    (snapshot / "model.safetensors").symlink_to("../../blobs/0123")
    WorldActionModel.from_pretrained(snapshot)
