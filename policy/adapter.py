"""Low-rank adapters on the policy: what RL and fine-tuning change, so that the dream's own weights never move.

Files are peft's (``adapter_config.json``, ``adapter_model.safetensors``) or diffusers'
(``pytorch_lora_weights.safetensors``); peft itself attaches and merges them, so that options mean what they do there.
What is read is used whole or refused. ``PeftModel.from_pretrained`` loads our files on a model and on its ``dit``.
"""

from __future__ import annotations

import copy
import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from torch import Tensor, nn

from imagine.extras import extra
from imagine.files import atomic_write
from imagine.model.checkpoint import load_weights, misfits, within
from imagine.model.layers import LORA_IN_BLOCKS
from imagine.model.model import WorldActionModel
from imagine.types import CheckpointMismatch

_PREFIX = "base_model.model."
_CONFIG, _WEIGHTS, _DIFFUSERS = "adapter_config.json", "adapter_model.safetensors", "pytorch_lora_weights.safetensors"
_BASE = "base_sha256"
"""Key in the weights' metadata that tells the base: :func:`weights_hash` of its transformer, rounded to bfloat16."""
_HONOURED = {
    "r", "lora_alpha", "target_modules", "exclude_modules", "target_parameters", "layers_to_transform",
    "layers_pattern", "rank_pattern", "alpha_pattern", "use_rslora", "use_dora", "lora_bias", "bias",
    "modules_to_save", "fan_in_fan_out", "lora_dropout", "init_lora_weights",
}  # fmt: skip
_NOTES = {
    "peft_type", "task_type", "auto_mapping", "base_model_name_or_path", "revision", "inference_mode", "peft_version",
    "megatron_core", "qalora_group_size",
}  # fmt: skip
"""Options of an adapter that change nothing while those that would use them are off; all others must be off."""
_KEEP_BASE = (True, False, None, "gaussian", "orthogonal", "eva")
"""Ways to initialise an adapter that leave the weights it is attached to as they are."""


class Learner:
    """A model that learns through a LoRA adapter alone.

    Attributes:
        model: a copy of the base with the adapter inside its transformer; only the adapter requires gradients.
        rank: of the adapter; where layers differ, of most of them.
    """

    def __init__(
        self,
        base: WorldActionModel,
        *,
        rank: int = 16,
        start: str | Path | None = None,
        seed: int = 0,
        targets: tuple[str, ...] = LORA_IN_BLOCKS,
    ):
        """Copy ``base`` and put an adapter into it.

        Args:
            base: never changed.
            rank: of a new adapter; one that is loaded has its own, and its own scale and options.
            start: adapter folder to go on from; None begins at the base itself.
            seed: of a new adapter's first factor.
            targets: ends of the names of the layers that a new adapter changes; one that is loaded has its own.

        Raises:
            CheckpointMismatch: ``start`` holds no adapter, one for another network, or one that cannot be learnt on.

        Source: LoRA, arXiv:2106.09685, through peft.
        """
        with extra("train"):
            from peft import LoraConfig, PeftModel

        self.model = copy.deepcopy(base).requires_grad_(False)
        self._base = weights_hash(base.dit, torch.bfloat16)
        if start is not None:
            self._peft = _attached(self.model.dit, Path(start))
            if any("patch_embedding" in name for name, _ in self._trained()):
                raise CheckpointMismatch(
                    f"adapter {start} changes patch_embedding, on which no adapter here can learn."
                )
        else:
            # Of a whole model only its transformer's layers, so that peft finds the same ones on both.
            ends = "|".join(end.replace(".", r"\.") for end in targets)
            inside = rf"(?!(codec|text|image_encoder)\.).*\.({ends})"
            lora = LoraConfig(r=rank, lora_alpha=rank, target_modules=inside, bias="none")
            with torch.random.fork_rng(devices=[]):
                torch.manual_seed(seed)
                self._peft = PeftModel(self.model.dit, lora)
        self.rank = self._peft.peft_config["default"].r  # type: ignore[attr-defined]
        self.model.dit = self._peft.base_model.model  # type: ignore[assignment]  # the same network, adapters inside
        self.model.eval()

    def _trained(self) -> list[tuple[str, nn.Parameter]]:
        return [(k, v) for k, v in self._peft.base_model.model.named_parameters() if v.requires_grad]

    def parameters(self) -> dict[str, Tensor]:
        """The adapter's parameters by name, float32."""
        return dict(self._trained())

    def state(self) -> dict[str, Tensor]:
        """A copy of the adapter's values."""
        return {k: v.detach().clone() for k, v in self.parameters().items()}

    @torch.no_grad()
    def load(self, state: dict[str, Tensor]) -> None:
        """Take over the values of :meth:`state`.

        Raises:
            CheckpointMismatch: other names or shapes.
        """
        own = self.parameters()
        if wrong := misfits(own, state):
            raise CheckpointMismatch(
                f"the adapter's values do not fit one of rank {self.rank}: {'; '.join(wrong[:4])} ({len(wrong)} in "
                "all); it was made for another network or rank."
            )
        for name, value in own.items():
            value.copy_(state[name])

    def save(self, folder: str | Path, values: dict[str, Tensor] | None = None) -> Path:
        """Write the adapter (or ``values`` in its place) as peft does, float16, by rename; returns the folder."""
        from peft import get_peft_model_state_dict
        from safetensors.torch import save

        folder, values = Path(folder), self.parameters() if values is None else values
        named = get_peft_model_state_dict(
            self._peft, {_PREFIX + k: v for k, v in values.items()}, save_embedding_layers=False
        )
        folder.mkdir(parents=True, exist_ok=True)
        self._peft.peft_config["default"].save_pretrained(str(folder))  # type: ignore[attr-defined]
        about = {_BASE: self._base}  # one entry: safetensors writes several in any order, and files are to be equal
        atomic_write(
            folder / _WEIGHTS, save({k: v.detach().cpu().half().contiguous() for k, v in named.items()}, about)
        )
        return folder


def merged(model: WorldActionModel, folder: str | Path) -> WorldActionModel:
    """A copy of ``model`` whose transformer has the adapter of ``folder`` merged in; ``model`` itself is untouched.

    Raises:
        CheckpointMismatch: the folder holds no adapter, one that does not fit or was made for other weights, or one
            that asks for more than LoRA, DoRA and their variants that peft can merge.
    """
    model = copy.deepcopy(model)
    model.dit = _attached(model.dit, Path(folder)).merge_and_unload()  # type: ignore[operator]
    return model.eval()


def is_adapter(folder: str | Path) -> bool:
    """Whether an adapter lies in a folder, in peft's layout or diffusers'."""
    return any((Path(folder) / name).is_file() for name in (_CONFIG, _DIFFUSERS))


def weights_hash(module: nn.Module, rounded: torch.dtype | None = None) -> str:
    """SHA-256 over every weight; RL must leave that of the environment's model as it was.

    Rounded to bfloat16, it is the same for a model that computes in float16 or bfloat16.
    """
    digest = hashlib.sha256()
    for name, value in sorted(module.state_dict().items()):
        digest.update(name.encode())
        value = value.detach().cpu()
        value = value.to(rounded) if rounded is not None and value.is_floating_point() else value
        digest.update(value.contiguous().flatten().view(torch.uint8).numpy())
    return digest.hexdigest()


# ---------------------------------------------------------------------------------------------------------- reading
def _attached(dit: nn.Module, folder: Path) -> Any:
    """``dit`` with the adapter of a folder inside, ready to learn or to be merged; a ``peft.PeftModel``."""
    with extra("train"):
        from peft import LoraConfig, PeftModel, get_peft_model_state_dict, set_peft_model_state_dict

    options, state, base = _read(folder)
    if base and base != weights_hash(dit, torch.bfloat16):
        raise CheckpointMismatch(
            f"adapter {folder} was made for other weights than these (its base is {base[:12]}); load the model that it "
            "was trained on."
        )
    try:
        with torch.device("meta"):  # nothing is allocated before the sizes in the file are known to fit
            net = PeftModel(dit, LoraConfig(**options), low_cpu_mem_usage=True)  # type: ignore[arg-type]
        own = get_peft_model_state_dict(net, save_embedding_layers=False)
        wrong = misfits(own, state)
        if not wrong:
            set_peft_model_state_dict(net, state, low_cpu_mem_usage=True)
    except Exception as error:  # what peft raises at options that do not fit is of every kind
        said = " ".join(str(error).split())[:200]
        raise CheckpointMismatch(f"adapter {folder} cannot be attached ({said}); is it for another network?") from None
    if wrong:
        raise CheckpointMismatch(
            f"weights of adapter {folder} do not fit: {'; '.join(wrong[:4])} ({len(wrong)} in all); it was made for "
            "another network, is incomplete, or names its weights as another program does."
        )
    return net


def _read(folder: Path) -> tuple[dict[str, Any], dict[str, Tensor], str]:
    """Options of an adapter, its weights under peft's names, and its base's hash ("" where it is not told)."""
    within(folder)
    if not (folder / _CONFIG).is_file() and (folder / _DIFFUSERS).is_file():
        about, state, base = _diffusers(folder / _DIFFUSERS)
    else:
        about, state = _about(folder / _CONFIG), load_weights(folder / _WEIGHTS)
        base = _metadata(folder / _WEIGHTS).get(_BASE, "")
    if about.get("peft_type", "LORA") != "LORA":
        raise CheckpointMismatch(f"adapter {folder} is a {about['peft_type']!r}, expected LORA.")
    if odd := sorted(k for k, v in about.items() if k not in _HONOURED | _NOTES and v not in (None, False, [], {}, "")):
        raise CheckpointMismatch(
            f"adapter {folder} asks for {', '.join(odd)}, which is not supported; train it without."
        )
    if about.get("init_lora_weights", True) not in _KEEP_BASE:
        raise CheckpointMismatch(
            f"adapter {folder} began as {about['init_lora_weights']!r}, which changes the base as well; convert it "
            "with peft's save_pretrained(path_initial_model_for_weight_conversion=...)."
        )
    options = {k: v for k, v in about.items() if k in _HONOURED}
    return options | {"init_lora_weights": True}, state, base  # the values come from the file


def _about(file: Path) -> dict[str, Any]:
    """``adapter_config.json``, as peft writes it."""
    try:
        about = json.loads(file.read_text())
        if not isinstance(about["r"], int) or not about["lora_alpha"] > 0 or "target_modules" not in about:
            raise ValueError("r, lora_alpha or target_modules is no such thing")
    except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
        said = f"no {error}" if isinstance(error, KeyError) else error
        raise CheckpointMismatch(
            f"{file.parent} holds no usable LoRA adapter: {file.name}: {said}; make one with `imagine finetune rl`."
        ) from None
    return about  # type: ignore[no-any-return]


def _diffusers(file: Path) -> tuple[dict[str, Any], dict[str, Tensor], str]:
    """The same of a LoRA that diffusers saved: options in the metadata or, without any, as its loader reads them."""
    found, noted = load_weights(file), _metadata(file)
    prefix = "transformer." if all(k.startswith("transformer.") for k in found) else ""
    state = {k.removeprefix(prefix): v for k, v in found.items()}
    downs = {k.removesuffix(".lora_A.weight"): v for k, v in state.items() if k.endswith(".lora_A.weight")}
    ranks = {name: value.shape[0] for name, value in downs.items() if value.ndim}
    if not ranks or len(ranks) != len(downs):
        raise CheckpointMismatch(
            f"{file} holds no lora_A matrices, as diffusers names them; convert it with diffusers."
        )
    about: dict[str, Any] = {
        "r": max(ranks.values()), "lora_alpha": max(ranks.values()), "rank_pattern": ranks, "alpha_pattern": ranks,
        "use_dora": any("lora_magnitude_vector" in k for k in state),
        "lora_bias": any(k.endswith("lora_B.bias") for k in state),
    }  # fmt: skip
    if "lora_adapter_metadata" in noted:
        try:
            told: Mapping[str, Any] = json.loads(noted["lora_adapter_metadata"])
            about = {k.removeprefix(prefix): v for k, v in told.items() if k.startswith(prefix)}
        except (ValueError, AttributeError, RecursionError) as error:
            raise CheckpointMismatch(f"{file} has damaged lora_adapter_metadata ({error}); save it again.") from None
    return about | {"target_modules": sorted(ranks)}, {_PREFIX + k: v for k, v in state.items()}, noted.get(_BASE, "")


def _metadata(file: Path) -> dict[str, str]:
    with safe_open(file, framework="pt") as opened:
        return opened.metadata() or {}
