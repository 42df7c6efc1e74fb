"""The SQLite store, through apsw (whose wheel brings a current SQLite). One connection, WAL, synced commits."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import apsw

from tokenworks.core.errors import DataDirError, ExchangeDown, LedgerRefused
from tokenworks.core.turns import TURN, in_turns
from tokenworks.exchange.store.database import Dialect, Line, Row, Values

BUSY_MS = 5_000
WAL_PAGES = 8_192
"""Pages (of 4 KiB) in the log beside the file before they are copied into it: one that changes often is copied once."""
_NOT_NOW = (apsw.BusyError, apsw.LockedError, apsw.FullError, apsw.IOError, apsw.ReadOnlyError, apsw.CantOpenError)


@contextmanager
def _errors(name: str) -> Iterator[None]:
    try:
        yield
    except OverflowError as error:
        # SQLite counts in 64 bits; apsw refuses what is longer, and so nothing is ever cut.
        raise LedgerRefused(f"an amount is beyond what {name} can count", hint="PostgreSQL counts further") from error
    except apsw.ConstraintError as error:
        raise LedgerRefused(f"the tables of {name} refuse it: {error}") from error
    except _NOT_NOW as error:
        raise ExchangeDown(f"cannot write to {name}: {error}", hint="is the disk full?") from error
    except apsw.Error as error:
        raise DataDirError(f"cannot use the ledger {name}: {error}", hint="is the file damaged?") from error


class SqliteDatabase:
    """A file, or ``:memory:``. Raises DataDirError when it cannot be opened."""

    dialect: Dialect = "sqlite"
    lost = False

    def __init__(self, path: str | Path) -> None:
        self.name = Path(path).name
        try:
            self._connection = apsw.Connection(str(path))
            self._connection.set_busy_timeout(BUSY_MS)
            self._connection.execute("PRAGMA journal_mode=WAL")
            self._connection.execute("PRAGMA synchronous=FULL")
            self._connection.execute(f"PRAGMA wal_autocheckpoint={WAL_PAGES}")
        except apsw.Error as error:
            raise DataDirError(
                f"cannot open the ledger {self.name}: {error}", hint="is the disk full or damaged?"
            ) from error

    def rows(self, sql: str, values: Values) -> list[Row]:
        with _errors(self.name):
            return list(self._connection.execute(sql, values))

    def many(self, sql: str, values: Sequence[Values] | Sequence[Line]) -> None:
        with _errors(self.name):
            for turn in in_turns(values, 4 * TURN):
                self._connection.executemany(sql, turn)  # type: ignore[arg-type]  # lines or values

    def script(self, sql: str) -> None:
        with _errors(self.name):
            self._connection.execute(sql)

    @contextmanager
    def transaction(self) -> Iterator[None]:
        with _errors(self.name), self._connection:
            yield

    def reopen(self) -> None:
        """A file is not lost."""

    def close(self) -> None:
        self._connection.close()
