"""What ``imagine clone``, ``refine`` and ``distill`` share: an adapter fitted to a dataset by some recipe."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from imagine.configs.runfolder import RunFolder

if TYPE_CHECKING:
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
    windows, episodes = latent_windows(model, args.dataset, folder.path / "cache")
    asked = {"steps": args.steps, "lr": args.lr, "seed": args.seed}
    cfg = cfg.model_copy(update={"fit": cfg.fit.model_copy(update=asked)})
    adapter = recipe(model, windows, cfg, folder.path)
    answer = {"adapter": str(adapter), "episodes": episodes, "windows": len(windows)}
    folder.save_metrics(answer)
    return answer
