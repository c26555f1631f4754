"""What a robot may be commanded: bounds, speed, jerk, workspace and distance of hands, as plain numbers."""

from __future__ import annotations

from typing import Annotated

import numpy as np
from pydantic import BaseModel, ConfigDict, Field, model_validator

Bounds = tuple[float | None, ...]

SLACK = 1e-3
"""A breach smaller than this share of its allowance is rounding (a float32 command on its limit), not a breach."""


class Limits(BaseModel):
    """What a robot may be commanded. An empty tuple checks nothing, None leaves out one entry.

    Attributes:
        control_hz: actions per second.
        low: (A,) least command, robot units.
        high: (A,) largest command; set in the same entries as ``low``.
        velocity: (A,) largest speed, robot units per second.
        jerk: (A,) largest jerk, robot units per second cubed.
        hands: for each of up to two hands, the action slice (start, stop) that is its position x, y, z in m.
        workspace_low: (3,) corner of the box that hands stay in, m.
        workspace_high: (3,) opposite corner, m.
        apart: least distance between the two hands, m; 0 checks nothing.
    """

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    control_hz: Annotated[float, Field(gt=0)]
    low: Bounds = ()
    high: Bounds = ()
    velocity: Bounds = ()
    jerk: Bounds = ()
    hands: tuple[tuple[int, int], ...] = ()
    workspace_low: Bounds = ()
    workspace_high: Bounds = ()
    apart: Annotated[float, Field(ge=0)] = 0.0

    @property
    def action_dim(self) -> int | None:
        """A, or None where no limit is given per action."""
        given = [len(x) for x in (self.low, self.high, self.velocity, self.jerk) if x]
        return given[0] if given else None

    @model_validator(mode="after")
    def _consistent(self) -> Limits:
        lengths = {n: len(getattr(self, n)) for n in ("low", "high", "velocity", "jerk") if getattr(self, n)}
        if len(set(lengths.values())) > 1:
            raise ValueError(f"limits are for different numbers of actions: {lengths}; give A entries, or none.")
        _box("low and high", self.low, self.high)
        _box("workspace_low and workspace_high", self.workspace_low, self.workspace_high)
        for name in ("velocity", "jerk"):
            if wrong := [x for x in getattr(self, name) if x is not None and x <= 0]:
                raise ValueError(f"{name} holds {wrong[0]}, expected more than 0, or None for no limit.")
        if len(self.workspace_low) not in (0, 3):
            raise ValueError(f"the workspace has {len(self.workspace_low)} axes, expected 3: x, y, z in m.")
        if len(self.hands) > 2:
            raise ValueError(f"got {len(self.hands)} hands, expected at most 2.")
        for start, stop in self.hands:
            if start < 0 or stop - start != 3 or (self.action_dim is not None and stop > self.action_dim):
                raise ValueError(
                    f"hand ({start}, {stop}) is no slice of x, y, z among {self.action_dim or 'the'} actions; expected "
                    "stop = start + 3 within them."
                )
        if self.workspace_low and not self.hands:
            raise ValueError("a workspace is given, but no hands; say which action slices are positions of hands.")
        if self.apart and len(self.hands) != 2:
            raise ValueError(f"apart is {self.apart} m with {len(self.hands)} hand(s); expected 2 hands, or apart 0.")
        return self

    def breaches(self, path: np.ndarray) -> dict[str, np.ndarray]:
        """How far commands break the limits, at the worst moment, as a share of the allowance.

        With p_0 ... p_T the path and ``worst`` over all ticks but the first and all checked entries:

        - ``joint_limit``: worst of max(low - p, p - high) / (high - low). 0.1 is a tenth of the range beyond its end.
        - ``velocity``: worst of abs(p_t - p_(t-1)) hz / velocity - 1. 1 is twice the allowed speed.
        - ``jerk``: worst of abs(third difference of p) hz^3 / jerk - 1; of fewer than four points there is none.
        - ``workspace``: as ``joint_limit``, for each hand's position in the box.
        - ``two_arms``: 1 - d / apart, with d the least distance of the hands at any tick; 1 is one inside the other.
          Between ticks nothing is checked.

        Everything below :data:`SLACK` is 0: clean. p_0 is where the robot is, was not commanded and breaks no rule.

        Args:
            path: (..., T + 1, A) finite, absolute, robot units (rad, m); hands in m in one common frame.

        Returns:
            The five by name, each (...) float64, at least 0; ``two_arms`` at most 1.
        """
        # Third differences cancel leading digits and are multiplied by hz^3, hence double precision.
        path = np.asarray(path, np.float64)
        command, hz = path[..., 1:, :], self.control_hz
        hands = [command[..., start:stop] for start, stop in self.hands]
        boxed = [_outside(hand, self.workspace_low, self.workspace_high) for hand in hands]
        near = [1 - np.linalg.norm(hands[0] - hands[1], axis=-1) / self.apart] if self.apart else []
        return {
            "joint_limit": _worst(path, _outside(command, self.low, self.high)),
            "velocity": _worst(path, _beyond(np.diff(path, axis=-2) * hz, self.velocity)),
            "jerk": _worst(path, _beyond(np.diff(path, n=3, axis=-2) * hz**3, self.jerk)),
            "workspace": _worst(path, *boxed),
            "two_arms": _worst(path, *near),
        }


def _outside(x: np.ndarray, low: Bounds, high: Bounds) -> np.ndarray:
    """(..., checked entries): distance beyond the nearer end as a share of the range; negative inside."""
    at = [i for i, bound in enumerate(low) if bound is not None]
    down, up = (np.array([b[i] for i in at], np.float64) for b in (low, high))
    return np.asarray(np.maximum(down - x[..., at], x[..., at] - up) / (up - down))


def _beyond(rate: np.ndarray, most: Bounds) -> np.ndarray:
    """(..., checked entries): how far a rate exceeds its limit, as a share of the limit; negative within."""
    at = [i for i, bound in enumerate(most) if bound is not None]
    return np.asarray(np.abs(rate[..., at]) / np.array([most[i] for i in at], np.float64) - 1)


def _worst(path: np.ndarray, *excess: np.ndarray) -> np.ndarray:
    """The largest excess of each path (...), 0 where there is none."""
    lead = path.shape[:-2]
    flat = [x.reshape(*lead, -1) for x in excess]
    worst = np.concatenate([*flat, np.zeros((*lead, 1))], -1).max(-1)  # a rule that is not checked has no entries
    return np.where(worst > SLACK, worst, 0.0)


def _box(names: str, low: Bounds, high: Bounds) -> None:
    if len(low) != len(high):
        raise ValueError(f"{names} have {len(low)} and {len(high)} entries, expected equally many.")
    for i, (a, b) in enumerate(zip(low, high, strict=True)):
        if (a is None) != (b is None):
            raise ValueError(f"{names} hold {a} and {b} in entry {i}; expected both or neither, a range has two ends.")
        if a is not None and b is not None and a >= b:
            raise ValueError(f"{names} hold {a} and {b} in entry {i}, expected the first to be less.")
