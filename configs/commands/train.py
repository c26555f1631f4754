"""``imagine train``: codec, joint model and judges from any LeRobot dataset, in one resumable run folder."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from imagine.configs.commands.common import Common, Words, console
from imagine.configs.load import load
from imagine.configs.runfolder import RunFolder
from imagine.types import ImagineError

STAGES = ("codec", "model", "judge", "rollouts", "vlm")


@dataclass(frozen=True, kw_only=True)
class Args(Common):
    """Train codec, joint model, success head and vision-language judge on a LeRobot dataset.

    Attributes:
        dataset: folder of a LeRobot dataset (v2.1 or v3.0), or FOLDER@a:b:c for some of its episodes, as a slice, and
            FOLDER@^a:b:c for the others; several, joined by commas, are used together.
        robot: whose dataset it is: a name, module:object or YAML file; remembered in the model folder.
        embodiment: YAML file that names the dataset's state, action and camera slices (docs/embodiment.md), if not the
            robot's own; imagine embodiment drafts one.
        preset: recipe, a YAML file or the name of one in configs/.
        set: changes to the recipe, as model.steps=2000; several joined by commas.
        stages: which of codec, model, judge, rollouts, vlm to run; finished ones are skipped anyway.
        init: start from this model (name or folder): its codec and weights instead of fresh ones.
        name: name of the new model; it is written to OUT/NAME.
    """

    dataset: Words = ("datasets/g1",)
    robot: str = ""
    embodiment: Path | None = None
    preset: str = "tiny"
    set: Words = ()
    stages: Words = STAGES[:3]
    init: str = ""
    name: str = "model"


def run(args: Args) -> dict[str, Any]:
    """Train every stage that is not finished; kill it at any moment and run it again to go on.

    Raises:
        ImagineError: a stage, preset or dataset is not usable.
    """
    unknown = [s for s in args.stages if s not in STAGES]
    if unknown:
        raise ImagineError(f"--stages holds {unknown[0]!r}, expected some of {', '.join(STAGES)}.")
    from imagine.configs.commands.train_stages import Training
    from imagine.configs.recipe import Recipe

    recipe = load(Recipe, args.preset, args.set)

    training = Training(args, recipe, RunFolder.of("train", args))
    training.prepare()
    for stage in args.stages:
        console.print(f"[bold]{stage}[/bold]")
        getattr(training, stage)()
    training.folder.save_metrics(training.metrics)
    return {"model": str(training.out), **training.metrics}
