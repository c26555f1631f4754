"""Serves a policy over openpi's websocket protocol, its RoboArena variant, and scores candidates for others.

On connecting, a client is sent the metadata (:func:`imagine.policy.reading.describe`). Then each binary message is a
msgpack dict (:mod:`imagine.policy.wire`) and gets one answer:

* no ``endpoint``: openpi; an observation, answered by ``{"actions": (K, A), "server_timing": {...}}``;
* ``"infer"``, ``"reset"``: RoboArena, what DreamZero serves; the bare array (K, A), the text ``reset successful``;
* ``"score"``: an observation with ``candidates`` (N, K, A) and ``deadline_ms``; see :class:`TimedScorer`.

An observation is named as in the embodiment (``top_head``, ``proprio``, ``instruction``; also with ``observation/``
before, ``prompt`` for the instruction, or proprioception slice by slice). ``seed`` chooses the noise; a new
``session_id`` begins an episode; ``committed`` (D, A) is how the chunk begins in any case, for policies that go on
from it. A refused request is answered by one sentence as a text frame and the connection lives on; a failure of ours
by the traceback, and the connection is closed with code 1011, as openpi does.

What a client can cost the others is bounded: the number of connections and what each may send and hold, the time for
which one is waited for that does not read. Work for a client that has left is not started, and refusing messages takes
a small share of the time. Web pages are refused by their ``Origin``.

Source: openpi ``WebsocketPolicyServer``; dreamzero ``eval_utils/policy_server.py`` (RoboArena).
"""

from __future__ import annotations

import asyncio
import socket
import threading
import time
import traceback
from collections import Counter
from collections.abc import Callable, Mapping
from concurrent.futures import Future
from dataclasses import dataclass, field
from http import HTTPStatus
from itertools import count
from math import inf
from typing import Annotated, Any

import numpy as np
from pydantic import BaseModel, ConfigDict, Field
from websockets.asyncio.server import ServerConnection, serve
from websockets.exceptions import ConnectionClosed
from websockets.http11 import Request, Response
from websockets.protocol import State

from imagine.embodiment import Embodiment
from imagine.policy.batching import Batcher
from imagine.policy.connections import Room, last_words, leave, listen, unless_left
from imagine.policy.reading import (
    describe,
    observation_bytes,
    read_candidates,
    read_committed,
    read_numbers,
    read_observation,
    read_session,
    request_bytes,
)
from imagine.policy.scoring import Scorer as Scorer
from imagine.policy.scoring import TimedScorer
from imagine.policy.wire import WireError, pack, unpack
from imagine.policy.worker import Worker
from imagine.seeds import Stream, derive
from imagine.types import ImagineError, Policy, ShapeError, takes_committed


class ServerConfig(BaseModel):
    """Where and how a policy is served."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    host: str = "127.0.0.1"  # nobody but this machine, unless asked
    port: Annotated[int, Field(ge=0, le=65_535)] = 8000  # 0: any that is free
    seed: int = 0  # of the noise where a request brings none
    slice_size: Annotated[int, Field(gt=0)] = 8  # candidates judged at once; between two slices others get their turn
    patience: float = 600.0  # seconds without a pong after which a client is given up; DreamZero's
    clients: Annotated[int, Field(gt=0)] = 64  # connections at a time; one more is refused with HTTP status 503
    send_timeout: Annotated[float, Field(gt=0)] = 5.0  # seconds for which a client is waited for that does not read
    grace: Annotated[float, Field(ge=0)] = 6.0  # seconds in which requests under way are answered when it is closed


REMEMBERED, REMEMBERED_BYTES = 64, 2**25
"""Episodes under way that a server remembers per connection, and bytes of their first observations, whichever are
fewer; the oldest is forgotten first."""
LONGEST_REFUSAL = 500
"""Characters of the sentence that refuses a request: what it quotes comes from the client."""
REFUSALS_COST, LONGEST_PAUSE = 50.0, 1.0
"""After a refusal a connection waits this many times as long as that took, at most so many seconds."""
ARRIVING = 0.2
"""Seconds in which a closing server still takes the request that a client may just be sending."""


@dataclass(frozen=True)
class Episode:
    """An episode under way: the number that the policy knows it by, and its first observation."""

    number: int
    start: dict[str, np.ndarray]


@dataclass
class Connection:
    """What the server remembers of one connection.

    Attributes:
        episodes: under way, by ``session_id``; None where the client sends none.
        calls: requests answered without a seed of their own.
        previous_ms: from the arrival of the previous request to its answer being sent.
        since: when it was last answered, or else came; seconds of ``time.monotonic``.
    """

    episodes: dict[str | None, Episode] = field(default_factory=dict)
    calls: int = 0
    previous_ms: float | None = None
    since: float = field(default_factory=time.monotonic)


class PolicyServer:
    """Listens from the moment it is made; use it as a context manager or :meth:`close` it.

    Clients are independent: each has its own session and noise. One worker thread computes for all, first come
    first served, so the model is never used by two.

    Attributes:
        counts: what became of clients and requests, by name.
    """

    def __init__(
        self,
        policy: Policy,
        body: Embodiment,
        *,
        scorer: Scorer | None = None,
        cfg: ServerConfig | None = None,
        clock: Callable[[], float] = time.monotonic,
    ):
        """Bind and begin to serve in the background.

        Args:
            policy: shared by all clients; what it remembers is keyed on episodes, of which each session is one.
            body: what observations and actions must look like.
            scorer: answers ``score``; without it such requests are refused.
            cfg: where and how.
            clock: seconds; for tests.

        Raises:
            ImagineError: the address cannot be had.
        """
        self.policy, self.body, self.cfg, self.clock = policy, body, cfg or ServerConfig(), clock
        self.counts: Counter[str] = Counter()
        self._answering = 0
        self._numbers, self._worker = count(), Worker()
        self._batcher = Batcher(policy, self._worker)
        size = self.cfg.slice_size
        self._score = None if scorer is None else TimedScorer(scorer, self._worker, slice_size=size, clock=clock)
        self.metadata = describe(body, scores=scorer is not None, goes_on=takes_committed(policy))
        self._remembered = max(1, min(REMEMBERED, REMEMBERED_BYTES // observation_bytes(body)))
        self._room = Room(self.cfg.clients, self.cfg.send_timeout)
        listening = listen(self.cfg.host, self.cfg.port)
        self._port = listening.getsockname()[1]
        started: Future[None] = Future()
        run = lambda: asyncio.run(self._serve(listening, started))  # noqa: E731
        self._thread = threading.Thread(target=run, name="listen", daemon=True)
        self._thread.start()
        started.result()

    @property
    def url(self) -> str:
        """``ws://HOST:PORT``."""
        host = f"[{self.cfg.host}]" if ":" in self.cfg.host else self.cfg.host
        return f"ws://{host}:{self._port}"

    def close(self) -> None:
        """Stop listening, answer the requests under way within ``cfg.grace`` seconds, and close every connection."""
        if self._thread.is_alive():
            self._loop.call_soon_threadsafe(self._stop.set)
            self._thread.join()
        self._worker.shutdown()

    def __enter__(self) -> PolicyServer:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    # ------------------------------------------------------------------ all of it below runs in the thread that listens
    async def _serve(self, listening: socket.socket, started: Future[None]) -> None:
        self._loop, self._stop = asyncio.get_running_loop(), asyncio.Event()
        server = await serve(
            self._converse, sock=listening, compression=None, origins=[None], process_request=self._welcome,
            max_size=request_bytes(self.body), max_queue=1, ping_interval=60, ping_timeout=self.cfg.patience,
            close_timeout=1, create_connection=self._room.connection,  # type: ignore[arg-type]
        )  # fmt: skip
        started.set_result(None)
        await self._stop.wait()
        server.close(close_connections=False)
        closed = asyncio.ensure_future(server.wait_closed())
        until = self._loop.time() + self.cfg.grace
        await asyncio.sleep(min(self.cfg.grace, 2 * ARRIVING))
        while self._answering and self._loop.time() < until:
            await asyncio.sleep(0.02)
        for left in list(self._room.sockets):
            self._loop.create_task(leave(left))
        await asyncio.wait({closed}, timeout=1.5)
        for left in list(self._room.sockets):
            left.hang_up()
        await closed

    def _welcome(self, connection: ServerConnection, request: Request) -> Response | None:
        """What is answered before a websocket is opened."""
        if request.path == "/healthz":
            return connection.respond(HTTPStatus.OK, "OK\n")
        if self._room.is_full:
            self.counts["turned away"] += 1
            full = f"{self.cfg.clients} clients are connected, which is all that are served at a time; try again.\n"
            return connection.respond(HTTPStatus.SERVICE_UNAVAILABLE, full)
        return None

    async def _converse(self, connection: ServerConnection) -> None:
        session = Connection()
        self.counts["clients"] += 1
        try:
            await connection.send(pack(self.metadata))
            while (message := await self._next(connection)) is not None:
                begin, self._answering = self.clock(), self._answering + 1
                try:
                    await connection.send(await self._answer_or_refuse(connection, message, session, begin))
                finally:
                    self._answering -= 1
                session.previous_ms, session.since = 1000 * (self.clock() - begin), time.monotonic()
            await leave(connection)
        except ConnectionClosed:
            pass
        except Exception:
            self.counts["failed"] += 1
            await last_words(connection, traceback.format_exc())
        finally:
            self._forget(session)

    async def _next(self, connection: ServerConnection) -> str | bytes | None:
        """The next message; None once the server stops and none is arriving any more, or the client leaves."""
        if self._stop.is_set():
            return None
        receiving, stopping = asyncio.ensure_future(connection.recv()), asyncio.ensure_future(self._stop.wait())
        await asyncio.wait({receiving, stopping}, return_when=asyncio.FIRST_COMPLETED)
        stopping.cancel()
        await asyncio.wait({receiving}, timeout=ARRIVING)
        if not receiving.done():
            receiving.cancel()
            return None
        try:
            message = receiving.result()  # raises ConnectionClosed where the client has left
        finally:
            del receiving
        return message if connection.state is State.OPEN else None

    async def _answer_or_refuse(
        self, connection: ServerConnection, message: str | bytes, session: Connection, begin: float
    ) -> str | bytes:
        since = time.thread_time()
        try:
            return await unless_left(connection, self._answer(message, session, begin))
        except (ImagineError, WireError) as refusal:
            self.counts["refused"] += 1
            await asyncio.sleep(min(LONGEST_PAUSE, REFUSALS_COST * (time.thread_time() - since)))
            said = str(refusal)
            return said if len(said) <= LONGEST_REFUSAL else said[: LONGEST_REFUSAL - 2] + " …"

    async def _answer(self, message: str | bytes, session: Connection, begin: float) -> str | bytes:
        """The answer to one message; a refused one leaves the session as it was."""
        request = unpack(message) if isinstance(message, bytes) else message
        if not isinstance(request, dict):
            raise ShapeError(f"got a {type(request).__name__}, expected a dict with an observation, as msgpack.")
        endpoint = request.get("endpoint")
        if endpoint is not None and str(endpoint) not in ("infer", "reset", "score"):
            raise ImagineError(f"there is no endpoint {str(endpoint)[:40]!r}, expected none, infer, reset or score.")
        if endpoint == "reset":
            self._forget(session)
            return "reset successful"
        observation = read_observation(request, self.body)
        name = read_session(request.get("session_id"))
        episode = session.episodes.get(name) or Episode(next(self._numbers), observation)
        if endpoint == "score":
            answer: Any = await self._judge(request, observation, episode.start, begin)
        else:
            answer = {"actions": await self._act(request, observation, session, episode.number)}
        session.episodes[name] = episode
        if len(session.episodes) > self._remembered:
            self._forget(session, next(iter(session.episodes)))
        self.counts["scored" if endpoint == "score" else "acted"] += 1
        timing = {"infer_ms": 1000 * (self.clock() - begin)}
        if session.previous_ms is not None:
            timing["prev_total_ms"] = session.previous_ms
        return pack(answer["actions"] if endpoint == "infer" else {**answer, "server_timing": timing})

    def _forget(self, session: Connection, *names: str | None) -> None:
        """Episodes of these names, or all of a connection, are over."""
        over = [session.episodes.pop(name).number for name in names or tuple(session.episodes)]
        if over:
            self._worker.submit(self.policy.reset, over)

    async def _act(
        self, request: Mapping[str, Any], observation: dict[str, np.ndarray], session: Connection, episode: int
    ) -> np.ndarray:
        seed = request.get("seed")
        if seed is None:
            seed = derive(self.cfg.seed, session.calls, Stream.POLICY)
        elif isinstance(seed, bool) or not isinstance(seed, int | np.integer):
            raise ShapeError(f"seed is {str(seed)[:40]!r}, expected a whole number.")
        committed = request.get("committed")
        if committed is not None and not takes_committed(self.policy):
            raise ImagineError("this server's policy cannot go on from what is committed; ask without it.")
        committed = None if committed is None else read_committed(committed, self.body)
        answer = self._batcher.act(observation, int(seed), episode, committed, session.since)
        chunk = await asyncio.wrap_future(answer)
        if not np.isfinite(chunk).all():
            raise ImagineError("the policy answered NaN or infinity, which no robot should be sent; check the model.")
        session.calls += request.get("seed") is None
        return chunk

    async def _judge(
        self,
        request: Mapping[str, Any],
        observation: dict[str, np.ndarray],
        start: dict[str, np.ndarray],
        begin: float,
    ) -> dict[str, Any]:
        if self._score is None:
            raise ImagineError("this server has no judge and scores nothing; start it with one.")
        deadline = request.get("deadline_ms")
        if deadline is not None:
            deadline = float(read_numbers(deadline, "deadline_ms", ()))
            if deadline <= 0:
                raise ShapeError(f"deadline_ms is {deadline}, expected more than 0 milliseconds.")
        candidates = read_candidates(request.get("candidates"), self.body)
        return await self._score(observation, start, candidates, inf if deadline is None else begin + deadline / 1000)
