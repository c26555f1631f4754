"""Time and memory of work on one device."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from statistics import median

import torch

Work = Callable[[], object]


class Clock:
    """CUDA events on a GPU, the wall elsewhere."""

    def __init__(self, device: torch.device, quick: bool = False):
        self.device, self.quick = device, quick
        self.cuda = device.type == "cuda"

    def wait(self) -> None:
        if self.cuda:
            torch.cuda.synchronize(self.device)

    def once(self, work: Work) -> float:
        """Milliseconds of one call."""
        if not self.cuda:
            start = time.perf_counter()
            work()
            return 1e3 * (time.perf_counter() - start)
        begin, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        self.wait()
        begin.record()
        work()
        end.record()
        self.wait()
        return begin.elapsed_time(end)

    def race(self, contenders: Mapping[str, Work], least: int = 5) -> dict[str, dict[str, float]]:
        """Median, lowest and highest milliseconds of each, taking turns after a warm-up.

        At least ``least`` turns; fewer where one takes over a second, more where all are fast.
        """
        slowest = max(self.once(work) for work in contenders.values())  # also pays for what only a first call pays
        slowest = min(slowest, max(self.once(work) for work in contenders.values()))
        turns = 2 if self.quick else 3 if slowest > 1000 else max(least, min(25, int(2000 / max(slowest, 1e-3))))
        taken: dict[str, list[float]] = {name: [] for name in contenders}
        for _ in range(turns):
            for name, work in contenders.items():
                taken[name].append(self.once(work))
        return {n: {"ms": median(t), "low": min(t), "high": max(t), "turns": float(turns)} for n, t in taken.items()}

    def peak(self) -> float | None:
        """GiB that were in use at once since :meth:`forget_peak`; None without a GPU."""
        return torch.cuda.max_memory_allocated(self.device) / 2**30 if self.cuda else None

    def forget_peak(self) -> None:
        if self.cuda:
            torch.cuda.empty_cache()
            torch.cuda.reset_peak_memory_stats(self.device)


def ceilings(clock: Clock, shapes: Mapping[str, tuple[int, int, int]], dtype: torch.dtype) -> dict[str, float | None]:
    """What this device reaches: TFLOP/s of plain and FP8 matrix products of these (rows, in, out), GB/s of a copy.

    ``best`` is the highest rate of all in the given precision, ``own`` the mean over the model's own shapes by the time
    they take.
    """
    device, told = clock.device, {}
    rates: dict[str, float] = {}
    flops = seconds = 0.0
    for name, (n, i, o) in shapes.items():
        a, b = torch.randn(n, i, device=device).to(dtype), torch.randn(o, i, device=device).to(dtype)
        ms = clock.race({"": lambda a=a, b=b: torch.nn.functional.linear(a, b)})[""]["ms"]
        rates[name] = 2.0 * n * i * o / ms / 1e9
        if name != "square":
            flops, seconds = flops + 2.0 * n * i * o, seconds + ms / 1e3
    told["best_tflops"], told["own_tflops"] = max(rates.values()), flops / seconds / 1e12
    told |= {f"{name}_tflops": rate for name, rate in rates.items()}
    told["fp8_tflops"] = fp8_rate(clock, max(shapes.values()))
    x = torch.randn((2**30 if clock.cuda else 2**24) // 4, device=device)
    y = torch.empty_like(x)
    ms = clock.race({"": lambda: y.copy_(x)})[""]["ms"]
    told["copy_gbs"] = 2.0 * x.numel() * 4 / ms / 1e6
    return told


def fp8_rate(clock: Clock, shape: tuple[int, int, int]) -> float | None:
    """TFLOP/s of an FP8 matrix product; None where the device has none."""
    if not clock.cuda or torch.cuda.get_device_capability(clock.device) < (9, 0):
        return None
    n, i, o = shape
    a, b = (torch.randn(m, i, device=clock.device).to(torch.float8_e4m3fn) for m in (n, o))
    one = torch.ones((), device=clock.device)

    def multiply() -> torch.Tensor:
        return torch._scaled_mm(a, b.t(), one, one, out_dtype=torch.bfloat16, use_fast_accum=True)

    try:
        return 2.0 * n * i * o / clock.race({"": multiply})[""]["ms"] / 1e9
    except RuntimeError:  # this build of torch has no such kernel
        return None
