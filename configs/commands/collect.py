"""``imagine collect``: demonstrations and deliberate failures on the twin, written as a LeRobot dataset."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from imagine.configs.commands.common import Common, Folder, Words, console
from imagine.configs.runfolder import RunFolder
from imagine.policy.robots.g1_table.episodes import FAILURE_SHARE
from imagine.types import ImagineError

EPISODE = "imagine.policy.robots.g1_table.episodes:episode"


@dataclass(frozen=True, kw_only=True)
class Args(Common):
    """Record demonstrations and deliberate failures on the twin as a LeRobot dataset.

    Attributes:
        out: folder of the dataset; a killed collection goes on there, and --episodes may grow.
        episodes: how many episodes to record; episode i has seed SEED + i.
        workers: how many processes record at once.
        families: tasks to record, all that the twin knows when empty.
        colours: colours of the blocks, all when empty.
        blocks: how many blocks lie on the table.
        failures: share of deliberate failures among the episodes.
        modes: how they fail: some of miss, drop, wrong, wander (all four when empty), and clumsy, near misses.
    """

    out: Folder = Path("datasets/g1")
    episodes: int = 200
    workers: int = 2
    families: Words = ()
    colours: Words = ()
    blocks: int = 2
    failures: float = FAILURE_SHARE
    modes: Words = ()


def run(args: Args) -> dict[str, Any]:
    """Collect the dataset; beside it, in ``run/``, lie its configuration and counts.

    Returns:
        ``out``; ``episodes`` and ``frames`` the dataset holds; episodes ``collected`` now, and in how many ``seconds``.

    Raises:
        ImagineError: a number is not positive, the twin does not know a family or colour, or the folder holds a
            dataset of other tasks or another seed.
    """
    for name in ("episodes", "workers", "blocks"):
        if getattr(args, name) < 1:
            raise ImagineError(f"--{name} is {getattr(args, name)}, expected at least 1")
    if not 0 <= args.failures <= 1:
        raise ImagineError(f"--failures is {args.failures}, expected a share from 0 to 1")
    from imagine.agents.collect import collect
    from imagine.policy.robots.g1_table.truth import NAMES

    out = args.out or Path("datasets/g1")
    given = {"families": args.families, "colours": args.colours, "modes": args.modes}
    options: dict[str, Any] = {"blocks": args.blocks} | {name: words for name, words in given.items() if words}
    if args.failures != FAILURE_SHARE:
        options["failure_share"] = args.failures
    folder = RunFolder(out / "run", {"seed": args.seed, **options})
    console.print(f"recording {args.episodes} episodes into {out}")
    names = {"observation.environment_state": NAMES}
    info = collect(
        out, EPISODE, episodes=args.episodes, first_seed=args.seed, workers=args.workers, options=options, names=names
    )
    counts = {"episodes": info["total_episodes"], "frames": info["total_frames"]}
    counts |= {"collected": info["collected"], "seconds": round(info["seconds"], 1)}
    folder.save_metrics(counts)
    return {"out": str(out), **counts}
