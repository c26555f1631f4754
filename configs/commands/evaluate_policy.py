"""``imagine evaluate``: success of policies, in the dream, on the robot or both, with what it takes to believe it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from imagine.configs.commands.common import Words
from imagine.configs.commands.worlds import Episodes


@dataclass(frozen=True, kw_only=True)
class Args(Episodes):
    """Estimate success rates.

    Attributes:
        policy: base, random, expert (simulator only), an adapter in the model folder (none in the
            shipped one); the folder of an adapter or model; a server ws://HOST:PORT that speaks openpi's protocol;
            module:name for a policy of your own; any of them with flaws,
            base+noise=0.03+delay=6+idle=0.5+grip=0.5+bias=0.02. Several, joined by commas, are compared.
        zoo: a zoo of policies from hopeless to perfect, in both worlds: how well do dream and simulator agree?
        world: sim (the robot's simulator), imagined (the dream) or both; the same seeds are the same starts in both. By
            default sim if the robot has one, else imagined.
        dataset: folder of a LeRobot dataset whose episodes are dreamt again under their recorded actions, and held
            against what was recorded; policies and seeds play no part then.
        real: table of real trials, .csv or .parquet with columns policy, start, success (docs/evaluate.md); its
            policies are dreamt from the same numbered starts, those of --starts (saved, or a dataset).
        swap_instruction: give the policy another instruction than the one that success is measured by; which kinds
            there are the robot says, the table knows colour and task.
        until_horizon: with --swap-instruction, act on to the horizon instead of ending an episode once the other
            instruction has been carried out.
        steps: denoising steps of the policy.
        horizon: chunks within which an episode must succeed; by default 8, and 3 with --zoo, as far as a dream was
            trained to go on its own frames.
        guarded: a judged success needs what the gym's guards ask as well, and an episode that cannot be believed ends.
        ray: address of a Ray cluster to work on, or local; in this process when empty.
        workers: Ray workers, one CPU each.
        unchecked: print an imagined success rate although the error of its judge or the fidelity of its dream has not
            been measured.
        videos: how many episodes that end differently in the two worlds are shown in the report.
    """

    policy: Words = ("base",)
    zoo: bool = False
    world: str = ""
    dataset: str = ""
    real: str = ""
    swap_instruction: str = ""
    until_horizon: bool = False
    steps: int = 4
    horizon: int | None = None
    guarded: bool = True
    ray: str = ""
    workers: int = 2
    unchecked: bool = False
    videos: int = 4


def run(args: Args) -> dict[str, Any]:
    """Evaluate; the run folder then holds ``episodes.parquet``, ``metrics.json`` and ``report.html``. Resumes.

    Raises:
        ImagineError: an option is out of range, a policy, model, robot or table cannot be had, the dream or its judge
            was never measured, or a worker failed.
    """
    from imagine.configs.evaluate import evaluate

    return evaluate(args)
