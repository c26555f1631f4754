"""Makers of labelled rollouts of a model folder, for teaching and measuring judges."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

from imagine.agents.labelled_rollouts import TOGETHER, NoJudge, RolloutMaker
from imagine.configs.build import dream_config, dreamer, load
from imagine.configs.policies import load_policy
from imagine.model.model import WorldActionModel
from imagine.world.dream import Dream, DreamConfig
from imagine.world.starts import SimStarts, Starts


def dreaming(model: WorldActionModel, folder: str | Path, starts: Starts, *, fast: bool) -> Dream:
    """A dream whose judge sees no success; ``fast`` ones are not checked, and their last bits depend on the machine."""
    cfg: DreamConfig = dream_config(folder)
    if fast:
        cfg = cfg.model_copy(update={"tile": 0, "autocast": True, "inverse_steps": 0, "hallucination_limit": None})
    return Dream(dreamer(model, folder), NoJudge(), starts, cfg)


def rollout_maker(
    folder: str | Path,
    *,
    fast: bool = True,
    frames: bool = False,
    options: Mapping[str, Any] | None = None,
    device: str = "cpu",
    num_envs: int = 0,
) -> RolloutMaker:
    """A maker for the model of a folder, on the simulator of the robot that the folder remembers.

    Args:
        folder: of the model that dreams.
        fast: see :func:`dreaming`.
        frames: whether the frames are wanted.
        options: of the robot's episodes, in place of its defaults.
        device: where it is imagined.
        num_envs: episodes imagined together; by default what is best on a CPU.
    """
    loaded = load(folder, options=options, device=device)
    model, robot = loaded.model, loaded.robot

    def dream(chosen: Mapping[str, Any]) -> Dream:
        starts = SimStarts(robot.make_env(model.body, horizon=1, **chosen), model.body)
        return dreaming(model, folder, starts, fast=fast)

    return RolloutMaker(
        model=model, robot=robot, dream=dream, policy=partial(_policy, model, folder), options=loaded.options,
        frames=frames, num_envs=num_envs or (TOGETHER if fast else 16),
    )  # fmt: skip


def _policy(model: WorldActionModel, folder: str | Path, name: str) -> Any:
    return load_policy(name, model, folder)
