"""Collects a dataset by running an episode function in many processes; a killed run goes on where it stopped.

``collect(Path("datasets/mine"), "my_robot.episodes:episode", 1000, 0, workers=2, options={})``
"""

from __future__ import annotations

import json
import queue
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, wait
from concurrent.futures.process import BrokenProcessPool
from importlib import import_module
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from imagine.data.processes import SPAWN, process_pool
from imagine.data.write import DatasetWriter, EpisodeData
from imagine.files import leftovers, remove, write_json
from imagine.progress import Progress
from imagine.types import DatasetError, ImagineError

RESERVED_SEED = 900_000
"""Seeds from here on are for evaluation."""


class Episode(Protocol):
    """What an episode function returns: T ticks of one robot.

    A simulator's episode may also have ``truth``, (T, S) float, what no real robot knows.
    """

    state: np.ndarray
    action: np.ndarray
    is_expert: np.ndarray
    success: np.ndarray
    task: Sequence[str]
    failure_mode: str
    seed: int
    views: Mapping[str, np.ndarray]
    view_index: np.ndarray


def collect(
    out: Path,
    episode_fn_path: str,
    episodes: int,
    first_seed: int,
    workers: int,
    *,
    shard_size: int = 50,
    options: Mapping[str, Any] | None = None,
    robot_type: str = "agibot_g1",
    fps: int = 30,
    names: Mapping[str, Sequence[str]] | None = None,
    allow_reserved: bool = False,
    progress: Callable[[int, int], None] | None = None,
) -> dict[str, Any]:
    """Record ``episodes`` episodes with consecutive seeds into a LeRobotDataset v3.0; resumes what is there.

    Args:
        out: dataset folder, new or one that an earlier call with the same settings started.
        episode_fn_path: ``"module:function"``, called as ``function(seed, **options)``; returns an :class:`Episode`.
        episodes: how many in all.
        first_seed: seed of episode 0; episode i gets ``first_seed + i``.
        workers: processes, each with one thread.
        shard_size: episodes per file; also what is lost when a process is killed.
        options: keyword arguments of the episode function.
        robot_type: written into ``info.json``.
        fps: control rate, Hz.
        names: ``{feature key: one name per dimension}`` for ``info.json``.
        allow_reserved: permit seeds from 900000 on, which evaluation uses.
        progress: called with (episodes done, episodes) instead of drawing a bar on stderr.

    Returns:
        ``info.json`` with ``collected`` (episodes recorded now) and ``seconds`` added.

    Raises:
        ImagineError: reserved seeds, or an episode could not be recorded (the others are kept).
    """
    check_seeds(first_seed, episodes, allow_reserved)
    episode_function(episode_fn_path)  # a wrong name should fail here, not in every process
    out = Path(out)
    clean(out)
    _check_source(out, {"episode": episode_fn_path, "options": dict(options or {}), "shard_size": shard_size})
    writer = DatasetWriter(out, robot_type, fps, shard_size, names or {})
    writer.refuse_changed()
    shards = {
        i: range(first_seed + a, first_seed + min(a + shard_size, episodes))
        for i, a in enumerate(range(0, episodes, shard_size))
    }
    missing = {i: seeds for i, seeds in shards.items() if not writer.is_complete(i, seeds)}
    todo = sum(len(seeds) for seeds in missing.values())
    began = time.monotonic()
    done = episodes - todo
    with Progress("collecting", episodes, done, silent=progress is not None) as bar:

        def advance(n: int) -> None:
            nonlocal done
            done += n
            (progress or bar)(done, episodes)

        advance(0)
        try:
            _run(writer, episode_fn_path, missing, dict(options or {}), workers, advance)
        finally:
            clean(out)
    info = writer.finalize()
    return info | {"collected": todo, "seconds": time.monotonic() - began}


def clean(out: Path) -> None:
    """Remove what processes left below a folder that were killed while they wrote."""
    for path in list(leftovers(out)):
        remove(path)


def check_seeds(first_seed: int, episodes: int, allow_reserved: bool) -> None:
    """Raise ImagineError where a collection would record seeds that evaluation uses."""
    if first_seed + episodes > RESERVED_SEED and not allow_reserved:
        raise ImagineError(
            f"seeds {first_seed} to {first_seed + episodes - 1} reach the evaluation seeds (from {RESERVED_SEED}); "
            "collect lower seeds, or pass allow_reserved=True for an evaluation set."
        )


def _check_source(out: Path, source: dict[str, Any]) -> None:
    """Refuse to go on with other settings than a dataset was started with: nothing in the files would tell."""
    path = out / "meta/collection.json"
    source = json.loads(json.dumps(source))
    if path.is_file() and (found := json.loads(path.read_text())) != source:
        raise DatasetError(f"{out} was collected with {found}, got {source}; collect into another folder.")
    write_json(path, source)


def _run(
    writer: DatasetWriter,
    path: str,
    missing: Mapping[int, Sequence[int]],
    options: dict[str, Any],
    workers: int,
    advance: Callable[[int], None],
) -> None:
    if not missing:
        return
    done: Any = SPAWN.Queue()
    failed: list[str] = []
    with process_pool(min(workers, len(missing)), _start, (done,)) as pool:
        waiting: dict[Future[int], int] = {
            pool.submit(_shard, writer, i, path, seeds, options): i for i, seeds in missing.items()
        }
        while waiting:
            ready, _ = wait(waiting, timeout=0.2, return_when=FIRST_COMPLETED)
            _drain(done, advance)
            for future in ready:
                shard, error = waiting.pop(future), future.exception()
                if isinstance(error, BrokenProcessPool):
                    raise error
                if error is not None:
                    failed.append(f"shard {shard}: {error}")
        _drain(done, advance)
    if failed:
        raise ImagineError(
            f"{len(failed)} of {len(missing)} shards could not be recorded, the first: {failed[0]}; "
            "mend the episode function and run the same collection again, finished shards are kept."
        )


_done: Any = None


def _start(done: Any) -> None:
    """Runs once in each process."""
    global _done
    _done = done


def _shard(writer: DatasetWriter, shard: int, path: str, seeds: Sequence[int], options: dict[str, Any]) -> int:
    return writer.write_shard(shard, record_episodes(episode_function(path), seeds, options))


def record_episodes(
    function: Callable[..., Episode], seeds: Sequence[int], options: Mapping[str, Any]
) -> Iterator[EpisodeData]:
    """Record the episodes of some seeds, one after another.

    Raises:
        ImagineError: one could not be recorded; names its seed.
    """
    for seed in seeds:
        try:
            episode = function(seed, **options)
        except Exception as error:
            raise ImagineError(f"the episode of seed {seed} failed: {type(error).__name__}: {error}") from error
        yield episode_data(episode)
        if _done is not None:
            _done.put(1)


def episode_data(episode: Episode) -> EpisodeData:
    """Name an episode's parts as LeRobot does."""
    features = {
        "observation.state": np.asarray(episode.state, np.float32),
        "action": np.asarray(episode.action, np.float32),
        "next.success": np.asarray(episode.success, bool),
        "is_expert": np.asarray(episode.is_expert, bool),
    }
    if (truth := getattr(episode, "truth", None)) is not None:
        features["observation.environment_state"] = np.asarray(truth, np.float32)
    views = {f"observation.images.{name}": frames for name, frames in episode.views.items()}
    index = np.asarray(episode.view_index, np.int64)
    return EpisodeData(features, list(episode.task), views, index, int(episode.seed), str(episode.failure_mode))


def episode_function(path: str) -> Callable[..., Episode]:
    """The function that ``module:function`` names."""
    module, _, name = path.partition(":")
    try:
        function = getattr(import_module(module), name)
    except (ImportError, AttributeError, ValueError) as error:
        raise ImagineError(f"episode function {path!r}: {error}; give it as 'module:function'.") from error
    return function  # type: ignore[no-any-return]


def _drain(done: Any, advance: Callable[[int], None]) -> None:
    n = 0
    while True:
        try:
            n += done.get_nowait()
        except queue.Empty:
            break
    if n:
        advance(n)
