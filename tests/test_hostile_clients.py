"""Clients that flood, send bombs, do not read, or leave cost the others nothing; a closing server answers first."""

from __future__ import annotations

import contextlib
import os
import socket
import struct
import threading
import time
import zlib
from collections.abc import Callable, Iterator
from typing import Any

import msgpack
import numpy as np
import pytest
from websockets.exceptions import ConnectionClosed, InvalidStatus
from websockets.sync.client import ClientConnection, connect

from imagine.policy import wire
from imagine.policy.reading import request_bytes
from imagine.policy.server import LONGEST_REFUSAL, PolicyServer, ServerConfig

K, A = 4, 2


class Slow:
    """A policy that takes its time, and counts."""

    def __init__(self, seconds: float = 0.0) -> None:
        self.seconds, self.calls, self.free = seconds, 0, threading.Event()
        self.free.set()

    def reset(self, episodes: Any = None) -> None:
        pass

    def act(self, observation: dict[str, np.ndarray], seeds: Any = None, episodes: Any = None) -> np.ndarray:
        first = observation["proprio"][:, 0]
        self.calls += 1
        self.free.wait(20)
        time.sleep(self.seconds)
        return np.tile(first[:, None, None], (1, K, A)).astype(np.float32)


Serving = Callable[..., PolicyServer]


@pytest.fixture
def serving(tiny_model) -> Iterator[Serving]:
    begun: list[PolicyServer] = []

    def begin(policy: Any, **cfg: Any) -> PolicyServer:
        begun.append(PolicyServer(policy, tiny_model.body, cfg=ServerConfig(port=0, **cfg)))
        return begun[-1]

    yield begin
    for server in begun:
        server.close()


def observation(first: float = 0.0, **more: Any) -> dict[str, Any]:
    head = np.zeros((16, 16, 3), np.uint8)
    return {"head": head, "proprio": np.array([first, 0, 0]), "prompt": "push the red bowl", **more}


def open_to(server: PolicyServer, **options: Any) -> ClientConnection:
    connection = connect(server.url, **{"compression": None, "max_size": None, **options}).__enter__()
    assert wire.unpack(connection.recv(10))["embodiment"] == "tiny"  # type: ignore[arg-type]
    return connection


def ask(connection: ClientConnection, message: Any) -> Any:
    connection.send(message if isinstance(message, bytes | str) else wire.pack(message))
    said = connection.recv(20)
    return said if isinstance(said, str) else wire.unpack(said)


def is_answered(connection: ClientConnection, first: float) -> bool:
    return bool((ask(connection, observation(first))["actions"] == np.float32(first)).all())


def until(true: Callable[[], bool], seconds: float = 10.0) -> bool:
    end = time.monotonic() + seconds
    while not true() and time.monotonic() < end:
        time.sleep(0.01)
    return true()


# ---------------------------------------------------------------------- who may connect
def test_a_web_page_is_refused(serving) -> None:
    server = serving(Slow())
    for origin in ("https://evil.example", "null", server.url.replace("ws", "http")):
        with pytest.raises(InvalidStatus, match="403"):
            connect(server.url, origin=origin)  # type: ignore[arg-type]
    assert is_answered(open_to(server), 1)


def test_one_client_too_many_is_refused_until_another_leaves(serving) -> None:
    server = serving(Slow(), clients=2)
    first, second = open_to(server), open_to(server)
    with pytest.raises(InvalidStatus, match="503"):
        connect(server.url)
    second.close()
    assert is_answered(open_to(server), 1) and is_answered(first, 2) and server.counts["turned away"] == 1


def test_sockets_that_say_nothing_keep_nobody_out(serving) -> None:
    server = serving(Slow(), clients=8)
    client, before = open_to(server), threading.active_count()
    host, port = server.url.removeprefix("ws://").split(":")
    with contextlib.ExitStack() as stack:
        for _ in range(28):
            stack.enter_context(socket.create_connection((host, int(port))))
        assert is_answered(client, 1) and is_answered(open_to(server), 2)
        hung_up = [stack.enter_context(socket.create_connection((host, int(port)))) for _ in range(8)]
        for one in hung_up[4:]:
            one.settimeout(10)
            with contextlib.suppress(ConnectionResetError):
                assert one.recv(1) == b""
        assert is_answered(client, 3) and threading.active_count() <= before + 2  # of the second client's own


# ---------------------------------------------------------------------- what one may send
BOMBS: list[Any] = [
    msgpack.packb({b"__npgeneric__": True, b"data": 2**33, b"dtype": "S1"}),
    msgpack.packb({b"__ndarray__": True, b"data": b"", b"dtype": "<f4", b"shape": [2**64 - 1] * 100_000}),
    b"\xdd" + (2**22).to_bytes(4, "big") + b"\x80" * 2**22,
    wire.pack(observation(session_id="x" * 60_000)),
    wire.pack(observation(endpoint="x" * 60_000)),
    wire.pack(observation(seed="x" * 60_000)),
    wire.pack(observation(prompt="x " * 30_000)),
    wire.pack(observation(proprio=np.zeros((1,) * 8))),
    wire.pack(observation(proprio=list(range(3000)))),
    "x" * 2**20,
    b"",
]


def test_bombs_are_refused_at_once_and_briefly(serving) -> None:
    server = serving(Slow())
    client = open_to(server)
    for bomb in BOMBS:
        said = ask(client, bomb)
        assert isinstance(said, str) and len(said) <= LONGEST_REFUSAL and "\n" not in said
    assert is_answered(client, 1) and server.counts["failed"] == 0


def test_a_compressed_message_is_not_inflated(serving) -> None:
    server = serving(Slow())
    client, hostile = open_to(server), open_to(server, compression="deflate")
    assert "sec-websocket-extensions" not in hostile.response.headers  # type: ignore[union-attr]
    deflated = zlib.compress(b"\0" * 2**27)[2:-4]
    frame = b"\xc2\xfe" + struct.pack("!H", 2**15) + b"\0" * 4 + deflated[: 2**15]  # binary, deflated, masked by zeros
    hostile.socket.sendall(frame)
    with pytest.raises(ConnectionClosed, match="1002"):
        hostile.recv(10)
    assert is_answered(client, 1)


def test_a_message_too_large_for_the_robot_ends_its_connection_only(serving, tiny_model) -> None:
    server = serving(Slow())
    client, hostile = open_to(server), open_to(server)
    assert 2**23 <= request_bytes(tiny_model.body) < 2**24
    with pytest.raises(ConnectionClosed, match="1009"):
        ask(hostile, b"\0" * 2**24)
    assert is_answered(client, 1)


def test_refusing_takes_a_small_share_of_the_time(serving) -> None:
    server, begin = serving(Slow()), time.monotonic()
    hostile, flood = open_to(server), wire.pack(observation(x=[0] * 3000, prompt=7))
    while time.monotonic() < begin + 1:
        assert "got int for the instruction" in ask(hostile, flood)
    assert server.counts["refused"] < 50


# ---------------------------------------------------------------------- who does not read, who leaves
def deaf(server: PolicyServer) -> socket.socket:
    """A client with a small buffer that reads no more than the hello."""
    host, port = server.url.removeprefix("ws://").split(":")
    one = socket.socket()
    one.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    one.connect((host, int(port)))
    key = "Sec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==\r\nSec-WebSocket-Version: 13\r\n"
    one.sendall(f"GET / HTTP/1.1\r\nHost: {host}\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n{key}\r\n".encode())
    assert one.recv(12) == b"HTTP/1.1 101"
    return one


def flooded_with_pings(one: socket.socket) -> None:
    pings = (b"\x89\xfd" + b"\0" * 4 + b"p" * 125) * 500  # masked by zeros
    one.settimeout(0.5)
    with contextlib.suppress(OSError):
        for _ in range(2000):
            one.sendall(pings)


def test_a_client_that_does_not_read_is_hung_up_on_and_keeps_no_server_from_closing(serving) -> None:
    server = serving(Slow(), send_timeout=0.3)
    client, hostile = open_to(server), deaf(server)
    flooded_with_pings(hostile)
    assert is_answered(client, 1)
    assert until(lambda: len(server._room.sockets) == 1)
    hostile.close()
    patient = serving(Slow(), send_timeout=60)
    hostile = deaf(patient)
    flooded_with_pings(hostile)
    begin = time.monotonic()
    patient.close()
    assert time.monotonic() - begin < 9
    hostile.close()


def test_work_for_those_who_have_left_is_not_done(serving) -> None:
    policy = Slow()
    server = serving(policy)
    client = open_to(server)
    policy.free.clear()
    for _ in range(20):
        leaving = open_to(server)
        leaving.send(wire.pack(observation()))
        leaving.close()
    vanishing = [open_to(server) for _ in range(5)]
    for one in vanishing:
        one.send(wire.pack(observation()))
    assert until(lambda: policy.calls == 1)
    for one in vanishing:
        one.socket.shutdown(socket.SHUT_RDWR)
    assert until(lambda: len(server._room.sockets) == 1)
    policy.free.set()
    assert is_answered(client, 1) and policy.calls == 2


# ---------------------------------------------------------------------- closing
def test_a_server_that_closes_answers_what_it_was_asked(serving) -> None:
    policy = Slow(seconds=0.1)
    server = serving(policy)
    clients = [open_to(server) for _ in range(8)]
    idle, answers = open_to(server), {}

    def one(i: int) -> None:
        answers[i] = is_answered(clients[i], i)

    asking = [threading.Thread(target=one, args=(i,)) for i in range(8)]
    for thread in asking:
        thread.start()
    assert until(lambda: policy.calls > 0)
    begin = time.monotonic()
    server.close()
    for thread in asking:
        thread.join(10)
    assert answers == dict.fromkeys(range(8), True) and time.monotonic() - begin < 5
    for connection in (*clients, idle):
        with pytest.raises(ConnectionClosed, match="1001"):
            connection.recv(5)
    with pytest.raises(OSError):
        connect(server.url, open_timeout=2)


def test_a_server_whose_policy_hangs_closes_within_its_grace(serving) -> None:
    policy = Slow()
    server = serving(policy, grace=0.3)
    client = open_to(server)
    policy.free.clear()
    client.send(wire.pack(observation()))
    assert until(lambda: policy.calls == 1)
    begin = time.monotonic()
    server.close()
    assert time.monotonic() - begin < 5
    with pytest.raises(ConnectionClosed):
        client.recv(5)
    policy.free.set()


# ---------------------------------------------------------------------- all at once
@pytest.mark.slow
def test_healthy_clients_notice_nothing_of_hostile_ones(serving) -> None:
    server = serving(Slow(seconds=0.005))
    over, rng = threading.Event(), np.random.default_rng(0)
    valid = bytearray(wire.pack(observation()))

    def hostile() -> None:
        while not over.is_set():
            spoilt = bytearray(valid)
            for place in rng.integers(0, len(spoilt), 8):
                spoilt[place] = rng.integers(256)
            with contextlib.suppress(OSError, ConnectionClosed), open_to(server) as connection:
                for message in (bytes(spoilt), os.urandom(64), BOMBS[rng.integers(len(BOMBS))]):
                    ask(connection, message)

    attackers = [threading.Thread(target=hostile) for _ in range(4)]
    for thread in attackers:
        thread.start()
    try:
        client = open_to(server)
        assert all(is_answered(client, i) for i in range(200))
    finally:
        over.set()
        for thread in attackers:
            thread.join(20)
    assert server.counts["failed"] == 0 and server.counts["refused"] > 20
