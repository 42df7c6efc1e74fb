"""What is said on the ledger's socket: length-prefixed MessagePack over a Unix socket of its owner."""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec

from tokenworks.core.errors import TokenworksError, Unreachable
from tokenworks.exchange.words import Directory

FRAME_BYTES_MAX = 64 << 20
_LENGTH = struct.Struct("<I")


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
_encoder = msgspec.msgpack.Encoder()
_decoder: msgspec.msgpack.Decoder[Message] = msgspec.msgpack.Decoder(Message)


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
    """One frame."""
    body = _encoder.encode(message)
    return _LENGTH.pack(len(body)) + body


async def read_message(reader: asyncio.StreamReader) -> Message | None:
    """The next message, or None at the end of the stream. Raises Unreachable for a frame that is no message."""
    try:
        (length,) = _LENGTH.unpack(await reader.readexactly(_LENGTH.size))
        if length > FRAME_BYTES_MAX:
            raise Unreachable("the ledger sent a frame that is too large")
        return _decoder.decode(await reader.readexactly(length))
    except (asyncio.IncompleteReadError, ConnectionError):
        return None
    except msgspec.DecodeError as error:
        raise Unreachable("the ledger sent a frame that is no message", hint="do versions differ?") from error


def read_message_blocking(connection: socket.socket) -> Message:
    """As ``read_message``, for the CLI. Raises Unreachable at the end of the stream."""

    def exactly(count: int) -> bytes:
        parts = bytearray()
        while len(parts) < count:
            part = connection.recv(count - len(parts))
            if not part:
                raise Unreachable("the ledger closed the connection")
            parts += part
        return bytes(parts)

    (length,) = _LENGTH.unpack(exactly(_LENGTH.size))
    if length > FRAME_BYTES_MAX:
        raise Unreachable("the ledger sent a frame that is too large")
    return _decoder.decode(exactly(length))


@contextlib.contextmanager
def socket_address(path: Path) -> Iterator[str]:
    """A Unix socket's address is at most 107 bytes: a longer path is reached through its open folder."""
    if len(os.fsencode(path)) < 100:
        yield str(path)
        return
    folder = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        yield f"/proc/self/fd/{folder}/{path.name}"
    finally:
        os.close(folder)
