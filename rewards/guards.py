"""Guards against a judge that can be fooled: a judged success counts only where several checks agree.

A policy that learns from a judge finds whatever the judge mistakes for success. Negative controls and a second judge
(:mod:`imagine.rewards.negative_controls`, :mod:`imagine.rewards.shadow`) tell whether these guards are enough.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from pydantic import BaseModel, ConfigDict
from torch import Tensor

from imagine.rewards.rules import Limits, blurred, check_actions, frozen, noisy
from imagine.types import Clip, RewardModel, Score, ShapeError


class GuardConfig(BaseModel):
    """When a judged success does not count."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    inverse_error: float | None = None  # normalised action units between what was commanded and what the video shows
    blur: float | None = None  # share of the first frame's sharpness that may be lost
    noise: float | None = None  # share by which the newest frame may be sharper than the first one
    moved: float | tuple[float, ...] = 0.03  # displacement, robot units, from which on a picture must change; or (A,)
    limits: Limits | None = None  # of the commanded chunk


class GuardedJudge:
    """A ``RewardModel``: success is what the judge says, and the video follows the actions, and it is neither frozen
    nor blurred nor noise, and the commanded chunk keeps the rules.

    Every part is reported in ``Score.terms``: the judge's own under their names, ``inverse_error``, ``frozen``,
    ``blurred``, ``noisy`` and one per rule, where larger is worse; ``vetoed`` is 1 where a guard overruled a judged
    success. A clip that a guard overrules earns no reward above 0; a negative one it keeps.
    """

    def __init__(self, judge: RewardModel, cfg: GuardConfig) -> None:
        """Guard a judge.

        Args:
            judge: whose verdict is guarded.
            cfg: which guards stand, and where.
        """
        self.judge, self.cfg = judge, cfg

    def __call__(self, clip: Clip, instruction: Sequence[str]) -> Score:
        """Judge B clips; see :class:`imagine.types.RewardModel`.

        Raises:
            ShapeError: a guard needs the clip's action, pose or inverse error, and it has none.
        """
        score, cfg = self.judge(clip, instruction), self.cfg
        terms: dict[str, Tensor] = {}
        clean = torch.ones_like(score.valid)
        if cfg.inverse_error is not None:
            terms["inverse_error"] = _needed(clip.inverse_error, "inverse_error")
            clean &= terms["inverse_error"] <= cfg.inverse_error
        if cfg.limits is not None:
            action, pose = _needed(clip.action, "action"), _needed(clip.pose, "pose")
            rules = check_actions(action, pose, cfg.limits)
            terms |= rules
            clean &= torch.stack(list(rules.values())).amax(0) <= 0
        if clip.action is not None and clip.pose is not None:
            far = (clip.action - clip.pose[:, None]).abs() > torch.tensor(cfg.moved, device=clip.action.device)
            terms["frozen"] = frozen(clip.decode([1, -1]), far.any(2).any(1).float())
            clean &= terms["frozen"] <= 0
        for name, most, measure in (("blurred", cfg.blur, blurred), ("noisy", cfg.noise, noisy)):
            if most is not None:
                shown = clip.decode([0, -1])
                terms[name] = measure(shown[:, 1:], shown[:, 0])
                clean &= terms[name] <= most
        terms["vetoed"] = (score.terminated & ~clean).float()
        return Score(
            torch.where(clean, score.reward, score.reward.clamp(max=0)),
            score.success * clean,
            score.valid,
            {**score.terms, **terms},
            terminated=score.terminated & clean,
        )


def _needed(value: Tensor | None, name: str) -> Tensor:
    if value is None:
        raise ShapeError(f"the clip has no {name}, which a guard needs; set GuardConfig.{name} to None, or give it.")
    return value
