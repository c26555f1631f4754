"""An embodiment file: which slices of a dataset or robot are proprioception, actions and cameras, and their units.

It is data (YAML), carried inside every model folder, so that nothing outside a robot's own folder knows the robot.
Slices are named; positions in a vector are never assumed (facts: AgiBot ports disagree on the order).
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import numpy as np
import yaml
from pydantic import Field, ValidationError, model_validator

from imagine.slices import QUATERNIONS, ActionSlice, Frozen, Kind, Slice, View, difference, moved, picked
from imagine.types import ImagineError, ShapeError, first_fault

__all__ = ["QUATERNIONS", "ActionSlice", "Embodiment", "Kind", "Slice", "View"]

VISIBLE = 0.03
"""See :attr:`Embodiment.visible_motion`."""


class Embodiment(Frozen):
    """How a robot's data become a model's tensors and back. Load with :meth:`load`."""

    name: str
    robot_type: str
    control_hz: Annotated[int, Field(gt=0)]
    chunk_actions: Annotated[int, Field(gt=0)]
    chunk_frames: Annotated[int, Field(gt=0)]
    canvas_height: int
    canvas_width: int
    views: tuple[View, ...]
    state: tuple[Slice, ...]
    proprio: tuple[str, ...]
    action: tuple[ActionSlice, ...]

    @model_validator(mode="after")
    def _consistent(self) -> Embodiment:
        names = {s.name for s in self.state}
        for wanted in [*self.proprio, *(a.relative_to for a in self.action if a.relative_to)]:
            if wanted not in names:
                raise ValueError(f"slice {wanted!r} is used but not among state slices {sorted(names)}")
        for a in self.action:
            if a.relative_to and a.size != self._state(a.relative_to).size:
                raise ValueError(
                    f"action slice {a.name!r} has {a.size} numbers, its anchor {a.relative_to!r} another number"
                )
        if self.chunk_actions % self.chunk_frames:
            raise ValueError(f"chunk_actions {self.chunk_actions} is no multiple of chunk_frames {self.chunk_frames}")
        for v in self.views:
            if v.top + v.height > self.canvas_height or v.left + v.width > self.canvas_width:
                raise ValueError(f"view {v.name!r} leaves the canvas {self.canvas_height}x{self.canvas_width}")
        return self

    @classmethod
    def load(cls, path: str | Path) -> Embodiment:
        """Read an embodiment YAML file.

        Raises:
            ImagineError: the file is missing, or a key is unknown, missing or inconsistent.
        """
        path = Path(path)
        if not path.is_file():
            raise ImagineError(f"embodiment file {path} does not exist; write one after docs/embodiment.md.")
        try:
            values = yaml.safe_load(path.read_text())
        except yaml.YAMLError as error:
            raise ImagineError(f"embodiment file {path} is not YAML: {' '.join(str(error).split())}") from None
        return cls.read(values, f"embodiment file {path}")

    @classmethod
    def read(cls, values: Any, source: str) -> Embodiment:
        """Make one of plain values; ``source`` names them in messages.

        Raises:
            ImagineError: a key is unknown, missing or inconsistent.
        """
        try:
            return cls.model_validate(values)
        except ValidationError as error:
            where, what = first_fault(error)
            raise ImagineError(f"{source}: {where + ': ' if where else ''}{what}.") from None

    @property
    def frame_stride(self) -> int:
        """Control ticks between two frames that the model sees."""
        return self.chunk_actions // self.chunk_frames

    @property
    def proprio_dim(self) -> int:
        """P."""
        return sum(self._state(n).size for n in self.proprio)

    @property
    def action_dim(self) -> int:
        """A."""
        return sum(a.size for a in self.action)

    @property
    def action_low(self) -> np.ndarray:
        """(A,) float32, robot units."""
        return np.concatenate([np.full(a.size, a.low, np.float32) for a in self.action])

    @property
    def action_high(self) -> np.ndarray:
        """(A,) float32, robot units."""
        return np.concatenate([np.full(a.size, a.high, np.float32) for a in self.action])

    @property
    def action_names(self) -> list[str]:
        """One name per action dimension, as ``left_eef_position.0``."""
        return [f"{a.name}.{i}" for a in self.action for i in range(a.size)]

    def _state(self, name: str) -> Slice:
        return next(s for s in self.state if s.name == name)

    def proprio_of(self, row: dict[str, np.ndarray]) -> np.ndarray:
        """Pick proprioception (..., P) float32 out of recorded features ``{key: (..., S)}``."""
        return np.concatenate([picked(row, self._state(n)) for n in self.proprio], -1)

    def anchor_of(self, row: dict[str, np.ndarray]) -> np.ndarray:
        """What relative actions are measured from: (..., A) float32, zero where an action is absolute."""
        parts = []
        for a in self.action:
            if a.relative_to is None:
                key = self.state[0].key
                parts.append(np.zeros((*np.asarray(row[key]).shape[:-1], a.size), np.float32))
            else:
                parts.append(picked(row, self._state(a.relative_to)))
        return np.concatenate(parts, -1)

    def relative_action(self, absolute: np.ndarray, anchor: np.ndarray) -> np.ndarray:
        """The model's action (..., A) of a recorded one, given :meth:`anchor_of`; angles go the short way round.

        Of the two quaternions of one rotation the one nearer the anchor is meant.
        """
        return self._each(absolute, anchor, difference)

    def absolute_action(self, action: np.ndarray, anchor: np.ndarray) -> np.ndarray:
        """Inverse of :meth:`relative_action`: what a robot is commanded, (..., A); angles in (-pi, pi]."""
        return self._each(action, anchor, moved)

    def _each(self, x: np.ndarray, anchor: np.ndarray, join: Any) -> np.ndarray:
        x, anchor = np.broadcast_arrays(np.asarray(x, np.float32), np.asarray(anchor, np.float32))
        out, at = x.copy(), 0
        for a in self.action:
            own = slice(at, at + a.size)
            if a.mode == "relative":
                out[..., own] = join(a, x[..., own], anchor[..., own])
            at = own.stop
        return out

    @property
    def is_difference(self) -> np.ndarray:
        """(A,) bool, where an action of zero moves nothing: relative and per-tick actions."""
        return np.concatenate([np.full(a.size, a.mode != "absolute") for a in self.action])

    @property
    def is_per_tick(self) -> np.ndarray:
        """(A,) bool, displacements of one tick, which add up over a chunk."""
        return np.concatenate([np.full(a.size, a.mode == "delta") for a in self.action])

    @property
    def proprio_wraps(self) -> np.ndarray:
        """(P,) bool, angles that start again at -pi after pi."""
        return np.concatenate([np.full(self._state(n).size, self._state(n).wraps) for n in self.proprio])

    @property
    def is_gripper(self) -> np.ndarray:
        """(A,) bool, gripper commands; where no slice has a kind, whatever is absolute."""
        if any(a.kind for a in self.action):
            return np.concatenate([np.full(a.size, a.kind == "gripper") for a in self.action])
        return ~self.is_difference

    @property
    def visible_motion(self) -> tuple[float, ...]:
        """(A,) how far a command has to lead within a chunk for cameras to see it: 0.03 m or rad; in other units 3 %
        of the range, which for actions per tick is that of K ticks.
        """
        return tuple(
            VISIBLE
            if a.unit in ("m", "rad")
            else VISIBLE * (a.high - a.low) * (self.chunk_actions if a.mode == "delta" else 1)
            for a in self.action
            for _ in range(a.size)
        )

    def hold(self, proprio: np.ndarray) -> np.ndarray:
        """The chunk that stands still.

        Args:
            proprio: (..., P) float, robot units.

        Returns:
            (..., K, A) float32, robot units: zero for relative and per-tick actions; the present state, within bounds,
            for absolute ones that command proprioception (:meth:`commanded_in_proprio`); else the middle of the bounds.
        """
        proprio = np.asarray(proprio, np.float32)
        row = np.where(self.is_difference, 0.0, (self.action_low + self.action_high) / 2).astype(np.float32)
        out = np.broadcast_to(row, (*proprio.shape[:-1], self.action_dim)).copy()
        for column, (at, _) in enumerate(self.commanded_in_proprio()):
            if at >= 0 and not self.is_difference[column]:
                out[..., column] = proprio[..., at]
        out = np.clip(out, self.action_low, self.action_high)
        return np.repeat(out[..., None, :], self.chunk_actions, -2)

    def anchors_in_proprio(self) -> list[int]:
        """Per action dimension, the proprioception dimension it is relative to; -1 if absolute or not among them."""
        return self._in_proprio([a.relative_to for a in self.action])

    def commanded_in_proprio(self) -> list[tuple[int, bool]]:
        """Per action dimension, the proprioception dimension it commands, -1 if none, and whether by a difference.

        That is the slice it is relative to, else the state slice of the same name, size and unit.
        """
        alike = {(s.name, s.size, s.unit) for s in self.state}
        names = [a.relative_to or (a.name if (a.name, a.size, a.unit) in alike else None) for a in self.action]
        return list(zip(self._in_proprio(names), map(bool, self.is_difference), strict=True))

    def _in_proprio(self, names: list[str | None]) -> list[int]:
        begin, at = dict[str | None, int](), 0
        for name in self.proprio:
            begin[name] = at
            at += self._state(name).size
        each = zip(names, self.action, strict=True)
        return [begin[name] + i if name in begin else -1 for name, a in each for i in range(a.size)]

    def action_of(self, row: dict[str, np.ndarray]) -> np.ndarray:
        """Pick the recorded action (..., A) float32; :meth:`relative_action` makes the model's of it."""
        return np.concatenate([picked(row, a) for a in self.action], -1)

    def tile(self, views: dict[str, np.ndarray]) -> np.ndarray:
        """Lay views ``{name: (..., h, w, 3)}`` uint8 on the canvas (..., H, W, 3) uint8.

        Raises:
            ShapeError: a view is missing or has another size or dtype than the embodiment says.
        """
        canvas: np.ndarray | None = None
        for v in self.views:
            image = views.get(v.name)
            if image is None or image.shape[-3:] != (v.height, v.width, 3) or image.dtype != np.uint8:
                got = "nothing" if image is None else f"{image.dtype} {image.shape}"
                raise ShapeError(
                    f"view {v.name!r}: got {got}, expected uint8 (..., {v.height}, {v.width}, 3); "
                    f"resize the camera or use another embodiment than {self.name!r}."
                )
            if canvas is None:
                canvas = np.zeros((*image.shape[:-3], self.canvas_height, self.canvas_width, 3), np.uint8)
            canvas[..., v.top : v.top + v.height, v.left : v.left + v.width, :] = image
        assert canvas is not None
        return canvas

    def untile(self, canvas: np.ndarray) -> dict[str, np.ndarray]:
        """Cut the canvas (..., H, W, 3) back into its views."""
        return {v.name: canvas[..., v.top : v.top + v.height, v.left : v.left + v.width, :] for v in self.views}

    def check_action(self, chunk: np.ndarray) -> np.ndarray:
        """Return (B, K, A) float32 in robot units if it is one.

        Raises:
            ShapeError: wrong shape, NaN, or far outside the declared bounds (a sign of wrong units).
        """
        chunk = np.asarray(chunk, np.float32)
        want = (self.chunk_actions, self.action_dim)
        if chunk.ndim != 3 or chunk.shape[1:] != want:
            raise ShapeError(f"action chunk has shape {chunk.shape}, expected (lanes, {want[0]}, {want[1]}).")
        if not np.isfinite(chunk).all():
            raise ShapeError("action chunk holds NaN or infinity, expected finite robot units; check the policy.")
        span = self.action_high - self.action_low
        beyond = np.maximum(self.action_low - chunk, chunk - self.action_high) > span
        if beyond.any():
            i = int(np.argwhere(beyond)[0][-1])
            raise ShapeError(
                f"action {self.action_names[i]} reaches {float(np.abs(chunk[..., i]).max()):.3g}, expected within "
                f"[{self.action_low[i]:.3g}, {self.action_high[i]:.3g}] {self._unit(i)}; are the units right?"
            )
        return np.clip(chunk, self.action_low, self.action_high)

    def _unit(self, i: int) -> str:
        return [a.unit for a in self.action for _ in range(a.size)][i]
