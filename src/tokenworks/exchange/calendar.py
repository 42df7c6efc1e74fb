"""Windows of limits in UTC: none, a day, a month."""

from __future__ import annotations

from datetime import UTC, datetime

from tokenworks.core.units import NS_PER_S
from tokenworks.exchange.words import Window

_DAY_NS = 86_400 * NS_PER_S


def window_start_ns(window: Window, at_ns: int) -> int:
    """When the window that holds an instant began; 0 for a limit that never starts anew."""
    if window == "none":
        return 0
    day = at_ns // _DAY_NS * _DAY_NS
    if window == "day":
        return day
    return day - (datetime.fromtimestamp(day // NS_PER_S, tz=UTC).day - 1) * _DAY_NS


def window_end_ns(window: Window, at_ns: int) -> int | None:
    """When that window ends; None: never."""
    if window == "none":
        return None
    start = window_start_ns(window, at_ns)
    return start + _DAY_NS if window == "day" else window_start_ns("month", start + 32 * _DAY_NS)
