"""Records episodes straight into canvas caches, which training reads: no videos are encoded, none decoded again.

``collect_cache(Path("cache"), "my_robot.episodes:episode", body, 1000, 0, workers=16)`` makes ``cache/000000``,
``cache/000001`` and so on, each whole or not there at all, so that training can begin while others are recorded.
"""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, wait
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np

from imagine.agents.collect import check_seeds, clean, episode_function, record_episodes
from imagine.data.episode_cache import write_cache
from imagine.data.processes import process_pool
from imagine.data.shard import EpisodeData
from imagine.embodiment import Embodiment
from imagine.policy.robots.plugin import RobotPlugin
from imagine.progress import Progress
from imagine.types import ImagineError

TOGETHER = 16
"""Episodes per cache: few, so that training can begin on the first ones soon."""
_AHEAD = 2  # caches that wait per process


@dataclass(frozen=True)
class _Recording:
    """What every process knows of a collection."""

    out: Path
    function: str
    embodiment: Embodiment
    fps: int
    until: float  # seconds since the epoch; infinite: no end
    options: dict[str, Any] = field(default_factory=dict)

    def place(self, first: int, size: int) -> Path:
        return self.out / f"{first // size:06d}"

    def identity(self, seeds: Sequence[int]) -> str:
        told = [self.function, self.options, self.embodiment.model_dump(mode="json"), self.fps, seeds[0]]
        return hashlib.sha256(json.dumps(told, default=list).encode()).hexdigest()

    def finished(self, folder: Path) -> tuple[str, int]:
        """Identity and number of episodes of a cache that is there; nothing and 0 where none is."""
        try:
            return json.loads((folder / "cache.json").read_text())["identity"], _episodes(folder)
        except (OSError, ValueError, KeyError):
            return "", 0


def caches_in(out: str | Path) -> list[Path]:
    """The caches that a collection has finished so far, in order, for :class:`imagine.data.windows.Windows`."""
    return sorted(path.parent for path in Path(out).glob("[0-9]*/cache.json"))


def collect_cache(
    out: Path,
    episode_fn_path: str,
    embodiment: Embodiment,
    episodes: int,
    first_seed: int,
    workers: int,
    *,
    seconds: float = 0.0,
    shard_size: int = TOGETHER,
    options: Mapping[str, Any] | None = None,
    fps: int = 30,
    allow_reserved: bool = False,
    progress: Callable[[int, int], None] | None = None,
) -> dict[str, Any]:
    """Record ``episodes`` episodes with consecutive seeds into canvas caches below ``out``; resumes what is there.

    Args:
        out: a folder; the cache of the seeds from ``first_seed + i * shard_size`` on is ``out/i`` in six digits.
        episode_fn_path: ``"module:function"``, see :func:`imagine.agents.collect.collect`.
        embodiment: which views, slices and strides the caches hold.
        episodes: how many in all.
        first_seed: seed of episode 0; episode i gets ``first_seed + i``.
        workers: processes, each with one thread.
        seconds: begin no episode later than this; what is recorded by then counts. 0: record all.
        shard_size: episodes per cache; also what is lost when a process is killed.
        options: keyword arguments of the episode function.
        fps: control rate, Hz.
        allow_reserved: permit seeds from 900000 on, which evaluation uses.
        progress: called with (episodes done, episodes) instead of drawing a bar on stderr.

    Returns:
        ``episodes`` in all caches, ``collected`` of them now, in so many ``seconds``.

    Raises:
        ImagineError: reserved seeds, caches of other settings, or an episode could not be recorded (the finished caches
            are kept).
    """
    check_seeds(first_seed, episodes, allow_reserved)
    episode_function(episode_fn_path)  # a wrong name should fail here, not in every process
    began, out = time.monotonic(), Path(out)
    clean(out)
    until = time.time() + seconds if seconds else float("inf")
    plan = _Recording(out, episode_fn_path, embodiment, fps, until, dict(options or {}))
    shards = [range(a, min(a + shard_size, episodes)) for a in range(0, episodes, shard_size)]
    todo, kept = _missing(plan, shards, first_seed, shard_size)
    done = 0
    with Progress("collecting", episodes, kept, silent=progress is not None) as bar:

        def advance(n: int) -> None:
            nonlocal done
            done += n
            (progress or bar)(kept + done, episodes)

        advance(0)
        try:
            _run(plan, todo, workers, advance)
        finally:
            clean(out)
    return {"episodes": kept + done, "collected": done, "seconds": time.monotonic() - began}


def collect_robot(
    out: Path, robot: RobotPlugin, episodes: int, first_seed: int, workers: int, seconds: float, options: dict[str, Any]
) -> dict[str, Any]:
    """:func:`collect_cache` of a robot's own recorder, for its own embodiment.

    Raises:
        ImagineError: it has not both of them.
    """
    recorder, body = robot.recorder(), robot.embodiment()
    if recorder is None or body is None:
        raise ImagineError(
            f"robot {robot.name!r} has no recorder, or no embodiment of its own that a cache is made for."
        )
    counts = collect_cache(
        out, recorder.episode, body, episodes, first_seed, workers, seconds=seconds, options=options, fps=recorder.fps
    )
    return counts | {"seconds": round(counts["seconds"], 1)}


def _missing(
    plan: _Recording, shards: Sequence[range], first_seed: int, size: int
) -> tuple[list[tuple[Path, range]], int]:
    """Caches to record, with their seeds, and how many episodes the others hold."""
    todo, kept = [], 0
    for shard in shards:
        seeds, folder = range(first_seed + shard.start, first_seed + shard.stop), plan.place(shard.start, size)
        identity, found = plan.finished(folder)
        if found and identity != plan.identity(seeds):
            raise ImagineError(f"{folder} was recorded with other settings; collect into another folder.")
        if found < len(seeds):
            todo.append((folder, seeds))
        else:
            kept += found
    return todo, kept


def _run(plan: _Recording, todo: Sequence[tuple[Path, range]], workers: int, advance: Callable[[int], None]) -> None:
    failed: list[str] = []
    jobs = iter(todo)
    if not todo:
        return
    with process_pool(min(workers, len(todo)), _start, (plan,)) as pool:
        waiting = {pool.submit(_shard, *job) for job in islice(jobs, _AHEAD * workers)}
        while waiting:
            ready, waiting = wait(waiting, return_when=FIRST_COMPLETED)
            for future in ready:
                advance(_result(future, failed))
            if not failed and time.time() < plan.until:
                waiting |= {pool.submit(_shard, *job) for job in islice(jobs, len(ready))}
    if failed:
        raise ImagineError(
            f"{len(failed)} caches could not be recorded, the first: {failed[0]}; mend the episode function and run "
            "the same collection again, finished caches are kept."
        )


def _result(future: Future[int], failed: list[str]) -> int:
    try:
        return future.result()
    except ImagineError as error:
        failed.append(str(error))
        return 0


_plan: _Recording


def _start(plan: _Recording) -> None:
    """Runs once in each process."""
    global _plan
    _plan = plan


def _shard(folder: Path, seeds: range) -> int:
    """Record one cache, as far as time allows; returns how many episodes it has."""
    body, identity = _plan.embodiment, _plan.identity(seeds)
    return write_cache(_timely(seeds), body, folder, fps=_plan.fps, identity=identity, first_index=seeds[0])


def _timely(seeds: range) -> Iterator[EpisodeData]:
    recorded = record_episodes(episode_function(_plan.function), seeds, _plan.options)
    for _ in seeds:
        if time.time() >= _plan.until:
            return
        yield next(recorded)


def _episodes(folder: Path) -> int:
    with np.load(folder / "arrays.npz") as arrays:
        return len(arrays["episode_frames"])
