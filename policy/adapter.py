"""Low-rank adapters on the policy: what RL and fine-tuning change, so that the dream's own weights never move.

Files are peft's (``adapter_config.json``, ``adapter_model.safetensors``); merging needs torch alone.
"""

from __future__ import annotations

import copy
import hashlib
import json
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from imagine.extras import extra
from imagine.files import atomic_write
from imagine.model.layers import LORA_IN_BLOCKS
from imagine.model.model import WorldActionModel, load_weights
from imagine.types import CheckpointMismatch

_PREFIX = "base_model.model."


class Learner:
    """A model that learns through a LoRA adapter alone.

    Attributes:
        model: a copy of the base with the adapter inside its transformer; only the adapter requires gradients.
        rank: of the adapter.
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
            rank: of a new adapter; one that is loaded has its own.
            start: adapter folder to go on from; None begins at the base itself.
            seed: of a new adapter's first factor.
            targets: ends of the names of the layers that a new adapter changes; one that is loaded has its own.

        Raises:
            CheckpointMismatch: ``start`` holds no adapter, or one for another network.

        Source: LoRA, arXiv:2106.09685, through peft.
        """
        with extra("train"):
            from peft import LoraConfig, get_peft_model

        state = {} if start is None else _read(Path(start), base)[1]
        changes = list(targets) if start is None else _about(Path(start)).get("target_modules", list(targets))
        self.rank = rank if start is None else next(v.shape[0] for k, v in state.items() if "lora_A" in k)
        self.model = copy.deepcopy(base).requires_grad_(False)
        lora = LoraConfig(r=self.rank, lora_alpha=self.rank, target_modules=changes, bias="none")
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            self._peft = get_peft_model(self.model.dit, lora)  # type: ignore[arg-type]
        self.model.dit = self._peft.base_model.model  # type: ignore[assignment]  # the same network, adapters inside
        if state:
            self.load({k.removeprefix(_PREFIX).replace(".weight", ".default.weight"): v for k, v in state.items()})
        self.model.eval()

    def parameters(self) -> dict[str, Tensor]:
        """The adapter's parameters by name, float32."""
        return {k: v for k, v in self.model.dit.named_parameters() if v.requires_grad}

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
        if state.keys() != own.keys() or any(state[k].shape != v.shape for k, v in own.items()):
            raise CheckpointMismatch(
                f"the adapter has {len(state)} tensors of rank {min(v.shape[0] for v in state.values())}, expected "
                f"{len(own)} of rank {self.rank}; it was made for another network or rank."
            )
        for name, value in own.items():
            value.copy_(state[name])

    def save(self, folder: str | Path, values: dict[str, Tensor] | None = None) -> Path:
        """Write the adapter (or ``values`` in its place) as peft does, float16, by rename; returns the folder."""
        from safetensors.torch import save

        folder, values = Path(folder), self.parameters() if values is None else values
        named = {_PREFIX + k.replace(".default.weight", ".weight"): v for k, v in values.items()}
        folder.mkdir(parents=True, exist_ok=True)
        self._peft.peft_config["default"].save_pretrained(str(folder))  # type: ignore[index, union-attr]
        atomic_write(
            folder / "adapter_model.safetensors",
            save({k: v.detach().cpu().half().contiguous() for k, v in named.items()}),
        )
        return folder


def merged(model: WorldActionModel, folder: str | Path) -> WorldActionModel:
    """A copy of ``model`` whose transformer has the adapter of ``folder`` added; ``model`` itself is untouched.

    Raises:
        CheckpointMismatch: the folder holds no adapter, or one for another network.
    """
    scale, state = _read(Path(folder), model)
    model = copy.deepcopy(model)
    for name in _layers(state):
        down, up = state[f"{name}.lora_A.weight"], state[f"{name}.lora_B.weight"]
        layer = model.dit.get_submodule(name.removeprefix(_PREFIX))
        change = (up.flatten(1) @ down.flatten(1)).view_as(layer.weight)  # type: ignore[arg-type]
        layer.weight.data += scale * change.to(layer.weight)  # type: ignore[operator, union-attr, arg-type]
    return model


def _layers(state: dict[str, Tensor]) -> list[str]:
    return sorted(k.removesuffix(".lora_A.weight") for k in state if k.endswith(".lora_A.weight"))


def _about(folder: Path) -> dict[str, Any]:
    """``adapter_config.json``, as peft writes it."""
    try:
        about = json.loads((folder / "adapter_config.json").read_text())
        return {"lora_alpha": about["lora_alpha"], "r": about["r"], **about}
    except (OSError, ValueError, KeyError) as error:
        raise CheckpointMismatch(
            f"{folder} holds no usable LoRA adapter ({error}); make one with `imagine improve`."
        ) from None


def _read(folder: Path, model: WorldActionModel) -> tuple[float, dict[str, Tensor]]:
    """Scale and weights of an adapter that fits ``model``."""
    about = _about(folder)
    scale = about["lora_alpha"] / about["r"]
    state = load_weights(folder / "adapter_model.safetensors")
    for name in _layers(state):
        try:
            layer = model.dit.get_submodule(name.removeprefix(_PREFIX))
        except AttributeError:
            raise CheckpointMismatch(f"adapter {folder} changes {name!r}, which this model does not have.") from None
        down, up = state[f"{name}.lora_A.weight"], state[f"{name}.lora_B.weight"]
        if not isinstance(layer, nn.Linear | nn.Conv2d) or layer.weight.shape != (up.shape[0], *down.shape[1:]):
            raise CheckpointMismatch(
                f"adapter {folder}: {name!r} is {(up.shape[0], *down.shape[1:])}, which does not fit; "
                "it was made for another model."
            )
    return scale, state


def weights_hash(module: nn.Module) -> str:
    """SHA-256 over every weight; RL must leave that of the environment's model as it was."""
    digest = hashlib.sha256()
    for name, value in sorted(module.state_dict().items()):
        digest.update(name.encode())
        digest.update(value.detach().cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()
