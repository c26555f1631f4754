"""``imagine fidelity``: how far a dream can be believed, against what really happened under the same actions."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from imagine.configs.commands.common import Words, console
from imagine.configs.commands.worlds import OfRobot
from imagine.configs.runfolder import RunFolder
from imagine.progress import Progress
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
    for name in ("episodes", "windows", "chunks", "steps"):
        if getattr(args, name) < 1:
            raise ImagineError(f"--{name} is {getattr(args, name)}, expected at least 1.")
    from imagine.configs import build, heldout
    from imagine.files import write_json

    if args.write and not Path(args.model).is_dir():
        raise ImagineError(f"--write puts figures beside a model of yours; {args.model!r} is no folder.")
    loaded = args.load()
    home, model = loaded.folder, loaded.model
    folder = RunFolder.of("fidelity", args)
    datasets = [Path(d) for d in args.dataset] or [heldout.record(loaded, args.seed, args.episodes, folder.path)]
    source = heldout.windows(model, datasets, folder.path)
    dreamer = build.dreamer(model, home)
    cfg = build.dream_config(home).model_copy(update={"steps": args.steps})
    answer, film = measure(model, source, args.windows, args.chunks, cfg, dreamer=dreamer)
    folder.save_metrics(answer)
    if args.write:
        kept = home / "metrics.json"
        known = json.loads(kept.read_text()) if kept.is_file() else {}
        write_json(kept, {**known, "fidelity": answer})
    _picture(film, folder / "horizon.png")
    console.print(f"dream (above) and truth (below): {folder / 'horizon.png'}")
    return answer


def measure(
    model: Any, source: Any, n: int, chunks: int, cfg: Any, *, dreamer: Any
) -> tuple[dict[str, Any], dict[str, Any]]:
    """All figures of ``imagine fidelity`` and the films of its long dreams; ``model`` acts, ``dreamer`` dreams."""
    from imagine.agents.statistics import decibel_gain
    from imagine.world.fidelity import decibel, horizon, one_chunk

    rows = source.rows("all")
    rows = np.sort(rows[np.random.default_rng(0).permutation(len(rows))[:n]])
    with Progress("one chunk") as tell:
        one = one_chunk(dreamer, source, rows, cfg=cfg, on_progress=tell, actor=model)
    chains = source.chains(chunks)
    far = horizon(dreamer, source, chains[:64], cfg)
    names = ("true", "shuffled", "copy", "codec")
    answer: dict[str, Any] = {f"psnr_{k}": round(decibel(one[k]), 3) for k in names}
    for name in ("copy", "shuffled"):
        ci = decibel_gain(one["true"], one[name], one["episode"])
        answer[f"gain_over_{name}"] = {
            "value": round(ci.value, 3),
            "ci_low": round(ci.low, 3),
            "ci_high": round(ci.high, 3),
        }
    for name in ("inverse_r2", "inverse_r2_imagined", "policy_rms", "policy_rms_wrong"):
        answer[name] = round(float(one[name]), 4)
    answer["horizon_psnr"] = [round(decibel(x), 3) for x in far["mse"].T]
    answer["horizon_copy"] = [round(decibel(x), 3) for x in far["copy"].T]
    answer |= {"n": len(rows), "episodes": len(np.unique(one["episode"])), "horizon_n": len(far["mse"])}
    return answer, far


def _picture(film: dict[str, Any], path: Path) -> None:
    """Four long dreams, every other frame, dream above truth."""
    from PIL import Image

    rows = []
    for i in range(min(4, len(film["frames"]))):
        rows += [np.concatenate(list(film[k][i, 1::2]), 1) for k in ("frames", "truth")]
    image = Image.fromarray(np.concatenate(rows))
    image.resize((image.width * 2, image.height * 2), Image.Resampling.NEAREST).save(path)
