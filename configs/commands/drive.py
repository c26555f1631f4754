"""``imagine drive``: a robot on wall-clock time, which never waits for the model, with a guard before its motors."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

from imagine.configs.commands.common import Folder, Pairs, Words, at_least
from imagine.configs.commands.worlds import OfRobot
from imagine.types import ImagineError

EXECUTIONS = ("overlap", "restart", "wait")


@dataclass(frozen=True, kw_only=True)
class Args(OfRobot):
    """Drive a robot tick by tick while the policy thinks.

    Attributes:
        policy: base, random, an adapter in the model folder, the folder of an adapter or model, module:name, or the
            ws:// address of a policy server.
        episodes: how many; episode i starts from seed SEED + i.
        seconds: longest episode.
        every: control ticks of a chunk that are carried out before the next one is asked for.
        execution: overlap: think while moving, and go on from what is committed; restart: think while moving, knowing
            nothing of it; wait: stand still while thinking. Several are compared on the same starts.
        latency: milliseconds that every answer takes at least; several are compared.
        clock: wall, or simulated: nothing waits, and thinking takes exactly LATENCY.
        plan: candidates that are dreamt and judged before one of them is done; 1 is the policy's own.
        budget_ms: for a decision with --plan; what is not judged by then does not count.
        judge: of --plan and of --guard, as for imagine evaluate.
        guard: NAME=VALUE, as hallucination=0.4, surprise=60, success=0.2, patience=30; any number of times. The first
            three let the model dream what it plans. Limits are the robot's own.
        replay: a LeRobot dataset whose episodes stand in for the robot, a dry run: what is seen is recorded, nothing
            that is commanded is carried out, and success is not known.
        record: folder of a LeRobot dataset that every episode is written to; every execution and latency has its own.
        seed: first start seed; nothing shipped was trained on seeds from 900000 on.
    """

    policy: str = "base"
    episodes: int = 10
    seconds: float = 7.2
    every: int = 12
    execution: Words = ("overlap",)
    latency: Words = ("0",)
    clock: Literal["wall", "simulated"] = "wall"
    plan: int = 1
    budget_ms: float | None = None
    judge: str = ""
    guard: Pairs = ()
    replay: Folder = None
    record: Folder = None
    seed: int = 900_000


def run(args: Args) -> dict[str, Any]:
    """Drive; the answer has an entry for every way of execution and latency.

    Returns:
        ``runs``: success rate with its interval, ticks, those that began more than a tick late (``missed``), the 99th
        percentile of lateness and the median latency in ms, ticks without a plan (``held``), what the guard did
        (``guarded``), what was not thought in time (``notes``), and why no more episodes were driven, where nothing
        answered any longer (``lost``).

    Raises:
        ImagineError: an option is out of range, or the robot cannot be driven tick by tick.
    """
    at_least(args, episodes=1, every=1, plan=1, seed=0)
    if wrong := [x for x in args.execution if x not in EXECUTIONS]:
        raise ImagineError(f"--execution is {wrong[0]!r}, expected {', '.join(EXECUTIONS)}.")
    from imagine.configs.driving import drive

    return drive(args)
