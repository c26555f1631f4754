"""Serves a policy over openpi's websocket protocol, its RoboArena variant, and scores candidates for others.

On connecting, a client is sent the metadata (:func:`imagine.policy.reading.describe`). Then each binary message is a
msgpack dict (:mod:`imagine.policy.wire`) and gets one answer:

* no ``endpoint``: openpi; an observation, answered by ``{"actions": (K, A), "server_timing": {...}}``;
* ``"infer"``, ``"reset"``: RoboArena, what DreamZero serves; the bare array (K, A), the text ``reset successful``;
* ``"score"``: an observation with ``candidates`` (N, K, A) and ``deadline_ms``; see :class:`TimedScorer`.

An observation is named as in the embodiment (``top_head``, ``proprio``, ``instruction``; also with ``observation/``
before, ``prompt`` for the instruction, or proprioception slice by slice). ``seed`` chooses the noise; a new
``session_id`` begins an episode. A refused request is answered by one sentence as a text frame and the connection
lives on; a failure of ours by the traceback, and the connection is closed with code 1011, as openpi does.

Source: openpi ``WebsocketPolicyServer``; dreamzero ``eval_utils/policy_server.py`` (RoboArena).
"""

from __future__ import annotations

import threading
import time
import traceback
from collections import Counter
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from http import HTTPStatus
from itertools import count
from math import inf
from typing import Annotated, Any

import numpy as np
from pydantic import BaseModel, ConfigDict, Field
from websockets.exceptions import ConnectionClosed
from websockets.frames import CloseCode
from websockets.http11 import Request, Response
from websockets.sync.server import ServerConnection, serve

from imagine.embodiment import Embodiment
from imagine.policy.reading import describe, read_candidates, read_numbers, read_observation
from imagine.policy.scoring import Scorer as Scorer
from imagine.policy.scoring import TimedScorer
from imagine.policy.wire import LARGEST, WireError, pack, unpack
from imagine.seeds import Stream, derive
from imagine.types import ImagineError, Policy, ShapeError


class ServerConfig(BaseModel):
    """Where and how a policy is served."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    host: str = "127.0.0.1"  # nobody but this machine, unless asked
    port: Annotated[int, Field(ge=0, le=65_535)] = 8000  # 0: any that is free
    seed: int = 0  # of the noise where a request brings none
    slice_size: Annotated[int, Field(gt=0)] = 8  # candidates judged at once; between two slices others get their turn
    patience: float = 600.0  # seconds without a pong after which a client is given up; DreamZero's


REMEMBERED = 64
"""Episodes under way that a server remembers per connection; the oldest is forgotten first."""


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
    """

    episodes: dict[str | None, Episode] = field(default_factory=dict)
    calls: int = 0
    previous_ms: float | None = None


class PolicyServer:
    """Listens from the moment it is made; use it as a context manager or :meth:`close` it.

    Clients are independent: each has its own session and noise. One worker thread computes for all, first come
    first served, so the model is never used by two.
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
        self._numbers = count()
        self._worker, self._lock = ThreadPoolExecutor(1, "worker"), threading.Lock()
        size = self.cfg.slice_size
        self._score = None if scorer is None else TimedScorer(scorer, self._worker, slice_size=size, clock=clock)
        self.metadata = describe(body, scores=scorer is not None)
        self._open: set[ServerConnection] = set()
        self._closing = False
        try:
            self._server = serve(
                self._converse, self.cfg.host, self.cfg.port, compression=None, max_size=LARGEST, close_timeout=1,
                ping_interval=60, ping_timeout=self.cfg.patience, process_request=_health,
            )  # fmt: skip
        except OSError as error:
            where = f"{self.cfg.host}:{self.cfg.port}"
            raise ImagineError(
                f"cannot listen on {where} ({error.strerror or error}); choose another address."
            ) from None
        self._port = self._server.socket.getsockname()[1]
        self._thread = threading.Thread(target=self._server.serve_forever, name="listen")
        self._thread.start()

    @property
    def url(self) -> str:
        """``ws://HOST:PORT``."""
        host = f"[{self.cfg.host}]" if ":" in self.cfg.host else self.cfg.host
        return f"ws://{host}:{self._port}"

    def close(self) -> None:
        """Stop listening, finish the request under way, and close every connection."""
        with self._lock:
            self._closing, leaving = True, list(self._open)
        for connection in leaving:
            connection.close(CloseCode.GOING_AWAY, "the server stops")
        self._worker.shutdown(wait=False, cancel_futures=True)
        self._server.shutdown()
        self._thread.join()

    def __enter__(self) -> PolicyServer:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def _count(self, what: str) -> None:
        with self._lock:
            self.counts[what] += 1

    def _converse(self, connection: ServerConnection) -> None:
        session = Connection()
        self._count("clients")
        with self._lock:
            self._open.add(connection)
        try:
            connection.send(pack(self.metadata))
            for message in connection:
                begin = self.clock()
                try:
                    answer = self._answer(message, session, begin)
                except (ImagineError, WireError) as refusal:
                    self._count("refused")
                    answer = str(refusal)
                connection.send(answer)
                session.previous_ms = 1000 * (self.clock() - begin)
        except ConnectionClosed:
            pass
        except Exception:
            if not self._closing:  # then only the worker has stopped
                self._count("failed")
                self._last_words(connection, traceback.format_exc())
        finally:
            with self._lock:
                self._open.discard(connection)
            self._forget(session)

    def _last_words(self, connection: ServerConnection, said: str) -> None:
        try:
            connection.send(said)
            connection.close(CloseCode.INTERNAL_ERROR, "the server failed; the previous frame holds the traceback")
        except ConnectionClosed:
            pass  # nobody is left to hear it

    def _answer(self, message: str | bytes, session: Connection, begin: float) -> str | bytes:
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
        name = None if request.get("session_id") is None else str(request["session_id"])
        episode = session.episodes.get(name) or Episode(next(self._numbers), observation)
        if endpoint == "score":
            answer: Any = self._judge(request, observation, episode.start, begin)
        else:
            answer = {"actions": self._act(request, observation, session, episode.number)}
        session.episodes[name] = episode
        if len(session.episodes) > REMEMBERED:
            self._forget(session, next(iter(session.episodes)))
        self._count("scored" if endpoint == "score" else "acted")
        timing = {"infer_ms": 1000 * (self.clock() - begin)}
        if session.previous_ms is not None:
            timing["prev_total_ms"] = session.previous_ms
        return pack(answer["actions"] if endpoint == "infer" else {**answer, "server_timing": timing})

    def _forget(self, session: Connection, *names: str | None) -> None:
        """Episodes of these names, or all of a connection, are over."""
        over = [session.episodes.pop(name).number for name in names or tuple(session.episodes)]
        if over and not self._closing:
            self._worker.submit(self.policy.reset, over)

    def _act(
        self, request: Mapping[str, Any], observation: dict[str, np.ndarray], session: Connection, episode: int
    ) -> np.ndarray:
        seed = request.get("seed")
        if seed is None:
            seed = derive(self.cfg.seed, session.calls, Stream.POLICY)
        elif isinstance(seed, bool) or not isinstance(seed, int | np.integer):
            raise ShapeError(f"seed is {str(seed)[:40]!r}, expected a whole number.")
        chunk = self._worker.submit(self.policy.act, observation, [int(seed)], [episode]).result()[0]
        if not np.isfinite(chunk).all():
            raise ImagineError("the policy answered NaN or infinity, which no robot should be sent; check the model.")
        session.calls += request.get("seed") is None
        return chunk

    def _judge(
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
        return self._score(observation, start, candidates, inf if deadline is None else begin + deadline / 1000)


def _health(connection: ServerConnection, request: Request) -> Response | None:
    return connection.respond(HTTPStatus.OK, "OK\n") if request.path == "/healthz" else None
