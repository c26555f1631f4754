"""Serves a session of play to one page of a browser on this machine.

The page is one file; it then talks over a websocket. What it asks is a JSON object with ``do``, answered by one binary
message: four bytes that give the length of a JSON object, that object, and frames (F, H, W, 3) uint8 one after the
other. What judge and simulator say comes later, by itself. A refused request is answered by ``{"error": sentence}``.

Nobody else gets in: it listens on loopback alone, the URL holds a token, and ``Host`` and ``Origin`` must be ours, so
that neither another web page nor a name that is bound anew can drive it. The newest page takes over from an older one.
"""

from __future__ import annotations

import asyncio
import contextlib
import hmac
import json
import secrets
import socket
import threading
from collections.abc import Callable
from concurrent.futures import Future, wait
from http import HTTPStatus
from typing import Any
from urllib.parse import parse_qs, urlsplit

import numpy as np
from websockets.asyncio.server import ServerConnection, serve
from websockets.datastructures import Headers
from websockets.exceptions import ConnectionClosed
from websockets.http11 import Request, Response
from websockets.typing import Origin

from imagine.agents.play.requests import Requests
from imagine.agents.play.session import PATIENCE
from imagine.policy.connections import listen
from imagine.policy.worker import Worker
from imagine.types import ImagineError

LONGEST_REQUEST = 2**16
"""Bytes of a request."""
POLICY = (
    "default-src 'none'; script-src 'nonce-{nonce}'; style-src 'unsafe-inline'; img-src 'self' data:; "
    "connect-src 'self' ws://{host}; frame-ancestors 'none'; base-uri 'none'; form-action 'none'"
)
"""What the page may do: load nothing, and speak to its own server."""


class PlayServer:
    """Listens from the moment it is made; use it as a context manager or :meth:`close` it.

    Attributes:
        token: that every request must bring.
        answered: requests so far.
    """

    def __init__(self, requests: Requests, page: str, port: int = 0) -> None:
        """Bind to loopback and begin to serve in the background.

        Args:
            requests: answers what the page asks, one after the other in one thread.
            page: HTML whose scripts have the nonce ``NONCE``.
            port: 0 for any that is free.

        Raises:
            ImagineError: the port cannot be had.
        """
        self.requests, self.page, self.token, self.answered = requests, page, secrets.token_urlsafe(24), 0
        self._worker = Worker()
        listening = listen("127.0.0.1", port)
        self.port = listening.getsockname()[1]
        self._hosts = {f"{name}:{self.port}" for name in ("127.0.0.1", "localhost")}
        self._driver: ServerConnection | None = None
        self._tasks: set[asyncio.Task[None]] = set()
        started: Future[None] = Future()
        run = lambda: asyncio.run(self._serve(listening, started))  # noqa: E731
        self._thread = threading.Thread(target=run, name="play", daemon=True)
        self._thread.start()
        started.result()

    @property
    def url(self) -> str:
        """What to open in a browser."""
        return f"http://127.0.0.1:{self.port}/?token={self.token}"

    def close(self) -> None:
        """Stop listening, and close the page's connection and the session."""
        if self._thread.is_alive():
            self._loop.call_soon_threadsafe(self._stop.set)
            self._thread.join()
        wait([self._worker.submit(self.requests.session.close)], timeout=2 * PATIENCE)
        self._worker.shutdown()

    def __enter__(self) -> PlayServer:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    async def _serve(self, listening: socket.socket, started: Future[None]) -> None:
        self._loop, self._stop = asyncio.get_running_loop(), asyncio.Event()
        async with serve(
            self._converse, sock=listening, compression=None, process_request=self._welcome,
            max_size=LONGEST_REQUEST, max_queue=8, close_timeout=1,
            origins=[Origin(f"http://{host}") for host in self._hosts],
        ):  # fmt: skip
            started.set_result(None)
            await self._stop.wait()

    def _welcome(self, connection: ServerConnection, request: Request) -> Response | None:
        """The page, or a refusal; None lets a websocket be opened."""
        url = urlsplit(request.path)
        if request.headers.get_all("Host") not in [[host] for host in self._hosts]:
            return _answer(HTTPStatus.FORBIDDEN, "this server answers to 127.0.0.1 alone.\n")
        given = parse_qs(url.query).get("token", [""])[-1]
        if not hmac.compare_digest(given.encode(), self.token.encode()):
            return _answer(
                HTTPStatus.FORBIDDEN, "the token is missing or wrong; open the URL that imagine play shows.\n"
            )
        if url.path == "/play":
            return None
        if url.path != "/":
            return _answer(HTTPStatus.NOT_FOUND, "there is nothing here; open the URL that imagine play shows.\n")
        nonce = secrets.token_urlsafe(16)
        allowed = POLICY.format(nonce=nonce, host=request.headers["Host"])
        return _answer(HTTPStatus.OK, self.page.replace("NONCE", nonce), "text/html", allowed)

    async def _converse(self, connection: ServerConnection) -> None:
        before, self._driver = self._driver, connection
        if before is not None:
            await before.close(1000, "another page has taken over")
        try:
            await self._send(connection, *await self._asked(self.requests.hello))
            async for message in connection:
                if self._driver is not connection:
                    return
                await self._answer(connection, message)
        except ConnectionClosed:
            pass
        finally:
            if self._driver is connection:
                self._driver = None

    async def _answer(self, connection: ServerConnection, message: str | bytes) -> None:
        """Answer one request, and say later what is known later."""
        asked: Any = None
        try:
            asked = _request(message)
            answer, frames, promises = await self._asked(self.requests.answer, asked)
        except ImagineError as refusal:
            answer, frames, promises = {"error": str(refusal)[:500]}, None, []
        self.answered += 1
        if isinstance(asked, dict) and isinstance(asked.get("id"), int):
            answer["id"] = asked["id"]
        await self._send(connection, answer, frames, [])
        self._promise(connection, promises)

    def _promise(self, connection: ServerConnection, promises: list[Any]) -> None:
        for promise in promises:
            task = self._loop.create_task(self._later(connection, *promise))
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)

    async def _later(
        self, connection: ServerConnection, future: Future[Any], tell: Callable[[Any], tuple[dict[str, Any], Any]]
    ) -> None:
        try:
            answer, frames = tell(await asyncio.shield(asyncio.wrap_future(future)))  # others wait for it too
        except Exception as error:  # a judge that is away, a simulator that fails: the dream goes on without
            answer, frames = {"error": f"{type(error).__name__}: {error}"[:500]}, None
        with contextlib.suppress(ConnectionClosed):
            await self._send(connection, answer, frames, [])

    async def _asked(self, call: Callable[..., Any], *args: Any) -> Any:
        return await asyncio.wrap_future(self._worker.submit(call, *args))

    async def _send(
        self, connection: ServerConnection, answer: dict[str, Any], frames: np.ndarray | None, promises: list[Any]
    ) -> None:
        head = json.dumps(answer, allow_nan=False).encode()
        body = b"" if frames is None else np.ascontiguousarray(frames).tobytes()
        await connection.send(len(head).to_bytes(4, "little") + head + body)
        self._promise(connection, promises)


def _request(message: str | bytes) -> dict[str, Any]:
    try:
        found = json.loads(message)
    except (ValueError, RecursionError):
        found = None
    if not isinstance(found, dict):
        raise ImagineError("got a request that is no JSON object, expected {'do': ...}.")
    return found


def _answer(status: HTTPStatus, text: str, kind: str = "text/plain", allowed: str = "default-src 'none'") -> Response:
    data = text.encode()
    headers = Headers(
        {
            "Content-Type": f"{kind}; charset=utf-8",
            "Content-Length": str(len(data)),
            "Content-Security-Policy": allowed,
            "Cache-Control": "no-store",
            "Referrer-Policy": "no-referrer",
            "X-Content-Type-Options": "nosniff",
            "Cross-Origin-Resource-Policy": "same-origin",
            "Connection": "close",
        }
    )
    return Response(status.value, status.phrase, headers, data)
