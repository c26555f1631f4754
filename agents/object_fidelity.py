"""What dreams make of every object under the same actions as on the simulator, by chunk, beside what they must beat.

Definitions are those of :mod:`imagine.world.objects`; here they are counted over rollouts. Intervals resample rollouts.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from imagine.agents.foreign_fidelity import ForeignActions
from imagine.agents.rollout import OnProgress
from imagine.agents.same_actions import TOGETHER, SameActions
from imagine.agents.statistics import Interval, ratio_interval, success_rate
from imagine.world.objects import Scene

FAULT = 3
"""Frames from which on something wrong in a dream is a fault, not a flicker."""
AWAY = 3
"""Chunks after which a thing that comes back has been away for long."""
EARLY = 3
"""Chunks that count as the beginning of a dream."""
FAULTS = ("erased", "ghost", "duplicated", "any")
WHOSE = ("target", "other")
WHEN = ("never covered", "covered before", "moved", f"back after {AWAY} chunks")
SIDE = tuple(f"other views, {when}" for when in ("never gone", "gone before", f"back after {AWAY} chunks"))

OnScene = Callable[[int, Scene, Mapping[str, np.ndarray]], None]
"""Sees (number of the rollout, what happened, pictures by kind)."""


Category = tuple[str, int, np.ndarray]
"""Its name, the number of a scene, and which of its visible things count, (T, N) bool."""


@dataclass(frozen=True)
class Seen:
    """What one kind of picture shows of one rollout: T - 1 frames, N things.

    Attributes:
        painted: (T - 1, N) bool, in the view that stays.
        ghost: (T - 1, N) bool, its colour is where it does not belong.
        right: by category, (T - 1,) int64 how many things are painted.
        errors: by group, (T - 1,) float64 squared errors summed over pixels.
    """

    painted: np.ndarray
    ghost: np.ndarray
    right: dict[str, np.ndarray]
    errors: dict[str, np.ndarray]


@dataclass(frozen=True)
class Truth:
    """The same of the truth.

    Attributes:
        visible: (T - 1, N) bool; things that colour does not tell apart never are.
        counted: by category, (T - 1,) int64 how many things are to be painted.
        pixels: by group, (T - 1,) float64.
        left_out: names of things that colour does not tell apart.
    """

    visible: np.ndarray
    counted: dict[str, np.ndarray]
    pixels: dict[str, np.ndarray]
    left_out: tuple[str, ...]


def categories(scenes: Sequence[Scene]) -> list[Category]:
    """Which visible things count for what.

    Args:
        scenes: one rollout in several views, that of the camera that stays first. Moved is what the first picture does
            not show where it is now.
    """
    main, objects = scenes[0], scenes[0].objects
    moved = ~main.painted(np.repeat(main.frames[:1], len(main.frames), 0))
    target = np.isin(objects.things, objects.targets)
    when = zip(WHEN, (~main.covered, main.covered, moved, main.returned), strict=True)
    whose = dict(zip(WHOSE, (target, ~target), strict=True))
    found = [(f"{a}, {b}", 0, main.seen & own & now) for b, now in when for a, own in whose.items()]
    for k, side in enumerate(scenes[1:], 1):
        for name, now in zip(SIDE, (~side.covered, side.covered, side.returned), strict=True):
            found.append((name, k, side.seen & now))
    return found


def _summed(each: Sequence[tuple[str, np.ndarray]]) -> dict[str, np.ndarray]:
    """By category (T - 1,) counts of (T, N) bool."""
    out: dict[str, np.ndarray] = {}
    for name, own in each:
        out[name] = out.get(name, 0) + own[1:].sum(1)
    return out


def truth_of(scenes: Sequence[Scene], counts: Sequence[Category]) -> Truth:
    """What counts (:func:`categories`) of one rollout, seen in several views."""
    main, objects = scenes[0], scenes[0].objects
    counted = _summed([(name, own) for name, _, own in counts])
    pixels = {k: v[1:] for k, v in main.pixels.items()}
    unclear = tuple(objects.names[i] for i, ok in zip(objects.things, main.told_apart, strict=True) if not ok)
    return Truth(main.seen[1:], counted, pixels, unclear)


def seen_in(scenes: Sequence[Scene], counts: Sequence[Category], pictures: np.ndarray, *, codec: bool = False) -> Seen:
    """What pictures (T, H, W, 3) uint8 show of one rollout; the ``codec`` is forgiven nothing."""
    main, painted = scenes[0], [scene.painted(pictures) for scene in scenes]
    ghost = main.ghosts(pictures, forgiving=not codec).any((2, 3)) & main.told_apart
    right = _summed([(name, own & painted[k]) for name, k, own in counts])
    return Seen(painted[0][1:], ghost[1:], right, {k: v[1:] for k, v in main.errors(pictures).items()})


@dataclass
class ObjectTally:
    """Counts rollouts of C chunks; frames of a chunk are equally many."""

    chunks: int
    truths: list[Truth] = field(default_factory=list)
    seen: dict[str, list[Seen]] = field(default_factory=dict)

    def add(self, scenes: Sequence[Scene], pictures: Mapping[str, np.ndarray]) -> None:
        """One more rollout, of which every kind of picture shows something; the view that stays first."""
        counts = categories(scenes)
        self.truths.append(truth_of(scenes, counts))
        for kind, shown in pictures.items():
            self.seen.setdefault(kind, []).append(seen_in(scenes, counts, shown, codec=kind == "codec"))

    def numbers(self) -> dict[str, Any]:
        """All tables; see :func:`measure_objects`."""
        left_out = sorted({name for t in self.truths for name in t.left_out})
        painted = {kind: self._painted(kind) for kind in self.seen}
        db = {kind: self._decibels(kind) for kind in self.seen}
        faults = {kind: self._faults(kind) for kind in self.seen}
        found = {"n": len(self.truths), "chunks": self.chunks, "painted": painted, "db": db, "faults": faults}
        if "without_tokens" in self.seen:
            found["error_without_tokens"] = self._ratio("without_tokens", "dream")
        return {**found, "left_out": left_out}

    def _painted(self, kind: str) -> dict[str, Any]:
        out = {}
        for name in dict.fromkeys(name for t in self.truths for name in t.counted):
            top = self._sums([s.right[name] for s in self.seen[kind]])
            bottom = self._sums([t.counted[name] for t in self.truths])
            out[name] = {**_over_chunks(top, bottom, plain), "frames": int(bottom.sum())}
        return out

    def _decibels(self, kind: str) -> dict[str, Any]:
        out = {}
        for group in self._groups():
            top, bottom = self._errors(kind, group), self._pixels(group)
            out[group] = _over_chunks(top, bottom, decibels)
        return out

    def _ratio(self, kind: str, other: str) -> dict[str, Any]:
        """Error of one kind of picture as a multiple of another's, by group, all chunks together."""
        each = {g: (self._errors(kind, g).sum(1), self._errors(other, g).sum(1)) for g in self._groups()}
        return {g: plain(ratio_interval(*both)) for g, both in each.items()}

    def _faults(self, kind: str) -> dict[str, Any]:
        out: dict[str, Any] = {name: {} for name in FAULTS}
        for chunks in sorted({min(EARLY, self.chunks), self.chunks}):
            each = [self._faults_of(t, s, chunks) for t, s in zip(self.truths, self.seen[kind], strict=True)]
            for name in FAULTS:
                out[name][f"within {chunks}"] = success_rate([e[name] for e in each]).plain()
        return out

    def _faults_of(self, truth: Truth, seen: Seen, chunks: int) -> dict[str, bool]:
        """Which faults one dream has within so many chunks."""
        end = len(seen.painted) // self.chunks * chunks
        visible, painted, ghost = truth.visible[:end], seen.painted[:end], seen.ghost[:end]
        frames = {
            "erased": (visible & ~painted).sum(0),
            "ghost": ghost.sum(0),
            "duplicated": (ghost & visible & painted).sum(0),
        }
        found = {name: bool((n >= FAULT).any()) for name, n in frames.items()}
        return {**found, "any": any(found.values())}

    def _groups(self) -> list[str]:
        return list(dict.fromkeys(g for t in self.truths for g in t.pixels))

    def _errors(self, kind: str, group: str) -> np.ndarray:
        return self._sums([s.errors.get(group, np.zeros(len(s.painted))) for s in self.seen[kind]])

    def _pixels(self, group: str) -> np.ndarray:
        return self._sums([t.pixels.get(group, np.zeros(len(t.visible))) for t in self.truths])

    def _sums(self, each: list[np.ndarray]) -> np.ndarray:
        """(n, C) sums over the frames of each chunk, of (T - 1,) per rollout."""
        return np.stack([x.reshape(self.chunks, -1).sum(1) for x in each]).astype(np.float64)


def plain(x: Interval) -> dict[str, float | int] | None:
    """As JSON has it; None where nothing was counted."""
    return x.plain() if x.n else None


def decibels(error: Interval) -> dict[str, float | int] | None:
    """An interval of mean squared errors of uint8 pixels as peak signal-to-noise ratios, dB."""
    value, high, low = (float(10 * np.log10(255.0**2 / max(x, 1e-3))) for x in (error.value, error.low, error.high))
    return plain(Interval(value, low, high, error.n))


def _over_chunks(top: np.ndarray, bottom: np.ndarray, as_plain: Callable[[Interval], Any]) -> dict[str, Any]:
    """Ratios of sums (n, C) over all chunks and by chunk."""
    by_chunk = [as_plain(ratio_interval(a, b)) for a, b in zip(top.T, bottom.T, strict=True)]
    return {"all": as_plain(ratio_interval(top.sum(1), bottom.sum(1))), "by_chunk": by_chunk}


def measure_objects(
    same: SameActions | ForeignActions, *, on_scene: OnScene | None = None, on_progress: OnProgress | None = None
) -> dict[str, Any]:
    """Dream all rollouts and tell what became of their objects.

    Args:
        same: who dreams of what.
        on_scene: sees every rollout with its pictures, which are not kept.
        on_progress: told how many rollouts are done.

    Returns:
        ``n``, ``chunks``; by kind of picture (:data:`imagine.agents.same_actions.PICTURES`) ``painted``, the share of
        frames in which visible things are painted, by category, and of how many frames; ``db`` by object; ``faults``,
        shares of dreams; each over all chunks, ``by_chunk``, or within so many. ``error_without_tokens``, squared
        error without the transformer's tokens as a multiple of that with them; ``left_out``, things whose colour does
        not tell them apart.
    """
    rollouts, views = same.rollouts, same.model.body.views
    windows = {v.name: (slice(v.top, v.top + v.height), slice(v.left, v.left + v.width)) for v in views}
    tally = ObjectTally(rollouts.actions.shape[1])
    for begin in range(0, len(rollouts), TOGETHER):
        rows = np.arange(begin, min(begin + TOGETHER, len(rollouts)))
        shown = {kind: same.pictures(kind, rows) for kind in same.kinds}
        for at, i in enumerate(rows):
            objects, away = rollouts.objects[i], AWAY * rollouts.chunk_frames
            order = sorted(windows, key=lambda name: name != objects.view)
            codec, frames = shown["codec"][at], rollouts.frames[i]
            scenes = [Scene(frames, objects, windows[name], codec, away) for name in order]
            own = {kind: pictures[at] for kind, pictures in shown.items()}
            tally.add(scenes, own)
            if on_scene is not None:
                on_scene(int(i), scenes[0], own)
        if on_progress is not None:
            on_progress(int(rows[-1]) + 1, len(rollouts))
    return tally.numbers()
