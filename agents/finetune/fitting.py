"""The one loop in which adapters are fitted to recorded windows; recipes say to what and how it is watched."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
from torch import nn

from imagine.data.windows import Windows
from imagine.files import write_json
from imagine.policy.adapter import Learner
from imagine.train.fit import FitConfig, Loss, fit
from imagine.types import DatasetError


def training_rows(windows: Windows) -> tuple[np.ndarray, np.ndarray]:
    """Numbers of windows to learn from and to watch; the same ones where nothing is held out.

    Raises:
        DatasetError: there is nothing to learn from.
    """
    rows, held = windows.rows("train"), windows.rows("held_out")
    if not len(rows):
        raise DatasetError("the dataset has no training window; record more or longer episodes.")
    return rows, held if len(held) else rows


def fit_adapter(
    learner: Learner,
    loss: Loss,
    cfg: FitConfig,
    folder: Path,
    *,
    name: str,
    evaluate: Callable[[nn.Module], dict[str, float]] | None = None,
) -> Path:
    """Fit (or resume) an adapter; its moving average is written to ``folder/adapter``, whose path comes back.

    Args:
        learner: a model with an adapter inside.
        loss: (step, generator) to (loss, numbers to log), of ``learner.model``.
        cfg: how long and how fast.
        folder: run folder.
        name: of the recipe.
        evaluate: given the average, numbers on held-out data; they are kept in ``training.json`` beside the adapter.
    """

    def save(average: nn.Module) -> Path:
        values = dict(average.dit.named_parameters())  # type: ignore[union-attr, operator]
        return learner.save(folder / "adapter", {k: values[k] for k in learner.parameters()})

    def publish(average: nn.Module, numbers: dict[str, float]) -> None:
        write_json(save(average) / "training.json", numbers)

    return save(fit(learner.model, loss, cfg, folder / "fit", evaluate=evaluate, publish=publish, name=name))
