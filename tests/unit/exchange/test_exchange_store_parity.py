"""The same commands through both databases: rows, states and refusals are the same."""

from __future__ import annotations

import copy
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
from tests.support.exchange import budgeting, energy_line, holding, interval, opening, settlement, work
from tests.support.postgres import new_database, postgres

from tokenworks.core.errors import LedgerRefused
from tokenworks.core.words import Usage
from tokenworks.exchange.batch import Touched, served_rows
from tokenworks.exchange.clearing_words import (
    OPERATOR,
    AnswerDispute,
    IssueStatement,
    NetStatements,
    OpenDispute,
    SettlePair,
)
from tokenworks.exchange.journal import Position
from tokenworks.exchange.ledger import apply
from tokenworks.exchange.log.leaves import Metered, Settled, Totals
from tokenworks.exchange.settlement import DAY_NS
from tokenworks.exchange.state import Entry, State
from tokenworks.exchange.store import Store, open_store
from tokenworks.exchange.store.database import Row, queries
from tokenworks.exchange.words import (
    AddKey,
    AnyCommand,
    BillPower,
    Budget,
    CloseInterval,
    DescribeSite,
    EndGrant,
    Entity,
    ExtendHold,
    GiveLease,
    Grant,
    Key,
    Lease,
    PlaceHold,
    RevokeKey,
    SellGrant,
    SetBudget,
    SetEntity,
    Settle,
    SiteFacts,
    Void,
    encode_command,
)

PARTIES = ("north", "süd")
# Upper and lower case, an accent, a sign and another script: an order by language would sort them otherwise.
NAMES = ("acme", "Zoo", "äther", "_x", "电")
RECEIPTS = tuple(f"{case}{number}" for case in "rR" for number in range(4))
SOURCE = ("gateway", 1)


class Aborted(Exception):
    """The process gives up in the middle of a transaction."""


class Memory:
    """The ledger without a store: what a state and three lists know. Batches that are given up never were."""

    def __init__(self) -> None:
        self.state = State()
        self.settled: set[str] = set()
        self.entries: list[tuple[str, str, int]] = []
        self.refused: list[str] = []

    def batch(self, commands: list[AnyCommand], *, abort: bool = False) -> None:
        before = copy.deepcopy((self.state, self.settled, self.entries, self.refused))
        for command in commands:
            taken = self.take(command)
            if taken is not None:
                self.entries += [(entry.book, entry.account, entry.amount) for entry in taken]
        if abort:
            self.state, self.settled, self.entries, self.refused = before

    def take(self, command: AnyCommand) -> list[Entry] | None:
        if isinstance(command, IssueStatement):
            days = self.state.unstated.get((command.entity, command.home), {})
            count = sum(sums.lines for day_ns, sums in days.items() if day_ns < command.until_ns)
            command = msgspec.structs.replace(command, lines=count)
        try:
            if isinstance(command, PlaceHold) and command.receipt in self.settled:
                raise LedgerRefused("settled already")
            entries = apply(self.state, command, SOURCE)
        except LedgerRefused as error:
            self.refused.append(str(error))
            return None
        if isinstance(command, Settle):
            self.settled.add(command.settlement.receipt)
        return entries


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
        memory, touched = Memory(), Touched()
        memory.state = self.state
        memory.settled = self.store.settled_among([c.receipt for c in commands if isinstance(c, PlaceHold)])
        for command in commands:
            entries = memory.take(command)
            if entries is None:
                self.store.save_anomaly(*SOURCE, memory.refused[-1], encode_command(command))
                continue
            self.store.save_command(self.state, command)
            if isinstance(command, Settle):
                served = served_rows(self.state, command.settlement, entries)
                self.store.write("save_served", served)
                self.store.write("save_unstated", served)
                self.store.save_receipts([Settled(self.txn, command.settlement, Totals(self.txn, -1, 1 << 62))])
            elif isinstance(command, CloseInterval):
                self.store.save_energy([Metered(7, line, command.interval) for line in command.interval.requests])
            if entries:
                self.txn += 1
                self.store.save_entries(self.txn, entries, 7)
            touched.add(command, entries, SOURCE)
        self.read += len(commands)
        self.store.save_holds(self.state, touched.placed, *SOURCE)
        self.store.save_figures(self.state, touched.sums, touched.budgets(self.state))
        self.store.save_rights(self.state, touched.grants, touched.epochs)
        self.store.save_position(*SOURCE, Position(1, self.read, 3))


def settling(receipt: str, owner: str, ustu: int, nano: int, loss: int, at_ns: int, *, worked: bool) -> Settle:
    paid = {"ustu": ustu, "nano": nano + loss, "loss_nano": loss, "at_ns": at_ns}
    made = settlement(
        receipt,
        account=owner,
        budget=owner,
        model_asked="a \0 in what was asked",
        usage=Usage(input=3, output=4),
        work=work(receipt) if worked else None,
        **paid,
    )
    return Settle(settlement=made)


def closing(
    site: str, start_ns: int, receipts: list[str], energy_mj: int, *, ended: bool, priced: bool, corrects: int = 0
) -> AnyCommand:
    money = {"energy_nano": 2, "device_nano": 7, "water_ul": 3} if priced else {}
    lines = tuple(energy_line(receipt, energy_mj, ended=ended, **money) for receipt in receipts)
    rest = {"bill_nano": 2 * len(lines) + 1, "carbon_ug": 9, "idle_device_nano": 4} if priced else {}
    meter = {"meter_mj": energy_mj * len(lines) + 5, "idle_mj": 5, "idle_nano": 1}
    return CloseInterval(interval=interval(site, start_ns, lines, corrects=corrects, **meter, **rest))


@st.composite
def commands(draw: st.DrawFn) -> AnyCommand:
    """One command, sensible or not: what the ledger refuses is an anomaly in both."""
    name, receipt = draw(st.sampled_from(NAMES)), draw(st.sampled_from(RECEIPTS))
    amount, at_ns, sure = draw(st.integers(-1, 900)), draw(st.integers(0, 40)), draw(st.booleans())
    other, day = draw(st.sampled_from(PARTIES)), draw(st.sampled_from((0, 20, DAY_NS)))
    kinds = ("hold", "hold", "settle", "settle", "void", "close", "budget", "key", "revoke", "site", "extend", "sell")
    match draw(
        st.sampled_from((*kinds, "end", "lease", "entity", "state", "state", "dispute", "answer", "net", "pay", "bill"))
    ):
        case "hold":
            return holding(receipt, name, 100, 900, at_ns)
        case "extend":
            return ExtendHold(receipt=receipt, ustu=5, nano=amount % 3)
        case "settle":
            loss = draw(st.sampled_from((0, 0, 50)))
            made = settling(receipt, name, amount % 101, amount, loss, day, worked=sure).settlement
            return Settle(settlement=msgspec.structs.replace(made, entity=draw(st.sampled_from(("", *PARTIES)))))
        case "sell":
            sold: dict[str, Any] = {
                "size_ustu": 100,
                "price_nano": 30,
                "created_ns": 1,
                "effective_ns": 1,
                "expires_ns": None,
            }
            return SellGrant(grant=Grant(id=receipt, account=name, package="p", **sold))
        case "end":
            return EndGrant(grant=receipt, refund_nano=amount % 40, reason="", at_ns=at_ns)
        case "lease":
            lease = Lease(counter=f"g:{receipt}", window_ns=0, allowance=amount % 60)
            return GiveLease(writer=SOURCE[0], epoch=SOURCE[1], leases=(lease,), at_ns=at_ns)
        case "entity":
            return SetEntity(entity=Entity(name=other, fee_permille=amount))
        case "state":
            until_ns, home = 2 * DAY_NS if sure else DAY_NS, draw(st.sampled_from((OPERATOR, *PARTIES)))
            name, at_ns = f"s{amount % 5}", 3 * DAY_NS  # the number of lines is put right when it is taken
            return IssueStatement(id=name, entity=other, home=home, until_ns=until_ns, lines=0, digest="d", at_ns=at_ns)
        case "dispute":
            return OpenDispute(
                id=f"d{amount % 4}", statement=f"s{at_ns % 5}", ustu=1, nano=amount % 9, reason="r", at_ns=at_ns
            )
        case "answer":
            return AnswerDispute(id=f"d{amount % 4}", accepted=sure, answer="", at_ns=at_ns)
        case "net":
            return NetStatements(id=f"n{at_ns % 3}", statements=(f"s{amount % 5}",), at_ns=at_ns)
        case "pay":
            return SettlePair(id=f"n{at_ns % 3}", debtor=OPERATOR, creditor=other, reference="r", at_ns=at_ns)
        case "void":
            return Void(receipt=receipt, reason="its gateway ended", at_ns=at_ns)
        case "close":
            some = draw(st.lists(st.sampled_from(RECEIPTS), unique=True, max_size=4))
            corrects = draw(st.sampled_from((0, 0, 1, 1, 2)))
            start_ns = draw(st.sampled_from((at_ns, 0))) * 10
            return closing(name, start_ns, some, amount + 1, ended=sure, priced=draw(st.booleans()), corrects=corrects)
        case "budget":
            parent = draw(st.sampled_from((None, *NAMES)))
            return SetBudget(
                budget=Budget(
                    id=name + "/1", account=name, parent=parent, name=name, limit_ustu=None, limit_nano=amount
                )
            )
        case "key":
            return AddKey(key=Key(id=name, hash=b"\0\xff", account=name, budget=name, role="user", made_ns=at_ns))
        case "bill":
            part = draw(st.sampled_from(("demand", "events")))
            terms: dict[str, Any] = {"part": part, "what": other, "nano": amount - 400, "at_ns": at_ns}
            return BillPower(site=name, supply="grid", **terms)
        case "revoke":
            return RevokeKey(key=name, at_ns=at_ns)
        case _:
            facts = SiteFacts(site=name, entity=str(amount), place=None, jurisdiction=None, facts={})
            return DescribeSite(facts=facts, at_ns=at_ns)


@st.composite
def steps(draw: st.DrawFn) -> list[AnyCommand]:
    """One command, or some that make sense together: a request from hold to settlement, a statement to its payment."""
    kind = draw(st.sampled_from(("any", "any", "serve", "serve", "clear")))
    if kind == "any":
        return [draw(commands())]
    name, receipt, party = draw(st.sampled_from(NAMES)), draw(st.sampled_from(RECEIPTS)), draw(st.sampled_from(PARTIES))
    amount, home = draw(st.integers(0, 900)), draw(st.sampled_from((OPERATOR, OPERATOR, *PARTIES)))
    if kind == "serve":
        made = settling(receipt, name, amount % 101, amount, amount % 3, amount % 2 * DAY_NS, worked=True).settlement
        served = msgspec.structs.replace(made, entity=draw(st.sampled_from(("", *PARTIES))))
        return [holding(receipt, name, 100, 900), Settle(settlement=served)]
    end: dict[str, Any] = {"until_ns": (1 + amount % 2) * DAY_NS, "at_ns": 3 * DAY_NS}
    number = f"{party}-{home}-{amount % 2}"
    whole: list[AnyCommand] = [
        IssueStatement(id=f"s{number}", entity=party, home=home, lines=0, digest="d", **end),
        OpenDispute(id=f"d{number}", statement=f"s{number}", ustu=1, nano=1, reason="r", at_ns=1),
        AnswerDispute(id=f"d{number}", accepted=amount % 3 > 0, answer="", at_ns=2),
        NetStatements(id=f"n{number}", statements=(f"s{number}",), at_ns=3),
        SettlePair(id=f"n{number}", debtor=home, creditor=party, reference="r", at_ns=4),
    ]
    return whole[: 1 + amount % 5]


def openings() -> list[AnyCommand]:
    homes = dict(zip(NAMES, (OPERATOR, OPERATOR, *PARTIES), strict=False))
    entities: list[AnyCommand] = [SetEntity(entity=Entity(name=name, fee_permille=130)) for name in PARTIES]
    accounts = [opening(name, 1, home=homes.get(name, OPERATOR)) for name in NAMES]
    return [*entities, *accounts, *(budgeting(name, name) for name in NAMES)]


CHOICES: dict[str, tuple[object, ...]] = {
    "limit": (2, 50),
    "account": (None, *NAMES),
    "id": (*RECEIPTS, "", "s1"),
    "entity": ("north",),
    "home": (OPERATOR, "north"),
    "ids": (json.dumps(RECEIPTS), "[]"),
    "name": NAMES,
    "site": NAMES,
    "writer": ("gateway", "other"),
    "epoch": (1, 2),
    "at_ns": (0, 20, 10**18),
    "since_ns": (0, 20, 10**18),
    "until_ns": (21, 1 << 62),
    "level": (0, 1),
    "place": (0, 1),
    "receipt": RECEIPTS,
    "seq": (0,),
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
    counted = [key for key in found if key[0] in ("anomalies", "entry_page")]
    found |= {key: [row[1:] for row in found[key]] for key in counted}
    return found


def kept(state: State) -> list[object]:
    """What ``load`` must bring back as it was in memory. Sites differ: there, what was said last counts."""
    named = [state.accounts, state.budgets, state.keys, state.holds, state.interval_end_ns, state.closed]
    rights = [state.grants, state.entities, state.leases]
    clearing = [state.unstated, state.statements, state.disputes, state.nettings]
    return [*named, state.bills, state.balances, state.tallies, *rights, *clearing]


@pytest.fixture(scope="module")
def server() -> Iterator[str]:
    with postgres() as url:
        yield url


def fresh(url: str) -> Store:
    with psycopg.connect(url, autocommit=True) as connection:
        connection.execute("DROP SCHEMA public CASCADE; CREATE SCHEMA public")
    return open_store(url)


several = st.lists(steps(), min_size=1, max_size=12).map(lambda found: [each for step in found for each in step])
batches = st.lists(st.tuples(several, st.sampled_from((False, False, True))), min_size=1, max_size=6)


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(stream=batches)
def test_memory_and_both_databases_hold_the_same_books(
    server: str, stream: list[tuple[list[AnyCommand], bool]]
) -> None:
    """Whatever comes, with batches given up in between: equal rows of every query, equal states, all checks right."""
    both, memory = [Books(open_store(":memory:")), Books(fresh(server))], Memory()
    try:
        for batch, abort in [(openings(), False), *stream]:
            for books in both:
                books.batch(batch, abort=abort)
            memory.batch(batch, abort=abort)
        small, large = (books.store for books in both)
        assert everything(small) == everything(large)
        states = [store.load() for store in (small, large)]
        assert states[0] == states[1]
        assert [*states[0].accounts] == [*states[1].accounts] == sorted(NAMES, key=str.encode)
        assert (small.sources(), small.unmetered()) == (large.sources(), large.unmetered())
        for books, state in zip(both, states, strict=True):
            assert kept(books.state) == kept(state) == kept(memory.state)
            lines = books.store.rows("entry_page", seq=0, since_ns=0, until_ns=1 << 62, limit=1 << 30)
            assert [(book, account, amount) for _, _, book, account, amount, _ in lines] == memory.entries
            assert [reason for *_, reason in books.store.rows("anomalies")] == [
                reason.replace("\0", "\\0") for reason in memory.refused[:20]
            ]
            assert {name for (name,) in books.store.rows("recent_receipts", account=None, limit=99)} == memory.settled
            for check in ("wrong_balances", "wrong_transactions"):
                assert books.store.rows(check) == []
            assert {row[0]: None if said is None else said.receipt for row, said in books.store.receipts()} == {
                name: name for name in memory.settled
            }
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
        books.batch(openings())
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
        assert books.store.rows("counts") == [(count, 0, 1, 0, 0)]
        books.store.close()
        with capsys.disabled():
            settled, metered = (count * 10**9 // ns for ns in (settled_ns - start_ns, metered_ns - settled_ns))
            sys.stdout.write(f"\n{name}: {settled} settlements a second with holds, {metered} energy lines a second\n")
    assert sums[0] == sums[1]
