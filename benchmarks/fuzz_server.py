"""A server under attack: is it still there, as small, as fast and as right as before, and does it stop when told?

``python benchmarks/fuzz_server.py --messages 1000000 --minutes 5`` does two things. It gives the decoder and those who
read requests so many messages, made from valid ones by a seeded generator, in this process. Then it starts ``imagine
serve`` with 32 clients, half of them hostile, who flood it, send bombs, do not read, say nothing, leave, and pose as
web pages; every other half minute they pause, which is what the others' latency is compared with. The healthy ones ask
as robots do, once per ``--period``, and know the right answers. In the end each of them asks once more and the server
gets SIGTERM. Prints one JSON object.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import logging
import multiprocessing
import os
import random
import signal
import socket
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import msgpack
import numpy as np
from websockets.exceptions import ConnectionClosed, WebSocketException
from websockets.sync.client import ClientConnection, connect

from imagine.policy.wire import WireError, pack, unpack

MODEL, INSTRUCTION = "g1-table-tiny", "pick up the red block"
SCALAR = {b"__npgeneric__": True, b"data": 2**33, b"dtype": "S1"}
BOMBS = [
    msgpack.packb(SCALAR),
    msgpack.packb({b"__ndarray__": True, b"data": b"", b"dtype": "<f4", b"shape": [2**64 - 1] * 100_000}),
    msgpack.packb({b"nd": True, b"type": "<f4", b"kind": b"", b"data": b"", b"shape": [2**63] * 33}),
    b"\xdd" + (2**21).to_bytes(4, "big") + b"\x80" * 2**21,
    b"\xdd\x00\x00\x0f\xf0" * 400,
    b"\x91" * 100_000,
    msgpack.packb("😀" + "a" * 2**21),
    msgpack.packb(msgpack.ExtType(1, bytes(2**20))),
    b"\0" * (2**23 - 1),
]
Message = bytes
TICK = os.sysconf("SC_CLK_TCK")


def memory(pid: int | str = "self") -> float:
    """Resident MiB of a process."""
    text = Path(f"/proc/{pid}/status").read_text()
    return int(text.split("VmRSS:")[1].split()[0]) / 1024


def processor(pid: int) -> float:
    """Seconds of processor time that a process has used."""
    fields = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()
    return (int(fields[11]) + int(fields[12])) / TICK


class Fuzzer:
    """Messages made from valid ones; the same seed makes the same."""

    def __init__(self, valid: Sequence[dict[str, Any]], seed: int) -> None:
        self.rng, self.valid = random.Random(seed), valid
        self.packed = [pack(message) for message in valid]
        self.odd = [
            None, True, -1, 2**63, 1e308, float("nan"), "", "x" * 70_000, b"\xff" * 40, [], {}, [[[[]]]], [0] * 5000,
            SCALAR, np.zeros((0, 3)), np.full(3, np.inf), np.zeros((1,) * 8), {b"nd": 0, b"type": "<f8", b"data": b""},
            {b"__ndarray__": True}, {b"nd": 1}, msgpack.Timestamp(1), msgpack.ExtType(5, b"x"),
        ]  # fmt: skip

    def __call__(self) -> Message:
        """The next one."""
        make = self.rng.choices([self._bits, self._cut, self._values, self._noise, self._bomb], [30, 10, 40, 15, 0.5])
        return make[0]()

    def _bits(self) -> Message:
        spoilt = bytearray(self.rng.choice(self.packed))
        for _ in range(self.rng.randint(1, 8)):
            spoilt[self.rng.randrange(min(len(spoilt), self.rng.choice((64, len(spoilt)))))] = self.rng.randrange(256)
        return bytes(spoilt)

    def _cut(self) -> Message:
        whole = self.rng.choice(self.packed)
        return whole[: self.rng.randrange(len(whole))] + self.rng.choice((b"", whole[:9]))

    def _values(self) -> Message:
        message = dict(self.rng.choice(self.valid))
        for _ in range(self.rng.randint(1, 3)):
            name = self.rng.choice([*message, "candidates", "deadline_ms", "session_id", "endpoint", "seed"])
            message[name] = self.rng.choice(self.odd)
        with contextlib.suppress(WireError):
            return pack(message)
        return msgpack.packb(self.rng.choice(self.odd[:12]))

    def _noise(self) -> Message:
        heads = bytes(self.rng.choice(b"\x81\x91\xdc\xdd\xde\xdf\xc4\xc6\xd9\xdb\xcf\xcb\xc7\xd4") for _ in range(4))
        return heads + self.rng.randbytes(self.rng.randrange(60))

    def _bomb(self) -> Message:
        return self.rng.choice(BOMBS[:-1])


def observation(about: dict[str, Any], seed: int, instruction: str = INSTRUCTION) -> dict[str, Any]:
    """What a robot of this kind might see; ``about`` is what the server says of itself."""
    rng = np.random.default_rng(seed)
    seen: dict[str, Any] = {name: rng.integers(0, 256, (*hw, 3), np.uint8) for name, hw in about["views"].items()}
    proprio = rng.normal(0, 0.1, about["proprio_dim"]).astype(np.float32)
    return {**seen, "proprio": proprio, "prompt": instruction, "seed": seed}


# ---------------------------------------------------------------------- the decoder
def fuzz_decoder(messages: int, model: str, seed: int) -> dict[str, Any]:
    """Decode and read so many messages: every one gives a request or one sentence."""
    from imagine.model.model import WorldActionModel
    from imagine.policy.reading import describe, read_candidates, read_observation, read_session
    from imagine.types import ImagineError

    body = WorldActionModel.from_pretrained(model).body
    about = describe(body, scores=True, goes_on=True)
    valid = [observation(about, i) for i in range(3)]
    valid.append({**valid[0], "candidates": np.zeros((4, body.chunk_actions, body.action_dim)), "deadline_ms": 50.0})
    fuzzer, counts, slowest, longest = Fuzzer(valid, seed), Counter[str](), 0.0, 0
    for _ in range(min(messages, 20_000)):  # until the allocator has what it wants
        fuzzer()
    fuzzer, before, begin = Fuzzer(valid, seed), memory(), time.monotonic()
    for _ in range(messages):
        message, since = fuzzer(), time.perf_counter()
        try:
            request = unpack(message)
            if isinstance(request, dict):
                read_session(request.get("session_id"))
                read_observation(request, body)
                if "candidates" in request:
                    read_candidates(request["candidates"], body)
            counts["read"] += 1
        except (WireError, ImagineError) as refusal:
            counts["refused"] += 1
            longest = max(longest, len(str(refusal)))
        except Exception as error:
            counts["failed"] += 1
            print(f"{type(error).__name__}: {error} of {message[:200]!r}", file=sys.stderr)
        slowest = max(slowest, time.perf_counter() - since)
    return {
        "messages": messages, **{name: counts[name] for name in ("read", "refused", "failed")},
        "slowest_ms": 1000 * slowest, "longest_refusal": longest, "growth_mib": memory() - before,
        "seconds": time.monotonic() - begin,
    }  # fmt: skip


# ---------------------------------------------------------------------- hostile clients
def deaf(host: str, port: int, rng: random.Random) -> None:
    """Ask and ping, and read nothing."""
    key = "Sec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==\r\nSec-WebSocket-Version: 13\r\n"
    with socket.socket() as one:
        one.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        one.settimeout(2)
        one.connect((host, port))
        one.sendall(
            f"GET / HTTP/1.1\r\nHost: {host}\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n{key}\r\n".encode()
        )
        pings = (b"\x89\xfd" + bytes(4) + b"p" * 125) * 200
        for _ in range(rng.randint(1, 200)):
            one.sendall(pings)
        time.sleep(1)


def mute(host: str, port: int, rng: random.Random) -> None:
    """Say nothing, or something else than a websocket's hello."""
    with socket.create_connection((host, port), timeout=2) as one:
        one.sendall(rng.choice([b"", b"GET / HTTP/1.1\r\n", rng.randbytes(500), b"GET /" + b"x" * 9000]))
        time.sleep(rng.random() * 2)


def page(url: str) -> None:
    """Pose as a web page."""
    with connect(url, origin="https://evil.example", open_timeout=5):  # type: ignore[arg-type]
        raise AssertionError("a web page was let in")


def messages(url: str, fuzzer: Fuzzer, counts: Counter[str]) -> None:
    """Send some fuzzed ones and bombs, now and then without waiting for the answer."""
    with connect(url, compression=None, max_size=None, open_timeout=10) as connection:
        for _ in range(fuzzer.rng.randint(1, 20)):
            connection.send(fuzzer())
            counts["messages"] += 1
            if fuzzer.rng.random() < 0.8:
                connection.recv(10)
        connection.send(fuzzer.rng.choice(BOMBS))
        counts["bombs"] += 1


def leave(url: str, valid: dict[str, Any], rng: random.Random) -> None:
    """Ask what takes long, and be gone."""
    connection = connect(url, compression=None, open_timeout=10).__enter__()
    connection.send(pack(valid))
    if rng.random() < 0.5:
        connection.socket.shutdown(socket.SHUT_RDWR)
    connection.close()


def attack(url: str, about: dict[str, Any], clients: int, seed: int, go: Any, counts: Any, instruction: str) -> None:
    """Hostile clients in a process of their own, while ``go`` is set; ``counts`` gets what they did, by kind."""
    host, port = url.removeprefix("ws://").rsplit(":", 1)
    logging.disable()
    os.nice(19)  # they stand for other machines: what they compute with is not the server's

    def one(number: int) -> None:
        rng, done = random.Random(f"{seed}-{number}"), Counter[str]()
        valid = [observation(about, i, instruction) for i in range(2)]
        fuzzer = Fuzzer(valid, rng.randrange(2**32))
        ways: dict[str, Callable[[], None]] = {
            "messages": lambda: messages(url, fuzzer, done), "left": lambda: leave(url, valid[0], rng),
            "deaf": lambda: deaf(host, int(port), rng), "mute": lambda: mute(host, int(port), rng),
            "pages": lambda: page(url),
        }  # fmt: skip
        while go.wait():
            way = rng.choices([*ways], [20, 5, 1, 2, 2])[0]
            try:
                ways[way]()
            except ConnectionRefusedError:
                return  # the server has stopped
            except (OSError, WebSocketException, EOFError):
                pass
            done[way] += way != "messages"
            counts[number] = dict(done)
            time.sleep(0.02)

    for number in range(clients):
        threading.Thread(target=one, args=(number,), daemon=True).start()
    threading.Event().wait()


# ---------------------------------------------------------------------- healthy clients
class Healthy:
    """A robot: asks once per period, and knows what the answer must be."""

    def __init__(self, url: str, period: float, number: int, instruction: str) -> None:
        self.connection: ClientConnection = connect(url, compression=None, open_timeout=60).__enter__()
        about = unpack(self.connection.recv(60))  # type: ignore[arg-type]
        self.period, self.request = period, pack(observation(about, number, instruction))
        self.right, self.equal, self.answers = self._ask(), 0, 0
        self.latency: dict[str, list[float]] = {"alone": [], "attacked": []}

    def _ask(self) -> bytes:
        self.connection.send(self.request)
        return unpack(self.connection.recv(120))["actions"].tobytes()  # type: ignore[arg-type, no-any-return]

    def ask_for(self, seconds: float, when: str) -> None:
        """Go on asking for so long."""
        end, at = time.monotonic() + seconds, time.monotonic() + random.random() * self.period
        while at < end:
            time.sleep(max(0.0, at - time.monotonic()))
            since = time.monotonic()
            self.equal += self._ask() == self.right
            self.latency[when].append(time.monotonic() - since)
            self.answers += 1
            at = max(at + self.period, time.monotonic())

    def last(self, sent: threading.Barrier, answered: list[bool]) -> None:
        """Ask while the server is told to stop."""
        self.connection.send(self.request)
        sent.wait()
        with contextlib.suppress(ConnectionClosed, TimeoutError):
            answered.append(unpack(self.connection.recv(20))["actions"].tobytes() == self.right)  # type: ignore


def together(calls: Sequence[Callable[[], None]]) -> list[threading.Thread]:
    """Start all."""
    threads = [threading.Thread(target=call) for call in calls]
    for thread in threads:
        thread.start()
    return threads


def serve(args: argparse.Namespace) -> tuple[subprocess.Popen[str], str]:
    """Start ``imagine serve`` and return it and its address."""
    what = ["--model", args.model, "--policy", args.policy, "--judge", "none", "--out", str(args.out)]
    words = ["serve", *what, "--port", "0", "--json"]
    server = subprocess.Popen(
        [sys.executable, "-m", "imagine.configs.cli", *words], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    line = next(line for line in server.stderr if "ws://" in line)  # type: ignore[union-attr]
    threading.Thread(target=server.stderr.read, daemon=True).start()  # type: ignore[union-attr]
    return server, next(word for word in line.split() if word.startswith("ws://")).rstrip(";")


def attack_server(args: argparse.Namespace) -> dict[str, Any]:
    """See the module."""
    server, url = serve(args)
    healthy = [Healthy(url, args.period, i, args.instruction) for i in range(args.clients // 2)]
    go, counts = multiprocessing.Event(), multiprocessing.Manager().dict()
    with connect(url) as connection:
        about = unpack(connection.recv(60))  # type: ignore[arg-type]
    hostile = args.clients - len(healthy)
    enemy = multiprocessing.Process(
        target=attack, args=(url, about, hostile, args.seed, go, counts, args.instruction), daemon=True
    )
    enemy.start()
    halves = max(1, round(60 * args.minutes / (2 * args.half)))
    rss: dict[str, list[float]] = {"alone": [], "attacked": []}
    busy = dict.fromkeys(rss, 0.0)
    for turn in range(2 * halves):
        when = "attacked" if turn % 2 else "alone"
        go.set() if turn % 2 else go.clear()
        used, since = processor(server.pid), time.monotonic()
        asking = together([lambda one=one, when=when: one.ask_for(args.half, when) for one in healthy])  # type: ignore
        while any(thread.is_alive() for thread in asking):
            time.sleep(0.5)
            rss[when].append(memory(server.pid))
        busy[when] += (processor(server.pid) - used) / (time.monotonic() - since) / halves
    answered: list[bool] = []
    sent = threading.Barrier(len(healthy) + 1)
    asking = together([lambda one=one: one.last(sent, answered) for one in healthy])  # type: ignore
    sent.wait()
    since = time.monotonic()
    server.send_signal(signal.SIGTERM)
    out, _ = server.communicate(timeout=60)
    stopped = time.monotonic() - since
    for thread in asking:
        thread.join(20)
    done = sum((Counter(each) for each in counts.values()), Counter[str]())
    enemy.kill()
    return report(healthy, rss, done) | {
        "server_cores": busy, "sigterm_seconds": stopped, "exit": server.returncode,
        "in_flight": len(healthy), "answered": sum(answered),
        "server": {k: v for k, v in json.loads(out).items() if k not in ("policy", "url")},
    }  # fmt: skip


def report(healthy: Sequence[Healthy], rss: dict[str, list[float]], done: Counter[str]) -> dict[str, Any]:
    """What became of memory, latency and answers."""
    latency = {when: np.concatenate([one.latency[when] for one in healthy]) for when in ("alone", "attacked")}
    quantiles = {
        when: {f"p{q}": float(1000 * np.percentile(values, q)) for q in (50, 95, 99, 100)}
        for when, values in latency.items()
    }
    ratio = {q: quantiles["attacked"][q] / quantiles["alone"][q] for q in quantiles["alone"]}
    return {
        "hostile": dict(done), "answers": sum(one.answers for one in healthy),
        "bit_equal": sum(one.equal for one in healthy), "latency_ms": quantiles, "latency_ratio": ratio,
        "rss_mib": {"before": rss["alone"][0], "most": max(rss["attacked"]), "last": rss["attacked"][-1]},
        "growth_mib": max(rss["attacked"]) - rss["alone"][0],
    }  # fmt: skip


def main() -> None:
    """Both, or one of them."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--messages", type=int, default=1_000_000)
    parser.add_argument("--minutes", type=float, default=5.0)
    parser.add_argument("--half", type=float, default=30.0, help="seconds of peace, and of attack, in turn")
    parser.add_argument("--clients", type=int, default=32)
    parser.add_argument("--period", type=float, default=2.0, help="seconds between a healthy client's questions")
    parser.add_argument("--model", default=MODEL)
    parser.add_argument("--policy", default="base", help="random takes no time, and shows the server alone")
    parser.add_argument("--instruction", default=INSTRUCTION)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, default=Path("runs") / "fuzz-server")
    args = parser.parse_args()
    answer: dict[str, Any] = {"load": os.getloadavg()[0]}
    if args.messages:
        answer["decoder"] = fuzz_decoder(args.messages, args.model, args.seed)
    if args.minutes:
        answer["server"] = attack_server(args)
    print(json.dumps(answer, indent=1))


if __name__ == "__main__":
    main()
