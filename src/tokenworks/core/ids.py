"""Ids and secrets. An id sorts by the time it was made; randomness comes in through one port, for replay."""

from __future__ import annotations

import hashlib
import hmac
import secrets
from collections.abc import Callable

from tokenworks.core.errors import BadRequest

_CROCKFORD = "0123456789abcdefghjkmnpqrstvwxyz"
_PAIRS = [first + second for first in _CROCKFORD for second in _CROCKFORD]
_DRAW_BYTES = 2_560
Entropy = Callable[[int], bytes]
"""Returns that many random bytes."""
random_bytes: Entropy = secrets.token_bytes
"""The live source."""
NAME_CHARACTERS_MAX = 64


def _base32(value: int, length: int) -> str:
    return "".join(_CROCKFORD[value >> shift & 31] for shift in range(5 * (length - 1), -1, -5))


class Ids:
    """Ids one after another: ``prefix_`` and 26 characters, 48 bits of milliseconds, then 80 random bits (ULID).

    Randomness is drawn for many ids at once, because asking the kernel costs more than all the rest.
    """

    __slots__ = ("_at", "_drawn", "_entropy", "_ms", "_time")

    def __init__(self, entropy: Entropy = secrets.token_bytes) -> None:
        self._entropy = entropy
        self._drawn, self._at = b"", 0
        self._ms, self._time = -1, ""

    def make(self, prefix: str, now_ns: int) -> str:
        """The next id."""
        if (ms := now_ns // 1_000_000) != self._ms:
            self._ms, self._time = ms, _base32(ms, 10)
        at = self._at
        if at >= len(self._drawn):
            self._drawn, at = self._entropy(_DRAW_BYTES), 0
        self._at = at + 10
        a, b = divmod(int.from_bytes(self._drawn[at : at + 10]), 1 << 40)
        pairs = _PAIRS
        return (
            f"{prefix}_{self._time}{pairs[a >> 30]}{pairs[a >> 20 & 1023]}{pairs[a >> 10 & 1023]}{pairs[a & 1023]}"
            f"{pairs[b >> 30]}{pairs[b >> 20 & 1023]}{pairs[b >> 10 & 1023]}{pairs[b & 1023]}"
        )


def new_id(prefix: str, now_ns: int, entropy: Entropy = secrets.token_bytes) -> str:
    """One id, as ``Ids`` makes them."""
    return Ids(lambda _: entropy(10)).make(prefix, now_ns)


def new_key(entropy: Entropy = secrets.token_bytes) -> tuple[str, str, bytes]:
    """A fresh API key as (key id, the key shown once, its SHA-256).

    The secret has 160 random bits, so a fast hash is enough: there is nothing to guess. The id inside the key lets
    a gateway find the record without searching by the secret.
    """
    key_id = _base32(int.from_bytes(entropy(5)), 8)
    key = f"tw-{key_id}-{_base32(int.from_bytes(entropy(20)), 32)}"
    return key_id, key, key_hash(key)


def key_id_of(key: str) -> str | None:
    """The id inside a presented key, or None when it does not have the shape of a key."""
    parts = key.split("-")
    return parts[1] if len(parts) == 3 and parts[0] == "tw" and len(key) <= 64 else None


def key_hash(key: str) -> bytes:
    """What is stored of a key."""
    return hashlib.sha256(key.encode()).digest()


def same_hash(a: bytes, b: bytes) -> bool:
    """Compare in constant time."""
    return hmac.compare_digest(a, b)


def check_name(text: str, what: str) -> str:
    """The text, when it can be an id. Raises BadRequest."""
    if not text or len(text) > NAME_CHARACTERS_MAX or not all(c.isalnum() or c in "-_." for c in text):
        raise BadRequest(f"{text!r} is not a name for {what}", hint="1 to 64 letters, digits, '-', '_' or '.'")
    return text
