"""``imagine evaluate world-model``: a dream against what really happened under the same actions."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from imagine.configs.commands.common import Folder, Words, at_least
from imagine.configs.commands.worlds import OfRobot
from imagine.types import ImagineError


@dataclass(frozen=True, kw_only=True)
class Args(OfRobot):
    """Measure a dream against held-out episodes.

    Attributes:
        dataset: LeRobot datasets to measure on (all their episodes, or some: FOLDER@a:b:c); by default fresh ones are
            recorded on the robot's simulator.
        episodes: how many to record; episode i has seed SEED + i.
        seed: first seed; nothing shipped was trained on seeds from 900000 on.
        windows: at most so many one-chunk windows, drawn evenly.
        chunks: horizon of the dream on its own frames; by default 4, and 8 with --objects.
        steps: denoising steps per chunk.
        objects: tell instead what becomes of every object, by chunk, beside four controls: rollouts of several policies
            on the robot's simulator are dreamt again under the same actions (docs/fidelity.md).
        foreign: measure somebody else's world model instead, module:name of what makes it (docs/fidelity.md); MODEL
            then gives the robot alone.
        rollouts: of them; rollout i has seed SEED + i.
        policy: whose, as `evaluate` takes them, and hide, which hides things for a while; they take turns. By default
            the simulator's expert with and without flaws, random, and hide.
        actor: the model whose policies act, a name or folder; by default the one that dreams.
        kept: a folder in which rollouts are found again, so that several models are measured on the same ones.
        judge: who is asked of the same actions, shown dreams, true frames and a frozen picture, as `evaluate` takes
            them, or none; by default the model's own.
        device: where the model runs with --objects.
        workers: processes that simulate rollouts, one CPU each.
        write: keep the figures beside the model, so that imagined success rates can be read with them in mind; the
            model must be a folder.
    """

    dataset: Words = ()
    episodes: int = 100
    seed: int = 950_000
    windows: int = 600
    chunks: int | None = None
    steps: int = 1
    objects: bool = False
    foreign: str = ""
    rollouts: int = 96
    policy: Words = ()
    actor: str = ""
    kept: Folder = None
    judge: Words = ()
    device: str = "cpu"
    workers: int = 2
    write: bool = False


def run(args: Args) -> dict[str, Any]:
    """Measure; writes ``metrics.json`` and ``horizon.png`` to the run folder, or ``objects.md`` and films of objects.

    Raises:
        ImagineError: a number is out of range, or the datasets do not fit the model.
    """
    at_least(args, episodes=1, windows=1, steps=1, rollouts=1, workers=1)
    if args.chunks is not None:
        at_least(args, chunks=1)
    if args.write and args.foreign:
        raise ImagineError("--write puts figures beside a model of ours; leave it out with --foreign.")
    if args.write and not Path(args.model).is_dir():
        raise ImagineError(f"--write puts figures beside a model of yours; {args.model!r} is no folder.")
    from imagine.configs.fidelity import fidelity_of_objects, fidelity_of_windows

    return fidelity_of_objects(args) if args.objects else fidelity_of_windows(args)
