"""What a cache holds of episodes, and caches written straight from a recorder, without a dataset or its videos.

:func:`write_cache` writes what :func:`imagine.data.cache.build_cache` would of the same episodes, but for what the
compression of videos changes.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from itertools import chain
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from imagine.data.shard import EpisodeData
from imagine.data.table import TRUTH
from imagine.embodiment import Embodiment
from imagine.files import atomic_path
from imagine.types import DatasetError, ShapeError

HELD_OUT_EVERY = 20
"""Episodes whose seed is a multiple of this are held out; without seeds, the last one in so many."""


def tick_rows(length: int, fps: float, control_hz: float) -> np.ndarray:
    """(ticks,) int: the newest of ``length`` rows at ``fps`` that each control tick can know of."""
    ticks = max(1, int(length * control_hz / fps + 1e-6))
    return np.minimum((np.arange(ticks) * fps / control_hz + 1e-6).astype(int), length - 1)


def held_out_episodes(seeds: Sequence[int | None]) -> np.ndarray:
    """Which episodes training holds out, (E,) bool.

    By seed where there are seeds, so that a dataset that grows keeps its split.
    """
    last = len(seeds) - max(1, len(seeds) // HELD_OUT_EVERY) if len(seeds) > 1 else len(seeds)
    held = np.array([i >= last if s is None else s % HELD_OUT_EVERY == 0 for i, s in enumerate(seeds)])
    return np.arange(len(seeds)) >= last if held.all() else held  # something must be left to learn from


class EpisodeArrays:
    """Everything that a cache holds but the video, episode by episode."""

    def __init__(self, embodiment: Embodiment, *, has_state: bool, has_action: bool) -> None:
        """Begin without episodes, of a recording that has the embodiment's state and actions or not."""
        self.embodiment, self.has_state, self.has_action = embodiment, has_state, has_action
        self.ids: dict[str, int] = {}
        self._parts: dict[str, list[np.ndarray]] = {}
        self._seeds: list[int | None] = []

    def add(
        self, features: dict[str, np.ndarray], rows: np.ndarray, texts: Sequence[str], index: int, seed: int | None
    ) -> None:
        """Add an episode.

        Args:
            features: ``{key: (T, d) or (T,)}``, one row per recorded row.
            rows: (ticks,) int, the newest row at each control tick.
            texts: T instructions.
            index: what the recording numbers it.
            seed: where it came from, or None.
        """
        body, n = self.embodiment, len(rows)
        data = {k: v[rows] for k, v in features.items()}
        seen = {k: v[:: body.frame_stride] for k, v in data.items()}
        f = -(-n // body.frame_stride)
        no_action, no_state = (np.zeros((f, d), np.float32) for d in (body.action_dim, body.proprio_dim))
        one = {
            "tick_action": body.action_of(data) if self.has_action else np.zeros((n, body.action_dim), np.float32),
            "tick_expert": data.get("is_expert", np.ones(n, bool)).reshape(n).astype(bool),
            "tick_success": data.get("next.success", np.zeros(n, bool)).reshape(n).astype(bool),
            "tick_task": np.array([self.ids.setdefault(texts[r], len(self.ids)) for r in rows], np.int32),
            "frame_proprio": body.proprio_of(seen) if self.has_state else no_state,
            "frame_anchor": body.anchor_of(seen) if self.has_action else no_action,
            "frame_truth": seen.get(TRUTH, np.zeros((f, 0), np.float32)).reshape(f, -1).astype(np.float32),
            "episode_ticks": np.array([n]),
            "episode_frames": np.array([f]),
            "episode_index": np.array([index]),
            "episode_seed": np.array([-1 if seed is None else seed]),
        }
        for name in ("tick_action", "frame_proprio", "frame_anchor"):
            if not np.isfinite(one[name]).all():
                raise DatasetError(
                    f"episode {index} holds NaN or infinity in what becomes {name} of embodiment {body.name!r}, "
                    "expected numbers; imagine check names every such episode and feature. Mend or leave it out."
                )
        self._seeds.append(seed)
        for name, value in one.items():
            self._parts.setdefault(name, []).append(value)

    def __len__(self) -> int:
        """Episodes so far."""
        return len(self._seeds)

    def arrays(self) -> dict[str, np.ndarray]:
        """All episodes one after another, and which of them training holds out."""
        joined = {name: np.concatenate(values) for name, values in self._parts.items()}
        return joined | {"episode_held_out": held_out_episodes(self._seeds)}

    def describe(self, folder: Path, identity: str, kind: str, *, has_success: bool) -> None:
        """Write ``cache.json``."""
        about = {"identity": identity, "instructions": list(self.ids), "embodiment": self.embodiment.name, "kind": kind}
        has = {"has_action": self.has_action, "has_state": self.has_state, "has_success": has_success}
        (folder / "cache.json").write_text(json.dumps(about | has, indent=1))


def write_cache(
    episodes: Iterable[EpisodeData],
    embodiment: Embodiment,
    cache_dir: str | Path,
    *,
    fps: float,
    identity: str,
    first_index: int = 0,
) -> int:
    """Write a cache of canvases from episodes as they are recorded; it exists whole or not at all.

    Pictures go to disk one episode at a time, so a cache may be larger than memory.

    Args:
        episodes: at least one; all of one robot, with views of the embodiment's sizes.
        embodiment: which views, slices and strides to take.
        cache_dir: where the cache goes; an older one there is replaced.
        fps: rows per second of the episodes.
        identity: names what the cache was made of.
        first_index: number of the first episode.

    Returns:
        How many episodes it holds; where there are none, nothing is written.

    Raises:
        DatasetError: an episode lacks a view or a feature of the embodiment, or is recorded at another rate.
        ShapeError: a view has another size than the embodiment says, or an episode is malformed.
    """
    if fps != embodiment.control_hz and any(a.mode == "delta" for a in embodiment.action):
        raise DatasetError(
            f"episodes are recorded at {fps:g} Hz, expected control_hz {embodiment.control_hz} of embodiment "
            f"{embodiment.name!r}: actions per tick can be read at no other rate."
        )
    first = next(waiting := iter(episodes), None)
    if first is None:
        return 0
    arrays, has_success = EpisodeArrays(embodiment, has_state=True, has_action=True), True
    with atomic_path(cache_dir) as temporary:
        temporary.mkdir()
        with GrowingArray(temporary / "video.npy") as video:
            for i, episode in enumerate(chain([first], waiting)):
                _check(episode, embodiment)
                rows = tick_rows(len(episode), fps, embodiment.control_hz)
                arrays.add(_columns(episode), rows, episode.task, first_index + i, episode.seed)
                video.append(_canvases(episode, embodiment, rows[:: embodiment.frame_stride]))
                has_success &= "next.success" in episode.features
        np.savez(temporary / "arrays.npz", **arrays.arrays())  # type: ignore[arg-type]
        arrays.describe(temporary, identity, "canvas", has_success=has_success)
    return len(arrays)


def _check(episode: EpisodeData, embodiment: Embodiment) -> None:
    """Raise unless an episode is well formed and has all that the embodiment wants."""
    episode.check()
    used = {a.relative_to for a in embodiment.action} | set(embodiment.proprio)
    stops = [(s.key, s.stop) for s in embodiment.state if s.name in used]
    for key, stop in [*stops, *((a.key, a.stop) for a in embodiment.action)]:
        size = episode.features[key].reshape(len(episode), -1).shape[1] if key in episode.features else 0
        if size < stop:
            raise DatasetError(
                f"the episode of seed {episode.seed} has {size} numbers of {key!r}, expected at least {stop} for "
                f"embodiment {embodiment.name!r}; use the embodiment of the robot that records."
            )
    for view in embodiment.views:
        if view.key not in episode.views:
            raise DatasetError(
                f"the episode of seed {episode.seed} has cameras {sorted(episode.views)}, expected {view.key!r} for "
                f"view {view.name!r} of embodiment {embodiment.name!r}."
            )


def _columns(episode: EpisodeData) -> dict[str, np.ndarray]:
    """Features as a dataset gives them back: floating-point ones of one number are (T, 1)."""
    one = {k for k, v in episode.features.items() if v.ndim == 1 and v.dtype.kind == "f"}
    return {k: v[:, None] if k in one else v for k, v in episode.features.items()}


def _canvases(episode: EpisodeData, embodiment: Embodiment, rows: np.ndarray) -> np.ndarray:
    """(frames, H, W, 3) uint8 of an episode's rows."""
    shown = episode.view_index[rows]
    return embodiment.tile({v.name: episode.views[v.key][shown] for v in embodiment.views})


class GrowingArray:
    """A ``.npy`` file to whose first axis rows are added; its header says how many there are when it is closed."""

    def __init__(self, path: Path) -> None:
        self._path, self._rows, self._like = path, 0, np.empty(0)

    def __enter__(self) -> GrowingArray:
        self._file: BinaryIO = open(self._path, "wb")
        return self

    def append(self, rows: np.ndarray) -> None:
        """Add (n, ...) rows, all of one shape and type."""
        if not self._rows:
            self._like = rows[:0]
            self._write_header()
        if rows.shape[1:] != self._like.shape[1:] or rows.dtype != self._like.dtype:
            raise ShapeError(
                f"got rows {rows.shape[1:]} {rows.dtype}, expected {self._like.shape[1:]} {self._like.dtype}."
            )
        self._file.write(np.ascontiguousarray(rows).data)
        self._rows += len(rows)

    def _write_header(self) -> None:
        """NumPy pads headers so that the first axis may grow in place."""
        shape = (self._rows, *self._like.shape[1:])
        header = {"descr": np.lib.format.dtype_to_descr(self._like.dtype), "fortran_order": False, "shape": shape}
        np.lib.format.write_array_header_1_0(self._file, header)

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, where: Any) -> None:
        if kind is None:
            self._file.seek(0)
            self._write_header()
        self._file.close()
