"""How much faster does RLlib train in the dream with two env runners on two nodes than with one?

    python benchmarks/rllib_runners.py --turns 5

Both have the same lanes in all, on a local Ray cluster of two nodes, and one thread per runner. They take turns of one
PPO update each (imagine a batch, learn from it), so that whatever else the machine does hits both alike; a number is
the median over turns. Two local nodes share one machine: expect as much as it has idle cores, and nothing where both
runners are held to one core (``cores_of_two_runners``).
"""

from __future__ import annotations

import argparse
import json
import os
import time
from functools import partial
from statistics import median
from typing import Any

import ray

from imagine.agents.cluster import local_cluster, quiet
from imagine.agents.rllib import RLlibConfig, ppo_config, register_rllib
from imagine.configs.make_env import make_latent_vector_env

NODES = 2


def build(runners: int, lanes: int, batch: int, cpus: int) -> Any:
    """PPO with this many runners that share the lanes; ``cpus`` more than half of a node keep two of them apart."""
    cfg = RLlibConfig(runners=runners, lanes=lanes // runners, train_batch=batch, minibatch=min(128, batch), cpus=cpus)
    return ppo_config("imagined", cfg).debugging(log_level="CRITICAL").build_algo()


def turn(algorithm: Any) -> float:
    """Environment steps per second of one update."""
    steps, begin = ("env_runners", "num_env_steps_sampled_lifetime"), time.perf_counter()
    before = algorithm.metrics.peek(steps, default=0)
    algorithm.train()
    return (algorithm.metrics.peek(steps) - before) / (time.perf_counter() - begin)


def place(runner: Any) -> tuple[str, set[int]]:
    """The node that a runner lives on, and the cores that it may use."""
    return ray.get_runtime_context().get_node_id(), os.sched_getaffinity(0)


def measure(policy: str, lanes: int, batch: int, turns: int) -> dict[str, Any]:
    """Steps per second with one runner and with two, and their ratio."""
    register_rllib("imagined", partial(make_latent_vector_env, policy=policy))
    with quiet(), local_cluster(NODES, cpus_per_node=3):
        two, one = build(NODES, lanes, batch, cpus=2), build(1, lanes, batch, cpus=1)
        speeds = [(turn(one), turn(two)) for _ in range(turns + 1)][1:]  # the first turn warms up
        places = two.env_runner_group.foreach_env_runner(place, local_env_runner=False)
        for algorithm in (one, two):
            algorithm.stop()
    return {
        "nodes_of_two_runners": len({node for node, _ in places}),
        "cores_of_two_runners": len(set.union(*(cores for _, cores in places))),
        "lanes": lanes,
        "train_batch": batch,
        "turns": turns,
        "steps_per_second_one_runner": round(median(a for a, _ in speeds), 1),
        "steps_per_second_two_runners": round(median(b for _, b in speeds), 1),
        "times_faster": round(median(b / a for a, b in speeds), 2),
    }


def main() -> None:
    """Measure and print JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--policy", default="base", help="base, or the folder of an adapter or model")
    parser.add_argument("--lanes", type=int, default=16, help="in all; even")
    parser.add_argument("--batch", type=int, default=256, help="environment steps per update")
    parser.add_argument("--turns", type=int, default=5)
    args = parser.parse_args()
    print(json.dumps(measure(args.policy, args.lanes, args.batch, args.turns)))


if __name__ == "__main__":
    main()
