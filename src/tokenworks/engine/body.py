"""The body of a request: a member is replaced, and everything else stays as it was written."""

from __future__ import annotations

import msgspec

_encode = msgspec.json.Encoder().encode
members = msgspec.json.Decoder(dict[str, msgspec.Raw]).decode
"""The members of a JSON object, each as it was written. Raises msgspec.DecodeError."""


def with_member(body: bytes, name: str, value: object) -> bytes:
    """The body with another value of one member. Raises msgspec.DecodeError."""
    found = members(body)
    found[name] = msgspec.Raw(_encode(value))
    return _encode(found)
