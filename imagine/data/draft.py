"""Drafts an embodiment from a dataset: names group its numbers into slices, the recorded values say what they mean.

Everything here is a guess to be read over; :func:`draft` says beside each one what it rests on.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Any

import numpy as np
import yaml

from imagine.data.episode_cache import tick_rows
from imagine.data.read import LeRobotDataset
from imagine.data.table import TRUTH, Columns
from imagine.embodiment import ActionSlice, Embodiment, Kind, Slice, View
from imagine.types import DatasetError

_CHUNK_SECONDS, _FRAMES = 0.8, 4
_CELL = 16  # pixels: 8 per latent cell, 2 cells per patch
_PIXELS = 64 * 96  # of one view; of several together, twice that
_EPISODES = 200  # looked at
_QUANTILES, _MARGIN = (0.001, 0.999), 0.15
_FOLLOWS = 0.5  # a target differs from the state by less than this share of what it varies itself
_LEADS = 0.5  # correlation with the next displacement from which an action is taken for one

_PARTS: dict[str, tuple[str, ...]] = {
    "gripper": ("gripper", "grip", "claw", "jaw", "effector"),
    "hand": ("hand", "finger", "thumb", "pinky", "index", "ring", "middle"),
    "arm": ("arm", "shoulder", "elbow", "forearm", "wrist", "joint", "joints", "motor"),
    "head": ("head", "neck"),
    "waist": ("waist", "torso", "lift"),
    "leg": ("leg", "hip", "knee", "ankle"),
    "base": ("base", "wheel", "velocity"),
}
_POSITION = {"x", "y", "z", "pos", "position", "xyz"}
_ROTATION = {"roll", "pitch", "yaw", "rx", "ry", "rz", "rot", "rotation", "orientation", "quat", "quaternion"}
_ROTATION |= {"qw", "qx", "qy", "qz", "w", "axis", "angle", "rpy", "euler"}
_CARTESIAN = {"eef", "ee", "tcp", "end", "pose", "cartesian"}


@dataclass(frozen=True)
class _Group:
    """Neighbouring numbers of a feature whose names say that they belong together."""

    name: str
    key: str
    start: int
    stop: int
    kind: Kind | None
    named: bool


def draft(dataset: LeRobotDataset) -> tuple[Embodiment, str]:
    """Guess how a dataset is to be read.

    Args:
        dataset: an opened dataset with at least one camera; without actions it cannot be drafted.

    Returns:
        The embodiment, and the YAML file to write, with comments that say what each guess rests on.

    Raises:
        DatasetError: there is no camera, no state or no action.
    """
    features = dataset.layout.features
    states = [g for key in _keys(dataset, "observation.state", "observation.") for g in _groups(key, features[key])]
    actions = [g for key in _keys(dataset, "action", "action.", "actions.") for g in _groups(key, features[key])]
    states, actions = _unique(states), _unique(actions)
    columns = _sample(dataset, {g.key for g in (*states, *actions)})
    state = tuple(_slice(g, np.concatenate([c[g.key] for c in columns])) for g in states)
    hz = _control_hz(dataset)
    stride = max(1, round(hz * _CHUNK_SECONDS / _FRAMES))
    views, height, width = _views(dataset)
    common: dict[str, Any] = {"name": _identifier(dataset.layout.robot_type), "robot_type": dataset.layout.robot_type}
    common |= {"control_hz": hz, "chunk_actions": _FRAMES * stride, "chunk_frames": _FRAMES}
    common |= {"canvas_height": height, "canvas_width": width, "views": views, "state": state}
    common |= {"proprio": tuple(s.name for s in state)}
    ticks = [{k: v[tick_rows(len(v), dataset.fps, hz)] for k, v in c.items()} for c in columns]
    action, notes = [], {}
    for group in actions:
        guess, why = _action(group, state, ticks)
        probe = Embodiment(**common, action=(guess,))
        action.append(_bounded(probe, ticks))
        notes[guess.name] = why
    body = Embodiment(**common, action=tuple(action))
    return body, _yaml(body, dataset, notes)


# ---------------------------------------------------------------------- which numbers
def _keys(dataset: LeRobotDataset, whole: str, *prefixes: str) -> list[str]:
    """The feature ``whole`` if there is one, else all numbers whose keys begin so."""
    numbers = [k for k, f in dataset.layout.features.items() if str(f.get("dtype", "")).startswith("float")]
    found = [whole] if whole in numbers else [k for k in numbers if k.startswith(prefixes) and k != TRUTH]
    if not found:
        raise DatasetError(f"{dataset.root} has no feature {whole!r} among {numbers}; an embodiment needs one.")
    return found


def _names(feature: dict[str, Any]) -> list[str]:
    """One name per number, "" where the dataset gives none; LeRobot writes lists, lists of lists and mappings."""
    size, names = int(np.prod(feature["shape"])), feature.get("names")
    while isinstance(names, dict) or (isinstance(names, list) and names and isinstance(names[0], list)):
        if isinstance(names, list):
            names = names[0]
        else:
            names = list(names) if len(names) == size else next(iter(names.values()), None)
    names = [str(n) for n in names] if isinstance(names, list) else []
    return names if len(names) == size else [""] * size


def _groups(key: str, feature: dict[str, Any]) -> list[_Group]:
    names, out, start = _names(feature), [], 0
    tail = key.rpartition(".")[2]
    for (name, kind), members in groupby(_described(n or (tail if len(names) == 1 else "")) for n in names):
        stop = start + len(list(members))
        out.append(_Group(name or tail, key, start, stop, kind, bool(name)))
        start = stop
    return out


def _described(name: str) -> tuple[str, Kind | None]:
    """What a number's name says: which part of the robot (with its side), and of what kind it is."""
    words = [w.lower() for w in re.findall(r"[A-Z]+(?![a-z])|[A-Z]?[a-z]+", name)]
    side = next((w for w in words if w in ("left", "right")), "")
    part = next((p for p, known in _PARTS.items() if any(w in known for w in words)), "")
    kind: Kind | None = None
    if part == "gripper":
        kind = "gripper"
    elif set(words) & _ROTATION and (set(words) & _CARTESIAN or not part):
        kind, part = "rotation", "eef_rotation" if set(words) & _CARTESIAN else "rotation"
    elif set(words) & _POSITION and (set(words) & _CARTESIAN or not part):
        kind, part = "position", "eef_position" if set(words) & _CARTESIAN else "position"
    elif part in ("arm", "hand", "leg", "head", "waist"):
        kind = "joint"
    return "_".join(w for w in (side, part) if w), kind


def _unique(groups: Sequence[_Group]) -> list[_Group]:
    """The same groups, a number behind the names that come again."""
    seen: dict[str, int] = {}
    out = []
    for g in groups:
        seen[g.name] = seen.get(g.name, 0) + 1
        name = g.name if seen[g.name] == 1 else f"{g.name}_{seen[g.name]}"
        out.append(_Group(name, g.key, g.start, g.stop, g.kind, g.named))
    return out


def _sample(dataset: LeRobotDataset, keys: set[str]) -> list[Columns]:
    chosen = np.unique(np.linspace(0, len(dataset) - 1, min(len(dataset), _EPISODES)).astype(int))
    return [dataset.features(int(i), sorted(keys)) for i in chosen]


# ---------------------------------------------------------------------- what they mean
def _slice(g: _Group, values: np.ndarray) -> Slice:
    kind, unit = _unit(g, values[:, g.start : g.stop])
    return Slice(name=g.name, key=g.key, start=g.start, stop=g.stop, unit=unit, kind=kind)


def _unit(g: _Group, values: np.ndarray) -> tuple[Kind | None, str]:
    low, high = float(np.nanmin(values)), float(np.nanmax(values))
    if g.kind == "joint" and "hand" in g.name and low >= -0.01 and high <= 1.01:
        return "gripper", "1"  # fingers that count from closed to open
    if g.kind == "rotation" and g.stop - g.start == 4:
        return "rotation", "quaternion_xyzw"
    if g.kind in ("joint", "rotation"):
        return g.kind, "deg" if max(-low, high) > 12 else "rad"
    return g.kind, {"position": "m"}.get(g.kind or "", "1")


def _action(g: _Group, state: Sequence[Slice], ticks: Sequence[Columns]) -> tuple[ActionSlice, str]:
    """The slice with bounds that hold everything, and why it was taken for what it is."""
    whole = np.concatenate([t[g.key][:, g.start : g.stop] for t in ticks])
    kind, unit = _unit(g, whole)
    twin = next((s for s in state if s.name == g.name and s.size == g.stop - g.start), None)
    if twin is None and not g.named:
        twin = next((s for s in state if s.size == g.stop - g.start and s.kind is None), None)
    mode, why = _mode(g, twin, ticks) if kind != "gripper" else ("absolute", "a gripper")
    values: dict[str, Any] = {"name": twin.name if twin else g.name, "key": g.key, "start": g.start, "stop": g.stop}
    values |= {"unit": unit, "kind": kind, "mode": mode, "low": -1e9, "high": 1e9}
    if mode == "relative" and twin is not None:
        values |= {"relative_to": twin.name, "unit": twin.unit, "kind": twin.kind}
    return ActionSlice.model_validate(values), why


def _mode(g: _Group, twin: Slice | None, ticks: Sequence[Columns]) -> tuple[str, str]:
    if twin is None:
        return "absolute", "no state slice of this name and size"
    action = np.concatenate([t[g.key][:-1, g.start : g.stop] for t in ticks]).astype(np.float64)
    before = np.concatenate([t[twin.key][:-1, twin.start : twin.stop] for t in ticks]).astype(np.float64)
    after = np.concatenate([t[twin.key][1:, twin.start : twin.stop] for t in ticks]).astype(np.float64)
    spread = action.std(0)
    moving = spread > 1e-6
    if not moving.any():
        return "absolute", "it never changes"
    ratio = float(np.median((np.abs(action - after).mean(0) / spread.clip(1e-9))[moving]))
    if ratio < _FOLLOWS:
        return "relative", f"the state follows it to {ratio:.2f} of its spread"
    step = after - before
    centred = (action - action.mean(0)) * (step - step.mean(0))
    follows = centred.mean(0) / (spread * step.std(0)).clip(1e-12)
    correlation = float(np.median(follows[moving]))
    if correlation > _LEADS:
        return "delta", f"it goes with the state's next displacement, correlation {correlation:.2f}"
    return (
        "absolute",
        f"the state neither follows it ({ratio:.2f} of its spread) nor is displaced by it ({correlation:.2f})",
    )


def _bounded(probe: Embodiment, ticks: Sequence[Columns]) -> ActionSlice:
    """The one action slice of ``probe`` with bounds from the quantiles of the model's action, plus a margin."""
    (a,) = probe.action
    parts = []
    for data in ticks:
        now = np.arange(0, len(data[a.key]), probe.frame_stride)
        reach = np.minimum(now[:, None] + np.arange(probe.chunk_actions), len(data[a.key]) - 1)
        anchor = probe.anchor_of({k: v[now] for k, v in data.items()})
        parts.append(probe.relative_action(probe.action_of(data)[reach], anchor[:, None]).reshape(-1, a.size))
    values = np.concatenate(parts)
    low, high = np.nanquantile(values, _QUANTILES[0], 0).min(), np.nanquantile(values, _QUANTILES[1], 0).max()
    if a.unit == "1" and a.kind == "gripper" and values.min() >= -0.01 and values.max() <= 1.01:
        low, high = 0.0, 1.0
    else:
        margin = max(_MARGIN * float(high - low), 1e-3)
        low, high = float(f"{low - margin:.2g}"), float(f"{high + margin:.2g}")
    return a.model_copy(update={"low": float(low), "high": float(high)})


# ---------------------------------------------------------------------- rate and canvas
def _control_hz(dataset: LeRobotDataset) -> int:
    """The dataset's own rate: actions per tick cannot be read at another."""
    return max(1, round(dataset.fps))


def _views(dataset: LeRobotDataset) -> tuple[tuple[View, ...], int, int]:
    """All cameras at one size, in rows of at most three, on a canvas that the codec and the patches divide."""
    cameras = {}
    for key in dataset.cameras:
        feature = dataset.layout.features[key]
        sides = [int(n) for n in feature.get("shape", ()) if n not in (1, 3, 4)]
        about = feature.get("info") or {}
        if len(sides) == 2 and not (about.get("is_depth_map") or about.get("video.is_depth_map")):
            cameras[key] = (sides[0], sides[1])
    if not cameras:
        raise DatasetError(f"{dataset.root} has no colour camera among {dataset.cameras}; an embodiment needs one.")
    height, width = _size(next(iter(cameras.values())), _PIXELS * min(len(cameras), 2) / len(cameras))
    per_row = 3 if len(cameras) != 4 else 2
    views = []
    for i, key in enumerate(cameras):
        top, left = i // per_row * height, i % per_row * width
        views.append(
            View(name=_identifier(key.rpartition(".")[2]), key=key, height=height, width=width, top=top, left=left)
        )
    return tuple(views), max(v.top for v in views) + height, max(v.left for v in views) + width


def _size(source: tuple[int, int], pixels: float) -> tuple[int, int]:
    """The largest multiples of the cell within ``pixels`` and the source whose aspect is within a tenth of its own."""
    most = tuple(max(_CELL, n // _CELL * _CELL) for n in source)
    sizes = [(h, w) for h in range(_CELL, most[0] + 1, _CELL) for w in range(_CELL, most[1] + 1, _CELL)]
    within = [s for s in sizes if s[0] * s[1] <= pixels] or [(_CELL, _CELL)]

    def distortion(size: tuple[int, int]) -> float:
        return float(abs(np.log(size[0] / size[1] * source[1] / source[0])))

    close = [s for s in within if distortion(s) < 0.1]
    return max(close, key=lambda s: s[0] * s[1]) if close else min(within, key=lambda s: (distortion(s), -s[0] * s[1]))


# ---------------------------------------------------------------------- the file
def _identifier(text: str) -> str:
    return re.sub(r"\W+", "_", text).strip("_").lower() or "robot"


def _yaml(body: Embodiment, dataset: LeRobotDataset, notes: dict[str, str]) -> str:
    """The file, one slice a line, with the reasons as comments."""

    def line(value: Any) -> str:
        return yaml.safe_dump(value, default_flow_style=True, sort_keys=False, width=10_000).strip()

    def lines() -> Iterator[str]:
        yield f"# Drafted from {dataset.root.name}, {len(dataset)} episodes. Read it over: names, kinds, units, bounds."
        plain = body.model_dump(exclude_none=True, mode="json")
        for key, value in plain.items():
            if key not in ("views", "state", "action"):
                comment = f"   # {body.chunk_actions / body.control_hz:.2g} s" if key == "chunk_actions" else ""
                yield f"{key}: {line(value).removesuffix(chr(10) + '...')}{comment}"
                continue
            yield f"{key}:"
            for entry in value:
                why = f"   # {notes[entry['name']]}" if key == "action" else ""
                yield f"  - {line(entry)}{why}"

    return "\n".join(lines()) + "\n"
