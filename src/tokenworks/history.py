"""What a site drew, by the quarter of an hour: from it follows the baseline of a grid event.

Kept in the data directory for as long as similar days are looked for.
"""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Collection
from datetime import UTC, date, datetime, tzinfo
from hashlib import sha256
from pathlib import Path

import msgspec

from tokenworks.core.files import write_private
from tokenworks.core.units import NS_PER_S, energy_mj, rate_of

log = logging.getLogger(__name__)
SLOT_NS, SLOTS_MAX = 900 * NS_PER_S, 47 * 96
SEEN_NS = SLOT_NS * 9 // 10
"""Of a quarter, for it to count as metered."""


def file_name(site: str) -> str:
    """For what is kept of a site, whose name may be anything."""
    return sha256(site.encode()).hexdigest()[:32]


class History:
    """Of one site, whose days are those of ``zone``."""

    zone: tzinfo = UTC
    holidays: Collection[date] = ()

    def __init__(self, path: Path) -> None:
        self._path = path
        self._mw: dict[int, int | None] = {}
        """By number of the quarter (UTC); None: it had a grid event."""
        self._slot = self._mj = self._ns = 0
        self._event = False
        try:
            self._mw = msgspec.json.decode(path.read_bytes(), type=dict[int, int | None])
        except (OSError, msgspec.MsgspecError) as error:
            if path.exists():
                log.warning("what was drawn on earlier days is lost: %s", error)

    def see(self, start_ns: int, end_ns: int, mw: int, *, event: bool) -> None:
        """The power of the last second or so, and whether an event was in force."""
        if (slot := end_ns // SLOT_NS) != self._slot:
            if self._ns >= SEEN_NS or self._event:
                self._mw[self._slot] = None if self._event else rate_of(self._mj, NS_PER_S, self._ns)
                self._mw = {each: mean for each, mean in self._mw.items() if each > slot - SLOTS_MAX}
                with contextlib.suppress(OSError):  # a full disk must not keep a limit from being answered
                    self._path.parent.mkdir(exist_ok=True)
                    write_private(self._path, msgspec.json.encode(self._mw))
            self._slot, self._mj, self._ns, self._event = slot, 0, 0, False
        self._mj, self._ns = self._mj + energy_mj(mw, end_ns - start_ns), self._ns + end_ns - start_ns
        self._event = self._event or event

    def baseline_mw(self, start_ns: int, end_ns: int) -> int | None:
        """Mean power at that time of similar days, by ``similar_days_mj``; None: there were too few."""
        from tokenworks.power.events import similar_days_mj  # numpy: only for who has events
        from tokenworks.power.signal import Signal

        known = sorted((slot * SLOT_NS, mw) for slot, mw in self._mw.items() if mw is not None)
        load = Signal([at for at, _ in known], [at + SLOT_NS for at, _ in known], [mw for _, mw in known])
        held = [datetime.fromtimestamp(slot * 900, self.zone).date() for slot, mw in self._mw.items() if mw is None]
        mj = similar_days_mj(load, start_ns, end_ns, self.zone, without={*held, *self.holidays})
        return None if mj is None else rate_of(mj, NS_PER_S, end_ns - start_ns)
