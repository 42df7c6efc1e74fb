"""The same commands through both databases: rows, states and refusals are the same."""

from __future__ import annotations

import json
import re
import sys
import time
from collections.abc import Iterator
from itertools import product
from pathlib import Path
from typing import Any

import msgspec
import psycopg
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tests.support.postgres import new_database, postgres

from tokenworks.core.errors import LedgerRefused
from tokenworks.core.words import Delivery, EnergyLine, Interval, Provenance, Usage, Work
from tokenworks.exchange.journal import Position
from tokenworks.exchange.ledger import apply
from tokenworks.exchange.state import State
from tokenworks.exchange.store import Store, open_store
from tokenworks.exchange.store.database import Row, queries
from tokenworks.exchange.words import (
    Account,
    AddKey,
    AnyCommand,
    Budget,
    CloseInterval,
    DescribeSite,
    Key,
    OpenAccount,
    PlaceHold,
    RevokeKey,
    SetBudget,
    Settle,
    Settlement,
    SiteFacts,
    Void,
    encode_command,
)

# Upper and lower case, an accent, a sign and another script: an order by language would sort them otherwise.
NAMES = ("acme", "Zoo", "äther", "_x", "电")
RECEIPTS = tuple(f"{case}{number}" for case in "rR" for number in range(4))
SOURCE = ("gateway", 1)


class Aborted(Exception):
    """The process gives up in the middle of a transaction."""


class Books:
    """The least that a service does: apply, save, commit by the batch, follow a rollback."""

    def __init__(self, store: Store) -> None:
        self.store, self.state, self.txn, self.read = store, store.load(), 0, 0

    def batch(self, commands: list[AnyCommand], *, abort: bool = False) -> None:
        try:
            with self.store.transaction():
                self._take(commands)
                if abort:
                    raise Aborted
        except Aborted:
            self.state = self.store.load()
            self.txn = self.store.rows("last_txn")[0][0]

    def _take(self, commands: list[AnyCommand]) -> None:
        balances: set[tuple[str, str]] = set()
        budgets: set[str] = set()
        settled = self.store.settled_among([c.receipt for c in commands if isinstance(c, PlaceHold)])
        for command in commands:
            try:
                if isinstance(command, PlaceHold) and command.receipt in settled:
                    raise LedgerRefused("settled already")
                entries = apply(self.state, command)
            except LedgerRefused as error:
                self.store.save_anomaly(*SOURCE, str(error), encode_command(command))
                continue
            self.store.save_command(self.state, command, *SOURCE)
            if entries:
                self.txn += 1
                self.store.save_entries(self.txn, entries, 7)
            balances.update((entry.book, entry.account) for entry in entries)
            if isinstance(command, Settle):
                settled.add(command.settlement.receipt)
                budgets.update(self.state.path(command.settlement.budget))
            elif isinstance(command, SetBudget):
                budgets.add(command.budget.id)
        self.read += len(commands)
        self.store.save_figures(self.state, balances, budgets)
        self.store.save_position(*SOURCE, Position(1, self.read, 3))


def settling(receipt: str, owner: str, ustu: int, nano: int, loss: int, at_ns: int, *, worked: bool) -> Settle:
    work = {"receipt": receipt, "replica": "r", "site": "home", "slice": "a", "start_ns": 1, "first_ns": None}
    tokens = {"end_ns": 2, "input_tokens": 3, "output_tokens": 4}
    values: dict[str, Any] = {
        **dict.fromkeys(("key", "endpoint", "model_served", "rate_card", "price_book", "currency"), "x"),
        **dict.fromkeys(("loss_ustu", "held_ustu", "held_nano", "hold_ns", "arrived_ns"), 0),
        "decision": None,
        "estimate": None,
        "model_asked": "a \0 in what was asked",
        "usage": Usage(input=3, output=4),
        "delivery": Delivery(ending="complete", chunks=4),
        "work": msgspec.convert(work | tokens, Work) if worked else None,
    }
    paid: dict[str, Any] = {"ustu": ustu, "nano": nano + loss, "loss_nano": loss, "at_ns": at_ns}
    return Settle(settlement=Settlement(**values, **paid, receipt=receipt, account=owner, budget=owner))


def closing(site: str, start_ns: int, receipts: list[str], energy_mj: int, *, ended: bool, priced: bool) -> AnyCommand:
    figures = {"energy_mj": energy_mj, "overhead_mj": 1, "slice_ns": 1, "ended": ended}
    money = {"energy_nano": 2 if priced else None, "device_nano": 7 if priced else None}
    rest = {"overhead_nano": None, "carbon_ug": None}
    lines = tuple(msgspec.convert({"receipt": r, **figures, **money, **rest}, EnergyLine) for r in receipts)
    interval = Interval(
        site=site,
        supply="grid",
        start_ns=start_ns,
        end_ns=start_ns + 10,
        meter_mj=energy_mj * len(lines) + 5,
        meter=Provenance.MODELLED,
        scale_ppm=1_000_000,
        requests=lines,
        services=(),
        idle_mj=5,
        idle_nano=1,
        overhead_mj=0,
        overhead_nano=None,
        residual_mj=0,
        bill_nano=2 * len(lines) + 1 if priced else None,
        carbon_ug=9 if priced else None,
        idle_device_nano=4 if priced else None,
    )
    return CloseInterval(interval=interval)


@st.composite
def commands(draw: st.DrawFn) -> AnyCommand:
    """One command, sensible or not: what the ledger refuses is an anomaly in both."""
    name, receipt = draw(st.sampled_from(NAMES)), draw(st.sampled_from(RECEIPTS))
    amount, at_ns, sure = draw(st.integers(-1, 900)), draw(st.integers(0, 40)), draw(st.booleans())
    kind = draw(
        st.sampled_from(("hold", "hold", "settle", "settle", "void", "close", "budget", "key", "revoke", "site"))
    )
    match kind:
        case "hold":
            return PlaceHold(receipt=receipt, budget=name, ustu=100, nano=900, at_ns=at_ns)
        case "settle":
            loss = draw(st.sampled_from((0, 0, 50)))
            return settling(receipt, name, amount % 101, amount, loss, at_ns, worked=sure)
        case "void":
            return Void(receipt=receipt, reason="its gateway ended", at_ns=at_ns)
        case "close":
            some = draw(st.lists(st.sampled_from(RECEIPTS), unique=True, max_size=4))
            return closing(name, at_ns * 10, some, amount + 1, ended=sure, priced=draw(st.booleans()))
        case "budget":
            parent = draw(st.sampled_from((None, *NAMES)))
            return SetBudget(
                budget=Budget(
                    id=name + "/1", account=name, parent=parent, name=name, limit_ustu=None, limit_nano=amount
                )
            )
        case "key":
            return AddKey(key=Key(id=name, hash=b"\0\xff", account=name, budget=name, role="user", made_ns=at_ns))
        case "revoke":
            return RevokeKey(key=name, at_ns=at_ns)
        case _:
            facts = SiteFacts(site=name, entity=str(amount), place=None, jurisdiction=None, facts={})
            return DescribeSite(facts=facts, at_ns=at_ns)


def opening() -> list[AnyCommand]:
    made: list[AnyCommand] = []
    for name in NAMES:
        made.append(OpenAccount(account=Account(id=name, name=name, opened_ns=1)))
        made.append(
            SetBudget(budget=Budget(id=name, account=name, parent=None, name=name, limit_ustu=None, limit_nano=None))
        )
    return made


CHOICES: dict[str, tuple[object, ...]] = {
    "limit": (2, 50),
    "account": (None, *NAMES),
    "id": RECEIPTS,
    "ids": (json.dumps(RECEIPTS), "[]"),
    "name": NAMES,
    "writer": ("gateway", "other"),
    "epoch": (1, 2),
    "at_ns": (0, 20, 10**18),
    "since_ns": (0, 20, 10**18),
    "until_ns": (21, 1 << 62),
    "level": (0, 1),
    "place": (0, 1),
    "receipt": RECEIPTS,
    "seq": (0, 3),
    "after": ("", RECEIPTS[0]),
}


def everything(store: Store) -> dict[tuple[str, ...], list[Row]]:
    """Every named query that reads, with every choice of its parameters."""
    found: dict[tuple[str, ...], list[Row]] = {}
    for query, sql in queries("sqlite").items():
        if sql.startswith("SELECT"):
            names = sorted(set(re.findall(r":(\w+)", sql)))
            for values in product(*(CHOICES[name] for name in names)):
                found[query, str(values)] = store.rows(query, **dict(zip(names, values, strict=True)))
    # A rollback leaves a gap in PostgreSQL's numbers and none in SQLite's; the order is what counts.
    found["anomalies", "()"] = [row[1:] for row in found["anomalies", "()"]]
    return found


def kept(state: State) -> list[object]:
    """What ``load`` must bring back as it was in memory. Sites differ: there, what was said last counts."""
    named = [state.accounts, state.budgets, state.keys, state.holds, state.interval_end_ns]
    return [*named, state.balances, state.tallies]


@pytest.fixture(scope="module")
def server() -> Iterator[str]:
    with postgres() as url:
        yield url


def fresh(url: str) -> Store:
    with psycopg.connect(url, autocommit=True) as connection:
        connection.execute("DROP SCHEMA public CASCADE; CREATE SCHEMA public")
    return open_store(url)


batches = st.lists(st.tuples(st.lists(commands(), min_size=1, max_size=12), st.booleans()), min_size=1, max_size=6)


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(stream=batches)
def test_both_databases_hold_the_same_books(server: str, stream: list[tuple[list[AnyCommand], bool]]) -> None:
    """Whatever comes, with batches given up in between: equal rows of every query, equal states, all checks right."""
    both = [Books(open_store(":memory:")), Books(fresh(server))]
    try:
        for books in both:
            books.batch(opening())
            for batch, abort in stream:
                books.batch(batch, abort=abort)
        small, large = (books.store for books in both)
        assert everything(small) == everything(large)
        states = [store.load() for store in (small, large)]
        assert states[0] == states[1]
        assert [*states[0].accounts] == [*states[1].accounts] == sorted(NAMES, key=str.encode)
        assert (small.sources(), small.unmetered()) == (large.sources(), large.unmetered())
        for books, state in zip(both, states, strict=True):
            assert kept(books.state) == kept(state)
            for check in ("wrong_balances", "wrong_transactions", "wrong_receipts"):
                assert books.store.rows(check) == []
    finally:
        for books in both:
            books.store.close()


def test_how_fast_twenty_thousand_settlements_are(
    server: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Both take them all and agree on the sums; the printed rates depend on the machine and are not asserted."""
    count, size = 20_000, 2_000
    sums = []
    for name, place in (("SQLite", tmp_path / "ledger.db"), ("PostgreSQL", new_database(server))):
        books = Books(open_store(place))
        books.batch(opening())
        names = [f"rcpt_{number:08}" for number in range(count)]
        start_ns = time.perf_counter_ns()
        for first in range(0, count, size):
            batch: list[AnyCommand] = []
            for receipt in names[first : first + size]:
                batch.append(PlaceHold(receipt=receipt, budget="acme", ustu=100, nano=900, at_ns=1))
                batch.append(settling(receipt, "acme", 60, 700, 50, 20, worked=True))
            books.batch(batch)
        settled_ns = time.perf_counter_ns()
        books.batch([closing("home", 0, names, 10, ended=True, priced=True)])
        metered_ns = time.perf_counter_ns()
        sums.append([books.store.rows(query) for query in ("book_sums", "counts", "receipt_sums", "energy_line_sums")])
        assert books.store.rows("counts") == [(count, 0, 1, 0)]
        books.store.close()
        with capsys.disabled():
            settled, metered = (count * 10**9 // ns for ns in (settled_ns - start_ns, metered_ns - settled_ns))
            sys.stdout.write(f"\n{name}: {settled} settlements a second with holds, {metered} energy lines a second\n")
    assert sums[0] == sums[1]
