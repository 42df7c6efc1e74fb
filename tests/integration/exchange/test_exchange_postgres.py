"""The store on a real PostgreSQL: lost connections, crashes, other hands, and what only this database has."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Iterator

import psycopg
import pytest
from tests.support.postgres import new_database, postgres

from tokenworks.core.errors import DataDirError, ExchangeDown, LedgerRefused
from tokenworks.exchange.journal import Position
from tokenworks.exchange.state import Entry, State
from tokenworks.exchange.store import Store, open_store
from tokenworks.exchange.words import Account, OpenAccount

LINES = [Entry("stu", "a", 5), Entry("stu", "b", -5)]


@pytest.fixture(scope="module")
def server() -> Iterator[str]:
    # Its disk is synced as in earnest: this file is about what survives.
    with postgres(fsync=True) as url:
        yield url


@pytest.fixture
def url(server: str) -> str:
    return new_database(server)


@pytest.fixture
def store(url: str) -> Iterator[Store]:
    made = open_store(url)
    yield made
    made.close()


def sql(url: str, text: str) -> list[tuple[object, ...]]:
    """Another hand on the same database."""
    with psycopg.connect(url, autocommit=True) as connection:
        cursor = connection.execute(text.encode())
        return cursor.fetchall() if cursor.description else []


def ledger_pid(url: str) -> int:
    ((pid,),) = sql(
        url,
        "SELECT pid FROM pg_stat_activity"
        " WHERE application_name = 'tokenworks-ledger' AND datname = current_database()",
    )
    assert isinstance(pid, int)
    return pid


def reopened(store: Store) -> None:
    """Ask until the server is back, as a ledger would."""
    deadline = time.monotonic() + 30
    while store.lost:
        try:
            store.reopen()
        except ExchangeDown:
            assert time.monotonic() < deadline
            time.sleep(0.05)


def test_a_connection_lost_in_a_transaction_leaves_nothing_half(url: str, store: Store) -> None:
    """What was sent is gone, every verb says so until the store is opened again, and then it goes on."""
    store.save_entries(1, LINES, 9)

    def cut_off() -> None:
        with store.transaction():
            store.save_entries(2, LINES, 9)
            store.save_command(State(), OpenAccount(account=Account(id="a", name="a", opened_ns=1)))
            assert store.rows("last_txn") == [(2,)]
            sql(url, f"SELECT pg_terminate_backend({ledger_pid(url)})")
            store.save_position("gateway", 1, Position(1, 2, 3))

    with pytest.raises(ExchangeDown):
        cut_off()
    assert store.lost
    for verb in (store.load, store.sources, lambda: store.save_position("gateway", 1)):
        with pytest.raises(ExchangeDown, match="lost"):
            verb()
    assert sql(url, "SELECT count(*) FROM entry") == [(2,)]
    reopened(store)
    assert (store.rows("last_txn"), store.load().accounts, store.sources()) == ([(1,)], {}, {})
    store.save_entries(2, LINES, 9)
    assert store.rows("last_txn") == [(2,)]


def test_what_was_acknowledged_survives_a_crash_of_the_server(url: str, store: Store) -> None:
    """A backend dies by the kernel's hand, the server recovers from its log: all that was committed is there."""
    for txn in range(1, 21):
        store.save_entries(txn, LINES, 9)
    os.kill(ledger_pid(url), signal.SIGKILL)
    with pytest.raises(ExchangeDown):
        store.save_entries(21, LINES, 9)
    reopened(store)
    assert store.rows("last_txn") == [(20,)]
    assert store.rows("book_sums") == [("stu", 0, 40)]


def test_one_ledger_runs_on_a_database(url: str, store: Store) -> None:
    """A second one is refused; when it gets in while the first is away, the first cannot come back beside it."""
    with pytest.raises(DataDirError, match="another process keeps the books"):
        open_store(url)
    sql(url, f"SELECT pg_terminate_backend({ledger_pid(url)})")
    with pytest.raises(ExchangeDown):
        store.load()
    second = open_store(url)
    with pytest.raises(ExchangeDown, match="another process keeps the books"):
        store.reopen()
    assert store.lost
    second.close()
    reopened(store)
    store.load()


@pytest.mark.parametrize(
    "text",
    [
        "UPDATE entry SET amount = 1",
        "DELETE FROM entry",
        "TRUNCATE entry",
        "INSERT INTO entry (txn, book, account, amount, at_ns) VALUES (9, 'stu', 'a', 5, 1), (9, 'money', 'a', -5, 1)",
        "UPDATE receipt SET nano = 2, metered = 1",
        "UPDATE receipt SET doc = ''",
        "UPDATE receipt SET id = 'other'",
        "DELETE FROM receipt",
        "TRUNCATE receipt",
    ],
)
def test_the_books_refuse_other_hands(url: str, store: Store, text: str) -> None:
    """Entries stay and balance, of a receipt only ``metered`` moves, whoever asks."""
    store.save_entries(1, LINES, 9)
    sql(url, "INSERT INTO receipt VALUES ('r', 'a', 1, 1, 1, 1, 1, 0, 0, 'x', 0, 1, 1, 1, 0)")
    with pytest.raises(psycopg.errors.IntegrityConstraintViolation):
        sql(url, text)
    sql(url, "UPDATE receipt SET metered = 1")
    assert store.rows("book_sums") == [("stu", 0, 2)]
    assert store.rows("receipt", id="r") == [(b"x", 1)]


def test_lines_that_do_not_balance_are_refused(store: Store) -> None:
    """The database counts after the ledger."""
    with pytest.raises(LedgerRefused, match="do not sum to zero"):
        store.save_entries(1, LINES[:1], 9)
    assert store.rows("last_txn") == [(0,)]


def test_sums_go_beyond_sixty_four_bits(store: Store) -> None:
    """One line fits in 64 bits, their sums and the balances need not."""
    most = 2**63 - 1
    with store.transaction():
        for txn in (1, 2, 3):
            store.save_entries(txn, [Entry("stu", "a", most), Entry("stu", "b", -most)], 9)
        state = State(balances={("stu", "a"): 3 * most, ("stu", "b"): -3 * most})
        store.save_figures(state, set(state.balances), set())
    assert store.load().balances == state.balances
    assert store.rows("wrong_balances") == []


def test_text_sorts_by_its_bytes(url: str, store: Store) -> None:
    """Whatever language the server has, every column of words compares as SQLite's do."""
    assert store.load().accounts == {}
    assert (
        sql(
            url,
            "SELECT table_name, column_name FROM information_schema.columns WHERE table_schema = 'public'"
            " AND data_type = 'text' AND collation_name IS DISTINCT FROM 'C'",
        )
        == []
    )


def test_a_commit_is_on_disk_when_it_returns(url: str) -> None:
    """A database that would answer sooner is overruled for the ledger's session; a stronger one is kept."""
    for setting, expected in (("off", "on"), ("remote_apply", "remote_apply")):
        ((name,),) = sql(url, "SELECT current_database()")
        sql(url, f"ALTER DATABASE {name} SET synchronous_commit = {setting}")
        store = open_store(url)
        assert store._db.rows("SHOW synchronous_commit", {}) == [(expected,)]
        store.close()


def test_a_database_that_cannot_be_used_says_so_without_its_password(server: str) -> None:
    """Unknown name, nobody there, no URL, and one that cannot hold all text."""
    plain = server.replace("test@/postgres", "test:hunter2@/{}")
    sql(server, "CREATE DATABASE latin TEMPLATE template0 ENCODING 'LATIN1' LOCALE 'C'")
    wrong = [plain.format("missing"), "postgresql://test:hunter2@127.0.0.1:1/x", "postgresql://test:hunter2@[/x"]
    for place in [*wrong, plain.format("latin")]:
        with pytest.raises(DataDirError) as caught:
            open_store(place)
        assert "hunter2" not in str(caught.value)
    with pytest.raises(DataDirError, match="not in UTF8"):
        open_store(plain.format("latin"))
