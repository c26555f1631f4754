"""What of a transformer's shape follows from the embodiment, and what of an embodiment cannot be modelled."""

from __future__ import annotations

import math

from imagine.embodiment import Embodiment
from imagine.model.blocks import DiTConfig
from imagine.types import ImagineError


def fitted(dit: DiTConfig, body: Embodiment, factor: int) -> DiTConfig:
    """Derive the sizes that follow from an embodiment; ``action_patch`` only where the recipe does not set it.

    Args:
        dit: the recipe's shape.
        body: whose chunk, canvas and slices it is to model.
        factor: pixels per latent cell along each side, of the codec.

    Raises:
        ImagineError: chunk or canvas do not fill whole patches; names the key and values that would do.
    """
    pt, ph, pw = dit.patch
    for key, size, cell in (
        ("canvas_height", body.canvas_height, factor * ph),
        ("canvas_width", body.canvas_width, factor * pw),
    ):
        if size % cell:
            raise ImagineError(
                f"embodiment {body.name!r}: {key} is {size}, expected a multiple of {cell} ({factor} pixels per latent "
                f"cell, dit.patch {list(dit.patch)}); the nearest are {size // cell * cell or cell} and "
                f"{size // cell * cell + cell}."
            )
    if body.chunk_frames % pt:
        raise ImagineError(
            f"embodiment {body.name!r}: chunk_frames is {body.chunk_frames}, expected a multiple of {pt}, the frames "
            f"per patch of dit.patch {list(dit.patch)}."
        )
    per_patch = body.chunk_actions * pt // body.chunk_frames
    patch = _action_patch(dit, body, per_patch)
    return dit.model_copy(
        update={
            "action_dim": body.action_dim,
            "proprio_dim": body.proprio_dim,
            "action_patch": patch,
            "steer_tokens": per_patch // patch if dit.steer_tokens else 0,
        }
    )


def _action_patch(dit: DiTConfig, body: Embodiment, per_patch: int) -> int:
    """Actions per token: the recipe's, or the divisor of the actions per temporal patch nearest to the default."""
    divisors = [n for n in range(1, per_patch + 1) if per_patch % n == 0]
    if "action_patch" not in dit.model_fields_set:
        return min(divisors, key=lambda n: abs(math.log(n / dit.action_patch)))
    if dit.action_patch not in divisors:
        raise ImagineError(
            f"dit.action_patch is {dit.action_patch}, expected one of {divisors}: embodiment {body.name!r} has "
            f"chunk_actions {body.chunk_actions} over chunk_frames {body.chunk_frames}, {per_patch} actions per patch "
            "of frames. Leave dit.action_patch out to have it derived."
        )
    return dit.action_patch
