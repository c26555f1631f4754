"""When control ticks begin, and how long thinking takes: on the wall's clock, or simulated."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import Generic, Protocol, TypeVar

Result = TypeVar("Result")
Result_co = TypeVar("Result_co", covariant=True)


class Pending(Protocol[Result_co]):
    """An answer that is on its way."""

    def ready(self, tick: int) -> bool:
        """Whether it is there at a tick."""
        ...

    def result(self) -> Result_co:
        """The answer, once it is there."""
        ...


class Clock(Protocol):
    """When ticks begin, and how long thinking takes."""

    def start(self) -> None:
        """Tick 0 begins now."""
        ...

    def wait(self, tick: int) -> float:
        """Return when a tick begins, and by how many seconds that is too late."""
        ...

    def submit(self, work: Callable[[], Result], tick: int) -> Pending[Result]:
        """Have a question answered that was asked at a tick."""
        ...


@dataclass(frozen=True)
class _Ready(Generic[Result]):
    answer: Result
    at: int

    def ready(self, tick: int) -> bool:
        return tick >= self.at

    def result(self) -> Result:
        return self.answer


class SimulatedClock:
    """Ticks follow each other as fast as they can; thinking takes as many of them as is said."""

    def __init__(self, hz: float, latency: float = 0.0) -> None:
        """``latency`` in seconds, rounded up to ticks."""
        self.delay = math.ceil(latency * hz - 1e-9)

    def start(self) -> None:
        """See :class:`Clock`."""

    def wait(self, tick: int) -> float:
        """See :class:`Clock`."""
        return 0.0

    def submit(self, work: Callable[[], Result], tick: int) -> Pending[Result]:
        """See :class:`Clock`."""
        return _Ready(work(), tick + self.delay)


class WallClock:
    """Ticks begin when they are due; thinking goes on in a thread beside them."""

    def __init__(self, hz: float, latency: float = 0.0) -> None:
        """``latency``: seconds that every answer takes at least, to try what a slower machine or network does."""
        self.hz, self.latency = hz, latency
        self._worker = ThreadPoolExecutor(1, "think")

    def start(self) -> None:
        """See :class:`Clock`."""
        self._begin = time.monotonic()

    def wait(self, tick: int) -> float:
        """See :class:`Clock`."""
        due = self._begin + tick / self.hz
        if (left := due - time.monotonic()) > 0:
            time.sleep(left)
        return max(0.0, time.monotonic() - due)

    def submit(self, work: Callable[[], Result], tick: int) -> Pending[Result]:
        """See :class:`Clock`."""
        asked = time.monotonic()

        def answered() -> Result:
            answer = work()
            time.sleep(max(0.0, asked + self.latency - time.monotonic()))
            return answer

        return _InThread(self._worker.submit(answered))

    def close(self) -> None:
        """Wait for the thread."""
        self._worker.shutdown(cancel_futures=True)


@dataclass(frozen=True)
class _InThread(Generic[Result]):
    future: Future[Result]

    def ready(self, tick: int) -> bool:
        return self.future.done()

    def result(self) -> Result:
        return self.future.result()
