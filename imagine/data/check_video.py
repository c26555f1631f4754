"""Finds videos whose frames are not those of the rows: too few of them, at other times, or at another place."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import av
import numpy as np

from imagine.data.format import EpisodeRecord
from imagine.data.mp4 import frame_times
from imagine.data.read import LeRobotDataset
from imagine.data.table import fault

TOLERANCE = 1e-4
"""Seconds by which a frame may miss its row's time; LeRobot's own."""


@dataclass
class _Found:
    """Episodes by what is wrong with their part of a camera's videos, with a number that says how much."""

    short: list[tuple[EpisodeRecord, float]] = field(default_factory=list)
    unpaired: list[tuple[EpisodeRecord, float]] = field(default_factory=list)
    shifted: list[tuple[EpisodeRecord, float]] = field(default_factory=list)
    beside: list[tuple[EpisodeRecord, float]] = field(default_factory=list)


def check_videos(dataset: LeRobotDataset, cameras: Sequence[str]) -> tuple[list[str], list[str]]:
    """Errors and warnings about when the frames of some cameras are shown, one sentence each; nothing is decoded."""
    errors: list[str] = []
    warnings: list[str] = []
    for camera in cameras:
        files: dict[Path, list[EpisodeRecord]] = {}
        for record in dataset.layout.episodes:
            if camera in record.videos:  # else pictures in the data file, one per row
                files.setdefault(record.videos[camera].path, []).append(record)
        found = _Found()
        for path, records in files.items():
            try:
                times = frame_times(path)
            except (av.FFmpegError, OSError, ValueError, IndexError) as error:
                errors.append(str(fault(path, records[0], f"cannot be read ({str(error)[:120]})")))
                continue
            _look(found, sorted(records, key=lambda r: r.videos[camera].start), camera, times, dataset.fps)
        errors += _errors(found, camera, dataset.fps)
        warnings += _warnings(found, camera)
    return errors, warnings


def _look(found: _Found, records: Sequence[EpisodeRecord], camera: str, times: np.ndarray, fps: float) -> None:
    """Pair the rows of a file's episodes with the frames nearest in time."""
    whole = len(times) == sum(r.length for r in records)  # then each frame is of one row, in order
    between, taken = (times[1:] + times[:-1]) / 2, 0
    for record in records:
        wanted = record.videos[camera].start + np.arange(record.length) / fps
        frame = np.searchsorted(between, wanted)
        if wanted[-1] > times[-1] + 0.5 / fps:
            found.short.append((record, float(times[-1] + 1 / fps)))
        elif (np.diff(frame) != 1).any():
            found.unpaired.append((record, float((np.diff(frame) != 1).sum())))
        elif frame[0] != taken if whole else frame[0] < taken:
            found.shifted.append((record, float(frame[0] - taken)))
        elif (miss := float(np.abs(times[frame] - wanted).max())) > TOLERANCE:
            found.beside.append((record, miss))
        taken += record.length if whole else int(frame[-1]) + 1 - taken


def _errors(found: _Found, camera: str, fps: float) -> Iterator[str]:
    for record, end in found.short[:1]:
        span = record.videos[camera]
        yield (
            f"video {span.path} ends after {end:.2f} s, but the rows of episode {record.index} go on until "
            f"{span.start + (record.length - 1) / fps:.2f} s ({len(found.short)} such episodes); copy the video again "
            "or leave them out."
        )
    for record, many in found.unpaired[:1]:
        yield (
            f"video {record.videos[camera].path} does not have one frame for each row of episode {record.index} at "
            f"{fps:g} rows/s: {many:.0f} are twice or left out ({len(found.unpaired)} such episodes); is fps in "
            "meta/info.json that of the video?"
        )
    for record, by in found.shifted[:1]:
        yield (
            f"video {record.videos[camera].path} shows other frames than those of episode {record.index}: its start, "
            f"{record.videos[camera].start:.4f} s, is {abs(by):.0f} frames too {'late' if by > 0 else 'early'} "
            f"({len(found.shifted)} such episodes); mend from_timestamp, or copy meta/ and videos/ again."
        )


def _warnings(found: _Found, camera: str) -> Iterator[str]:
    if found.beside:
        record, miss = max(found.beside, key=lambda f: f[1])
        yield (
            f"frames of {camera!r} lie up to {miss * 1e3:.1f} ms beside the times of their rows (episode "
            f"{record.index}, {len(found.beside)} such episodes); the nearest are taken, LeRobot would refuse them."
        )
