"""What an imagined success rate must not be read without: the judge's error and the dream's fidelity."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from imagine.configs.judges import HEADS
from imagine.model.model import resolve
from imagine.rewards.vlm import judge_folder
from imagine.types import ImagineError


def caveat(model: str, judge: str, unchecked: bool = False) -> dict[str, Any]:
    """The measured errors of a judge and of a dream, to be printed with every imagined rate.

    Args:
        model: a shipped model's name, a folder, or a hub id.
        judge: its name.
        unchecked: it is known that something has not been measured.

    Raises:
        ImagineError: one of them has not been measured, and that is not known.
    """
    error = _judge_error(model, judge)
    dream = _read(resolve(model) / "metrics.json").get("fidelity", {})
    fidelity = {k: dream[k] for k in ("psnr_true", "psnr_copy", "inverse_r2_imagined") if k in dream}
    for what, got, how in (
        (f"error of judge {judge!r}", error, "imagine evaluate judge"),
        (f"fidelity of model {model!r}", fidelity, "imagine evaluate world-model"),
    ):
        if not got and not unchecked:
            raise ImagineError(
                f"the {what} has not been measured, so an imagined success rate would say nothing; measure it with "
                f"`{how} --write`, or add --unchecked."
            )
    return {
        "judge": {"name": judge, **error} if error else {"name": judge, "error": "not measured"},
        "fidelity": fidelity or "not measured",
    }


def _judge_error(model: str, judge: str) -> dict[str, Any]:
    if judge.startswith(("http://", "https://")):
        return {}
    names: tuple[str, ...] = ("auroc", "fpr", "fpr_ci", "fnr", "fnr_ci", "n")
    if judge == HEADS:
        wrong = ("false_positive", "false_positive_ci", "false_negative", "false_negative_ci")
        names = ("auroc", *wrong, "n", "threshold_n")
        error = _read(resolve(model) / "judge_metrics.json")
    else:
        error = _read(Path(judge_folder(judge)) / "metrics.json").get("imagined", {})
    return {k: error[k] for k in names if k in error}


def _read(file: Path) -> dict[str, Any]:
    return json.loads(file.read_text()) if file.is_file() else {}
