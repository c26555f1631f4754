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
from imagine.rewards.latent import LatentJudge
from imagine.rewards.robometer import RobometerJudge
from imagine.rewards.vlm import JudgeSettings, VLMJudge
from imagine.types import CheckpointMismatch, ImagineError, RewardModel

HEADS = "latent"
"""The judge that lies beside a model's weights."""
WEIGHTS = ("*.json", "*.safetensors", "*.jinja", "*.txt", "*.model")

Judge = str | Path | Callable[..., Any]
"""What ``judge=`` takes, see :func:`load_judge`."""


def default_judge(folder: str | Path) -> str:
    """The judge of a model's dreams where nobody names another: in the gym, and in every command.

    It is the shipped judge where that one knows the robot, else the heads that lie beside the model's weights.

    Raises:
        ImagineError: there is none.
    """
    if found := _at_hand(folder):
        return found[0]
    path = resolve(folder)
    raise ImagineError(
        f"model folder {path} holds no judge, and {JUDGE} knows no robot {spec_of(path)!r}; train one with "
        "`imagine train --stages judge`, or name one with --judge (judge= in Python)."
    )


def _at_hand(folder: str | Path) -> list[str]:
    """Judges that know this model's dreams, one of each family, the one to be preferred first."""
    path = resolve(folder)
    robot = spec_of(path)
    shipped = robot is not None and robot == JudgeSettings.read(SHIPPED / JUDGE).robot
    return [JUDGE] * shipped + [HEADS] * LatentJudge.is_in(path)


def judge_name(name: str, folder: str | Path) -> str:
    """The name itself; the default's where it is empty."""
    return name or default_judge(folder)


def second_judge(name: str, folder: str | Path) -> str | None:
    """A judge of another family than ``name`` that knows this model's dreams, or None.

    There are two: heads on the model's latents, and everything else, which looks at decoded frames.
    """
    return next((other for other in _at_hand(folder) if (other == HEADS) != (name == HEADS)), None)


def load_judge(judge: Judge | None, folder: str | Path, device: str = "cpu") -> RewardModel:
    """A judge of imagined clips.

    Args:
        judge: ``latent``, heads that lie beside the model's weights; the name of a shipped judge; the folder or
            hub id of any image-text-to-text model, Robometer's layout included; ``http://HOST/v1#MODEL``, a model
            behind an OpenAI-compatible server; ``package.module:name``, or any callable, see
            :func:`imagine.rewards.function.as_judge`. None or "": :func:`default_judge`.
        folder: of the model that dreams.
        device: where a local judge runs.

    Raises:
        ImagineError: there is no such judge.
    """
    if judge is not None and not isinstance(judge, str | Path):
        return as_judge(judge)
    name = judge_name(str(judge or ""), folder)
    if name == HEADS:
        return LatentJudge.load(resolve(folder)).to(device)
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
        known = ", ".join((JUDGE, HEADS))
        raise ImagineError(
            f"there is no judge {name!r}; expected {known}, a folder or reachable hub id of an image-text-to-text "
            "model, http://HOST/v1#MODEL, or module:name."
        ) from None
    if (path / "robometer.json").is_file():
        return RobometerJudge.load(path, device=device)
    return VLMJudge.load(path, domain="imagined", device=device)
