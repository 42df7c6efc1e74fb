"""The gateway processes of one port, where they must act as one: each ``Idempotency-Key`` belongs to one of them.

Whichever process a request with such a key reaches passes it on to the key's own, which serves it or says again what it
said; the answer comes back as it is. They reach each other at Unix sockets in the data directory, which answer as the
port does.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path

from tokenworks.agents.heads import DEFERRABLE_HEADER
from tokenworks.agents.life import Reply
from tokenworks.core.errors import EngineDown, EngineFailed
from tokenworks.core.words import Endpoint
from tokenworks.engine.http import Pool, next_block, read
from tokenworks.engine.openai_compatible import COMPLETION_BYTES_MAX, PATHS
from tokenworks.engine.pace import BY_CLIENT
from tokenworks.engine.server import Server
from tokenworks.engine.wire import Response

PASSED_ON_MAX = 1_024
"""Requests that are passed on to one process at a time."""
PATIENCE_S = 86_400.0
"""How long anything may take is the other's to say; when it dies its socket closes."""
ANSWER_BYTES_MAX = 2 * COMPLETION_BYTES_MAX
"""An engine's answer, and what was added to it."""
_OURS = (b"date", b"content-type", b"content-length", b"transfer-encoding", b"connection", b"cache-control")
"""Header lines of an answer that the process which has the client writes itself."""


class Siblings:
    """All processes by their sockets, this one among them."""

    def __init__(self, doors: Sequence[Path], own: int) -> None:
        self._own = own
        self._pools = [
            Pool(Server(socket=door), connections_max=PASSED_ON_MAX, first_byte_s=PATIENCE_S, idle_s=PATIENCE_S)
            for door in doors
        ]

    def owner(self, again: bytes) -> Pool | None:
        """Whose an Idempotency-Key is; None: ours."""
        number = int.from_bytes(hashlib.blake2b(again, digest_size=8).digest()) % len(self._pools)
        return None if number == self._own else self._pools[number]

    async def close(self) -> None:
        """Break what is still passed on."""
        for pool in self._pools:
            await pool.close()


class _Slow:
    """The flow of an answer that is passed on."""

    def __init__(self, response: Response) -> None:
        self._response = response

    def pause(self) -> None:
        self._response.pause(BY_CLIENT)

    def resume(self) -> None:
        self._response.resume(BY_CLIENT)


async def pass_on(
    owner: Pool, endpoint: Endpoint, key: str | None, body: bytes, reply: Reply, again: bytes, *, deferrable: bool
) -> None:
    """Let another process serve it. Raises EngineDown when it is not there, EngineFailed when it dies meanwhile."""
    headers = [("idempotency-key", again.decode("latin-1"))]
    if key is not None:
        headers.append(("authorization", f"Bearer {key}"))
    if deferrable:
        headers.append((DEFERRABLE_HEADER.decode(), "true"))
    try:
        response = await owner.request("POST", PATHS[endpoint], body, headers)
    except (EngineDown, EngineFailed):
        raise EngineDown("the gateway process that remembers this Idempotency-Key is starting again") from None
    try:
        said = b"".join([b"%b: %b\r\n" % line for line in response.headers if line[0] not in _OURS])
        if not response.header(b"content-type").startswith(b"text/event-stream"):
            reply.whole(said, await read(response, ANSWER_BYTES_MAX), response.status)
            return
        reply.start(said, _Slow(response))
        while block := await next_block(response):
            reply.send(block)
        reply.end()
    except EngineFailed:
        raise EngineFailed("the gateway process that answered has died") from None
    finally:
        response.abort()  # nothing happens when the answer is complete
