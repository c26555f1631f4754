"""Reads caches back: their arrays as one, and their frames where they lie: on disk, in memory or on a device."""

from __future__ import annotations

import functools
import json
from collections.abc import Callable, MutableMapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from imagine.embodiment import Embodiment
from imagine.intact import intact
from imagine.types import DatasetError

ARRAYS = (
    "tick_action", "tick_expert", "tick_success", "tick_task", "frame_proprio", "frame_anchor", "frame_truth",
    "episode_ticks", "episode_frames", "episode_index", "episode_seed", "episode_held_out",
)  # fmt: skip
"""What ``arrays.npz`` of a cache holds, by what it has one row per."""


class FrameStore:
    """The frames of some caches of one kind, numbered one cache after another; ``len`` is their number.

    Attributes:
        kind: "canvas", (H, W, 3) uint8 each, or "latents", (C, h, w) float16.
    """

    def __init__(self, folders: Sequence[Path], kind: str, *, in_memory: bool = True) -> None:
        """Open the caches.

        Args:
            folders: made by :func:`imagine.data.cache.build_cache`, all of this kind.
            kind: which.
            in_memory: read all into memory when the first frame is used; otherwise one cache's stay on disk.

        Raises:
            DatasetError: one cannot be read, or frames differ in shape.
        """
        self.kind, self._folders, self._in_memory = kind, list(folders), in_memory
        self._parts: list[Any] = [_opened(folder) for folder in folders]
        if len({part.shape[1:] for part in self._parts}) > 1:
            raise DatasetError(
                f"caches {[str(f) for f in folders]} hold frames of shapes {[p.shape[1:] for p in self._parts]}, "
                "expected one shape; build them with the same encoder."
            )

    def __len__(self) -> int:
        return sum(map(len, self._parts))

    @functools.cached_property
    def array(self) -> Any:
        """All frames, an array, or a tensor where :meth:`to` has put them."""
        whole = self._in_memory or len(self._parts) > 1
        return np.concatenate(self._parts) if whole else self._parts[0]

    def frames(self, numbers: np.ndarray | Tensor) -> Tensor:
        """(n, ...) frames by their numbers, where :meth:`to` has put them."""
        if isinstance(self.array, Tensor):
            return self.array[torch.as_tensor(numbers, device=self.array.device)]
        return torch.from_numpy(np.ascontiguousarray(self.array[np.asarray(numbers)]))

    def to(self, device: torch.device | str) -> None:
        """Move all frames to a device, cache by cache without a copy of the whole in memory."""
        if isinstance(self.__dict__.get("array"), Tensor):
            self.array = self.array.to(device)
            return
        kind = torch.uint8 if self.kind == "canvas" else torch.float16
        out = torch.empty((len(self), *self._parts[0].shape[1:]), device=device, dtype=kind)
        at = 0
        for part in self._parts:
            out[at : at + len(part)] = torch.from_numpy(np.array(part))
            at += len(part)
        self.array = out

    def encoded(
        self,
        encode: Callable[[Tensor], Tensor],
        device: torch.device | str,
        batch: int,
        kept: MutableMapping[Path, Tensor] | None,
    ) -> FrameStore:
        """The same frames as latents on a device; see :meth:`imagine.data.windows.Windows.encoded`."""
        kept = {} if kept is None else kept
        with torch.no_grad():
            for folder, part in zip(self._folders, self._parts, strict=True):
                if folder not in kept:
                    pieces = (torch.from_numpy(np.array(part[at : at + batch])) for at in range(0, len(part), batch))
                    kept[folder] = torch.cat([encode(piece.to(device)).to(torch.float16) for piece in pieces])
        latents = FrameStore.__new__(FrameStore)
        latents.kind, latents._folders, latents._in_memory = "latents", self._folders, True
        latents._parts = [kept[folder] for folder in self._folders]
        latents.array = torch.cat(latents._parts)
        return latents


def _opened(folder: Path) -> np.ndarray:
    with intact(folder / "video.npy", "delete the cache and build it again", DatasetError):
        return np.asanyarray(np.load(folder / "video.npy", mmap_mode="r"))


def read_caches(folders: Sequence[Path], embodiment: Embodiment) -> tuple[str, tuple[str, ...], dict[str, np.ndarray]]:
    """Their kind, every instruction of some caches, and their arrays one after another, tasks renumbered to match.

    Raises:
        DatasetError: one is missing, unreadable or of another embodiment, or they are of different kinds.
    """
    abouts, arrays = zip(*(_load(folder, embodiment) for folder in folders), strict=True)
    kinds = [about["kind"] for about in abouts]
    if len(set(kinds)) != 1:
        raise DatasetError(
            f"caches {[str(f) for f in folders]} hold {kinds}, expected one kind; build them with the same encoder."
        )
    return kinds[0], *_joined(abouts, arrays)


def _load(folder: Path, embodiment: Embodiment) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    remedy = "delete the cache and build it again"
    with intact(folder / "cache.json", remedy, DatasetError):
        about = json.loads((folder / "cache.json").read_text())
        words = [about[key] for key in ("kind", "embodiment", "has_action", "has_state", "has_success")]
        texts = [*words[:2], *about["instructions"]]
        if not all(isinstance(text, str) for text in texts) or not all(isinstance(flag, bool) for flag in words[2:]):
            raise TypeError("a name or an instruction is no text, or has_action and the like are not true or false")
    with intact(folder / "arrays.npz", remedy, DatasetError), np.load(folder / "arrays.npz") as file:
        arrays = dict(file)
        got = (arrays["tick_action"].shape[1], arrays["frame_proprio"].shape[1])
        want = (embodiment.action_dim, embodiment.proprio_dim)
        strides = -(-arrays["episode_ticks"] // embodiment.frame_stride)
        rows = {"tick": arrays["episode_ticks"].sum(), "frame": arrays["episode_frames"].sum()}
        rows["episode"] = len(strides)
        if wrong := [name for name in ARRAYS if len(arrays[name]) != rows[name.partition("_")[0]]]:
            raise ValueError(f"{wrong[0]} has {len(arrays[wrong[0]])} rows")
        if not 0 <= arrays["tick_task"].min() <= arrays["tick_task"].max() < len(about["instructions"]):
            raise ValueError("it names instructions that are not there")
    if about["embodiment"] != embodiment.name or got != want or (strides != arrays["episode_frames"]).any():
        raise DatasetError(
            f"cache {folder} is of embodiment {about['embodiment']!r} with (A, P) = {got}, expected "
            f"{embodiment.name!r} with {want} and {embodiment.frame_stride} ticks per frame; "
            "build it again for this embodiment."
        )
    return about, arrays


def _joined(
    abouts: Sequence[dict[str, Any]], caches: Sequence[dict[str, np.ndarray]]
) -> tuple[tuple[str, ...], dict[str, np.ndarray]]:
    """Every instruction of some caches, and their arrays one after another, tasks renumbered to match."""
    ids: dict[str, int] = {}
    same = len({arrays["frame_truth"].shape[1] for arrays in caches}) == 1  # one dataset without it is enough
    for about, arrays in zip(abouts, caches, strict=True):
        new = np.array([ids.setdefault(text, len(ids)) for text in about["instructions"]])
        arrays["tick_task"] = new[arrays["tick_task"]]
        arrays["frame_truth"] = arrays["frame_truth"][:, : None if same else 0]
        for flag in ("has_action", "has_state", "has_success"):
            arrays[flag] = np.full(len(arrays["episode_ticks"]), about[flag])
    return tuple(ids), {name: np.concatenate([arrays[name] for arrays in caches]) for name in caches[0]}
