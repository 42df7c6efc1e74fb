"""``Idempotency-Key``: the same request sent again gets the first one's answer, and is billed once.

Answers are kept in memory by the gateway process that the key belongs to, for a day, as long as there is room: the
oldest go first. What failed is not kept, so it may be tried again. A request that comes while the first is still
answered waits for that answer.
"""

from __future__ import annotations

import asyncio
import hashlib
from collections import OrderedDict

from tokenworks.agents.answers import is_error
from tokenworks.agents.life import Flow, House, Reply, Still, serve
from tokenworks.agents.siblings import Siblings, pass_on
from tokenworks.core.clock import Clock
from tokenworks.core.errors import AnotherRequest, BadRequest
from tokenworks.core.units import NS_PER_S
from tokenworks.core.words import Endpoint

KEEP_NS = 86_400 * NS_PER_S
ANSWERS_MAX = 10_000
BYTES_MAX = 64 << 20
ANSWER_BYTES_MAX = 4 << 20
"""A longer answer is not kept: the same request is then served and billed again, under its own receipt."""
KEY_BYTES_MAX = 255
_REPLAYED = b"idempotent-replayed: true\r\n"


class _Answer:
    """One answer: what was asked, and what was said so far."""

    __slots__ = ("asked", "at_ns", "body", "ended", "failed", "headers", "size", "stream")

    def __init__(self, asked: bytes, at_ns: int) -> None:
        self.asked, self.at_ns = asked, at_ns
        self.headers, self.body = b"", list[bytes]()
        self.size = 0
        self.stream = self.failed = False
        self.ended = asyncio.Event()


class _Recorder:
    """A Reply that also keeps what it passes on."""

    def __init__(self, reply: Reply, answer: _Answer) -> None:
        self._reply, self._answer = reply, answer

    def whole(self, headers: bytes, body: bytes, status: int = 200) -> None:
        self._keep(headers, body)
        self._reply.whole(headers, body, status)

    def start(self, headers: bytes, flow: Flow) -> None:
        self._answer.stream = True
        self._keep(headers, b"")
        self._reply.start(headers, flow)

    def send(self, events: bytes) -> None:
        self._keep(self._answer.headers, events)
        self._reply.send(events)

    def end(self) -> None:
        self._answer.failed = bool(self._answer.body) and is_error(self._answer.body[-1])
        self._reply.end()

    def _keep(self, headers: bytes, part: bytes) -> None:
        answer = self._answer
        answer.headers = headers
        answer.size += len(part)
        if answer.size <= ANSWER_BYTES_MAX:
            answer.body.append(part)
        else:
            answer.body.clear()


class Once:
    """The answers that this gateway process remembers, by account and key."""

    def __init__(self, clock: Clock, siblings: Siblings | None = None) -> None:
        self._clock, self._siblings = clock, siblings
        self._open: dict[tuple[str, bytes], _Answer] = {}
        self._answers: OrderedDict[tuple[str, bytes], _Answer] = OrderedDict()
        self._bytes = 0

    async def serve(
        self, house: House, endpoint: Endpoint, key: str | None, body: bytes, reply: Reply, again: bytes,
        *, deferrable: bool = False,
    ) -> None:  # fmt: skip
        """As ``life.serve``. Raises AnotherRequest when the key was used with another body."""
        if not 0 < len(again) <= KEY_BYTES_MAX:
            raise BadRequest(f"an Idempotency-Key has 1 to {KEY_BYTES_MAX} bytes", param="Idempotency-Key")
        if self._siblings is not None and (owner := self._siblings.owner(again)) is not None:
            await pass_on(owner, endpoint, key, body, reply, again, deferrable=deferrable)
            return
        name = (house.desk.identify(key).account.id, again)
        asked = hashlib.sha256(endpoint.encode() + b"\0" + body).digest()
        while (found := self._open.get(name) or self._find(name)) is not None:
            if found.asked != asked:
                raise AnotherRequest(hint="send a new key with every new request")
            if found.ended.is_set():
                _replay(found, reply)
                return
            await found.ended.wait()
        answer = self._open[name] = _Answer(asked, self._clock.now_ns())
        try:
            await serve(house, endpoint, key, body, _Recorder(reply, answer), deferrable=deferrable)
            if answer.size <= ANSWER_BYTES_MAX and not answer.failed:
                self._keep(name, answer)
        finally:
            del self._open[name]
            answer.ended.set()

    def _keep(self, name: tuple[str, bytes], answer: _Answer) -> None:
        answer.body = [b"".join(answer.body)]
        self._answers[name] = answer
        self._bytes += answer.size
        while len(self._answers) > ANSWERS_MAX or self._bytes > BYTES_MAX:
            self._drop(next(iter(self._answers)))

    def _find(self, name: tuple[str, bytes]) -> _Answer | None:
        found = self._answers.get(name)
        if found is not None and self._clock.now_ns() - found.at_ns > KEEP_NS:
            self._drop(name)
            return None
        return found

    def _drop(self, name: tuple[str, bytes]) -> None:
        self._bytes -= self._answers.pop(name).size


def _replay(answer: _Answer, reply: Reply) -> None:
    body = b"".join(answer.body)
    if not answer.stream:
        reply.whole(answer.headers + _REPLAYED, body)
        return
    reply.start(answer.headers + _REPLAYED, Still())
    reply.send(body)
    reply.end()
