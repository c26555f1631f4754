"""``imagine check``: find what would fail later in a dataset, an embodiment and a recipe, without decoding a video."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from imagine.configs.commands.common import Common, Words, console

if TYPE_CHECKING:
    from imagine.data.check import Report
    from imagine.data.read import LeRobotDataset
    from imagine.embodiment import Embodiment


@dataclass(frozen=True, kw_only=True)
class Args(Common):
    """Check datasets against an embodiment and a recipe: sizes, words, labels, bounds, units, order, lengths.

    Attributes:
        dataset: folder of a LeRobot dataset, or FOLDER@a:b:c for some of its episodes; several, joined by commas.
        embodiment: the YAML file to read them with; one is drafted, as imagine embodiment does, if left out.
        preset: the recipe whose sizes must fit, a YAML file or the name of one in configs/.
        set: changes to the recipe, as dit.action_patch=4; several joined by commas.
    """

    dataset: Words = ("datasets/g1",)
    embodiment: Path | None = None
    preset: str = "tiny"
    set: Words = ()


def run(args: Args) -> dict[str, Any]:
    """Check everything that can be known within a minute.

    Raises:
        ImagineError: something cannot work; one sentence per line, each naming file, episode or key.
    """
    from imagine.configs.load import load
    from imagine.configs.recipe import Recipe
    from imagine.data.draft import draft
    from imagine.data.read import LeRobotDataset
    from imagine.embodiment import Embodiment

    recipe = load(Recipe, args.preset, args.set)
    datasets = [LeRobotDataset.open(d) for d in args.dataset]
    body = Embodiment.load(args.embodiment) if args.embodiment else draft(datasets[0])[0]
    report = examine(datasets, body, recipe)
    return {
        "embodiment": body.name,
        "episodes": report.episodes,
        "rows": report.rows,
        "outside_bounds": {name: round(share, 4) for name, share in report.outside.items()},
        "warnings": report.warnings,
    }


def examine(
    datasets: Sequence[LeRobotDataset], body: Embodiment, recipe: Any, known_words: Collection[str] | None = None
) -> Report:
    """What is to be known before a training run; shows the warnings, raises ImagineError with all that cannot work.

    Without a recipe the model exists already, with ``known_words``, and no sizes are derived.
    """
    from imagine.data.check import Report, check_dataset
    from imagine.model.sizes import fitted
    from imagine.types import ImagineError

    whole = Report()
    try:
        if recipe is not None:
            fitted(recipe.dit, body, recipe.codec.factor)
    except ImagineError as error:
        whole.errors.append(str(error))
    for dataset in datasets:
        whole.add(check_dataset(dataset, body, known_words))
    for sentence in whole.warnings:
        console.print(f"warning: {sentence}", highlight=False, soft_wrap=True)
    whole.refuse()
    return whole
