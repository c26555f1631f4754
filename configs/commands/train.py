"""``imagine train``: codec, joint model and judges from any LeRobot dataset, in one resumable run folder."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict

from imagine.configs.commands.common import Common, Words, console
from imagine.configs.load import load
from imagine.configs.runfolder import RunFolder
from imagine.types import ImagineError

STAGES = ("codec", "model", "judge", "rollouts", "trajectory", "vlm")


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
        stages: which of codec, model, judge, rollouts, trajectory, vlm to run; finished ones are skipped anyway.
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


def recipe_class() -> type[BaseModel]:
    """The recipe: one configuration per stage, defaults beside the classes they configure."""
    from imagine.agents.labelled_rollouts import RolloutConfig
    from imagine.model.codec import CodecConfig
    from imagine.model.dit import DiTConfig
    from imagine.rewards.latent import HeadConfig
    from imagine.rewards.train.vlm import VLMConfig
    from imagine.train.fit import FitConfig
    from imagine.train.losses import JointConfig

    class Recipe(BaseModel):
        model_config = ConfigDict(extra="forbid", frozen=True)

        codec: CodecConfig = CodecConfig()
        codec_fit: FitConfig = FitConfig()
        dit: DiTConfig = DiTConfig()
        joint: JointConfig = JointConfig()
        model_fit: FitConfig = FitConfig()
        head: HeadConfig = HeadConfig()
        judge_fit: FitConfig = FitConfig()
        judge_dreams: int = 9000  # recorded frames to dream on from; each gives up to three imagined ones with labels
        rollouts: RolloutConfig = RolloutConfig()
        rollouts_fit: FitConfig = FitConfig()
        trajectory: RolloutConfig = RolloutConfig()
        trajectory_fit: FitConfig = FitConfig()
        vlm: VLMConfig = VLMConfig()
        vlm_fit: FitConfig = FitConfig()

    return Recipe


def run(args: Args) -> dict[str, Any]:
    """Train every stage that is not finished; kill it at any moment and run it again to go on.

    Raises:
        ImagineError: a stage, preset or dataset is not usable.
    """
    unknown = [s for s in args.stages if s not in STAGES]
    if unknown:
        raise ImagineError(f"--stages holds {unknown[0]!r}, expected some of {', '.join(STAGES)}.")
    recipe: Any = load(recipe_class(), args.preset, args.set)
    from imagine.configs.commands.train_stages import Training

    training = Training(args, recipe, RunFolder.of("train", args))
    training.prepare()
    for stage in args.stages:
        console.print(f"[bold]{stage}[/bold]")
        getattr(training, stage)()
    training.folder.save_metrics(training.metrics)
    return {"model": str(training.out), **training.metrics}
