"""The connections of a server: how many there may be, what each may hold, and how each ends."""

from __future__ import annotations

import asyncio
import socket
import time
from collections.abc import Coroutine
from typing import Any

from websockets.asyncio.server import ServerConnection
from websockets.exceptions import ConnectionClosed
from websockets.frames import CloseCode
from websockets.protocol import State

from imagine.types import ImagineError

PER_BYTE = 2e-8
"""Seconds of parsing that a byte may take; what takes more are floods of pings and of empty messages."""
MOST_CREDIT, LEAST_CREDIT = 0.05, 0.002
"""Seconds of parsing that a connection may save up; with how many it is read from by large pieces."""
LARGE, SMALL = 2**16, 2**12
"""Bytes read at a time."""
PARSING_COST = 50.0
"""A connection that overdraws its time is not read from for this many times as long."""


class Room:
    """The connections of a server: how many there are, and how many there may be.

    Attributes:
        clients: connections at most; one more is refused.
        send_timeout: seconds after which a client that does not read what it is sent is hung up on.
    """

    def __init__(self, clients: int, send_timeout: float) -> None:
        self.clients, self.send_timeout = clients, send_timeout
        self.sockets: set[BoundedConnection] = set()

    @property
    def is_full(self) -> bool:
        """Whether as many clients are connected as may be; those that have not said hello do not count."""
        return sum(socket.state is State.OPEN for socket in self.sockets) >= self.clients

    @property
    def is_overrun(self) -> bool:
        """Whether there are so many sockets that no more hellos are waited for."""
        return len(self.sockets) > 4 * self.clients

    def connection(self, *args: Any, **options: Any) -> ServerConnection:
        """A new one, as ``websockets`` makes them."""
        return BoundedConnection(self, *args, **options)


class BoundedConnection(ServerConnection):
    """A connection that holds little, and takes little of the thread that serves all.

    While its client does not read, it is not read from, and not for long; nor while its client has sent what takes
    longer to parse than messages do.
    """

    def __init__(self, room: Room, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self.room = room
        self._hanging_up: asyncio.TimerHandle | None = None
        self._waiting: asyncio.TimerHandle | None = None
        self._credit = LEAST_CREDIT  # a hello takes some

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Called by asyncio."""
        super().connection_made(transport)
        self.room.sockets.add(self)
        self.recv_messages.resume = self._resume
        self.transport.max_size = SMALL  # type: ignore[attr-defined]
        if self.room.is_overrun:
            self.hang_up()

    def data_received(self, data: bytes) -> None:
        """Called by asyncio."""
        begin = time.thread_time()
        super().data_received(data)
        self._credit = min(MOST_CREDIT, self._credit + PER_BYTE * len(data) + begin - time.thread_time())
        self.transport.max_size = LARGE if self._credit > LEAST_CREDIT else SMALL  # type: ignore[attr-defined]
        if self._credit < 0 and self._waiting is None and self.state is State.OPEN:
            self.transport.pause_reading()
            self._waiting = self.loop.call_later(-PARSING_COST * self._credit, self._read_on)
            self._credit = LEAST_CREDIT  # a hello takes some

    def _read_on(self) -> None:
        """Read again, if nothing else keeps from it."""
        self._waiting = None
        self._resume()

    def _resume(self) -> None:
        if self._waiting is None and not self.paused and not self.recv_messages.paused:
            self.transport.resume_reading()

    def connection_lost(self, exc: Exception | None) -> None:
        """Called by asyncio."""
        self.room.sockets.discard(self)
        for timer in (self._hanging_up, self._waiting):
            if timer is not None:
                timer.cancel()
        super().connection_lost(exc)
        # What it holds would stay until the next garbage collection: bytes and messages not read, and the newest one.
        self.protocol.reader.buffer.clear()
        self.recv_messages.frames.queue.clear()
        self.protocol.parser.close()

    def send_data(self) -> None:
        """Called by websockets: send what the protocol answers, unless nobody is there to take it."""
        if self.transport.is_closing():
            self.protocol.data_to_send()  # asyncio would log every write
        else:
            super().send_data()

    def pause_writing(self) -> None:
        """Called by asyncio when more waits to be sent than a few answers, pongs among them."""
        super().pause_writing()
        self.transport.pause_reading()
        self._hanging_up = self.loop.call_later(self.room.send_timeout, self.hang_up)

    def resume_writing(self) -> None:
        """Called by asyncio once the client has read most of it."""
        if self._hanging_up is not None:
            self._hanging_up.cancel()
        super().resume_writing()
        self._resume()

    def hang_up(self) -> None:
        """End the connection at once, without a word."""
        self.transport.abort()


async def unless_left(connection: ServerConnection, answering: Coroutine[Any, Any, str | bytes]) -> str | bytes:
    """The answer; work for it is not started, or is given up, once the client has left."""
    work, left = asyncio.ensure_future(answering), asyncio.ensure_future(connection.wait_closed())
    await asyncio.wait({work, left}, return_when=asyncio.FIRST_COMPLETED)
    left.cancel()
    if not work.done():
        work.cancel()
        await asyncio.wait({work})
        raise connection.protocol.close_exc
    try:
        return work.result()
    finally:
        del work, answering  # a refusal knows this frame: it would keep its message until the next garbage collection


async def leave(connection: ServerConnection) -> None:
    """Tell a client that the server stops."""
    await connection.close(CloseCode.GOING_AWAY, "the server stops")


async def last_words(connection: ServerConnection, said: str) -> None:
    """Send a traceback, and end the connection."""
    try:
        await connection.send(said)
        await connection.close(CloseCode.INTERNAL_ERROR, "the server failed; the previous frame holds the traceback")
    except ConnectionClosed:
        pass  # nobody is left to hear it


def listen(host: str, port: int) -> socket.socket:
    """A socket that takes connections at an address.

    Raises:
        ImagineError: the address cannot be had.
    """
    try:
        return socket.create_server((host, port), family=socket.AF_INET6 if ":" in host else socket.AF_INET)
    except OSError as error:
        raise ImagineError(
            f"cannot listen on {host}:{port} ({error.strerror or error}); choose another address."
        ) from None
