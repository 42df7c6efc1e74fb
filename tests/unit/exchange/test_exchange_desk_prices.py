"""Prices that change while requests are in flight: each costs what held when it arrived, within its hold."""

from __future__ import annotations

import msgspec
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tests.unit.exchange.test_exchange_desk import DECISION, DELIVERY, KEY, REQUEST, Disk, directory, lease
from tests.unit.exchange.test_exchange_desk import disk as disk
from tests.unit.exchange.test_exchange_grants import SOLD, Books
from tests.unit.exchange.test_exchange_prices import price_book, rate_card

from tokenworks.core.clock import ManualClock
from tokenworks.core.errors import LedgerRefused
from tokenworks.core.words import BUCKETS, Usage
from tokenworks.exchange.cards import PriceLine
from tokenworks.exchange.desk import Desk
from tokenworks.exchange.prices import PriceList
from tokenworks.exchange.words import Budget, Burn, PlaceHold, SellGrant, SetBudget


@given(
    st.lists(st.tuples(st.integers(0, 4), st.integers(0, 4)), min_size=1, max_size=6),
    st.lists(st.integers(0, 5_000_000), min_size=5, max_size=5),
)
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_a_request_keeps_the_prices_of_its_arrival(disk: Disk, spans: list[tuple[int, int]], prices: list[int]) -> None:
    """Five books, one each 10 ns: requests arrive in one and end in another, and nothing is the operator's loss."""
    books = [
        price_book(str(n), n * 10, PriceLine(model="*", nano_per_mtok=dict.fromkeys(BUCKETS, price)))
        for n, price in enumerate(prices)
    ]
    tariff = PriceList(currency="USD", cards=(rate_card("r", 0, 1),), books=tuple(books))
    clock = ManualClock(7)
    desk = Desk(tariff, clock, disk)
    desk.learn(directory(limit_nano=10**9))
    lease(desk, n_team=10**6, n_acme=10**6)
    desk.budgets.path("team")
    lease(desk, n_team=10**6, n_acme=10**6)
    used = Usage(input=3, output=4)
    for number, (arrives, takes) in enumerate(spans):
        request = msgspec.structs.replace(REQUEST, arrived_ns=arrives * 10)
        then = tariff.at(request.arrived_ns)
        hold = desk.hold(desk.identify(KEY), f"r{number}", then.worst("m", 3, 4), "m", (), then)
        desk.trim(hold, then.worst(DECISION.chosen.model, 3, 4))
        clock.advance(takes * 1e-8)
        settled = desk.settle(hold, request, DECISION, used, DELIVERY, None, None)
        assert settled.price_book == str(arrives)
        assert settled.loss_nano == 0
        assert settled.list_nano == then.price(DECISION.chosen.model, used).nano
    assert all(counter.held == 0 for counter in desk.counters())


@pytest.mark.parametrize(("asked", "lane"), [("", ""), ("big", ""), ("", "slow")])
def test_the_receipt_says_what_the_overage_rule_did(disk: Disk, asked: str, lane: str) -> None:
    """Which model was asked for, which one served, and that it waited in the slow lane."""
    tariff = PriceList(currency="USD", cards=(rate_card("r", 0, 1),))
    desk = Desk(tariff, ManualClock(7), disk)
    desk.learn(directory())
    desk.budgets.path("team")
    lease(desk, n_team=10**6, n_acme=10**3)
    request = msgspec.structs.replace(REQUEST, model_asked=asked, lane=lane)
    hold = desk.hold(desk.identify(KEY), "r", tariff.at(0).worst("m", 1, 1), "m")
    desk.trim(hold, hold.amount)
    settled = desk.settle(hold, request, DECISION, Usage(input=1, output=1), DELIVERY, None, None)
    assert (settled.model_asked, settled.model_served) == (asked or REQUEST.model, DECISION.chosen.model)
    assert settled.lane == lane


def test_the_ledger_refuses_a_package_of_another_group() -> None:
    """Whatever a gateway promises: a grant of one budget holds for that budget and those below it only."""
    books = Books()
    for name, parent in (("team", "a"), ("agent", "team"), ("other", "a")):
        books.give(SetBudget(budget=Budget(name, "a", parent, "", limit_ustu=None, limit_nano=None)), 0)
    books.give(SellGrant(grant=msgspec.structs.replace(SOLD, budget="team")), 10)
    parts = (Burn("p", 5),)
    for budget in ("team", "agent"):
        books.give(PlaceHold(receipt=budget, budget=budget, ustu=5, nano=0, at_ns=11, parts=parts), 11)
    for budget in ("a", "other"):
        with pytest.raises(LedgerRefused, match="another budget"):
            books.give(PlaceHold(receipt=budget, budget=budget, ustu=5, nano=0, at_ns=11, parts=parts), 11)
