from __future__ import annotations

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.support.exchange import opening
from tests.unit.exchange.test_exchange_leases import settlement

from tokenworks.core.errors import LedgerRefused
from tokenworks.exchange.ledger import apply
from tokenworks.exchange.state import Entry, Source, State
from tokenworks.exchange.words import (
    Budget,
    Burn,
    EndGrant,
    Entity,
    GiveLease,
    Grant,
    Lease,
    OpenAccount,
    PlaceHold,
    SellGrant,
    SetBudget,
    SetEntity,
    Settle,
    Void,
)

GATEWAY: Source = ("g", 1)
SOLD = Grant("p", "a", "small", 100, price_nano=1_000, created_ns=10, effective_ns=10, expires_ns=50)


class Books:
    """A state and all its entries with their dates."""

    def __init__(self, *grants: Grant) -> None:
        self.state, self.entries = State(), list[Entry]()
        self.give(opening("a"), 0)
        self.give(SetBudget(budget=Budget("a", "a", None, "", limit_ustu=None, limit_nano=None)), 0)
        for grant in grants:
            self.give(SellGrant(grant=grant), grant.created_ns)

    def give(self, command: OpenAccount | SetBudget | SellGrant | EndGrant | PlaceHold | Settle, at_ns: int) -> None:
        self.entries += [e._replace(at_ns=e.at_ns or at_ns) for e in apply(self.state, command, GATEWAY)]

    def use(self, ustu: int, at_ns: int, entity: str = "", nano: int = 0, placed_ns: int | None = None) -> None:
        """Burn some of the grant ``p``."""
        receipt, parts = f"r{len(self.entries)}", (Burn("p", ustu),)
        placed = at_ns if placed_ns is None else placed_ns
        hold = PlaceHold(receipt=receipt, budget="a", ustu=ustu, nano=nano, at_ns=placed, parts=parts)
        self.give(hold, placed)
        settled = msgspec.structs.replace(settlement(hold, ustu, nano, parts, at_ns), entity=entity)
        self.give(Settle(settlement=settled), at_ns)

    def at(self, at_ns: int, book: str = "stu") -> dict[str, int]:
        """Balances as of a date that are not 0."""
        found: dict[str, int] = {}
        for entry in self.entries:
            if entry.book == book and entry.at_ns <= at_ns:
                found[entry.account] = found.get(entry.account, 0) + entry.amount
        return {name: amount for name, amount in found.items() if amount}


def test_expiry_is_booked_ahead_and_needs_no_clock() -> None:
    """On the day of expiry what is unused has expired, although nobody said anything on that day."""
    books = Books(SOLD)
    assert books.at(49) == {"stock/a": 100, "issued": -100}
    assert books.at(50) == {"expired": 100, "issued": -100}
    books.use(30, at_ns=20)
    assert books.at(49)["stock/a"] == 70
    assert books.at(50) == {"used": 30, "expired": 70, "issued": -100, "customer/a": 30, "served/own": -30}
    assert books.at(49, "money") == {"customer/a": 1_000, "deferred/a": -700, "revenue/tokens": -300}
    assert books.at(50, "money") == {"customer/a": 1_000, "revenue/tokens": -300, "revenue/breakage": -700}


def test_what_was_promised_before_the_expiry_is_still_used_after_it() -> None:
    """A request in flight over the expiry uses its part: that part did not expire, and nothing is left for ever."""
    books = Books(SOLD)
    books.use(40, at_ns=60, placed_ns=45)
    assert books.at(49)["stock/a"] == 100
    assert (books.at(50)["stock/a"], books.at(50)["expired"]) == (40, 60)
    assert books.at(60) == {"used": 40, "expired": 60, "issued": -100, "customer/a": 40, "served/own": -40}
    assert books.at(60, "money") == {"customer/a": 1_000, "revenue/tokens": -400, "revenue/breakage": -600}


def test_a_refund_takes_the_booked_breakage_back() -> None:
    """What is left returns for at most what it is worth; the rest of its value is breakage that day, not on expiry."""
    books = Books(SOLD)
    books.use(25, at_ns=20)
    for wrong in (751, -1):
        with pytest.raises(LedgerRefused, match="at most 750"):
            apply(books.state, EndGrant(grant="p", refund_nano=wrong, reason="", at_ns=30))
    books.give(EndGrant(grant="p", refund_nano=500, reason="", at_ns=30), 30)
    assert books.at(30) == books.at(99)
    assert books.at(30)["refunded"] == 75
    assert books.at(30, "money") == {"customer/a": 500, "revenue/tokens": -250, "revenue/breakage": -250}
    assert books.at(99, "money") == books.at(30, "money")
    with pytest.raises(LedgerRefused, match="has ended already"):
        apply(books.state, EndGrant(grant="p", refund_nano=0, reason="", at_ns=31))


def test_a_grant_ends_only_when_nobody_can_use_it() -> None:
    """Neither while it is promised, nor leased, nor after it expired: value would be given twice."""
    books = Books(SOLD)
    hold = PlaceHold(receipt="r", budget="a", ustu=10, nano=0, at_ns=20, parts=(Burn("p", 10),))
    books.give(hold, 20)
    end = EndGrant(grant="p", refund_nano=0, reason="", at_ns=21)
    with pytest.raises(LedgerRefused, match="promised to requests in flight"):
        apply(books.state, end)
    apply(books.state, Void(receipt="r", reason="", at_ns=22))
    for allowance, writer in ((10, "g"), (90, "h")):
        lease = (Lease("g:p", 0, allowance),)
        apply(books.state, GiveLease(writer=writer, epoch=1, leases=lease, at_ns=22))
    with pytest.raises(LedgerRefused, match="leased to gateways"):
        apply(books.state, end)
    for writer in "gh":
        apply(books.state, GiveLease(writer=writer, epoch=1, leases=(Lease("g:p", 0, 0),), at_ns=23))
    with pytest.raises(LedgerRefused, match="has expired"):
        apply(books.state, msgspec.structs.replace(end, at_ns=50))
    apply(books.state, msgspec.structs.replace(end, at_ns=49))
    assert books.state.free("g:p", 49) == 0


@given(
    st.integers(1, 200), st.integers(0, 10**12), st.lists(st.integers(0, 60), max_size=12), st.none() | st.just(10**9)
)
def test_a_grant_earns_its_whole_price_however_it_is_cut(
    size: int, price: int, pieces: list[int], end: int | None
) -> None:
    """I13: proportional earning loses less than a nano in all, whatever the pieces; used up, all is earned."""
    grant = Grant("p", "a", "p", size, price_nano=price, created_ns=1, effective_ns=1, expires_ns=end)
    books, used = Books(grant), 0
    for piece in [*pieces, size]:
        part = min(piece, size - used)
        books.use(part, at_ns=5)
        used += part
        earned = -books.at(5, "money").get("revenue/tokens", 0)
        assert 0 <= price * used - earned * size < size
    assert -books.at(5, "money").get("revenue/tokens", 0) == price
    assert books.at(10**10) == {"used": size, "issued": -size, "customer/a": size, "served/own": -size}


def test_an_entity_is_paid_for_packages_as_for_money() -> None:
    """What grants and money earned at its sites is owed to it less the fee; an unknown owner is the operator."""
    books = Books(SOLD)
    apply(books.state, SetEntity(entity=Entity(name="e", fee_permille=100)))
    apply(books.state, SetEntity(entity=Entity(name="mine", own=True, fee_permille=100)))
    books.use(10, at_ns=20, entity="e", nano=55)
    money = books.at(20, "money")
    assert (money["payable/entity/e"], money["revenue/fees"]) == (-140, -15)
    books.use(10, at_ns=20, entity="mine")
    books.use(10, at_ns=20, entity="nobody")
    assert books.at(20, "money")["revenue/tokens"] == -200
    assert books.at(20, "money")["revenue/fees"] == -15
    assert (books.at(20)["served/e"], books.at(20)["served/nobody"]) == (-10, -10)


def test_a_settlement_burns_only_what_was_promised_and_is_left() -> None:
    """More of a grant than the hold had, or a grant that it did not have, is refused and changes nothing."""
    books = Books(SOLD, msgspec.structs.replace(SOLD, id="q"))
    hold = PlaceHold(receipt="r", budget="a", ustu=50, nano=0, at_ns=20, parts=(Burn("p", 10),))
    books.give(hold, 20)
    for burned in ((Burn("p", 11),), (Burn("q", 1),), (Burn("x", 1),), (Burn("p", -1),)):
        with pytest.raises(LedgerRefused):
            apply(books.state, Settle(settlement=settlement(hold, 50, 0, burned, 21)), GATEWAY)
    with pytest.raises(LedgerRefused):
        apply(books.state, Settle(settlement=settlement(hold, 9, 0, (Burn("p", 10),), 21)), GATEWAY)
    assert "r" in books.state.holds
    assert {grant.used_ustu for grant in books.state.grants.values()} == {0}
