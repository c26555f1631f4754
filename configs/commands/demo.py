"""``imagine demo``: the whole main job once, on shipped checkpoints, and one page that shows it."""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import Any

from imagine.configs.commands.common import Common, at_least, console
from imagine.configs.defaults import MODEL
from imagine.configs.runfolder import RunFolder
from imagine.types import ImagineError


@dataclass(frozen=True, kw_only=True)
class Args(Common):
    """Dream, measure, evaluate, plan, improve, and prove it on the simulator.

    Attributes:
        model: a shipped model's name, a folder, or a hub id.
        episodes: paired simulated and imagined episodes of each evaluation.
        updates: rounds of dreaming and learning of the policy that is improved here.
        seed: first start seed; nothing shipped was trained on seeds from 900000 on.
    """

    model: str = MODEL
    episodes: int = 48
    updates: int = 4
    seed: int = 970_000


def run(args: Args) -> dict[str, Any]:
    """Run every step and write ``report.html`` to the run folder.

    Raises:
        ImagineError: a number is out of range, the model cannot be had, or it lacks a simulator or policies to show.
    """
    at_least(args, episodes=1, updates=1)
    from imagine.configs.build import load
    from imagine.configs.demo import Demo

    begin, loaded = time.time(), load(args.model)
    if not loaded.robot.has_env:
        raise ImagineError(
            f"the demo shows a robot with a simulator; {args.model!r} has none. See `imagine rollout` and `imagine "
            "evaluate --world imagined`."
        )
    folder = RunFolder.of("demo", args)
    demo = Demo(loaded, folder.path, args.seed, args.episodes, args.updates)
    for step in (demo.dream, demo.measure, demo.evaluate, demo.plan, demo.improve):
        console.rule((step.__doc__ or "").strip().rstrip("."))
        step()
    answer = {**demo.answer, "seconds": round(time.time() - begin, 1), "report": str(folder / "report.html")}
    folder.save_metrics(answer)
    demo.page.opening(answer).write(folder / "report.html")
    return answer
