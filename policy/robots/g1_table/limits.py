"""What the robot at the table may be commanded, for the rules of ``imagine.rewards.rules``."""

from __future__ import annotations

import numpy as np

from imagine.embodiment import Embodiment
from imagine.limits import Limits
from imagine.policy.robots.g1_table.scene import JOINT_LIMITS
from imagine.policy.robots.g1_table.world import HAND_HIGH, HAND_LOW

# Meant to lie beyond what demonstrations and policy command, so that they catch what no robot should be asked to do.
HAND_SPEED = 4.0  # m/s along an axis
HAND_JERK = 8000.0  # m/s^3
JOINT_SPEED = 12.0  # rad/s
APART = 0.05  # m between the hands
REACH = 0.02  # m beyond the workspace, whose edge the robot itself clips commands to


def limits_of(body: Embodiment) -> Limits:
    """Limits of an embodiment's actions: hands, joints or both, by the kinds of its action slices."""
    low: list[float | None] = []
    high: list[float | None] = []
    speed: list[float | None] = []
    jerk: list[float | None] = []
    hands = []
    for part in body.action:
        if part.kind == "position":
            hands.append((len(low), len(low) + 3))
        joints = part.kind == "joint"
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
