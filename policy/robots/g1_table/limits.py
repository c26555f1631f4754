"""What the robot at the table may be commanded, for the rules of ``imagine.rewards.rules``."""

from __future__ import annotations

from functools import cache
from pathlib import Path

import numpy as np

from imagine.embodiment import Embodiment, Kind, Slice
from imagine.limits import Limits
from imagine.policy.robots.g1_table.scene import JOINT_LIMITS
from imagine.policy.robots.g1_table.world import HAND_HIGH, HAND_LOW

FOLDER = Path(__file__).parent
# Meant to lie beyond what demonstrations and policy command, so that they catch what no robot should be asked to do.
HAND_SPEED = 4.0  # m/s along an axis
HAND_JERK = 8000.0  # m/s^3
JOINT_SPEED = 12.0  # rad/s
APART = 0.05  # m between the hands
REACH = 0.02  # m beyond the workspace, whose edge the robot itself clips commands to


@cache
def _kinds() -> dict[str, Kind | None]:
    bodies = [Embodiment.load(path) for path in sorted(FOLDER.glob("*.yaml"))]
    return {part.name: part.kind for body in bodies for part in (*body.state, *body.action)}


def kind_of(part: Slice) -> Kind | None:
    """The kind of a slice of this robot; models trained before slices had kinds know only its name."""
    return part.kind or _kinds().get(part.name)


def limits_of(body: Embodiment) -> Limits:
    """Limits of an embodiment's actions: hands, joints or both, by the kinds of its action slices."""
    low: list[float | None] = []
    high: list[float | None] = []
    speed: list[float | None] = []
    jerk: list[float | None] = []
    hands = []
    for part in body.action:
        if kind_of(part) == "position":
            hands.append((len(low), len(low) + 3))
        joints = kind_of(part) == "joint"
        for i in range(part.size):
            ends = JOINT_LIMITS["left" if "left" in part.name else "right"][i] if joints else (None, None)
            low.append(ends[0])
            high.append(ends[1])
            hand = bool(hands) and hands[-1][0] <= len(speed) < hands[-1][1]
            speed.append(HAND_SPEED if hand else JOINT_SPEED if joints else None)
            jerk.append(HAND_JERK if hand else None)
    box = ((HAND_LOW - REACH), (HAND_HIGH + REACH)) if hands else (np.zeros(0), np.zeros(0))
    return Limits(
        control_hz=body.control_hz,
        low=tuple(low),
        high=tuple(high),
        velocity=tuple(speed),
        jerk=tuple(jerk),
        hands=tuple(hands),
        workspace_low=tuple(float(x) for x in box[0]),
        workspace_high=tuple(float(x) for x in box[1]),
        apart=APART if len(hands) == 2 else 0.0,
    )
