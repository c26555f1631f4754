"""How much more one server answers to many sessions than to one, and whether anybody can tell.

``python benchmarks/sessions.py --sessions 16 --seconds 20`` serves the shipped policy on this machine, has first one
client and then many ask without a pause, and compares every answer with what the policy says to that client alone.
"""

from __future__ import annotations

import argparse
import json
import threading
import time

import numpy as np

from imagine.configs.build import load
from imagine.policy.client import RemotePolicy
from imagine.policy.policy import JointPolicy
from imagine.policy.server import PolicyServer, ServerConfig


def ask(url: str, observation: dict[str, np.ndarray], seed: int, until: float, answers: list[bytes]) -> None:
    """One client: the same question again and again."""
    with RemotePolicy(url) as client:
        while time.monotonic() < until:
            answers.append(client.act(observation, [seed], [seed]).tobytes())


def served(url: str, seen: list[dict[str, np.ndarray]], seconds: float) -> list[list[bytes]]:
    """All answers to some clients that ask at the same time, within some seconds."""
    answers: list[list[bytes]] = [[] for _ in seen]
    until = time.monotonic() + seconds
    threads = [
        threading.Thread(target=ask, args=(url, observation, i, until, answers[i]))
        for i, observation in enumerate(seen)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return answers


def main() -> None:
    """Print one JSON object."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--sessions", type=int, default=16)
    parser.add_argument("--seconds", type=float, default=20.0)
    parser.add_argument("--model", default="g1-table-tiny")
    args = parser.parse_args()
    loaded = load(args.model)
    policy, env = JointPolicy(loaded.model), loaded.sim_env()
    seen = [{k: v[None] for k, v in env.reset(seed=900_000 + i)[0].items()} for i in range(args.sessions)]
    alone = [policy.act(observation, [i], [i]).tobytes() for i, observation in enumerate(seen)]
    with PolicyServer(policy, loaded.model.body, cfg=ServerConfig(port=0)) as server:
        one = served(server.url, seen[:1], args.seconds)
        many = served(server.url, seen, args.seconds)
    rates = [sum(map(len, found)) / args.seconds for found in (one, many)]
    equal = all(answer == alone[i] for found in (one, many) for i, own in enumerate(found) for answer in own)
    print(json.dumps({
        "sessions": args.sessions, "per_second_alone": rates[0], "per_second_together": rates[1],
        "ratio": rates[1] / rates[0], "bit_equal": equal, "answers": sum(map(len, many)),
        "fewest_of_a_session": min(map(len, many)),
    }))  # fmt: skip


if __name__ == "__main__":
    main()
