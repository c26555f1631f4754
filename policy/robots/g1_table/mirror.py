"""The table in a mirror: whatever is learnt of one hand holds for the other, so a judge is shown both."""

from __future__ import annotations

import torch
from torch import Tensor

from imagine.embodiment import Slice
from imagine.model.model import WorldActionModel
from imagine.policy.robots.g1_table.limits import kind_of


class Mirror:
    """Turns paths, places and words into their mirror images.

    The robot's sides are the parts of its state and action named ``left_…`` and ``right_…``; of a hand's position the
    second number points to the left.
    """

    def __init__(self, model: WorldActionModel, words: tuple[str, ...], places: tuple[int, ...]) -> None:
        """``places`` are numbers of proprioception, as for :class:`imagine.rewards.trajectory.TrajectoryConfig`."""
        body = model.body
        state = {part.name: part for part in body.state}
        order, sign = _swapped([state[name] for name in body.proprio])
        moves, turned = _swapped(list(body.action))
        free = model.anchored == 0
        mean, std = (x[model.anchor] for x in (model.proprio_mean, model.proprio_std))
        mean, std = mean.masked_fill(free, 0.0), std.masked_fill(free, 1.0)
        self._proprio = _affine(order, sign, model.proprio_mean, model.proprio_std)
        self._led = _affine(moves, turned, mean, std)
        self._places = list(places)
        other = {"left": "right", "right": "left"}
        self._words = [words.index(other[w]) if other.get(w) in words else i for i, w in enumerate(words)]

    def trajectory(self, trajectory: Tensor) -> Tensor:
        """(..., P + S A), as :mod:`imagine.world.trajectory` lays it out."""
        p, a = len(self._proprio[0]), len(self._led[0])
        proprio, led = trajectory[..., :p], trajectory[..., p:].unflatten(-1, (-1, a))
        return torch.cat([_turn(proprio, self._proprio), _turn(led, self._led).flatten(-2)], -1)

    def place(self, place: Tensor) -> Tensor:
        """(..., places), normalised."""
        whole = place.new_zeros(*place.shape[:-1], len(self._proprio[0]))
        whole[..., self._places] = place
        return _turn(whole, self._proprio)[..., self._places]

    def words(self, words: Tensor) -> Tensor:
        """(..., W) counts."""
        return words[..., self._words]

    @staticmethod
    def moved(moved: Tensor) -> Tensor:
        """(..., 3) how far a thing moved."""
        return moved * moved.new_tensor([1.0, -1.0, 1.0])


_Affine = tuple[list[int], Tensor, Tensor]


def _swapped(parts: list[Slice]) -> tuple[list[int], Tensor]:
    """Where each number of the mirror image comes from, and its sign."""
    begin, at = dict[str, int](), 0
    for part in parts:
        begin[part.name] = at
        at += part.stop - part.start
    order, sign = [], []
    for part in parts:
        side, _, rest = part.name.partition("_")
        twin = {"left": "right_", "right": "left_"}.get(side, f"{side}_") + rest
        size, whence = part.stop - part.start, begin.get(twin, begin[part.name])
        order += [whence + i for i in range(size)]
        sign += [-1.0 if kind_of(part) == "position" and i == 1 else 1.0 for i in range(size)]
    return order, torch.tensor(sign)


def _affine(order: list[int], sign: Tensor, mean: Tensor, std: Tensor) -> _Affine:
    return order, sign * std[order] / std, (sign * mean[order] - mean) / std


def _turn(x: Tensor, how: _Affine) -> Tensor:
    order, scale, offset = how
    return x[..., order] * scale + offset
