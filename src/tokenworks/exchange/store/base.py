"""The store's one logic over either database: reads the ledger's state, writes what commands changed."""

from __future__ import annotations

import json
from collections.abc import Collection, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from typing import Any

import msgspec

from tokenworks.core.words import FIGURES, EnergyLine, Interval, Work
from tokenworks.exchange.clearing_words import ClearingCommand
from tokenworks.exchange.journal import START, Position
from tokenworks.exchange.log.leaves import Metered, Settled
from tokenworks.exchange.state import Entry, Source, State
from tokenworks.exchange.store.database import Database, Line, Row, Values, queries
from tokenworks.exchange.store.documents import budget_rows, doc, grant_row, load, rows_of
from tokenworks.exchange.store.migrate import migrate
from tokenworks.exchange.words import AnyCommand, Settlement, decode_settlement, encode_settlement

UNMETERED_MAX = 100_000
PAGE_ROWS = 5_000
PENDING_MAX = 50_000
"""Rows that wait for the end of their transaction; beyond, they are sent before it."""
ORDER = ("drop_hold", "save_hold", "save_energy_line", "save_receipt", "mark_metered")
"""Statements that see each other's rows, in the order in which one batch may run them; all others commute."""


class Store:
    """Tables of the ledger.

    Writes gather in memory until the transaction ends or something is read, and then go out table by table: one
    statement for many rows is what makes a database fast. All methods raise as the port ``Database`` says.
    """

    def __init__(self, database: Database) -> None:
        self._db = database
        self._sql = queries(database.dialect)
        self._inside = False
        self._pending: dict[str, list[Any]] = {}
        self._kept: set[str] | None = None
        """Receipts of the holds in the table; None: not asked yet."""
        self._waiting = 0
        try:
            migrate(database)
        except BaseException:
            database.close()
            raise

    @property
    def lost(self) -> bool:
        """The connection is gone; ``reopen`` it and ``load`` again, for nobody knows what came through."""
        return self._db.lost

    def reopen(self) -> None:
        """Connect again after a loss; nothing otherwise. Raises ExchangeDown while that is not possible."""
        self._db.reopen()

    def rows(self, query: str, **values: object) -> list[Row]:
        """Run a named query."""
        self._flush()
        return self._db.rows(self._sql[query], values)

    def write(self, name: str, values: Sequence[Values] | Sequence[Line]) -> None:
        """Run a named statement for each of the values, at the latest when the transaction ends."""
        if not values:
            return
        if not self._inside:
            with self.transaction():
                self.write(name, values)
            return
        self._pending.setdefault(name, []).extend(values)
        self._waiting += len(values)
        if self._waiting > PENDING_MAX:
            self._flush()

    @contextmanager
    def transaction(self) -> Iterator[None]:
        """All or nothing, on disk at the end."""
        assert not self._inside, "transactions of the store do not nest"
        self._inside = True
        try:
            with self._db.transaction():
                yield
                self._flush()
        except BaseException:
            self._kept = None
            raise
        finally:
            self._inside = False
            self._forget()

    def _forget(self) -> None:
        self._pending, self._waiting = {}, 0

    def _flush(self) -> None:
        if not self._waiting:
            return
        pending = self._pending
        self._forget()
        for name in sorted(pending, key=lambda name: ORDER.index(name) if name in ORDER else len(ORDER)):
            rows = self._metered(pending[name]) if name == "save_receipt" else pending[name]
            self._db.many(self._sql[name], rows)

    def _metered(self, receipts: list[Line]) -> list[Line]:
        """A work can be metered before its settlement arrives from another journal."""
        waiting = [row[0] for row in receipts if not row[-1]]
        found = self._db.rows(self._sql["ended_among"], {"ids": json.dumps(waiting)}) if waiting else []
        ended = {receipt for (receipt,) in found}
        return [(*row[:-1], 1) if row[0] in ended else row for row in receipts]

    def close(self) -> None:
        """Let go of the database."""
        self._db.close()

    # --- reading the state -------------------------------------------------------------------------------------------

    def load(self) -> State:
        """The ledger's state as of the last commit."""
        state = load(self.rows)
        state.ended = {source for source, (_, standing) in self.sources().items() if standing}
        return state

    def sources(self) -> dict[tuple[str, int], tuple[Position, int]]:
        """How far each journal was applied, and its writer's standing: 0 live, 1 ended, 2 closed."""
        return {(w, e): (Position(s, o, c), int(dead)) for w, e, s, o, c, dead in self.rows("sources")}

    def holds_of(self, writer: str, epoch: int) -> list[str]:
        """Receipts that a writer's epoch holds and has not settled."""
        return [receipt for (receipt,) in self.rows("holds_of", writer=writer, epoch=epoch)]

    def settled_among(self, receipts: Collection[str]) -> set[str]:
        """Which of these receipts are written already: one question for a batch instead of one for each."""
        ids = json.dumps(list(receipts))
        return {receipt for (receipt,) in self.rows("settled_among", ids=ids)} if receipts else set()

    def unmetered(self) -> list[Work]:
        """Settled work that no closed interval has taken."""
        works = [decode_settlement(data).work for (data,) in self.rows("unmetered", limit=UNMETERED_MAX)]
        return [work for work in works if work is not None]

    def receipts(self) -> Iterator[tuple[Row, Settlement | None]]:
        """All receipts in order of their ids: the row, and the settlement in it; None for one that cannot be read."""
        after = ""
        while rows := self.rows("receipt_page", after=after, limit=PAGE_ROWS):
            for row in rows:
                try:
                    yield row, decode_settlement(row[-1])
                except msgspec.DecodeError:
                    yield row, None
            after = rows[-1][0]

    def energy_of(self, receipt: str) -> list[Metered]:
        """A receipt's part of each interval and of its corrections, in the order in which they were booked."""
        found = []
        for position, ended, text, *figures in self.rows("metered_leaves", receipt=receipt):
            line = EnergyLine(receipt=receipt, ended=bool(ended), **dict(zip(FIGURES, figures, strict=True)))
            found.append(Metered(position, line, msgspec.json.decode(text, type=Interval)))
        return found

    def currency(self) -> str:
        """In which the latest receipt was charged."""
        rows = self.rows("last_receipt")
        return decode_settlement(rows[0][0]).currency if rows else "USD"

    # --- writing: inside one transaction ----------------------------------------------------------------------------

    def save_position(self, writer: str, epoch: int, position: Position = START, standing: int = 0) -> None:
        """Note how far a journal is applied, and its writer's standing."""
        values = {"writer": writer, "epoch": epoch, "dead": standing, **position._asdict()}
        self.write("save_position", [values])

    def save_anomaly(self, writer: str, epoch: int, reason: str, record: bytes) -> None:
        """Keep a record that could not be applied."""
        # The reason may quote the record, and PostgreSQL's text has no zero byte; the record itself is kept whole.
        reason = reason.replace("\0", "\\0")
        self.write("save_anomaly", [{"writer": writer, "epoch": epoch, "reason": reason, "record": record}])

    def save_entries(self, txn: int, entries: Sequence[Entry], at_ns: int) -> None:
        """Write the lines of one command, all of them: PostgreSQL refuses a part that does not sum to zero."""
        self.write("save_entry", [(txn, book, account, amount, own or at_ns) for book, account, amount, own in entries])

    def save_figures(self, state: State, balances: Collection[tuple[str, str]], budgets: set[str]) -> None:
        """Write the balances and budgets that a batch touched, once each."""
        self.write(
            "save_balance", [{"book": b, "account": a, "amount": state.balances[b, a]} for b, a in sorted(balances)]
        )
        for budget in sorted(budgets):
            for name, row in budget_rows(state, budget):
                self.write(name, [row])

    def save_rights(self, state: State, grants: set[str], epochs: set[Source]) -> None:
        """Write the grants and the leases that a batch touched, once each."""
        self.write("save_grant", [grant_row(state.grants[name]) for name in sorted(grants) if name in state.grants])
        for source in sorted(epochs):
            leases = state.leases.get(source)
            if leases is None:
                self.write("drop_leases", [{"writer": source[0], "epoch": source[1]}])
            else:
                of = {"writer": source[0], "epoch": source[1]}
                rows = [{**of, "counter": counter, **asdict(lease)} for counter, lease in sorted(leases.items())]
                self.write("save_lease", rows)

    def save_command(self, state: State, command: AnyCommand) -> None:
        """Write what a command changed beside balances and budgets."""
        if between := isinstance(command, ClearingCommand):
            self._flush()  # what was served before it is stated by it, what comes after is not
        for name, row in rows_of(state, command):
            self.write(name, [row])
        if between:
            self._flush()

    def save_holds(self, state: State, placed: Iterable[str], writer: str, epoch: int) -> None:
        """Write what is held after a batch that placed these, and was not before; most are settled in the same batch.

        A hold that was held already stays its first writer's.
        """
        if self._kept is None:
            self._kept = {name for (name,) in self.rows("held")}
        gone = self._kept.difference(state.holds)
        new = {name: state.holds[name] for name in placed if name in state.holds}
        self.write("drop_hold", [{"receipt": name} for name in gone])
        by = {"writer": writer, "epoch": epoch}
        self.write("save_hold", [{"receipt": name, **by, "doc": doc(hold)} for name, hold in new.items()])
        self._kept = (self._kept - gone) | new.keys()

    def save_receipts(self, rows: Sequence[Settled]) -> None:
        """Write settlements and where their leaves are in the receipts log."""
        lines: list[Line] = []
        for position, settled, totals in rows:
            usage, data = settled.usage, encode_settlement(settled)
            head = (settled.receipt, settled.account, settled.at_ns, usage.total(), usage.output + usage.reasoning)
            figures = (settled.ustu, settled.nano, settled.loss_ustu, settled.loss_nano, data)
            lines.append((*head, *figures, position, *totals, int(settled.work is None)))
        self.write("save_receipt", lines)

    def save_energy(self, rows: Sequence[Metered]) -> None:
        """Write the energy records of requests and where their leaves are."""
        lines: list[Line] = []
        for position, line, interval in rows:
            *said, ended = msgspec.structs.astuple(line)
            lines.append((*said, int(ended), interval.site, interval.start_ns, interval.corrects, position))
        self.write("save_energy_line", lines)
        self.write("mark_metered", [{"receipt": line.receipt} for _, line, _ in rows if line.ended])
