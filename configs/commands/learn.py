"""``imagine learn``: train an agent of a stock reinforcement learning library on the dream, around a frozen policy."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import tyro

from imagine.types import ImagineError

from ..runfolder import RunFolder
from .common import Common
from .worlds import bar

LIBRARIES = ("sb3-ppo", "sb3-sac-noise", "rllib-ppo")
UNIFORM = 3**0.5  # uniform numbers within this have variance 1: what the policy draws, and how SAC warms up


@dataclass(frozen=True, kw_only=True)
class Args(Common):
    """Train a stock library's agent to steer a policy in the dream.

    Attributes:
        library: sb3-ppo, sb3-sac-noise (Stable-Baselines3) or rllib-ppo (Ray).
        model: a shipped model's name, a folder, or a hub id.
        adapter: the policy to start from: base, novice, improved, or the folder of an adapter or model; it stays as is.
        how: what the agent sets: noise (that the policy starts from), residual (added to its chunk) or chunk.
        slow: cosines over a chunk that it sets per action dimension.
        judge: who says which dreams succeed; as for imagine evaluate.
        shaping: pay for judged progress too, as a potential, which changes returns but not which policy is best.
        horizon: chunks per episode.
        lanes: imagined episodes side by side.
        steps: environment steps of all lanes together.
        test_episodes: held-out episodes before and after.
        test_seed: first start seed of them.
        seed: of the agent, and first start seed.
        runners: processes that imagine; rllib alone.
        nodes: machines; rllib alone.
    """

    library: Annotated[str, tyro.conf.arg(name="with")] = "sb3-ppo"
    model: str = "g1-table-tiny"
    adapter: str = "base"
    how: str = "noise"
    slow: int = 3
    judge: str = "latent"
    shaping: bool = False
    horizon: int = 4
    lanes: int = 16
    steps: int = 4096
    test_episodes: int = 64
    test_seed: int = 900_000
    seed: int = 800_000
    runners: int = 1
    nodes: int = 1


def run(args: Args) -> dict[str, Any]:
    """Learn; the agent is written to the run folder, with ``metrics.json`` and TensorBoard's files.

    Raises:
        ImagineError: an option is out of range, or the policy or model cannot be had.
    """
    if args.library not in LIBRARIES:
        raise ImagineError(f"--with is {args.library!r}, expected one of {', '.join(LIBRARIES)}.")
    for name, least in (("horizon", 1), ("lanes", 1), ("steps", 1), ("test_episodes", 1), ("seed", 0), ("runners", 1)):
        if getattr(args, name) < least:
            option = name.replace("_", "-")
            raise ImagineError(f"--{option} is {getattr(args, name)}, expected at least {least}.")
    if args.library == "sb3-sac-noise" and args.how != "noise":
        raise ImagineError(f"--with sb3-sac-noise steers noise, got --how {args.how}; drop it, or use sb3-ppo.")
    folder, begin = RunFolder.of("learn", args), time.time()
    with bar(args.library) as tell:
        learnt = (_rllib if args.library == "rllib-ppo" else _sb3)(args, folder.path, tell)
    answer = {"with": args.library, **learnt, "seed": args.seed, "seconds": round(time.time() - begin, 1)}
    folder.save_metrics(answer)
    return answer


def environment(args: Args, lanes: int, autoreset_mode: str, gamma: float) -> Any:
    """The dream with its policy, as options say; ``gamma`` is the agent's, which shaping needs."""
    from .. import build

    how: dict[str, Any] = {"how": args.how, "slow": args.slow}
    if args.library == "sb3-sac-noise":
        how["limit"] = UNIFORM
    return build.make_steered_vector_env(
        lanes, model=args.model, policy=args.adapter, judge=args.judge, shaping=gamma if args.shaping else None,
        horizon=args.horizon, autoreset_mode=autoreset_mode, **how,
    )  # fmt: skip


def _sb3(args: Args, folder: Path, tell: Callable[[int, int], None]) -> dict[str, Any]:
    from agents.sb3 import PPOConfig, SACConfig, learn_sb3

    given: dict[str, Any] = {k: getattr(args, k) for k in ("steps", "test_episodes", "test_seed")}
    sac = args.library == "sb3-sac-noise"
    cfg = SACConfig(**given) if sac else PPOConfig(**given, log_std=0.0 if args.how == "noise" else -1.5)
    env = environment(args, args.lanes, "SameStep", cfg.gamma)
    return learn_sb3(env, "sac" if sac else "ppo", cfg, folder, args.seed, tell)


def _rllib(args: Args, folder: Path, tell: Callable[[int, int], None]) -> dict[str, Any]:
    from agents.rllib import RLlibConfig, learn_rllib

    cfg = RLlibConfig(runners=args.runners, nodes=args.nodes, lanes=args.lanes, steps=args.steps)
    return learn_rllib(lambda lanes: environment(args, lanes, "NextStep", cfg.gamma), cfg, folder, args.seed, tell)
