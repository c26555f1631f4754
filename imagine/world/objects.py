"""What became of every object in a dream, against the pixels in which a simulator truly shows it.

A dream is worth what can be seen in it. Mean error hardly notices that a small block is gone, so here every thing is
looked for where it truly is, by its colour. A picture is compared in colour alone, relative to its brightness: a lamp
that is too dim is no fault, a block that is not there is.

What this is not: a detector. It needs a simulator's masks, and things of a colour that nothing else in the scene has;
:attr:`Scene.told_apart` says which those are.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np

SEEN = 8
"""Pixels from which on a thing counts as visible."""
HIDDEN = 3
"""Pixels below which a thing that was visible counts as hidden."""
GHOST = 6
"""Pixels of a connected region from which on it is taken for a thing."""
NEAR = 3
"""Pixels by which a thing may be beside its place before it is a ghost."""
APART = 0.15
"""Colour distance below which two objects look alike."""
_CELL, _RARE = 0.125, 0.003  # of the palette of what is no thing: width of a cell; share of the pixels to be noticed
_DARK = 24.0  # brightness below which colour fades into noise


@dataclass(frozen=True)
class ObjectMasks:
    """Which object each pixel of some frames shows.

    Attributes:
        masks: (T, H, W) int8, indices into ``names``, of whole canvases, oldest frame first.
        names: of the objects.
        things: indices of what must neither vanish nor multiply, each of one colour.
        targets: those of them that the instruction is about.
        view: name of the camera that stays where it is, in whose picture things are looked for.
    """

    masks: np.ndarray
    names: tuple[str, ...]
    things: tuple[int, ...]
    targets: tuple[int, ...]
    view: str

    @property
    def groups(self) -> dict[str, tuple[int, ...]]:
        """Indices by what errors are told of: ``target``, ``other`` (things), and all else by its name."""
        others = tuple(i for i in self.things if i not in self.targets)
        rest = {name: (i,) for i, name in enumerate(self.names) if i not in self.things}
        return {"target": self.targets, "other": others, **rest}


def chroma(image: np.ndarray) -> np.ndarray:
    """(..., 3) float32 colours of uint8 pixels (..., 3), whatever the strength of a white lamp; greys are near 0."""
    rgb = np.asarray(image, np.float32)
    mean = rgb.mean(-1, keepdims=True)
    return (rgb - mean) / np.maximum(mean, _DARK)


@dataclass(frozen=True)
class Palette:
    """The colours of a scene.

    Attributes:
        colours: (C, 3) float32, see :func:`chroma`.
        owner: (C,) int64, the thing (its place in ``things``) that a colour belongs to; -1 for all else.
    """

    colours: np.ndarray
    owner: np.ndarray

    @classmethod
    def measure(cls, frames: np.ndarray, masks: np.ndarray, things: tuple[int, ...]) -> Palette:
        """Measure true frames (T, h, w, 3) uint8 with masks (T, h, w): a thing where it is first seen, all else always.

        Things that are never seen have no colour.
        """
        colours, owner = [], []
        for k, thing in enumerate(things):
            own = masks == thing
            seen = np.flatnonzero(own.sum((1, 2)) >= SEEN)
            if len(seen):
                colours.append(chroma(frames[seen[0]][own[seen[0]]].mean(0))[None])
                owner.append(k)
        rest = ~np.isin(masks, things) & ~_edges(masks)
        kinds = _cells(chroma(frames[rest]))
        owners = np.array([*owner, *[-1] * len(kinds)], np.int64)
        return cls(np.concatenate([*colours, kinds]), owners)

    def apart(self, k: int) -> bool:
        """Whether colour tells thing ``k`` from everything else."""
        own = self.owner == k
        return bool(own.any()) and bool(_distance(self.colours[own], self.colours[~own]).min(initial=np.inf) >= APART)

    def __call__(self, image: np.ndarray) -> np.ndarray:
        """(..., h, w) int64: the thing whose colour is nearest to each pixel's, or -1; of uint8 (..., h, w, 3)."""
        far = (self.colours**2).sum(1) - 2 * chroma(image) @ self.colours.T  # less the pixel's own square
        return self.owner[far.argmin(-1)]


def _distance(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """(A, C) distances of colours (A, 3) from (C, 3)."""
    return np.linalg.norm(a[:, None] - b, axis=-1)


def _cells(colours: np.ndarray) -> np.ndarray:
    """Mean colours (C, 3) of the cells of a grid that hold enough of (n, 3) colours."""
    cell = np.floor(colours / _CELL).astype(np.int64) + 32  # colours lie within -1 and 2
    _, at, count = np.unique((cell[:, 0] * 64 + cell[:, 1]) * 64 + cell[:, 2], return_inverse=True, return_counts=True)
    sums = np.stack([np.bincount(at, colours[:, i], len(count)) for i in range(3)], 1)
    often = count >= max(1, _RARE * len(colours))
    return (sums[often] / count[often, None]).astype(np.float32)


def _edges(masks: np.ndarray) -> np.ndarray:
    """(T, h, w) bool: pixels beside another object, where colours mix."""
    edge = np.zeros(masks.shape, bool)
    for axis in (1, 2):
        n = masks.shape[axis]
        differs = np.diff(masks, axis=axis) != 0
        for begin in (0, 1):
            edge[(slice(None),) * axis + (slice(begin, n - 1 + begin),)] |= differs
    return edge


class Scene:
    """What truly happened in one rollout, and what pictures of it are measured against.

    Attributes:
        frames: (T, H, W, 3) uint8, true; the first one is where a dream begins.
        objects: which object each of their pixels shows.
        window: rows and columns of ``objects.view`` on the canvas.
        own: (T, N, h, w) bool, pixels of that view that show a thing in its colour; at its edges colours mix.
        visible: (T, N) int64, how many there are.
        seen: (T, N) bool, enough of them to tell whether a picture shows the thing.
        covered: (T, N) bool, a thing has been hidden before.
        returned: (T, N) bool, it was hidden for ``away`` frames in a row before.
        told_apart: (N,) bool, its colour tells a thing from everything else, so that it can be looked for.
    """

    def __init__(
        self, frames: np.ndarray, objects: ObjectMasks, window: tuple[slice, slice], codec: np.ndarray, away: int
    ) -> None:
        """Take the truth.

        Args:
            frames: see above.
            objects: likewise.
            window: likewise.
            codec: (T, H, W, 3) uint8, the true frames as the model's codec shows them.
            away: frames after which a thing that comes back has been away for long.
        """
        self.frames, self.objects, self.window, self.codec = frames, objects, window, codec
        things = objects.things
        masks = objects.masks[:, *window]
        whole = masks[:, None] == np.array(things, np.int8)[:, None, None]
        self.palette = Palette.measure(frames[:, *window], masks, things)
        self.told_apart = np.array([self.palette.apart(k) for k in range(len(things))], bool)
        self.own = whole & self._coloured(frames)
        self.visible = self.own.sum((2, 3))
        self.seen = (self.visible >= SEEN) & self.told_apart
        self.covered, self.returned = _hidden_before(whole.sum((2, 3)), away)
        self._whole = whole

    @cached_property
    def _true(self) -> np.ndarray:
        """(T, N, h, w) bool: where a thing's colour truly is, and nearby."""
        return _nearby(self._whole | self._coloured(self.frames))

    @cached_property
    def _allowed(self) -> np.ndarray:
        """(T, N, h, w) bool: the same where truth or codec shows it."""
        return self._true | _nearby(self._coloured(self.codec))

    def painted(self, pictures: np.ndarray) -> np.ndarray:
        """(T, N) bool: is at least half of what is visible of a thing painted in its colour? Of (T, H, W, 3) uint8."""
        return np.asarray(2 * (self.own & self._coloured(pictures)).sum((2, 3)) >= self.visible)

    def ghosts(self, pictures: np.ndarray, *, forgiving: bool = True) -> np.ndarray:
        """(T, N, h, w) bool: regions of a thing's colour in the view where the truth does not show it.

        Args:
            pictures: (T, H, W, 3) uint8.
            forgiving: nor does the codec.
        """
        from scipy.ndimage import label

        stray = self._coloured(pictures) & ~(self._allowed if forgiving else self._true)
        for t, k in np.ndindex(*stray.shape[:2]):
            if stray[t, k].any():
                regions, _ = label(stray[t, k])
                large = np.bincount(regions.ravel()) >= GHOST
                stray[t, k] = large[regions] & (regions > 0)
        return stray

    def _coloured(self, pictures: np.ndarray) -> np.ndarray:
        """(T, N, h, w) bool: pixels of each thing's colour in the view."""
        shown = self.palette(pictures[:, *self.window])
        return np.asarray(shown[:, None] == np.arange(len(self.objects.things))[:, None, None])

    def errors(self, pictures: np.ndarray) -> dict[str, np.ndarray]:
        """Squared errors of (T, H, W, 3) uint8, means over colours, summed over the pixels of the whole canvas.

        Returns:
            (T,) float64 for ``all``, and by group (:attr:`ObjectMasks.groups`).
        """
        off = (pictures.astype(np.float32) - self.frames.astype(np.float32)) ** 2
        each = self._by_object(off.mean(-1))
        sums = {"all": each.sum(1)}
        return sums | {name: each[:, list(own)].sum(1) for name, own in self.objects.groups.items()}

    @cached_property
    def pixels(self) -> dict[str, np.ndarray]:
        """Numbers of pixels, (T,) float64 by the names of :meth:`errors`."""
        each = self._by_object(np.ones(self.objects.masks.shape))
        sums = {"all": each.sum(1)}
        return sums | {name: each[:, list(own)].sum(1) for name, own in self.objects.groups.items()}

    def _by_object(self, values: np.ndarray) -> np.ndarray:
        """(T, objects) float64 sums of (T, H, W)."""
        masks, n = self.objects.masks.astype(np.int64), len(self.objects.names)
        at = masks + n * np.arange(len(masks))[:, None, None]
        return np.bincount(at.ravel(), values.ravel(), n * len(masks)).reshape(len(masks), n)


def _nearby(regions: np.ndarray) -> np.ndarray:
    """(T, N, h, w) bool regions, larger by a few pixels on every side."""
    from scipy.ndimage import binary_dilation

    return np.asarray(binary_dilation(regions, np.ones((1, 1, 2 * NEAR + 1, 2 * NEAR + 1), bool)))


def _hidden_before(visible: np.ndarray, away: int) -> tuple[np.ndarray, np.ndarray]:
    """Twice (T, N) bool: hidden at all, and for ``away`` frames in a row, at some time before each frame."""
    covered, returned = np.zeros(visible.shape, bool), np.zeros(visible.shape, bool)
    was_seen, was_hidden = (np.zeros(visible.shape[1], bool) for _ in range(2))
    run, long = np.zeros(visible.shape[1], np.int64), np.zeros(visible.shape[1], bool)
    for t, pixels in enumerate(visible):
        covered[t], returned[t] = was_hidden, long
        was_seen = was_seen | (pixels >= SEEN)
        now = was_seen & (pixels < HIDDEN)
        run = np.where(now, run + 1, 0)
        was_hidden, long = was_hidden | now, long | (run >= away)
    return covered, returned
