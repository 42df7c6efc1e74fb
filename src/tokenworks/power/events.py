"""Grid events: what a grid asks of a site, the limits on its power that follow, and what it is owed afterwards."""

from __future__ import annotations

from collections.abc import Collection
from datetime import date, timedelta, tzinfo
from functools import partial
from itertools import pairwise
from typing import Literal, NamedTuple

import msgspec

from tokenworks.core.errors import BadRequest
from tokenworks.core.units import MJ_PER_KWH, NS_PER_S, energy_mj, rate_of
from tokenworks.core.words import Limit, Word
from tokenworks.power.signal import Steps, weighed
from tokenworks.power.tariff import local, to_ns

RAMP_STEPS = 10
BODY_BYTES_MAX = 65_536


class GridEvent(Word, frozen=True):
    """One call of the grid. Raises ValueError when its times or its target make no sense.

    ``curtail``: no more than the target, firmly. ``shift``: the same if it pays, and what was not used in the window is
    welcome from ``raise_start_ns`` to ``raise_end_ns``. ``disconnect``: nothing, firmly. The notice is
    ``start_ns - received_ns``. From the start on the power ramps to the target for ``ramp_ns``, from the end on back.
    The target is a cap or a cut below the baseline. The grid pays for what is delivered (None: unknown) and may fine
    what is short. ``cancelled``: the event of this id is over.
    """

    id: str
    kind: Literal["curtail", "shift", "disconnect"]
    start_ns: int
    end_ns: int
    received_ns: int = 0
    cap_mw: int | None = None
    cut_permille: int | None = None
    ramp_ns: int = 0
    raise_start_ns: int | None = None
    raise_end_ns: int | None = None
    pay_nano_per_kwh: int | None = None
    penalty_nano_per_kwh: int | None = None
    cancelled: bool = False

    def __post_init__(self) -> None:
        if self.start_ns >= self.end_ns or (self.raise_start_ns or 0) >= (self.raise_end_ns or 1):
            raise ValueError("an event, and the window for what it shifts, ends after it starts")
        if (self.cap_mw is None) + (self.cut_permille is None) != 1 + (self.kind == "disconnect"):
            raise ValueError("an event has one target, a cap or a cut; a disconnection has none")
        ramps = 0 <= self.ramp_ns <= self.end_ns - self.start_ns
        if not ramps or (self.cap_mw or 0) < 0 or not 0 <= (self.cut_permille or 0) <= 1_000:
            raise ValueError("a cap is not negative, a cut at most everything, and the ramp fits into the event")

    def target_mw(self, baseline_mw: int) -> int:
        """Its cap, never above the baseline: an event takes away."""
        cut = baseline_mw - rate_of(baseline_mw, self.cut_permille or 0, 1_000)
        return 0 if self.kind == "disconnect" else min(baseline_mw, cut if self.cap_mw is None else self.cap_mw)


def limits(event: GridEvent, site: str, baseline_mw: int) -> tuple[Limit, ...]:
    """The event as limits in order of time, its ramps as ``RAMP_STEPS`` equal steps, each as low as its lower end.
    ``baseline_mw``: what the site would take without it."""
    if event.cancelled:
        return ()
    cut, ramp, steps = baseline_mw - event.target_mw(baseline_mw), event.ramp_ns, range(RAMP_STEPS)
    edges = [(event.start_ns + ramp * step // RAMP_STEPS, cut * (step + 1) // RAMP_STEPS) for step in steps]
    edges += [(event.start_ns + ramp, cut)]
    edges += [(event.end_ns + ramp * step // RAMP_STEPS, cut * (RAMP_STEPS - step) // RAMP_STEPS) for step in steps]
    edges += [(event.end_ns + ramp, 0)]
    spans = [(begin, end, off) for (begin, off), (end, _) in pairwise(edges) if begin < end]
    limit = partial(Limit, site=site, event=event.id, firm=event.kind != "shift")
    found = [limit(start_ns=begin, end_ns=end, max_mw=baseline_mw - off) for begin, end, off in spans]
    if event.raise_start_ns is not None and event.raise_end_ns is not None:
        begin, end = event.raise_start_ns, event.raise_end_ns
        more_mw = cut * (event.end_ns - event.start_ns) // (end - begin)
        found.append(limit(start_ns=begin, end_ns=end, min_mw=baseline_mw + more_mw))
    return tuple(sorted(found, key=lambda each: each.start_ns))


class Settled(NamedTuple):
    """What an event was worth. ``delivered_mj`` is below the baseline (negative: above it), ``short_mj`` below what was
    asked. ``nano``: pay for what was delivered and asked for, less the penalty; None: a price is not known."""

    asked_mj: int
    delivered_mj: int
    short_mj: int
    nano: int | None


def settle(event: GridEvent, baseline_mj: int, metered_mj: int) -> Settled:
    """Settle an event over its whole window [start, end), both energies over that window. Sums, so any interval's
    excess makes up for another's lack; what goes beyond the target is not paid."""
    length_ns = event.end_ns - event.start_ns
    full_mj = rate_of(baseline_mj, event.cut_permille or (1_000 if event.kind == "disconnect" else 0), 1_000)
    if event.cap_mw is not None:
        full_mj = max(0, baseline_mj - energy_mj(event.cap_mw, length_ns))
    asked = full_mj - full_mj * event.ramp_ns // (2 * length_ns)  # the ramp down asks for half
    delivered = baseline_mj - metered_mj
    paid, short = max(0, min(asked, delivered)), max(0, asked - delivered)
    owed = rate_of(paid, event.pay_nano_per_kwh or 0, MJ_PER_KWH)
    owed -= rate_of(short, event.penalty_nano_per_kwh or 0, MJ_PER_KWH)
    return Settled(asked, delivered, short, None if paid and event.pay_nano_per_kwh is None else owed)


def similar_days_mj(
    load: Steps, start_ns: int, end_ns: int, zone: tzinfo, days: int = 10, without: Collection[date] = ()
) -> int | None:
    """The baseline [mJ] of a window: the mean of the same hours of the local clock on the last ``days`` days of the
    same kind (workdays or weekends) that were metered without a gap, within 45 days. None: there were fewer. ``load``:
    milliwatts; ``without``: days that had an event or were holidays. (Day matching, "10 of 10".)"""
    begin, found = local(start_ns, zone), list[int]()
    for back in range(1, 46):
        day = begin.replace(fold=0) - timedelta(days=back)  # the same wall clock, whatever the clocks did since
        start = to_ns(day) + start_ns % NS_PER_S
        if (day.weekday() >= 5) == (begin.weekday() >= 5) and day.date() not in without and len(found) < days:
            energy = weighed(load, start, start + end_ns - start_ns)
            found += [] if energy is None else [energy]
    return rate_of(sum(found), 1, days * NS_PER_S) if len(found) == days else None


def event_from_webhook(body: bytes, received_ns: int = 0) -> GridEvent:
    """Read an event that was posted as JSON with the fields of ``GridEvent`` (docs/power.md); when it came is the
    receiver's to say, whatever the body claims. Raises BadRequest."""
    if len(body) > BODY_BYTES_MAX:
        raise BadRequest("the event is larger than 64 KiB")
    try:
        return msgspec.structs.replace(msgspec.json.decode(body, type=GridEvent), received_ns=received_ns)
    except (msgspec.MsgspecError, ValueError) as error:
        raise BadRequest(f"not a grid event: {error}", hint="docs/power.md has an example") from error
