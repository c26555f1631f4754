"""The page of play in a real browser: keys move the dream, going back and branching work, and an episode is saved."""

from __future__ import annotations

import importlib.util
import shutil
import sys
from pathlib import Path

import numpy as np
import pytest

from imagine.agents.play.record import PlayRecorder
from imagine.agents.play.requests import Requests
from imagine.agents.play.server import PlayServer
from imagine.configs import build
from imagine.configs.playing import page, session_of
from imagine.data.read import LeRobotDataset

BENCHMARK = Path(__file__).parent.parent / "benchmarks/play.py"
CHROMIUM = any(map(shutil.which, ("chromium", "chromium-browser", "google-chrome")))
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(
        not CHROMIUM or importlib.util.find_spec("playwright") is None, reason="needs a Chromium and playwright"
    ),
]


@pytest.fixture(scope="module")
def benchmark():
    spec = importlib.util.spec_from_file_location("play_benchmark", BENCHMARK)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def tab(benchmark, foreign: Path, tmp_path: Path):
    session = session_of(build.load(foreign))
    session.start(0)
    recorder = PlayRecorder(tmp_path / "played", session.controls.body)
    names = {"model": "tiny<b>", "robot": "none", "judge": "latent", "policy": "base"}
    with (
        PlayServer(Requests(session, recorder, names), page()) as server,
        benchmark.opened(server.url, height=800) as opened,
    ):
        yield opened


def frame(tab) -> str:
    return tab.evaluate("$('dream').dataset.frame")


def pixels(tab) -> list[int]:
    return tab.evaluate("[...$('dream').getContext('2d').getImageData(0, 0, $('dream').width, $('dream').height).data]")


def settled(tab, depth: int) -> None:
    tab.wait_for_function(
        f"state.now.depth === {depth} && !state.busy && !state.film.length && state.now.judged !== null"
    )


def test_a_person_drives_goes_back_branches_chooses_and_saves(tab, tmp_path: Path) -> None:
    assert "tiny<b>" in tab.inner_text("#about")
    first = pixels(tab)
    keys = tab.evaluate("[...state.keys.keys()]")
    tab.keyboard.down(keys[0])
    tab.wait_for_function("state.moments.size > 4")
    tab.keyboard.up(keys[0])
    tab.wait_for_function("!state.busy && !state.film.length")
    depth = tab.evaluate("state.now.depth")
    settled(tab, depth)
    assert not np.array_equal(first, pixels(tab))
    assert tab.evaluate("state.latencies.length") == 1
    assert tab.evaluate("document.querySelectorAll('.moment.hands').length") == depth

    tab.keyboard.press("Backspace")
    settled(tab, depth - 1)
    tab.click(".moment.start")
    settled(tab, 0)
    assert np.array_equal(first, pixels(tab))
    tab.keyboard.press("p")
    tab.wait_for_function("state.now.depth >= 2")
    tab.keyboard.press("p")
    tab.wait_for_function("!state.busy && !state.film.length")
    policy = tab.evaluate("state.now.depth")
    settled(tab, policy)
    assert tab.evaluate("document.querySelectorAll('.elbow').length") == 1  # a branch
    assert tab.evaluate("document.querySelectorAll('.moment.line').length") == policy + 1

    tab.select_option("#number", "4")
    tab.click("#candidates")
    tab.wait_for_function("state.futures.length === 4")
    shown = tab.evaluate("[...state.futures[0].frames.at(-1).data]")
    tab.click(".card >> nth=0")
    settled(tab, policy + 1)
    assert np.array_equal(shown, pixels(tab))

    tab.fill("#instruction", "reach the red bowl")
    tab.keyboard.press("Enter")
    tab.wait_for_function("state.now.instruction === 'reach the red bowl'")
    tab.fill("#instruction", "sing")
    tab.keyboard.press("Enter")
    tab.wait_for_function("$('status').className === 'bad'")
    tab.click("#save")
    tab.wait_for_function("$('status').textContent.startsWith('Saved')")
    assert len(LeRobotDataset.open(tmp_path / "played")) == 1


def test_all_of_it_can_be_reached_by_keyboard_and_has_a_name(tab) -> None:
    names = tab.evaluate(
        "[...document.querySelectorAll('button:not([disabled]), input, select')].filter((e) => e.offsetParent)"
        ".map((e) => [e.tabIndex, e.ariaLabel || e.innerText || e.labels?.[0]?.innerText || ''])"
    )
    assert len(names) > 12
    assert all(index >= 0 and name.strip() for index, name in names), names
    tab.focus("[data-axis='0'][data-sign='1']")
    tab.keyboard.down("Enter")
    tab.wait_for_function("state.now.depth >= 1")
    tab.keyboard.up("Enter")
    tab.wait_for_function("!state.busy && !state.film.length")
    before = tab.evaluate("state.moments.size")
    tab.wait_for_timeout(500)
    assert tab.evaluate("state.moments.size") == before


def test_a_key_that_is_tapped_between_two_chunks_is_not_lost(tab) -> None:
    tab.select_option("#speed", "1")
    tab.keyboard.press("Space")  # time goes on
    tab.wait_for_function("state.now.depth >= 2")
    for _ in range(4):
        before = tab.evaluate("state.latencies.length")
        tab.evaluate("hold(0, 'test', 1); hold(0, 'test', 0)")
        tab.wait_for_function(f"state.latencies.length > {before}")
    tab.keyboard.press("Space")
    moved = tab.evaluate("state.last")
    assert moved[0] == 1 and max(tab.evaluate("state.latencies")) < 3000


def test_a_newer_page_takes_over(benchmark, tab) -> None:
    other = tab.context.new_page()
    other.goto(tab.url)
    other.wait_for_function("state.now !== null")
    tab.wait_for_function("$('status').textContent.includes('taken over')")
    assert other.evaluate("state.moments.size") == tab.evaluate("state.moments.size")
