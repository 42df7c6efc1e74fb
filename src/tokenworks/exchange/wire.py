"""What is said on the ledger's socket: lines of JSON over a Unix socket of its owner."""

from __future__ import annotations

import asyncio
from typing import Any

import msgspec

from tokenworks.core.errors import TokenworksError, Unreachable
from tokenworks.exchange.words import Directory

LINE_BYTES_MAX = 64 << 20


class Call(msgspec.Struct, frozen=True, tag=True):
    """A question or an order; the answer carries the same number."""

    number: int
    method: str
    params: dict[str, Any] = {}


class Answer(msgspec.Struct, frozen=True, tag=True):
    """The result of a call."""

    number: int
    result: Any


class Refusal(msgspec.Struct, frozen=True, tag=True):
    """Why a call was refused."""

    number: int
    code: str
    message: str
    hint: str | None
    param: str | None = None


class News(msgspec.Struct, frozen=True, tag=True):
    """The directory has changed; sent unasked to every gateway that said hello."""

    directory: Directory


Message = Call | Answer | Refusal | News
_encoder = msgspec.json.Encoder()
_decoder: msgspec.json.Decoder[Message] = msgspec.json.Decoder(Message)


class RemoteError(TokenworksError):
    """The ledger refused."""

    def __init__(self, refusal: Refusal) -> None:
        super().__init__(refusal.message, hint=refusal.hint, param=refusal.param)
        self.code = refusal.code
        known = _known_errors().get(refusal.code)
        if known is not None:
            self.status, self.kind, self.exit_status = known.status, known.kind, known.exit_status


def _known_errors() -> dict[str, type[TokenworksError]]:
    found: dict[str, type[TokenworksError]] = {}
    stack: list[type[TokenworksError]] = [TokenworksError]
    while stack:
        kind = stack.pop()
        found.setdefault(kind.code, kind)
        stack.extend(kind.__subclasses__())
    return found


def pack(message: Message) -> bytes:
    """One line."""
    return _encoder.encode(message) + b"\n"


def unpack(line: bytes) -> Message | None:
    """The message of a line; None: the stream ended. Raises Unreachable for a line that is no message."""
    try:
        return _decoder.decode(line) if line.endswith(b"\n") else None
    except msgspec.DecodeError as error:
        raise Unreachable("the ledger sent a line that is no message", hint="do versions differ?") from error


async def read_message(reader: asyncio.StreamReader) -> Message | None:
    """As ``unpack``, of the next line."""
    try:
        return unpack(await reader.readline())
    except ConnectionError:
        return None
    except ValueError:
        raise Unreachable("the ledger sent a line that is too long") from None
