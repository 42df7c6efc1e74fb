"""Transports that send at the end of a round of the event loop, a few connections at a time.

Every packet wakes whoever reads it, and waking a process on another core costs the sender more than the sending. Those
that leave together wake it once; what one connection says in a round is one packet.
"""

from __future__ import annotations

import asyncio
from typing import Any

BATCH = 8
"""So many connections with something to send do not wait for the end of the round: the other side can begin."""
LETTER_BYTES_MAX, LETTERS_MAX = 16_384, 16
"""Of one connection: more goes at once, so that the transport can say when it is too much."""


class Post:
    """What waits to be sent on one event loop."""

    __slots__ = ("_scheduled", "_waiting", "loop")

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self.loop = loop
        self._waiting: list[Posted] = []
        self._scheduled = False

    def add(self, posted: Posted) -> None:
        """It has something to send."""
        self._waiting.append(posted)
        if len(self._waiting) >= BATCH:
            self.flush()
        elif not self._scheduled:
            self._scheduled = True
            self.loop.call_soon(self._round)

    def flush(self) -> None:
        """Send all that waits."""
        waiting, self._waiting = self._waiting, []
        for posted in waiting:
            posted.flush()

    def _round(self) -> None:
        self._scheduled = False
        self.flush()


class Posted:
    """A transport whose ``write`` waits for the end of the round; all else is done at once, after what was written."""

    __slots__ = ("_mail", "_post", "_transport")

    def __init__(self, transport: asyncio.Transport, post: Post) -> None:
        self._transport, self._post = transport, post
        self._mail: list[bytes] = []

    def write(self, data: bytes) -> None:
        """Send it soon. Nothing happens on a transport that is closing."""
        mail = self._mail
        mail.append(data)
        if len(mail) == 1:
            self._post.add(self)
        if len(data) > LETTER_BYTES_MAX or len(mail) > LETTERS_MAX:
            self.flush()

    def flush(self) -> None:
        """Send now what was written."""
        mail = self._mail
        if mail:
            self._mail = []
            if not self._transport.is_closing():
                self._transport.write(mail[0] if len(mail) == 1 else b"".join(mail))

    def close(self) -> None:
        self.flush()
        self._transport.close()

    def abort(self) -> None:
        self._mail = []
        self._transport.abort()

    def can_write_eof(self) -> bool:
        return self._transport.can_write_eof()

    def write_eof(self) -> None:
        self.flush()
        self._transport.write_eof()

    def is_closing(self) -> bool:
        return self._transport.is_closing()

    def pause_reading(self) -> None:
        self._transport.pause_reading()

    def resume_reading(self) -> None:
        self._transport.resume_reading()

    def get_write_buffer_size(self) -> int:
        self.flush()
        return self._transport.get_write_buffer_size()

    def get_extra_info(self, name: str, default: Any = None) -> Any:
        return self._transport.get_extra_info(name, default)


_latest: list[Post] = []


def posted(transport: asyncio.BaseTransport, loop: asyncio.AbstractEventLoop) -> Posted:
    """The transport of a connection on that loop, so that it sends with the others."""
    if not _latest or _latest[0].loop is not loop:
        _latest[:] = [Post(loop)]
    return Posted(transport, _latest[0])  # type: ignore[arg-type]  # uvloop's are none by name
