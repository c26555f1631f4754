"""How smoothly a dream is played: frames shown per second, and milliseconds from a key to the first imagined frame.

    python benchmarks/play.py                   # needs playwright (pip) and a Chromium (apt) beside imagine-wam[sim]
    python benchmarks/play.py --screenshot docs/play.jpg

A headless Chromium opens the page of ``imagine play`` and drives: a key is held for a while, the policy drives for a
while, and keys are tapped one at a time, at rest and while time goes on. Every number is what the page itself shows
and counts, so server, simulator, judge and browser share the machine's cores, as they do when a person plays.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np

from imagine.agents.play.requests import Requests
from imagine.agents.play.server import PlayServer
from imagine.configs import build
from imagine.configs.defaults import MODEL
from imagine.configs.playing import page, session_of, share_cores

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)


@contextmanager
def opened(url: str, *, width: int = 1280, height: int = 1000, scheme: str = "light") -> Iterator[Any]:
    """The page of a server, in a headless Chromium; it raises if the page fails."""
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        # Playwright's own questions are evaluated in the page, which its Content-Security-Policy forbids.
        context = browser.new_context(
            viewport={"width": width, "height": height}, color_scheme=scheme, bypass_csp=True
        )  # fmt: skip
        tab, errors = context.new_page(), []
        tab.on("pageerror", lambda error: errors.append(str(error)))
        tab.goto(url)
        tab.wait_for_function("state.now !== null")
        yield tab
        browser.close()
        if errors:
            raise RuntimeError("; ".join(errors))


def shown(tab: Any, seconds: float) -> dict[str, float]:
    """Frames per second that are shown from now on, and the median time that a chunk takes meanwhile."""
    tab.evaluate("state.shown = []; state.costs = []")
    time.sleep(seconds)
    count = tab.evaluate("state.costs.length && [state.shown.length, state.shown.at(-1) - state.shown[0], state.costs]")
    frames, span, costs = count
    return {"frames_per_second": 1000 * (frames - 1) / span, "chunk_ms": float(np.median(costs))}


def taps(tab: Any, count: int) -> dict[str, float]:
    """Milliseconds from a key to the first frame imagined under it; keys are tapped one after the other."""
    tab.evaluate("state.latencies = []")
    for i in range(count):
        key = "wiadjlsk"[i % 8]
        tab.keyboard.down(key)
        tab.wait_for_timeout(150)
        tab.keyboard.up(key)
        tab.wait_for_timeout(1250)
    found = tab.evaluate("state.latencies")
    return {"median_ms": float(np.median(found)), "worst_ms": float(max(found)), "n": len(found)}


def drive(tab: Any, seconds: float, count: int) -> dict[str, Any]:
    """All measurements of one page."""
    found: dict[str, Any] = {}
    tab.evaluate("state.keep = Infinity")
    found["taps at rest"] = taps(tab, count)
    tab.keyboard.down("a")
    tab.wait_for_timeout(1500)
    found["key held"] = shown(tab, seconds)
    tab.keyboard.up("a")
    tab.wait_for_timeout(1500)
    tab.keyboard.press("Space")
    found["taps while time goes on"] = taps(tab, count)
    tab.keyboard.press("Space")
    tab.wait_for_timeout(1500)
    tab.keyboard.press("p")
    tab.wait_for_timeout(1500)
    found["policy drives"] = shown(tab, seconds)
    tab.keyboard.press("p")
    return found


def picture(tab: Any, path: str) -> None:
    """Play a little, go back, branch, look at candidates, and take a picture of the page."""
    tab.keyboard.press("p")
    tab.wait_for_function("state.now.depth >= 5 && state.now.judged")
    tab.keyboard.press("p")
    tab.wait_for_timeout(1500)
    for key in ("Backspace",) * 4:
        tab.keyboard.press(key)
        tab.wait_for_timeout(400)
    for key in ("i", "l"):
        tab.keyboard.down(key)
        tab.wait_for_timeout(250)
        tab.keyboard.up(key)
        tab.wait_for_timeout(1200)
    tab.keyboard.press("p")
    tab.wait_for_timeout(300)
    tab.keyboard.press("p")
    tab.wait_for_timeout(1500)
    tab.click("#candidates")
    tab.wait_for_function("state.futures.length > 0")
    tab.wait_for_timeout(1500)
    tab.screenshot(path=path, full_page=True, type="jpeg", quality=90)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", default=MODEL)
    parser.add_argument("--seed", type=int, default=850_000)
    parser.add_argument("--seconds", type=float, default=12.0, help="for which a key is held, and the policy drives")
    parser.add_argument("--taps", type=int, default=12)
    parser.add_argument("--speed", default="2", help="playback, times real time")
    parser.add_argument("--screenshot", help="take this picture, and measure nothing")
    parser.add_argument("--scheme", default="light", choices=("light", "dark"))
    args = parser.parse_args()
    loaded = build.load(args.model)
    share_cores()
    session = session_of(loaded)
    session.start(args.seed)
    facts = {"model": args.model, "robot": loaded.robot.name, "policy": "base", "judge": "judge-tiny"}
    with (
        PlayServer(Requests(session, None, facts), page()) as server,
        opened(server.url, scheme=args.scheme) as tab,
    ):
        if args.screenshot:
            picture(tab, args.screenshot)
            return
        tab.select_option("#speed", args.speed)
        found = drive(tab, args.seconds, args.taps)
    found |= {"speed": float(args.speed), "cores": len(os.sched_getaffinity(0)), "load": os.getloadavg()[0]}
    print(json.dumps(found, indent=2))


if __name__ == "__main__":
    main()
