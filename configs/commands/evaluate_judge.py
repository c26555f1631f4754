"""``imagine evaluate judge``: can the judge be believed, on real and imagined clips, and when it is to be fooled?"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from imagine.configs.commands.common import Common, Words, console
from imagine.configs.defaults import MODEL
from imagine.configs.runfolder import RunFolder
from imagine.files import atomic_write
from imagine.types import ImagineError


@dataclass(frozen=True, kw_only=True)
class Args(Common):
    """Fit a judge's temperature, bias and threshold per task family on some episodes, and measure it on others.

    Attributes:
        judge: a shipped judge's name, or the folder or hub id of an image-text-to-text model.
        model: whose dreams are judged: a shipped model's name, a folder, or a hub id.
        dataset: recorded episodes to calibrate on, cross-fitted, dreamt again under their own actions; without it,
            episodes and rollouts are made on the robot's simulator.
        episodes: how many real episodes to record on the simulator for each of both; an episode gives four clips.
        rollouts: how many imagined rollouts to judge, for each of both.
        controls: negative controls of each kind.
        chunks: per imagined rollout.
        fit_seed: first seed of what is fitted.
        seed: first seed of what is measured; nothing shipped was trained or fitted on seeds from 900000 on.
        write: also write the calibration into the judge's folder, where everybody finds it.
    """

    judge: str = "judge-tiny"
    model: str = MODEL
    dataset: Words = ()
    episodes: int = 200
    rollouts: int = 240
    controls: int = 50
    chunks: int = 8
    fit_seed: int = 860_000
    seed: int = 970_000
    write: bool = False


def run(args: Args) -> dict[str, Any]:
    """Calibrate and measure; writes ``judge.json``, ``metrics.json`` and ``reliability.png`` to the run folder.

    Returns:
        ``real`` and ``imagined``: auroc, brier, ece, fpr and fnr with their intervals (``*_ci``) and n, on episodes
        that fitted nothing; ``false_positive_rate`` on ``negative_controls``; ``second_judge``, how a judge of another
        architecture differs.

    Raises:
        ImagineError: a number is out of range, or the judge or the model cannot be loaded.
    """
    for name, least in (("episodes", 4), ("rollouts", 16), ("controls", 4), ("chunks", 1)):
        if getattr(args, name) < least:
            raise ImagineError(f"--{name} is {getattr(args, name)}, expected at least {least}.")
    if abs(args.seed - args.fit_seed) < max(args.episodes, args.rollouts):
        raise ImagineError(
            f"seeds from {args.fit_seed} and from {args.seed} overlap; what is fitted must not be measured."
        )
    from imagine.configs.calibration import Calibrating
    from imagine.rewards.measure import draw_reliability
    from imagine.rewards.vlm import SETTINGS, judge_folder

    path = judge_folder(args.judge)
    if args.write and not path.is_dir():
        raise ImagineError(f"--write needs a judge in a folder, got {args.judge!r}; fetch it, or leave --write out.")
    folder = RunFolder.of("evaluate-judge", args)
    work = Calibrating(args, folder.path)
    answer, settings, curves = work.measure()
    folder.write_text(SETTINGS, settings)
    folder.save_metrics(answer)
    draw_reliability(curves, folder / "reliability.png")
    if args.write:
        atomic_write(path / SETTINGS, settings)
        atomic_write(path / "metrics.json", (folder / "metrics.json").read_bytes())
        console.print(f"calibration written to {path / SETTINGS}")
    console.print(f"reliability diagram: {folder / 'reliability.png'}")
    return answer
