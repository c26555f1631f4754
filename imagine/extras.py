"""Libraries that only some commands need, by the extra of ``imagine-wam`` that installs them."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from importlib import import_module
from threading import RLock
from typing import Any

from imagine.types import ImagineError

LIBRARIES: dict[str, tuple[str, ...]] = {
    "train": ("accelerate", "peft", "tensorboard"),
    "rl": ("stable_baselines3", "ray"),
    "vlm": ("openai",),
    "wan": ("diffusers", "accelerate"),
    "sim": ("mujoco",),
}
"""Import names by extra; what is in several is told by its first unless :func:`extra` names another."""


TRANSFORMERS_LOADING = RLock()
"""Held while ``from_pretrained`` of transformers runs: it changes switches of the whole process and puts them back, and
two threads that do so together leave them wrong for good."""


class MissingExtra(ImagineError, ImportError):
    """A library that is optional is not installed; the message says how to install it."""


def explained(error: ModuleNotFoundError, extra: str | None = None) -> MissingExtra | None:
    """The same failure with its remedy; None for a module that no extra installs."""
    library = (error.name or "").partition(".")[0]
    known = [name for name, libraries in LIBRARIES.items() if library in libraries]
    if not known:
        return None
    which = extra if extra in known else known[0]
    return MissingExtra(f'{library} is not installed; `pip install "imagine-wam[{which}]"` brings it.')


class _LazyModule:
    def __init__(self, name: str, which: str):
        self._name, self._extra = name, which

    def __getattr__(self, attribute: str) -> Any:
        with extra(self._extra):
            module = import_module(self._name)
        self.__dict__.update(vars(module))
        return getattr(module, attribute)


def lazy_module(name: str, which: str) -> Any:
    """A library of the extra ``which`` that is imported when first used, where :class:`MissingExtra` is raised."""
    return _LazyModule(name, which)


@contextmanager
def extra(name: str) -> Iterator[None]:
    """Put around imports of libraries that the extra ``name`` installs.

    Raises:
        MissingExtra: one of them is not there.
    """
    try:
        yield
    except ModuleNotFoundError as error:
        told = explained(error, name)
        if told is None:
            raise
        raise told from None
