"""A work that comes late, from a grid's own agent through desk and journal to both databases and a customer's check."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any, cast

import msgspec
import pytest
from tests.support.exchange import settlement
from tests.support.postgres import new_database, postgres

from tokenworks import gridfile
from tokenworks.compose import plan
from tokenworks.core.clock import ManualClock, WallClock
from tokenworks.core.units import NS_PER_S
from tokenworks.core.words import Candidate, Decision, Provenance, Work
from tokenworks.exchange import offices
from tokenworks.exchange.desk import Desk
from tokenworks.exchange.journal import Journal, journal_folder
from tokenworks.exchange.link import Welcome
from tokenworks.exchange.log.bundle import verify_bundle
from tokenworks.exchange.service import LedgerService
from tokenworks.exchange.words import PlaceHold, Settle, encode_command
from tokenworks.grid import Grid
from tokenworks.site.words import SliceLoad

FACTORY = Path(__file__).resolve().parents[3] / "examples" / "modular-factory.toml"
GATEWAY = "gateway-1"
LOAD = SliceLoad(
    slice="a", idle_mw=90_000, busy_mw=610_000, power=Provenance.MODELLED, cost_nano_per_hour=10**9,
    embodied_ug_per_hour=30_000_000,
)  # fmt: skip


@pytest.fixture(scope="module")
def server() -> Iterator[str]:
    with postgres() as url:
        yield url


class House:
    """The agent of the example's site as the running grid composes it, over a ledger in this process."""

    def __init__(self, data: Path, store: str | None) -> None:
        self.clock, self.store, self.data = ManualClock(), store, data
        self.service = LedgerService(data, self.clock, store)
        self.ask("account_create", account="acme", name=None, limit_nano=10**9, limit_ustu=None)
        made = plan(gridfile.load(FACTORY))
        facility = made.sites[0].facility
        assert facility is not None
        warm = msgspec.structs.replace(facility, design_sink_mc=30_000)  # where cooling evaporates water
        self.site = msgspec.structs.replace(made.sites[0], loads=(LOAD,), facility=warm)
        made = msgspec.structs.replace(made, sites=(self.site,))
        grid = Grid(made, data, cast(WallClock, self.clock), lambda _: None, "127.0.0.1", 0)
        epoch = self.service.hello(GATEWAY, None)
        self.journal = Journal(journal_folder(data, GATEWAY, epoch), GATEWAY, epoch)
        grid.gateway.desk = Desk(grid.plan.prices, self.clock, self.journal)
        grid.gateway.services = dict  # type: ignore[method-assign]  # it has no house
        welcome = Welcome(epoch=epoch, directory=self.service.directory(), unmetered=(), interval_end_ns={})
        self.grid, self.agent = grid, next(grid._agents(welcome))

    def ask(self, method: str, **params: Any) -> Any:
        return offices.answer(self.service, method, params)

    def served(self, receipt: str, start_s: float, end_s: float) -> Work:
        """A work of so many seconds since the last interval's end, settled in the journal."""
        at = self.agent.last_ns
        work = Work(
            receipt=receipt, replica="r", site=self.site.name, slice=self.site.loads[0].slice, first_ns=None,
            start_ns=at + round(start_s * NS_PER_S), end_ns=at + round(end_s * NS_PER_S), input_tokens=9,
            output_tokens=9,
        )  # fmt: skip
        chosen = Candidate(replica="r", site=self.site.name, model="m", terms_nano={}, total_nano=0)
        owner = {"account": "acme", "budget": "acme", "at_ns": work.end_ns}
        made = settlement(receipt, work=work, decision=Decision(chosen=chosen), **owner)
        hold = PlaceHold(receipt=receipt, budget="acme", ustu=0, nano=0, at_ns=work.start_ns)
        for command in (hold, Settle(settlement=made)):
            self.journal.append(encode_command(command))
        return work

    def minute(self) -> None:
        self.clock.advance(60)
        self.agent.close(self.clock.now_ns())

    def restart(self, unmetered: Work) -> None:
        """The site's agent starts anew, with what the ledger tells it."""
        ends = {self.site.name: self.agent.last_ns}
        welcome = Welcome(epoch=1, directory=self.service.directory(), unmetered=(unmetered,), interval_end_ns=ends)
        self.agent = next(self.grid._agents(welcome))

    def close(self) -> None:
        self.journal.close()
        self.service.close()


@pytest.mark.parametrize("database", ["sqlite", "postgres"])
def test_a_work_that_is_known_only_after_a_restart_has_no_energy(server: str, tmp_path: Path, database: str) -> None:
    """Its interval is closed and forgotten: receipt, bundle and export say nothing of its energy, never zero."""
    house = House(tmp_path, new_database(server) if database == "postgres" else None)
    early, late = house.served("rcpt_early", 0, 30), house.served("rcpt_late", 10, 50)
    house.agent.end(early)
    house.minute()
    house.clock.advance(1)
    house.restart(late)
    house.minute()
    late_view = house.ask("receipt", receipt="rcpt_late", account="acme", operator=True)
    assert late_view["status"] == "unmetered"
    assert "energy_mj" not in late_view
    assert [line["layer"] for line in late_view["lines"]] == ["engine", "exchange", "brain", "agents"]
    exported = house.ask("receipt_export", receipts=["rcpt_early", "rcpt_late"])
    assert verify_bundle(exported).ok
    for old, new, said in (
        ("unmetered", "final", "the leaf says 'unmetered'"),
        ('"status":"unmetered"', '"status":"unmetered","energy_mj":0', "energy_mj is 0, the leaves do not know it"),
    ):
        assert old in exported
        assert any(said in wrong for wrong in verify_bundle(exported.replace(old, new)).wrong)
    energy = {row.receipt: row.energy_mj for row in house.ask("sold")["rows"]}
    assert (energy["rcpt_early"] > 0, energy["rcpt_late"]) == (True, None)
    books = house.ask("books")
    assert (books["closed"], books["receipts_without_energy_record"]) == (True, 0)
    house.close()


@pytest.mark.parametrize("database", ["sqlite", "postgres"])
def test_a_late_work_is_corrected_from_agent_to_receipt(server: str, tmp_path: Path, database: str) -> None:
    """Its receipt is final by the correction alone, the one that was there shows both, and every sum counts both; the
    month's peak is billed beside it. A view built again from the journals has the same receipts, books and log."""
    house = House(tmp_path, new_database(server) if database == "postgres" else None)
    early, late = house.served("rcpt_early", 0, 30), house.served("rcpt_late", 10, 50)
    house.agent.end(early)
    house.minute()
    before = house.ask("receipt", receipt="rcpt_early", account="acme", operator=True)
    assert "records" not in before
    assert house.ask("receipt", receipt="rcpt_late", account="acme", operator=True).get("status") is None
    house.agent.end(late)
    house.minute()
    seen = {
        name: house.ask("receipt", receipt=name, account="acme", operator=True) for name in ("rcpt_early", "rcpt_late")
    }
    first, more = seen["rcpt_early"]["records"]
    assert (first.get("corrects"), more["corrects"], more["energy_mj"] < 0) == (None, 1, True)
    [only] = seen["rcpt_late"]["records"]
    assert (seen["rcpt_late"]["status"], only["corrects"], only["energy_mj"] > 0) == ("final", 1, True)
    layers = {line["layer"]: line for line in seen["rcpt_late"]["lines"]}
    assert layers["device"]["embodied_ug"] == only["embodied_ug"] > 0
    assert layers["site"]["water_ul"] == only["water_ul"] > 0
    assert layers["power"]["market_ug"] == only["market_ug"] > 0
    shared = house.service.store.energy_of("rcpt_early")
    assert abs(sum(line.slice_ns for _, line, _ in shared) - 20 * NS_PER_S) <= 1, "10 s alone, 20 s with another"
    verdict = verify_bundle(house.ask("receipt_export", receipts=[*seen]))
    assert verdict.ok, verdict.wrong
    books, cake = house.ask("books"), house.ask("cake")
    assert books["closed"], books["checks"]
    assert (books["intervals"], books["corrections"], books["receipts_without_energy_record"]) == (2, 1, 0)
    assert books["beside"]["water_ul"] == cake["water_ul"] > only["water_ul"]
    assert cake["span_ns"] == 120 * NS_PER_S
    [bill] = books["power_bills"]
    assert (bill["site"], bill["what"]) == (house.site.name, "demand 2023-11")
    assert books["books"]["money"]["accounts"]["cost/energy/demand"] == bill["nano"] > 0
    state, log = house.service.state, house.service.log.writer.checkpoint()
    house.close()
    for file in (*tmp_path.glob("ledger.db*"), tmp_path / "log.checkpoint"):
        file.unlink(missing_ok=True)
    again = LedgerService(tmp_path, house.clock, new_database(server) if database == "postgres" else None)
    again.catch_up()
    assert again.state == state
    assert again.log.writer.checkpoint() == log, "the same leaves in the same order"
    for name, shown in seen.items():
        params = {"receipt": name, "account": "acme", "operator": True}
        assert offices.answer(again, "receipt", params) == shown
    assert offices.answer(again, "books", {}) == books
    again.close()
