"""Judges by name, and which one judges the dreams of a model where nobody names one."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from imagine.configs.defaults import JUDGE
from imagine.imports import import_object
from imagine.model.checkpoint import SHIPPED, resolve
from imagine.policy.robots.registry import spec_of
from imagine.rewards.endpoint import EndpointConfig, EndpointVLM
from imagine.rewards.function import as_judge
from imagine.rewards.heads import HeadJudge
from imagine.rewards.latent import LatentJudge
from imagine.rewards.robometer import RobometerJudge
from imagine.rewards.trajectory import TrajectoryJudge
from imagine.rewards.vlm import JudgeSettings, VLMJudge
from imagine.types import CheckpointMismatch, ImagineError, RewardModel

IN_FOLDER: dict[str, type[HeadJudge]] = {"latent": LatentJudge, "trajectory": TrajectoryJudge}
"""Judges that lie beside a model's weights, the one to be preferred first."""
FORMER = {"path": "trajectory", "own": ""}
WEIGHTS = ("*.json", "*.safetensors", "*.jinja", "*.txt", "*.model")

Judge = str | Path | Callable[..., Any]
"""What ``judge=`` takes, see :func:`load_judge`."""


def default_judge(folder: str | Path) -> str:
    """The judge of a model's dreams where nobody names another: in the gym, and in every command.

    It is the shipped judge where that one knows the robot, else the first of :data:`IN_FOLDER` that lies beside the
    model's weights.

    Raises:
        ImagineError: there is none.
    """
    path = resolve(folder)
    robot = spec_of(path)
    if robot is not None and robot == JudgeSettings.read(SHIPPED / JUDGE).robot:
        return JUDGE
    for name, kind in IN_FOLDER.items():
        if kind.is_in(path):
            return name
    raise ImagineError(
        f"model folder {path} holds no judge, and {JUDGE} knows no robot {robot!r}; train one with "
        "`imagine train --stages judge`, or name one with --judge (judge= in Python)."
    )


def judge_name(name: str, folder: str | Path) -> str:
    """The name itself; the default's where it is empty."""
    return FORMER.get(name, name) or default_judge(folder)


def second_judge(name: str, folder: str | Path) -> str | None:
    """A judge of another kind than ``name`` that lies beside the model's weights, or None."""
    path = resolve(folder)
    return next((n for n, kind in IN_FOLDER.items() if n != name and kind.is_in(path)), None)


def load_judge(judge: Judge | None, folder: str | Path, device: str = "cpu") -> RewardModel:
    """A judge of imagined clips.

    Args:
        judge: ``latent`` or ``trajectory``, which lie beside the model's weights; the name of a shipped judge; the
            folder or hub id of any image-text-to-text model, Robometer's layout included; ``http://HOST/v1#MODEL``, a
            model behind an OpenAI-compatible server; ``package.module:name``, or any callable, see
            :func:`imagine.rewards.function.as_judge`. None or "": :func:`default_judge`.
        folder: of the model that dreams.
        device: where a local judge runs.

    Raises:
        ImagineError: there is no such judge.
    """
    if judge is not None and not isinstance(judge, str | Path):
        return as_judge(judge)
    name = judge_name(str(judge or ""), folder)
    if name in IN_FOLDER:
        return IN_FOLDER[name].load(resolve(folder))  # type: ignore[return-value]
    if name.startswith(("http://", "https://")):
        url, _, model = name.partition("#")
        if not model:
            raise ImagineError(f"judge {name!r} names no model, expected http://HOST/v1#MODEL.")
        return VLMJudge(EndpointVLM(EndpointConfig(url=url, model=model)))
    if ":" in name and not Path(name).exists():
        found = import_object(name, "judge")
        return as_judge(found() if isinstance(found, type) else found)
    try:
        path = resolve(name, WEIGHTS)  # fetched first, so that a hub out of reach is one sentence and no retries
    except CheckpointMismatch:
        known = ", ".join((JUDGE, *IN_FOLDER))
        raise ImagineError(
            f"there is no judge {name!r}; expected {known}, a folder or reachable hub id of an image-text-to-text "
            "model, http://HOST/v1#MODEL, or module:name."
        ) from None
    if (path / "robometer.json").is_file():
        return RobometerJudge.load(path, device=device)
    return VLMJudge.load(path, domain="imagined", device=device)


def looks_at_pictures(judge: Judge) -> bool:
    """Whether a judge looks at what was dreamt, so that it needs the guards that look as well."""
    return judge != "trajectory"
