"""``imagine fidelity``: how far a dream can be believed, against what really happened under the same actions."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from imagine.configs.commands.common import Words, at_least, console
from imagine.configs.commands.worlds import OfRobot
from imagine.configs.runfolder import RunFolder
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
        chunks: horizon of the dream on its own frames.
        steps: denoising steps per chunk.
        write: keep the figures beside the model, so that imagined success rates can be read with them in mind; the
            model must be a folder.
    """

    dataset: Words = ()
    episodes: int = 100
    seed: int = 950_000
    windows: int = 600
    chunks: int = 4
    steps: int = 1
    write: bool = False


def run(args: Args) -> dict[str, Any]:
    """Measure; writes ``metrics.json`` and ``horizon.png`` (dream above truth) to the run folder.

    Raises:
        ImagineError: a number is out of range, or the datasets do not fit the model.
    """
    at_least(args, episodes=1, windows=1, chunks=1, steps=1)
    if args.write and not Path(args.model).is_dir():
        raise ImagineError(f"--write puts figures beside a model of yours; {args.model!r} is no folder.")
    from imagine.agents.fidelity import measure
    from imagine.configs import build, heldout
    from imagine.configs.pages.fidelity import save_dreams
    from imagine.files import write_json
    from imagine.progress import Progress

    loaded = args.load()
    home, model = loaded.folder, loaded.model
    folder = RunFolder.of("fidelity", args)
    datasets = [Path(d) for d in args.dataset] or [heldout.record(loaded, args.seed, args.episodes, folder.path)]
    windows = heldout.windows(model, datasets, folder.path)
    dreamer, cfg = build.dreamer(model, home), build.dream_config(home).model_copy(update={"steps": args.steps})
    with Progress("one chunk") as on_progress:
        answer, dreams = measure(
            dreamer, model, windows, cfg, n=args.windows, chunks=args.chunks, on_progress=on_progress
        )
    folder.save_metrics(answer)
    if args.write:
        kept = home / "metrics.json"
        known = json.loads(kept.read_text()) if kept.is_file() else {}
        write_json(kept, {**known, "fidelity": answer})
    save_dreams(dreams, folder / "horizon.png")
    console.print(f"dream (above) and truth (below): {folder / 'horizon.png'}")
    return answer
