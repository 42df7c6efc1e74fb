"""Ids and secrets. An id sorts by the time it was made; randomness comes in through one port, for replay."""

from __future__ import annotations

import hashlib
import hmac
import secrets
from collections.abc import Callable

_CROCKFORD = "0123456789abcdefghjkmnpqrstvwxyz"
Entropy = Callable[[int], bytes]
"""Returns that many random bytes."""
random_bytes: Entropy = secrets.token_bytes
"""The live source."""


def _base32(value: int, length: int) -> str:
    return "".join(_CROCKFORD[value >> shift & 31] for shift in range(5 * (length - 1), -1, -5))


def new_id(prefix: str, now_ns: int, entropy: Entropy = secrets.token_bytes) -> str:
    """``prefix_`` and 26 characters: 48 bits of milliseconds, then 80 random bits (the ULID layout)."""
    return f"{prefix}_{_base32(now_ns // 1_000_000 << 80 | int.from_bytes(entropy(10)), 26)}"


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
