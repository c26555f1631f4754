"""The composition root: the only module that knows models, judges, robots and agents all at once."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np

from imagine.agents.envs import DreamEnvs, ParallelEnvs, SimEnvs
from imagine.agents.instruction_swap import InstructionSwap, SwappedEnvs
from imagine.agents.steer import SteerConfig, Steered, require_how, require_sees
from imagine.agents.zoo import Flaw, Flawed
from imagine.embodiment import Embodiment
from imagine.model.model import WorldActionModel, resolve
from imagine.model.text import split_words
from imagine.policy.adapter import merged
from imagine.policy.policy import JointPolicy, RandomPolicy
from imagine.policy.robots.g1_table.env import G1TableEnv, TableRobot
from imagine.policy.robots.g1_table.limits import limits_of
from imagine.policy.robots.g1_table.scene import COLOURS
from imagine.policy.robots.g1_table.starts import draw_start
from imagine.policy.robots.g1_table.tasks import FAMILIES, Task
from imagine.policy.robots.registry import DEFAULT as ROBOT
from imagine.policy.robots.registry import load_robot
from imagine.rewards.endpoint import EndpointConfig, EndpointVLM
from imagine.rewards.guards import GuardConfig, GuardedJudge
from imagine.rewards.latent import LatentJudge
from imagine.rewards.progress import Potential
from imagine.rewards.robometer import RobometerJudge
from imagine.rewards.shadow import ShadowJudge
from imagine.rewards.trajectory import TrajectoryJudge
from imagine.rewards.vlm import VLMJudge
from imagine.types import ImagineError, Policy, RewardModel
from imagine.world.dream import Dream, DreamConfig
from imagine.world.env import EnvConfig, WorldModelEnv, WorldModelVectorEnv
from imagine.world.starts import FewStarts, RobotStarts, Starts

DEFAULT = "g1-table-tiny"
JUDGE = "judge-tiny"
MOST_NOISE = 2.0  # share of the first frame's sharpness by which another may be sharper; noise is by far more
MOST_BLUR = 0.6  # share of the first frame's sharpness that may be lost
ADAPTERS = ("novice", "improved")
"""Shipped beside the model: cloned from demonstrations that nobody filtered, and what it became in the dream."""
HORIZON = 8  # chunks


def task_of(instruction: str) -> str:
    """Task family of an instruction, for breakdowns."""
    return Task.parse(instruction).family


def families_of(model: WorldActionModel) -> tuple[str, ...]:
    """The task families whose every word the model has heard: the tiers that this checkpoint covers."""
    known = set(model.text.cfg.words)
    return tuple(f for f in FAMILIES if set(split_words(Task(f, "red").instruction)) <= known)


def judge(name: str | Path, folder: str | Path, device: str = "cpu") -> RewardModel:
    """A judge of imagined clips by name.

    Args:
        name: ``latent`` for the success heads beside the model's weights, which look at what was dreamt;
            ``trajectory`` (once ``path``) for those that follow the hands; ``own`` for the better of both that is
            there; ``judge-tiny``; the folder or hub id of any image-text-to-text model, Robometer's layout included; or
            ``http://HOST/v1#MODEL``, a model behind an OpenAI-compatible server.
        folder: of the model that dreams.
        device: where a local judge runs.

    Raises:
        ImagineError: there is no such judge.
    """
    name = judge_name(name, folder)
    if name == "latent":
        return LatentJudge.load(resolve(folder))
    if name == "trajectory":
        return TrajectoryJudge.load(resolve(folder))
    if name.startswith(("http://", "https://")):
        url, _, model = name.partition("#")
        if not model:
            raise ImagineError(f"judge {name!r} names no model, expected http://HOST/v1#MODEL.")
        return VLMJudge(EndpointVLM(EndpointConfig(url=url, model=model)))
    if (Path(name) / "robometer.json").is_file():
        return RobometerJudge.load(name, device=device)
    return VLMJudge.load(name, domain="imagined", device=device)


def judge_name(name: str | Path, folder: str | Path) -> str:
    """The name that :func:`judge` knows; what ``own`` means depends on what lies beside the model's weights."""
    if str(name) == "own":
        return "trajectory" if TrajectoryJudge.is_in(resolve(folder)) else "latent"
    return "trajectory" if str(name) == "path" else str(name)


def dream(
    model: WorldActionModel,
    folder: str | Path,
    cfg: DreamConfig | None = None,
    *,
    judged_by: str | Path = JUDGE,
    guarded: bool = True,
    shaping: float | None = None,
    watched_by: str | Path | None = None,
    starts: Starts | None = None,
) -> Dream:
    """A dream of the table.

    Args:
        model: dreams.
        folder: its name or folder.
        cfg: how it dreams; by default as measured for this checkpoint.
        judged_by: see :func:`judge`.
        guarded: a judged success counts only if the dream follows the actions, is neither frozen nor blurred, and the
            commanded chunk keeps the robot's limits.
        shaping: discount of potential-based shaping by judged progress; None pays for success alone.
        watched_by: a second judge without a say, reported as the term ``second``.
        starts: where episodes begin; by default where the robot's do.
    """
    starts = starts or robot_starts(model)
    cfg = cfg or dream_config(folder)
    model = dreamer(model, folder, cfg)
    seer = judge(judged_by, folder, str(model.device))
    if guarded:
        seer = GuardedJudge(seer, guards(model.body, cfg))
    if watched_by is not None:
        seer = ShadowJudge(seer, judge(watched_by, folder, str(model.device)))
    return Dream(model, seer, starts, cfg, None if shaping is None else lambda lanes: Potential(lanes, shaping))


def dreamer(model: WorldActionModel, folder: str | Path, cfg: DreamConfig | None = None) -> WorldActionModel:
    """Who dreams: ``model`` itself, or a copy with the adapter that its dream's settings name (``imagine refine``)."""
    cfg = cfg or dream_config(folder)
    if cfg.adapter is None:
        return model
    return merged(model, resolve(folder) / cfg.adapter)


def robot_starts(model: WorldActionModel, blocks: int = 2) -> RobotStarts:
    """What the robot at the table sees at the beginning, of the tasks that the model covers; ``blocks`` lie there."""
    return RobotStarts(TableRobot(model.body), model.body, families=families_of(model), blocks=blocks)


def guards(body: Embodiment, cfg: DreamConfig) -> GuardConfig:
    """Guards of a dream of the table: its own limit of inverse error, and limits that a robot should keep."""
    error = cfg.hallucination_limit if cfg.inverse_steps else None
    return GuardConfig(inverse_error=error, blur=MOST_BLUR, noise=MOST_NOISE, limits=limits_of(body))


def dream_config(folder: str | Path) -> DreamConfig:
    """The dream settings measured for this checkpoint (``dream.json`` beside it), else the defaults."""
    path = resolve(folder) / "dream.json"
    return DreamConfig.model_validate_json(path.read_bytes()) if path.is_file() else DreamConfig()


def make_dream_vector_env(
    num_envs: int = 1,
    *,
    model: str | Path = DEFAULT,
    judge: str | Path = JUDGE,
    guarded: bool = True,
    shaping: float | None = None,
    device: str = "cpu",
    horizon: int = HORIZON,
    truncate_unbelievable: bool = True,
    **kwargs: Any,
) -> WorldModelVectorEnv:
    """``gymnasium.make_vec("imagine/G1Table-v0", num_envs=N)``; see :class:`imagine.world.env.WorldModelVectorEnv`.

    ``judge``, ``guarded`` and ``shaping`` are those of :func:`dream`.
    """
    if num_envs < 1:
        raise ImagineError(f"num_envs is {num_envs}, expected at least 1 lane.")
    mind = WorldActionModel.from_pretrained(model, device=device)
    world = dream(mind, model, judged_by=judge, guarded=guarded, shaping=shaping)
    cfg = EnvConfig(horizon=horizon, truncate_unbelievable=truncate_unbelievable, min_chunks=2)
    return WorldModelVectorEnv(world, num_envs, cfg=cfg, **kwargs)


def make_dream_env(
    *,
    model: str | Path = DEFAULT,
    judge: str | Path = JUDGE,
    guarded: bool = True,
    shaping: float | None = None,
    device: str = "cpu",
    horizon: int = HORIZON,
    truncate_unbelievable: bool = True,
    **kwargs: Any,
) -> WorldModelEnv:
    """``gymnasium.make("imagine/G1Table-v0")``: one lane of the same dream."""
    mind = WorldActionModel.from_pretrained(model, device=device)
    world = dream(mind, model, judged_by=judge, guarded=guarded, shaping=shaping)
    cfg = EnvConfig(horizon=horizon, truncate_unbelievable=truncate_unbelievable, min_chunks=2)
    return WorldModelEnv(world, cfg=cfg, **kwargs)


def lanes(
    world: str,
    model: WorldActionModel,
    folder: str | Path,
    n: int,
    *,
    judged_by: str | Path = JUDGE,
    until: InstructionSwap | None = None,
    horizon: int = HORIZON,
    blocks: int = 2,
    guarded: bool = True,
) -> ParallelEnvs:
    """Environments of the ``real`` twin or of the ``imagined`` one, with the same starts for the same seeds.

    An episode lasts ``horizon`` chunks at most, and ``blocks`` lie on the table. A dream is scored by ``judged_by``;
    ``guarded`` is as for :func:`dream`, and ends dreams that cannot be believed. Real episodes of a misled policy end
    when it has done what it was told instead, if ``until`` is given.

    Raises:
        ImagineError: another world is asked for, or zero environments.
    """
    if n < 1 or horizon < 1:
        raise ImagineError(f"asked for {n} lanes of {horizon} chunks, expected at least 1 of each.")
    if world == "real":
        make: Callable[[], G1TableEnv] = lambda: G1TableEnv(  # noqa: E731
            model.body, max_chunks=horizon, families=families_of(model), blocks=blocks
        )
        if until is not None:
            return SwappedEnvs(make, n, model.body, until)
        return SimEnvs(make, n, model.body, expert=load_robot(ROBOT).expert)
    if world != "imagined":
        raise ImagineError(f"--world is {world!r}, expected real or imagined.")
    world_ = dream(model, folder, judged_by=judged_by, guarded=guarded, starts=robot_starts(model, blocks))
    return DreamEnvs(world_, n, horizon=horizon, break_off=guarded)


def swap(what: str, model: WorldActionModel) -> InstructionSwap | None:
    """What a policy is told instead of an episode's own instruction: ``right`` is that itself, and so nothing.

    Raises:
        ImagineError: the robot knows no such other instruction.
    """
    return None if what == "right" else InstructionSwap(load_robot(ROBOT), what, {"families": families_of(model)})


def adapter_of(name: str, folder: str | Path) -> Path | None:
    """The adapter folder behind a policy's name; None for the base.

    Raises:
        ImagineError: there is no such adapter.
    """
    if name == "base":
        return None
    path = resolve(folder) / name if name in ADAPTERS else Path(name)
    if not (path / "adapter_config.json").is_file():
        raise ImagineError(f"no adapter {name!r}; expected base, {', '.join(ADAPTERS)}, or the folder of one.")
    return path


def absent(model: WorldActionModel) -> Callable[[str, int], str]:
    """Names, for an instruction and a start seed of the robot's, the same task for a block that is not on the table."""
    known: dict[str, Any] = {"families": families_of(model), "colours": tuple(COLOURS), "blocks": 2, "home": False}

    def other(instruction: str, seed: int) -> str:
        task, present = Task.parse(instruction), draw_start(np.random.default_rng(seed), None, **known).colours
        return Task(task.family, next(c for c in COLOURS if c not in present)).instruction

    return other


def policy(name: str, model: WorldActionModel, folder: str | Path, *, steps: int = 4) -> Policy:
    """A policy by name: base, novice, improved, random, or the folder of an adapter or a model.

    Also ``ws://HOST:PORT``, a server that speaks openpi's protocol; ``package.module:name``, a ``Policy`` of one's own
    or a function that makes one of the model; and any of them with flaws, ``base+noise=0.03+delay=6``
    (:class:`imagine.agents.zoo.Flaw`).

    Raises:
        ImagineError: there is no such policy.
    """
    name, _, flaws = name.partition("+")
    if flaws:
        return Flawed(policy(name, model, folder, steps=steps), Flaw.parse(flaws), model.body)
    if name.startswith(("ws://", "wss://")):
        from imagine.policy.client import RemotePolicy

        return RemotePolicy(name, chunk_actions=model.body.chunk_actions, action_dim=model.body.action_dim)
    if name == "base":
        return JointPolicy(model, steps=steps)
    if name == "random":
        return RandomPolicy(model.body.action_low, model.body.action_high, model.body.chunk_actions)
    path = resolve(folder) / name if name in ADAPTERS else Path(name)
    if (path / "adapter_config.json").is_file():
        return JointPolicy(merged(model, path), steps=steps)
    if (path / "config.json").is_file():
        other = WorldActionModel.from_pretrained(path, device=model.device)
        if other.body != model.body:
            raise ImagineError(f"policy {name} is for embodiment {other.body.name!r}, expected {model.body.name!r}.")
        return JointPolicy(other, steps=steps)
    if ":" in name:
        return _own_policy(name, model)
    known = ", ".join(("base", *ADAPTERS, "random"))
    raise ImagineError(f"no policy {name!r}; expected {known}, an adapter or model folder, module:name, or ws://….")


def _own_policy(name: str, model: WorldActionModel) -> Policy:
    """``package.module:name``: a Policy, or a function of the model that returns one."""
    module, _, attribute = name.partition(":")
    try:
        found = getattr(import_module(module), attribute)
    except (ImportError, AttributeError, ValueError) as error:
        raise ImagineError(f"policy {name!r} cannot be had ({error}), expected package.module:name.") from None
    if not isinstance(found, Policy) or isinstance(found, type):
        found = found(model)
    if not isinstance(found, Policy):
        raise ImagineError(f"{name!r} gives a {type(found).__name__}, expected a Policy with act and reset.")
    return found


_policy = policy  # below, the name is taken


def make_steered_vector_env(
    num_envs: int = 1,
    *,
    model: str | Path = DEFAULT,
    policy: str = "base",
    how: str = "noise",
    slow: int = 3,
    limit: float = 3**0.5,
    reach: float = 0.5,
    sees: str = "latents",
    scenes: Sequence[int] | None = None,
    doubted: bool = True,
    judge: str | Path = "latent",
    guarded: bool = True,
    shaping: float | None = None,
    device: str = "cpu",
    horizon: int = 4,
    **kwargs: Any,
) -> WorldModelVectorEnv:
    """``gymnasium.make_vec("imagine/G1TableLatent-v0", num_envs=N)``: latents to observe, a policy to steer.

    ``policy`` is one of :func:`policy` that denoises; ``how``, ``slow``, ``limit``, ``reach`` and ``sees`` are those of
    :class:`imagine.agents.steer.SteerConfig`, and all else is as for :func:`make_dream_vector_env`. ``scenes`` are
    start seeds, at one of which every episode begins; by default each begins elsewhere. Without ``doubted`` nobody asks
    whether the dream follows the actions, which is a third of the work.

    Raises:
        ImagineError: the policy has no noise to steer, or an option is out of range.
    """
    cfg = SteerConfig(how=require_how(how), slow=slow, limit=limit, reach=reach, sees=require_sees(sees))
    mind = WorldActionModel.from_pretrained(model, device=device)
    acts = _policy(policy, mind, model)
    if not isinstance(acts, JointPolicy):
        raise ImagineError(f"policy {policy!r} cannot be steered, expected base, {', '.join(ADAPTERS)}, or a folder.")
    how_to_dream = dream_config(model)
    if not doubted:
        how_to_dream = how_to_dream.model_copy(update={"inverse_steps": 0, "hallucination_limit": None})
    starts = None if scenes is None else FewStarts(robot_starts(mind), scenes)
    asleep = dream(mind, model, how_to_dream, judged_by=judge, guarded=guarded, shaping=shaping, starts=starts)
    world = Steered(asleep, acts, cfg)
    return WorldModelVectorEnv(world, num_envs, cfg=EnvConfig(horizon=horizon), **kwargs)
