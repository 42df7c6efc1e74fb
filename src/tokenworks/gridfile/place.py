"""Places in a grid file: what is wrong where, as a path and as a line."""

from __future__ import annotations

import re
import tomllib
from bisect import bisect_left
from contextlib import suppress
from functools import partial
from typing import Any

At = tuple[str | int, ...]


class PlaceError(Exception):
    """Something is wrong at a path of the file; ``parse`` adds the file and the line."""

    def __init__(self, at: At, what: str, hint: str | None = None) -> None:
        super().__init__(what)
        self.at, self.what, self.hint = at, what, hint


def unique(names: list[str], at: At, key: str) -> list[str]:
    """The names of a list of tables, when no two are the same. Raises PlaceError."""
    for index, name in enumerate(names):
        if name in names[:index]:
            raise PlaceError((*at, index, key), f"{name!r} is there twice")
    return names


def where(at: At) -> str:
    """A path as people count: ``site[1].supply.price`` for the first site. Odd keys are quoted, long ones cut."""
    text = ""
    for part in at:
        if isinstance(part, int):
            text += f"[{part + 1}]"
        else:
            text += "." + (part if re.fullmatch(r"[\w-]{1,64}", part) else repr(part[:64]))
    return text.removeprefix(".")


def line_of(text: str, at: At) -> int | None:
    """The line where a path begins, or the longest part of it that is there. None: the path is empty.

    What is there by a line is asked of the TOML parser itself, so dotted keys, inline tables and strings of many lines
    need no second grammar; a line inside a statement counts for the statement's end (looked for over 100 lines).
    """
    lines = text.split("\n")

    def there(depth: int, count: int) -> bool:
        for end in range(count, min(count + 100, len(lines)) + 1):
            with suppress(ValueError):
                here: Any = tomllib.loads("\n".join(lines[:end]))
                break
        else:
            return False
        with suppress(KeyError, IndexError, TypeError):
            for part in at[:depth]:
                here = here[part]
            return True
        return False

    for depth in range(len(at), 0, -1):
        before = bisect_left(range(1, len(lines) + 1), True, key=partial(there, depth))
        if before < len(lines):
            return before + 1
    return None
