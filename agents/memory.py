"""What a policy remembers of each episode, keyed on who is acted for and never on noise."""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from typing import Generic, TypeVar

import torch

from imagine.types import Context, ShapeError

T = TypeVar("T")


class EpisodeMemory(dict[Hashable, T], Generic[T]):
    """One value per episode, by the keys of :meth:`keys_of`."""

    def keys_of(self, n: int, episodes: Sequence[int] | None) -> list[Hashable]:
        """One key per row: its episode's number, or the row's own where there are none.

        Raises:
            ShapeError: there is not one episode per row.
        """
        if episodes is None:
            return [("row", i) for i in range(n)]
        if len(episodes) != n:
            raise ShapeError(f"got {len(episodes)} episodes for {n} rows; give one per row.")
        return [int(e) for e in episodes]

    def forget(self, episodes: Sequence[int] | None = None) -> None:
        """Forget these episodes, or all."""
        if episodes is None:
            self.clear()
        else:
            for episode in episodes:
                self.pop(int(episode), None)


class EpisodeContext:
    """What each episode showed when it began, since success often means "changed since then"."""

    def __init__(self) -> None:
        self._known = EpisodeMemory[Context]()

    def __call__(self, now: Context, episodes: Sequence[int] | None = None) -> Context:
        """The first contexts of these rows' episodes; an episode that is not known begins now."""
        keys = self._known.keys_of(len(now), episodes)
        named = [self._known.setdefault(key, now.index([row])).named() for row, key in enumerate(keys)]
        return Context(**{name: torch.cat([c[name] for c in named]) for name in named[0]})

    def forget(self, episodes: Sequence[int] | None = None) -> None:
        """Forget these episodes, or all."""
        self._known.forget(episodes)
