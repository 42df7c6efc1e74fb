"""The ledger's store. SQL lives in ``.sql`` files; one process opens it, in one thread; all others ask that one.

One logic (``base.Store``), two databases: a SQLite file, which needs nothing, and PostgreSQL, for operators who have a
database that others back up and watch. What differs between them is an adapter each (``sqlite``, ``postgres``) behind
the port ``database.Database``.

Statements are named in ``queries.sql``, portable, with ``:name`` parameters. Where PostgreSQL truly needs another text,
``queries.postgres.sql`` has one of the same name. To be portable, write a cast around a parameter that stands beside
nothing but NULL, ``IS DISTINCT FROM`` for ``IS NOT``, and an ORDER BY that leaves no ties. ``Store.write`` gathers rows
by statement: two statements that see each other's rows in one batch need their order in ``base.ORDER``.

Tables are made by ``migrations/NNNN_pre_what.sql`` and ``NNNN_post_what.sql``: ``pre`` only adds, ``post`` changes or
removes. Files of one number are one step, ``pre`` first, and run in one transaction when the store opens; the number
is kept in ``meta``. One file serves both databases through the placeholders of ``migrate.WORDS``; a file that only one
needs ends with ``.sqlite.sql`` or ``.postgres.sql``. A migration that was ever released is never edited.
"""

from __future__ import annotations

from pathlib import Path

from tokenworks.exchange.store.base import Store

__all__ = ["Store", "open_store"]


def open_store(place: str | Path) -> Store:
    """Open the store at a ``postgresql://`` URL or in a SQLite file, and bring its tables up to date.

    Raises DataDirError when it cannot be opened, is newer than this version, or another process has it.
    """
    # Each driver is imported only where it is used: a grid on a laptop need not load PostgreSQL's.
    if isinstance(place, str) and place.startswith(("postgresql://", "postgres://")):
        from tokenworks.exchange.store.postgres import PostgresDatabase

        return Store(PostgresDatabase(place))
    from tokenworks.exchange.store.sqlite import SqliteDatabase

    return Store(SqliteDatabase(place))
