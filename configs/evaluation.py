"""What the names of policies, worlds and datasets in an evaluation mean, in any process."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from imagine.agents.envs import DreamEnvs, ParallelEnvs, RecordedEnvs
from imagine.agents.evaluate import Worker
from imagine.agents.instruction_swap import InstructionSwap
from imagine.agents.recorded import RecordedEpisodes
from imagine.configs import build
from imagine.configs.judges import HEADS
from imagine.configs.policies import adapters_in, load_policy
from imagine.model.model import resolve
from imagine.rewards.vlm import judge_folder
from imagine.types import ImagineError, Policy
from imagine.world.starts import EpisodeStarts, SavedStarts

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
    "base+noise=0.03",
    "base+delay=9",
    "base+idle=0.4+noise=0.03",
    "base+noise=0.06+bias=0.03",
    "random",
)
"""Policies with known truth, from hopeless to perfect: ``imagine evaluate --zoo``."""
FROZEN = "frozen"
"""The world whose picture never changes, beside every imagined one."""


@dataclass(frozen=True)
class Setup:
    """What every part of an evaluation shares; crosses process borders.

    Attributes:
        model: a shipped model's name, a folder, or a hub id.
        judge: the name of who scores a dream, see :func:`imagine.configs.judges.load_judge`.
        robot: see :func:`imagine.configs.loaded.load`.
        options: likewise.
        starts: where dreams begin, see :func:`imagine.configs.build.starts_of`; "" for its default.
        num_envs: episodes run side by side.
        steps: denoising steps of the policy.
        swap: one of ``RobotPlugin.swaps``: how the policy's instruction differs from the episode's own; "" for not.
        until_horizon: act on after the other instruction has been carried out.
        horizon: chunks per episode at most.
        guarded: a judged success needs what the gym's guards ask as well, and what cannot be believed ends.
        dataset: folder of a LeRobot dataset whose episodes are dreamt again under their recorded actions; "" for none.
        cache: folder for what is decoded of it.
    """

    model: str
    judge: str = ""
    robot: str = ""
    options: Mapping[str, Any] = field(default_factory=dict)
    starts: str = ""
    num_envs: int = 16
    steps: int = 4
    swap: str = ""
    until_horizon: bool = False
    horizon: int = build.HORIZON
    guarded: bool = True
    dataset: str = ""
    cache: str = ""

    def load(self) -> build.Loaded:
        """The model with its robot."""
        return build.load(self.model, self.robot, self.options)


def stamp(setup: Setup, policies: Sequence[str]) -> str:
    """Twelve digits that stand for all weights and settings of an evaluation.

    What answers behind ``ws://`` or ``module:name`` is not known; evaluate a changed one in another folder.
    """
    folder = resolve(setup.model)
    names = [p.partition("+")[0] for p in policies]
    folders = [folder, *(folder / n if n in adapters_in(folder) else Path(n) for n in names)]
    if (dreams := build.dream_config(folder).adapter) is not None:
        folders.append(folder / dreams)
    if not setup.judge.startswith(("http://", "https://")) and setup.judge != HEADS:
        folders.append(Path(judge_folder(setup.judge)))
    rules = (
        setup.steps, setup.swap, setup.until_horizon, setup.horizon, setup.guarded, setup.judge, setup.starts,
        setup.robot,
    )  # fmt: skip
    digest = hashlib.sha256(repr((*rules, sorted(setup.options.items()))).encode())
    for found in sorted({f for f in folders if f.is_dir()}):
        for file in sorted(f for f in found.iterdir() if f.suffix in (".safetensors", ".json")):
            if "metrics" not in file.name:
                digest.update(file.read_bytes())
    return digest.hexdigest()[:12]


def zoo_of(model: str) -> tuple[str, ...]:
    """The zoo without the adapters that a model folder lacks."""
    known = ("base", "random", *adapters_in(model))
    return tuple(name for name in ZOO if name.partition("+")[0] in known)


def numbered_starts(loaded: build.Loaded, starts: str) -> SavedStarts | EpisodeStarts:
    """Starts that can be named by number: those saved in the model folder, or a dataset's.

    Raises:
        ImagineError: there are none.
    """
    found = build.starts_of(loaded, starts or "saved")
    if not isinstance(found, SavedStarts | EpisodeStarts):
        raise ImagineError(f"--starts is {starts!r}, expected saved or a dataset, whose starts have numbers.")
    return found


def swap_of(loaded: build.Loaded, swap: str) -> InstructionSwap | None:
    """What a policy is told instead of an episode's own instruction; None where ``swap`` is empty.

    Raises:
        ImagineError: the robot knows no such other instruction.
    """
    return InstructionSwap(loaded.robot, swap, loaded.options) if swap else None


def worker(setup: Setup) -> Worker:
    """Who carries out the parts of an evaluation, in any process."""
    loaded = setup.load()
    recorded = RecordedEpisodes(loaded.model, setup.dataset, Path(setup.cache)) if setup.dataset else None
    swap = swap_of(loaded, setup.swap)

    def envs_of(world: str) -> ParallelEnvs:
        if recorded is not None:
            frozen = world == FROZEN
            guarded = setup.guarded and not frozen
            dream = build.dream(loaded, starts=recorded.starts, judge=setup.judge, guarded=guarded, frozen=frozen)
            envs = DreamEnvs(dream, setup.num_envs, horizon=recorded.longest, break_off=guarded)
            return RecordedEnvs(envs, recorded)
        until = None if setup.until_horizon else swap
        return build.parallel_envs(
            loaded,
            world,
            setup.num_envs,
            until=until,
            horizon=setup.horizon,
            starts=setup.starts or None,
            judge=setup.judge,
            guarded=setup.guarded,
        )

    def policy_of(name: str) -> Policy:
        return load_policy(name, loaded.model, loaded.folder, steps=setup.steps)

    return Worker(policy_of, envs_of, loaded.robot.task_of, loaded.model.body, instruct=swap, recorded=recorded)
