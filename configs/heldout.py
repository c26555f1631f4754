"""Held-out episodes to measure a dream against: a dataset's own, or freshly recorded on the twin."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from imagine.configs.build import families_of
from imagine.data.read import LeRobotDataset
from imagine.data.windows import Windows, build_cache
from imagine.model.model import WorldActionModel
from imagine.types import ImagineError

EPISODE = "imagine.policy.robots.g1_table.episodes:episode"


def record(model: WorldActionModel, seed: int, episodes: int, folder: Path, *, workers: int = 2) -> Path:
    """Record episodes of the tasks that ``model`` covers, demonstrations and failures alike; returns the dataset."""
    from imagine.agents.collect import collect

    out = folder / "held_out"
    options = {"families": list(families_of(model))}
    collect(out, EPISODE, episodes, seed, workers, options=options, allow_reserved=True, shard_size=20)
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
