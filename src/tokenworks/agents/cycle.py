"""One request for tokens on the fast lane and its answer: the ``Reply`` of ``life.serve``, straight to the socket.

A Cycle has the attributes that uvicorn asks of its own cycles, so that both kinds can wait in one pipeline.
"""

from __future__ import annotations

import asyncio
from typing import Protocol

import msgspec
from uvicorn.protocols.http.flow_control import FlowControl
from uvicorn.protocols.http.httptools_impl import STATUS_LINE

from tokenworks.agents.answers import error_body
from tokenworks.agents.heads import Headers
from tokenworks.agents.life import RECEIPT_HEADER, Flow
from tokenworks.core.errors import TokenworksError
from tokenworks.core.steps import Steps
from tokenworks.core.words import Endpoint

_encode = msgspec.json.Encoder().encode


class Carrier(Protocol):
    """The connection, as a Cycle needs it."""

    transport: asyncio.Transport
    flow: FlowControl

    def date(self) -> bytes:
        """Header lines of every answer."""
        ...

    def hang_up(self) -> None:
        """That was the last answer."""
        ...

    def on_response_complete(self) -> None:
        """The next request may be answered."""
        ...


def error_headers(error: TokenworksError) -> dict[str, str]:
    """Its receipt when it has one, and Retry-After where waiting helps."""
    headers = {"retry-after": str(error.retry_after_s)} if error.retry_after_s is not None else {}
    if error.receipt is not None:
        headers[RECEIPT_HEADER.decode()] = error.receipt
    return headers


class Cycle:
    """One request for tokens and its answer: the Reply port over the socket."""

    __slots__ = (
        "body", "chunked", "disconnected", "ended", "endpoint", "flow", "headers", "keep_alive", "message_event",
        "more_body", "protocol", "response_complete", "size", "started", "steps",
    )  # fmt: skip

    def __init__(
        self, protocol: Carrier, endpoint: Endpoint, headers: Headers, keep_alive: bool, chunked: bool
    ) -> None:
        self.protocol, self.endpoint, self.headers = protocol, endpoint, headers
        self.keep_alive, self.chunked = keep_alive, chunked
        self.body: list[bytes] = []
        self.size = 0
        self.more_body = True
        self.started = self.response_complete = self.disconnected = self.ended = False
        self.message_event = _NOBODY
        self.flow: Flow | None = None
        self.steps: Steps | None = None
        """Its life, once it has begun."""

    # What the life of a request says.

    def whole(self, headers: bytes, body: bytes, status: int = 200) -> None:
        """See ``Reply.whole``."""
        self._write(status, headers, body)

    def start(self, headers: bytes, flow: Flow) -> None:
        """See ``Reply.start``."""
        self.started, self.flow = True, flow
        framing = b"transfer-encoding: chunked\r\n" if self.chunked else b"connection: close\r\n"
        close = b"" if self.keep_alive or not self.chunked else b"connection: close\r\n"
        self.protocol.transport.write(
            b"HTTP/1.1 200 OK\r\n%bcontent-type: text/event-stream; charset=utf-8\r\n%b%b%b%b\r\n"
            % (self.protocol.date(), b"cache-control: no-cache\r\n", headers, framing, close)
        )
        if self.protocol.flow.write_paused:
            flow.pause()

    def send(self, events: bytes) -> None:
        """See ``Reply.send``."""
        if not events:  # an empty chunk would end the body
            return
        self.protocol.transport.write(b"%x\r\n%b\r\n" % (len(events), events) if self.chunked else events)

    def end(self) -> None:
        """See ``Reply.end``."""
        if self.chunked:
            self.protocol.transport.write(b"0\r\n\r\n")
        self._over()

    # What the protocol says.

    def fail(self, error: TokenworksError) -> None:
        """Answer with an error instead."""
        lines = "".join(f"{name}: {value}\r\n" for name, value in error_headers(error).items())
        self._write(error.status, lines.encode(), _encode(error_body(error, self.endpoint)))

    def _write(self, status: int, headers: bytes, body: bytes) -> None:
        self.started = True
        close = b"" if self.keep_alive else b"connection: close\r\n"
        self.protocol.transport.write(
            b"%b%bcontent-type: application/json\r\ncontent-length: %d\r\n%b%b\r\n%b"
            % (STATUS_LINE[status], self.protocol.date(), len(body), headers, close, body)
        )
        self._over()

    def _over(self) -> None:
        self.response_complete, self.flow = True, None
        # A client that is still sending would not read the answer if we hung up now.
        if not self.keep_alive and not self.more_body:
            self.protocol.hang_up()
        self.protocol.on_response_complete()


class _Nobody:
    """uvicorn wakes its cycles through an event; ours wait for none."""

    def set(self) -> None:
        return


_NOBODY = _Nobody()
