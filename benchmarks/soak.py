"""A server for a long time: driving clients that know the right answers, beside hostile ones that come and go.

``python benchmarks/soak.py --minutes 20 --clients 8`` starts ``imagine serve``. Each of the clients has several
observations, half of them with a committed beginning, learns the answers while it is alone, and then asks for them
again and again in random order, reconnecting now and then. As many hostile ones send malformed, truncated and oversized
messages, do not read, say nothing, leave or reset the connection in the middle of a question, and are killed all at
once every half minute. Prints one JSON object: answers that were wrong in any bit (``contaminated``), questions without
an answer (``unanswered``), and how fast the server's memory grows over the second half, with an interval from means of
five samples each.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import random
import signal
import time
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
from fuzz_server import INSTRUCTION, MODEL, attack, memory, observation, serve, together
from scipy.stats import linregress, t
from websockets.exceptions import WebSocketException
from websockets.sync.client import ClientConnection, connect

from imagine.policy.wire import pack, unpack

QUESTIONS = 6


def hello(url: str) -> tuple[ClientConnection, dict[str, Any]]:
    """A connection, and what the server says of itself."""
    connection = connect(url, compression=None, open_timeout=60).__enter__()
    return connection, unpack(connection.recv(60))  # type: ignore[arg-type]


class Driving:
    """A client that drives, and knows the answer to each of its questions."""

    def __init__(self, url: str, number: int, period: float, instruction: str) -> None:
        self.url, self.period, self.rng = url, period, random.Random(number)
        self.connection, about = hello(url)
        asked = [observation(about, 1000 * number + i, instruction) for i in range(QUESTIONS)]
        self.questions = [pack(question) for question in asked]
        first = [self._ask(question) for question in self.questions]
        if "committed" in about.get("accepts", ()):  # a driver gives the beginning of what it does already
            for i in range(0, QUESTIONS, 2):
                chunk = np.frombuffer(first[i], np.float32).reshape(-1, about["action_dim"])
                self.questions[i] = pack(asked[i] | {"committed": chunk[2:6]})
        self.right = [self._ask(question) for question in self.questions]
        self.counts = Counter[str]()
        self.latency: list[float] = []

    def _ask(self, question: bytes) -> bytes:
        self.connection.send(question)
        return unpack(self.connection.recv(60))["actions"].tobytes()  # type: ignore[arg-type, no-any-return]

    def drive(self, until: float) -> None:
        """Ask once per period until a moment of the monotonic clock."""
        at = time.monotonic() + self.rng.random() * self.period
        while at < until:
            time.sleep(max(0.0, at - time.monotonic()))
            begin, i = time.monotonic(), self.rng.randrange(QUESTIONS)
            self.counts["asked"] += 1
            try:
                self.counts["contaminated"] += self._ask(self.questions[i]) != self.right[i]
                self.latency.append(time.monotonic() - begin)
                if self.rng.random() < 0.02:
                    self._again()
            except (OSError, WebSocketException, ValueError) as error:  # a refusal is text, which is no message
                self.counts["unanswered"] += 1
                self.counts[f"{type(error).__name__}: {error}"[:120]] += 1
                time.sleep(1)
                self._again()
            at = max(at + self.period, time.monotonic())

    def _again(self) -> None:
        self.counts["connections"] += 1
        self.connection.close()
        self.connection, _ = hello(self.url)


def slope(minutes: np.ndarray, mib: np.ndarray) -> dict[str, float]:
    """MiB per hour over the second half, by least squares over means of blocks, with a 95 % interval."""
    late = minutes >= minutes[-1] / 2
    blocks = max(3, int(late.sum()) // 5)
    x, y = (np.array([part.mean() for part in np.array_split(v[late], blocks)]) for v in (minutes, mib))
    fit, wide = linregress(x, y), t.ppf(0.975, blocks - 2)
    return {
        "mib_per_hour": round(60 * fit.slope, 3),
        "ci_low": round(60 * (fit.slope - wide * fit.stderr), 3),
        "ci_high": round(60 * (fit.slope + wide * fit.stderr), 3),
        "n": blocks,
    }


def soak(args: argparse.Namespace) -> dict[str, Any]:
    """See the module."""
    server, url = serve(args)
    drivers = [Driving(url, i, args.period, args.instruction) for i in range(args.clients)]
    first, about = hello(url)
    first.close()
    go, manager = multiprocessing.Event(), multiprocessing.Manager()
    go.set()
    hostile: list[Any] = []

    def attackers() -> multiprocessing.Process:
        hostile.append(manager.dict())
        options = (url, about, args.hostile, args.seed + len(hostile), go, hostile[-1], args.instruction)
        process = multiprocessing.Process(target=attack, args=options, daemon=True)
        process.start()
        return process

    enemy, begin, rss = attackers(), time.monotonic(), list[tuple[float, float]]()
    until = begin + 60 * args.minutes
    asking = together([lambda one=one: one.drive(until) for one in drivers])  # type: ignore[misc]
    next_kill = begin + args.kill_every
    while any(thread.is_alive() for thread in asking) and server.poll() is None:
        time.sleep(min(1.0, args.minutes))
        rss.append(((time.monotonic() - begin) / 60, memory(server.pid)))
        if time.monotonic() > next_kill:  # all hostile clients at once, in the middle of whatever they do
            enemy.kill()
            enemy.join()
            enemy, next_kill = attackers(), next_kill + args.kill_every
    crashed = server.poll() is not None
    enemy.kill()
    server.send_signal(signal.SIGTERM)
    server.wait(60)
    counts = sum((one.counts for one in drivers), Counter[str]())
    latency = 1000 * np.concatenate([one.latency for one in drivers])
    minutes, mib = np.array(rss).T
    return {
        "minutes": round(float(minutes[-1]), 2), "crashed": crashed, "exit": server.returncode,
        **{name: counts.pop(name, 0) for name in ("asked", "contaminated", "unanswered", "connections")},
        "errors": dict(counts), "kills": len(hostile) - 1,
        "hostile": dict(sum((Counter(one) for each in hostile for one in each.values()), Counter[str]())),
        "latency_ms": {f"p{q}": round(float(np.percentile(latency, q)), 1) for q in (50, 95, 99, 100)},
        "rss_mib": {"first": mib[0], "half": mib[len(mib) // 2], "last": mib[-1], "most": mib.max()},
        "rss_slope": slope(minutes, mib), "load": os.getloadavg()[0],
    }  # fmt: skip


def main() -> None:
    """Soak, and print one JSON object."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--minutes", type=float, default=20.0)
    parser.add_argument("--clients", type=int, default=8, help="that drive")
    parser.add_argument("--hostile", type=int, default=8, help="that do all but that")
    parser.add_argument("--period", type=float, default=1.0, help="seconds between a driving client's questions")
    parser.add_argument("--kill-every", type=float, default=30.0, help="seconds after which hostile clients are killed")
    parser.add_argument("--model", default=MODEL)
    parser.add_argument("--policy", default="base")
    parser.add_argument("--instruction", default=INSTRUCTION)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, default=Path("runs") / "soak")
    print(json.dumps(soak(parser.parse_args()), indent=1))


if __name__ == "__main__":
    main()
