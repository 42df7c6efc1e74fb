"""A small keep-alive HTTP/1.1 client on asyncio protocols and httptools: the hot path to the engines.

A Pool talks to one server. It never queues: when all its connections are busy it says so, because waiting belongs to
the router, which knows other replicas. Errors are EngineDown when nothing was received (somebody else can be asked) and
EngineFailed when the answer broke in the middle. Works on uvloop and on plain asyncio.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterable

from tokenworks.core.errors import EngineDown, EngineFailed
from tokenworks.core.files import socket_address
from tokenworks.core.steps import in_task
from tokenworks.engine.pace import Pace
from tokenworks.engine.reports import NothingCame
from tokenworks.engine.server import Server
from tokenworks.engine.wire import Connection, Response

__all__ = ["Headers", "Pool", "Response", "next_block", "read"]

CONNECT_S = 5.0
FIRST_BYTE_S = 600.0
"""llama.cpp answers nothing, not even a status, before the first token: its queue and the prefill are in this."""
IDLE_S = 120.0
"""Between two pieces of an answer."""
KEEP_S = 4.0
"""An unused connection is not trusted for longer; llama.cpp closes it after 5 s."""
CONNECTIONS_MAX = 128
CLOSE_ROUNDS_MAX = 100
"""Rounds of the event loop in which closed sockets may say goodbye."""

Headers = Iterable[tuple[str, str]]


async def next_block(response: Response) -> bytes:
    """Body bytes as soon as there are some; empty at the end. Raises as ``Response.take``."""
    while (block := response.take()) is None:
        await response.more()
    return block


async def read(response: Response, bytes_max: int) -> bytes:
    """The whole body. Raises EngineFailed when it is larger than ``bytes_max`` or breaks off."""
    parts, size = list[bytes](), 0
    try:
        while block := await next_block(response):
            parts.append(block)
            size += len(block)
            if size > bytes_max:
                raise EngineFailed(f"The engine's answer is larger than {bytes_max} bytes.")
    finally:
        response.abort()  # nothing happens when the answer is complete
    return parts[0] if len(parts) == 1 else b"".join(parts)


class Pool:
    """Keep-alive connections to one server, at most ``connections_max``, none of them shared."""

    def __init__(
        self,
        server: Server,
        *,
        connections_max: int = CONNECTIONS_MAX,
        headers: Headers = (),
        connect_s: float = CONNECT_S,
        first_byte_s: float = FIRST_BYTE_S,
        idle_s: float = IDLE_S,
        keep_s: float = KEEP_S,
    ) -> None:
        self._server = server
        self.connections_max = connections_max
        self._connect_s, self._first_byte_s, self._idle_s, self._keep_s = connect_s, first_byte_s, idle_s, keep_s
        self._fixed = _lines([("host", server.authority), *headers])
        self._open: set[Connection] = set()
        self._closing: set[Connection] = set()
        self._free: list[Connection] = []
        self._connecting = 0
        self._closed = False
        self.pace = Pace()

    def head(self, method: str, path: str, headers: Headers = ()) -> bytes:
        """The head of a request, for ``ask``: made once, sent often."""
        start = _checked(f"{method} {path} HTTP/1.1") + "\r\n"
        return (start + self._fixed + _lines(headers)).encode("latin-1")

    async def request(self, method: str, path: str, body: bytes = b"", headers: Headers = ()) -> Response:
        """As ``ask``, with a head that is used once."""
        return await self.ask(self.head(method, path, headers), body)

    async def ask(self, head: bytes, body: bytes = b"") -> Response:
        """Send a request with such a head and wait for the answer's.

        Raises EngineDown when it cannot connect, all connections are busy or nothing is received, EngineFailed when
        the answer's head is broken. A kept connection that turns out to be closed is replaced once by a fresh one.
        """
        if body or head.startswith(b"POST"):
            head = b"%bcontent-length: %d\r\n\r\n%b" % (head, len(body), body)
        else:
            head += b"\r\n"
        connection = self._take() or await self._connect()
        while True:
            response = connection.send(head, self._idle_s)
            try:
                while not response.status:
                    response.check()
                    await connection.wait(self._first_byte_s)
            except NothingCame:
                if connection.served == 1:
                    raise
            except BaseException:
                response.abort()
                raise
            else:
                return response
            connection = await self._connect()

    async def close(self) -> None:
        """Close every connection at once; answers in the middle break."""
        self._closed = True
        for connection in list(self._open):
            kind = EngineFailed if connection.heard else EngineDown
            connection.fail(kind("The connection was closed on our side."))
        for _ in range(CLOSE_ROUNDS_MAX):  # leave no half-closed socket to the garbage collector
            if not self._closing:
                break
            await asyncio.sleep(0)

    def heard(self) -> int | None:
        """Bytes that have come of the answers awaited now; while it stays the same the server is silent. None: no
        answer is awaited, or it is we who do not read.
        """
        awaited = [connection.heard for connection in self._open if connection.awaited]
        return sum(awaited) if awaited else None

    def _take(self) -> Connection | None:
        while self._free:
            connection = self._free.pop()
            if connection.free_s() < self._keep_s and connection.alive:
                return connection
            connection.drop()
        return None

    async def _connect(self) -> Connection:
        await in_task()  # the timeout below needs one
        self._check_open()
        if len(self._open) + self._connecting >= self.connections_max:
            if not self._free:
                raise EngineDown(f"All {self.connections_max} connections to the engine are in use.")
            self._free.pop().drop()
        self._connecting += 1
        try:
            async with asyncio.timeout(self._connect_s):
                connection = await self._reach()
        except (OSError, TimeoutError) as error:
            reason = getattr(error, "strerror", None) or type(error).__name__
            raise EngineDown(f"Cannot connect to the engine at {self._server}: {reason}.") from error
        finally:
            self._connecting -= 1
        try:
            self._check_open()
        except EngineDown:
            connection.drop()
            raise
        return connection

    async def _reach(self) -> Connection:
        loop, (host, port, tls, socket) = asyncio.get_running_loop(), self._server
        if socket is None:
            return (await loop.create_connection(self._new, host, port, ssl=tls))[1]
        with socket_address(socket) as address:
            return (await loop.create_unix_connection(self._new, address))[1]

    def _check_open(self) -> None:
        if self._closed:
            raise EngineDown("The connection to the engine was closed on our side.")

    def _new(self) -> Connection:
        return Connection(self)

    # What connections report.

    def opened(self, connection: Connection) -> None:
        self._open.add(connection)

    def release(self, connection: Connection, keep: bool) -> None:
        if keep and not self._closed:
            self._free.append(connection)
        else:
            connection.drop()

    def closing(self, connection: Connection) -> None:
        self._remove(connection)
        self._closing.add(connection)

    def lost(self, connection: Connection) -> None:
        self._remove(connection)
        self._closing.discard(connection)

    def _remove(self, connection: Connection) -> None:
        self._open.discard(connection)
        if connection in self._free:
            self._free.remove(connection)


def _checked(line: str) -> str:
    if "\r" in line or "\n" in line:
        raise ValueError("a line of an HTTP head cannot hold a line break")
    return line


def _lines(headers: Headers) -> str:
    return "".join(_checked(f"{name}: {value}") + "\r\n" for name, value in headers)
