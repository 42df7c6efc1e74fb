from __future__ import annotations

import contextlib
import itertools
import re
from datetime import date, datetime, timedelta
from pathlib import Path
from zoneinfo import ZoneInfo

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.support.power import HOUR, MIN

from tokenworks.core.errors import BadRequest
from tokenworks.core.units import MJ_PER_KWH, NS_PER_S
from tokenworks.core.words import Limit
from tokenworks.power.events import (
    BODY_BYTES_MAX,
    GridEvent,
    Settled,
    event_from_webhook,
    limits,
    settle,
    similar_days_mj,
)
from tokenworks.power.signal import Signal

ROME = ZoneInfo("Europe/Rome")
CURTAIL = GridEvent(id="e", kind="curtail", received_ns=0, start_ns=HOUR, end_ns=2 * HOUR, cut_permille=250)


def caps(found: tuple[Limit, ...]) -> list[tuple[int, int, int | None]]:
    return [(limit.start_ns, limit.end_ns, limit.max_mw) for limit in found]


def test_a_curtailment_is_one_firm_limit() -> None:
    """After the drill: a quarter less for an hour, from the start on, at the site that was asked."""
    (limit,) = limits(CURTAIL, "here", 4_000)
    assert limit == Limit(site="here", event="e", start_ns=HOUR, end_ns=2 * HOUR, max_mw=3_000)
    assert limit.firm


def test_a_disconnection_is_not_a_curtailment() -> None:
    """After firm load shed: nothing at all is left, with the same notice."""
    event = GridEvent(id="d", kind="disconnect", start_ns=HOUR, end_ns=2 * HOUR)
    assert caps(limits(event, "here", 4_000)) == [(HOUR, 2 * HOUR, 0)]
    assert limits(event, "here", 4_000)[0].firm


def test_a_shift_asks_softly_and_gives_the_energy_back() -> None:
    """After valley filling: what a shift takes from the evening it welcomes at noon, and neither is firm."""
    event = GridEvent(
        id="s", kind="shift", start_ns=16 * HOUR, end_ns=20 * HOUR, cap_mw=1_000, raise_start_ns=10 * HOUR,
        raise_end_ns=14 * HOUR,
    )  # fmt: skip
    noon, evening = limits(event, "here", 3_000)
    assert (noon.min_mw, noon.max_mw, noon.start_ns) == (5_000, None, 10 * HOUR)
    assert (evening.min_mw, evening.max_mw, evening.start_ns) == (0, 1_000, 16 * HOUR)
    assert not noon.firm
    assert not evening.firm


@settings(deadline=None)
@given(
    st.integers(0, 10**10), st.integers(0, 60 * 60), st.none() | st.integers(0, 10**10), st.integers(0, 1_000),
)  # fmt: skip
def test_ramps_go_down_and_back_without_a_gap(baseline: int, ramp_s: int, cap: int | None, cut: int) -> None:
    """After cliffs: limits meet, fall to the target within the ramp, hold it to the end, and rise back to the load."""
    event = GridEvent(
        id="r", kind="curtail", start_ns=HOUR, end_ns=2 * HOUR, ramp_ns=ramp_s * NS_PER_S, cap_mw=cap,
        cut_permille=cut if cap is None else None,
    )  # fmt: skip
    found = caps(limits(event, "here", baseline))
    assert (found[0][0], found[-1][1]) == (HOUR, 2 * HOUR + ramp_s * NS_PER_S)
    assert all(one[1] == other[0] for one, other in itertools.pairwise(found))
    values = [cap for _, _, cap in found if cap is not None]
    lowest = values.index(min(values))
    assert values[: lowest + 1] == sorted(values[: lowest + 1], reverse=True)
    assert values[lowest:] == sorted(values[lowest:])
    for begin, end, value in found:
        assert value is not None
        assert event.target_mw(baseline) <= value <= baseline
        if begin < 2 * HOUR and end > HOUR + ramp_s * NS_PER_S:
            assert value == event.target_mw(baseline)


def test_a_cancelled_event_limits_nothing() -> None:
    """After changes of mind: the grid takes an event back and the site is free."""
    assert limits(msgspec.structs.replace(CURTAIL, cancelled=True), "here", 4_000) == ()


@pytest.mark.parametrize(
    "wrong",
    [
        {"end_ns": HOUR}, {"ramp_ns": 2 * HOUR}, {"ramp_ns": -1}, {"cap_mw": 5}, {"cut_permille": None},
        {"cut_permille": 1_001}, {"cut_permille": None, "cap_mw": -1}, {"kind": "disconnect"},
        {"raise_start_ns": 5, "raise_end_ns": 5}, {"raise_start_ns": 5},
    ],
)  # fmt: skip
def test_an_event_without_sense_is_refused(wrong: dict[str, object]) -> None:
    """After typing: two targets, none, backward times or a ramp longer than the event are told at once."""
    with pytest.raises(ValueError, match=r"event|cap|window"):
        msgspec.structs.replace(CURTAIL, **wrong)


@pytest.mark.parametrize(
    ("metered_kwh", "settled"),
    [
        (3_000, (1_000, 1_000, 0, 500)),
        (3_400, (1_000, 600, 400, 300 - 800)),
        (2_000, (1_000, 2_000, 0, 500)),  # beyond the target: not paid
        (4_500, (1_000, -500, 1_500, -3_000)),
    ],
)
def test_settlement_pays_what_was_delivered_and_asked(metered_kwh: int, settled: tuple[int, int, int, int]) -> None:
    """After demand response: against a baseline of 4 MWh, delivered energy is paid and what is short is fined."""
    event = msgspec.structs.replace(CURTAIL, pay_nano_per_kwh=5 * 10**8, penalty_nano_per_kwh=2 * 10**9)
    found = settle(event, 4_000 * MJ_PER_KWH, metered_kwh * MJ_PER_KWH)
    asked, delivered, short, money = settled
    expected = Settled(asked * MJ_PER_KWH, delivered * MJ_PER_KWH, short * MJ_PER_KWH, money * 10**9)
    assert found == expected


def test_settlement_without_a_price_is_unknown() -> None:
    """After silent zeros: delivered energy whose pay nobody stated is worth an unknown sum; none is worth none."""
    assert settle(CURTAIL, 4_000, 3_000).nano is None
    assert settle(CURTAIL, 4_000, 4_000) == Settled(1_000, 0, 1_000, 0)


def test_half_of_a_ramp_is_asked_for() -> None:
    """After fairness: while it ramps down the grid asks for half of the full cut on average."""
    event = msgspec.structs.replace(CURTAIL, ramp_ns=30 * MIN)
    assert settle(event, 4_000 * MJ_PER_KWH, 4_000 * MJ_PER_KWH).asked_mj == 750 * MJ_PER_KWH


def day_ns(day: date, hour: int) -> int:
    return int(datetime(day.year, day.month, day.day, hour, tzinfo=ROME).timestamp()) * NS_PER_S


@settings(deadline=None)
@given(st.integers(0, 400), st.integers(0, 22), st.sets(st.integers(1, 12), max_size=4))
def test_the_baseline_is_the_mean_of_similar_days(offset: int, hour: int, gaps: set[int]) -> None:
    """After baselines: the same local hour of the last ten like days, over clock changes, leaving out gaps and events,
    is what a plain walk over the calendar finds."""
    today = date(2025, 1, 15) + timedelta(days=offset)
    days = [today - timedelta(days=n) for n in range(60, 0, -1) if n not in gaps]
    starts = [day_ns(day, hour) for day in days]
    load = Signal(starts, [start + HOUR for start in starts], [int(day.strftime("%j")) * 1_000 for day in days])
    held = today - timedelta(days=3)  # an event
    like = [
        d for d in days[::-1] if (d.weekday() >= 5) == (today.weekday() >= 5) and d != held and (today - d).days <= 45
    ]
    start = day_ns(today, hour)
    found = similar_days_mj(load, start, start + HOUR, ROME, 10, {held})
    if len(like) < 10:
        assert found is None
    else:
        total = sum(int(day.strftime("%j")) for day in like[:10]) * 3_600_000
        assert found == (2 * total + 10) // 20


def test_a_webhook_speaks_the_fields_of_an_event() -> None:
    """After plain integration: JSON in, the same event out; when it came is ours to say."""
    body = b'{"id":"dr-7","kind":"curtail","start_ns":10,"end_ns":20,"cut_permille":250,"received_ns":1}'
    assert event_from_webhook(body, 9) == GridEvent(
        id="dr-7", kind="curtail", received_ns=9, start_ns=10, end_ns=20, cut_permille=250
    )


@pytest.mark.parametrize(
    "body",
    [
        b"", b"[]", b"{", b'{"id":"x"}', b" " * (BODY_BYTES_MAX + 1),
        b'{"id":"x","kind":"explode","start_ns":1,"end_ns":2}',
        b'{"id":"x","kind":"curtail","start_ns":2,"end_ns":1,"cap_mw":1}',
        b'{"id":"x","kind":"disconnect","start_ns":1,"end_ns":2,"sudo":1}',
    ],
)  # fmt: skip
def test_a_bad_webhook_is_one_clear_error(body: bytes) -> None:
    """After strangers: nothing, nonsense, an unknown key or a book is refused with the reason."""
    with pytest.raises(BadRequest):
        event_from_webhook(body)


@settings(deadline=None)
@given(st.binary(max_size=200))
def test_no_bytes_crash_the_webhook(body: bytes) -> None:
    """After fuzzing: any body gives an event or BadRequest."""
    found = None
    with contextlib.suppress(BadRequest):
        found = event_from_webhook(body)
    assert found is None or found.received_ns == 0


def test_the_event_in_the_docs_is_one() -> None:
    """After examples that rot: what docs/power.md shows can be posted as it stands."""
    page = (Path(__file__).parents[3] / "docs" / "power.md").read_text()
    (block,) = re.findall(r"```json\n(.*?)```", page, re.DOTALL)
    event = event_from_webhook(block.encode(), 5)
    assert (event.cut_permille, event.received_ns) == (250, 5)
    assert event.end_ns - event.start_ns == 2 * HOUR
