"""How a start looks: the training looks, and others that no model was trained on, for tests alone."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from imagine.policy.robots.g1_table.render import Light
from imagine.policy.robots.g1_table.scene import COLOURS, SHAPES, WOOD

Colour = tuple[float, float, float]
LOOKS = ("seen", "unseen")
_SHADES: dict[str, tuple[Colour, ...]] = {  # the word still fits, the shade is another one
    "red": ((0.55, 0.04, 0.08), (0.95, 0.36, 0.32)),
    "green": ((0.04, 0.36, 0.20), (0.48, 0.80, 0.38)),
    "blue": ((0.05, 0.10, 0.48), (0.36, 0.60, 0.95)),
    "yellow": ((0.78, 0.66, 0.20), (0.98, 0.92, 0.45)),
}
_TABLES: tuple[Colour, ...] = ((0.30, 0.27, 0.25), (0.42, 0.50, 0.58), (0.72, 0.70, 0.66))


@dataclass(frozen=True)
class Look:
    """What a camera can tell apart and no task depends on.

    Attributes:
        shades: RGB in 0..1 of each block, in block order.
        shapes: of each block, some of ``scene.SHAPES``.
        table: RGB of the table's top.
        light: the lamp.
    """

    shades: tuple[Colour, ...]
    shapes: tuple[str, ...]
    table: Colour
    light: Light


def draw_look(rng: np.random.Generator, look: str, colours: Sequence[str]) -> Look:
    """Draw a look; only lamps vary in the seen ones, and those of the unseen ones are beyond their range.

    Args:
        rng: drawn from.
        look: one of ``LOOKS``.
        colours: of the blocks, in block order.
    """
    tilt = rng.uniform(-0.45, 0.45, 2)
    if look == "seen":
        light = Light((tilt[0], tilt[1], 0.9), rng.uniform(0.38, 0.52), rng.uniform(0.5, 0.7))
        return Look(tuple(COLOURS[c] for c in colours), ("box",) * len(colours), WOOD, light)
    tilt += np.where(tilt < 0, -0.45, 0.45)
    light = Light((tilt[0], tilt[1], 0.9), rng.uniform(0.26, 0.36), rng.uniform(0.72, 0.9))
    others = [shape for shape in SHAPES if shape != "box"]
    return Look(
        tuple(_SHADES[c][int(rng.integers(len(_SHADES[c])))] for c in colours),
        tuple(others[int(rng.integers(len(others)))] for _ in colours),
        _TABLES[int(rng.integers(len(_TABLES)))],
        light,
    )
