"""How long calls take, and how much of that is spent in networks."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import numpy as np


class Clock:
    """Time spent inside codec, transformer and the judge's model while it is on."""

    def __init__(self, model: Any, judge: Any) -> None:
        """``judge`` may be None, or anything with a ``model``."""
        self.model, self.inside, self.total = model, 0.0, 0.0
        self.parts = [(model.dit, "forward"), (model.dit, "prefill"), (model.codec, "decode")]
        if hasattr(judge, "model"):
            self.parts.append((judge.model, "forward"))

    def __enter__(self) -> Clock:
        self.saved = [(o, n, getattr(o, n)) for o, n in self.parts if hasattr(o, n)]
        for owner, name, call in self.saved:
            setattr(owner, name, self._timed(call))
        return self

    def _timed(self, call: Callable[..., Any]) -> Callable[..., Any]:
        def timed(*args: Any, **kwargs: Any) -> Any:
            begin = time.perf_counter()
            out = call(*args, **kwargs)
            self.inside += time.perf_counter() - begin
            return out

        return timed

    def __exit__(self, *_: object) -> None:
        for owner, name, _call in self.saved:
            delattr(owner, name)

    @property
    def share(self) -> float:
        """Of the whole time, the share inside."""
        return self.inside / max(self.total, 1e-9)


def median_seconds(call: Callable[[], Any], repeats: int, clock: Clock | None = None) -> float:
    """Median of so many timed calls, after one that is not timed; ``clock`` learns how long they took together."""
    call()
    if clock is not None:
        clock.inside = clock.total = 0.0
    times = []
    for _ in range(repeats):
        begin = time.perf_counter()
        call()
        times.append(time.perf_counter() - begin)
    if clock is not None:
        clock.total = sum(times)
    return float(np.median(times))
