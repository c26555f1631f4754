"""What an embodiment is made of: camera views, and named slices of recorded state and action with their arithmetic."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Annotated, Any, Literal

import numpy as np
from pydantic import BaseModel, ConfigDict, Field, model_validator


class Frozen(BaseModel):
    """Plain values that never change; an unknown key is an error."""

    model_config = ConfigDict(extra="forbid", frozen=True)


class View(Frozen):
    """One camera and its place (top, left) on the canvas, in pixels."""

    name: str
    key: str
    height: Annotated[int, Field(gt=0)]
    width: Annotated[int, Field(gt=0)]
    top: int = 0
    left: int = 0


Kind = Literal["position", "rotation", "joint", "gripper"]
QUATERNIONS = {"quaternion_wxyz": 0, "quaternion_xyzw": 3}
"""Units of rotations given as four numbers, and where the real part stands."""


class Slice(Frozen):
    """A named range ``[start, stop)`` of a dataset feature.

    ``kind`` says what the numbers are: a position (x, y, z in m), a rotation (angles in rad, or a quaternion), joints
    (rad or m) or a gripper's opening; limits, flaws and angle differences follow from it. None is unknown.
    """

    name: str
    key: str
    start: Annotated[int, Field(ge=0)]
    stop: int
    unit: str
    kind: Kind | None = None

    @property
    def size(self) -> int:
        """How many numbers it holds."""
        return self.stop - self.start

    @property
    def wraps(self) -> bool:
        """Whether these are angles that start again at -pi after pi; joints do not, and count on."""
        return self.unit == "rad" and self.kind in (None, "rotation")

    @model_validator(mode="after")
    def _sized(self) -> Slice:
        if self.stop <= self.start:
            raise ValueError(f"slice {self.name!r} is [{self.start}, {self.stop}), expected stop above start")
        if self.unit in QUATERNIONS and self.size != 4:
            raise ValueError(f"slice {self.name!r} is a quaternion of {self.size} numbers, expected 4")
        return self


class ActionSlice(Slice):
    """A slice of the recorded action, and what the model makes of it.

    ``mode`` is ``absolute`` (a target; the model predicts it as recorded), ``relative`` (a target, of which the model
    predicts the difference to the state slice ``relative_to`` at the chunk's first tick) or ``delta`` (recorded, and
    predicted, as the displacement of one tick). Left out, it is relative where ``relative_to`` is given, else absolute.
    ``low`` and ``high`` bound the model's action, in ``unit``.
    """

    relative_to: str | None = None
    mode: Literal["absolute", "relative", "delta"] = "absolute"
    low: float
    high: float

    @model_validator(mode="before")
    @classmethod
    def _relative_by_default(cls, values: Any) -> Any:
        if isinstance(values, dict) and values.get("relative_to") is not None and "mode" not in values:
            return {**values, "mode": "relative"}
        return values

    @model_validator(mode="after")
    def _anchored(self) -> ActionSlice:
        if (self.mode == "relative") != (self.relative_to is not None):
            raise ValueError(
                f"action slice {self.name!r} has mode {self.mode} and relative_to {self.relative_to!r}; give "
                "relative_to for mode relative, and for no other"
            )
        if not self.low < self.high:
            raise ValueError(f"action slice {self.name!r} has low {self.low} and high {self.high}, expected low < high")
        return self


def picked(row: dict[str, np.ndarray], part: Slice) -> np.ndarray:
    """A slice (..., size) float32 of recorded features; of two quaternions of one rotation that with real part >= 0."""
    x = np.asarray(row[part.key], np.float32)[..., part.start : part.stop]
    if part.unit in QUATERNIONS:
        real = QUATERNIONS[part.unit]
        x = np.where(x[..., real : real + 1] < 0, -x, x)
    return x


def difference(part: Slice, x: np.ndarray, anchor: np.ndarray) -> np.ndarray:
    """From ``anchor`` to ``x``, both (..., size); angles the short way round, quaternions to the nearer of the two."""
    if part.unit in QUATERNIONS:
        x = np.where((x * anchor).sum(-1, keepdims=True) < 0, -x, x)
    return _wrapped(x - anchor) if part.wraps else x - anchor


def moved(part: Slice, x: np.ndarray, anchor: np.ndarray) -> np.ndarray:
    """Inverse of :func:`difference`: ``x`` from ``anchor`` on; angles in (-pi, pi], quaternions of length 1."""
    there = x + anchor
    if part.unit in QUATERNIONS:
        return there / np.maximum(np.linalg.norm(there, axis=-1, keepdims=True), 1e-6)
    return _wrapped(there) if part.wraps else there


def _wrapped(angle: np.ndarray) -> np.ndarray:
    """The same angle in (-pi, pi]; one that is there already keeps its bits."""
    turned = np.pi - (np.pi - angle) % (2 * np.pi)
    return np.where(np.abs(angle) <= np.pi, angle, turned).astype(np.float32)


def feature_names(slices: Iterable[Slice], key: str, size: int) -> list[str]:
    """One name per number of a feature, ``left_arm.0``, by the slices that cover it; ``action.16`` where none does."""
    names = [f"{key}.{i}" for i in range(size)]
    for s in slices:
        if s.key == key:
            names[s.start : s.stop] = [f"{s.name}.{i}" for i in range(s.size)]
    return names
