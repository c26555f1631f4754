"""What a person can command of a robot: made of its embodiment's slices, so that any robot can be played."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from imagine.embodiment import QUATERNIONS, ActionSlice, Embodiment
from imagine.types import ShapeError

MOVES = ((("w", "s"), ("a", "d"), ("r", "f"), "e"), (("i", "k"), ("j", "l"), ("y", "h"), "u"))
"""Keys of x, y, z, forward, left and up first, and of the gripper, of the first hand and of the second."""
SPARE = (("1", "2"), ("3", "4"), ("5", "6"), ("7", "8"), ("9", "0"), ("z", "x"), ("c", "v"), ("b", "n"), ("t", "g"))
"""Keys of all other axes; where they are used up, the page has buttons."""


@dataclass(frozen=True)
class Control:
    """One number of an action.

    Attributes:
        index: which.
        group: the hand, or the robot, that it belongs to.
        name: ``x``, ``joint 3``, ``gripper``.
        unit: of the embodiment's.
        is_switch: it is set to ``low`` or ``high``; others are moved while they are held.
        low: least value, in ``unit``.
        high: greatest value.
        reach: how far a chunk moves it at full deflection, in ``unit``.
        keys: of plus and minus, or of the switch; empty where none is left.
    """

    index: int
    group: str
    name: str
    unit: str
    is_switch: bool
    low: float
    high: float
    reach: float
    keys: tuple[str, ...]


class Controls:
    """All controls of a robot, and the chunk that they command.

    Attributes:
        each: the controls, in the order of the action.
    """

    def __init__(self, body: Embodiment, std: np.ndarray) -> None:
        """Make controls of an embodiment's action slices.

        Args:
            body: the robot's.
            std: (A,) of the actions that the model was trained on, robot units: full deflection leads as far in a chunk
                as twice this, so that what is commanded is what the model knows.
        """
        self.body = body
        ticks = np.where(body.is_per_tick, body.chunk_actions, 1)
        self._reach = np.minimum(2 * np.asarray(std, np.float32), body.action_high) * ticks
        absolute = ~body.is_difference
        self._reach[absolute] = ((body.action_high - body.action_low) / 10)[absolute]
        self.each = tuple(self._made())

    def _made(self) -> Iterator[Control]:
        at, hands, spare = 0, list[str](), iter(SPARE)
        grips, absolute = self.body.is_gripper, ~self.body.is_difference
        for part in self.body.action:
            group = _group(part.name, self.body.robot_type)
            if group not in hands:
                hands.append(group)
            own = MOVES[hands.index(group)] if hands.index(group) < len(MOVES) else None
            for i in range(part.size if part.unit not in QUATERNIONS else 0):
                is_switch, keys = bool(grips[at + i] and absolute[at + i]), tuple[str, ...]()
                if own is not None and is_switch and part.size == 1:
                    keys = (str(own[3]),)
                elif own is not None and part.kind == "position" and i < 3:
                    keys = tuple(own[i])
                else:
                    keys = next(spare, ())
                name, reach = _name(part, i, is_switch), float(self._reach[at + i])
                yield Control(at + i, group, name, part.unit, is_switch, part.low, part.high, reach, keys)
            at += part.size

    def target(self, proprio: np.ndarray) -> np.ndarray:
        """(A,) float32, what absolute actions command at first: that nothing moves."""
        return self.body.hold(proprio)[0]

    def switched(self, target: np.ndarray, index: int) -> np.ndarray:
        """The target with one switch turned to its other end.

        Raises:
            ShapeError: there is no such switch.
        """
        found = next((c for c in self.each if c.index == index and c.is_switch), None)
        if found is None:
            raise ShapeError(f"there is no switch {index!r}, expected one of {[c.index for c in self.each]}.")
        out = target.copy()
        out[index] = found.low if target[index] > (found.low + found.high) / 2 else found.high
        return out

    def chunk(self, deflection: Sequence[float] | np.ndarray, target: np.ndarray) -> np.ndarray:
        """The chunk that a person commands.

        Args:
            deflection: (A,) in [-1, 1], how far each control is pushed.
            target: (A,) robot units, where absolute actions are now.

        Returns:
            (K, A) float32, robot units, within the bounds: from standing still, at constant speed.

        Raises:
            ShapeError: the deflection is misshapen or not finite.
        """
        push = np.asarray(deflection, np.float32)
        if push.shape != (self.body.action_dim,) or not np.isfinite(push).all():
            raise ShapeError(f"deflection has shape {push.shape}, expected ({self.body.action_dim},) finite numbers.")
        known = np.zeros(len(push), bool)
        known[[c.index for c in self.each if not c.is_switch]] = True
        push = np.where(known, np.clip(push, -1, 1), 0) * self._reach
        count = self.body.chunk_actions
        ramp = np.linspace(0, 1, count + 1, dtype=np.float32)[1:, None] * push
        chunk = np.where(self.body.is_per_tick, push / count, ramp)
        chunk = np.where(self.body.is_difference, chunk, target + chunk)
        return np.clip(chunk, self.body.action_low, self.body.action_high).astype(np.float32)

    def after(self, target: np.ndarray, chunk: np.ndarray) -> np.ndarray:
        """(A,) where absolute actions are once a chunk (K, A) has been done."""
        return np.where(self.body.is_difference, target, chunk[-1]).astype(np.float32)


def _group(name: str, robot: str) -> str:
    words = name.split("_")
    return next((f"{side} hand" for side in ("left", "right") if side in words), robot.replace("_", " "))


def _name(part: ActionSlice, i: int, is_switch: bool) -> str:
    if is_switch:
        return "gripper" if part.size == 1 else f"gripper {i + 1}"
    if part.kind == "position" and part.size <= 3:
        return "xyz"[i]
    plain = part.kind or part.name.replace("_", " ")
    return plain if part.size == 1 else f"{plain} {i + 1}"
