"""When control ticks begin, and how long thinking takes: on the wall's clock, or simulated."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from concurrent.futures import Future, wait
from dataclasses import dataclass
from typing import Any, Generic, Protocol, TypeVar

from imagine.policy.worker import Worker

Result = TypeVar("Result")
Result_co = TypeVar("Result_co", covariant=True)


class Pending(Protocol[Result_co]):
    """An answer that is on its way."""

    def ready(self, tick: int) -> bool:
        """Whether it is there at a tick."""
        ...

    def result(self) -> Result_co:
        """The answer, once it is there; raises what kept it from coming."""
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
class _Answering(Generic[Result]):
    future: Future[Result]
    at: int = 0

    def ready(self, tick: int) -> bool:
        return tick >= self.at and self.future.done()

    def result(self) -> Result:
        return self.future.result()


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
        future: Future[Result] = Future()
        try:
            future.set_result(work())
        except Exception as error:
            future.set_exception(error)
        return _Answering(future, tick + self.delay)


class WallClock:
    """Ticks begin when they are due; thinking goes on in a thread beside them."""

    def __init__(self, hz: float, latency: float = 0.0) -> None:
        """``latency``: seconds that every answer takes at least, to try what a slower machine or network does."""
        self.hz, self.latency = hz, latency
        self._worker, self._last = Worker(), list[Future[Any]]()

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

        self._last = [self._worker.submit(answered)]
        return _Answering(self._last[0])

    def close(self) -> None:
        """End the thread; an answer that is not there in a few seconds is given up."""
        self._worker.shutdown()
        wait(self._last, timeout=3)
