"""Checks that all offices share: names, choices, and what must exist."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, TypeVar, get_args

import msgspec

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


def check_choice(word: str, choices: Any, what: str) -> None:
    """Raises BadRequest, naming the nearest choice."""
    if word not in get_args(choices):
        near = nearest(word, get_args(choices))
        hint = f"did you mean {near!r}?" if near else f"one of: {', '.join(get_args(choices))}"
        raise BadRequest(f"{word!r} is no {what}", hint=hint)


def convert(raw: dict[str, Any], kind: type[T]) -> T:
    """The value as a word. Raises BadRequest."""
    try:
        return msgspec.convert(raw, kind)
    except msgspec.ValidationError as error:
        raise BadRequest(f"that is no {kind.__name__.lower()}: {error}") from None
