"""The verifier's JSON: read strictly, write canonically, with the standard library alone.

Strict, because two readers must not see two things in one text: no name twice, no number but integers of 64 bits.
"""

from __future__ import annotations

import hashlib
import hmac
import json
import re
from typing import Any

from tokenworks.exchange.log.errors import BadBundle

DEPTH_MAX = 16
_HEX = re.compile(r"(?:[0-9a-f]{2})*")
_encode = json.JSONEncoder(ensure_ascii=False, allow_nan=False, sort_keys=True, separators=(",", ":")).encode

Object = dict[str, Any]


def _integer(text: str) -> int:
    if len(text) > 20 or not -(1 << 63) <= (number := int(text)) < 1 << 64:
        raise BadBundle("a number in the bundle is too large")
    return number


def _no_number(text: str) -> None:
    raise BadBundle(f"{text[:20]} is not an integer; a bundle has no other numbers")


def _once(pairs: list[tuple[str, Any]]) -> Object:
    made = dict(pairs)
    if len(made) != len(pairs):
        raise BadBundle("a name stands twice in one object of the bundle")
    return made


def read(text: str | bytes) -> Any:
    """The value of a JSON text. Raises BadBundle for anything that is not strict JSON without fractions."""
    try:
        return json.loads(
            text.decode() if isinstance(text, bytes) else text,
            parse_int=_integer,
            parse_float=_no_number,
            parse_constant=_no_number,
            object_pairs_hook=_once,
        )
    except (ValueError, RecursionError) as error:
        raise BadBundle("the file is not a bundle of receipts: it is no JSON", hint=str(error)[:100]) from None


def encode(value: Any) -> bytes:
    """Canonical bytes. Raises BadBundle for text that is not Unicode."""
    try:
        return _encode(value).encode()
    except (UnicodeEncodeError, RecursionError):
        raise BadBundle("a text in the bundle is not Unicode") from None


def hashed(value: Any) -> bytes:
    """SHA-256 of the canonical bytes."""
    return hashlib.sha256(encode(value)).digest()


def text_hash(text: str) -> str:
    """SHA-256 of a text, as leaves write it."""
    return hashlib.sha256(text.encode(errors="surrogatepass")).hexdigest()


def keyed_hash(text: str, key: bytes) -> str:
    """HMAC-SHA-256 of a text, as leaves write it."""
    return hmac.digest(key, text.encode(errors="surrogatepass"), "sha256").hex()


def unhex(text: Any, length: int) -> bytes | None:
    """Bytes of that length from small hexadecimal digits; None for anything else, so that one text means one value."""
    if not isinstance(text, str) or len(text) != 2 * length or not _HEX.fullmatch(text):
        return None
    return bytes.fromhex(text)


def shaped(value: Any, what: str, needed: dict[str, type], optional: dict[str, type] | None = None) -> Object:
    """The value, when it is an object with exactly these names and types. Raises BadBundle, naming the first fault.

    A bool is not an integer here, though Python says so.
    """
    if type(value) is not dict:
        raise BadBundle(f"{what} is not an object")
    known = needed | (optional or {})
    for name in needed:
        if name not in value:
            raise BadBundle(f"{what} has no {name!r}")
    for name, found in value.items():
        if name not in known:
            raise BadBundle(f"{what} has {name!r}, which this version does not know")
        if type(found) is not known[name]:
            raise BadBundle(f"{name!r} of {what} is not of type {known[name].__name__}")
    return value


def flat(value: Any, path: str = "", depth: int = 0) -> dict[str, Any]:
    """Every figure of a receipt's view by its path, like ``lines.power.energy_mj``. Raises BadBundle.

    The lines of a receipt go by their layer, all other lists by position.
    """
    if depth > DEPTH_MAX:
        raise BadBundle("the view of a receipt is nested too deeply")
    if isinstance(value, list):
        names = [str(place) for place in range(len(value))]
        if path == "lines":
            names = [str(each.get("layer")) if isinstance(each, dict) else "" for each in value]
        pairs = list(zip(names, value, strict=True))
    elif isinstance(value, dict):
        pairs = [(name.replace("\\", "\\\\").replace(".", "\\."), each) for name, each in value.items()]
    else:
        return {path: value}
    found: dict[str, Any] = {}
    for name, each in pairs:
        if not name or not name.isprintable():
            raise BadBundle("a figure in the view of a receipt has a name that cannot be shown")
        below = flat(each, f"{path}.{name}" if path else name, depth + 1)
        if not found.keys().isdisjoint(below):  # what is compared must be what people see
            raise BadBundle("two figures in the view of a receipt have the same name")
        found |= below
    return found
