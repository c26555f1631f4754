"""A run as one page: ``report.html``, self-contained, pleasant in light and dark, on paper and on a phone."""

from __future__ import annotations

import base64
import io
from collections.abc import Sequence
from fractions import Fraction
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from imagine.files import atomic_write

if TYPE_CHECKING:
    from matplotlib.figure import Figure

STYLE, TEMPLATE = (Path(__file__).with_name(f"report.{kind}") for kind in ("css", "html"))
UPSCALE = 4
"""A dream is small; each of its pixels becomes a square of this many, so that a browser does not blur it."""


class Report:
    """Collects sections, numbers, tables, figures and videos in reading order, then writes one HTML file.

    Every method that adds something returns the report, so that calls chain. All text is escaped; a blank line in it
    starts a paragraph. What is added before the first :meth:`section` forms the page's opening.
    """

    def __init__(self, title: str, subtitle: str = "") -> None:
        """Start an empty page.

        Args:
            title: the heading, and the browser's tab.
            subtitle: one or two sentences below it: what was done and what came out.
        """
        self.title, self.subtitle = title, subtitle
        self._blocks: list[tuple[str, dict[str, Any]]] = []

    def section(self, title: str, text: str = "") -> Report:
        """Begin a section."""
        return self._add("section", title=title).text(text)

    def text(self, text: str) -> Report:
        """Add paragraphs."""
        return self._add("text", text=text)

    def command(self, line: str) -> Report:
        """Add the exact command that makes the numbers next to it."""
        return self._add("command", line=line)

    def cards(self, cards: Sequence[tuple[str, str, str]]) -> Report:
        """Add the numbers that matter.

        Args:
            cards: (label, value, note); the note of an estimate is its interval, as "95 % interval 0.61 to 0.74".
        """
        return self._add("cards", cards=list(cards))

    def lead(self, cards: Sequence[tuple[str, str, str]]) -> Report:
        """Put the numbers that matter before everything else, whenever they are known."""
        self.cards(cards)
        self._blocks.insert(0, self._blocks.pop())
        return self

    def table(self, headers: Sequence[str], rows: Sequence[Sequence[Any]], caption: str = "") -> Report:
        """Add a table; numbers stand to the right, floats have four significant digits."""
        cells = [[x.item() if isinstance(x, np.generic) else x for x in row] for row in rows]
        columns = zip(*cells, strict=True) if cells else [()] * len(headers)
        numeric = [bool(column) and all(_is_number(x) for x in column) for column in columns]
        return self._add("table", headers=list(zip(headers, numeric, strict=True)), rows=cells, caption=caption)

    def figure(self, figure: Figure, caption: str) -> Report:
        """Add a matplotlib figure as a vector image, on white so that its colours hold in the dark.

        The figure is closed.
        """
        from matplotlib import pyplot

        buffer = io.BytesIO()
        figure.savefig(buffer, format="svg", bbox_inches="tight", facecolor="white")
        pyplot.close(figure)
        return self._add("figure", source=_data_url("image/svg+xml", buffer.getvalue()), caption=caption)

    def video(self, frames: np.ndarray, fps: float, caption: str) -> Report:
        """Add a looping video; ``frames`` is (T, H, W, 3) uint8 RGB."""
        return self.videos_side_by_side([("", frames)], fps, caption)

    def videos_side_by_side(self, videos: Sequence[tuple[str, np.ndarray]], fps: float, caption: str) -> Report:
        """Add looping videos beside each other, to be compared.

        Args:
            videos: (label, frames (T, H, W, 3) uint8 RGB); the last frame of a short one is held until the longest
                is through, so that they stay in step.
            fps: frames per second.
            caption: what to look for.
        """
        longest = max(len(frames) for _, frames in videos)
        each = [
            (label, _data_url("video/mp4", encode_mp4(_hold_last(frames, longest), fps))) for label, frames in videos
        ]
        return self._add("videos", videos=each, caption=caption)

    def html(self) -> str:
        """The whole page."""
        from jinja2 import Environment, StrictUndefined

        environment = Environment(autoescape=True, undefined=StrictUndefined)
        environment.filters["shown"] = lambda x: f"{x:.4g}" if isinstance(x, float) else str(x)
        template = environment.from_string(TEMPLATE.read_text())
        return template.render(title=self.title, subtitle=self.subtitle, blocks=self._blocks, style=STYLE.read_text())

    def write(self, path: str | Path) -> Path:
        """Write the page, whole or not at all; returns its path."""
        atomic_write(Path(path), self.html())
        return Path(path)

    def _add(self, kind: str, **values: Any) -> Report:
        self._blocks.append((kind, values))
        return self


def encode_mp4(frames: np.ndarray, fps: float, upscale: int = UPSCALE) -> bytes:
    """Encode frames as H.264 that every browser plays.

    Args:
        frames: (T, H, W, 3) uint8 RGB.
        fps: frames per second.
        upscale: how many times larger the video is, in whole squares; an odd size loses its last row or column.

    Returns:
        An MP4 file.

    Raises:
        ShapeError: ``frames`` has another shape or dtype, or holds no frame.
    """
    import av

    frames = np.asarray(frames)
    if frames.ndim != 4 or frames.shape[-1] != 3 or frames.dtype != np.uint8 or not len(frames):
        from imagine.types import ShapeError

        raise ShapeError(f"video frames are {frames.dtype} {frames.shape}, expected uint8 (T, H, W, 3) with T > 0")
    height, width = (size * upscale // 2 * 2 for size in frames.shape[1:3])
    buffer = io.BytesIO()
    with av.open(buffer, "w", format="mp4") as container:
        stream = container.add_stream("libx264", rate=Fraction(fps).limit_denominator(1000))
        stream.width, stream.height, stream.pix_fmt = width, height, "yuv420p"
        stream.options = {"crf": "18", "preset": "veryfast"}
        for frame in frames:
            large = frame.repeat(upscale, 0).repeat(upscale, 1)[:height, :width]
            container.mux(stream.encode(av.VideoFrame.from_ndarray(np.ascontiguousarray(large), "rgb24")))
        container.mux(stream.encode())
    return buffer.getvalue()


def _hold_last(frames: np.ndarray, length: int) -> np.ndarray:
    return np.concatenate([frames, frames[-1:].repeat(length - len(frames), 0)])


def _data_url(kind: str, data: bytes) -> str:
    return f"data:{kind};base64,{base64.b64encode(data).decode()}"


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)
