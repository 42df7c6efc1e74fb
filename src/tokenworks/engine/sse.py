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
        self._rest = b""

    def whole(self, block: bytes) -> bytes:
        """The events that ``block`` completes, joined. Raises EngineFailed when one grows beyond the bound."""
        data = self._rest + block if self._rest else block
        if data.endswith(b"\n\n"):
            self._rest = b""
            return data
        end = max(data.rfind(b"\n\n") + 2, data.rfind(b"\n\r\n") + 3)
        end = end if end > 2 or data[:2] == b"\n\n" else 0
        self._rest = data[end:]
        if len(self._rest) > self._event_bytes_max:
            raise EngineFailed(f"The engine sent an event larger than {self._event_bytes_max} bytes.")
        return data[:end]

    def split(self, events: bytes) -> list[bytes]:
        """Whole events one by one. Raises EngineFailed for one that is too large."""
        start = len(events) - len(events.lstrip(b"\r\n"))  # more line ends of the event before, which has gone
        found = [events[:start]] if start else []
        for blank in _BLANK.finditer(events, start):
            found.append(events[start : blank.end()])
            start = blank.end()
        if start < len(events):  # one more line end after a blank line
            found.append(events[start:])
        if any(len(event) > self._event_bytes_max for event in found):
            raise EngineFailed(f"The engine sent an event larger than {self._event_bytes_max} bytes.")
        return found

    @property
    def rest(self) -> bytes:
        """What has come of an event that is not complete."""
        return self._rest


def payload(event: bytes) -> bytes:
    """The data of an event: its ``data:`` lines joined; empty for a comment or another field."""
    if event.startswith(b"data: ") and event.find(b"\n") >= len(event.rstrip(b"\r\n")):
        return event[6:].rstrip(b"\r\n")
    lines = (line.rstrip(b"\r") for line in event.split(b"\n"))
    return b"\n".join(line[5:].removeprefix(b" ") for line in lines if line.startswith(b"data:"))
