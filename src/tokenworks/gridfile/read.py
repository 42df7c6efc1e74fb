"""Reading a grid file: TOML, quantities, types, defaults, checks; the first thing wrong is a GridFileError."""

from __future__ import annotations

import re
import tomllib
from decimal import Decimal
from pathlib import Path
from typing import Any

import msgspec

from tokenworks.core.errors import GridFileError
from tokenworks.gridfile.check import check, fill
from tokenworks.gridfile.place import At, PlaceError, line_of, where
from tokenworks.gridfile.quantities import currency_of, quantities
from tokenworks.gridfile.tables import GridFile

SIZE_MAX = 1_000_000
"""Bytes. A grid of thousands of sites fits; a file of another kind, named by mistake, does not."""


def default_grid() -> GridFile:
    """This machine as site ``here`` with its devices discovered and one embedded replica, ``here-1``."""
    return parse("", "default")


def load(path: Path) -> GridFile:
    """Read a grid file. Raises GridFileError when it cannot be read, is over 1 MB or is wrong."""
    try:
        with path.open("rb") as file:
            content = file.read(SIZE_MAX + 1)
        text = content.decode()
    except (OSError, ValueError) as error:  # ValueError: not UTF-8, or a NUL in the path
        reason = error.strerror if isinstance(error, OSError) else "not UTF-8 text"
        raise GridFileError(f"{path}: cannot be read: {reason}") from error
    grid = parse(text, str(path), path.parent)
    if grid.exchange.price_file is None:
        return grid
    beside = str(path.parent / grid.exchange.price_file)
    return msgspec.structs.replace(grid, exchange=msgspec.structs.replace(grid.exchange, price_file=beside))


def parse(text: str, name: str, folder: Path = Path()) -> GridFile:
    """Read a grid file's text; ``name`` is what errors call it, files of signals are beside it, in ``folder``.

    Raises GridFileError for the first thing wrong.
    """
    if len(text) > SIZE_MAX:
        raise GridFileError(f"{name}: over 1 MB", hint="is this a grid file?")
    try:
        raw = tomllib.loads(text, parse_float=Decimal)
    except (ValueError, RecursionError) as error:  # ValueError: also a number of thousands of digits
        what, line = str(error), ""
        if place := re.search(r" \(at (?:line (\d+), column \d+|end of document)\)", what):
            what, line = what[: place.start()], f":{place[1] or text.count(chr(10)) + 1}"
        raise GridFileError(f"{name}{line}: not TOML: {what}") from error
    try:
        quantities(GridFile, raw, (), currency_of(raw))
        _convert(raw)
        fill(raw)
        _beside(raw, folder)
        grid = _convert(raw)
        check(grid)
    except PlaceError as error:
        number = line_of(text, error.at)
        places = (f"{name}:{number}" if number else name, where(error.at), error.what[:300])
        raise GridFileError(": ".join(place for place in places if place), hint=error.hint) from error
    return grid


def _beside(node: Any, folder: Path) -> None:
    """Make the paths of all files of signals relative to the folder, in place."""
    if isinstance(node, dict) and "file" in node and "column" in node:
        node["file"] = str(folder / node["file"])
    for child in node.values() if isinstance(node, dict) else node if isinstance(node, list) else ():
        _beside(child, folder)


def _convert(raw: dict[str, Any]) -> GridFile:
    """Check every type that is not a quantity; raises PlaceError with msgspec's finding in the words of TOML."""
    try:
        return msgspec.convert(raw, GridFile, strict=True)
    except (msgspec.ValidationError, ValueError) as error:
        what, _, path = str(error).partition(" - at `$")
        at: At = tuple(key or int(index) for key, index in re.findall(r"\.(\w+)|\[(\d+)\]", path))
        if missing := re.match(r"Object missing required field `(\w+)`", what):
            raise PlaceError((*at, missing[1]), "is missing") from error
        hint = f"write [[{at[-1]}]] above each" if what == "Expected `array`, got `object`" and at else None
        for pattern, word in _WORDS.items():
            what = re.sub(pattern, word, what)
        raise PlaceError(at, what, hint) from error


_WORDS = {
    r"Expected `int` >= (\d+)": r"must be at least \1",
    r"Expected `int` <= (\d+)|Integer value out of range": "is too large",
    r"Expected `str` of length >= 1": "must not be empty",
    r"Expected `str` of length <= (\d+)": r"must not be longer than \1 characters",
    r"Expected `str` matching .*": "must not have control characters",
    r"Expected ": "must be ",
    r"`str(?: \| null)?`": "a string",
    r"`int(?: \| null)?`": "a whole number",
    r"`(?:float|decimal)`": "a number with decimals",
    r"`array(?: \| null)?`": "an array",
    r"`object(?: \| null)?`": "a table",
    r"`bool`": "true or false",
    r", got ": ", not ",
}
