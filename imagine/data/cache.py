"""Turns a dataset into a cache for training: every video decoded once, at the model's frame stride, and encoded once.

A cache folder holds ``video.npy`` (latents float16, or canvases uint8), ``arrays.npz`` (everything per frame, tick and
episode) and ``cache.json``. It is built under a temporary name and renamed, so it exists whole or not at all.
"""

from __future__ import annotations

import hashlib
import json
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from imagine.data.episode_cache import EpisodeArrays, GrowingArray, held_out_episodes, tick_rows
from imagine.data.processes import process_pool
from imagine.data.read import LeRobotDataset
from imagine.embodiment import Embodiment
from imagine.files import atomic_path
from imagine.types import ShapeError

__all__ = ["Encode", "build_cache", "fingerprint", "frame_rows", "held_out_episodes", "is_current", "tick_rows"]

Encode = Callable[[Tensor], Tensor]
_GROUP_EPISODES = 25
_FORMAT = 4
_END = 2**16  # bytes


def build_cache(
    dataset: LeRobotDataset,
    embodiment: Embodiment,
    encode: Encode | None,
    cache_dir: str | Path,
    *,
    workers: int = 2,
    batch: int = 256,
    tag: str = "",
    progress: Callable[[int, int], None] | None = None,
) -> Path:
    """Decode and encode a dataset for an embodiment; returns at once if ``cache_dir`` already holds exactly that.

    Views of another size than the embodiment's are resized by area to it, without keeping their aspect ratio.

    Args:
        dataset: an opened dataset; without action (and state) features it is taken as video only.
        embodiment: which views, slices and strides to take.
        encode: (N, H, W, 3) uint8 canvases to (N, C, h, w) float latents, or None to keep the canvases.
        cache_dir: where the cache goes; an older cache there is replaced.
        workers: decoding processes; 0 decodes in this one. A script that uses processes needs a ``__main__`` guard.
        batch: canvases per call of ``encode``.
        tag: names the encoder; a cache with another tag is rebuilt.
        progress: called with (frames done, frames).

    Raises:
        DatasetError: the dataset does not fit the embodiment, or a file of it is bad.
    """
    final, kind = Path(cache_dir), "canvas" if encode is None else "latents"
    has_state, has_action = dataset.check_embodiment(embodiment)
    identity = _identity(dataset, embodiment, f"{kind} {tag}")
    if is_current(final, identity):
        return final
    with atomic_path(final) as temporary:
        temporary.mkdir()
        read = _read_arrays(dataset, embodiment, has_state, has_action)
        arrays = read.arrays()
        np.savez(temporary / "arrays.npz", **arrays)  # type: ignore[arg-type]
        _write_video(dataset, embodiment, encode, temporary / "video.npy", arrays, (workers, batch), progress)
        read.describe(temporary, identity, kind, has_success="next.success" in dataset.layout.features)
    return final


def is_current(cache_dir: Path, identity: str) -> bool:
    """Whether a cache folder is whole and was built from exactly this."""
    try:
        found = json.loads((cache_dir / "cache.json").read_text())["identity"]
    except (OSError, ValueError, KeyError):
        return False
    return bool(found == identity)


def _identity(dataset: LeRobotDataset, embodiment: Embodiment, kind: str) -> str:
    """Hash of all that a cache depends on: format, encoder, embodiment, and the dataset."""
    return _hash([_FORMAT, kind, embodiment.model_dump(), _content(dataset)])


def fingerprint(dataset: LeRobotDataset) -> dict[str, object]:
    """What tells a dataset from another, wherever it lies: its size, and a hash of what it says and of its files."""
    rows = sum(e.length for e in dataset.layout.episodes)
    return {"episodes": len(dataset), "rows": rows, "digest": _hash(_content(dataset))[:16]}


def _content(dataset: LeRobotDataset) -> list[object]:
    """Everything that is read of a dataset; statistics are not, they are computed anew."""
    layout, root = dataset.layout, dataset.root
    paths = {p for e in layout.episodes for p in [e.data, *(v.path for v in e.videos.values())]}
    files = sorted((path.relative_to(root).as_posix(), _digest(path)) for path in paths)
    starts = [sorted((key, span.start) for key, span in e.videos.items()) for e in layout.episodes]
    told = [(e.index, e.length, e.tasks, e.seed, e.failure_mode) for e in layout.episodes]
    return [layout.fps, layout.features, sorted(layout.tasks.items()), told, starts, files]


def _digest(path: Path) -> str:
    """A hash of a data file, or of both ends of a video, one of which lists the size of every frame in it."""
    with path.open("rb") as file:
        if path.suffix == ".parquet":
            return hashlib.file_digest(file, "blake2b").hexdigest()[:32]
        size = file.seek(0, 2)
        file.seek(0)
        content = file.read(_END)
        file.seek(max(0, size - _END))
        return hashlib.blake2b(content + file.read(_END), digest_size=16).hexdigest() + f"-{size}"


def _hash(content: object) -> str:
    return hashlib.sha256(json.dumps(content).encode()).hexdigest()


def frame_rows(dataset: LeRobotDataset, embodiment: Embodiment, i: int) -> np.ndarray:
    """(frames,) int: the rows of an episode at which the model sees a frame."""
    return tick_rows(dataset[i].length, dataset.fps, embodiment.control_hz)[:: embodiment.frame_stride]


def _read_arrays(dataset: LeRobotDataset, embodiment: Embodiment, has_state: bool, has_action: bool) -> EpisodeArrays:
    """Everything but the video."""
    read = EpisodeArrays(embodiment, has_state=has_state, has_action=has_action)
    keys = dataset.keys(embodiment, has_state=has_state, has_action=has_action)
    for i in range(len(dataset)):
        rows = tick_rows(dataset[i].length, dataset.fps, embodiment.control_hz)
        read.add(dataset.features(i, keys), rows, dataset.instructions(i), dataset[i].index, dataset[i].seed)
    return read


def _groups(dataset: LeRobotDataset) -> list[list[int]]:
    """Runs of episodes that share their video files: one run is decoded in one pass."""
    groups: list[list[int]] = []
    for i in range(len(dataset)):
        paths = {k: v.path for k, v in dataset[i].videos.items()}
        if groups and len(groups[-1]) < _GROUP_EPISODES:
            last = dataset[groups[-1][-1]].videos
            length = (dataset[groups[-1][-1]].length - 0.5) / dataset.fps
            later = all(v.start > last[k].start + length for k, v in dataset[i].videos.items())
            if later and paths == {k: v.path for k, v in last.items()}:
                groups[-1].append(i)
                continue
        groups.append([i])
    return groups


def _canvases(dataset: LeRobotDataset, embodiment: Embodiment, group: Sequence[int]) -> np.ndarray:
    """(frames of all episodes of the group, H, W, 3) uint8."""
    wanted = [(i, frame_rows(dataset, embodiment, i)) for i in group]
    views = {}
    for v in embodiment.views:
        views[v.name] = np.stack(list(dataset.each_frame(wanted, v.key, (v.height, v.width))))
    return embodiment.tile(views)


_job: tuple[LeRobotDataset, Embodiment]


def _start(dataset: LeRobotDataset, embodiment: Embodiment) -> None:
    """Runs once in each process, so that the dataset's description is sent once and not with every job."""
    global _job
    _job = (dataset, embodiment)


def _work(group: Sequence[int]) -> np.ndarray:
    return _canvases(*_job, group)


def _decoded(dataset: LeRobotDataset, embodiment: Embodiment, workers: int) -> Iterator[np.ndarray]:
    """Canvases group by group, in order, decoded a few groups ahead."""
    groups = _groups(dataset)
    if workers <= 0 or len(groups) == 1:
        yield from (_canvases(dataset, embodiment, g) for g in groups)
        return
    bare = LeRobotDataset(dataset.root, dataset.layout)  # without the tables it has read
    with process_pool(min(workers, len(groups)), _start, (bare, embodiment)) as pool:
        ahead: deque[Future[np.ndarray]] = deque()
        for group in groups:
            ahead.append(pool.submit(_work, group))
            if len(ahead) > 2 * workers:
                yield ahead.popleft().result()
        while ahead:
            yield ahead.popleft().result()


def _write_video(
    dataset: LeRobotDataset,
    embodiment: Embodiment,
    encode: Encode | None,
    path: Path,
    arrays: dict[str, np.ndarray],
    effort: tuple[int, int],
    progress: Callable[[int, int], None] | None,
) -> None:
    workers, batch = effort
    total, at = int(arrays["episode_frames"].sum()), 0
    with GrowingArray(path) as out:
        for canvases in _decoded(dataset, embodiment, workers):
            for part in (canvases[i : i + batch] for i in range(0, len(canvases), batch)):
                out.append(part if encode is None else _encoded(encode, part))
                at += len(part)
                if progress is not None:
                    progress(at, total)
    assert at == total


def _encoded(encode: Encode, canvases: np.ndarray) -> np.ndarray:
    with torch.inference_mode():
        latents = encode(torch.from_numpy(canvases))
    if latents.ndim != 4 or len(latents) != len(canvases):
        raise ShapeError(
            f"encode gave latents {tuple(latents.shape)} for {len(canvases)} canvases, "
            f"expected ({len(canvases)}, C, h, w)."
        )
    half = latents.to("cpu", torch.float16)
    if not torch.isfinite(half).all():
        raise ShapeError(
            "encode gave latents that are NaN or beyond what float16 holds (65504); normalise them to about unit scale."
        )
    return half.numpy()
