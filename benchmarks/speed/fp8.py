"""Linear layers in 8-bit floating point (e4m3) for inference on NVIDIA Hopper: half the bytes, twice the peak rate.

An option, off unless :func:`fp8_linears` is called on what should have it, as in ``fp8_linears(dit.blocks)``. Weights
are rounded once, inputs at every call. Scales are per output channel and per token by default, so that a lane's answer
still does not depend on its neighbours; one scale per tensor is faster on some versions of torch and depends on them.
:func:`fp8_error` tells what the rounding costs a layer, on any device.

Source: FP8 Formats for Deep Learning, arXiv:2209.05433.
"""

from __future__ import annotations

from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from imagine.types import ImagineError

__all__ = ["Fp8Linear", "fp8_error", "fp8_linears"]

Scales = Literal["token", "tensor"]
KIND = torch.float8_e4m3fn
LARGEST = torch.finfo(KIND).max
MULTIPLE = 16  # widths must be, for the matrix units


def _rounded(x: Tensor, scales: Scales) -> tuple[Tensor, Tensor]:
    """(n, width) to 8 bits, and what they are to be multiplied by: (n, 1), or one number (1, 1), float32."""
    x = x.float()
    most = x.abs().amax(1, keepdim=True) if scales == "token" else x.abs().amax().view(1, 1)
    scale = most.clamp(min=1e-12) / LARGEST
    return (x / scale).clamp(-LARGEST, LARGEST).to(KIND), scale


class Fp8Linear(nn.Module):
    """A linear layer whose weight, and whose input at every call, are rounded to 8 bits; inference only.

    Where there are no such matrix units it computes the same in float32, for tests.
    """

    weight: Tensor
    scale: Tensor
    bias: Tensor | None

    def __init__(self, linear: nn.Linear, scales: Scales = "token"):
        super().__init__()
        self.scales, self.in_features, self.out_features = scales, linear.in_features, linear.out_features
        weight, scale = _rounded(linear.weight.detach(), scales)
        self.register_buffer("weight", weight)
        self.register_buffer("scale", scale.t().contiguous())
        self.register_buffer("bias", None if linear.bias is None else linear.bias.detach())

    def forward(self, x: Tensor) -> Tensor:
        """(..., in) to (..., out), same dtype."""
        small, scale = _rounded(x.reshape(-1, self.in_features), self.scales)
        if x.is_cuda:
            bias = None if self.bias is None else self.bias.to(torch.bfloat16)
            out = torch._scaled_mm(
                small, self.weight.t(), scale, self.scale, bias=bias, out_dtype=torch.bfloat16, use_fast_accum=True
            )
        else:
            out = F.linear(small.float(), self.weight.float()) * scale * self.scale
            out = out if self.bias is None else out + self.bias
        return out.to(x.dtype).view(*x.shape[:-1], self.out_features)


def fp8_linears(module: nn.Module, *, scales: Scales = "token", emulate: bool = False) -> list[str]:
    """Replace every linear layer inside a module by one in FP8, in place; the old weights are freed.

    Args:
        module: usually ``dit.blocks``; what is small (embedders, heads) gains nothing.
        scales: per "token" and output channel, or per "tensor".
        emulate: compute the same numbers in float32 on whatever device, slowly; for tests.

    Returns:
        Names of the layers that were replaced; those with a width that 16 does not divide stay as they are.

    Raises:
        ImagineError: the module is not in bfloat16 on an NVIDIA GPU of compute capability 9.0 or above.
    """
    found = {
        name: layer
        for name, layer in module.named_modules()
        if isinstance(layer, nn.Linear) and not (layer.in_features % MULTIPLE or layer.out_features % MULTIPLE)
    }
    for name, layer in ({} if emulate else found).items():
        _check(name, layer.weight)
    names = list(found)
    for name in names:
        parent, _, leaf = name.rpartition(".")
        setattr(module.get_submodule(parent), leaf, Fp8Linear(found.pop(name), scales))  # one weight at a time is freed
    return names


def _check(name: str, weight: Tensor) -> None:
    if not weight.is_cuda:
        raise ImagineError(
            f"{name} is on {weight.device.type}, expected an NVIDIA GPU of compute capability 9.0 or above for FP8; "
            "move the model there, or leave FP8 off."
        )
    capability = torch.cuda.get_device_capability(weight.device)
    if capability < (9, 0) or torch.version.hip is not None:
        raise ImagineError(
            f"{torch.cuda.get_device_name(weight.device)} has compute capability {capability[0]}.{capability[1]}, "
            "expected 9.0 or above for FP8; leave FP8 off."
        )
    if weight.dtype != torch.bfloat16:
        raise ImagineError(f"{name} is {weight.dtype}, expected torch.bfloat16 for FP8; load the model in bfloat16.")


@torch.no_grad()
def fp8_error(linear: nn.Linear, x: Tensor, scales: Scales = "token") -> float:
    """How far a layer in FP8 is from itself in float32 on inputs (..., in): norm of the difference / norm."""
    bias = None if linear.bias is None else linear.bias.float()
    want = F.linear(x.float(), linear.weight.float(), bias)
    got = Fp8Linear(linear, scales)(x).float()
    return float((got - want).norm() / want.norm())
