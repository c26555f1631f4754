"""Reads requests: observations and candidates as a robot names them, into arrays that a policy can be shown."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

import numpy as np

from imagine.embodiment import Embodiment
from imagine.policy.wire import LARGEST
from imagine.types import INSTRUCTION_BYTES, ShapeError, pack_instruction

MOST_CANDIDATES = 1024
"""Candidates scored in one request."""
FILM_FRAMES = 32
"""Frames of a film whose newest is looked at."""
LONGEST_NAME = 128
"""Characters of a session's name."""


def describe(body: Embodiment, *, scores: bool, goes_on: bool) -> dict[str, Any]:
    """What a client is told on connecting: the embodiment, what requests may carry, and RoboArena's configuration.

    Args:
        body: whose robot is served.
        scores: candidates are scored.
        goes_on: the policy goes on from what is ``committed``.
    """
    more = [name for name, known in (("score", scores), ("committed", goes_on)) if known]
    wrists = [v for v in body.views if _is_wrist(v.name)]
    return {
        "embodiment": body.name,
        "control_hz": body.control_hz,
        "chunk_actions": body.chunk_actions,
        "action_dim": body.action_dim,
        "action_names": body.action_names,
        "proprio_dim": body.proprio_dim,
        "views": {v.name: [v.height, v.width] for v in body.views},
        "accepts": ["seed", "session_id", *more],
        "image_resolution": [body.views[0].height, body.views[0].width],
        "needs_wrist_camera": bool(wrists),
        "n_external_cameras": len(body.views) - len(wrists),
        "needs_stereo_camera": False,
        "needs_session_id": False,
        "action_space": body.action[0].name,
    }


def observation_bytes(body: Embodiment) -> int:
    """Bytes of one observation, float32 and uint8."""
    return sum(3 * v.height * v.width for v in body.views) + 4 * body.proprio_dim + INSTRUCTION_BYTES


def request_bytes(body: Embodiment) -> int:
    """Bytes of the largest request taken: films and many candidates, or a picture of a wrong size, to be told of."""
    candidates = 8 * MOST_CANDIDATES * body.chunk_actions * body.action_dim
    return min(LARGEST, max(2**23, 2 * FILM_FRAMES * observation_bytes(body) + candidates))


def read_session(given: Any) -> str | None:
    """The name of an episode; None where none is given.

    Raises:
        ShapeError: neither a number nor a text of a name's length.
    """
    if given is None:
        return None
    if not isinstance(given, str | int | np.integer) or len(str(given)) > LONGEST_NAME:
        got = f"a {type(given).__name__}" if not isinstance(given, str) else f"{len(given)} characters"
        raise ShapeError(f"session_id: got {got}, expected a number or at most {LONGEST_NAME} characters.")
    return str(given)


def read_observation(request: Mapping[str, Any], body: Embodiment) -> dict[str, np.ndarray]:
    """A batch of one, as ``imagine.world.spaces`` describes it, from a request; of a film the newest frame.

    Names are the embodiment's, or those of openpi's clients for DROID and LIBERO
    (``observation/exterior_image_1_left``, ``observation/image``, ``observation/wrist_image``, ``observation/state``,
    ``observation/joint_position`` …), which stand for the views and the proprioception in their order.

    Raises:
        ShapeError: something is missing, misshapen or not finite.
    """

    def find(name: str) -> Any:
        return request[name] if name in request else request.get(f"observation/{name}")

    seen: dict[str, np.ndarray] = {}
    openpi = _openpi_views(request, body)
    for view in body.views:
        image, want = find(view.name), (view.height, view.width, 3)
        image = openpi.get(view.name) if image is None else image
        image = _newest(image, 3) if isinstance(image, np.ndarray) else image
        if not isinstance(image, np.ndarray) or image.dtype != np.uint8 or image.shape != want:
            got = f"{image.dtype} {image.shape}" if isinstance(image, np.ndarray) else f"a {type(image).__name__}"
            got = "nothing" if image is None else got
            raise ShapeError(f"view {view.name!r}: got {got}, expected uint8 {want} of embodiment {body.name!r}.")
        seen[view.name] = image[None].copy()
    proprio = find("proprio")
    for parts in (body.proprio, ("state",), ("joint_position", "gripper_position")):
        if proprio is None and all(find(n) is not None for n in parts):
            proprio = np.concatenate([_newest(read_numbers(find(n), n), 1).ravel() for n in parts])
    proprio = _newest(read_numbers(proprio, "proprio"), 1)
    seen["proprio"] = read_numbers(proprio, "proprio", (body.proprio_dim,))[None]
    seen["instruction"] = _instruction(request)[None]
    return seen


def _openpi_views(request: Mapping[str, Any], body: Embodiment) -> dict[str, Any]:
    """Images under openpi's names by the embodiment's, where there are as many as views at wrists, or elsewhere."""
    found: dict[str, Any] = {}
    for pattern, at_wrist in ((r"image|exterior_image_\d+_left", False), (r"wrist_image(_left|_right)?", True)):
        names = [view.name for view in body.views if _is_wrist(view.name) == at_wrist]
        theirs = sorted(k for k in map(str, request) if re.fullmatch(f"(observation/)?({pattern})", k))
        if len(theirs) == len(names):
            found |= {name: request[key] for name, key in zip(names, theirs, strict=True)}
    return found


def _is_wrist(view: str) -> bool:
    return "wrist" in view or "hand" in view


def read_candidates(given: Any, body: Embodiment) -> np.ndarray:
    """(N, K, A) float32 in robot units, N at least 1, clipped to the embodiment's bounds.

    Raises:
        ShapeError: none are given, or they are another robot's, not finite, or far out of bounds.
    """
    chunks = read_numbers(given, "candidates", finite=False)
    want = (body.chunk_actions, body.action_dim)
    if chunks.ndim != 3 or not 1 <= len(chunks) <= MOST_CANDIDATES or chunks.shape[1:] != want:
        raise ShapeError(
            f"candidates have shape {chunks.shape}, expected (N, {want[0]}, {want[1]}) with N at least 1 and at most "
            f"{MOST_CANDIDATES}, chunks of embodiment {body.name!r}."
        )
    return body.check_action(chunks)


def read_committed(given: Any, body: Embodiment) -> np.ndarray:
    """(1, D, A) float32 in robot units, clipped to the embodiment's bounds: how the chunk begins in any case.

    Raises:
        ShapeError: it is another robot's, longer than a chunk, not finite, or far out of bounds.
    """
    begin, most = read_numbers(given, "committed"), body.chunk_actions
    if begin.ndim != 2 or not 1 <= len(begin) <= most or begin.shape[1] != body.action_dim:
        raise ShapeError(f"committed has shape {begin.shape}, expected (1 to {most}, {body.action_dim}).")
    padded = np.concatenate([begin, np.repeat(begin[-1:], most - len(begin), 0)])
    return body.check_action(padded[None])[:, : len(begin)]


def _newest(values: np.ndarray, axes: int) -> np.ndarray:
    """The last of several frames in time; what has ``axes`` axes is one."""
    return values[-1] if values.ndim == axes + 1 and len(values) else values


def _instruction(request: Mapping[str, Any]) -> np.ndarray:
    told = request.get("prompt", request.get("instruction"))
    if isinstance(told, str):
        return pack_instruction(told)
    if isinstance(told, np.ndarray) and told.dtype == np.uint8 and told.shape == (INSTRUCTION_BYTES,) and told.any():
        return told
    got = "nothing" if told is None else f"{getattr(told, 'dtype', type(told).__name__)} {getattr(told, 'shape', '')}"
    raise ShapeError(f"got {got.strip()} for the instruction, expected text as 'prompt' or 'instruction'.")


def read_numbers(value: Any, name: str, shape: tuple[int, ...] | None = None, *, finite: bool = True) -> np.ndarray:
    """Float32 array of the wanted shape, or of any.

    Raises:
        ShapeError: no numbers, another shape, or not finite.
    """
    try:
        array = np.asarray(value)
    except ValueError:  # a ragged list
        array = np.asarray(None)
    if array.dtype.kind not in "iuf":
        got = "nothing" if value is None else array.dtype
        raise ShapeError(f"{name}: got {got}, expected numbers.")
    if shape is not None and array.shape != shape:
        raise ShapeError(f"{name} has shape {array.shape}, expected {shape}.")
    with np.errstate(over="ignore"):  # what float32 cannot hold becomes infinity, and is told so
        array = array.astype(np.float32)
    if finite and not np.isfinite(array).all():
        raise ShapeError(f"{name} holds NaN or infinity, expected finite numbers.")
    return array
