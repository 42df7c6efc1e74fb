"""Statements from the offices' side: with files, journals and a clock, and built again from them."""

from __future__ import annotations

import shutil
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import msgspec
import pytest
from tests.support.exchange import holding, settlement

from tokenworks.core.clock import ManualClock
from tokenworks.core.errors import BadRequest, LedgerRefused, NotFound
from tokenworks.exchange import offices
from tokenworks.exchange.journal import Journal, journal_folder
from tokenworks.exchange.service import LedgerService
from tokenworks.exchange.settlement import DAY_NS, digest
from tokenworks.exchange.words import Settle, encode_command

MARCH_NS = int(datetime(2026, 3, 1, tzinfo=UTC).timestamp()) * 10**9


class Grid:
    """A ledger's service, and a gateway's journal beside it."""

    def __init__(self, data: Path) -> None:
        data.mkdir()
        self.data, self.clock = data, ManualClock(MARCH_NS + 40 * DAY_NS)
        self.service = LedgerService(data, self.clock)
        self.gateway = Journal(journal_folder(data, "gateway", 1), "gateway", 1)
        for name, fee in (("north", 100), ("south", 0)):
            self.ask("entity_set", entity=name, fee_permille=fee)
        for account, home in (("a", "operator"), ("s", "south")):
            self.ask("account_create", account=account, home=home)

    def ask(self, method: str, **params: Any) -> Any:
        return msgspec.to_builtins(offices.answer(self.service, method, params))

    def serve(self, receipt: str, account: str, entity: str, nano: int, at_ns: int) -> None:
        figures: dict[str, Any] = {"ustu": 10, "nano": nano, "entity": entity, "at_ns": at_ns}
        settled = settlement(receipt, account=account, budget=account, **figures)
        for command in (holding(receipt, account, 10, nano, at_ns), Settle(settlement=settled)):
            self.gateway.append(encode_command(command))

    def close(self) -> None:
        self.gateway.close()
        self.service.close()


def test_a_period_from_requests_to_payment(tmp_path: Path) -> None:
    """March is stated on the tenth of April, disputed, netted and paid; each step again changes nothing."""
    grid = Grid(tmp_path / "data")
    grid.serve("r1", "a", "north", 1_000, MARCH_NS)
    grid.serve("r2", "a", "north", 500, MARCH_NS + 30 * DAY_NS)
    grid.serve("r3", "a", "north", 90, MARCH_NS + 31 * DAY_NS)
    grid.serve("r4", "s", "north", 300, MARCH_NS + 1)
    grid.serve("r5", "s", "", 700, MARCH_NS + 1)
    issued = {each["id"]: each for each in grid.ask("statement_issue")}
    assert set(issued) == {"north.operator.2026-04-01", "north.south.2026-04-01", "operator.south.2026-04-01"}
    first = issued["north.operator.2026-04-01"]
    assert (first["lines"], first["paid_nano"], first["fee_nano"], first["net_nano"]) == (2, 1_500, 150, 1_350)
    shown = grid.ask("statement", statement=first["id"])
    rows = [tuple(row) for row in shown["rows"]]
    assert rows == [("r1", 10, 0, 1_000, 0, 100), ("r2", 10, 0, 500, 0, 50)]
    assert shown["digest"] == digest("north", "operator", 0, MARCH_NS + 31 * DAY_NS, rows)
    assert grid.ask("statement", statement=first["id"], after="r1", limit=1)["rows"] == [rows[1]]
    assert grid.ask("statement_issue") == []
    with pytest.raises(BadRequest):
        grid.ask("statement_issue", until_ns=MARCH_NS + 1)
    with pytest.raises(NotFound, match="north"):
        grid.ask("statement", statement="north.operator")

    grid.serve("r6", "a", "north", 40, MARCH_NS + 2)  # comes to light when March is stated
    dispute: dict[str, Any] = {"statement": first["id"], "reason": "r2 was cut", "nano": 350, "dispute": "d1"}
    assert grid.ask("statement_dispute", **dispute) == grid.ask("statement_dispute", **dispute)
    netted = grid.ask("statements_net", netting="n0")
    assert list(netted["statements"]) == ["north.south.2026-04-01", "operator.south.2026-04-01"], "not what is disputed"
    assert grid.ask("dispute_answer", dispute="d1", accepted=True, answer="so it was")["status"] == "accepted"
    again = grid.ask("statements_net", netting="n1")
    assert grid.ask("statements_net", netting="n1") == again
    assert grid.ask("statements_net") is None
    pairs = [(p["debtor"], p["creditor"], p["nano"]) for each in (netted, again) for p in each["pairs"]]
    assert pairs == [("south", "north", 270), ("south", "operator", 730), ("operator", "north", 1_000)]
    for name, each in (("n0", netted), ("n1", again)):
        for pair in each["pairs"]:
            paid = {"netting": name, "debtor": pair["debtor"], "creditor": pair["creditor"], "reference": "w1"}
            assert grid.ask("pair_settle", **paid) == grid.ask("pair_settle", **paid)
    with pytest.raises(LedgerRefused, match="settled already"):
        grid.ask("pair_settle", netting="n1", debtor="operator", creditor="north", reference="w2")
    april = grid.ask("statement_issue", until_ns=MARCH_NS + 39 * DAY_NS)
    assert [(each["id"], each["lines"], each["net_nano"]) for each in april] == [("north.operator.2026-04-09", 2, 117)]
    told, books = grid.ask("statements"), grid.ask("books")
    assert books["closed"], [check for check in books["checks"] if not check["ok"]]
    money = books["books"]["money"]["accounts"]
    assert not [name for name in money if name.startswith("clearing/")]
    assert (money["payable/entity/north"], money["adjustments/operator"], money["settled/operator"]) == (
        -117,
        -350,
        -270,
    )
    assert told["unstated"] == []
    grid.close()

    restarted = LedgerService(grid.data, grid.clock)
    assert restarted.state == grid.service.state
    restarted.close()
    for file in grid.data.glob("ledger.db*"):
        file.unlink()
    shutil.rmtree(grid.data / "log", ignore_errors=True)
    grid.service = LedgerService(grid.data, grid.clock)
    assert grid.ask("statements") == told, "built again from the journals"
    assert grid.ask("books")["books"] == books["books"]
    grid.service.close()


def test_books_show_a_line_that_was_changed(tmp_path: Path) -> None:
    """A statement is checked against its lines, and what entities are owed against both."""
    grid = Grid(tmp_path / "data")
    grid.serve("r1", "a", "north", 1_000, MARCH_NS)
    grid.ask("statement_issue")
    assert grid.ask("books")["closed"]
    grid.service.store._db.script("UPDATE served SET nano = nano + 1")
    wrong = [check for check in grid.ask("books")["checks"] if not check["ok"]]
    assert [check["check"] for check in wrong] == ["statements equal their lines, and entities are owed them"]
    grid.close()
