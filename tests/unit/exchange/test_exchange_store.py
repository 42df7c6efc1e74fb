"""What every store promises, on a file, in memory and on a real PostgreSQL."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest
from tests.support import exchange as support
from tests.support.exchange import energy_line, interval, work
from tests.support.postgres import new_database, postgres

from tokenworks.core.errors import LedgerRefused
from tokenworks.core.units import FIGURE_MAX
from tokenworks.core.words import EnergyLine, Usage
from tokenworks.exchange.journal import Position
from tokenworks.exchange.log.leaves import Metered, Settled, Totals
from tokenworks.exchange.state import Entry, State, Tally
from tokenworks.exchange.store import Store, base, open_store
from tokenworks.exchange.store.documents import doc
from tokenworks.exchange.store.fits import refuse_unstorable
from tokenworks.exchange.words import (
    Account,
    AddKey,
    AnyCommand,
    BillPower,
    Budget,
    CloseInterval,
    DescribeSite,
    Key,
    OpenAccount,
    PlaceHold,
    RevokeKey,
    Settle,
    Settlement,
    SiteFacts,
    encode_settlement,
)

BUDGET = Budget(id="team", account="acme", parent=None, name="team", limit_ustu=None, limit_nano=5)
KEY = Key(id="k", hash=b"\0\1", account="acme", budget="team", role="user", made_ns=1)


@pytest.fixture(scope="module")
def server() -> Iterator[str]:
    with postgres() as url:
        yield url


@pytest.fixture(params=["file", "memory", "postgres"])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Store]:
    if request.param == "postgres":
        made = open_store(new_database(request.getfixturevalue("server")))
    else:
        made = open_store(tmp_path / "ledger.db" if request.param == "file" else ":memory:")
    yield made
    made.close()


def settlement(receipt: str, *, worked: bool = True, **figures: Any) -> Settlement:
    values = {"account": "acme", "budget": "team", "ustu": 60, "nano": 700, "at_ns": 20}
    usage = Usage(input=3, output=4, reasoning=2)
    return support.settlement(receipt, **values | {"usage": usage, "work": work(receipt) if worked else None} | figures)


def line(receipt: str, *, ended: bool = True, energy_mj: int = 10) -> EnergyLine:
    return energy_line(receipt, energy_mj, overhead_nano=2, slice_ns=3, ended=ended)


def closing(start_ns: int, *lines: EnergyLine) -> CloseInterval:
    return CloseInterval(interval=interval("home", start_ns, lines, meter_mj=30, carbon_ug=4))


def billing(what: str, nano: int = 3) -> BillPower:
    return BillPower(site="home", supply="grid", part="demand", what=what, nano=nano, at_ns=1)


def holding(receipt: str, nano: int = 9) -> PlaceHold:
    return PlaceHold(receipt=receipt, budget="team", ustu=5, nano=nano, at_ns=1)


def save(store: Store, *commands: AnyCommand, state: State | None = None, writer: str = "gateway") -> None:
    """Write commands in one transaction, as if a ledger had taken them, after which this is held."""
    state = state or State()
    settled = [c.settlement for c in commands if isinstance(c, Settle)]
    closed = [c.interval for c in commands if isinstance(c, CloseInterval)]
    with store.transaction():
        for command in commands:
            store.save_command(state, command)
        store.save_holds(state, state.holds, writer, 1)
        store.save_receipts([Settled(n, each, Totals(n)) for n, each in enumerate(settled)])
        store.save_energy([Metered(9, each, interval) for interval in closed for each in interval.requests])


def test_what_is_saved_is_loaded(store: Store) -> None:
    """Accounts, budgets with their figures, keys, holds, the latest facts of sites, intervals and balances."""
    account = Account(id="acme", name="Acme 电", opened_ns=1)
    facts = [SiteFacts(site="home", entity=e, place=None, jurisdiction=None, facts={}) for e in ("old", "new")]
    state = State(
        accounts={"acme": account},
        budgets={"team": BUDGET},
        tallies={"team": Tally(spent_ustu=2**62, spent_nano=-3, held_ustu=5, held_nano=9)},
        keys={"k": KEY},
        holds={"a": holding("a")},
        sites={"home": facts[1]},
        interval_end_ns={"home": 30},
        bills={("home", "peak"): -7},
        closed={"home": {0: (10, 0), 20: (30, 0)}},
        balances={("money", "customer/acme"): 2**62, ("money", "revenue/tokens"): -(2**62)},
    )
    commands: list[AnyCommand] = [OpenAccount(account=account), AddKey(key=KEY), holding("a")]
    sites = [DescribeSite(facts=fact, at_ns=at_ns) for fact, at_ns in ((facts[1], 9), (facts[0], 3))]
    with store.transaction():
        for command in [*commands, *sites, closing(20), closing(0), billing("peak", 9), billing("peak", -7)]:
            store.save_command(state, command)
        store.save_holds(state, ["a"], "gateway", 1)
        store.save_figures(state, set(state.balances), {"team"})
    assert store.load() == state
    state.keys["k"] = Key(id="k", hash=b"\0\1", account="acme", budget="team", role="user", made_ns=1, revoked_ns=7)
    save(store, RevokeKey(key="k", at_ns=7), state=state)
    assert store.load() == state
    assert not store.lost
    store.reopen()
    assert store.load() == state


def test_a_transaction_that_fails_leaves_nothing(store: Store) -> None:
    """Neither what was sent already (a question sends it) nor what still waited is there, and the next one works."""

    def fail() -> None:
        with store.transaction():
            store.save_position("gateway", 1, Position(1, 2, 3))
            store.save_entries(1, [Entry("stu", "a", 5), Entry("stu", "b", -5)], 9)
            assert store.rows("book_sums") == [("stu", 0, 2)]
            store.save_anomaly("gateway", 1, "waits", b"")
            raise KeyError

    with pytest.raises(KeyError):
        fail()
    assert (store.sources(), store.rows("book_sums"), store.rows("anomalies")) == ({}, [], [])
    store.save_position("gateway", 1, Position(1, 2, 3))
    assert store.sources() == {("gateway", 1): (Position(1, 2, 3), False)}


def test_holds_come_and_go_within_a_batch_and_across(store: Store) -> None:
    """What is held no more leaves the table; what is held again, or more, stays its first writer's."""
    state = State(holds={"b": holding("b"), "c": holding("c")})
    with store.transaction():
        store.save_holds(state, ["a", "b", "c"], "gateway", 1)
    assert (store.holds_of("gateway", 1), len(store.rows("all_holds"))) == (["b", "c"], 2)
    state.holds = {"b": holding("b", 99), "d": holding("d")}

    def fail() -> None:
        with store.transaction():
            store.save_holds(state, ["b", "d"], "other", 2)
            raise KeyError

    with pytest.raises(KeyError):
        fail()
    assert store.holds_of("gateway", 1) == ["b", "c"]
    with store.transaction():
        store.save_holds(state, ["b", "d"], "other", 2)
    assert (store.holds_of("gateway", 1), store.holds_of("other", 2)) == (["b"], ["d"])
    assert store.rows("all_holds")[0][0] == doc(holding("b", 99))
    state.holds = {}
    with store.transaction():
        store.save_holds(state, [], "gateway", 1)
    assert store.rows("counts") == [(0, 0, 0, 0, 0)]


def test_receipts_and_their_energy_meet_in_any_order(store: Store) -> None:
    """A work is metered once an interval has ended it, whichever record comes first, in one batch or in two."""
    save(store, Settle(settlement=settlement("a")), closing(0, line("a", ended=False), line("b")))
    assert [work.receipt for work in store.unmetered()] == ["a"]
    save(store, Settle(settlement=settlement("b")), Settle(settlement=settlement("c", worked=False)))
    save(store, closing(10, line("a"), line("d")), Settle(settlement=settlement("d")))
    assert store.unmetered() == []
    assert [(line, interval.start_ns) for _, line, interval in store.energy_of("a")] == [
        *((line("a", ended=False), 0), (line("a"), 10))
    ]
    assert store.energy_of("c") == []
    assert store.rows("recent_receipts", account=None, limit=3) == [("d",), ("c",), ("b",)]
    assert store.rows("recent_receipts", account="other", limit=3) == []
    assert store.settled_among(["a", "d", "'; --", "电"]) == {"a", "d"}
    assert store.rows("receipt", id="a") == [(encode_settlement(settlement("a")), 1)]
    assert [said for _, said in store.receipts()] == [settlement(name, worked=name != "c") for name in "abcd"]
    assert store.currency() == "USD"
    assert store.rows("cake_receipts", since_ns=0) == [(4, 36, 24, 240, 2800, 0, 4)]


def test_corrections_stand_beside_what_they_correct(store: Store) -> None:
    """Rows of their own, also of a receipt that had none; the state knows the next number of the last intervals."""
    late = msgspec.structs.replace(line("b"), water_ul=7, market_ug=-3, embodied_ug=2**62)
    more = interval("home", 0, (line("a", ended=False, energy_mj=-4), late), corrects=1, water_ul=9, idle_embodied_ug=1)
    save(store, *(Settle(settlement=settlement(name)) for name in "ab"), closing(0, line("a")), closing(10))
    assert [work.receipt for work in store.unmetered()] == ["b"]
    save(store, CloseInterval(interval=more), CloseInterval(interval=interval("home", 0, corrects=2)))
    assert [(each.line.energy_mj, each.interval.corrects) for each in store.energy_of("a")] == [(10, 0), (-4, 1)]
    [found] = store.energy_of("b")
    assert (found.line, found.interval) == (late, msgspec.structs.replace(more, requests=()))
    assert store.unmetered() == []
    assert store.rows("counts") == [(2, 0, 2, 0, 2)]
    assert store.rows("beside") == [(8, None, 9, 1, 2**62)]
    assert store.rows("energy_line_sums") == [("home", 16)]
    state = store.load()
    assert state.closed == {"home": {0: (10, 2), 10: (20, 0)}}
    assert list(state.closed["home"]) == [0, 10], "the oldest goes first"
    assert state.interval_end_ns == {"home": 20}


def test_entries_keep_their_order_and_their_day(store: Store) -> None:
    """A line without a day of its own has its command's; sums are whole numbers whatever the database calls them."""
    store.save_entries(7, [Entry("stu", "a", 5), Entry("stu", "b", -5, at_ns=99)], 9)
    store.save_entries(8, [], 9)
    assert store.rows("last_txn") == [(7,)]
    (total,) = [row[1] for row in store.rows("book_sums")]
    assert (total, type(total)) == (0, int)
    assert store.rows("wrong_balances") == [("stu", "a", 5, None), ("stu", "b", -5, None)]
    state = State(balances={("stu", "a"): 5, ("stu", "b"): -5, ("stu", "c"): 1})
    with store.transaction():
        store.save_figures(state, set(state.balances), set())
    assert store.rows("wrong_balances") == [("stu", "c", None, 1)]


def test_an_anomaly_is_kept_whole(store: Store) -> None:
    """Any bytes, and a reason that quotes them."""
    store.save_anomaly("gateway", 1, "no account 'a\0b'", bytes(range(256)))
    assert [row[1:] for row in store.rows("anomalies")] == [("gateway", 1, "no account 'a\\0b'")]


def test_an_amount_that_does_not_fit_is_refused(store: Store) -> None:
    """Beyond 64 bits nothing is cut or rounded; a receipt is written once; both leave the transaction undone."""
    with pytest.raises(LedgerRefused):
        store.save_entries(1, [Entry("stu", "a", 2**63), Entry("stu", "b", -(2**63) - 1)], 9)
    save(store, Settle(settlement=settlement("a")))
    with pytest.raises(LedgerRefused):
        save(store, Settle(settlement=settlement("b")), Settle(settlement=settlement("a", nano=1)))
    with pytest.raises(LedgerRefused):
        save(store, Settle(settlement=settlement("c", nano=2**63)))
    assert store.rows("book_sums") == []
    assert store.rows("recent_receipts", account=None, limit=9) == [("a",)]


@pytest.mark.parametrize(
    "command",
    [
        holding("a\0b"),
        holding("a", FIGURE_MAX + 1),
        Settle(settlement=settlement("a", account="a\0b")),
        Settle(settlement=settlement("a", nano=FIGURE_MAX + 1)),
        Settle(settlement=settlement("a", usage=Usage(input=FIGURE_MAX, output=1))),
        closing(FIGURE_MAX),
        closing(0, line("a", energy_mj=FIGURE_MAX + 1)),
        closing(0, line("a\0b")),
        billing("a\0b"),
        billing("a", FIGURE_MAX + 1),
        OpenAccount(account=Account(id="a\0b", name="", opened_ns=1)),
    ],
)
def test_what_no_table_holds_is_refused_before_it_is_applied(command: AnyCommand) -> None:
    """So that one hostile record is one anomaly and not a batch that can never be written."""
    with pytest.raises(LedgerRefused):
        refuse_unstorable(command)


def test_what_tables_hold_passes() -> None:
    """The largest figures, and a zero byte in what a client asked, which only the document has."""
    large = settlement("a", nano=FIGURE_MAX, model_asked="a\0b")
    for command in (
        *(holding("a", FIGURE_MAX), Settle(settlement=large), closing(0, line("a"))),
        billing("a", -FIGURE_MAX),
    ):
        refuse_unstorable(command)
    refuse_unstorable(AddKey(key=KEY))


def test_waiting_rows_are_bounded(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    """A batch larger than the bound goes out in parts of one transaction."""
    monkeypatch.setattr(base, "PENDING_MAX", 3)
    state = State(holds={str(n): holding(str(n)) for n in range(9)})
    save(store, *(Settle(settlement=settlement(str(n))) for n in range(8)), state=state)
    assert store.rows("counts") == [(8, 9, 0, 8, 0)]
