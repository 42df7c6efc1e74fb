"""Usage as CloudEvents 1.0, one JSON object a line, for metering systems such as OpenMeter or Lago.

``source`` and ``id`` together name an event for ever: the receipt's id is the event's, so sending a period twice counts
it once. Within one export a receipt appears once.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import msgspec

from tokenworks.core.errors import BadRequest
from tokenworks.core.units import NS_PER_S
from tokenworks.exchange.exports.sold import Sold, iso

TYPE = "tokenworks.usage.settled.v1"


def events(sold: Iterable[Sold], source: str) -> Iterator[str]:
    """One line of JSON per receipt; ``source`` is a URI reference that names this grid."""
    seen: set[str] = set()
    for row in sold:
        if row.receipt not in seen:
            seen.add(row.receipt)
            yield _event(row, source)


def unique(lines: Iterable[str]) -> Iterator[str]:
    """What a receiver keeps of lines that came more than once: the first of each (source, id). Raises BadRequest."""
    seen: set[tuple[str, str]] = set()
    for line in lines:
        try:
            event = msgspec.json.decode(line)
            name = (event["source"], event["id"])
        except (msgspec.DecodeError, TypeError, KeyError) as error:
            raise BadRequest("a line is no CloudEvent", hint="each needs a source and an id") from error
        if name not in seen:
            seen.add(name)
            yield line


def _event(row: Sold, source: str) -> str:
    data = msgspec.to_builtins(row)
    data["usage"] = dict(row.usage.counts()) | {"certainty": row.usage.certainty}
    nanosecond = row.at_ns % NS_PER_S
    event = {
        "specversion": "1.0",
        "id": row.receipt,
        "source": source,
        "type": TYPE,
        "subject": row.account,
        "time": f"{iso(row.at_ns)[:-1]}.{nanosecond:09d}Z",
        "datacontenttype": "application/json",
        "data": data | {"charged_nano": row.charged_nano, "charged_ustu": row.charged_ustu},
    }
    return msgspec.json.encode(event).decode()
