"""What the names of policies, worlds and datasets in an evaluation mean, in any process."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from imagine.agents.envs import DreamEnvs, ParallelEnvs, RecordedEnvs
from imagine.agents.evaluate import Worker
from imagine.agents.recorded import RecordedEpisodes
from imagine.configs import build
from imagine.model.model import WorldActionModel, resolve
from imagine.rewards.vlm import judge_folder
from imagine.types import Policy

ZOO = (
    "base",
    "base+delay=6",
    "base+delay=12",
    "base+noise=0.02",
    "base+noise=0.04",
    "base+noise=0.08",
    "base+idle=0.7",
    "base+grip=0.5",
    "base+bias=0.04",
    "improved",
    "improved+noise=0.03",
    "novice",
    "novice+noise=0.03",
    "random",
)
"""Policies with known truth, from hopeless to perfect: ``imagine evaluate --zoo``."""


@dataclass(frozen=True)
class Setup:
    """What every part of an evaluation shares; crosses process borders.

    Attributes:
        model: a shipped model's name, a folder, or a hub id.
        judge: who scores a dream, see :func:`imagine.configs.build.judge`.
        lanes: episodes run side by side.
        steps: denoising steps of the policy.
        told: see :func:`imagine.configs.build.swap`.
        go_on: act on after what was told instead is done.
        horizon: chunks per episode at most.
        blocks: on the table.
        guarded: a judged success needs what the gym's guards ask as well, and what cannot be believed ends.
        dataset: folder of a LeRobot dataset whose episodes are dreamt again under their recorded actions; "" for none.
        cache: folder for what is decoded of it.
    """

    model: str
    judge: str
    lanes: int = 16
    steps: int = 4
    told: str = "right"
    go_on: bool = False
    horizon: int = build.HORIZON
    blocks: int = 2
    guarded: bool = True
    dataset: str = ""
    cache: str = ""


def stamp(setup: Setup, policies: Sequence[str]) -> str:
    """Twelve digits that stand for all weights and settings of an evaluation.

    What answers behind ``ws://`` or ``module:name`` is not known; evaluate a changed one in another folder.
    """
    folders = [resolve(setup.model)]
    names = [p.partition("+")[0] for p in policies]
    folders += [resolve(setup.model) / n if n in build.ADAPTERS else Path(n) for n in names]
    if (dreams := build.dream_config(setup.model).adapter) is not None:
        folders.append(resolve(setup.model) / dreams)
    if not setup.judge.startswith(("http://", "https://")) and setup.judge not in ("latent", "path"):
        folders.append(Path(judge_folder(setup.judge)))
    rules = setup.steps, setup.told, setup.go_on, setup.horizon, setup.blocks, setup.guarded, setup.judge
    digest = hashlib.sha256(repr(rules).encode())
    for folder in sorted({f for f in folders if f.is_dir()}):
        for file in sorted(f for f in folder.iterdir() if f.suffix in (".safetensors", ".json")):
            if "metrics" not in file.name:
                digest.update(file.read_bytes())
    return digest.hexdigest()[:12]


def worker(setup: Setup) -> Worker:
    """Who carries out the parts of an evaluation, in any process."""
    model = WorldActionModel.from_pretrained(setup.model)
    recorded = RecordedEpisodes(model, setup.dataset, Path(setup.cache)) if setup.dataset else None
    swap = build.swap(setup.told, model)

    def envs_of(world: str) -> ParallelEnvs:
        how: dict[str, Any] = {"judged_by": setup.judge, "guarded": setup.guarded}
        if recorded is not None:
            dream = build.dream(model, setup.model, starts=recorded.starts, **how)
            envs = DreamEnvs(dream, setup.lanes, horizon=recorded.longest, break_off=setup.guarded)
            return RecordedEnvs(envs, recorded)
        until = None if setup.go_on else swap
        return build.lanes(
            world, model, setup.model, setup.lanes, until=until, horizon=setup.horizon, blocks=setup.blocks, **how
        )

    def policy_of(name: str) -> Policy:
        return build.policy(name, model, setup.model, steps=setup.steps)

    return Worker(policy_of, envs_of, build.task_of, model.body, instruct=swap, recorded=recorded)
