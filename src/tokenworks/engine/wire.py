"""One connection to an engine and the answer that arrives on it; ``http.Pool`` keeps and hands out connections.

The parser feeds a Response; the Response holds bytes until they are read and stops the socket when its reader lags.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable
from typing import Protocol

import httptools

from tokenworks.core.errors import EngineDown, EngineFailed
from tokenworks.core.post import Posted, posted
from tokenworks.core.steps import Waiter, wait
from tokenworks.engine.pace import BY_BUFFER, Pace
from tokenworks.engine.reports import NothingCame

DETACHED_S = 1.0
"""How long the end of an answer that nobody reads may take before its connection is given up."""
HEAD_BYTES_MAX = 65_536
HEADERS_MAX = 128
TIMER_SLACK_S = 1.0
"""A timer may stand this much too late: timeouts need not be sharper."""
BUFFER_BYTES_MAX = 262_144
"""Body bytes waiting for a slow reader; beyond that the socket is no longer read."""
Taker = Callable[[list[bytes]], None]
"""Takes the body bytes of one packet, in as many pieces as HTTP cut them into."""


class Keeper(Protocol):
    """Who is told what becomes of a connection: the pool."""

    pace: Pace

    def opened(self, connection: Connection) -> None: ...
    def release(self, connection: Connection, keep: bool) -> None: ...
    def closing(self, connection: Connection) -> None: ...
    def lost(self, connection: Connection) -> None: ...


class Response:
    """One answer: status and headers are there, the body comes. Read it to its end or ``abort()`` it."""

    def __init__(self, connection: Connection, idle_s: float) -> None:
        self.status = 0
        self.headers: list[tuple[bytes, bytes]] = []
        """As sent, names in lower case."""
        self.idle_s = idle_s
        self._connection: Connection | None = connection
        self._blocks: deque[bytes] = deque()
        self._size = 0
        self._error: Exception | None = None
        self._detached = False
        self._taker: Taker | None = None

    def header(self, name: bytes) -> bytes:
        """The first header of that lower-case name, or nothing."""
        return next((value for known, value in self.headers if known == name), b"")

    @property
    def complete(self) -> bool:
        """The whole answer has arrived (it may not have been read yet)."""
        return self._connection is None and self._error is None

    def take(self) -> bytes | None:
        """The body bytes that have come since the last call; empty at the end, None: wait for ``more``.

        Raises EngineFailed when the answer broke off, after everything that did arrive was handed out.
        """
        if not self._blocks:
            self.check()
            return b"" if self._connection is None else None
        block = self._blocks.popleft() if len(self._blocks) == 1 else b"".join(self._blocks)
        self._blocks.clear()
        self._size = 0
        self.resume(BY_BUFFER)
        return block

    def more(self) -> Waiter:
        """Await it: until something has come, or ``wake`` is called. Only for an answer that is not complete."""
        assert self._connection is not None
        return self._connection.wait(self.idle_s)

    def receive(self, taker: Taker) -> None:
        """From now on hand the body to ``taker`` inside the socket's own callback. Whoever waits is woken at the end.

        A taker that raises an EngineFailed breaks the answer with it.
        """
        self._taker = taker
        if self._blocks:
            blocks = list(self._blocks)
            self._blocks.clear()
            self._size = 0
            self.resume(BY_BUFFER)
            self._give(blocks, taker)

    def _give(self, blocks: list[bytes], taker: Taker) -> None:
        try:
            taker(blocks)
        except EngineFailed as error:
            self.abort(error)

    def wake(self) -> None:
        """Let whoever waits for ``more`` look again."""
        if self._connection is not None:
            self._connection.wake()

    def pause(self, why: int) -> None:
        """Read no more of the socket until every reason not to is gone."""
        if self._connection is not None:
            self._connection.pause(why)

    def resume(self, why: int) -> None:
        """This reason is gone."""
        if self._connection is not None:
            self._connection.resume(why)

    def abort(self, error: Exception | None = None) -> None:
        """Close the socket at once, so that the engine stops working on it. No effect on a complete answer."""
        connection, self._connection = self._connection, None
        if connection is not None:
            if self._error is None:
                self._error = error or EngineFailed("The answer was given up.")
            connection.drop()

    def detach(self) -> None:
        """Nobody reads on, but the end is near: keep the connection for the next request if it comes soon."""
        self._detached = True
        self._blocks.clear()
        self._size = 0
        if self._connection is not None:
            self._connection.resume(~0)
            self._connection.abort_later(self, DETACHED_S)

    def check(self) -> None:
        """Raise what broke the answer, if something did."""
        if self._error is not None:
            raise self._error

    def push(self, blocks: list[bytes]) -> bool:
        """Called by the connection with body bytes; True: enough for now."""
        if self._detached:
            return False
        if self._taker is not None:
            self._give(blocks, self._taker)
            return False
        self._blocks.extend(blocks)
        self._size += sum(map(len, blocks))
        return self._size > BUFFER_BYTES_MAX

    @property
    def taken(self) -> bool:
        """Somebody takes the body as it comes, and need not be woken for it."""
        return self._taker is not None

    def end(self, error: Exception | None) -> None:
        """Called by the connection when no more comes."""
        self._connection = None
        self._error = error


class Connection(asyncio.Protocol):
    """One socket, and the parser of what arrives on it. Serves one response at a time."""

    def __init__(self, pool: Keeper) -> None:
        self._pool = pool
        self._loop = asyncio.get_running_loop()
        self._transport: Posted | None = None
        self._parser = httptools.HttpResponseParser(self)
        self._response: Response | None = None
        self._waiter: Waiter | None = None
        self._parsing = self._woken = False
        self._pieces: list[bytes] = []
        """Of the body, in the packet that is parsed."""
        self._deadline = 0.0
        self.idle_s = 0.0
        self._timer: asyncio.TimerHandle | None = None
        self._paused = 0
        self._finished = False
        self._keep = False
        self._head_bytes = 0
        self._headers: list[tuple[bytes, bytes]] = []
        self.served = 0
        self._free_since = self._packet_at = 0.0

    # What the pool and the response ask for.

    @property
    def alive(self) -> bool:
        """Nobody has begun to close it, as far as we know."""
        return self._transport is not None and not self._transport.is_closing()

    def free_s(self) -> float:
        """How long it has had nothing to do."""
        return self._loop.time() - self._free_since

    @property
    def awaited(self) -> bool:
        """Somebody waits for the server, and not the server for us."""
        return self._response is not None and not self._paused

    @property
    def heard(self) -> int:
        """Bytes of the present answer so far."""
        return self._head_bytes

    def send(self, request: bytes, idle_s: float) -> Response:
        """Write a request; the response fills as the answer comes."""
        assert self._transport is not None
        self._response = response = Response(self, idle_s)
        self.idle_s = idle_s
        self._finished, self._head_bytes, self._headers = False, 0, []
        self.served += 1
        self._transport.write(request)
        return response

    def wait(self, seconds: float) -> Waiter:
        """Await it: until something happens. A time that runs out breaks the connection and is the response's error."""
        self._deadline = self._loop.time() + seconds
        # One timer per connection, re-armed only when it fires too early: a wait costs no timer of its own. A timer
        # that stands too late (after a longer wait) is replaced.
        if self._timer is not None and self._timer.when() > self._deadline + TIMER_SLACK_S:
            self._timer.cancel()
            self._timer = None
        if self._timer is None:
            self._timer = self._loop.call_at(self._deadline, self._check)
        self._waiter = waiter = wait()
        return waiter

    def pause(self, why: int) -> None:
        """One more reason not to read the socket."""
        if not self._paused and self._transport is not None and self.alive:
            self._transport.pause_reading()
        self._paused |= why

    def resume(self, why: int) -> None:
        """One reason less; without any the socket is read again."""
        before, self._paused = self._paused, self._paused & ~why
        if before and not self._paused and self._transport is not None and self.alive:
            self._deadline = self._loop.time() + self.idle_s
            self._transport.resume_reading()

    def drop(self) -> None:
        """Close at once, without a word to the response."""
        self._response = None
        self._pool.closing(self)
        if self._transport is not None:
            self._transport.abort()
        self.wake()

    def abort_later(self, response: Response, seconds: float) -> None:
        """Give the answer up if its end has not come by then."""
        self._loop.call_later(seconds, response.abort)

    # What asyncio says.

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = posted(transport, self._loop)
        self._pool.opened(self)

    def data_received(self, data: bytes) -> None:
        response = self._response
        if response is None:  # a server that speaks unasked cannot be trusted with the next request
            self.drop()
            return
        self._head_bytes += len(data)
        broken = False
        self._parsing = True
        try:
            self._parser.feed_data(data)
        except (httptools.HttpParserError, httptools.HttpParserUpgrade):
            broken, self._keep = not self._finished, False
        pieces, self._pieces = self._pieces, []
        if pieces and response.push(pieces):
            self.pause(BY_BUFFER)
        self._parsing = False
        if broken:
            self.fail(EngineFailed("The engine's answer is not HTTP, or its headers are too long."))
            return
        if self._response is None:  # whoever took the pieces gave the answer up
            self.wake()
            return
        if self._finished:
            self._finish()
        elif not response.status and self._head_bytes > HEAD_BYTES_MAX:
            self.fail(EngineFailed("The engine's headers are too long."))
        elif response.taken and not self._woken:
            now = self._loop.time()
            if not self._paused and self._pool.pace.too_fast(self._packet_at, now):
                self._pool.pace.slow(self, self._loop)
            self._packet_at, self._deadline = now, now + self.idle_s
        else:
            self.wake()

    def connection_lost(self, exc: Exception | None) -> None:
        if self._timer is not None:
            self._timer.cancel()
        self._end_response(exc)
        self._pool.lost(self)

    def _end_response(self, exc: Exception | None) -> None:
        response = self._response
        if response is None:
            return
        if not self._head_bytes:
            self.fail(NothingCame())
        elif response.status and exc is None and self._ends_with_connection(response):
            self._keep = False
            self._finish()
        else:
            self.fail(EngineFailed("The engine's answer broke off."))

    # What the parser says.

    def on_header(self, name: bytes, value: bytes) -> None:
        if len(self._headers) >= HEADERS_MAX:
            raise ValueError("too many headers")
        self._headers.append((name.lower(), value))

    def on_headers_complete(self) -> None:
        if self._finished or self._response is None:
            raise ValueError("an answer to no question")
        status = self._parser.get_status_code()
        if status >= 200:
            self._response.status = status
            self._response.headers = list(self._headers)

    def on_body(self, body: bytes) -> None:
        if self._response is not None:
            self._pieces.append(body)

    def on_message_complete(self) -> None:
        if self._response is not None and self._response.status:
            self._finished = True
            self._keep = self._parser.should_keep_alive()
        else:  # 1xx: the answer itself is still to come
            self._headers = []

    # Inside.

    @staticmethod
    def _ends_with_connection(response: Response) -> bool:
        return not response.header(b"content-length") and not response.header(b"transfer-encoding")

    def _finish(self) -> None:
        response, self._response = self._response, None
        assert response is not None
        self.resume(~0)
        response.end(None)
        self._free_since = self._loop.time()
        self._pool.release(self, self._keep)
        self.wake()

    def fail(self, error: Exception) -> None:
        """Close at once; the response breaks with ``error``."""
        response = self._response
        if response is not None:
            response.end(error)
        self.drop()

    def wake(self) -> None:
        """Let whoever waits look again: at once, but not before the parser has seen all that has come."""
        self._woken = self._parsing
        if self._waiter is not None and not self._parsing:
            self._waiter.set()

    def _check(self) -> None:
        self._timer = None
        if self._waiter is None or self._waiter.done or self._response is None:
            return
        if self._loop.time() < self._deadline:
            self._timer = self._loop.call_at(self._deadline, self._check)
        elif self._paused:  # it is we who do not listen
            self._timer = self._loop.call_later(self.idle_s, self._check)
        elif self._head_bytes:
            self.fail(EngineFailed("The engine fell silent in the middle of its answer."))
        else:
            self.fail(EngineDown("The engine did not answer in time."))
