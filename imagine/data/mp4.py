"""Reads the index of mp4 files, box by box, without decoding: thousands of files in seconds."""

from __future__ import annotations

from collections.abc import Iterator
from fractions import Fraction
from pathlib import Path

import av
import numpy as np


def mp4_fault(path: Path) -> str | None:
    """What is visibly wrong with an mp4 file, read from its box headers alone (microseconds), or None."""
    size, at, kinds = path.stat().st_size, 0, set()
    with path.open("rb") as file:
        while at < size:
            file.seek(at)
            head = file.read(16)
            if len(head) < 8:
                return f"ends inside a box header at byte {at}"
            length, kind = int.from_bytes(head[:4], "big"), head[4:8]
            if length == 1:
                length = int.from_bytes(head[8:16], "big")
            elif length == 0:  # "to the end of the file"
                length = size - at
            if length < 8 or at + length > size:
                return f"is truncated or damaged: box {kind!r} at byte {at} claims {length} of {size - at} bytes"
            kinds.add(kind)
            at += length
    return None if b"moov" in kinds else f"has no index (moov) among its {size} bytes; it was not closed"


def frame_times(path: Path) -> np.ndarray:
    """(n,) float64: when each frame of a video is shown, seconds, ascending.

    Raises:
        av.FFmpegError, ValueError: the file is no readable video.
    """
    times = _indexed_times(path)
    if times is None:  # an index of a kind that is rare: read every packet's header instead
        with av.open(str(path)) as container:
            stream = container.streams.video[0]
            shown = [packet.pts for packet in container.demux(stream) if packet.pts is not None]
            times = np.array(shown, np.float64) * float(stream.time_base or Fraction(1))
    if not len(times):
        raise ValueError("it holds no frame")
    return np.sort(times)


def _indexed_times(path: Path) -> np.ndarray | None:
    """Times of the only video track; None where the index does not tell them in a simple way."""
    data = path.read_bytes() if path.stat().st_size < 2**16 else _moov(path)
    moov = next(_boxes(data, b"moov"), b"") if data[4:8] != b"moov" else data[8:]
    header = next(_boxes(moov, b"mvhd"), b"")
    tracks = [t for t in _boxes(moov, b"trak") if _inner(t, b"mdia", b"hdlr")[8:12] == b"vide"]
    if len(tracks) != 1 or len(header) < 24:
        return None
    media = _inner(tracks[0], b"mdia", b"mdhd")
    scale, movie = _scale(media), _scale(header)
    table = _inner(tracks[0], b"mdia", b"minf", b"stbl")
    ticks = _ticks(next(_boxes(table, b"stts"), b""), next(_boxes(table, b"ctts"), b""), path.stat().st_size)
    edit = _edit(_inner(tracks[0], b"edts", b"elst"))
    if not scale or not movie or ticks is None or edit is None:
        return None
    delay, begin, length = edit
    shown = ticks[(ticks >= begin) & (ticks < begin + (length * scale / movie if length else np.inf))]
    return (shown - begin) / scale + delay / movie


def _ticks(stts: bytes, ctts: bytes, most: int) -> np.ndarray | None:
    """When each frame is shown, in ticks of its track before edits; ``most`` bounds how many there can be."""
    steps, offsets = _runs(stts, ">u4", most), _runs(ctts, ">i4", most)
    if steps is None or not len(steps) or (ctts and (offsets is None or len(offsets) != len(steps))):
        return None
    shown = np.cumsum(steps) - steps
    return shown + offsets if ctts else shown  # type: ignore[operator]


def _runs(box: bytes, kind: str, most: int) -> np.ndarray | None:
    """The values of a table of (how many, value); None if there are more than a file of ``most`` bytes has frames."""
    entries = np.frombuffer(box[8:][: len(box[8:]) // 8 * 8], np.dtype([("n", ">u4"), ("value", kind)]))
    if int.from_bytes(box[4:8], "big") != len(entries) or int(entries["n"].sum(dtype=np.int64)) > most:
        return None
    return np.repeat(entries["value"].astype(np.int64), entries["n"])


def _edit(elst: bytes) -> tuple[int, int, int] | None:
    """Delay (movie ticks), begin (track ticks) and length (movie ticks, 0: all) of the one part that is shown."""
    kind = [("length", ">u4"), ("begin", ">i4"), ("rate", ">i4")]
    if elst[:1] == b"\x01":
        kind = [("length", ">u8"), ("begin", ">i8"), ("rate", ">i4")]
    size = np.dtype(kind).itemsize
    entries = np.frombuffer(elst[8:][: len(elst[8:]) // size * size], np.dtype(kind)).tolist()
    delay = sum(length for length, begin, _ in entries if begin == -1)
    parts = [(begin, length) for length, begin, _ in entries if begin != -1]
    if len(parts) > 1 or any(rate != 1 << 16 for _, _, rate in entries):
        return None
    return (delay, *parts[0]) if parts else (delay, 0, 0)


def _moov(path: Path) -> bytes:
    """The ``moov`` box of a file, head and all."""
    with path.open("rb") as file:
        while len(head := file.read(16)) == 16:
            length = int.from_bytes(head[:4], "big")
            length = int.from_bytes(head[8:], "big") if length == 1 else length
            file.seek(-16, 1)
            if head[4:8] == b"moov":
                return file.read(length)
            if length < 8:
                break
            file.seek(length, 1)
    return b""


def _scale(header: bytes) -> int:
    """Ticks per second of a movie's or a track's header; version 1 has 64-bit times before it."""
    at = 20 if header[:1] == b"\x01" else 12
    return int.from_bytes(header[at : at + 4], "big")


def _inner(data: bytes, *kinds: bytes) -> bytes:
    """The content of the first box of each kind, one within another."""
    for kind in kinds:
        data = next(_boxes(data, kind), b"")
    return data


def _boxes(data: bytes, wanted: bytes) -> Iterator[bytes]:
    """Contents of the boxes of one kind, of those that ``data`` is a sequence of."""
    at = 0
    while at + 8 <= len(data):
        length = int.from_bytes(data[at : at + 4], "big")
        if length < 8:
            return
        if data[at + 4 : at + 8] == wanted:
            yield data[at + 8 : at + length]
        at += length
