"""Heads of requests for tokens: what they say, and that a client says the same again and again."""

from __future__ import annotations

import re
from urllib.parse import unquote_to_bytes

import httptools

from tokenworks.core.words import Endpoint
from tokenworks.engine.openai_compatible import PATHS
from tokenworks.exchange.desk import Identity

Headers = list[tuple[bytes, bytes]]
"""As sent, names in lower case."""
TOKEN_ROUTES: dict[bytes, Endpoint] = {path.encode(): endpoint for endpoint, path in PATHS.items()}
BODY_BYTES_MAX = 8 << 20
DEFERRABLE_HEADER = b"x-tokenworks-deferrable"
"""``true``: the request can wait while the grid asks for less power."""
HEAD_KEPT_MAX = 4_096
"""Bytes of a head that is remembered."""
LENGTH_DIGITS_MAX = len(str(BODY_BYTES_MAX)) - 1
_LENGTH = re.compile(rb"\r\ncontent-length: *([1-9][0-9]*)\r\n", re.IGNORECASE)


def path_of(url: bytes) -> bytes:
    """Without its query, unquoted."""
    path: bytes = httptools.parse_url(url).path or b""
    return unquote_to_bytes(path) if b"%" in path else path


def bearer(headers: Headers) -> str | None:
    """The presented key: ``Authorization: Bearer``, or ``x-api-key``."""
    for name, value in headers:
        if name == b"authorization" and value[:7].lower() == b"bearer ":
            return value[7:].decode("latin-1").strip()
        if name == b"x-api-key":
            return value.decode("latin-1").strip()
    return None


def header(headers: Headers, name: bytes) -> bytes | None:
    """The first of that name."""
    return next((value for known, value in headers if known == name), None)


def deferrable(headers: Headers) -> bool:
    """The client says that it can wait."""
    return (DEFERRABLE_HEADER, b"true") in headers


class Head:
    """A head that this connection sent before, byte for byte but for the length of the body, and what it meant.

    Clients send the same head again and again; what it was parsed to needs no second look.
    """

    __slots__ = ("after", "before", "deferrable", "endpoint", "identity", "key")

    def __init__(self, before: bytes, after: bytes, endpoint: Endpoint, headers: Headers) -> None:
        self.before, self.after, self.endpoint = before, after, endpoint
        self.key, self.deferrable = bearer(headers), deferrable(headers)
        self.identity: Identity | None = None

    def body(self, packet: bytes) -> bytes | None:
        """The body of a packet that is one whole request with this head; None: it is anything else."""
        if not packet.startswith(self.before):
            return None
        start = len(self.before)
        end = packet.find(b"\r", start, start + LENGTH_DIGITS_MAX + 1)
        if end < 0 or not packet.startswith(self.after, end) or not packet[start:end].isdigit():
            return None
        body = packet[end + len(self.after) :]
        return body if len(body) == int(packet[start:end]) else None


def remembered(packet: bytes, endpoint: Endpoint, headers: Headers) -> Head | None:
    """A head that came whole at the start of a packet, each line of it one header; None: not so, or not worth it."""
    end = packet.find(b"\r\n\r\n")
    length = _LENGTH.search(packet, 0, end + 2)
    if not 0 < end < HEAD_KEPT_MAX or not packet.startswith(b"POST /v1/") or length is None:
        return None
    each = packet.count(b"\n", 0, end) == packet.count(b"\r\n", 0, end) == len(headers)
    if not each or header(headers, b"idempotency-key") is not None:
        return None
    return Head(packet[: length.start(1)], packet[length.end(1) : end + 4], endpoint, headers)
