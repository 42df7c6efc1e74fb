"""The fast lane: uvicorn's own protocol, with the token routes short-cut past ASGI.

A connection serves one request after the other. Requests for tokens become a ``Cycle`` (``cycle.py``); every other
request goes the way that uvicorn has for it. Pipelining, keep-alive, limits and shutdown are one mechanism for both.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections import deque
from collections.abc import Callable, Coroutine
from functools import partial
from typing import Any, ClassVar

import httptools
from mypy_extensions import mypyc_attr
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from tokenworks.agents.awake import Awake
from tokenworks.agents.cycle import Cycle
from tokenworks.agents.heads import BODY_BYTES_MAX, TOKEN_ROUTES, Head, bearer, deferrable, header, path_of, remembered
from tokenworks.agents.life import House, serve
from tokenworks.agents.once import Once
from tokenworks.core.errors import BadRequest, BodyTooLarge, TimedOut, TokenworksError, UnknownKey
from tokenworks.core.post import posted
from tokenworks.core.steps import Steps

HEAD_BYTES_MAX = 65_536
HEADERS_MAX = 128
RECEIVE_S = 30.0
"""How long a client may take to send a whole request, from its first byte on."""
KEEP_S = 75.0
"""How long an idle connection is kept."""
PROBE_S = 0.2
"""Between the two signs of life that are sent to a client that has closed its side while it waits."""
LINGER_S = 1.0
"""How long a client may go on sending after its last answer."""
_CONTINUE = b"HTTP/1.1 100 Continue\r\n\r\n"
_SIGN = b": still here\n\n"  # a comment in a stream of events


@mypyc_attr(native_class=False)
class Lane(HttpToolsProtocol):
    """One client connection."""

    cycle: Any
    """The request that is answered, or was last; None before the first."""
    pipeline: deque[tuple[Any, Any]]
    """Those that wait, the newest on the left, each with uvicorn's app."""
    _date: ClassVar[tuple[object, bytes]] = (None, b"")

    def __init__(self, house: House, once: Once, awake: Awake, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._house, self._once, self._awake = house, once, awake
        self._latest: Any = None
        """The request that came last, once its head is there."""
        self._arriving = self._deaf = self._ends = self._hung_up = self._going_on = False
        self._head_bytes = 0
        self._unread = -1
        """Bytes that a slow client had still to take at the last look."""
        self._packet = b""
        """That the latest request began, if it began with one."""
        self._head: Head | None = None
        self._deadline = self.loop.time() + RECEIVE_S
        self._timer: asyncio.TimerHandle | None = self.loop.call_later(RECEIVE_S, self._look)

    def date(self) -> bytes:
        """The header lines of every answer; uvicorn makes them once a second."""
        headers = self.server_state.default_headers
        if Lane._date[0] is not headers:
            Lane._date = (headers, b"".join([name + b": " + value + b"\r\n" for name, value in headers]))
        return Lane._date[1]

    # What the loop says.
    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._mail = posted(transport, self.loop)
        super().connection_made(self._mail)  # type: ignore[arg-type]  # all of a transport that is asked for

    def data_received(self, data: bytes) -> None:
        if self._deaf:
            return
        if not self._arriving:
            head = self._head
            if head and not self._busy() and not self.flow.write_paused and (body := head.body(data)) is not None:
                self._again(head, body)
                return
            self._packet = data
        self._head_bytes += len(data)
        try:
            self.parser.feed_data(data)
        except httptools.HttpParserUpgrade as upgrade:
            self._ignore_upgrade(data[upgrade.args[0] :])
            return
        except (httptools.HttpParserError, httptools.HttpParserInvalidURLError, ValueError):
            self._refuse(BadRequest("this is not HTTP, or its head is too large"))
            return
        if self._head_bytes > HEAD_BYTES_MAX:
            self._refuse(BadRequest("the head of the request is too large"))

    def _again(self, head: Head, body: bytes) -> None:
        """A request like the one before it."""
        desk = self._house.desk
        if head.identity is None or not desk.knows(head.identity):
            head.identity = None
            with contextlib.suppress(UnknownKey):
                head.identity = desk.identify(head.key)
        self.cycle = cycle = Cycle(self, head.endpoint, [], keep_alive=True, chunked=True)
        cycle.more_body = False
        self._run(
            cycle, serve(self._house, head.endpoint, head.identity or head.key, body, cycle, deferrable=head.deferrable)
        )

    def _ignore_upgrade(self, rest: bytes) -> None:
        """The parser leaves the body to a protocol that we do not speak: let it read the request without the wish."""
        method = self.parser.get_method()
        if method == b"CONNECT":
            self._refuse(BadRequest("this is no proxy"))
            return
        lines = [b"%b: %b\r\n" % header for header in self.headers if header[0] != b"upgrade"]
        version = self.parser.get_http_version().encode()
        self.parser = httptools.HttpRequestParser(self)
        self.data_received(b"%b %b HTTP/%b\r\n%b\r\n%b" % (method, self.url, version, b"".join(lines), rest))

    def eof_received(self) -> bool:  # type: ignore[override]  # True keeps our side open
        """The client has closed its side. It may still read; one that is gone tells when something is sent."""
        if not self._last():
            self._mail.flush()  # the loop closes now
            return False
        if isinstance(self.cycle, Cycle):
            self._probe(self.cycle, 2)
        return True

    def _probe(self, cycle: Cycle, left: int) -> None:
        if not left or cycle.response_complete or self.transport.is_closing():
            return
        if cycle.started:
            cycle.send(_SIGN)
        elif cycle.chunked:
            self.transport.write(_CONTINUE)
        self.loop.call_later(PROBE_S, self._probe, cycle, left - 1)

    def _last(self) -> bool:
        """No more requests come: hang up after the answers that are due. False: none is."""
        if self.pipeline and self.pipeline[0][0].more_body:  # it will never be whole
            self.pipeline.popleft()
        if not self._busy():
            return False
        self._ends = True
        return not (self.pipeline[0][0] if self.pipeline else self.cycle).more_body

    def connection_lost(self, exc: Exception | None) -> None:
        if self._timer is not None:
            self._timer.cancel()
        self.pipeline.clear()
        super().connection_lost(exc)
        cycle = self.cycle
        if isinstance(cycle, Cycle) and cycle.steps is not None and not cycle.ended:
            cycle.steps.cancel()

    def pause_writing(self) -> None:
        super().pause_writing()
        if isinstance(self.cycle, Cycle) and self.cycle.flow is not None:
            self.cycle.flow.pause()

    def resume_writing(self) -> None:
        super().resume_writing()
        self._unread = -1
        if isinstance(self.cycle, Cycle) and self.cycle.flow is not None:
            self.cycle.flow.resume()
        if self.cycle is not None and self.cycle.response_complete:
            self._next()

    def shutdown(self) -> None:
        """The server ends: what is being answered, or arrives to be, is answered; then the connection closes."""
        if self._busy():
            last = self.pipeline[0][0] if self.pipeline else self.cycle
            last.keep_alive = False
        else:
            self.transport.close()

    # What the parser says.
    def on_message_begin(self) -> None:
        self._latest, self._arriving = None, True
        self._deadline = self.loop.time() + RECEIVE_S
        self._head_bytes = 0
        self.url, self.headers, self.expect_100_continue = b"", [], False

    def on_header(self, name: bytes, value: bytes) -> None:
        if len(self.headers) >= HEADERS_MAX:
            raise ValueError("too many headers")
        super().on_header(name, value)

    def on_headers_complete(self) -> None:
        if self.parser.should_upgrade():
            return
        if self._hung_up or self.transport.is_closing():
            raise ValueError("nothing is answered any more")
        self._head_bytes = 0
        packet, self._packet = self._packet, b""  # what else is in it began no packet
        endpoint = TOKEN_ROUTES.get(self.url) or TOKEN_ROUTES.get(path_of(self.url))
        if endpoint is None or self.parser.get_method() != b"POST":
            self._asgi()
        else:
            new = self.parser.get_http_version() != "1.0"
            self._latest = cycle = Cycle(self, endpoint, self.headers, new and self.parser.should_keep_alive(), new)
            plain = cycle.keep_alive and not self.expect_100_continue
            self._head = remembered(packet, endpoint, self.headers) if plain else None
            if self._busy() or self.flow.write_paused:
                self.flow.pause_reading()
                self.pipeline.appendleft((cycle, self.app))
            else:
                self._start_asgi_task(cycle, self.app)
        self.headers = []  # trailers are no headers

    def _asgi(self) -> None:
        """All but tokens goes uvicorn's way; ``self.cycle`` stays the request that is answered."""
        url, headers, expect = self.url, self.headers, self.expect_100_continue
        super().on_message_begin()
        self.url, self.expect_100_continue = url, expect
        self.headers.extend(headers)
        answering, busy = self.cycle, self._busy()
        super().on_headers_complete()
        self._latest = self.cycle
        if busy:
            self.cycle = answering

    def on_body(self, body: bytes) -> None:
        self._head_bytes = 0
        cycle = self._latest
        if not isinstance(cycle, Cycle):
            answering, self.cycle = self.cycle, cycle
            super().on_body(body)
            self.cycle = answering
        elif not cycle.response_complete:
            cycle.size += len(body)
            if cycle.size <= BODY_BYTES_MAX:
                cycle.body.append(body)
            else:
                cycle.body.clear()
                if cycle is self.cycle:
                    self._too_large(cycle)

    def on_message_complete(self) -> None:
        if self.parser.should_upgrade():
            return
        self._arriving, self._head_bytes = False, 0
        cycle = self._latest
        if not isinstance(cycle, Cycle):
            answering, self.cycle = self.cycle, cycle
            super().on_message_complete()
            self.cycle = answering
            return
        cycle.more_body = False
        if cycle is self.cycle:
            self._begin(cycle)

    # Inside.
    def _busy(self) -> bool:
        return bool(self.pipeline) or (self.cycle is not None and not self.cycle.response_complete)

    def _start_asgi_task(self, cycle: Any, app: Any) -> None:
        """It is this request's turn."""
        self.cycle = cycle
        if not isinstance(cycle, Cycle):
            super()._start_asgi_task(cycle, app)
        elif not self._too_large(cycle):
            if not cycle.more_body:
                self._begin(cycle)
            elif self.expect_100_continue and cycle.chunked:  # what is not whole is the latest
                self.transport.write(_CONTINUE)

    def on_response_complete(self) -> None:
        self.server_state.total_requests += 1
        if self._ends and not self.pipeline:
            self.hang_up()
        elif not self.transport.is_closing():
            self._deadline = self.loop.time() + (RECEIVE_S if self._arriving else KEEP_S)
            self._next()

    def _next(self) -> None:
        """Go on, unless the client has to read first what it got."""
        if self.flow.write_paused:
            self.flow.pause_reading()
            return
        if self._going_on:
            return  # an answer that is there at once: the loop below goes on, however many there are
        self._going_on = True
        while self.pipeline and (self.cycle is None or self.cycle.response_complete) and not self.flow.write_paused:
            self._start_asgi_task(*self.pipeline.pop())
        self._going_on = False
        if not self.pipeline:
            self.flow.resume_reading()

    def _too_large(self, cycle: Cycle) -> bool:
        announced = header(cycle.headers, b"content-length") or b"0"
        size = int(announced[:12]) if announced.isdigit() else 0
        if max(cycle.size, size) <= BODY_BYTES_MAX:
            return False
        cycle.keep_alive = False
        cycle.fail(BodyTooLarge(f"the body is larger than {BODY_BYTES_MAX >> 20} MiB", hint="send a shorter prompt"))
        return True

    def _begin(self, cycle: Cycle) -> None:
        if cycle.response_complete:  # it was told already that it is too large
            self.transport.close()
            return
        body = cycle.body[0] if len(cycle.body) == 1 else b"".join(cycle.body)
        cycle.body = []
        key = bearer(cycle.headers)
        again, later = header(cycle.headers, b"idempotency-key"), deferrable(cycle.headers)
        if again is None:
            serving = serve(self._house, cycle.endpoint, key, body, cycle, deferrable=later)
        else:
            serving = self._once.serve(self._house, cycle.endpoint, key, body, cycle, again, deferrable=later)
        self._run(cycle, serving)

    def _run(self, cycle: Cycle, serving: Coroutine[Any, Any, None]) -> None:
        self._awake.stir(self.loop)
        cycle.steps = running = Steps(serving, partial(self._ended, cycle))
        if not cycle.ended:
            self.tasks.add(running)  # type: ignore[arg-type]  # uvicorn counts them, and may cancel them

    def _ended(self, cycle: Cycle, error: BaseException | None) -> None:
        cycle.ended = True
        self._awake.stir(self.loop)
        if cycle.steps is not None:
            self.tasks.discard(cycle.steps)
        if error is None:
            return
        if isinstance(error, TokenworksError):
            self._house.metrics.refused(error.code)
        elif not isinstance(error, asyncio.CancelledError):
            self.logger.error("a request for tokens failed", exc_info=error)
            cycle.keep_alive = False
            error = TokenworksError("something went wrong here")
        if self.transport.is_closing():
            return
        if cycle.started or isinstance(error, asyncio.CancelledError):
            self.transport.close()  # it is we who end, not the client: let it see that it is cut
        else:
            cycle.fail(error)

    def _refuse(self, error: TokenworksError) -> None:
        """What arrives is no request: say so and hang up, after the answers that are on their way."""
        if self._hung_up or self.transport.is_closing():
            return
        self._deaf = True
        cycle = self._latest if self._arriving else None
        if self._busy() and cycle is not self.cycle:
            self._last()
            self.flow.resume_reading()  # and throw it away: an unread rest would cut the answers when we close
            return
        if cycle is None:
            Cycle(self, "chat", [], keep_alive=False, chunked=True).fail(error)
        elif isinstance(cycle, Cycle) and not cycle.response_complete:
            cycle.keep_alive = False
            cycle.fail(error)
        if cycle is None or cycle.response_complete:
            self.hang_up()
        else:
            self.transport.close()

    def hang_up(self) -> None:
        """Close once the client does: if it is still sending, a close would cut its answer (RFC 9112, section 9.6)."""
        if not self.transport.can_write_eof():
            self.transport.close()
        elif not self._hung_up and not self.transport.is_closing():
            self._deaf = self._hung_up = True
            self.pipeline.clear()  # of what is behind nothing is served
            self.transport.write_eof()
            self.loop.call_later(LINGER_S, self.transport.close)

    def _look(self) -> None:
        """Once in a while: does the client send its request, and read its answer, in time? Does it ask anything?"""
        if self.transport.is_closing():
            return
        now = self.loop.time()
        if self.flow.write_paused:
            left = self.transport.get_write_buffer_size()
            if left == self._unread:
                self.transport.abort()
                return
            self._unread, self._deadline = left, now + KEEP_S
        elif self._busy() and (not self._arriving or self.flow.read_paused):
            self._deadline = now + KEEP_S
        elif now >= self._deadline:
            self._deadline = now + KEEP_S
            if self._arriving:
                self._refuse(TimedOut(f"the request did not arrive within {RECEIVE_S:.0f} s"))
            else:
                self.transport.close()
        self._timer = self.loop.call_at(self._deadline, self._look)


def lane(house: House, once: Once | None = None) -> Callable[..., Lane]:
    """The protocol for uvicorn's ``http=``."""
    return partial(Lane, house, once or Once(house.clock), Awake(house.clock))
