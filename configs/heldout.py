"""Held-out episodes to measure a dream against: a dataset's own, or freshly recorded on the robot's simulator."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from imagine.configs.loaded import Loaded
from imagine.data.read import LeRobotDataset
from imagine.data.windows import Windows, build_cache
from imagine.model.model import WorldActionModel
from imagine.types import ImagineError


def record(loaded: Loaded, seed: int, episodes: int, folder: Path, *, workers: int = 2) -> Path:
    """Record episodes of the tasks that a model covers, demonstrations and failures alike; returns the dataset.

    Raises:
        ImagineError: the robot records no episodes.
    """
    from imagine.agents.collect import collect

    recorder = loaded.robot.recorder()
    if recorder is None:
        raise ImagineError(f"robot {loaded.robot.name!r} records no episodes; give recorded ones with --dataset.")
    out, chosen = folder / "held_out", {k: v for k, v in loaded.options.items() if k in recorder.options}
    collect(
        out, recorder.episode, episodes, seed, workers, options={**recorder.options, **chosen}, names=recorder.names,
        robot_type=recorder.robot_type, fps=recorder.fps, allow_reserved=True, shard_size=20,
    )  # fmt: skip
    return out


def windows(model: WorldActionModel, datasets: Sequence[Path], folder: Path) -> Windows:
    """Canvas windows over datasets, decoded once into ``folder``.

    Raises:
        DatasetError: a dataset is corrupt, or of another embodiment than the model.
        ImagineError: no dataset was given.
    """
    if not datasets:
        raise ImagineError("no dataset was given, expected at least one folder.")
    caches = [
        build_cache(LeRobotDataset.open(d), model.body, None, folder / "cache" / f"{i}-canvas")
        for i, d in enumerate(datasets)
    ]
    return Windows(caches, model.body, model.cfg.context_frames)
