"""The port to an engine, and the words that cross it. One adapter talks to one replica's engine."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from typing import Protocol

import msgspec

from tokenworks.core.errors import EngineDown
from tokenworks.core.words import Request, Usage, Word


class Timing(Word, frozen=True):
    """What the engine itself measured. None: it does not say."""

    queued_ns: int | None = None
    prefill_ns: int | None = None
    decode_ns: int | None = None
    """From the first token to the last."""


class Chunk(msgspec.Struct):
    """One whole event of a stream, and what it means."""

    raw: bytes
    """Exactly as the engine sent it, with the blank line that ends it."""
    output: bool = False
    """It carries output text or a piece of a tool call: one token for the second witness."""
    usage: Usage | None = None
    """All that this stream has used so far, when the event says so; the last one counts."""
    timing: Timing | None = None
    held: bool = False
    """It reports the usage at the end, and waits until the books have it."""
    done: bool = False
    """Nothing follows: the end mark, or the event that ends a message."""


class Completion(Word, frozen=True):
    """One whole answer that was not streamed."""

    body: bytes
    usage: Usage | None
    """None: the engine did not say (which is not 0)."""
    timing: Timing | None = None


class Load(Word, frozen=True):
    """What an engine says of its own load. None: it does not say."""

    running: int | None = None
    """Requests that it works on."""
    waiting: int | None = None
    """Requests in its own queue."""
    kv_permille: int | None = None
    """Used part of its room for keys and values."""
    prefix_hit_permille: int | None = None
    """Part of the prompt tokens that it found in its cache, since its start or lately, as it counts."""
    asleep: bool | None = None
    """Its model is out of memory until somebody wakes it."""
    requests_left: int | None = None
    """What a provider's rate limit leaves until it resets: the scarcer of requests and tokens counts as 0."""
    resets_s: float | None = None


class TokenStream(Protocol):
    """An answer as it comes. Whoever leaves before the end calls ``abort()``, or the engine works on for nobody."""

    @property
    def chunks(self) -> int:
        """Events so far that carried output."""

    @property
    def usage(self) -> Usage | None:
        """The last report."""

    @property
    def timing(self) -> Timing | None:
        """What the engine measured, once it has said so."""

    @property
    def held(self) -> Sequence[bytes]:
        """Events at the end that wait until the books have the usage they report."""

    async def relay(self, sink: Callable[[bytes], None], chunks_max: int) -> bool:
        """Hand whole events to ``sink`` until the end (True), or until so many chunks have come (False).

        The sink is called inside the socket's callback and must not wait; one that cannot take more calls ``pause``.
        Raises EngineFailed when the engine reports an error or the stream breaks off before its end mark.
        """

    def pause(self) -> None:
        """The client is slow: read no more of the engine's socket."""

    def resume(self) -> None:
        """The client has caught up."""

    async def abort(self) -> None:
        """Close the connection at once; no effect after the end."""


class Adapter(Protocol):
    """How a replica's engine is spoken to. What has a body here is for those that cannot be asked."""

    async def stream(self, request: Request) -> TokenStream:
        """Start an answer; returns when the engine has accepted it.

        Raises ContextTooLong or BadRequest for the client's mistakes, EngineDown when nothing was done (another
        replica can be asked), EngineFailed otherwise.
        """

    async def complete(self, request: Request) -> Completion:
        """The whole answer at once. Raises as ``stream``."""

    async def count_input(self, request: Request) -> int | None:
        """Exact number of prompt tokens, where the engine can say so without making any."""
        return None

    async def healthy(self) -> bool:
        """The engine answers and has its model loaded, as far as is known. Never raises."""
        return True

    async def close(self) -> None:
        """Close all connections; streams in the middle break."""


class Engine(Adapter, Protocol):
    """An adapter as its driver needs it: it also tells load and silence, and sleeps."""

    async def load(self) -> Load | None:
        """What the engine says of its load; None: nothing. Raises EngineFailed when that cannot be true."""
        return None

    async def sleep(self) -> bool:
        """Let go of the device's memory while the server stays up. False: this engine cannot."""
        return False

    async def wake(self) -> None:
        """Take the memory back; returns when it can work. Raises EngineDown or EngineFailed."""
        return

    def heard(self) -> int | None:
        """Bytes of the answers that are awaited now: while it stays the same the engine is silent. None: none is."""
        return None


class Nap(Adapter):
    """Of a replica that sleeps: the first request wakes it, and all that come meanwhile wait together, no more than the
    replica's own count allows. To be asked for its health, it is not woken."""

    def __init__(self) -> None:
        self.wanted = asyncio.Event()
        """A request has come."""
        self._over: asyncio.Future[Adapter | None] = asyncio.get_running_loop().create_future()

    def end(self, adapter: Adapter | None) -> None:
        """It is awake and speaks through this; None: it could not be woken."""
        if not self._over.done():
            self._over.set_result(adapter)

    async def _awake(self) -> Adapter:
        self.wanted.set()
        adapter = await asyncio.shield(self._over)
        if adapter is None:
            raise EngineDown("The replica slept and could not be woken.")
        return adapter

    async def stream(self, request: Request) -> TokenStream:
        return await (await self._awake()).stream(request)

    async def complete(self, request: Request) -> Completion:
        return await (await self._awake()).complete(request)

    async def close(self) -> None:
        self.end(None)
