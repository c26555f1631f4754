"""``imagine learn``: train an agent of a stock reinforcement learning library on the dream, around a frozen policy."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import tyro

from imagine.configs.commands.worlds import OfRobot
from imagine.configs.runfolder import RunFolder
from imagine.progress import Progress
from imagine.types import ImagineError

if TYPE_CHECKING:
    from imagine.agents.steer import Agent, Steering
    from imagine.configs.build import Loaded
    from imagine.types import Policy

LIBRARIES = ("sb3-ppo", "sb3-sac-noise", "rllib-ppo")
RESIDUAL_LOG_STD = -1.5  # residuals begin small; noise begins as the policy's own


@dataclass(frozen=True, kw_only=True)
class Args(OfRobot):
    """Train a stock library's agent to steer a policy in the dream, then prove it on the simulator.

    By default it practises what is in front of the robot: a few scenes, dreamt of again and again with other noise and
    other draws of the policy. No real episode is spent on learning.

    Attributes:
        library: sb3-ppo, sb3-sac-noise (Stable-Baselines3) or rllib-ppo (Ray).
        adapter: the policy to start from: base, an adapter in the model folder, or the folder of an adapter or model;
            it stays as is. By default novice where there is one, else base.
        how: what the agent sets: noise (that the policy starts from), residual (added to its chunk) or chunk.
        slow: cosines over a chunk that it sets per action dimension.
        sees: what the agent observes: latents, or nothing (one answer for all).
        judge: who says which dreams succeed; as for imagine evaluate.
        shaping: while it learns, pay for judged progress too, as a potential, which changes returns but not which
            policy is best; tests pay for success alone.
        scenes: starts that it practises on and is tested on, with other noise; 0: every episode begins elsewhere, and
            tests are held-out starts.
        horizon: chunks per episode.
        num_envs: imagined episodes side by side.
        steps: environment steps of all environments together.
        test_episodes: imagined ones, before and after.
        test_seed: first start seed of them, and the first scene.
        sim_episodes: on the robot's simulator, before and after; 0 is none, which is the default where there is no
            simulator, and else 64.
        seed: of the agent, and of its dreams.
        runners: processes that imagine; rllib alone.
        nodes: machines; rllib alone.
    """

    library: Annotated[str, tyro.conf.arg(name="with")] = "sb3-ppo"
    adapter: str = ""
    how: str = "noise"
    slow: int = 1
    sees: str = "latents"
    judge: str = "latent"
    shaping: bool = False
    scenes: int = 4
    horizon: int = 4
    num_envs: int = 16
    steps: int = 4096
    test_episodes: int = 64
    test_seed: int = 900_000
    sim_episodes: int | None = None
    seed: int = 800_000
    runners: int = 1
    nodes: int = 1


def run(args: Args) -> dict[str, Any]:
    """Learn; the agent is written to the run folder, with ``metrics.json`` and TensorBoard's files.

    Raises:
        ImagineError: an option is out of range, or the policy or model cannot be had.
    """
    from imagine.agents.practice import episodes, improvement
    from imagine.agents.steer import AgentPolicy, UnsteeredPolicy
    from imagine.configs.policies import adapters_in

    _check(args)
    loaded = args.load()
    if args.sim_episodes is None:
        args = replace(args, sim_episodes=64 if loaded.robot.has_env else 0)
    if not args.adapter:
        args = replace(args, adapter="novice" if "novice" in adapters_in(loaded.folder) else "base")
    if args.sim_episodes and not loaded.robot.has_env:
        raise ImagineError(f"robot {loaded.robot.name!r} has no simulator to prove it on; leave --sim-episodes out.")
    folder, begin = RunFolder.of("learn", args), time.time()
    with Progress(args.library) as tell:
        learnt, agent = (_rllib if args.library == "rllib-ppo" else _sb3)(args, folder.path, tell)
    took = time.time() - begin
    test = environment(args, args.num_envs, "Disabled", None)
    tests = range(args.test_seed, args.test_seed + args.test_episodes)
    unsteered = episodes(test, UnsteeredPolicy(test.world.steering), tests)
    steered = episodes(test, AgentPolicy(agent()), tests)
    answer = {"with": args.library, **learnt}
    answer |= {k: improvement(b, a) for k, b, a in zip(("return", "success"), unsteered, steered, strict=True)}
    if args.sim_episodes:
        with Progress("simulator") as tell:
            answer["sim"] = _simulated(args, loaded, test.world.steering, agent(), tell)
    answer |= {"seed": args.seed, "seconds": round(took, 1)}
    folder.save_metrics(answer)
    return answer


def _check(args: Args) -> None:
    if args.library not in LIBRARIES:
        raise ImagineError(f"--with is {args.library!r}, expected one of {', '.join(LIBRARIES)}.")
    for least, names in enumerate(("scenes sim_episodes seed", "horizon num_envs steps test_episodes runners")):
        for name in names.split():
            if (getattr(args, name) or 0) < least:
                option = name.replace("_", "-")
                raise ImagineError(f"--{option} is {getattr(args, name)}, expected at least {least}.")
    if args.library == "sb3-sac-noise" and args.how != "noise":
        raise ImagineError(f"--with sb3-sac-noise steers noise, got --how {args.how}; drop it, or use sb3-ppo.")
    first, last = args.test_seed, args.test_seed + args.test_episodes - 1
    if args.seed <= last and first < args.seed + args.num_envs:
        raise ImagineError(
            f"--seed {args.seed} starts {args.num_envs} lanes among the test's ({first} to {last}); move it."
        )


def environment(args: Args, lanes: int, autoreset_mode: str, gamma: float | None) -> Any:
    """The dream with its policy, as options say.

    Where the agent learns, ``gamma`` is its discount, which shaping needs, and nobody asks whether the dream follows
    the actions: that is a third of the work. None is where it is tested, which leaves nothing out.
    """
    from imagine.configs.make_env import make_env

    steer = {"policy": args.adapter, "how": args.how, "slow": args.slow, "sees": args.sees}
    return make_env(
        args.model, num_envs=lanes, robot=args.robot or None, options=args.options(), judge=args.judge, steer=steer,
        scenes=scenes(args), shaping=gamma if args.shaping else None, inverse_check=gamma is None,
        horizon=args.horizon, autoreset_mode=autoreset_mode,
    )  # fmt: skip


def scenes(args: Args) -> range | None:
    """Start seeds of the scenes; None where every episode begins elsewhere."""
    return range(args.test_seed, args.test_seed + args.scenes) if args.scenes else None


Made = tuple[dict[str, Any], Callable[[], "Agent"]]
"""What learning told, and a way to get the agent that was learnt, with its draws begun anew."""


def _sb3(args: Args, folder: Path, tell: Callable[[int, int], None]) -> Made:
    from imagine.agents.sb3 import PPOConfig, SACConfig, learn_sb3, sb3_actor

    sac, noise = args.library == "sb3-sac-noise", args.how == "noise"
    cfg: Any = SACConfig(steps=args.steps)
    if not sac:
        cfg = PPOConfig(steps=args.steps, log_std=0.0 if noise else RESIDUAL_LOG_STD, fixed=noise)
    env = environment(args, args.num_envs, "SameStep", cfg.gamma)
    algorithm: Literal["ppo", "sac"] = "sac" if sac else "ppo"
    learnt = learn_sb3(env, algorithm, cfg, folder, args.seed, tell)
    return learnt, lambda: sb3_actor(folder / "model.zip", algorithm, _drawn(args))


def _rllib(args: Args, folder: Path, tell: Callable[[int, int], None]) -> Made:
    from imagine.agents.rllib import RLlibConfig, learn_rllib, rllib_actor

    noise = args.how == "noise"
    where: dict[str, Any] = {"runners": args.runners, "nodes": args.nodes, "lanes": args.num_envs}
    std: dict[str, Any] = {} if noise else {"initial_std": math.exp(RESIDUAL_LOG_STD)}
    cfg = RLlibConfig(steps=args.steps, fixed=noise, **where, **std)
    learnt = learn_rllib(lambda lanes: environment(args, lanes, "NextStep", cfg.gamma), cfg, folder, args.seed, tell)
    return learnt, lambda: rllib_actor(folder / "checkpoint", _drawn(args))


def _drawn(args: Args) -> int | None:
    """The seed of the agent's draws where it steers noise, which has to stay noise: a policy that always starts from
    the same one repeats its mistakes. Elsewhere it does the middle of what it would draw.
    """
    return args.test_seed if args.how == "noise" else None


def _simulated(
    args: Args, loaded: Loaded, steering: Steering, agent: Agent, tell: Callable[[int, int], None]
) -> dict[str, Any]:
    """Before and after on the simulator, from the scenes with other draws, or from held-out starts."""
    import numpy as np

    from imagine.agents.practice import improvement
    from imagine.agents.rollout import rollout
    from imagine.agents.steer import SteeredPolicy
    from imagine.configs.build import parallel_envs

    assert args.sim_episodes is not None
    envs = parallel_envs(loaded, "sim", min(16, args.sim_episodes), horizon=args.horizon)
    each = np.arange(args.sim_episodes)
    few = scenes(args) or range(args.test_seed, args.test_seed + args.sim_episodes)
    starts, draws = [few[i % len(few)] for i in each], (each // len(few)).tolist()
    still = np.zeros((1, *steering.action_space.shape), np.float32)
    before: Policy = steering.policy or SteeredPolicy(steering, lambda seen: still.repeat(len(seen), 0))
    both = [
        np.array([r.success for r in rollout(envs, policy, starts, policy_seed=draws, on_progress=tell)])
        for policy in (before, SteeredPolicy(steering, agent))
    ]
    return improvement(*both)
