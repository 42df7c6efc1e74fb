"""The PostgreSQL store, through psycopg 3. One connection, prepared statements, COPY for what is only ever appended.

The session holds an advisory lock as long as it lives, so one ledger runs on a database. Connect to the server itself:
a pooler that hands sessions around would hand that lock around too.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import cache
from typing import cast

import psycopg
from psycopg.abc import Buffer
from psycopg.adapt import Dumper, Loader
from psycopg.conninfo import conninfo_to_dict, make_conninfo
from psycopg.types.numeric import IntDumper

from tokenworks.core.errors import DataDirError, ExchangeDown, LedgerRefused, TokenworksError
from tokenworks.exchange.store.database import Dialect, Line, Row, Values

LOCK = int.from_bytes(b"tokenwks", "big")
"""The advisory lock of a ledger."""
# A server that is gone without a word is noticed within about half a minute; the URL may say otherwise.
_DEFAULTS = {"connect_timeout": 10, "keepalives_idle": 10, "keepalives_interval": 5, "keepalives_count": 3}
_FIXED = {"application_name": "tokenworks-ledger", "client_encoding": "utf8"}
_PARAMETER = re.compile(r"(?<![:\w]):([a-z_]\w*)")


class _IntDumper(Dumper):
    """An integer goes as text and the column says what it is: one prepared statement for all sizes."""

    def dump(self, obj: int) -> bytes:
        return str(int(obj)).encode()


class _IntLoader(Loader):
    """Sums are NUMERIC there; here they are int. A fraction would be a wrong query, and raises ValueError."""

    def load(self, data: Buffer) -> int:
        return int(bytes(data))


class _TextLoader(Loader):
    """A document stays text: who reads it knows its type."""

    def load(self, data: Buffer) -> str:
        return bytes(data).decode()


@cache
def _translated(sql: str) -> bytes:
    return _PARAMETER.sub(r"%(\1)s", sql.replace("%", "%%")).encode()


def _reason(error: psycopg.Error) -> str:
    return error.diag.message_primary or (str(error).strip().splitlines() or [type(error).__name__])[0]


class PostgresDatabase:
    """A database of a server, by its ``postgresql://`` URL.

    Raises DataDirError when it cannot be opened or when another ledger has it.
    """

    dialect: Dialect = "postgres"

    def __init__(self, url: str) -> None:
        try:
            parts = conninfo_to_dict(url)
        except psycopg.Error:  # its text would repeat the URL, and with it the password
            raise DataDirError("the URL of the ledger's database cannot be read") from None
        self.name = f"{parts.get('host', 'localhost')}/{parts.get('dbname', '')}"
        self._conninfo = make_conninfo(
            url, **{name: value for name, value in _DEFAULTS.items() if name not in parts}, **_FIXED
        )
        try:
            self._connection = self._connect()
        except psycopg.Error as error:
            raise DataDirError(
                f"cannot open the ledger {self.name}: {_reason(error)}", hint="is the server there, and the URL right?"
            ) from error

    def _connect(self) -> psycopg.Connection[Row]:
        # Every statement that returns often is one of the named ones, so all are prepared at their first use.
        made: psycopg.Connection[Row] = psycopg.connect(self._conninfo, autocommit=True, prepare_threshold=0)
        made.adapters.register_dumper(int, _IntDumper)
        made.adapters.register_loader("numeric", _IntLoader)
        made.adapters.register_loader("json", _TextLoader)
        try:
            if made.info.parameter_status("server_encoding") != "UTF8":
                raise DataDirError(f"the database {self.name} is not in UTF8", hint="create it with ENCODING 'UTF8'")
            # Somebody may have it stronger (remote_apply), never weaker: an acknowledged commit survives a crash.
            made.execute(
                "SELECT set_config('synchronous_commit', 'on', false)"
                " WHERE current_setting('synchronous_commit') IN ('off', 'local')"
            )
            row = made.execute("SELECT pg_try_advisory_lock(%s::bigint)", [LOCK]).fetchone()
            if row is None or row[0] is not True:
                raise DataDirError("another process keeps the books of this database", hint="stop it first")
        except BaseException:
            made.close()
            raise
        return made

    @property
    def lost(self) -> bool:
        return self._connection.closed

    @contextmanager
    def _errors(self) -> Iterator[None]:
        if self.lost:
            raise ExchangeDown(f"the connection to {self.name} was lost", hint="the ledger connects again by itself")
        try:
            yield
        except (psycopg.DataError, psycopg.IntegrityError) as error:
            raise LedgerRefused(f"the tables of {self.name} refuse it: {_reason(error)}") from error
        except (psycopg.OperationalError, psycopg.InterfaceError) as error:
            raise ExchangeDown(f"cannot write to {self.name}: {_reason(error)}") from error
        except psycopg.Error as error:
            raise DataDirError(f"cannot use the ledger {self.name}: {_reason(error)}") from error

    def rows(self, sql: str, values: Values) -> list[Row]:
        with self._errors():
            cursor = self._connection.execute(_translated(sql), values)
            return cursor.fetchall() if cursor.description else []

    def many(self, sql: str, values: Sequence[Values] | Sequence[Line]) -> None:
        with self._errors(), self._connection.cursor() as cursor:
            if not sql.startswith("COPY "):
                cursor.executemany(_translated(sql), values)
                return
            cursor.adapters.register_dumper(int, IntDumper)  # nothing is prepared here, and psycopg's own is faster
            with cursor.copy(sql.encode()) as copy:
                write = copy.write_row
                for row in cast("Sequence[Line]", values):
                    write(row)

    def script(self, sql: str) -> None:
        with self._errors():
            self._connection.execute(sql.encode(), prepare=False)

    @contextmanager
    def transaction(self) -> Iterator[None]:
        """See the port. When the connection is lost while it commits, only reading again tells whether it did."""
        with self._errors(), self._connection.transaction():
            yield

    def reopen(self) -> None:
        """See the port. Raises ExchangeDown while the server is away or still has the lost session."""
        if not self.lost:
            return
        try:
            self._connection = self._connect()
        except psycopg.Error as error:
            raise ExchangeDown(f"cannot reach {self.name}: {_reason(error)}") from error
        except TokenworksError as error:
            # The old session still holds the lock, or another ledger took over: neither may be written beside.
            raise ExchangeDown(error.message, hint=error.hint) from error

    def close(self) -> None:
        self._connection.close()
