"""The port to a database: few verbs, so that a second database is one small file."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from functools import cache
from importlib import resources
from typing import Any, Literal, Protocol

Dialect = Literal["sqlite", "postgres"]
Row = tuple[Any, ...]
Values = Mapping[str, object]
Line = tuple[object, ...]
"""Values in the order in which a statement names them: cheaper where rows are many."""


class Database(Protocol):
    """One connection to one database. SQL names its parameters ``:name``; whole numbers come back as int.

    All verbs raise ExchangeDown when the database cannot do it now (disk full, connection lost), LedgerRefused when
    the values do not fit the tables (an amount beyond the column, a row that is there already), DataDirError when the
    database itself is not what it should be.
    """

    dialect: Dialect

    @property
    def lost(self) -> bool:
        """The connection is gone, and with it any open transaction; every verb but ``reopen`` raises ExchangeDown."""

    @property
    def name(self) -> str:
        """For error messages: never with a password."""

    def rows(self, sql: str, values: Values) -> list[Row]:
        """Run one statement and return its rows."""

    def many(self, sql: str, values: Sequence[Values] | Sequence[Line]) -> None:
        """Run one statement for each of the values, in order. Lines are for statements that PostgreSQL has as COPY."""

    def script(self, sql: str) -> None:
        """Run several statements without parameters."""

    def transaction(self) -> AbstractContextManager[None]:
        """All or nothing, on disk when it ends."""

    def reopen(self) -> None:
        """Connect again after a loss; nothing when none occurred. What was read before must be read again."""

    def close(self) -> None:
        """Let go of the database; twice does no harm."""


def _named(file: str) -> dict[str, str]:
    text = resources.files(__package__).joinpath(file).read_text("utf-8")
    named: dict[str, str] = {}
    for block in text.split("-- name: ")[1:]:
        name, _, body = block.partition("\n")
        lines = (line for line in body.splitlines() if not line.startswith("--"))
        named[name.strip()] = "\n".join(lines).strip().rstrip(";")
    return named


@cache
def queries(dialect: Dialect) -> Mapping[str, str]:
    """The named statements, as one database understands them."""
    return _named("queries.sql") | (_named("queries.postgres.sql") if dialect == "postgres" else {})
