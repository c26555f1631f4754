"""FunctionJudge: a reward of one's own, as a plain function of pictures and instructions."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from imagine.types import Clip, RewardModel, Score, ShapeError


class FunctionJudge:
    """A ``RewardModel`` around ``function(frames, instructions)``.

    ``frames`` is (B, 1 + F, H, W, 3) uint8 numpy, the episode's first frame and then the newest chunk; ``instructions``
    are B texts. The function returns one of

    - (B,) probabilities of success in [0, 1]: the reward is 1, and the episode ends, from 0.5 on;
    - a pair of (B,) reward, any numbers, and (B,) probability of success, which ends the episode from 0.5 on;
    - an :class:`imagine.types.Score`.

    Where a number is NaN the judge could not tell, and the episode goes on unpaid.
    """

    def __init__(self, function: Callable[..., Any]) -> None:
        """``function`` is shown every imagined chunk."""
        self.function = function

    def __call__(self, clip: Clip, instruction: Sequence[str]) -> Score:
        """Judge B clips; see :class:`imagine.types.RewardModel`.

        Raises:
            ShapeError: the function returned anything else.
        """
        answer = self.function(clip.decode().cpu().numpy(), list(instruction))
        if isinstance(answer, Score):
            return answer
        pair = isinstance(answer, tuple)
        columns = [self._column(part, len(instruction)) for part in (answer if pair else (answer,))]
        if len(columns) not in ((2,) if pair else (1,)):
            raise ShapeError(f"{self._name} returned {len(columns)} columns, expected reward and success.")
        success = columns[-1]
        valid = torch.stack([column.isfinite() for column in columns]).all(0)
        known = success.nan_to_num(0.0)
        if ((known < 0) | (known > 1)).any():
            raise ShapeError(
                f"{self._name} returned success from {float(known.min()):.3g} to {float(known.max()):.3g}, expected "
                "probabilities in [0, 1]; return (reward, success) where the reward is another number."
            )
        done = (known >= 0.5) & valid
        reward = columns[0].nan_to_num(0.0) if pair else done.float()
        return Score(reward, known, valid, {"success": known}, terminated=done)

    @property
    def _name(self) -> str:
        return f"judge {getattr(self.function, '__name__', type(self.function).__name__)}"

    def _column(self, part: Any, n: int) -> Tensor:
        try:
            column = torch.as_tensor(np.asarray(part, np.float32))
        except (TypeError, ValueError):
            raise ShapeError(f"{self._name} returned {type(part).__name__}, expected ({n},) numbers.") from None
        if column.shape != (n,):
            raise ShapeError(f"{self._name} returned shape {tuple(column.shape)} for {n} clips, expected ({n},).")
        return column


def as_judge(function: Callable[..., Any]) -> RewardModel:
    """A judge of any callable: as it is if its first parameter is called ``clip``, else as a :class:`FunctionJudge`.

    A callable of (``clip``, instructions) is a ``RewardModel`` already: it is given an :class:`imagine.types.Clip` and
    returns a :class:`imagine.types.Score`. Every other is shown frames.
    """
    first = next(iter(inspect.signature(function).parameters), "")
    return function if first == "clip" else FunctionJudge(function)
