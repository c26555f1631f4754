"""A JointDiT over several GPUs: blocks that are recomputed instead of remembered, and weights shared out with FSDP2.

accelerate starts the processes; sharding is done here with torch's ``fully_shard``, because a context enters the blocks
by other doors than ``forward`` (``prefill``, and the keys and values of the instruction), which accelerate's own FSDP2
plugin does not know, and because that plugin needs a GPU, so no test could run it.
"""

from __future__ import annotations

import warnings
from functools import partial
from pathlib import Path
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.distributed import get_rank, get_world_size, is_available, is_initialized
from torch.utils.checkpoint import checkpoint

from imagine.model.blocks import Block
from imagine.model.dit import JointDiT

_recompute = partial(checkpoint, use_reentrant=False, preserve_rng_state=False)  # there is no dropout


class Recomputed(Block):
    """A block that keeps its inputs only and runs again when its gradient is wanted.

    It wraps the call, not ``forward``, so that hooks (FSDP's, which gathers the weights) run again as well.
    """

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """As :meth:`Block.forward`."""
        if torch.is_grad_enabled():
            return _recompute(super().__call__, *args, **kwargs)
        return super().__call__(*args, **kwargs)


class _Norm(nn.LayerNorm):
    """A norm whose weights may be bfloat16 where what it is given is float32."""

    def forward(self, x: Tensor) -> Tensor:
        return F.layer_norm(x, self.normalized_shape, self.weight.to(x), self.bias.to(x), self.eps)


def checkpoint_blocks(dit: JointDiT) -> None:
    """Gradient checkpointing of every block, in place; names of parameters and modules stay. Before :func:`shard`."""
    for block in dit.blocks:
        block.__class__ = Recomputed


def processes() -> tuple[int, int]:
    """This process's number and how many there are; (0, 1) outside of ``accelerate launch``."""
    return (get_rank(), get_world_size()) if is_available() and is_initialized() else (0, 1)


def shard(dit: JointDiT, device: torch.device, *, half: bool) -> None:
    """Share weights, gradients and optimiser state out over all processes, in place; one block is whole at a time.

    Args:
        dit: the same weights in every process; parameters that train have one dtype.
        device: of this process.
        half: compute with bfloat16 copies of the weights; gradients are summed in float32 all the same.

    Source: FSDP2, https://docs.pytorch.org/docs/stable/distributed.fsdp.fully_shard.html
    """
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard, register_fsdp_forward_method

    # What a block returns may be a view; nothing here writes into one.
    warnings.filterwarnings("ignore", message="FSDP2-wrapped module")
    mesh = init_device_mesh(device.type, (processes()[1],))
    lower = {"param_dtype": torch.bfloat16, "reduce_dtype": torch.float32} if half else {}
    policy = MixedPrecisionPolicy(**lower, cast_forward_inputs=False)  # modulations stay float32
    for block in dit.blocks:
        # Not a unit of its own, which would stay float32: inside a recomputed block FSDP loses gradients of such units.
        block.norm2.__class__ = _Norm
        fully_shard(block, mesh=mesh, mp_policy=policy)
        look: Any = block.attn2
        for name in ("keys_values", "image_keys_values"):
            # JointDiT.read asks the attention itself; send that through the block, which gathers the weights.
            setattr(block, f"_{name}", getattr(look, name))
            register_fsdp_forward_method(block, f"_{name}")
            asked = getattr(block, f"_{name}")
            setattr(look, name, partial(_recompute, asked) if isinstance(block, Recomputed) else asked)
    fully_shard(dit, mesh=mesh, mp_policy=policy)
    register_fsdp_forward_method(dit, "prefill")


def whole_state(module: nn.Module) -> dict[str, Tensor]:
    """Every parameter, whole, on the CPU of process 0; empty elsewhere. Every process must call it."""
    from torch.distributed.checkpoint.state_dict import StateDictOptions, get_model_state_dict

    options = StateDictOptions(full_state_dict=True, cpu_offload=True)
    return cast(dict[str, Tensor], get_model_state_dict(module, options=options))


class Shards:
    """What training must remember of a large model, written by all processes together: only what trains.

    It may be read again by another number of processes.
    """

    def __init__(self, module: nn.Module, optimiser: torch.optim.Optimizer):
        self.module, self.optimiser = module, optimiser
        warnings.filterwarnings("ignore", message="torch.distributed is disabled")  # one process writes as well

    def _state(self, step: int) -> dict[str, Any]:
        from torch.distributed.checkpoint.state_dict import StateDictOptions, get_state_dict

        options = StateDictOptions(ignore_frozen_params=True)
        weights, moments = get_state_dict(self.module, self.optimiser, options=options)
        return {"weights": weights, "moments": moments, "step": torch.tensor(step)}

    def save(self, folder: Path, step: int) -> None:
        """Write to an existing folder."""
        from torch.distributed import checkpoint as dcp

        dcp.save(self._state(step), checkpoint_id=folder)

    def load(self, folder: Path) -> int:
        """Take over what :meth:`save` wrote; returns the step."""
        from torch.distributed import checkpoint as dcp
        from torch.distributed.checkpoint.state_dict import StateDictOptions, set_state_dict

        state = self._state(0)
        dcp.load(state, checkpoint_id=folder)
        options = StateDictOptions(ignore_frozen_params=True, strict=False)
        set_state_dict(
            self.module,
            self.optimiser,
            model_state_dict=state["weights"],
            optim_state_dict=state["moments"],
            options=options,
        )
        return int(state["step"])
