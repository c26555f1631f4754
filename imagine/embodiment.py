"""An embodiment file: which slices of a dataset or robot are proprioception, actions and cameras, and their units.

It is data (YAML), carried inside every model folder, so that nothing outside a robot's own folder knows the robot.
Slices are named; positions in a vector are never assumed (facts: AgiBot ports disagree on the order).
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import numpy as np
import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from imagine.types import ImagineError, ShapeError


class _Frozen(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class View(_Frozen):
    """One camera and its place (top, left) on the canvas, in pixels."""

    name: str
    key: str
    height: Annotated[int, Field(gt=0)]
    width: Annotated[int, Field(gt=0)]
    top: int = 0
    left: int = 0


class Slice(_Frozen):
    """A named range ``[start, stop)`` of a dataset feature."""

    name: str
    key: str
    start: Annotated[int, Field(ge=0)]
    stop: int
    unit: str

    @property
    def size(self) -> int:
        """How many numbers it holds."""
        return self.stop - self.start


class ActionSlice(Slice):
    """A slice of the recorded absolute action; ``relative_to`` names the state slice that anchors it, if any.

    ``low`` and ``high`` bound the model's action (after anchoring), in ``unit``.
    """

    relative_to: str | None = None
    low: float
    high: float


class Embodiment(_Frozen):
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
            return cls.model_validate(yaml.safe_load(path.read_text()))
        except (ValidationError, yaml.YAMLError) as error:
            raise ImagineError(f"embodiment file {path} is not usable: {error}") from None

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
        parts = [self._state(n) for n in self.proprio]
        return np.concatenate([np.asarray(row[s.key], np.float32)[..., s.start : s.stop] for s in parts], -1)

    def anchor_of(self, row: dict[str, np.ndarray]) -> np.ndarray:
        """What relative actions are measured from: (..., A) float32, zero where an action is absolute."""
        parts = []
        for a in self.action:
            if a.relative_to is None:
                key = self.state[0].key
                parts.append(np.zeros((*np.asarray(row[key]).shape[:-1], a.size), np.float32))
            else:
                s = self._state(a.relative_to)
                parts.append(np.asarray(row[s.key], np.float32)[..., s.start : s.stop])
        return np.concatenate(parts, -1)

    def anchors_in_proprio(self) -> list[int]:
        """Per action dimension, the proprioception dimension it is relative to; -1 if absolute or not among them."""
        starts = dict(zip(self.proprio, np.cumsum([0] + [self._state(n).size for n in self.proprio]), strict=False))
        return [
            int(starts[a.relative_to]) + i if a.relative_to in starts else -1
            for a in self.action
            for i in range(a.size)
        ]

    def commanded_in_proprio(self) -> list[tuple[int, bool]]:
        """Per action dimension, the proprioception dimension that it commands, -1 if none, and whether relatively."""
        starts = dict(zip(self.proprio, np.cumsum([0] + [self._state(n).size for n in self.proprio]), strict=False))
        moved = [(a.relative_to or a.name, a) for a in self.action]
        return [
            (int(starts[name]) + i if name in starts else -1, a.relative_to is not None)
            for name, a in moved
            for i in range(a.size)
        ]

    def action_of(self, row: dict[str, np.ndarray]) -> np.ndarray:
        """Pick the recorded absolute action (..., A) float32; subtract :meth:`anchor_of` to get the model's action."""
        return np.concatenate([np.asarray(row[a.key], np.float32)[..., a.start : a.stop] for a in self.action], -1)

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
