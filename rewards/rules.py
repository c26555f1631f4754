"""Rules that need no judge: is a commanded chunk within the robot's limits, and does the dream still look like a video?

What this is: closed-form terms, each 0 where all is well and growing with the breach, so that a reward can subtract
them and ``info`` can name them. What this is not: a safety function. It sees commands and pixels, never forces; a real
robot needs its own guard. A dream that freezes or blurs hides mistakes from every judge, so both are measured here.
"""

from __future__ import annotations

from itertools import pairwise

import torch
from torch import Tensor

from imagine.limits import Limits
from imagine.types import ShapeError

STILL = 0.25
"""Mean absolute change between two frames, in grey levels of 255, below which the picture stands still."""

MOVED = 0.01
"""Largest commanded displacement (rad or m), above which something must be seen to move."""

_LUMINANCE = (0.299, 0.587, 0.114)  # ITU-R BT.601, as every sharpness measure by the Laplacian uses


def check_actions(action: Tensor, pose: Tensor, limits: Limits) -> dict[str, Tensor]:
    """How far each commanded chunk breaks the robot's limits, see :meth:`imagine.limits.Limits.breaches`.

    What came before ``pose`` is not known, so the first difference that counts is that of p_0 ... p_3.

    Args:
        action: (B, K, A) float, absolute, robot units (rad, m); hands' positions in m in one common frame.
        pose: (B, A) float, likewise, where the robot is before the chunk.
        limits: what is allowed.

    Returns:
        The five terms by name, each (B,) float32, at least 0; ``two_arms`` at most 1.

    Raises:
        ShapeError: wrong shape or dtype, an empty chunk, NaN or infinity, or limits for another number of actions.
    """
    _check_chunk(action, pose, limits)
    path = torch.cat([pose[:, None].to(action), action], 1).detach().cpu().double().numpy()
    return {name: torch.from_numpy(x).float().to(action.device) for name, x in limits.breaches(path).items()}


def frozen(frames: Tensor, moved: Tensor, *, still: float = STILL, least: float = MOVED) -> Tensor:
    """Where the picture stands still although the robot was told to move.

    Args:
        frames: (B, T, H, W, 3) uint8, T at least 2, oldest first.
        moved: (B,) float, largest commanded displacement while they were seen, in units of the embodiment, at least 0.
        still: mean absolute change (over pixels and colours) in grey levels of 255. The picture stands still where
            every pair of successive frames changes less.
        least: the robot was told to move where ``moved`` is more.

    Returns:
        (B,) float32, 1 where frozen, else 0.

    Raises:
        ShapeError: wrong shape or dtype, fewer than two frames, or a displacement that is negative, NaN or infinite.
    """
    _check_frames("frames", frames, 5)
    if frames.shape[1] < 2:
        raise ShapeError(f"got {frames.shape[1]} frame, expected 2 or more; change needs something to compare with.")
    if moved.shape != frames.shape[:1] or not moved.is_floating_point():
        raise ShapeError(
            f"moved is {tuple(moved.shape)} {moved.dtype}, expected ({len(frames)},) float; give one displacement per "
            "clip."
        )
    if not bool((torch.isfinite(moved) & (moved >= 0)).all()):
        raise ShapeError("moved holds a negative or non-finite displacement, expected 0 or more; pass its magnitude.")
    change = torch.stack(
        [(b.int() - a.int()).abs().flatten(1).float().mean(1) for a, b in pairwise(frames.unbind(1))], 1
    )  # pair by pair: a whole video as float would be four times its size at once
    return ((change.amax(1) < still) & (moved.to(change.device) > least)).float()


def blurred(frames: Tensor, reference: Tensor) -> Tensor:
    """How much of the reference picture's sharpness the newest frame has lost.

    Sharpness is the variance, over inner pixels, of the four-neighbour Laplacian of luminance. Source: Pech-Pacheco
    et al., "Diatom autofocusing in brightfield microscopy" (ICPR 2000).

    Args:
        frames: (B, T, H, W, 3) uint8; the newest, last one is looked at.
        reference: (B, H, W, 3) uint8, the episode's first, observed frame.

    Returns:
        (B,) float32 in [0, 1]: max(0, 1 - variance now / variance of the reference); 0 where the reference itself is
        flat and has nothing to lose.

    Raises:
        ShapeError: wrong shape or dtype, different sizes, or pictures below 3 x 3 pixels.
    """
    now, before = _both_sharpnesses(frames, reference)
    lost = (1 - now / before.clamp(min=1e-12)).clamp(min=0)
    return torch.where(before > 0, lost, torch.zeros_like(lost)).float()


def noisy(frames: Tensor, reference: Tensor) -> Tensor:
    """How much sharper than the reference picture the newest frame is: noise is the sharpest picture of all.

    Args:
        frames: (B, T, H, W, 3) uint8; the newest, last one is looked at.
        reference: (B, H, W, 3) uint8, the episode's first, observed frame.

    Returns:
        (B,) float32, at least 0: max(0, variance now / variance of the reference - 1), sharpness as in
        :func:`blurred`; 0 where the reference is flat.

    Raises:
        ShapeError: as :func:`blurred`.
    """
    now, before = _both_sharpnesses(frames, reference)
    gained = (now / before.clamp(min=1e-12) - 1).clamp(min=0)
    return torch.where(before > 0, gained, torch.zeros_like(gained)).float()


def _both_sharpnesses(frames: Tensor, reference: Tensor) -> tuple[Tensor, Tensor]:
    _check_frames("frames", frames, 5)
    _check_frames("reference", reference, 4)
    if reference.shape != frames[:, -1].shape:
        raise ShapeError(
            f"reference is {tuple(reference.shape)}, expected {tuple(frames[:, -1].shape)}, one picture per clip of "
            "the frames' size; pass the episode's first frame."
        )
    if min(frames.shape[2:4]) < 3:
        raise ShapeError(f"pictures have {frames.shape[2]} x {frames.shape[3]} pixels, expected 3 x 3 or more.")
    return _sharpness(frames[:, -1]), _sharpness(reference)


# -------------------------------------------------------------------- parts


def _sharpness(picture: Tensor) -> Tensor:
    """(B, H, W, 3) uint8 to (B,) float64 variance of the Laplacian."""
    grey = (picture.double() * torch.tensor(_LUMINANCE, dtype=torch.float64, device=picture.device)).sum(-1)
    inner = grey[:, 1:-1, 1:-1]
    around = grey[:, :-2, 1:-1] + grey[:, 2:, 1:-1] + grey[:, 1:-1, :-2] + grey[:, 1:-1, 2:]
    return (around - 4 * inner).flatten(1).var(1, correction=0)


def _check_chunk(action: Tensor, pose: Tensor, limits: Limits) -> None:
    known, least = limits.action_dim, max((stop for _, stop in limits.hands), default=1)
    if action.ndim != 3 or action.shape[1] < 1 or not action.is_floating_point():
        raise ShapeError(
            f"action is {tuple(action.shape)} {action.dtype}, expected (B, K, A) float with K at least 1; pass "
            "absolute commands in robot units."
        )
    batch, _, width = action.shape
    if (known is not None and width != known) or width < least:
        raise ShapeError(
            f"action has {width} entries, expected {known if known is not None else f'at least {least}'} as in the "
            "limits; use the limits of this robot."
        )
    if tuple(pose.shape) != (batch, width) or not pose.is_floating_point():
        raise ShapeError(
            f"pose is {tuple(pose.shape)} {pose.dtype}, expected ({batch}, {width}) float; pass where the robot is "
            "before the chunk, in the same units."
        )
    for name, x in (("action", action), ("pose", pose)):
        if not bool(torch.isfinite(x).all()):
            raise ShapeError(f"{name} holds NaN or infinity, expected finite robot units; do not send it to a robot.")


def _check_frames(name: str, frames: Tensor, axes: int) -> None:
    want = "(B, T, H, W, 3)" if axes == 5 else "(B, H, W, 3)"
    if frames.ndim != axes or frames.shape[-1] != 3 or frames.dtype != torch.uint8 or 0 in frames.shape[1:]:
        raise ShapeError(f"{name} is {tuple(frames.shape)} {frames.dtype}, expected {want} uint8; pass RGB pictures.")
