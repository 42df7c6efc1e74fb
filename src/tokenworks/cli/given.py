"""What people write on a command line, in our units; and the files that they name."""

from __future__ import annotations

import re
from datetime import UTC, datetime
from pathlib import Path

from tokenworks.core.clock import WallClock
from tokenworks.core.errors import BadRequest
from tokenworks.core.files import write_private
from tokenworks.core.units import parse, parse_money
from tokenworks.datadir import currency_of, data_directory
from tokenworks.exchange.exports.sold import nanos


def currency() -> str:
    """Of this grid's books. Raises DataDirError before the first start."""
    return currency_of(data_directory())


def money_nano(text: str | None) -> int | None:
    """``"25 USD"`` in the currency of the books."""
    return None if text is None else parse_money(text, currency())


def tokens_ustu(text: str | None) -> int | None:
    """``"10 MSTU"``."""
    return None if text is None else parse(text, "stu")


def duration_ns(text: str) -> int:
    """``"30 d"`` or ``"30d"`` as nanoseconds."""
    return parse(re.sub(r"(\d)([a-z])", r"\1 \2", text), "time")


def from_now_ns(text: str | None) -> int | None:
    """The instant so long from now; None for nothing."""
    return None if text is None else WallClock().now_ns() + duration_ns(text)


def names(text: str | None) -> list[str]:
    """``"a, b"`` as a list; nothing is an empty one."""
    return [] if text is None else [name.strip() for name in text.split(",") if name.strip()]


def day_ns(text: str) -> int:
    """A day or a month in UTC as its first nanosecond. Raises BadRequest."""
    try:
        if re.fullmatch(r"2\d{3}-\d\d(-\d\d)?", text):
            return nanos(datetime.fromisoformat(text if len(text) > 7 else text + "-01").replace(tzinfo=UTC))
    except ValueError:
        pass
    raise BadRequest(f"{text!r} is no day", hint="write 2026-11-01, or 2026-11 for a month")


def instant_ns(text: str) -> int:
    """An instant or a day, in UTC without a zone. Raises BadRequest."""
    try:
        instant = datetime.fromisoformat(text)
    except ValueError:
        raise BadRequest(f"{text!r} is no instant", hint="write 2026-12-01 or 2026-12-01T08:00") from None
    return nanos(instant if instant.tzinfo else instant.replace(tzinfo=UTC))


def write(path: Path, content: bytes) -> None:
    """A private file at a place that the user named. Raises BadRequest."""
    try:
        write_private(path, content)
    except OSError as error:
        raise BadRequest(f"cannot write {path}: {error.strerror}", hint="name another file") from None
