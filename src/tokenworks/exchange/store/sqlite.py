"""The SQLite store, through apsw (whose wheel brings a current SQLite). One connection, WAL, synced commits."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import apsw
import msgspec

from tokenworks.core.errors import DataDirError
from tokenworks.core.words import Interval, Work
from tokenworks.exchange.journal import START, Position
from tokenworks.exchange.ledger import Entry, State, Tally
from tokenworks.exchange.store import queries, schema
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
)

SCHEMA = 1
UNMETERED_MAX = 100_000
Row = tuple[Any, ...]
_json = msgspec.json.Encoder()


def doc(value: object) -> str:
    """A document column: JSON text."""
    return _json.encode(value).decode()


class SqliteStore:
    """Tables of the ledger. Raises DataDirError when the file is damaged, newer, or cannot be opened."""

    def __init__(self, path: Path) -> None:
        self._sql = queries()
        try:
            self._db = apsw.Connection(str(path))
            self._db.set_busy_timeout(5_000)
            self._db.execute("PRAGMA journal_mode=WAL")
            self._db.execute("PRAGMA synchronous=FULL")
            if not self._db.execute("SELECT 1 FROM sqlite_schema WHERE name = 'meta'").fetchall():
                with self._db:
                    self._db.execute(schema())
            found = int(str(self._db.execute("SELECT value FROM meta WHERE key = 'schema'").fetchall()[0][0]))
        except (apsw.Error, IndexError, ValueError) as error:
            raise DataDirError(
                f"cannot open the ledger {path.name}: {error}", hint="is the disk full or damaged?"
            ) from error
        if found != SCHEMA:
            raise DataDirError(
                f"the ledger in {path.parent} has format {found}, this version knows {SCHEMA}",
                hint="run the newer Tokenworks that wrote it, or set TOKENWORKS_DATA to another directory",
            )

    def rows(self, query: str, **values: object) -> list[Row]:
        """Run a named query."""
        return list(self._db.execute(self._sql[query], values))

    def _many(self, name: str, values: Sequence[Mapping[str, object]]) -> None:
        if values:
            self._db.executemany(self._sql[name], values)

    @contextmanager
    def transaction(self) -> Iterator[None]:
        """All or nothing, synced at the end."""
        with self._db:
            yield

    def close(self) -> None:
        """Close the file."""
        self._db.close()

    # --- reading the state -------------------------------------------------------------------------------------------

    def load(self) -> State:
        """The ledger's state as of the last commit."""
        state = State()
        for (text,) in self._db.execute("SELECT doc FROM account"):
            account = msgspec.json.decode(text, type=Account)
            state.accounts[account.id] = account
        for text, spent_ustu, spent_nano in self._db.execute("SELECT doc, spent_ustu, spent_nano FROM budget"):
            budget = msgspec.json.decode(text, type=Budget)
            state.budgets[budget.id] = budget
            state.tallies[budget.id] = Tally(spent_ustu, spent_nano)
        for (text,) in self._db.execute("SELECT doc FROM api_key"):
            key = msgspec.json.decode(text, type=Key)
            state.keys[key.id] = key
        for (text,) in self._db.execute("SELECT doc FROM hold"):
            hold = msgspec.json.decode(text, type=PlaceHold)
            state.holds[hold.receipt] = hold
            for node in state.path(hold.budget):
                state.tallies[node].held_ustu += hold.ustu
                state.tallies[node].held_nano += hold.nano
        for (text,) in self._db.execute("SELECT doc FROM site ORDER BY since_ns"):
            facts = msgspec.json.decode(text, type=SiteFacts)
            state.sites[facts.site] = facts
        state.interval_end_ns = dict(self._db.execute("SELECT site, max(end_ns) FROM interval GROUP BY site"))
        state.balances = {
            (b, a): amount for b, a, amount in self._db.execute("SELECT book, account, amount FROM balance")
        }
        return state

    def sources(self) -> dict[tuple[str, int], tuple[Position, bool]]:
        """How far each journal was applied, and whether its writer is known to be dead."""
        found = self._db.execute("SELECT writer, epoch, segment, offset, crc, dead FROM source")
        return {(w, e): (Position(s, o, c), bool(dead)) for w, e, s, o, c, dead in found}

    def holds_of(self, writer: str, epoch: int) -> list[str]:
        """Receipts that a writer's epoch holds and has not settled."""
        found = self._db.execute("SELECT receipt FROM hold WHERE writer = ? AND epoch = ?", (writer, epoch))
        return [receipt for (receipt,) in found]

    def unmetered(self) -> list[Work]:
        """Settled work that no closed interval has taken."""
        found = self.rows("unmetered", limit=UNMETERED_MAX)
        works = [msgspec.json.decode(text, type=Settlement).work for (text,) in found]
        return [work for work in works if work is not None]

    # --- writing: inside one transaction ----------------------------------------------------------------------------

    def save_position(self, writer: str, epoch: int, position: Position = START, *, dead: bool = False) -> None:
        """Note how far a journal is applied."""
        values = {"writer": writer, "epoch": epoch, "dead": int(dead), **position._asdict()}
        self._many("save_position", [values])

    def save_anomaly(self, writer: str, epoch: int, reason: str, record: bytes) -> None:
        """Keep a record that could not be applied."""
        self._many("save_anomaly", [{"writer": writer, "epoch": epoch, "reason": reason, "record": record}])

    def save_entries(self, txn: int, entries: Sequence[Entry], at_ns: int) -> None:
        """Write the lines of one command."""
        self._many("save_entry", [{"txn": txn, "at_ns": at_ns, **entry._asdict()} for entry in entries])

    def save_figures(self, state: State, balances: set[tuple[str, str]], budgets: set[str]) -> None:
        """Write the balances and budgets that a batch touched, once each."""
        self._many(
            "save_balance", [{"book": b, "account": a, "amount": state.balances[b, a]} for b, a in sorted(balances)]
        )
        for name in sorted(budgets):
            tally = state.tallies[name]
            spent = {"spent_ustu": tally.spent_ustu, "spent_nano": tally.spent_nano}
            self._many("save_budget", [{"id": name, "doc": doc(state.budgets[name]), **spent}])

    def save_command(self, state: State, command: AnyCommand, writer: str, epoch: int) -> None:
        """Write what a command changed beside balances and budgets."""
        match command:
            case OpenAccount(account=account):
                self._many("save_account", [{"id": account.id, "doc": doc(account)}])
            case AddKey(key=key):
                self._many("save_key", [{"id": key.id, "doc": doc(key)}])
            case RevokeKey(key=name):
                self._many("save_key", [{"id": name, "doc": doc(state.keys[name])}])
            case DescribeSite(facts=facts, at_ns=at_ns):
                self._many("save_site", [{"name": facts.site, "since_ns": at_ns, "doc": doc(facts)}])
            case PlaceHold(receipt=receipt):
                self._many("save_hold", [{"receipt": receipt, "writer": writer, "epoch": epoch, "doc": doc(command)}])
            case Settle(settlement=settlement):
                self._save_receipt(settlement)
            case Void(receipt=receipt):
                self._many("drop_hold", [{"receipt": receipt}])
            case CloseInterval(interval=interval):
                self._save_interval(interval)
            case SetBudget():
                pass  # written with the figures

    def _save_receipt(self, settled: Settlement) -> None:
        usage = settled.usage
        metered = settled.work is None or bool(self.rows("ended_energy", receipt=settled.receipt))
        self._many("drop_hold", [{"receipt": settled.receipt}])
        self._many(
            "save_receipt",
            [
                {
                    "id": settled.receipt,
                    "account": settled.account,
                    "at_ns": settled.at_ns,
                    "tokens": usage.total(),
                    "output": usage.output + usage.reasoning,
                    "ustu": settled.ustu,
                    "nano": settled.nano,
                    "loss_ustu": settled.loss_ustu,
                    "loss_nano": settled.loss_nano,
                    "metered": int(metered),
                    "doc": doc(settled),
                }
            ],
        )

    def _save_interval(self, interval: Interval) -> None:
        # The request lines have a table of their own; the document keeps the rest, so that it stays small.
        head = msgspec.structs.replace(interval, requests=())
        at = {"site": interval.site, "start_ns": interval.start_ns}
        figures = {"meter_mj": interval.meter_mj, "bill_nano": interval.bill_nano, "carbon_ug": interval.carbon_ug}
        self._many("save_interval", [{**at, "end_ns": interval.end_ns, **figures, "doc": doc(head)}])
        lines = [{**at, **msgspec.structs.asdict(line), "ended": int(line.ended)} for line in interval.requests]
        self._many("save_energy_line", lines)
        self._many("mark_metered", [{"receipt": line.receipt} for line in interval.requests if line.ended])
