"""What dreams make of every object under the same actions as on the simulator, by chunk, beside what they must beat.

Definitions are those of :mod:`imagine.world.objects`; here they are counted over rollouts. Intervals resample rollouts.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

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
WHEN = ("never covered", "covered before", "moved")
RETURNED = f"back after {AWAY} chunks"
CATEGORIES = (*(f"{whose}, {when}" for whose in WHOSE for when in WHEN), RETURNED)

OnScene = Callable[[int, Scene, Mapping[str, np.ndarray]], None]
"""Sees (number of the rollout, what happened, pictures by kind)."""


@dataclass(frozen=True)
class Seen:
    """What one kind of picture shows of one rollout: T - 1 frames, N things.

    Attributes:
        painted: (T - 1, N) bool.
        ghost: (T - 1, N) bool, its colour is where it does not belong.
        errors: by group, (T - 1,) float64 squared errors summed over pixels.
    """

    painted: np.ndarray
    ghost: np.ndarray
    errors: dict[str, np.ndarray]


@dataclass(frozen=True)
class Truth:
    """The same of the truth.

    Attributes:
        visible: (T - 1, N) bool; things that colour does not tell apart never are.
        shown: (T - 1, N) bool, visible, and painted by the codec too; where it is not, a dream cannot be blamed.
        categories: which visible things count for what, (T - 1, N) bool by "WHOSE, WHEN" and :data:`RETURNED`. Moved
            is what the first picture does not show where it is now.
        pixels: by group, (T - 1,) float64.
        left_out: names of things that colour does not tell apart.
    """

    visible: np.ndarray
    shown: np.ndarray
    categories: dict[str, np.ndarray]
    pixels: dict[str, np.ndarray]
    left_out: tuple[str, ...]


def truth_of(scene: Scene) -> Truth:
    """What counts of one rollout."""
    objects = scene.objects
    visible = scene.seen[1:]
    target = np.isin(objects.things, objects.targets)
    covered, moved = scene.covered[1:], ~scene.painted(np.repeat(scene.frames[:1], len(scene.frames), 0))[1:]
    when = dict(zip(WHEN, (~covered, covered, moved), strict=True))
    whose = dict(zip(WHOSE, (target, ~target), strict=True))
    categories = {f"{a}, {b}": visible & own & now for a, own in whose.items() for b, now in when.items()}
    categories[RETURNED] = visible & scene.returned[1:]
    pixels = {k: v[1:] for k, v in scene.errors(scene.frames)[1].items()}
    unclear = tuple(objects.names[i] for i, ok in zip(objects.things, scene.told_apart, strict=True) if not ok)
    shown = visible & scene.painted(scene.codec)[1:]
    return Truth(visible, shown, categories, pixels, unclear)


def seen_in(scene: Scene, pictures: np.ndarray) -> Seen:
    """What pictures (T, H, W, 3) uint8 show of one rollout."""
    ghost = scene.ghosts(pictures).any((2, 3)) & scene.told_apart
    return Seen(scene.painted(pictures)[1:], ghost[1:], {k: v[1:] for k, v in scene.errors(pictures)[0].items()})


@dataclass
class ObjectTally:
    """Counts rollouts of C chunks; frames of a chunk are equally many."""

    chunks: int
    truths: list[Truth] = field(default_factory=list)
    seen: dict[str, list[Seen]] = field(default_factory=dict)

    def add(self, scene: Scene, pictures: Mapping[str, np.ndarray]) -> None:
        """One more rollout, of which every kind of picture shows something."""
        self.truths.append(truth_of(scene))
        for kind, shown in pictures.items():
            self.seen.setdefault(kind, []).append(seen_in(scene, shown))

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
        for name in CATEGORIES:
            counted = [t.categories[name] for t in self.truths]
            right = [own & s.painted for own, s in zip(counted, self.seen[kind], strict=True)]
            top, bottom = self._sums([x.sum(1) for x in right]), self._sums([x.sum(1) for x in counted])
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
            both = zip(self.truths, self.seen[kind], strict=True)
            each = [self._faults_of(t.visible if kind == "codec" else t.shown, s, chunks) for t, s in both]
            for name in FAULTS:
                out[name][f"within {chunks}"] = success_rate([e[name] for e in each]).plain()
        return out

    def _faults_of(self, wanted: np.ndarray, seen: Seen, chunks: int) -> dict[str, bool]:
        """Which faults one dream, that is to paint things where ``wanted`` (T - 1, N), has within so many chunks."""
        end = len(seen.painted) // self.chunks * chunks
        visible, painted, ghost = wanted[:end], seen.painted[:end], seen.ghost[:end]
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
    same: SameActions, *, on_scene: OnScene | None = None, on_progress: OnProgress | None = None
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
    rollouts = same.rollouts
    body, chunks = same.model.body, rollouts.actions.shape[1]
    tally = ObjectTally(chunks)
    for begin in range(0, len(rollouts), TOGETHER):
        rows = np.arange(begin, min(begin + TOGETHER, len(rollouts)))
        shown = {kind: same.pictures(kind, rows) for kind in same.kinds}
        for at, i in enumerate(rows):
            objects = rollouts.objects[i]
            view = next(v for v in body.views if v.name == objects.view)
            window = slice(view.top, view.top + view.height), slice(view.left, view.left + view.width)
            scene = Scene(rollouts.frames[i], objects, window, shown["codec"][at], AWAY * rollouts.chunk_frames)
            own = {kind: pictures[at] for kind, pictures in shown.items()}
            tally.add(scene, own)
            if on_scene is not None:
                on_scene(int(i), scene, own)
        if on_progress is not None:
            on_progress(int(rows[-1]) + 1, len(rollouts))
    return tally.numbers()
