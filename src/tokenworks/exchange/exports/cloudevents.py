"""Usage as CloudEvents 1.0, for metering systems such as OpenMeter or Lago.

``source`` and ``id`` together name an event for ever: the receipt's id is the event's, so a period that is sent
twice counts once.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

import msgspec

from tokenworks.core.units import NS_PER_S
from tokenworks.exchange.exports.sold import Sold, iso

TYPE = "tokenworks.usage.settled.v1"


def events(sold: Iterable[Sold], source: str = "/tokenworks") -> Iterator[dict[str, Any]]:
    """An event per receipt; ``source`` is a URI reference that names this grid."""
    for row in sold:
        usage = dict(row.usage.counts()) | {"certainty": row.usage.certainty}
        charged = {"charged_nano": row.charged_nano, "charged_ustu": row.charged_ustu}
        yield {
            "specversion": "1.0", "id": row.receipt, "source": source, "type": TYPE, "subject": row.account,
            "time": f"{iso(row.at_ns)[:-1]}.{row.at_ns % NS_PER_S:09d}Z", "datacontenttype": "application/json",
            "data": msgspec.to_builtins(row) | {"usage": usage} | charged,
        }  # fmt: skip
