"""``imagine.make_env``: every environment of ours, by one function; what the registered ids of Gymnasium lead to."""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import gymnasium as gym
from gymnasium.vector import AutoresetMode

from imagine.agents.steer import SteerConfig, Steered, require_how, require_sees
from imagine.configs import build
from imagine.configs.build import StartsLike
from imagine.configs.defaults import HORIZON, MODEL
from imagine.configs.foreign import load_foreign
from imagine.configs.judges import Judge, load_judge
from imagine.configs.loaded import Loaded, checked_options
from imagine.configs.policies import load_policy
from imagine.embodiment import Embodiment
from imagine.policy.policy import JointPolicy
from imagine.policy.robots.plugin import RobotPlugin
from imagine.policy.robots.registry import DEFAULT as ROBOT
from imagine.policy.robots.registry import load_robot
from imagine.types import ImagineError
from imagine.world.env import EnvConfig, World, WorldModelEnv, WorldModelVectorEnv
from imagine.world.foreign import ForeignModel, ForeignWorld
from imagine.world.observed import Observed
from imagine.world.robot_env import RobotEnv
from imagine.world.spaces import ObservationType
from imagine.world.starts import FewStarts

LATENT_HORIZON = 4  # chunks
STEER = ("policy", "how", "slow", "limit", "reach", "sees")


def make_env(
    model: str | Path = MODEL,
    *,
    num_envs: int | None = None,
    judge: Judge | None = None,
    starts: StartsLike = None,
    scenes: Sequence[int] | None = None,
    robot: str | Path | RobotPlugin | None = None,
    options: Mapping[str, Any] | None = None,
    steer: Mapping[str, Any] | None = None,
    guarded: bool = True,
    inverse_check: bool = True,
    shaping: float | None = None,
    device: str = "cpu",
    horizon: int | None = None,
    truncate_unbelievable: bool = True,
    autoreset_mode: AutoresetMode | str = AutoresetMode.NEXT_STEP,
    render_mode: str | None = None,
    max_episode_steps: int | None = None,
    obs_type: str | None = None,
    view_size: int | tuple[int, int] | None = None,
    foreign: str | ForeignModel | None = None,
) -> WorldModelEnv | WorldModelVectorEnv:
    """An environment that is dreamt by a model: an action is a chunk, a reward is what a judge thinks of it.

    Args:
        model: a shipped model's name, a folder, or a hub id.
        num_envs: a vector environment of so many; None: a scalar one.
        judge: who rewards: a name, folder, hub id, ``http://HOST/v1#MODEL``, ``module:name``, or any callable, as a
            function of (frames (B, T, H, W, 3) uint8, instructions) to (B,) probabilities of success; see
            :func:`imagine.rewards.function.as_judge`. None: :func:`imagine.configs.judges.default_judge`.
        starts: where episodes begin: ``sim``, ``saved``, the folder of a LeRobot dataset, or a function of
            (seed, options) to an observation; see :func:`imagine.configs.build.starts_of`. None: ``sim`` if the robot
            has a simulator, else saved.
        scenes: start seeds, at one of which every episode begins; None: each begins elsewhere.
        robot: a plug-in's name, ``module:object`` or a YAML file; None: the one that the model folder remembers.
        options: what the robot's simulated starts are varied by.
        steer: not None: the observation is one vector, latents, and the action steers a policy that denoises. Its keys
            are ``policy``, a name, and those of :class:`imagine.agents.steer.SteerConfig`; {} are their defaults.
        guarded: a judged success counts only if the dream follows the actions, and nothing is frozen, blurred or out of
            the robot's limits.
        inverse_check: ask whether the dream follows the actions (``info["hallucination"]``): a third of the work.
        shaping: discount of potential-based shaping by judged progress; None pays for success alone.
        device: where model and judge run.
        horizon: chunks per episode; by default 8, and 4 with ``steer``.
        truncate_unbelievable: end an episode that can no longer be believed.
        autoreset_mode: of a vector environment, see :class:`imagine.world.env.WorldModelVectorEnv`.
        render_mode: None or ``rgb_array``; ``gymnasium.make`` makes ``human`` and ``rgb_array_list`` of it.
        max_episode_steps: chunks, overrides ``horizon``; ``gymnasium.make_vec`` passes it.
        obs_type: ``dict``, ``pixels`` or ``proprio``, see :class:`imagine.world.spaces.ObservationType`; None: all of
            it by name, and with ``steer`` one vector.
        view_size: pixels, or (height, width), of every picture that is observed; None: as the robot has them.
        foreign: somebody else's world model, or ``module:name`` of one or of what makes it, which dreams instead;
            ``model`` gives the robot and the starts. Its judge looks at frames alone, unguarded.

    Raises:
        ImagineError: something cannot be had, or an option is out of range.
    """
    if num_envs is not None and num_envs < 1:
        raise ImagineError(f"num_envs is {num_envs}, expected at least 1 environment.")
    loaded = build.load(model, robot, options, device)
    cfg = build.dream_config(loaded.folder)
    if not inverse_check:
        cfg = cfg.model_copy(update={"inverse_steps": 0, "hallucination_limit": None})
    begin = build.starts_of(loaded, starts)
    if scenes is not None:
        begin = FewStarts(begin, scenes)
    how: dict[str, Any] = {"judge": judge, "guarded": guarded, "shaping": shaping, "starts": begin}
    if foreign is not None:
        if steer is not None or shaping is not None:
            raise ImagineError("a foreign model can be neither steered nor shaped; leave out steer and shaping.")
        scorer = load_judge(judge, loaded.folder, device)
        world: World = ForeignWorld(load_foreign(foreign), loaded.model.body, begin, scorer)
    else:
        world = build.dream(loaded, cfg, **how)
    seen = world
    if steer is not None:
        world = _steered(world, loaded, steer)
    if obs_type is not None or view_size is not None:
        world = Observed(world, seen, ObservationType(loaded.model.body, obs_type or "dict", view_size))
    default = HORIZON if steer is None else LATENT_HORIZON
    horizon = default if horizon is None else horizon
    env = EnvConfig(horizon=horizon, truncate_unbelievable=truncate_unbelievable, min_chunks=2)
    common: dict[str, Any] = {"cfg": env, "render_mode": render_mode, "max_episode_steps": max_episode_steps}
    if num_envs is None:
        return WorldModelEnv(world, **common)
    return WorldModelVectorEnv(world, num_envs, autoreset_mode=autoreset_mode, **common)


def _steered(dream: Any, loaded: Loaded, steer: Mapping[str, Any]) -> Steered:
    if unknown := sorted(set(steer) - set(STEER)):
        raise ImagineError(f"steer has no key {unknown[0]!r}, expected some of {', '.join(STEER)}.")
    given = {"how": "noise", "sees": "latents", **steer}
    name = given.pop("policy", "base")
    cfg = SteerConfig(**{**given, "how": require_how(given["how"]), "sees": require_sees(given["sees"])})
    policy = load_policy(name, loaded.model, loaded.folder)
    if not isinstance(policy, JointPolicy):
        raise ImagineError(f"policy {name!r} cannot be steered, expected base, or an adapter's or a model's folder.")
    return Steered(dream, policy, cfg)


def make_latent_env(
    num_envs: int | None = None, **options: Any
) -> WorldModelEnv | WorldModelVectorEnv:  # what gymnasium.make passes on
    """:func:`make_env` of latents, with the keys of ``steer`` beside all others."""
    steer = {key: options.pop(key) for key in STEER if key in options}
    return make_env(num_envs=num_envs, steer=steer, **options)


def make_vector_env(num_envs: int = 1, **options: Any) -> WorldModelEnv | WorldModelVectorEnv:
    """What ``gymnasium.make_vec`` leads to: :func:`make_env` with at least one environment."""
    return make_env(num_envs=num_envs, **options)


def make_latent_vector_env(num_envs: int = 1, **options: Any) -> WorldModelEnv | WorldModelVectorEnv:
    """As :func:`make_vector_env`, for :func:`make_latent_env`."""
    return make_latent_env(num_envs, **options)


def make_sim_env(
    robot: str | Path | RobotPlugin = ROBOT,
    *,
    embodiment: str | Path | Embodiment | None = None,
    horizon: int = HORIZON,
    render_mode: str | None = None,
    obs_type: str = "dict",
    view_size: int | tuple[int, int] | None = None,
    **options: Any,
) -> gym.Env[Any, Any]:
    """A robot's simulator, with the spaces of its dream; it knows the truth.

    Args:
        robot: a plug-in's name, ``module:object`` or a YAML file.
        embodiment: which views, state and action slices are used; None: the robot's own.
        horizon: chunks until ``truncated``.
        render_mode: as of :func:`make_env`.
        obs_type: ``dict``, ``pixels`` or ``proprio``.
        view_size: as of :func:`make_env`.
        options: of the robot.

    Raises:
        ImagineError: the robot has no simulator or embodiment, or an option is unknown or out of range.
    """
    plugin = load_robot(robot)
    body = embodiment if isinstance(embodiment, Embodiment) else None
    body = body or (Embodiment.load(embodiment) if isinstance(embodiment, str | Path) else plugin.embodiment())
    if body is None:
        raise ImagineError(f"robot {plugin.name!r} has no embodiment of its own; give embodiment= a file.")
    env = plugin.make_env(body, horizon=horizon, **checked_options(plugin, options))
    if render_mode not in (None, *env.metadata.get("render_modes", ())):
        raise ImagineError(f"render_mode {render_mode!r} is unknown to robot {plugin.name!r}; leave it out.")
    env.unwrapped.render_mode = render_mode
    return RobotEnv(env, ObservationType(body, obs_type, view_size), horizon)


def make_real_env(**options: Any) -> gym.Env[Any, Any]:
    """:func:`make_sim_env` under a former name; warns."""
    warnings.warn(
        "what is called real/ here is a simulator, and called sim/ now; the old name goes with the next version.",
        FutureWarning,
        stacklevel=2,
    )
    return make_sim_env(**options)


_entries: list[Any] = [make_env, make_latent_env, make_sim_env, make_real_env]
for _entry in _entries:  # where gymnasium.make looks before it calls
    _entry.metadata = {"render_modes": ["rgb_array"]}
