"""Whether a chip computes in bfloat16. One that does not only emulates it, ten times slower than float32."""

from __future__ import annotations

import torch


def has_bfloat16(device: torch.device | str) -> bool:
    """Whether autocast to bfloat16 saves time on a device; of processors those with AVX-512 or newer do."""
    if torch.device(device).type != "cpu":
        return True
    return bool(torch.backends.mkldnn.is_available() and torch.ops.mkldnn._is_mkldnn_bf16_supported())
