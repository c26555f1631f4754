"""The composition root: puts models, judges, robots and starts together into dreams and parallel environments."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from imagine.agents.envs import DreamEnvs, ParallelEnvs, SimEnvs
from imagine.agents.frozen_dream import FrozenDream
from imagine.agents.instruction_swap import InstructionSwap, SwappedEnvs
from imagine.configs.defaults import HORIZON
from imagine.configs.judges import Judge, load_judge
from imagine.configs.loaded import Loaded, load
from imagine.data.read import LeRobotDataset
from imagine.intact import intact
from imagine.model.model import WorldActionModel, resolve
from imagine.policy.adapter import merged
from imagine.rewards.guards import GuardConfig, GuardedJudge
from imagine.rewards.progress import Potential
from imagine.rewards.shadow import ShadowJudge
from imagine.types import ImagineError
from imagine.world.dream import Dream, DreamConfig
from imagine.world.starts import EpisodeStarts, GivenStarts, SavedStarts, SimStarts, Starts

__all__ = ["HORIZON", "Loaded", "dream", "dream_config", "dreamer", "load", "parallel_envs", "starts_of"]

WORLDS = ("sim", "imagined", "frozen")

StartsLike = None | str | Path | Callable[[int, Mapping[str, Any]], Any]
"""What ``starts=`` takes, see :func:`starts_of`."""


def dream_config(folder: str | Path) -> DreamConfig:
    """The dream settings measured for this checkpoint (``dream.json`` beside it), else the defaults."""
    path = resolve(folder) / "dream.json"
    with intact(path):
        return DreamConfig.model_validate_json(path.read_bytes()) if path.is_file() else DreamConfig()


def dreamer(model: WorldActionModel, folder: str | Path, cfg: DreamConfig | None = None) -> WorldActionModel:
    """Who dreams: ``model`` itself, or a copy with the adapter that its dream's settings name."""
    cfg = cfg or dream_config(folder)
    return model if cfg.adapter is None else merged(model, resolve(folder) / cfg.adapter)


def starts_of(loaded: Loaded, starts: StartsLike = None) -> Starts:
    """Where episodes begin.

    Args:
        loaded: the model and its robot.
        starts: ``sim``: where the robot's simulator begins for the same seed; ``saved``: the first observations that
            lie in the model folder; the folder of a LeRobot dataset: those of its episodes; or a function of
            (seed, options), see :class:`imagine.world.starts.GivenStarts`. None: ``sim`` if there is one, else saved.

    Raises:
        ImagineError: these starts cannot be had.
    """
    body = loaded.model.body
    if starts is None:
        if loaded.robot.has_env:
            try:
                return SimStarts(loaded.sim_env(), body)
            except ImportError:
                if not SavedStarts.is_in(loaded.folder):
                    raise
        if SavedStarts.is_in(loaded.folder):
            return SavedStarts.load(loaded.folder, body)
        raise ImagineError(
            f"robot {loaded.robot.name!r} has no simulator and {loaded.folder} holds no saved starts; give "
            "starts= (--starts) the folder of a dataset."
        )
    if starts == "sim":
        return SimStarts(loaded.sim_env(), body)
    if starts == "saved":
        return SavedStarts.load(loaded.folder, body)
    if isinstance(starts, str | Path):
        return EpisodeStarts(LeRobotDataset.open(starts), body)
    return GivenStarts(starts, body)


def dream(
    loaded: Loaded,
    cfg: DreamConfig | None = None,
    *,
    judge: Judge | None = None,
    guarded: bool = True,
    shaping: float | None = None,
    watched_by: Judge | None = None,
    starts: StartsLike = None,
    frozen: bool = False,
) -> Dream:
    """A dream.

    Args:
        loaded: who dreams, and of which robot.
        cfg: how it dreams; by default as measured for this checkpoint.
        judge: see :func:`imagine.configs.judges.load_judge`.
        guarded: a judged success counts only if the dream follows the actions, is neither frozen nor blurred, and the
            commanded chunk keeps the robot's limits.
        shaping: discount of potential-based shaping by judged progress; None pays for success alone.
        watched_by: a second judge without a say, reported as the term ``second``.
        starts: see :func:`starts_of`.
        frozen: it draws nothing, as a control (:class:`imagine.agents.frozen_dream.FrozenDream`).
    """
    cfg = cfg or dream_config(loaded.folder)
    model, device = dreamer(loaded.model, loaded.folder, cfg), str(loaded.model.device)
    scorer = load_judge(judge, loaded.folder, device)
    if guarded:
        error = cfg.hallucination_limit if cfg.inverse_steps else None
        limits = loaded.robot.limits(model.body)
        seen = model.body.visible_motion
        guards = GuardConfig(inverse_error=error, blur=cfg.blur_limit, noise=cfg.noise_limit, moved=seen, limits=limits)
        scorer = GuardedJudge(scorer, guards)
    if watched_by is not None:
        scorer = ShadowJudge(scorer, load_judge(watched_by, loaded.folder, device))
    potential = None if shaping is None else lambda n: Potential(n, shaping)
    kind = FrozenDream if frozen else Dream
    return kind(model, scorer, starts_of(loaded, starts), cfg, potential)


def parallel_envs(
    loaded: Loaded,
    world: str,
    n: int,
    *,
    judge: Judge | None = None,
    until: InstructionSwap | None = None,
    horizon: int = HORIZON,
    guarded: bool = True,
    starts: StartsLike = None,
) -> ParallelEnvs:
    """Environments of the robot's simulator, ``sim``, or ``imagined`` ones, alike at the beginning for the same seeds.

    A third world is a control: ``frozen`` dreams draw nothing, and no guard looks. An episode lasts ``horizon`` chunks
    at most. A dream is scored by ``judge``; ``guarded`` and ``starts`` are those of :func:`dream`, and guarded dreams
    end when they cannot be believed. Simulated episodes of a policy that is told something else end when it has done
    that, if ``until`` is given.

    Raises:
        ImagineError: another world is asked for, none at all, or one that this robot has not.
    """
    if n < 1 or horizon < 1:
        raise ImagineError(f"asked for {n} environments of {horizon} chunks, expected at least 1 of each.")
    body = loaded.model.body
    if world == "sim":
        if until is not None:
            return SwappedEnvs(lambda: loaded.sim_env(horizon), n, body, until)
        return SimEnvs(lambda: loaded.sim_env(horizon), n, body, expert=loaded.robot.expert)
    if world not in WORLDS:
        raise ImagineError(f"world is {world!r}, expected {' or '.join(WORLDS)}.")
    frozen = world == "frozen"
    guarded = guarded and not frozen
    imagined = dream(loaded, judge=judge, guarded=guarded, starts=starts, frozen=frozen)
    return DreamEnvs(imagined, n, horizon=horizon, break_off=guarded)
