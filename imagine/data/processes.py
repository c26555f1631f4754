"""Worker processes as data work needs them: spawned, one thread each, and gone when the parent is gone."""

from __future__ import annotations

import os
import sys
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from multiprocessing import connection, get_context, parent_process

from imagine.types import ImagineError

SPAWN = get_context("spawn")
_THREADS = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS")


@contextmanager
def process_pool(
    workers: int, start: Callable[..., None], arguments: tuple[object, ...]
) -> Iterator[ProcessPoolExecutor]:
    """A pool whose processes first run ``start(*arguments)``; when the body fails, waiting work is dropped.

    Raises:
        ImagineError: a process died.
    """
    with _one_thread():
        pool = ProcessPoolExecutor(workers, SPAWN, _begin, (start, arguments))
        try:
            yield pool
        except BrokenProcessPool as error:
            raise ImagineError(
                "a worker process died, expected it to live as long as its pool: too little memory, or a script that "
                'starts processes without an `if __name__ == "__main__":` guard. Mend that, or use fewer workers; '
                "what is finished is kept."
            ) from error
        except KeyboardInterrupt:
            for process in list((pool._processes or {}).values()):
                process.terminate()  # what they were about would keep us for minutes
            raise
        finally:
            pool.shutdown(wait=True, cancel_futures=True)


def _begin(start: Callable[..., None], arguments: tuple[object, ...]) -> None:
    """Runs once in each process."""
    threading.Thread(target=_die_with_parent, daemon=True).start()
    torch = sys.modules.get("torch")
    if torch is not None:
        torch.set_num_threads(1)
    start(*arguments)


def _die_with_parent() -> None:
    """Workers of a killed parent would wait for work for ever, and hold their files open."""
    parent = parent_process()
    if parent is not None:
        connection.wait([parent.sentinel])
        os._exit(1)


@contextmanager
def _one_thread() -> Iterator[None]:
    """Children inherit the environment, and numpy reads it when they import it: it must be set here."""
    before = {name: os.environ.get(name) for name in _THREADS}
    os.environ.update(dict.fromkeys(_THREADS, "1"))
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value
