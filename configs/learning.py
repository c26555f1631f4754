"""Learning with a stock library put together: the dream around a frozen policy, the library, and the proof."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import numpy as np

from imagine.agents.practice import episodes, improvement
from imagine.agents.rollout import rollout
from imagine.agents.steer import Agent, AgentPolicy, SteeredPolicy, Steering, UnsteeredPolicy
from imagine.configs.build import parallel_envs
from imagine.configs.commands.common import at_least
from imagine.configs.judges import judge_name, second_judge
from imagine.configs.loaded import Loaded
from imagine.configs.make_env import make_env
from imagine.configs.paid import warning
from imagine.configs.runfolder import RunFolder
from imagine.progress import Progress
from imagine.types import ImagineError, Policy

LIBRARIES = ("sb3-ppo", "sb3-sac-noise", "rllib-ppo")
RESIDUAL_LOG_STD = -1.5  # residuals begin small; noise begins as the policy's own


def learn(args: Any) -> dict[str, Any]:
    """Do what was asked for; ``args`` is :class:`imagine.configs.commands.finetune_steer.Args`.

    Raises:
        ImagineError: see :func:`imagine.configs.commands.finetune_steer.run`.
    """
    _check(args)
    loaded = args.load()
    if args.sim_episodes is None:
        args = replace(args, sim_episodes=64 if loaded.robot.has_env else 0)
    args = replace(args, judge=judge_name(args.judge, loaded.folder))
    if not args.adapter:
        args = replace(args, adapter="base")
    if args.sim_episodes and not loaded.robot.has_env:
        raise ImagineError(f"robot {loaded.robot.name!r} has no simulator to prove it on; leave --sim-episodes out.")
    folder, begin = RunFolder.of("finetune-steer", args), time.time()
    with Progress(args.library) as on_progress:
        learnt, agent = (_rllib if args.library == "rllib-ppo" else _sb3)(args, folder.path, on_progress)
    took = time.time() - begin
    test = environment(args, args.num_envs, "Disabled", None)
    second = second_judge(args.judge, loaded.folder)
    answer = {"with": args.library, **learnt, "judge": args.judge, **_tested(args, test, agent)}
    if second is not None:
        other = environment(replace(args, judge=second), args.num_envs, "Disabled", None)
        answer["second_judge"] = {"name": second, **_tested(args, other, agent)}
    answer["warning"] = warning(args.judge, ["the agent"], second)
    if args.sim_episodes:
        with Progress("simulator") as on_progress:
            answer["sim"] = _simulated(args, loaded, test.world.steering, agent(), on_progress)
    answer |= {"seed": args.seed, "seconds": round(took, 1)}
    folder.save_metrics(answer)
    return answer


def _tested(args: Any, env: Any, agent: Callable[[], Agent]) -> dict[str, Any]:
    """Imagined return and success, before and after."""
    tests = range(args.test_seed, args.test_seed + args.test_episodes)
    unsteered = episodes(env, UnsteeredPolicy(env.world.steering), tests)
    steered = episodes(env, AgentPolicy(agent()), tests)
    return {k: improvement(b, a) for k, b, a in zip(("return", "success"), unsteered, steered, strict=True)}


def _check(args: Any) -> None:
    if args.library not in LIBRARIES:
        raise ImagineError(f"--with is {args.library!r}, expected one of {', '.join(LIBRARIES)}.")
    at_least(args, scenes=0, seed=0, horizon=1, num_envs=1, steps=1, test_episodes=1, runners=1)
    if args.sim_episodes is not None:
        at_least(args, sim_episodes=0)
    if args.library == "sb3-sac-noise" and args.how != "noise":
        raise ImagineError(f"--with sb3-sac-noise steers noise, got --how {args.how}; drop it, or use sb3-ppo.")
    first, last = args.test_seed, args.test_seed + args.test_episodes - 1
    if args.seed <= last and first < args.seed + args.num_envs:
        raise ImagineError(
            f"--seed {args.seed} starts {args.num_envs} environments among the test's ({first} to {last}); move it."
        )


def environment(args: Any, num_envs: int, autoreset_mode: str, gamma: float | None) -> Any:
    """The dream with its policy, as options say.

    Where the agent learns, ``gamma`` is its discount, which shaping needs, and nobody asks whether the dream follows
    the actions: that is a third of the work. None is where it is tested, which leaves nothing out.
    """
    steer = {"policy": args.adapter, "how": args.how, "slow": args.slow, "sees": args.sees}
    return make_env(
        args.model, num_envs=num_envs, robot=args.robot or None, options=args.options(), judge=args.judge, steer=steer,
        scenes=scenes(args), shaping=gamma if args.shaping else None, inverse_check=gamma is None,
        horizon=args.horizon, autoreset_mode=autoreset_mode,
    )  # fmt: skip


def scenes(args: Any) -> range | None:
    """Start seeds of the scenes; None where every episode begins elsewhere."""
    return range(args.test_seed, args.test_seed + args.scenes) if args.scenes else None


Made = tuple[dict[str, Any], Callable[[], Agent]]
"""What learning came to, and a way to get the agent that was learnt, with its draws started anew."""


def _sb3(args: Any, folder: Path, on_progress: Callable[[int, int], None]) -> Made:
    from imagine.agents.sb3 import PPOConfig, SACConfig, learn_sb3, sb3_actor

    sac, noise = args.library == "sb3-sac-noise", args.how == "noise"
    cfg: Any = SACConfig(steps=args.steps)
    if not sac:
        cfg = PPOConfig(steps=args.steps, log_std=0.0 if noise else RESIDUAL_LOG_STD, fixed=noise)
    env = environment(args, args.num_envs, "SameStep", cfg.gamma)
    algorithm: Literal["ppo", "sac"] = "sac" if sac else "ppo"
    learnt = learn_sb3(env, algorithm, cfg, folder, args.seed, on_progress)
    return learnt, lambda: sb3_actor(folder / "model.zip", algorithm, _drawn(args))


def _rllib(args: Any, folder: Path, on_progress: Callable[[int, int], None]) -> Made:
    from imagine.agents.rllib import RLlibConfig, learn_rllib, rllib_actor

    noise = args.how == "noise"
    where: dict[str, Any] = {"runners": args.runners, "nodes": args.nodes, "lanes": args.num_envs}
    std: dict[str, Any] = {} if noise else {"initial_std": math.exp(RESIDUAL_LOG_STD)}
    cfg = RLlibConfig(steps=args.steps, fixed=noise, **where, **std)
    learnt = learn_rllib(lambda n: environment(args, n, "NextStep", cfg.gamma), cfg, folder, args.seed, on_progress)
    return learnt, lambda: rllib_actor(folder / "checkpoint", _drawn(args))


def _drawn(args: Any) -> int | None:
    """The seed of the agent's draws where it steers noise, which has to stay noise: a policy that always starts from
    the same one repeats its mistakes. Elsewhere it does the middle of what it would draw.
    """
    return args.test_seed if args.how == "noise" else None


def _simulated(
    args: Any, loaded: Loaded, steering: Steering, agent: Agent, on_progress: Callable[[int, int], None]
) -> dict[str, Any]:
    """Before and after on the simulator, from the scenes with other draws, or from held-out starts."""
    assert args.sim_episodes is not None
    envs = parallel_envs(loaded, "sim", min(16, args.sim_episodes), horizon=args.horizon)
    each = np.arange(args.sim_episodes)
    few = scenes(args) or range(args.test_seed, args.test_seed + args.sim_episodes)
    starts, draws = [few[i % len(few)] for i in each], (each // len(few)).tolist()
    still = np.zeros((1, *steering.action_space.shape), np.float32)
    before: Policy = steering.policy or SteeredPolicy(steering, lambda seen: still.repeat(len(seen), 0))
    both = [
        np.array([r.success for r in rollout(envs, policy, starts, policy_seed=draws, on_progress=on_progress)])
        for policy in (before, SteeredPolicy(steering, agent))
    ]
    return improvement(*both)
