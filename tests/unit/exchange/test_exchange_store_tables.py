"""How the tables come to be in either database, and what is SQLite's alone."""

from __future__ import annotations

import re
from collections.abc import Iterator
from hashlib import sha256
from importlib import resources
from pathlib import Path

import apsw
import pytest
from tests.support.memory_log import MemoryNodes
from tests.support.postgres import new_database, postgres

from tokenworks.core.errors import DataDirError, ExchangeDown, LedgerRefused
from tokenworks.core.units import FIGURE_MAX
from tokenworks.exchange.log.merkle import Tree
from tokenworks.exchange.state import Entry, State
from tokenworks.exchange.store import Store, base, migrate, open_store
from tokenworks.exchange.store.database import queries
from tokenworks.exchange.store.log_tables import LogTables


@pytest.fixture(scope="module")
def server() -> Iterator[str]:
    with postgres() as url:
        yield url


@pytest.fixture(params=["file", "postgres"])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Store]:
    if request.param == "postgres":
        made = open_store(new_database(request.getfixturevalue("server")))
    else:
        made = open_store(tmp_path / "ledger.db")
    yield made
    made.close()


def test_a_newer_format_is_refused_and_left_alone(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    """And an older one is brought up to date, once; a step that fails leaves the format before it."""
    newest = migrate.migrations()[-1].number
    steps = [
        *migrate.migrations(),
        migrate.Migration(newest + 1, 0, "x", None, "CREATE TABLE more (id {text}) {strict};"),
    ]
    broken = migrate.Migration(newest + 1, 1, "x", None, "CREATE TABLE account (id {text})")
    monkeypatch.setattr(migrate, "migrations", lambda: [*steps, broken])
    with pytest.raises(DataDirError):
        migrate.migrate(store._db)
    assert store.rows("schema") == [(str(newest),)]
    monkeypatch.setattr(migrate, "migrations", lambda: steps)
    assert migrate.migrate(store._db) == migrate.migrate(store._db) == newest + 1
    monkeypatch.undo()
    with pytest.raises(DataDirError, match=f"format {newest + 1}, this version knows {newest}") as caught:
        migrate.migrate(store._db)
    assert caught.value.hint is not None
    assert "newer Tokenworks" in caught.value.hint
    store.write("save_schema", [{"value": "many"}])
    with pytest.raises(DataDirError, match="does not say its format"):
        migrate.migrate(store._db)


def test_migrations_are_portable() -> None:
    """Every file is named by the rule, says its types by placeholders, and only those that exist."""
    folder = resources.files("tokenworks.exchange.store").joinpath("migrations")
    names = {file.name for file in folder.iterdir() if file.name.endswith(".sql")}
    steps = migrate.migrations()
    assert {step.file for step in steps} == names
    assert sorted({step.number for step in steps}) == [*range(1, steps[-1].number + 1)]
    for step in steps:
        for dialect in migrate.WORDS:
            assert not re.search(r"\{\w+\}", step.text(dialect))
        if step.dialect is None:
            assert not re.search(r"\b(INTEGER|TEXT|BLOB|STRICT)\b", step.sql), step.file


def test_overrides_stand_for_statements_that_exist() -> None:
    """PostgreSQL's file only changes the words of statements, with the same parameters."""
    assert queries("postgres").keys() == queries("sqlite").keys()
    assert {name for name, sql in queries("postgres").items() if sql.startswith("COPY")} == {
        "save_entry",
        "save_receipt",
        "save_energy_line",
    }
    assert set(base.ORDER) < queries("sqlite").keys()


def test_a_file_is_opened_again_as_it_was(tmp_path: Path) -> None:
    """By its name or its path: the tables stay, and what is in them."""
    first = open_store(tmp_path / "ledger.db")
    first.save_position("gateway", 1)
    first.close()
    again = open_store(str(tmp_path / "ledger.db"))
    assert [*again.sources()] == [("gateway", 1)]
    again.close()


def test_a_file_that_cannot_be_used_says_so(tmp_path: Path) -> None:
    """A folder in its place, other bytes, a damaged page, a lock that somebody keeps."""
    with pytest.raises(DataDirError, match="cannot open the ledger"):
        open_store(tmp_path)
    (tmp_path / "other.db").write_bytes(b"no database at all" * 99)
    with pytest.raises(DataDirError):
        open_store(tmp_path / "other.db")
    store = open_store(tmp_path / "ledger.db")
    other = apsw.Connection(str(tmp_path / "ledger.db"))
    other.execute("BEGIN IMMEDIATE")
    store._db._connection.set_busy_timeout(1)  # type: ignore[attr-defined]
    with pytest.raises(ExchangeDown, match="cannot write to"):
        store.save_position("gateway", 1)
    other.execute("ROLLBACK")
    other.close()
    store.save_position("gateway", 1)
    store.close()


def test_a_sum_beyond_sixty_four_bits_is_never_silent_in_sqlite(tmp_path: Path) -> None:
    """A balance that grows too large is refused; a sum over lines that does is an error, not a wrong number."""
    store = open_store(tmp_path / "ledger.db")
    state = State(balances={("stu", "a"): 2**63})
    with pytest.raises(LedgerRefused, match="beyond what"), store.transaction():
        store.save_figures(state, set(state.balances), set())
    for txn in (1, 2, 3):
        store.save_entries(txn, [Entry("stu", "a", FIGURE_MAX), Entry("stu", "b", -FIGURE_MAX)], 9)
    with pytest.raises(DataDirError, match="overflow"):
        store.rows("wrong_balances")
    store.close()


def test_tiles_keep_what_single_nodes_would(tmp_path: Path) -> None:
    """Every complete subtree of a log of 70,000 leaves that grew in uneven steps, over restarts and within a tile."""
    store, tree, kept = open_store(tmp_path / "ledger.db"), Tree(), MemoryNodes()
    tables = LogTables(store)
    for step in (1, 254, 1, 255, 2, 3_000, 65_536, 951):
        first = tree.size
        tree.extend([sha256(str(first + n).encode()).digest() for n in range(step)])
        with store.transaction():
            tables.put(tree._fresh)
        tree.flush(kept)
        assert LogTables(store).size() == tree.size
        if step % 2:
            tables = LogTables(store)
    places = [place for n, place in enumerate(kept.kept) if place[0] > 5 or n % 97 == 0]
    assert {level for level, _ in places} == set(range(17))
    assert [tables.get(*place) for place in places] == [kept.kept[place] for place in places]
    assert (tables.get(0, 70_000), tables.get(3, 8_750), tables.get(17, 0)) == (None, None, None)
    assert Tree.load(tables, tree.size).root() == tree.root()
    store.close()
