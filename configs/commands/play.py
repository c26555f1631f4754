"""``imagine play``: drive the dream from a page of the browser, beside the simulator under the same actions."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from imagine.configs.commands.worlds import OfRobot
from imagine.types import ImagineError


@dataclass(frozen=True, kw_only=True)
class Args(OfRobot):
    """Drive the dream by keyboard, gamepad or buttons, on a page of this machine's browser.

    Attributes:
        policy: at the wheel on demand: base, random, or any other that `imagine evaluate` takes but the expert.
        judge: who scores the dream, as for `imagine evaluate`.
        starts: where dreams begin: sim, saved (in the model folder), or the folder of a LeRobot dataset; by default sim
            if the robot has a simulator, which then stands beside the dream.
        instruction: what to do first, instead of the start's own task.
        port: of the page, on 127.0.0.1; 0 takes any that is free.
        browser: open the page at once.
        seed: of the first start; nothing shipped was trained on seeds from 900000 on.
    """

    policy: str = "base"
    judge: str = ""
    starts: str = ""
    instruction: str = ""
    port: int = 0
    browser: bool = False
    seed: int = 900_000


def run(args: Args) -> dict[str, Any]:
    """Serve the page until Ctrl-C; the answer counts what was played and says where it was saved.

    Raises:
        ImagineError: an option is out of range, or something of it cannot be had.
    """
    if not 0 <= args.port <= 65_535:
        raise ImagineError(f"--port is {args.port}, expected 0 to 65535.")
    if args.policy == "expert":
        raise ImagineError("the scripted expert reads the true state, which no dream has; name another policy.")
    from imagine.configs.playing import play

    return play(args)
