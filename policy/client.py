"""A policy, and a judge of candidates, at the other end of a websocket. Needs numpy, msgpack and websockets only.

It speaks openpi's protocol to any server, RoboArena's to those that ask for sessions, and adds ``seed``,
``session_id`` and ``score`` only where the server says on connecting that it takes them (:mod:`imagine.policy.server`).
"""

from __future__ import annotations

import time
from collections.abc import Hashable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any
from uuid import uuid4

import numpy as np
from websockets.exceptions import ConnectionClosed, WebSocketException
from websockets.sync.client import ClientConnection, connect

from imagine.policy.wire import WireError, pack, unpack

LARGEST_ANSWER = 2**24
"""Bytes of the largest answer taken."""
LONGEST_QUOTE = 500
"""Characters that are repeated of the sentence in which a server refuses; of a traceback, twenty times as many."""

SLACK_MS = 20.0
"""How long a verdict may be under way beyond its deadline, there and back, before it is given up."""

MOST_MS = 24 * 3600 * 1000.0


class RemoteError(WireError):
    """A policy server cannot be reached, refused, or answered what is no chunk; one sentence says which."""


@dataclass(frozen=True)
class Ranking:
    """What a server thinks of N candidates.

    Attributes:
        preferred: index of the best; 0, the proposer's own first choice, where nothing was judged in time.
        late: nothing was judged in time.
        scores: (N,) float32, higher is better; NaN where there is no verdict.
        spread: (N,) float32, disagreement of the judge; NaN where unknown.
        hallucination: (N,) float32, how far the dream strays from the candidate, normalised action units; likewise.
        terms: all parts of the scores, (N,) float32 each.
        note: what is missing and why, a sentence; empty where nothing is.
    """

    preferred: int
    late: bool
    scores: np.ndarray
    spread: np.ndarray
    hallucination: np.ndarray
    terms: dict[str, np.ndarray]
    note: str


class RemotePolicy:
    """An ``imagine.types.Policy`` whose chunks are chosen elsewhere. Rows are asked for one after the other.

    A lost connection is made anew, once per request.

    Attributes:
        metadata: what the server said of itself on connecting.
    """

    def __init__(
        self,
        url: str,
        chunk_actions: int | None = None,
        action_dim: int | None = None,
        *,
        timeout: float = 60.0,
        rename: Mapping[str, str] | None = None,
        api_key: str | None = None,
    ):
        """Connect.

        Args:
            url: ``ws://HOST:PORT`` or ``wss://...``.
            chunk_actions: K; of a longer answer the first K are used, a shorter one is refused. None takes any.
            action_dim: A; an answer of another width is refused. None takes any.
            timeout: seconds to wait for a connection, and for an answer.
            rename: our observation names to the server's, where they differ, as
                ``{"top_head": "observation/exterior_image_0_left"}``.
            api_key: sent as ``Authorization: Api-Key ...``.

        Raises:
            RemoteError: nobody answers there, or it serves another embodiment.
        """
        if not url.startswith(("ws://", "wss://")):
            raise RemoteError(f"policy server {url!r} is no websocket address, expected ws://HOST:PORT.")
        self.url, self.chunk_actions, self.action_dim = url, chunk_actions, action_dim
        self.timeout, self.rename = timeout, dict(rename or {})
        self._headers = {"Authorization": f"Api-Key {api_key}"} if api_key else None
        self._stack, self._name, self._begun = ExitStack(), uuid4().hex[:8], 0
        self._sessions: dict[Hashable, str] = {}
        self._connection = self._connect()

    # ------------------------------------------------------------------ a policy
    def reset(self, episodes: Sequence[int] | None = None) -> None:
        """Begin a new session for these episodes, or for all, when they are next acted for."""
        if episodes is None:
            self._sessions.clear()
        else:
            for episode in episodes:
                self._sessions.pop(int(episode), None)

    def act(
        self,
        observation: dict[str, np.ndarray],
        seeds: Sequence[int] | None = None,
        episodes: Sequence[int] | None = None,
        committed: np.ndarray | None = None,
    ) -> np.ndarray:
        """One chunk (B, K, A) float32 in robot units per row.

        Args:
            observation: batched, as ``imagine.world.spaces.observation_space`` describes.
            seeds: one per row; passed on to servers that take them.
            episodes: one per row: each has a session of its own, where the server knows sessions.
            committed: (B, D, A) how each chunk begins in any case; for servers that take it (:attr:`takes_committed`).

        Raises:
            RemoteError: the server cannot be reached, refused, or its answer is no chunk of this embodiment.
        """
        n = len(next(iter(observation.values())))
        for what, given in (("seeds", seeds), ("episodes", episodes)):
            if given is not None and len(given) != n:
                raise RemoteError(f"got {len(given)} {what} for {n} rows; give one per row.")
        if n > 1 and self._has_memory:
            raise RemoteError(f"{self.url} remembers one episode at a time but was given {n}; use one.")
        chunks = []
        for i in range(n):
            episode = ("row", i) if episodes is None else int(episodes[i])
            message = self._message({name: values[i] for name, values in observation.items()}, episode)
            if seeds is not None and "seed" in self._accepts:
                message["seed"] = int(seeds[i])
            if committed is not None:
                message["committed"] = np.asarray(committed[i], np.float32)
            chunks.append(self._chunk(self._ask(message)))
        return np.stack(chunks)

    # ------------------------------------------------------------------ a judge
    def score(
        self, observation: dict[str, np.ndarray], instruction: str, candidates: np.ndarray, deadline_ms: float
    ) -> Ranking:
        """Have candidates imagined and judged.

        Args:
            observation: one, without batch axis.
            instruction: what the robot is to do.
            candidates: (N, K, A), robot units; the first is done where nothing is judged in time.
            deadline_ms: how long the server may think from when it has the request.

        Raises:
            RemoteError: the server cannot be reached or refused; a late answer is no error.
        """
        if "score" not in self._accepts:
            raise RemoteError(f"{self.url} scores nothing; start imagine serve with a judge.")
        if not 0 < deadline_ms < MOST_MS:
            raise RemoteError(f"deadline_ms is {deadline_ms}, expected more than 0 and less than a day.")
        message = self._message(observation) | {"prompt": instruction}
        message |= {"endpoint": "score", "candidates": np.asarray(candidates), "deadline_ms": float(deadline_ms)}
        answer = self._ask(message, patience=(float(deadline_ms) + SLACK_MS) / 1000)
        if answer is None:
            n = len(candidates)
            unknown = np.full(n, np.nan, np.float32)
            note = f"no answer within {deadline_ms:g} ms; the first of {n} candidates is preferred."
            return Ranking(0, True, unknown, unknown, unknown, {}, note)
        if (ranking := _ranking(answer, len(candidates))) is None:
            raise RemoteError(f"{self.url} answered a score request with {_what(answer)}, expected a ranking.")
        return ranking

    # ------------------------------------------------------------------ the connection
    def close(self) -> None:
        """Say goodbye; the next request connects anew."""
        self._stack.close()

    def __enter__(self) -> RemotePolicy:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    @property
    def takes_committed(self) -> bool:
        """Whether the server's policy goes on from what is committed."""
        return "committed" in self._accepts

    @property
    def _accepts(self) -> Sequence[str]:
        accepts = self.metadata.get("accepts")
        return accepts if isinstance(accepts, list) else ()

    @property
    def _has_memory(self) -> bool:
        return bool(self.metadata.get("needs_session_id"))

    def _session(self, episode: Hashable) -> str:
        """The name of an episode's session; a new one where it is not under way."""
        if episode not in self._sessions:
            self._begun += 1
            self._sessions[episode] = f"{self._name}-{self._begun}"
        return self._sessions[episode]

    def _message(self, observation: Mapping[str, np.ndarray], episode: Hashable = ("row", 0)) -> dict[str, Any]:
        """One observation, without batch axis, as the server wants it."""
        named: dict[str, Any] = {self.rename.get(k, k): v for k, v in observation.items() if k != "instruction"}
        if "instruction" in observation:
            named["prompt"] = bytes(observation["instruction"]).rstrip(b"\0").decode("utf-8", "replace")
        if self._has_memory:
            named["endpoint"] = "infer"
        if self._has_memory or "session_id" in self._accepts:
            named["session_id"] = self._session(episode)
        return named

    def _connect(self) -> ClientConnection:
        self._stack.close()
        self._owed = 0  # answers that nobody waits for any more; they come before the next one
        try:
            connection = self._stack.enter_context(
                connect(
                    self.url, compression=None, max_size=LARGEST_ANSWER, open_timeout=self.timeout, close_timeout=1,
                    ping_interval=None,  # openpi's server is deaf to pings while it thinks; our timeout notices instead
                    additional_headers=self._headers, proxy=None,
                )
            )  # fmt: skip
            self.metadata = unpack(_binary(connection.recv(self.timeout)))
        except RemoteError:
            raise
        except (OSError, WebSocketException, ValueError) as error:
            self._stack.close()
            said = str(error) or type(error).__name__
            raise RemoteError(
                f"no policy server answers at {self.url} ({said}), expected one at ws://HOST:PORT."
            ) from None
        if not isinstance(self.metadata, dict):
            raise RemoteError(f"{self.url} began with {_what(self.metadata)}, expected a dict; is it a policy server?")
        theirs = self.metadata.get("action_dim", self.action_dim)
        if self.action_dim is not None and theirs != self.action_dim:
            robot = str(self.metadata.get("embodiment", "another embodiment"))[:LONGEST_QUOTE]
            raise RemoteError(
                f"{self.url} serves {robot} with {str(theirs)[:40]} action values, expected {self.action_dim}."
            )
        return connection

    def _ask(self, message: Mapping[str, Any], patience: float | None = None) -> Any:
        """The answer to one message; None if ``patience`` seconds are given and it has not come by then."""
        data = pack(message)
        for attempt in range(2):
            try:
                return self._exchange(data, patience)
            except (ConnectionClosed, OSError) as error:
                if isinstance(error, TimeoutError) or attempt:
                    self._stack.close()
                    said = f"gave no answer in {self.timeout:g} s" if isinstance(error, TimeoutError) else "hung up"
                    raise RemoteError(f"policy server {self.url} {said}; look at its log.") from None
                self._connection = self._connect()
        raise AssertionError("unreachable")

    def _exchange(self, data: bytes, patience: float | None) -> Any:
        begin = time.monotonic()
        self._connection.send(data)
        self._owed += 1
        while self._owed:
            left = self.timeout if patience is None else max(0.0, begin + patience - time.monotonic())
            try:
                answer = self._connection.recv(left)
            except TimeoutError:
                if patience is None:
                    raise
                return None
            self._owed -= 1
        return unpack(_binary(answer))

    def _chunk(self, answer: Any) -> np.ndarray:
        """(K, A) float32 of an answer."""
        actions = answer.get("actions") if isinstance(answer, dict) else answer
        k = self.chunk_actions or 1
        if (
            not isinstance(actions, np.ndarray)
            or actions.dtype.kind not in "iuf"
            or actions.ndim != 2
            or len(actions) < k
            or actions.shape[1] != (self.action_dim or actions.shape[1])
        ):
            want = f"actions of shape (at least {k}, {self.action_dim or 'any'})"
            raise RemoteError(f"{self.url} answered {_what(actions)}, expected {want}; does it serve another robot?")
        if not np.isfinite(actions).all():
            raise RemoteError(f"{self.url} answered NaN or infinity, which no robot should be sent.")
        return np.ascontiguousarray(actions[: self.chunk_actions], np.float32)


def _binary(message: str | bytes) -> bytes:
    """What is not an error; a text frame is one, of several lines where it is a traceback."""
    if isinstance(message, bytes):
        return message
    last = (message.strip().splitlines() or ["it did not say why"])[-1]
    error = RemoteError(f"the policy server refused: {last[:LONGEST_QUOTE]}")
    error.add_note(message[-20 * LONGEST_QUOTE :])
    raise error


def _ranking(answer: Any, n: int) -> Ranking | None:
    """What a server says of ``n`` candidates, if that is what it says."""
    fields: list[Any] = (
        [answer.get(name) for name in Ranking.__dataclass_fields__] if isinstance(answer, dict) else [None] * 7
    )
    preferred, late, *columns, terms, note = fields
    if not isinstance(preferred, int) or not 0 <= preferred < n or not isinstance(terms, dict):
        return None
    if not all(isinstance(x, np.ndarray) and x.shape == (n,) for x in (*columns, *terms.values())):
        return None
    scores, spread, hallucination = columns
    return Ranking(preferred, bool(late), scores, spread, hallucination, terms, str(note)[:LONGEST_QUOTE])


def _what(value: Any) -> str:
    return f"an array {value.dtype} {value.shape}" if isinstance(value, np.ndarray) else f"a {type(value).__name__}"
