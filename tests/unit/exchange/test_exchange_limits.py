from __future__ import annotations

import copy
from datetime import UTC, datetime

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.support.exchange import holding, opening
from tests.unit.exchange.test_exchange_leases import settlement

from tokenworks.core.errors import LedgerRefused
from tokenworks.core.units import NS_PER_S
from tokenworks.exchange.calendar import window_end_ns, window_start_ns
from tokenworks.exchange.ledger import apply
from tokenworks.exchange.state import Source, State
from tokenworks.exchange.words import (
    AnyCommand,
    Budget,
    EndEpoch,
    GiveLease,
    Lease,
    PlaceHold,
    SetBudget,
    Settle,
    Window,
)

DAY_NS = 86_400 * NS_PER_S
G1: Source = ("g1", 1)
G2: Source = ("g2", 1)
windows = st.sampled_from(["none", "day", "month"])
instants = st.integers(0, 4_000_000_000 * NS_PER_S)


def limited(name: str, parent: str | None = None, limit: int | None = None, **terms: object) -> Budget:
    plain = Budget(name, "a", parent, name, limit_ustu=limit, limit_nano=limit)
    return msgspec.structs.replace(plain, **terms)


def state(*budgets: Budget) -> State:
    made = State()
    apply(made, opening("a"))
    for each in budgets:
        apply(made, SetBudget(budget=each))
    return made


def lease(books: State, source: Source, counter: str, allowance: int, window_ns: int = 0, at_ns: int = 0) -> None:
    apply(
        books,
        GiveLease(writer=source[0], epoch=source[1], leases=(Lease(counter, window_ns, allowance),), at_ns=at_ns),
    )


def charge(books: State, source: Source, leaf: str, amount: int, placed_ns: int = 0, at_ns: int = 0) -> None:
    hold = PlaceHold(receipt=f"r{at_ns}-{amount}", budget=leaf, ustu=amount, nano=amount, at_ns=placed_ns)
    apply(books, hold, source)
    apply(books, Settle(settlement=settlement(hold, amount, amount, (), at_ns)), source)


def refused(books: State, command: AnyCommand, message: str) -> None:
    before = copy.deepcopy(books)
    with pytest.raises(LedgerRefused, match=message):
        apply(books, command)
    assert books == before


@given(windows, instants)
def test_windows_are_those_of_the_calendar(window: Window, at_ns: int) -> None:
    """Every instant is in exactly one window, whose bounds the calendar of the standard library has too."""
    start, end = window_start_ns(window, at_ns), window_end_ns(window, at_ns)
    if window == "none":
        assert (start, end) == (0, None)
        return
    assert end is not None
    assert start <= at_ns < end
    assert (window_start_ns(window, start), window_start_ns(window, end - 1), window_start_ns(window, end)) == (
        start,
        start,
        end,
    )
    found = datetime.fromtimestamp(at_ns // NS_PER_S, tz=UTC)
    expected = datetime(found.year, found.month, found.day if window == "day" else 1, tzinfo=UTC)
    assert start == int(expected.timestamp()) * NS_PER_S


def test_a_leap_day_is_in_its_month() -> None:
    """February ends on the 29th in 2024 and on the 28th in 2023."""
    for year, days in ((2023, 28), (2024, 29)):
        start = int(datetime(year, 2, 1, tzinfo=UTC).timestamp()) * NS_PER_S
        assert window_end_ns("month", start + 5) == start + days * DAY_NS


def test_what_is_leased_to_one_is_not_free_for_another() -> None:
    """Two gateways share a limit; spending moves from the lease to the books, and the rest stays the same."""
    books = state(limited("b", limit=100))
    lease(books, G1, "n:b", 70)
    assert books.free("n:b", 0) == 30
    refused(books, GiveLease(writer="g1", epoch=1, leases=(Lease("n:b", 0, 101),), at_ns=0), "not that much left")
    lease(books, G2, "n:b", 30)
    charge(books, G1, "b", 50)
    assert (books.free("n:b", 0), books.out("n:b", 0), books.tallies["b"].window_nano) == (0, 50, 50)
    refused(books, GiveLease(writer="g1", epoch=1, leases=(Lease("n:b", 0, 49),), at_ns=0), "not that much left")
    lease(books, G1, "n:b", 50)
    lease(books, G2, "n:b", 50)
    assert books.free("n:b", 0) == 0
    apply(books, EndEpoch(writer="g2", epoch=1, reason="", at_ns=0))
    assert books.free("n:b", 0) == 50
    refused(books, GiveLease(writer="g2", epoch=1, leases=(), at_ns=0), "has ended")


def test_a_batch_of_leases_is_given_whole_or_not_at_all() -> None:
    """One that is too large takes the others with it: the gateway asks again with what is true now."""
    books = state(limited("b", limit=100), limited("c", "b", limit=10))
    apply(books, GiveLease(writer="g1", epoch=1, leases=(), at_ns=0))
    both = (Lease("n:b", 0, 5), Lease("n:c", 0, 11))
    refused(books, GiveLease(writer="g1", epoch=1, leases=both, at_ns=0), "n:c")


def test_a_limit_starts_anew_with_its_window() -> None:
    """Yesterday's spending and leases do not count today; a hold placed yesterday counts yesterday."""
    books = state(limited("b", limit=100, window="day"))
    lease(books, G1, "n:b", 100, window_ns=DAY_NS, at_ns=DAY_NS)
    charge(books, G1, "b", 60, placed_ns=DAY_NS, at_ns=DAY_NS)
    assert (books.free("n:b", DAY_NS), books.free("n:b", 2 * DAY_NS)) == (0, 100)
    lease(books, G1, "n:b", 90, window_ns=2 * DAY_NS, at_ns=2 * DAY_NS)
    charge(books, G1, "b", 40, placed_ns=DAY_NS + 1, at_ns=2 * DAY_NS + 1)
    assert (books.free("n:b", 2 * DAY_NS), books.out("n:b", 2 * DAY_NS)) == (10, 90)
    charge(books, G1, "b", 80, placed_ns=2 * DAY_NS, at_ns=2 * DAY_NS + 2)
    assert (books.free("n:b", 2 * DAY_NS), books.out("n:b", 2 * DAY_NS)) == (10, 10)
    charge(books, G1, "b", 0, placed_ns=DAY_NS, at_ns=2 * DAY_NS + 3)
    assert books.tallies["b"].window_nano == 80
    assert books.tallies["b"].spent_nano == 180


def test_a_lowered_limit_stops_new_leases_only() -> None:
    """What is out stays out; nothing more is given until spending and returns fit again."""
    books = state(limited("b", limit=100))
    lease(books, G1, "n:b", 80)
    apply(books, SetBudget(budget=limited("b", limit=50)))
    assert books.free("n:b", 0) == -30
    refused(books, GiveLease(writer="g1", epoch=1, leases=(Lease("n:b", 0, 81),), at_ns=0), "not that much left")
    apply(books, SetBudget(budget=limited("b", limit=81)))
    lease(books, G1, "n:b", 81)


def test_a_carved_budget_takes_its_limit_out_of_its_parent() -> None:
    """The parent is less by what it gave, not by what is spent; raising takes more, closing returns the rest."""
    books = state(limited("b", limit=100), limited("c", "b", limit=60, carved=True), limited("d", "c", limit=50))
    assert (books.free("n:b", 0), books.free("n:c", 0)) == (40, 60)
    lease(books, G1, "n:d", 50)
    lease(books, G1, "n:c", 60)
    charge(books, G1, "d", 20)
    assert [books.free(f"n:{name}", 0) for name in "bcd"] == [40, 0, 0]
    assert [books.tallies[name].spent_nano for name in "bcd"] == [20, 20, 20]
    assert books.limited_path("d") == ["d", "c"]
    refused(books, SetBudget(budget=limited("c", "b", limit=101, carved=True)), "not that much left to carve")
    refused(books, SetBudget(budget=limited("c", "b", limit=19, carved=True)), "has spent more than that")
    apply(books, SetBudget(budget=limited("c", "b", limit=100, carved=True)))
    assert books.free("n:b", 0) == 0
    apply(books, EndEpoch(writer="g1", epoch=1, reason="", at_ns=1))
    closed = limited("c", "b", limit=100, carved=True, closed_ns=1)
    apply(books, SetBudget(budget=closed))
    assert books.free("n:b", 0) == 80
    apply(books, SetBudget(budget=closed))
    assert books.free("n:b", 0) == 80
    apply(books, SetBudget(budget=limited("c", "b", limit=70, carved=True)))
    assert books.free("n:b", 0) == 30


def test_what_cannot_be_a_budget_is_refused() -> None:
    """Wrong parents, moved budgets, carved ones without a parent or with a window, negative limits."""
    books = state(limited("b", limit=100), limited("c", "b", limit=10))
    for budget, message in (
        (limited("d", "nowhere", 1), "no budget"),
        (limited("d", None, 1, account="nobody"), "no account"),
        (limited("c", None, 1), "belongs elsewhere"),
        (limited("c", "b", 1, carved=True), "belongs elsewhere"),
        (limited("d", None, 1, carved=True), "has a parent and no window"),
        (limited("d", "b", 1, carved=True, window="day"), "has a parent and no window"),
        (limited("d", "b", -1), "negative"),
    ):
        refused(books, SetBudget(budget=budget), message)


def test_a_window_waits_for_what_is_held() -> None:
    """A hold of yesterday settles in the window of its day: in a new window it would be spent beside a whole limit."""
    books = state(limited("a", limit=100, window="day"))
    lease(books, G1, "n:a", 100)
    lease(books, G1, "u:a", 100)
    apply(books, holding("r", "a", 100, 100), G1)
    whole = SetBudget(budget=limited("a", limit=100), at_ns=DAY_NS)
    refused(books, whole, "window cannot change")
    apply(books, Settle(settlement=settlement(holding("r", "a", 100, 100), 100, 100, (), DAY_NS)), G1)
    apply(books, whole)
    assert books.free("n:a", DAY_NS) == 0
