"""Checks that all offices share: names, choices, and what must exist."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TypeVar

from tokenworks.core.errors import BadRequest, NotFound, nearest

NAME_CHARACTERS_MAX = 64
T = TypeVar("T")


def check_name(text: str, what: str) -> str:
    """The text, when it can be an id. Raises BadRequest."""
    if not text or len(text) > NAME_CHARACTERS_MAX or not all(c.isalnum() or c in "-_." for c in text):
        raise BadRequest(f"{text!r} is not a name for {what}", hint="1 to 64 letters, digits, '-', '_' or '.'")
    return text


def find(name: str, known: Mapping[str, T], what: str) -> T:
    """What has that name. Raises NotFound, naming the nearest."""
    if name not in known:
        near = nearest(name, known)
        raise NotFound(f"there is no {what} {name!r}", hint=f"did you mean {near!r}?" if near else None)
    return known[name]
