"""Do the clients that others use take our environments as they are? One cell per client and way, each a process.

    make interop                       # every cell, in an environment of its own
    make interop ARGS="sb3 torchrl"    # the cells whose names hold one of these words

A cell passes, or is a limit of the client that is known here with the error it gives, or fails. The exit status is the
number of cells that fail. Everything runs on the shipped dream with a judge that never pays, so that a cell takes
seconds; what is tried is the interface, not whether anything is learnt.
"""

from __future__ import annotations

import argparse
import functools
import os
import subprocess
import sys
import tempfile
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np

DREAM, LATENT, TWIN = (
    f"imagine:{name}" for name in ("imagine/G1Table-v0", "imagine/G1TableLatent-v0", "sim/G1Table-v0")
)
CHEAP: dict[str, Any] = {
    "judge": "interop:never", "guarded": False, "inverse_check": False, "starts": "saved", "horizon": 3,
}  # fmt: skip
PIXELS = {**CHEAP, "obs_type": "pixels"}
WORDS = {**CHEAP, "view_size": 36}  # all by name, pictures large enough for NatureCNN
SMALL = {**CHEAP, "slow": 1, "how": "chunk"}  # flat actions, no policy to ask

CELLS: dict[str, Callable[[], None]] = {}
LIMITS = {
    "stable-worldmodel World, all by name": (
        "AssertionError", "lifts observations into info and asserts that no name is in both; instruction is: obs_type="
    ),
    "torchrl vector, NextStep": ("must be one of SAME_STEP or DISABLED", "refuses it for all"),
    "torchrl vector, SameStep": ("generator raised StopIteration", "cannot stack a nested final_info; take Disabled"),
    "torchrl scalar, twin by id": ("frameskip", "asks for frameskip; take GymWrapper(make(id))"),
}  # fmt: skip
"""Cells that end in an error of the client's own: a part of it, and what to do or why."""


def never(frames: Any, instructions: Any) -> Any:
    """A judge whom nothing pleases."""
    import torch

    return torch.zeros(len(frames))


def cell(name: str, *ways: Any) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Add a function to the matrix under a name, once for each way."""

    def add(function: Callable[..., None]) -> Callable[..., None]:
        for way in ways or (None,):
            CELLS[name.format(way)] = function if way is None else functools.partial(function, way)
        return function

    return add


# ---------------------------------------------------------------- Gymnasium


@cell("gymnasium AsyncVectorEnv, {}", "spawn", "fork")
def async_vector(context: str) -> None:
    make = functools.partial(gym.make, LATENT, **SMALL)
    env = gym.vector.AsyncVectorEnv([make] * 2, context=context)
    env.reset(seed=1)
    env.step(env.action_space.sample())
    env.close()


@cell("gymnasium wrappers")
def wrappers() -> None:
    import torch
    from gymnasium.wrappers import FlattenObservation, NumpyToTorch, RecordEpisodeStatistics, RescaleAction

    env: Any = NumpyToTorch(RescaleAction(RecordEpisodeStatistics(gym.make(DREAM, **CHEAP)), -1, 1))
    env.reset(seed=1)
    env.step(torch.zeros(env.action_space.shape))
    flat = FlattenObservation(gym.make(DREAM, **CHEAP))
    assert flat.observation_space.contains(flat.reset(seed=1)[0])


# ---------------------------------------------------------------- torchrl


@cell("torchrl scalar, {}", "dream", "pixels", "latents", "twin", "twin by id")
def torchrl_scalar(way: str) -> None:
    from torchrl.envs import GymEnv, GymWrapper, check_env_specs

    ways = {"dream": (DREAM, CHEAP), "pixels": (DREAM, PIXELS), "latents": (LATENT, SMALL)}
    name, options = ways.get(way, (TWIN, {}))
    env = GymWrapper(gym.make(name)) if way == "twin" else GymEnv(name, **options)
    check_env_specs(env)
    assert env.rollout(4, break_when_any_done=False).shape == (4,)


@cell("torchrl vector, {}", "Disabled", "SameStep", "NextStep")
def torchrl_vector(mode: str) -> None:
    from torchrl.envs import GymWrapper

    env = GymWrapper(gym.make_vec(LATENT, num_envs=2, autoreset_mode=mode, **SMALL))
    rolled = env.rollout(5, break_when_any_done=False)
    assert rolled.shape == (2, 5) and rolled["next", "truncated"].any()


# ---------------------------------------------------------------- tianshou


@cell("tianshou PPO, {}", "dummy", "subproc")
def tianshou(kind: str) -> None:
    from tianshou.algorithm import PPO
    from tianshou.algorithm.modelfree.reinforce import ProbabilisticActorPolicy
    from tianshou.algorithm.optim import AdamOptimizerFactory
    from tianshou.data import Collector, VectorReplayBuffer
    from tianshou.env import DummyVectorEnv, SubprocVectorEnv
    from tianshou.trainer import OnPolicyTrainerParams
    from tianshou.utils.net.common import Net
    from tianshou.utils.net.continuous import ContinuousActorProbabilistic, ContinuousCritic
    from torch.distributions import Independent, Normal

    make = functools.partial(gym.make, LATENT, **SMALL)
    envs = (DummyVectorEnv if kind == "dummy" else SubprocVectorEnv)([make] * 2)
    one = make()
    seen, acted = one.observation_space.shape, one.action_space.shape
    body, other = (Net(state_shape=seen, hidden_sizes=[16]) for _ in range(2))
    actor = ContinuousActorProbabilistic(preprocess_net=body, action_shape=acted)
    policy = ProbabilisticActorPolicy(
        actor=actor, dist_fn=lambda both: Independent(Normal(*both), 1), action_space=one.action_space
    )
    agent: Any = PPO(policy=policy, critic=ContinuousCritic(preprocess_net=other), optim=AdamOptimizerFactory(lr=1e-3))
    collector = Collector(agent, envs, VectorReplayBuffer(32, 2))
    agent.run_training(
        OnPolicyTrainerParams(
            training_collector=collector, max_epochs=1, epoch_num_steps=8, collection_step_num_env_steps=8,
            update_step_num_repetitions=1, batch_size=4,
        )
    )  # fmt: skip


# ---------------------------------------------------------------- Stable-Baselines3


@cell("sb3 check_env, {}", "dream", "pixels", "proprio", "latents", "twin")
def sb3_check(way: str) -> None:
    from stable_baselines3.common.env_checker import check_env

    ways = {"dream": (DREAM, WORDS), "pixels": (DREAM, PIXELS), "proprio": (DREAM, {**CHEAP, "obs_type": "proprio"})}
    name, options = (ways | {"latents": (LATENT, SMALL), "twin": (TWIN, {})})[way]
    check_env(gym.make(name, **options))


SB3 = {
    "PPO latents": ("stable_baselines3", "PPO", "MlpPolicy", LATENT, SMALL),
    "SAC latents": ("stable_baselines3", "SAC", "MlpPolicy", LATENT, SMALL),
    "PPO CnnPolicy pixels": ("stable_baselines3", "PPO", "CnnPolicy", DREAM, PIXELS),
    "SAC CnnPolicy pixels": ("stable_baselines3", "SAC", "CnnPolicy", LATENT, {**SMALL, "obs_type": "pixels"}),
    "PPO MultiInputPolicy": ("stable_baselines3", "PPO", "MultiInputPolicy", DREAM, WORDS),
    "PPO proprio": ("stable_baselines3", "PPO", "MlpPolicy", DREAM, {**CHEAP, "obs_type": "proprio"}),
    "PPO CnnPolicy pixels, twin": ("stable_baselines3", "PPO", "CnnPolicy", TWIN, {"obs_type": "pixels"}),
    "contrib TRPO latents": ("sb3_contrib", "TRPO", "MlpPolicy", LATENT, SMALL),
    "contrib TQC latents": ("sb3_contrib", "TQC", "MlpPolicy", LATENT, SMALL),
    "contrib CrossQ latents": ("sb3_contrib", "CrossQ", "MlpPolicy", LATENT, SMALL),
    "contrib RecurrentPPO latents": ("sb3_contrib", "RecurrentPPO", "MlpLstmPolicy", LATENT, SMALL),
    "contrib TRPO CnnPolicy pixels": ("sb3_contrib", "TRPO", "CnnPolicy", DREAM, PIXELS),
    "contrib RecurrentPPO pixels": ("sb3_contrib", "RecurrentPPO", "CnnLstmPolicy", DREAM, PIXELS),
}


@cell("sb3 {}", *SB3)
def sb3(way: str) -> None:
    from importlib import import_module

    from stable_baselines3.common.env_util import make_vec_env

    module, name, policy, env, options = SB3[way]
    kind: Any = getattr(import_module(module), name)
    venv = make_vec_env(env, 2, seed=0, env_kwargs=options)
    off = name in ("SAC", "TQC", "CrossQ")
    how: dict[str, Any] = {"learning_starts": 4, "buffer_size": 50} if off else {"n_steps": 4}
    how |= {"batch_size": 4, "device": "cpu"}
    agent = kind(policy, venv, **how).learn(10)
    agent.predict(venv.reset())


@cell("sb3 SubprocVecEnv, spawn")
def sb3_spawn() -> None:
    from stable_baselines3 import PPO
    from stable_baselines3.common.vec_env import SubprocVecEnv

    venv = SubprocVecEnv([functools.partial(gym.make, LATENT, **SMALL)] * 2, start_method="spawn")
    PPO("MlpPolicy", venv, n_steps=4, batch_size=4, device="cpu").learn(8)
    venv.close()


@cell("sb3 to_sb3, one vector environment")
def sb3_vector() -> None:
    from stable_baselines3 import PPO

    from imagine.agents.sb3 import to_sb3

    env: Any = gym.make_vec(DREAM, num_envs=2, autoreset_mode="SameStep", **PIXELS)
    PPO("CnnPolicy", to_sb3(env), n_steps=4, batch_size=4, device="cpu").learn(10)


# ---------------------------------------------------------------- CleanRL


@cell("cleanrl style, {}", "latents", "pixels")
def cleanrl(way: str) -> None:
    """The loop of ppo_continuous_action.py, with its wrappers; NatureCNN for pixels."""
    import torch
    from gymnasium.wrappers.vector import RecordEpisodeStatistics
    from torch import nn

    name, options = (LATENT, SMALL) if way == "latents" else (DREAM, {**PIXELS, "view_size": (84, 84)})
    envs = RecordEpisodeStatistics(gym.make_vec(name, num_envs=2, **options))
    acted = int(np.prod(envs.single_action_space.shape))
    if way == "latents":
        body: nn.Module = nn.Linear(int(np.prod(envs.single_observation_space.shape)), 16)
    else:
        convolutions = [(3, 32, 8, 4), (32, 64, 4, 2), (64, 64, 3, 1)]
        layers = [m for a, b, k, s in convolutions for m in (nn.Conv2d(a, b, k, s), nn.ReLU())]
        body = nn.Sequential(*layers, nn.Flatten(), nn.Linear(64 * 7 * 7, 16))
    actor, critic = nn.Linear(16, acted), nn.Linear(16, 1)
    optimiser = torch.optim.Adam([*body.parameters(), *actor.parameters(), *critic.parameters()])
    observation, _ = envs.reset(seed=1)
    for _ in range(4):
        seen = torch.as_tensor(observation).float()
        features = body(seen.movedim(-1, 1) / 255 if way == "pixels" else seen)
        dist = torch.distributions.Normal(actor(features), 0.1)
        action = dist.sample()
        chunk = action.reshape(2, *envs.single_action_space.shape).numpy()
        low, high = envs.single_action_space.low, envs.single_action_space.high
        observation, reward, *_ = envs.step(np.clip(chunk, low, high))
        loss = -(dist.log_prob(action).sum(1) * torch.as_tensor(reward)).mean() + critic(features).square().mean()
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()


# ---------------------------------------------------------------- RLlib


RLLIB = {
    "latents, local": (LATENT, SMALL, 0, {}),
    "latents, remote": (LATENT, SMALL, 1, {}),
    "latents, remote, vector entry point": (LATENT, SMALL, 1, {"gym_env_vectorize_mode": "vector_entry_point"}),
    "pixels, local": (LATENT, {**SMALL, "obs_type": "pixels", "view_size": 64}, 0, {}),
    "pixels, remote": (LATENT, {**SMALL, "obs_type": "pixels", "view_size": 64}, 1, {}),
}


def in_floats(options: Any) -> gym.Env[Any, Any]:
    """Pictures in [0, 1], as RLlib's CNN wants them."""
    env = gym.make(LATENT, **options)
    space = gym.spaces.Box(0, 1, env.observation_space.shape, np.float32)
    return gym.wrappers.TransformObservation(env, lambda seen: seen.astype(np.float32) / 255, space)


@cell("rllib PPO {}", *RLLIB)
def rllib(way: str) -> None:
    os.environ |= {"RAY_DEDUP_LOGS": "0", "RAY_DISABLE_IMPORT_WARNING": "1"}
    import ray
    from ray.rllib.algorithms.ppo import PPOConfig
    from ray.tune.registry import register_env

    name, options, runners, vector = RLLIB[way]
    ray.init(num_cpus=2, include_dashboard=False, log_to_driver=False, configure_logging=False)
    if options.get("obs_type") == "pixels":
        register_env(name, in_floats)  # its new API stack scales no pixels: the client's own limit, met by a wrapper
    config = PPOConfig().environment(name, env_config=options)
    config.env_runners(num_env_runners=runners, num_envs_per_env_runner=2, rollout_fragment_length=4, **vector)
    config.training(train_batch_size_per_learner=8, minibatch_size=4, num_epochs=1)
    algorithm = config.build_algo()
    result = algorithm.train()
    assert result["env_runners"]["num_env_steps_sampled_lifetime"] >= 8
    algorithm.stop()
    ray.shutdown()


# ---------------------------------------------------------------- stable-worldmodel


def without_compiled_torchvision() -> None:
    """PyPI's torchvision beside a CPU build of torch lacks its compiled operators; nothing here calls them."""
    import torch

    try:
        import torchvision  # noqa: F401
    except RuntimeError:
        for name in [k for k in sys.modules if k.split(".")[0] == "torchvision"]:
            del sys.modules[name]
        library = torch.library.Library("torchvision", "DEF")
        for name in ("nms", "qnms"):
            library.define(f"{name}(Tensor a, Tensor b, float c) -> Tensor")
        without_compiled_torchvision.kept = library  # type: ignore[attr-defined]  # operators live as long as it does


@cell("stable-worldmodel World, {}", "pixels", "all by name", "twin")
def swm_world(way: str) -> None:
    without_compiled_torchvision()
    import stable_worldmodel as swm

    ways = {"pixels": (DREAM, PIXELS), "all by name": (DREAM, CHEAP), "twin": (TWIN, {"obs_type": "pixels"})}
    name, options = ways[way]
    world = swm.World(name, num_envs=2, image_shape=(64, 64), max_episode_steps=3, goal_conditioned=False, **options)
    world.set_policy(swm.policy.RandomPolicy(seed=0))
    result = world.evaluate(episodes=2, seed=1)
    assert "success_rate" in result
    world.close()


@cell("stable-worldmodel solvers")
def swm_solvers() -> None:
    without_compiled_torchvision()
    import costable

    sys.argv = ["costable.py", "--lanes", "1", "--samples", "4", "--iterations", "2"]
    costable.main()


# ---------------------------------------------------------------- running


def run_cell(name: str) -> tuple[str, str, float]:
    """One cell in a process of its own: ``pass``, ``limit`` or ``FAIL``, what it said, and seconds."""
    here = Path(__file__).resolve()
    path = os.pathsep.join([str(here.parent), os.environ.get("PYTHONPATH", "")]).strip(os.pathsep)
    begin = time.perf_counter()
    with tempfile.TemporaryDirectory() as folder:
        environment = {**os.environ, "PYTHONPATH": path, "PYTHONWARNINGS": "ignore", "STABLEWM_HOME": folder}
        command = [sys.executable, str(here), "--cell", name]
        try:
            done = subprocess.run(command, capture_output=True, text=True, env=environment, cwd=folder, timeout=900)
        except subprocess.TimeoutExpired:
            return "FAIL", "took longer than 15 minutes", time.perf_counter() - begin
    seconds = time.perf_counter() - begin
    if done.returncode == 0:
        return ("pass", "", seconds) if name not in LIMITS else ("FAIL", "the known limit is gone; strike it", seconds)
    said = [line for line in done.stderr.splitlines() if line.strip()] or ["no message"]
    expected, why = LIMITS.get(name, ("\0", ""))
    if expected in done.stderr:
        return "limit", f"{said[-1].strip()[:120]} ({why})", seconds
    return "FAIL", said[-1].strip()[:300], seconds


def main() -> int:
    """Print a table of cells; returns how many fail."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("words", nargs="*", help="run the cells whose names hold one of these")
    parser.add_argument("--cell", choices=CELLS, help="run this one here, and let its error through")
    args = parser.parse_args()
    if args.cell:
        warnings.simplefilter("ignore")
        CELLS[args.cell]()
        return 0
    failed = 0
    print("| cell | result | seconds | error |\n|---|---|---|---|")
    for name in CELLS:
        if not args.words or any(word in name for word in args.words):
            result, said, seconds = run_cell(name)
            failed += result == "FAIL"
            print(f"| {name} | {result} | {seconds:.0f} | {said.replace('|', '/')} |", flush=True)
    return failed


if __name__ == "__main__":
    sys.exit(main())
