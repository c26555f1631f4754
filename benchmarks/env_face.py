"""What does the Gymnasium face cost? The same small network stepped bare, through our environment, and through torchrl.

    python benchmarks/env_face.py --seconds 20

All contenders run one forward pass of the same network per step, on one thread, feeding its prediction back, with
fixed actions, no episode ends and no policy. They take turns in short blocks within one process, so that whatever
else the machine does hits all of them alike; a repeat is the best of a few turns, a number the median over repeats.
"world" is the network and its arrays without the environment, so the face costs ours minus world. torchrl runs as
its documentation says (a ``ModelBasedEnvBase`` with its own ``_step``) in three ways, of which the fastest counts:
``rollout`` with stacked results, ``rollout`` without, and ``step`` plus ``step_mdp`` by hand.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable, Mapping, Sequence
from itertools import pairwise
from statistics import median
from typing import Any

import gymnasium as gym
import numpy as np
import torch
from torch import Tensor, nn

from imagine.world.env import EnvConfig, Outcome, WorldModelVectorEnv

OBSERVATION, ACTION, WIDTH = 32, 8, 512
BLOCK = 25  # steps between two looks at the clock
TURNS = 5  # of each contender in a repeat, the best of which counts
FOREVER = 2**31


def network() -> nn.Module:
    """Three layers, 512 wide, from (observation, action) to (next observation, reward); weights keep it bounded."""
    torch.manual_seed(0)
    shape = (OBSERVATION + ACTION, WIDTH, WIDTH, OBSERVATION + 1)
    layers: list[nn.Module] = []
    for before, after in pairwise(shape):
        layers += [nn.Linear(before, after), nn.Tanh() if after == shape[-1] else nn.ReLU()]
    return nn.Sequential(*layers).eval()


def imagine(net: nn.Module, state: Tensor, action: Tensor) -> tuple[Tensor, Tensor]:
    """(N, 32) and (N, 8) to the next (N, 32) and the reward (N, 1)."""
    out = net(torch.cat((state, action), 1))
    return out[:, :OBSERVATION], out[:, OBSERVATION:]


class NetworkWorld:
    """The network behind the ``World`` protocol."""

    def __init__(self, net: nn.Module) -> None:
        self.net = net
        self.single_observation_space = gym.spaces.Box(-np.inf, np.inf, (OBSERVATION,), np.float32)
        self.single_action_space = gym.spaces.Box(-1, 1, (ACTION,), np.float32)
        self.metadata: dict[str, Any] = {"render_fps": 1}

    def allocate(self, num_envs: int) -> None:
        self.state = torch.zeros(num_envs, OBSERVATION)

    def reset(self, lanes: np.ndarray, seeds: Sequence[int], options: Mapping[str, Any]) -> dict[str, Any]:
        self.state = self.state.clone()
        for lane, seed in zip(lanes, seeds, strict=True):
            self.state[lane] = torch.randn(OBSERVATION, generator=torch.Generator().manual_seed(seed))
        return {"seed": np.array(seeds)}

    @torch.inference_mode()
    def step(self, actions: np.ndarray) -> Outcome:
        self.state, reward = imagine(self.net, self.state, torch.from_numpy(actions))
        flat = reward[:, 0].numpy()
        never, always = np.zeros(len(flat), bool), np.ones(len(flat), bool)
        return Outcome(flat, never, always, {"hallucination": flat, "reward_terms": {"net": flat}})

    def observe(self) -> np.ndarray:
        return self.state.numpy()

    def snapshot(self) -> Tensor:
        return self.state.clone()

    def restore(self, state: Tensor) -> None:
        self.state = state.clone()

    def frames(self, lane: int) -> np.ndarray:
        return np.zeros((1, 8, 8, 3), np.uint8)


Block = Callable[[], None]  # runs BLOCK steps


def bare(net: nn.Module, num_envs: int, actions: np.ndarray) -> Block:
    state, action = torch.zeros(num_envs, OBSERVATION), torch.from_numpy(actions)

    @torch.inference_mode()
    def block() -> None:
        nonlocal state
        for _ in range(BLOCK):
            state, _ = imagine(net, state, action)

    return block


def world_alone(net: nn.Module, num_envs: int, actions: np.ndarray) -> Block:
    world = NetworkWorld(net)
    world.allocate(num_envs)

    def block() -> None:
        for _ in range(BLOCK):
            world.step(actions)

    return block


def ours(net: nn.Module, num_envs: int, actions: np.ndarray) -> Block:
    env = WorldModelVectorEnv(NetworkWorld(net), num_envs, cfg=EnvConfig(horizon=FOREVER))
    env.reset(seed=0)

    def block() -> None:
        for _ in range(BLOCK):
            env.step(actions)

    return block


def torchrl_env(net: nn.Module, num_envs: int) -> Any:
    """The network as torchrl's model-based environment; None where torchrl is not installed."""
    try:
        from tensordict import TensorDict
        from tensordict.nn import TensorDictModule
        from torchrl.data import Composite, Unbounded
        from torchrl.envs import ModelBasedEnvBase
    except ImportError:
        return None
    batch = torch.Size([num_envs])
    never = torch.zeros(num_envs, 1, dtype=torch.bool)

    class NetworkEnv(ModelBasedEnvBase):
        def __init__(self, model: nn.Module) -> None:
            super().__init__(model, batch_size=batch)
            self.observation_spec = Composite(observation=Unbounded((num_envs, OBSERVATION)), shape=batch)
            self.state_spec = Composite(observation=Unbounded((num_envs, OBSERVATION)), shape=batch)
            self.action_spec = Unbounded((num_envs, ACTION))
            self.reward_spec = Unbounded((num_envs, 1))

        def _reset(self, tensordict: Any, **kwargs: Any) -> Any:
            return TensorDict({"observation": torch.zeros(num_envs, OBSERVATION)}, batch_size=batch)

        def _step(self, tensordict: Any) -> Any:
            state, reward = imagine(net, tensordict.get("observation"), tensordict.get("action"))
            parts = {"observation": state, "reward": reward, "done": never, "terminated": never}
            return TensorDict(parts, batch_size=batch)

    return NetworkEnv(TensorDictModule(net, in_keys=["observation"], out_keys=["observation"]))


def torchrl_ways(net: nn.Module, num_envs: int, actions: np.ndarray) -> dict[str, Block]:
    """The ways to step the same network through torchrl; none where torchrl is not installed."""
    env, action = torchrl_env(net, num_envs), torch.from_numpy(actions)
    if env is None:
        return {}
    from torchrl.envs.utils import step_mdp

    def act(tensordict: Any) -> Any:
        return tensordict.set("action", action)

    with torch.inference_mode():
        start, current = env.reset(), env.reset()

    def rollout(contiguous: bool) -> Block:
        options = {"auto_reset": False, "break_when_any_done": False, "return_contiguous": contiguous}

        @torch.inference_mode()
        def block() -> None:
            env.rollout(BLOCK, act, tensordict=start, **options)

        return block

    @torch.inference_mode()
    def by_hand() -> None:
        nonlocal current
        for _ in range(BLOCK):
            current = step_mdp(env.step(act(current)))

    return {"rollout": rollout(True), "rollout, not stacked": rollout(False), "step and step_mdp": by_hand}


def measure(blocks: Mapping[str, Block], seconds: float) -> dict[str, list[float]]:
    """Seconds per step of every contender and repeat; at least three repeats, then until the time is up."""
    taken: dict[str, list[float]] = {name: [] for name in blocks}
    for block in blocks.values():
        block()
    end = time.perf_counter() + seconds
    while time.perf_counter() < end or len(next(iter(taken.values()))) < 3:
        best = dict.fromkeys(blocks, np.inf)
        for _ in range(TURNS):
            for name, block in blocks.items():
                start = time.perf_counter()
                block()
                best[name] = min(best[name], (time.perf_counter() - start) / BLOCK)
        for name, seconds_per_step in best.items():
            taken[name].append(seconds_per_step)
    return taken


def main(seconds: float = 20.0, lanes: Sequence[int] = (1, 32)) -> dict[str, Any]:
    """Measure for about ``seconds``; prints and returns one JSON object. Steps per second are lane-steps."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    net = network()
    rate = ("steps_per_s", "bare_steps_per_s", "world_steps_per_s", "torchrl_steps_per_s")
    result: dict[str, Any] = {key: {} for key in ("face_overhead_us", *rate, "torchrl_way")}
    for n in lanes:
        actions = np.random.default_rng(0).uniform(-1, 1, (n, ACTION)).astype(np.float32)
        own = {"bare": bare, "world": world_alone, "ours": ours}
        others = torchrl_ways(net, n, actions)
        taken = measure({**{k: make(net, n, actions) for k, make in own.items()}, **others}, seconds / len(lanes))
        extra = [mine - alone for mine, alone in zip(taken["ours"], taken["world"], strict=True)]
        typical = {name: median(times) for name, times in taken.items()}
        way = min(others, key=typical.__getitem__, default=None)
        result["face_overhead_us"][str(n)] = round(1e6 * median(extra), 2)
        for key, name in zip(rate, ("ours", "bare", "world", way), strict=True):
            result[key][str(n)] = None if name is None else round(n / typical[name], 1)
        result["torchrl_way"][str(n)] = way
    torch.set_num_threads(threads)
    print(json.dumps(result))
    return result


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=20.0, help="how long to measure, in all")
    main(parser.parse_args().seconds)
