"""Usage as CloudEvents 1.0, one JSON object a line, for metering systems such as OpenMeter or Lago.

``source`` and ``id`` together name an event for ever: the receipt's id is the event's, so a period that is sent
twice counts once.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import msgspec

from tokenworks.core.units import NS_PER_S
from tokenworks.exchange.exports.sold import Sold, iso

TYPE = "tokenworks.usage.settled.v1"


def events(sold: Iterable[Sold], source: str) -> Iterator[str]:
    """One line of JSON per receipt; ``source`` is a URI reference that names this grid."""
    return (_event(row, source) for row in sold)


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
