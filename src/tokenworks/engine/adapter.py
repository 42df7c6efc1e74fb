"""The port to an engine, and the words that cross it. One adapter talks to one replica's engine."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Protocol

import msgspec

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
    usage_only: bool = False
    """It has no choices and only reports usage: hidden from a client that did not ask for it."""
    done: bool = False
    """The end mark, ``data: [DONE]``."""


class Completion(Word, frozen=True):
    """One whole answer that was not streamed."""

    body: bytes
    usage: Usage | None
    """None: the engine did not say (which is not 0)."""
    timing: Timing | None = None


class TokenStream(Protocol):
    """Chunks as they come. Whoever leaves before the end calls ``abort()``, or the engine works on for nobody."""

    def __aiter__(self) -> AsyncIterator[Chunk]:
        """Raises EngineFailed when the engine reports an error or the stream breaks off before its end mark."""
        ...

    async def abort(self) -> None:
        """Close the connection at once; no effect after the end."""
        ...


class Adapter(Protocol):
    """How a replica's engine is spoken to."""

    async def stream(self, request: Request) -> TokenStream:
        """Start an answer; returns when the engine has accepted it.

        Raises ContextTooLong or BadRequest for the client's mistakes, EngineDown when nothing was done (another
        replica can be asked), EngineFailed otherwise.
        """
        ...

    async def complete(self, request: Request) -> Completion:
        """The whole answer at once. Raises as ``stream``."""
        ...

    async def count_input(self, request: Request) -> int | None:
        """Exact number of prompt tokens, where the engine can say so without making any."""
        ...

    async def healthy(self) -> bool:
        """The engine answers and has its model loaded. Never raises."""
        ...

    async def close(self) -> None:
        """Close all connections; streams in the middle break."""
        ...
