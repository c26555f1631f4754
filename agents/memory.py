"""What a policy remembers of each episode, keyed on who is acted for and never on noise."""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from typing import Generic, TypeVar

import torch
from torch import Tensor

from imagine.model.model import WorldActionModel
from imagine.types import Context, ShapeError
from imagine.world.trajectory import initial, interpolate

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
    """What each episode showed when it began, since success often means "changed since then", and its way since."""

    def __init__(self, model: WorldActionModel) -> None:
        """``model`` reads what is seen."""
        self._known = EpisodeMemory[tuple[Context, Tensor]]()
        self.model = model

    def __call__(self, now: Context, episodes: Sequence[int] | None = None) -> tuple[Context, Tensor]:
        """The first contexts of these rows' episodes and their trajectories (B, T, P + S A).

        An episode that is not known begins now. Between two looks, a chunk apart, the way is taken to be straight.
        """
        keys = self._known.keys_of(len(now), episodes)
        for row, key in enumerate(keys):
            here = now.index([row])
            proprio = here.proprio[:, -1]
            if key in self._known:
                first, path = self._known[key]
                self._known[key] = first, interpolate(self.model, path, proprio)
            else:
                self._known[key] = here, initial(self.model, proprio)
        named = [self._known[key][0].named() for key in keys]
        start = Context(**{name: torch.cat([c[name] for c in named]) for name in named[0]})
        return start, torch.cat([self._known[key][1] for key in keys])

    def forget(self, episodes: Sequence[int] | None = None) -> None:
        """Forget these episodes, or all."""
        self._known.forget(episodes)
