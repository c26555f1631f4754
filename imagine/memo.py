"""Answers that are remembered, by objects that are pickled and copied."""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache
from typing import Generic, TypeVar

T = TypeVar("T")


class Memo(Generic[T]):
    """``functools.lru_cache`` of a bound method; a copy, or what comes out of a pickle, has forgotten everything."""

    def __init__(self, method: Callable[..., T], size: int) -> None:
        """Remember the ``size`` newest answers of ``method``, whose arguments are hashable."""
        self._method, self._size = method, size
        self._remembered = lru_cache(size)(method)

    def __call__(self, *arguments: object) -> T:
        """The method's answer."""
        return self._remembered(*arguments)

    def __reduce__(self) -> tuple[type[Memo[T]], tuple[Callable[..., T], int]]:
        return Memo, (self._method, self._size)
