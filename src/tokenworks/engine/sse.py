"""Server-sent events: cutting a byte stream into whole events without changing a byte."""

from __future__ import annotations

import re

from tokenworks.core.errors import EngineFailed

EVENT_BYTES_MAX = 1 << 20
"""One event; a larger one is a broken engine."""

_BLANK = re.compile(rb"\n\r?\n")


class Splitter:
    """Collects bytes and gives back whole events, each with the blank line that ends it."""

    def __init__(self, event_bytes_max: int = EVENT_BYTES_MAX) -> None:
        self._event_bytes_max = event_bytes_max
        self._rest = bytearray()

    def feed(self, block: bytes) -> list[bytes]:
        """The events that ``block`` completes. Raises EngineFailed when one grows beyond the bound."""
        rest = self._rest
        seen = max(0, len(rest) - 2)  # a blank line may have begun in the last two bytes
        data: bytes | bytearray = block
        if rest:
            rest += block
            data = rest
        events, start = [], 0
        for blank in _BLANK.finditer(data, seen):
            events.append(bytes(data[start : blank.end()]))
            start = blank.end()
        if len(data) - start > self._event_bytes_max or any(len(event) > self._event_bytes_max for event in events):
            raise EngineFailed(f"The engine sent an event larger than {self._event_bytes_max} bytes.")
        if data is block:
            rest += block[start:]
        else:
            del rest[:start]
        return events

    @property
    def rest(self) -> bytes:
        """What has come of an event that is not complete."""
        return bytes(self._rest)


def payload(event: bytes) -> bytes:
    """The data of an event: its ``data:`` lines joined; empty for a comment or another field."""
    if event.startswith(b"data: ") and event.find(b"\n") >= len(event.rstrip(b"\r\n")):
        return event[6:].rstrip(b"\r\n")
    lines = (line.rstrip(b"\r") for line in event.split(b"\n"))
    return b"\n".join(line[5:].removeprefix(b" ") for line in lines if line.startswith(b"data:"))
