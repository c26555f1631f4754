"""The composition root: the only module that knows models, judges, robots and agents all at once."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from agents.rollout import DreamLanes, Lanes, RealLanes
from imagine.dream import Dream, DreamConfig
from imagine.env import EnvConfig, WorldModelEnv, WorldModelVectorEnv
from imagine.model import WorldActionModel, resolve
from imagine.starts import RobotStarts
from imagine.text import split_words
from imagine.types import ImagineError, Policy
from policy.adapter import merged
from policy.policy import JointPolicy, RandomPolicy
from policy.robots.g1_table.env import G1TableEnv, TableRobot
from policy.robots.g1_table.privileged import expert_chunk
from policy.robots.g1_table.tasks import FAMILIES, Task
from rewards.latent import LatentJudge

from .told import Told, ToldLanes

DEFAULT = "g1-table-tiny"
ADAPTER = "improved"
HORIZON = 8  # chunks


def task_of(instruction: str) -> str:
    """Task family of an instruction, for breakdowns."""
    return Task.parse(instruction).family


def families_of(model: WorldActionModel) -> tuple[str, ...]:
    """The task families whose every word the model has heard: the tiers that this checkpoint covers."""
    known = set(model.text.cfg.words)
    return tuple(f for f in FAMILIES if set(split_words(Task(f, "red").instruction)) <= known)


def dream(model: WorldActionModel, folder: str | Path, cfg: DreamConfig | None = None) -> Dream:
    """A dream of the table: real starts from the twin, the judge beside the model's weights."""
    starts = RobotStarts(TableRobot(model.body), model.body, families=families_of(model))
    return Dream(model, LatentJudge.load(resolve(folder)), starts, cfg or dream_config(folder))


def dream_config(folder: str | Path) -> DreamConfig:
    """The dream settings measured for this checkpoint (``dream.json`` beside it), else the defaults."""
    path = resolve(folder) / "dream.json"
    return DreamConfig.model_validate_json(path.read_bytes()) if path.is_file() else DreamConfig()


def make_dream_vector_env(
    num_envs: int = 1,
    *,
    model: str | Path = DEFAULT,
    device: str = "cpu",
    horizon: int = HORIZON,
    truncate_unbelievable: bool = True,
    **kwargs: Any,
) -> WorldModelVectorEnv:
    """``gymnasium.make_vec("imagine/G1Table-v0", num_envs=N)``; see :class:`imagine.env.WorldModelVectorEnv`."""
    if num_envs < 1:
        raise ImagineError(f"num_envs is {num_envs}, expected at least 1 lane.")
    world = dream(WorldActionModel.from_pretrained(model, device=device), model)
    cfg = EnvConfig(horizon=horizon, truncate_unbelievable=truncate_unbelievable)
    return WorldModelVectorEnv(world, num_envs, cfg=cfg, **kwargs)


def make_dream_env(
    *,
    model: str | Path = DEFAULT,
    device: str = "cpu",
    horizon: int = HORIZON,
    truncate_unbelievable: bool = True,
    **kwargs: Any,
) -> WorldModelEnv:
    """``gymnasium.make("imagine/G1Table-v0")``: one lane of the same dream."""
    world = dream(WorldActionModel.from_pretrained(model, device=device), model)
    cfg = EnvConfig(horizon=horizon, truncate_unbelievable=truncate_unbelievable)
    return WorldModelEnv(world, cfg=cfg, **kwargs)


class PrivilegedLanes(RealLanes):
    """Real lanes in which the scripted expert acts, whatever the policy said; it sees the true state."""

    def step(self, lanes: Sequence[int], actions: np.ndarray) -> tuple[dict[str, np.ndarray], list[dict[str, Any]]]:
        """See :class:`agents.rollout.Lanes`."""
        return super().step(lanes, np.stack([expert_chunk(self.envs[i]) for i in lanes]))


def lanes(
    world: str,
    model: WorldActionModel,
    folder: str | Path,
    n: int,
    *,
    expert: bool = False,
    film: bool = False,
    until_told: Told | None = None,
) -> Lanes:
    """Lanes of the ``real`` twin or of the ``imagined`` one, with the same starts for the same seeds.

    Real episodes of a misled policy end when it has done what it was told, if ``until_told`` is given.

    Raises:
        ImagineError: another world is asked for, zero lanes, or the expert in a dream.
    """
    if n < 1:
        raise ImagineError(f"asked for {n} lanes, expected at least 1.")
    if world == "real":
        make: Callable[[], G1TableEnv] = lambda: G1TableEnv(  # noqa: E731
            model.body, max_chunks=HORIZON, families=families_of(model)
        )
        if until_told is not None:
            return ToldLanes(make, n, until_told)
        return PrivilegedLanes(make, n) if expert else RealLanes(make, n)
    if world != "imagined":
        raise ImagineError(f"--world is {world!r}, expected real or imagined.")
    if expert:
        raise ImagineError("the scripted expert reads the true state, which a dream has not; use --world real.")
    return DreamLanes(dream(model, folder), n, horizon=HORIZON, film=film)


def policy(name: str, model: WorldActionModel, folder: str | Path, *, steps: int = 4) -> Policy:
    """A policy by name: base, improved, expert, random, or the folder of an adapter or a model.

    Raises:
        ImagineError: there is no such policy.
    """
    if name == "base":
        return JointPolicy(model, steps=steps)
    if name in ("random", "expert"):  # the expert's lanes overrule whatever is said
        return RandomPolicy(model.body.action_low, model.body.action_high, model.body.chunk_actions)
    path = resolve(folder) / ADAPTER if name == "improved" else Path(name)
    if (path / "adapter_config.json").is_file():
        return JointPolicy(merged(model, path), steps=steps)
    if (path / "config.json").is_file():
        other = WorldActionModel.from_pretrained(path, device=model.device)
        if other.body != model.body:
            raise ImagineError(f"policy {name} is for embodiment {other.body.name!r}, expected {model.body.name!r}.")
        return JointPolicy(other, steps=steps)
    raise ImagineError(f"no policy {name!r}; expected base, improved, expert, random, or an adapter or model folder.")
