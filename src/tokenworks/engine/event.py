"""One event of a stream, or a whole answer: the part of it that the books need."""

from __future__ import annotations

import msgspec

from tokenworks.core.errors import EngineFailed
from tokenworks.core.units import NS_PER_MS
from tokenworks.engine.adapter import Timing


class Event(msgspec.Struct, gc=False):
    """The part of an event or answer that the books need."""

    type: object = None
    choices: list[msgspec.Raw] | None = None
    usage: object = None
    timings: object = None
    error: object = None
    message: object = None
    """Anthropic's ``message_start`` has the first report in here."""
    response: object = None
    """The last event of a responses stream has the report in here."""


_decoder = msgspec.json.Decoder(Event)


def decoded(data: bytes) -> Event:
    """Raises EngineFailed for what is no JSON object."""
    try:
        return _decoder.decode(data)
    except (msgspec.DecodeError, RecursionError) as error:
        raise EngineFailed("The engine sent something that is not an answer.") from error


def timing_of(report: object) -> Timing | None:
    """llama.cpp's ``timings``: milliseconds as floats. It does not say how long a request waited for a slot."""
    if not isinstance(report, dict):
        return None
    prefill, decode = _ns(report.get("prompt_ms")), _ns(report.get("predicted_ms"))
    return Timing(prefill_ns=prefill, decode_ns=decode) if prefill is not None or decode is not None else None


def _ns(milliseconds: object) -> int | None:
    if isinstance(milliseconds, bool) or not isinstance(milliseconds, int | float) or milliseconds < 0:
        return None
    return round(milliseconds * NS_PER_MS)
