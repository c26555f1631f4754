"""``imagine record``: demonstrations and deliberate failures on a robot's simulator, written as a LeRobot dataset."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from imagine.configs.commands.common import Common, Folder, Pairs, at_least, console, options_of
from imagine.configs.runfolder import RunFolder
from imagine.types import ImagineError


@dataclass(frozen=True, kw_only=True)
class Args(Common):
    """Record episodes of a robot's simulator as a LeRobot dataset: demonstrations, and failures where it can fail.

    Attributes:
        out: folder of the dataset; a killed collection goes on there, and --episodes may grow.
        robot: a plug-in's name, module:object, or a YAML file; by default the shipped table.
        option: what its recorder can vary, as families=pick_up,push_left or failure_share=0.7; any number of times. The
            table also knows colours, blocks and modes, how to fail: miss, drop, wrong, wander, and clumsy, near misses.
        episodes: how many episodes to record; episode i has seed SEED + i.
        workers: how many processes record at once.
        cache: write what training reads instead of a dataset, and no videos: OUT/cache/000000 and so on, each whole as
            soon as it is there.
        seconds: with --cache, begin no episode later than this; 0: record them all.
    """

    out: Folder = Path("datasets/g1")
    robot: str = ""
    option: Pairs = ()
    episodes: int = 200
    workers: int = 2
    cache: bool = False
    seconds: float = 0.0


def run(args: Args) -> dict[str, Any]:
    """Collect the dataset; beside it, in ``run/``, lie its configuration and counts.

    Returns:
        ``out``; ``episodes`` and ``frames`` the dataset holds; episodes ``collected`` now, and in how many ``seconds``.

    Raises:
        ImagineError: a number is not positive, the robot or an option of it is unknown or it records no episodes, or
            the folder holds a dataset of other tasks or another seed.
    """
    at_least(args, episodes=1, workers=1)
    if args.seconds and not args.cache:
        raise ImagineError(f"--seconds is {args.seconds:g}, but only a collection with --cache can end in time.")
    from imagine.agents.collect import collect
    from imagine.agents.collect_cache import collect_robot
    from imagine.configs.loaded import changed
    from imagine.policy.robots.registry import DEFAULT, load_robot

    robot = load_robot(args.robot or DEFAULT)
    recorder = robot.recorder()
    if recorder is None:
        raise ImagineError(
            f"robot {robot.name!r} records no episodes; give the plug-in a recorder (docs/own_robot.md)."
        )
    out, given = args.out or Path("datasets/g1"), options_of(args.option)
    options = changed(recorder.options, given, robot.name)
    folder = RunFolder(out / "run", {"seed": args.seed, "robot": args.robot, **given})
    console.print(f"recording {args.episodes} episodes into {out}")
    if args.cache:
        counts = collect_robot(out / "cache", robot, args.episodes, args.seed, args.workers, args.seconds, options)
        folder.save_metrics(counts)
        return {"out": str(out), **counts}
    info = collect(
        out, recorder.episode, episodes=args.episodes, first_seed=args.seed, workers=args.workers, options=options,
        names=recorder.names, robot_type=recorder.robot_type, fps=recorder.fps,
    )  # fmt: skip
    counts = {"episodes": info["total_episodes"], "frames": info["total_frames"]}
    counts |= {"collected": info["collected"], "seconds": round(info["seconds"], 1)}
    folder.save_metrics(counts)
    return {"out": str(out), **counts}
