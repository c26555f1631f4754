"""What ``finetune bc``, ``world-model`` and ``distill`` share: an adapter fitted to a dataset by some recipe."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from imagine.configs.runfolder import RunFolder

if TYPE_CHECKING:
    from imagine.data.read import LeRobotDataset
    from imagine.data.windows import Windows
    from imagine.model.model import WorldActionModel

Recipe = Callable[["WorldActionModel", "Windows", Any, Path], Path]
"""(model, latent windows, the recipe's config, run folder) to the adapter's folder."""


def fine_tune(args: Any, name: str, cfg: Any, recipe: Recipe) -> dict[str, Any]:
    """Encode ``args.dataset`` with ``args.model`` and fit an adapter in the run folder; resumes after a kill.

    Args:
        args: options of the command.
        name: of the command.
        cfg: of the recipe; its ``fit`` takes steps, learning rate and seed from the options.
        recipe: fits.
    """
    from imagine.model.model import WorldActionModel
    from imagine.train.latents import latent_windows

    model = WorldActionModel.from_pretrained(args.model)
    folder = RunFolder.of(name, args)
    windows, episodes = latent_windows(model, checked(folder, args.dataset, model), folder.path / "cache")
    asked = {"steps": args.steps, "lr": args.lr, "seed": args.seed}
    cfg = cfg.model_copy(update={"fit": cfg.fit.model_copy(update=asked)})
    adapter = recipe(model, windows, cfg, folder.path)
    answer = {"adapter": str(adapter), "episodes": episodes, "windows": len(windows)}
    folder.save_metrics(answer)
    return answer


def checked(folder: RunFolder, paths: Sequence[str], model: WorldActionModel) -> list[LeRobotDataset]:
    """Open datasets, find what would go wrong with them, and keep which they are in the run folder.

    Raises:
        ImagineError: one is unusable, does not fit the model, or is another than the run was started with.
    """
    from imagine.configs.commands.check import examine
    from imagine.data.cache import fingerprint
    from imagine.data.read import LeRobotDataset
    from imagine.model.text import TextConfig

    datasets = [LeRobotDataset.open(path) for path in paths]
    examine(datasets, model.body, None, model.cfg.text.words if isinstance(model.cfg.text, TextConfig) else None)
    folder.keep("datasets.yaml", {str(i): fingerprint(d) for i, d in enumerate(datasets)}, "the dataset")
    return datasets
