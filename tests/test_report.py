"""A report is one file that shows everything and loads nothing."""

from __future__ import annotations

import io
import re
from html.parser import HTMLParser
from pathlib import Path

import av
import numpy as np
import pytest

from imagine.configs.report import Report, encode_mp4
from imagine.types import ShapeError

VOID = {"meta", "img", "br"}


def frames(length: int = 6, height: int = 16, width: int = 24) -> np.ndarray:
    """A bright bar that moves one column per frame; (T, H, W, 3) uint8."""
    film = np.full((length, height, width, 3), 30, np.uint8)
    for i in range(length):
        film[i, :, i * 2 : i * 2 + 3] = (240, 160, 40)
    return film


def decode(mp4: bytes) -> np.ndarray:
    with av.open(io.BytesIO(mp4)) as container:
        return np.stack([frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)])


def full_report() -> Report:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(5, 2.5))
    figure.subplots().plot([0, 1, 2], [0.2, 0.5, 0.6])
    return (
        Report("A policy improved in a dream", "Pick up the red block: 0.42 before, 0.67 after.")
        .cards([("Success before", "0.42", "95 % interval 0.35 to 0.49"), ("Success after", "0.67", "0.61 to 0.74")])
        .command("imagine finetune rl --seed 0")
        .section("What was done", "The policy acted.\n\nThe judge <looked>.")
        .table(["task", "success", "episodes"], [["reach", 0.98765, 200], ["push", np.float32(0.5), 200]], "By task.")
        .figure(figure, "Success over rounds.")
        .section("Dream and twin")
        .videos_side_by_side([("dream", frames(4)), ("twin", frames(6))], 5, "The same actions.")
        .video(frames(), 5, "Alone.")
    )


class Balance(HTMLParser):
    """Fails on a tag that is closed by another."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []

    def handle_starttag(self, tag: str, attrs: list) -> None:
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag


def test_a_report_is_self_contained_and_well_formed(tmp_path: Path) -> None:
    page = full_report().write(tmp_path / "runs" / "report.html").read_text()
    sources = re.findall(r'(?:src|href)="([^"]{0,40})', page)
    assert len(sources) == 4 and all(source.startswith("data:") for source in sources)
    assert "url(" not in page and "@import" not in page and "<script" not in page
    balance = Balance()
    balance.feed(page)
    assert not balance.open
    assert [path.name for path in (tmp_path / "runs").iterdir()] == ["report.html"]


def test_text_is_escaped_and_numbers_are_rounded() -> None:
    page = full_report().html()
    assert "&lt;looked&gt;" in page and "<p>The policy acted.</p>" in page
    assert '<td class="number">0.9877</td>' in page and '<td class="number">200</td>' in page


def test_leading_numbers_come_first_however_late_they_are_known() -> None:
    page = Report("Run").section("Later").cards([("small", "1", "")]).lead([("headline", "2", "")]).html()
    assert page.index("headline") < page.index("Later") < page.index("small") and page.count("<section>") == 1


def test_a_video_keeps_its_frames() -> None:
    film = frames()
    seen = decode(encode_mp4(film, 5))
    assert seen.shape == (6, 64, 96, 3)
    assert np.abs(seen[:, ::4, ::4].astype(int) - film).mean() < 8


def test_an_odd_size_is_made_even() -> None:
    assert decode(encode_mp4(frames(2, 15, 21), 7.5, upscale=1)).shape == (2, 14, 20, 3)


@pytest.mark.parametrize("wrong", [frames()[0], frames().astype(np.float32), frames()[:0]])
def test_what_is_no_video_is_refused(wrong: np.ndarray) -> None:
    with pytest.raises(ShapeError, match="expected uint8"):
        encode_mp4(wrong, 5)
