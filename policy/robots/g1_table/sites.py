"""Where the table stands: the place of all training, and others in which a robot has to get along."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

HEAD_CAMERA = (0.95, 0.0, 1.6)  # m
HEAD_CAMERA_UP = (0.98, -0.47)  # x and z of what is up in its picture


@dataclass(frozen=True)
class Site:
    """What a place changes; starts and tasks are the same everywhere.

    Attributes:
        moved: (x, y, z) m by which the head's camera hangs elsewhere.
        tilted: degrees by which it looks further forward.
        brightness: of the lamps, as a share of the usual one.
        mass: of a block, kg.
        friction: sliding friction of a block.
    """

    moved: tuple[float, float, float] = (0.0, 0.0, 0.0)
    tilted: float = 0.0
    brightness: float = 1.0
    mass: float = 0.08
    friction: float = 1.0

    def camera(self) -> str:
        """Attributes of the head's camera in MJCF."""
        x, y, z = np.add(HEAD_CAMERA, self.moved)
        turn = np.exp(1j * np.radians(self.tilted)) * complex(*HEAD_CAMERA_UP)
        return f'pos="{x:.6g} {y:.6g} {z:.6g}" xyaxes="0 -1 0 {turn.real:.6g} 0 {turn.imag:.6g}"'


SITES: dict[str, Site] = {
    "usual": Site(),
    "shifted": Site(moved=(0.03, 0.02, 0.0), tilted=2.0, brightness=0.75, mass=0.16, friction=0.7),
}
