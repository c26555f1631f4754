"""h264 in mp4, by PyAV: write sample-and-hold episodes one after another, read chosen frames back in one pass."""

from __future__ import annotations

import io
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import TracebackType

import av
import numpy as np
from av.video.frame import PictureType
from av.video.reformatter import Interpolation, VideoReformatter

from imagine.types import ShapeError

# GOP 6 keeps random access cheap; frames are tiny and mostly repeats, so size hardly depends on it.
_X264 = {
    "preset": "ultrafast",
    "crf": "16",
    "g": "6",
    "bf": "0",
    "x264-params": "scenecut=0:threads=1",
}


MOST_PIXELS = 2**26
"""Of a frame that is decoded; 8K video has 2**25."""

_SAME = 1e-3  # of a frame: what rounding does to times


class VideoWriter:
    """Appends episodes to one mp4 file; every episode starts with a key frame."""

    def __init__(self, path: Path, fps: int, height: int, width: int) -> None:
        if height % 2 or width % 2:
            raise ShapeError(f"view is {height}x{width}, expected even sides (yuv420p); resize the camera image.")
        self._container = av.open(str(path), "w", format="mp4")
        self._stream = self._container.add_stream("libx264", rate=fps, options=_X264)
        self._stream.width, self._stream.height, self._stream.pix_fmt = width, height, "yuv420p"
        self._reformat = VideoReformatter()
        self.frames = 0

    def add(self, frames: np.ndarray, index: np.ndarray) -> None:
        """Append one episode.

        Args:
            frames: (n, h, w, 3) uint8 RGB, the distinct frames.
            index: (T,) int, which distinct frame each video frame shows.
        """
        size = (self._stream.height, self._stream.width, 3)
        if frames.dtype != np.uint8 or frames.shape[1:] != size:
            raise ShapeError(f"frames are {frames.dtype} {frames.shape}, expected uint8 (n, {size[0]}, {size[1]}, 3).")
        if len(index) == 0 or index.min() < 0 or index.max() >= len(frames):
            raise ShapeError(f"frame index must be non-empty and within 0 to {len(frames) - 1}; check view_index.")
        ready: dict[int, av.VideoFrame] = {}
        for position, i in enumerate(index.tolist()):
            if i not in ready:  # colour conversion costs more than encoding a repeat: once per distinct frame
                rgb = av.VideoFrame.from_ndarray(np.ascontiguousarray(frames[i]), format="rgb24")
                ready[i] = self._reformat.reformat(rgb, format="yuv420p", interpolation=Interpolation.AREA)
            frame = ready[i]
            frame.pts = self.frames
            frame.pict_type = PictureType.I if position == 0 else PictureType.NONE
            self._container.mux(self._stream.encode(frame))
            self.frames += 1

    def close(self) -> None:
        """Flush and close the file; without it the file cannot be read."""
        self._container.mux(self._stream.encode(None))
        self._container.close()

    def __enter__(self) -> VideoWriter:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        if kind is None:
            self.close()
        else:
            self._container.close()


def decode(
    path: Path, fps: float, wanted: Sequence[float], size: tuple[int, int] | None = None
) -> Iterator[np.ndarray]:
    """Yield chosen frames of a video as (h, w, 3) uint8 RGB, decoding once from the first to the last of them.

    The frame nearest in time is chosen, as LeRobot does; where a stream has a gap, the newest that is not later.

    Args:
        path: the video.
        fps: frames per second that ``wanted`` counts in.
        wanted: frame numbers (time times fps) in ascending order; repeats allowed.
        size: (height, width) to resize to, or None.

    Raises:
        EOFError: the video ends before the last wanted frame, or begins after the first.
        av.FFmpegError, ValueError: the file is no readable video.
    """
    if not len(wanted):
        return
    reformat, k, shown = VideoReformatter(), 0, None
    before, frame = None, None  # two neighbouring frames as (number, frame)
    with av.open(str(path)) as container:
        stream = container.streams.video[0]
        _bounded(stream)
        stream.codec_context.thread_count = 1  # parallelism is over files
        if wanted[0] > 0 and stream.time_base is not None:
            container.seek(int(wanted[0] / fps / stream.time_base), stream=stream, backward=True)
        for frame in _numbered(container.decode(stream), fps):
            while k < len(wanted) and wanted[k] <= frame[0] + _SAME:
                pick = _nearer(before, frame, wanted[k])
                if shown is None or shown[0] is not pick:
                    shown = (pick, _rgb(reformat, pick, size))
                yield shown[1]
                k += 1
            if k == len(wanted):
                return
            before = frame
        while frame is not None and k < len(wanted) and wanted[k] < frame[0] + 0.5:
            yield _rgb(reformat, frame[1], size)
            k += 1
    if k < len(wanted):
        raise EOFError(f"video has frames up to {frame[0] if frame else -1:.0f}, expected {wanted[-1]:.0f}")


def _numbered(frames: Iterator[av.VideoFrame], fps: float) -> Iterator[tuple[float, av.VideoFrame]]:
    """Frames with their times, in units of 1 / fps."""
    for frame in frames:
        yield (frame.time or 0.0) * fps, frame


def _nearer(
    before: tuple[float, av.VideoFrame] | None, after: tuple[float, av.VideoFrame], wanted: float
) -> av.VideoFrame:
    """The frame to show at a time that is not after ``after``."""
    ahead = after[0] - wanted
    if before is None and ahead >= 0.5:
        raise EOFError(f"video begins at frame {after[0]:.0f}, expected {wanted:.0f}")
    return after[1] if before is None or ahead < min(0.5, wanted - before[0]) else before[1]


def decode_picture(data: bytes, size: tuple[int, int] | None = None) -> np.ndarray:
    """One encoded picture (PNG, JPEG) as (h, w, 3) uint8 RGB, resized to ``size`` (height, width) if given.

    Raises:
        av.FFmpegError, ValueError: these bytes are no picture, or one of unreasonable size.
    """
    with av.open(io.BytesIO(data), "r") as container:
        _bounded(container.streams.video[0])
        return _rgb(VideoReformatter(), next(container.decode(video=0)), size)


def _bounded(stream: av.VideoStream) -> None:
    """Raise ValueError for what no decoder knows, or pictures whose claimed size would take gigabytes."""
    if stream.codec_context is None:
        raise ValueError("its codec is unknown")
    if stream.width * stream.height > MOST_PIXELS:
        raise ValueError(f"its pictures are {stream.width}x{stream.height}, expected at most {MOST_PIXELS} pixels")


def _rgb(reformat: VideoReformatter, frame: av.VideoFrame, size: tuple[int, int] | None) -> np.ndarray:
    height, width = size or (frame.height, frame.width)
    how = Interpolation.AREA if (height, width) != (frame.height, frame.width) else Interpolation.BILINEAR
    return reformat.reformat(frame, width, height, "rgb24", interpolation=how).to_ndarray()
