"""What a robot may be commanded: bounds, speed, jerk, workspace and distance of hands, as plain numbers."""

from __future__ import annotations

from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field, model_validator

Bounds = tuple[float | None, ...]


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


def _box(names: str, low: Bounds, high: Bounds) -> None:
    if len(low) != len(high):
        raise ValueError(f"{names} have {len(low)} and {len(high)} entries, expected equally many.")
    for i, (a, b) in enumerate(zip(low, high, strict=True)):
        if (a is None) != (b is None):
            raise ValueError(f"{names} hold {a} and {b} in entry {i}; expected both or neither, a range has two ends.")
        if a is not None and b is not None and a >= b:
            raise ValueError(f"{names} hold {a} and {b} in entry {i}, expected the first to be less.")
