"""Robots driven tick by tick, put together: who thinks, who guards, and whose time it is."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack
from functools import partial
from itertools import product
from math import inf
from pathlib import Path
from typing import Any

import numpy as np

from imagine.agents.dream_scorer import DreamScorer
from imagine.agents.drive_record import RecordingRobot
from imagine.agents.replayed import ReplayedRobot
from imagine.agents.serving import warm_up
from imagine.agents.statistics import success_rate
from imagine.agents.thinking import DreamThinker
from imagine.configs.build import dream_config, dreamer
from imagine.configs.commands.common import options_of
from imagine.configs.drive_view import DriveView
from imagine.configs.judges import load_judge
from imagine.configs.load import make
from imagine.configs.loaded import Loaded
from imagine.configs.policies import load_policy
from imagine.configs.runfolder import RunFolder
from imagine.data.write import DatasetWriter
from imagine.embodiment import Embodiment
from imagine.policy.client import RemotePolicy
from imagine.policy.clock import Clock, SimulatedClock, WallClock
from imagine.policy.drive import Drive, DriveConfig, Driver, Think, thinker
from imagine.policy.guard import Guard, GuardConfig
from imagine.policy.policy import JointPolicy
from imagine.policy.robot_process import RobotProcess
from imagine.policy.robots.registry import load_robot
from imagine.types import ImagineError, TickRobot

PATIENCE = DriveConfig().patience
DREAMT = ("hallucination", "surprise", "success")
"""What a guard can only know where the plan is dreamt."""


def drive(args: Any) -> dict[str, Any]:
    """Do what ``imagine drive`` was asked for; ``args`` is :class:`imagine.configs.commands.drive.Args`.

    Raises:
        ImagineError: see :func:`imagine.configs.commands.drive.run`.
    """
    import yaml

    loaded = args.load()
    given = {name: yaml.safe_load(value) for name, value in options_of(args.guard).items()}
    watched = make(GuardConfig, given, "--guard")
    latencies = [_milliseconds(x) for x in args.latency]
    with ExitStack() as stack:
        think = thinking(args, loaded, any(name in given for name in DREAMT), stack)
        folder = RunFolder.of("drive", args)
        runs = {}
        for execution, latency in product(args.execution, latencies):
            patience = PATIENCE + latency / 1000
            cfg = DriveConfig(seconds=args.seconds, every=args.every, execution=execution, patience=patience)
            guard = Guard(loaded.model.body, loaded.robot.limits(loaded.model.body), watched)
            name = f"{execution}-{latency:g}ms" if len(args.execution) * len(latencies) > 1 else ""
            where = None if args.record is None else args.record / name
            episodes = list(driven(args, loaded, think, guard, cfg, latency, where))
            runs[f"{execution}, {latency:g} ms"] = summary(episodes, loaded.model.body.control_hz)
    answer = {"policy": args.policy, "clock": args.clock, "plan": args.plan, "runs": runs, "seed": args.seed}
    folder.save_metrics(answer)
    return answer


def _milliseconds(text: str) -> float:
    try:
        found = float(text)
    except ValueError:
        found = -1.0
    if not 0 <= found < 60_000:
        raise ImagineError(f"--latency is {text!r}, expected milliseconds from 0 to 60000.")
    return found


def driven(
    args: Any,
    loaded: Loaded,
    think: Callable[[int], Think],
    guard: Guard,
    cfg: DriveConfig,
    latency: float,
    record: Path | None = None,
) -> Iterator[Drive]:
    """Episodes one after the other; the robot is let go after the last one that is asked for.

    Args:
        args: see :func:`drive`.
        loaded: the model with its robot.
        think: who thinks in the episode of a seed.
        guard: of every command.
        cfg: how the robot is driven.
        latency: ms that an answer takes at least.
        record: folder of a new dataset; None records nothing.
    """
    body, wall = loaded.model.body, args.clock == "wall"
    robot: TickRobot
    if wall:
        robot = RobotProcess(partial(_robot, loaded.robot.spec, body, loaded.options, args.replay))
        clock: Clock = WallClock(body.control_hz, latency / 1000)
    else:
        robot = _robot(loaded.robot.spec, body, loaded.options, args.replay)
        clock = SimulatedClock(body.control_hz, latency / 1000)
    recording, done = RecordingRobot(robot, body), 0
    writer = None if record is None else _writer(record, loaded)
    try:
        with DriveView(f"driving, {cfg.execution}, {latency:g} ms", args.episodes, body.control_hz) as view:
            driver = Driver(robot if writer is None else recording, body, guard, clock, cfg, view.on_tick)
            for seed in range(args.seed, args.seed + args.episodes):
                found = driver.episode(think(seed), seed)
                if writer is not None:
                    writer.write_shard(done, [recording.episode()])
                done += 1
                view.on_episode(found)
                yield found
                if found.lost:
                    break
    finally:
        if writer is not None and done:
            writer.finalize()
        robot.close()
        if isinstance(clock, WallClock):
            clock.close()


def _writer(folder: Path, loaded: Loaded) -> DatasetWriter:
    """An empty dataset to be written; one file per episode, so that a killed drive loses one at most."""
    if folder.is_dir() and any(folder.iterdir()):
        raise ImagineError(f"--record {folder} is not empty; choose a new folder, and join datasets with lerobot.")
    recorder, body = loaded.robot.recorder(), loaded.model.body
    return DatasetWriter(folder, body.robot_type, body.control_hz, 1, {} if recorder is None else recorder.names)


def _robot(spec: str, body: Embodiment, options: Mapping[str, Any], replay: Path | None) -> TickRobot:
    if replay is not None:
        return ReplayedRobot(replay, body)
    return load_robot(spec).make_ticks(body, **options)


def thinking(args: Any, loaded: Loaded, dreamt: bool, stack: ExitStack) -> Callable[[int], Think]:
    """Who thinks in the episode of a seed.

    Args:
        args: see :func:`drive`.
        loaded: the model with its robot.
        dreamt: plans are dreamt, and not only acted.
        stack: closes what is connected to.
    """
    dreamt = dreamt or args.plan > 1
    if args.policy.startswith(("ws://", "wss://")):
        if dreamt:
            raise ImagineError(
                "--plan and what --guard asks of dreams need the model here; name a policy of its folder."
            )
        body = loaded.model.body
        timeout = PATIENCE + max(map(_milliseconds, args.latency)) / 1000
        remote = stack.enter_context(RemotePolicy(args.policy, body.chunk_actions, body.action_dim, timeout=timeout))
        return lambda seed: thinker(remote, seed, seed)
    policy = load_policy(args.policy, loaded.model, loaded.folder)
    warm_up(policy, None, loaded.model)
    if not dreamt:
        return lambda seed: thinker(policy, seed, seed)
    if not isinstance(policy, JointPolicy):
        raise ImagineError(f"policy {args.policy!r} cannot be dreamt on from, expected base, an adapter or a folder.")
    scorer = DreamScorer(
        dreamer(loaded.model, loaded.folder), load_judge(args.judge, loaded.folder), cfg=dream_config(loaded.folder)
    )
    budget = inf if args.budget_ms is None else args.budget_ms / 1000
    return lambda seed: DreamThinker(policy, scorer, seed, candidates=args.plan, budget=budget)


def summary(episodes: list[Drive], hz: float) -> dict[str, Any]:
    """What became of some drives; see :func:`imagine.configs.commands.drive.run`."""
    late = np.concatenate([episode.late for episode in episodes])
    latencies = [x for episode in episodes for x in episode.latencies]
    guarded = Counter(f"{e.rule}: {e.response}" for episode in episodes for e in episode.events)
    rate = success_rate([episode.success for episode in episodes])
    return {
        "success_rate": rate.value,
        "ci_low": rate.low,
        "ci_high": rate.high,
        "n": rate.n,
        "ticks": len(late),
        "missed": int((late > 1 / hz).sum()),
        "late_p99_ms": round(1000 * float(np.quantile(late, 0.99)), 2),
        "median_latency_ms": round(1000 * float(np.median(latencies)) / hz, 1) if latencies else None,
        "decisions": len(latencies),
        "held": sum(episode.held for episode in episodes),
        "refused": sum(episode.refused for episode in episodes),
        "lost": next((episode.lost for episode in episodes if episode.lost), ""),
        "guarded": dict(guarded.most_common()),
        "notes": dict(sum((episode.notes for episode in episodes), Counter())),
    }
