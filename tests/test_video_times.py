"""When frames are shown: read from the index of a video as a decoder would, and held against the rows."""

from __future__ import annotations

from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from imagine.data.check import check_dataset
from imagine.data.check_video import check_videos
from imagine.data.draft import draft
from imagine.data.mp4 import frame_times
from imagine.data.read import LeRobotDataset
from imagine.data.video import decode
from imagine.data.write import DatasetWriter, EpisodeData

CAMERA, FPS, LENGTHS = "observation.images.c", 30, (20, 26, 15, 31)


def film(path: Path, rate: Fraction, frames: int, *, codec: str = "libx264", **options: str) -> Path:
    with av.open(str(path), "w") as container:
        stream = container.add_stream(codec, rate=rate, options=options)
        stream.width = stream.height = 64
        stream.pix_fmt = "yuv420p"
        for i in range(frames):
            grey = np.full((64, 64, 3), 40 + 2 * i % 200, np.uint8)
            container.mux(stream.encode(av.VideoFrame.from_ndarray(grey, format="rgb24")))
        container.mux(stream.encode(None))
    return path


@pytest.fixture()
def root(tmp_path: Path) -> Path:
    """Four episodes in one video file; frame i of the file has the grey level 40 + 2 i."""
    writer, at, episodes = DatasetWriter(tmp_path / "d", "tiny", FPS, len(LENGTHS)), 0, []
    for seed, n in enumerate(LENGTHS):
        x = np.random.default_rng(seed).normal(size=(n, 2)).astype(np.float32)
        grey = (40 + 2 * (at + np.arange(n)))[:, None, None, None] * np.ones((1, 16, 16, 3))
        views = {CAMERA: grey.astype(np.uint8)}
        episodes.append(EpisodeData({"observation.state": x, "action": x}, ["go"] * n, views, np.arange(n), seed))
        at += n
    writer.write_shard(0, episodes)
    writer.finalize()
    return tmp_path / "d"


def move(root: Path, episode: int, seconds: float) -> None:
    """Let an episode begin elsewhere in its video."""
    path = root / "meta/episodes/chunk-000/file-000.parquet"
    rows: list[dict[str, Any]] = pq.read_table(path).to_pylist()
    for row in rows[episode:]:
        row[f"videos/{CAMERA}/from_timestamp"] += seconds
    pq.write_table(pa.Table.from_pylist(rows), path)


def faults(root: Path) -> tuple[list[str], list[str]]:
    return check_videos(LeRobotDataset.open(root), [CAMERA])


@pytest.mark.parametrize(
    "how",
    [
        {},  # B-frames, behind an edit list
        {"bf": "0"},
        {"movflags": "frag_keyframe+empty_moov"},  # no index at all
        {"codec": "libsvtav1"},
        {"use_editlist": "0"},
    ],
)
def test_times_are_those_of_a_decoder(how: dict[str, str], tmp_path: Path) -> None:
    path = film(tmp_path / "v.mp4", Fraction(30000, 1001), 40, **how)
    with av.open(str(path)) as container:
        expected = [float(frame.time) for frame in container.decode(video=0)]
    np.testing.assert_allclose(frame_times(path), expected, atol=1e-6)
    assert len(expected) == 40


def test_a_table_that_claims_more_frames_than_bytes_is_not_believed(tmp_path: Path) -> None:
    path = film(tmp_path / "v.mp4", Fraction(30), 12, bf="0")
    raw = bytearray(path.read_bytes())
    at = raw.index(b"stts") + 12
    raw[at : at + 4] = b"\xff\xff\xff\xff"
    path.write_bytes(raw)
    assert len(frame_times(path)) <= 12  # read from the packets instead


def test_videos_as_written_are_right(root: Path) -> None:
    assert faults(root) == ([], [])
    dataset = LeRobotDataset.open(root)
    assert not check_dataset(dataset, draft(dataset)[0]).errors


def test_a_start_that_is_off_by_whole_frames_is_found(root: Path) -> None:
    move(root, 2, -1 / FPS)
    (error,), _ = faults(root)
    assert "file-000.mp4 shows other frames than those of episode 2" in error
    assert "is 1 frames too early (2 such episodes)" in error


def test_a_start_that_is_off_by_little_is_read_as_the_nearest_frame(root: Path) -> None:
    before = LeRobotDataset.open(root).frames(3, CAMERA, range(LENGTHS[3]))
    move(root, 3, 0.3 / FPS)
    errors, (warning,) = faults(root)
    assert not errors and "up to 10.0 ms beside the times of their rows (episode 3, 1 such episodes)" in warning
    np.testing.assert_array_equal(LeRobotDataset.open(root).frames(3, CAMERA, range(LENGTHS[3])), before)


def test_a_video_at_another_rate_than_the_rows_is_found(root: Path) -> None:
    path = root / f"videos/{CAMERA}/chunk-000/file-000.mp4"
    film(path, Fraction(25), sum(LENGTHS))
    (error,), _ = faults(root)
    assert "does not have one frame for each row of episode 0 at 30 rows/s" in error


def test_a_video_that_drifts_is_found_where_it_has_drifted(tmp_path: Path) -> None:
    n = 700
    writer = DatasetWriter(tmp_path, "tiny", FPS, 1)
    x = np.zeros((n, 2), np.float32)
    views = {CAMERA: np.zeros((1, 16, 16, 3), np.uint8)}
    writer.write_shard(0, [EpisodeData({"action": x}, ["go"] * n, views, np.zeros(n, int))])
    writer.finalize()
    film(tmp_path / f"videos/{CAMERA}/chunk-000/file-000.mp4", Fraction(30000, 1001), n)
    (error,), _ = faults(tmp_path)
    assert "1 are twice or left out" in error and "is fps in meta/info.json that of the video?" in error


def test_decoding_takes_the_frame_nearest_in_time(tmp_path: Path) -> None:
    path = film(tmp_path / "v.mp4", Fraction(30), 30)
    for shift in (-0.4, 0.0, 0.4):
        shown = [int(f.mean()) for f in decode(path, 30, [i + shift for i in (1, 2, 7, 7, 29)])]
        np.testing.assert_allclose(shown, [42, 44, 54, 54, 98], atol=1)
    with pytest.raises(EOFError, match="expected 30"):
        list(decode(path, 30, [30]))
