"""Rate limits as providers put them into headers. Pure functions; times are relative to the answer's own ``date``.

Sources: RFC 9110 (``retry-after``), OpenAI API reference, "Rate limits in headers" (``x-ratelimit-*``, durations like
``6m0s``), Anthropic API reference, "Response headers" (``anthropic-ratelimit-*``, RFC 3339 times).
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from datetime import datetime
from email.utils import parsedate_to_datetime

from tokenworks.engine.adapter import Load

PAUSE_S_MAX = 600.0
"""However long a provider asks to be left alone, it is asked again after this."""
Headers = Sequence[tuple[bytes, bytes]]
_SCALE_S = {"h": 3600.0, "m": 60.0, "s": 1.0, "ms": 0.001}
_SAID = (
    ("x-ratelimit-remaining-{}", "x-ratelimit-reset-{}"),
    ("anthropic-ratelimit-{}-remaining", "anthropic-ratelimit-{}-reset"),
)


def retry_after_s(headers: Headers) -> float | None:
    """How long a refused request should wait; None: the answer does not say."""
    said = _texts(headers)
    if (exact := _number(said.get("retry-after-ms"))) is not None:
        return min(exact / 1000, PAUSE_S_MAX)
    return _until_s(said.get("retry-after"), said)


def room_of(headers: Headers) -> Load | None:
    """What is left of the present window; None: the answer does not say."""
    said = _texts(headers)
    left: int | None = None
    resets_s: float | None = None
    for kind in ("requests", "tokens"):
        for remaining, reset in _SAID:
            count = _number(said.get(remaining.format(kind)))
            if count is None:
                continue
            if kind == "requests" or count == 0:  # tokens only count when none is left
                left = int(count) if left is None else min(left, int(count))
            if count == 0:
                resets_s = max(resets_s or 0.0, _until_s(said.get(reset.format(kind)), said) or 1.0)
    return None if left is None else Load(requests_left=left, resets_s=resets_s)


def _texts(headers: Headers) -> dict[str, str]:
    return {name.decode("latin-1"): value.decode("latin-1").strip() for name, value in headers}


def _number(text: str | None) -> float | None:
    return float(text) if text and re.fullmatch(r"\d{1,15}(\.\d{1,9})?", text, re.ASCII) else None


def _until_s(text: str | None, said: dict[str, str]) -> float | None:
    """Seconds from a number of them, a duration like 6m0s, or a time of day; never negative, never very long."""
    if not text:
        return None
    seconds = _number(text)
    if seconds is None and re.fullmatch(r"(\d{1,9}(\.\d{1,9})?(ms|h|m|s))+", text, re.ASCII):
        parts = re.findall(r"([\d.]+)(ms|h|m|s)", text)
        seconds = sum(float(number) * _SCALE_S[unit] for number, unit in parts)
    if seconds is None:
        try:
            then = parsedate_to_datetime(text) if "," in text else datetime.fromisoformat(text)
            seconds = (then - parsedate_to_datetime(said["date"])).total_seconds()
        except (ValueError, TypeError, KeyError):
            return None
    return min(max(seconds, 0.0), PAUSE_S_MAX)
