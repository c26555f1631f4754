"""Low-rank adapters on the policy: what RL and fine-tuning change, so that the dream's own weights never move.

Files are peft's (``adapter_config.json``, ``adapter_model.safetensors``); merging needs torch alone.
"""

from __future__ import annotations

import copy
import hashlib
import json
from pathlib import Path

from torch import nn

from imagine.model import WorldActionModel, load_weights
from imagine.types import CheckpointMismatch

_PREFIX = "base_model.model."


def merged(model: WorldActionModel, folder: str | Path) -> WorldActionModel:
    """A copy of ``model`` whose transformer has the adapter of ``folder`` added; ``model`` itself is untouched.

    Raises:
        CheckpointMismatch: the folder holds no adapter, or one for another network.
    """
    folder = Path(folder)
    try:
        about = json.loads((folder / "adapter_config.json").read_text())
        scale = about["lora_alpha"] / about["r"]
    except (OSError, ValueError, KeyError) as error:
        raise CheckpointMismatch(
            f"{folder} holds no usable LoRA adapter ({error}); make one with `imagine improve`."
        ) from None
    state = load_weights(folder / "adapter_model.safetensors")
    model = copy.deepcopy(model)
    pairs = {k.removesuffix(".lora_A.weight") for k in state if k.endswith(".lora_A.weight")}
    for name in sorted(pairs):
        try:
            layer = model.dit.get_submodule(name.removeprefix(_PREFIX))
        except AttributeError:
            raise CheckpointMismatch(f"adapter {folder} changes {name!r}, which this model does not have.") from None
        down, up = state[f"{name}.lora_A.weight"], state[f"{name}.lora_B.weight"]
        if not isinstance(layer, nn.Linear) or layer.weight.shape != (up.shape[0], down.shape[1]):
            raise CheckpointMismatch(
                f"adapter {folder}: {name!r} is ({up.shape[0]}, {down.shape[1]}), which does not fit; "
                "it was made for another model."
            )
        layer.weight.data += scale * (up @ down).to(layer.weight)
    return model


def weights_hash(module: nn.Module) -> str:
    """SHA-256 over every weight; RL must leave that of the environment's model as it was."""
    digest = hashlib.sha256()
    for name, value in sorted(module.state_dict().items()):
        digest.update(name.encode())
        digest.update(value.detach().cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()
