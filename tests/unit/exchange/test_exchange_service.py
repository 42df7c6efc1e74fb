from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import apsw
import msgspec
import pytest
from tests.support import exchange as support

from tokenworks.core.clock import ManualClock
from tokenworks.core.errors import BadRequest, DataDirError, ExchangeDown, LedgerRefused, NotFound
from tokenworks.core.words import (
    Candidate,
    Decision,
    EnergyLine,
    Interval,
    Provenance,
    Usage,
)
from tokenworks.exchange import offices
from tokenworks.exchange import service as module
from tokenworks.exchange.desk import LEASE_S
from tokenworks.exchange.journal import Journal, journal_folder
from tokenworks.exchange.log.bundle import verify_bundle
from tokenworks.exchange.service import BOUND_S, LedgerService
from tokenworks.exchange.store.migrate import migrations
from tokenworks.exchange.store.sqlite import SqliteDatabase
from tokenworks.exchange.words import (
    Account,
    AnyCommand,
    BillPower,
    Budget,
    Burn,
    CloseInterval,
    OpenAccount,
    PlaceHold,
    SetBudget,
    Settle,
    Settlement,
    encode_command,
)

GATEWAY = "gateway"
CLOCK = ManualClock()


@pytest.fixture
def data(tmp_path: Path) -> Path:
    made = tmp_path / "data"
    made.mkdir()
    return made


@pytest.fixture
def service(data: Path) -> Iterator[LedgerService]:
    made = LedgerService(data, CLOCK)
    yield made
    made.close()


def answer(service: LedgerService, method: str, **params: Any) -> Any:
    return offices.answer(service, method, params)


def open_books(service: LedgerService) -> None:
    """An account ``acme`` with a nested budget ``team``."""
    answer(service, "account_create", account="acme", name=None, limit_nano=10**9, limit_ustu=None)
    answer(service, "budget_set", budget="team", parent="acme")


def holding(receipt: str, ustu: int = 100, nano: int = 1_000) -> PlaceHold:
    return PlaceHold(receipt=receipt, budget="team", ustu=ustu, nano=nano, at_ns=1)


def settlement(receipt: str, ustu: int = 60, nano: int = 700, loss_nano: int = 0) -> Settlement:
    chosen = Candidate(replica="r", site="home", model="m", terms_nano={}, total_nano=0)
    figures = {"ustu": ustu, "nano": nano, "loss_nano": loss_nano, "held_ustu": 100, "held_nano": 1_000}
    return support.settlement(
        receipt,
        account="acme",
        budget="team",
        usage=Usage(input=3, output=4),
        decision=Decision(chosen=chosen),
        work=support.work(receipt, start_ns=10, end_ns=20),
        at_ns=20,
        **figures,
    )


def settling(receipt: str, **figures: int) -> Settle:
    return Settle(settlement=settlement(receipt, **figures))


def interval(start_ns: int, *receipts: str, ended: bool = True) -> CloseInterval:
    """Ten millijoules a receipt, five idle and three of overhead."""
    lines = tuple(
        EnergyLine(
            receipt=receipt,
            energy_mj=10,
            energy_nano=2,
            overhead_mj=1,
            overhead_nano=None,
            carbon_ug=None,
            slice_ns=1,
            device_nano=7,
            ended=ended,
        )
        for receipt in receipts
    )
    return CloseInterval(
        interval=Interval(
            site="home",
            supply="grid",
            start_ns=start_ns,
            end_ns=start_ns + 60,
            meter_mj=10 * len(receipts) + 8,
            meter=Provenance.MODELLED,
            scale_ppm=1_000_000,
            requests=lines,
            services=(),
            idle_mj=5,
            idle_nano=1,
            overhead_mj=3,
            overhead_nano=1,
            residual_mj=0,
            bill_nano=2 * len(receipts) + 2,
            carbon_ug=None,
            idle_device_nano=4,
        )
    )


def correcting(start_ns: int, corrects: int, receipt: str) -> CloseInterval:
    """A receipt that was forgotten gets a part of the idle energy, and the meter is one millijoule higher."""
    first = interval(start_ns, receipt).interval
    some = {"idle_mj": -9, "idle_nano": -2, "overhead_mj": 0, "overhead_nano": 0, "idle_device_nano": -7}
    [line] = first.requests
    line = msgspec.structs.replace(line, water_ul=5, market_ug=8)
    total = {"meter_mj": 1, "bill_nano": 0, "water_ul": 5, "market_ug": 8}
    return CloseInterval(interval=msgspec.structs.replace(first, requests=(line,), corrects=corrects, **some, **total))


def billing(nano: int) -> BillPower:
    return BillPower(site="home", supply="grid", part="demand", what="peak 2023-11", nano=nano, at_ns=9)


def traffic() -> list[AnyCommand]:
    """Three requests in each of four intervals, one of them with a loss; one more hold stays open."""
    commands: list[AnyCommand] = []
    for round_ in range(4):
        names = [f"rcpt_{round_}{n}" for n in range(3)]
        commands += [holding(name) for name in names]
        commands += [settling(names[1]), settling(names[0], nano=1_300, loss_nano=300), settling(names[2], ustu=0)]
        commands.append(interval(round_ * 60, *names))
    return [*commands, holding("rcpt_open")]


def write(data: Path, commands: list[AnyCommand], epoch: int = 1) -> Journal:
    journal = Journal(journal_folder(data, GATEWAY, epoch), GATEWAY, epoch)
    for command in commands:
        journal.append(encode_command(command))
    return journal


def red(service: LedgerService) -> set[str]:
    """The checks of the trial balance that fail."""
    books = answer(service, "books")
    failed = {check["check"] for check in books["checks"] if not check["ok"]}
    assert books["closed"] is not bool(failed)
    return failed


def test_what_was_applied_is_there_after_a_restart(data: Path) -> None:
    """Closed and opened again, the state is the same, nothing is applied a second time, and the books close."""
    service = LedgerService(data, CLOCK)
    open_books(service)
    answer(service, "key_create", budget="team")
    epoch = service.hello(GATEWAY, None)
    write(data, traffic(), epoch).close()
    assert service.catch_up() == len(traffic())
    books, directory, state = answer(service, "books"), service.directory(), service.state
    assert state.tallies["acme"].spent_nano == 4 * (700 + 1_000 + 700)
    assert state.balances["money", "loss/operator"] == 4 * 300
    assert state.balances["energy", "meter/home"] == -4 * 38
    assert books["closed"] is True
    assert (books["receipts"], books["open_holds"], books["intervals"]) == (12, 1, 4)
    service.close()
    again = LedgerService(data, CLOCK)
    assert again.state == state
    assert again.catch_up() == 0
    assert again.directory() == directory
    assert answer(again, "books") == books
    again.close()


@pytest.fixture
def prepared(data: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Books with an account, and a gateway's journal that nobody has applied yet. Commits are three records apart."""
    service = LedgerService(data, CLOCK)
    open_books(service)
    epoch = service.hello(GATEWAY, None)
    service.close()
    write(data, traffic(), epoch).close()
    monkeypatch.setattr(module, "BATCH_RECORDS_MAX", 3)
    return data


def on_each_write(monkeypatch: pytest.MonkeyPatch, called: Callable[[], None]) -> None:
    """Call something before every statement that changes the database."""
    real = SqliteDatabase.many

    def wrapped(database: SqliteDatabase, sql: str, values: Any) -> None:
        called()
        real(database, sql, values)

    monkeypatch.setattr(SqliteDatabase, "many", wrapped)


def finished(data: Path) -> tuple[Any, Any]:
    """Open the books, apply what is left, and return state and trial balance."""
    service = LedgerService(data, CLOCK)
    service.catch_up()
    found = service.state, answer(service, "books")
    service.close()
    return found


def test_a_ledger_killed_at_any_write_goes_on_where_it_was(
    prepared: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Copies of the disk, taken inside and between transactions, all lead to the same state, each record once."""
    copies: list[Path] = []

    def copy() -> None:
        copies.append(tmp_path / f"copy{len(copies)}")
        shutil.copytree(prepared, copies[-1])

    with monkeypatch.context() as patch:
        on_each_write(patch, copy)
        service = LedgerService(prepared, CLOCK)
        assert service.catch_up() == len(traffic())
        copy()
        expected = service.state, answer(service, "books")
        service.close()
    assert expected[1]["closed"] is True
    assert len(copies) > 50
    for number, copied in enumerate(copies):
        assert finished(copied) == expected, number
        shutil.rmtree(copied)


def test_a_write_that_fails_leaves_the_state_of_the_last_commit(
    prepared: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The disk fails at every single write in turn: memory follows the rollback, and the next try takes it all."""
    service = LedgerService(prepared, CLOCK)
    failures, allowed, passed = 0, 0, [0]

    def fail() -> None:
        passed[0] += 1
        if passed[0] > allowed:
            raise apsw.FullError("database or disk is full")

    with monkeypatch.context() as patch:
        on_each_write(patch, fail)
        while True:
            passed[0] = 0
            try:
                service.catch_up()
                break
            except ExchangeDown:
                failures, allowed = failures + 1, allowed % 40 + 1
                assert service.state == service.store.load()
    assert failures > 10
    books = answer(service, "books")
    assert books["closed"] is True
    assert (books["receipts"], books["intervals"]) == (12, 4)
    service.close()
    assert finished(prepared)[1] == books


def test_a_gateway_that_starts_again_voids_what_its_dead_epoch_held(data: Path, service: LedgerService) -> None:
    """The journal of the dead epoch is read to its end, its open holds return, and that epoch may not come back."""
    open_books(service)
    first = service.hello(GATEWAY, None)
    journal = write(data, [holding("a"), holding("b"), settling("a"), holding("c")], first)
    assert service.hello(GATEWAY, first) == first
    assert service.state.tallies["team"].held_nano == 2_000
    second = service.hello(GATEWAY, None)
    assert second > first
    assert service.state.holds == {}
    assert (service.state.tallies["acme"].held_nano, service.state.tallies["acme"].spent_nano) == (0, 700)
    with pytest.raises(LedgerRefused, match="has ended") as caught:
        service.hello(GATEWAY, first)
    assert caught.value.hint == "restart this gateway"
    with pytest.raises(LedgerRefused, match="has ended"):
        service.hello(GATEWAY, 99)
    journal.append(encode_command(holding("late")))
    journal.close()
    service.catch_up()
    assert service.state.holds == {}
    write(data, [holding("d")], second).close()
    service.catch_up()
    assert [*service.state.holds] == ["d"]
    assert red(service) == set()


def test_epochs_are_never_used_twice(data: Path, service: LedgerService) -> None:
    """Neither a folder on disk nor an epoch that was promised and never written comes again."""
    (data / "journal" / GATEWAY / "00000007").mkdir(parents=True)
    assert service.hello(GATEWAY, None) == 8
    assert service.hello(GATEWAY, None) == 9
    assert service.hello("other", None) == 1


def test_a_name_that_is_no_gateways_is_refused(service: LedgerService) -> None:
    """A gateway called like the ledger would end the ledger's own journal, and a path would leave the directory."""
    open_books(service)
    for name in ("ledger", "../elsewhere", ""):
        with pytest.raises((LedgerRefused, BadRequest)):
            service.hello(name, None)
    answer(service, "budget_set", budget="later", parent="acme")
    assert "later" in service.state.budgets


@pytest.mark.parametrize(
    ("what", "records"),
    [
        ("a settlement without a hold", [encode_command(settling("a"))]),
        ("bytes that are no command", [b"\x93nonsense"]),
        ("a command of a newer version", [msgspec.msgpack.encode({"type": "Refund", "nano": 1})]),
        ("a hold repeated with another amount", [encode_command(holding("a", nano=n)) for n in (1, 2)]),
        ("a receipt that is settled twice", [encode_command(c("a")) for c in (holding, settling, holding, settling)]),
        (
            "a settlement on an unknown budget",
            [
                encode_command(holding("a")),
                encode_command(Settle(settlement=msgspec.structs.replace(settlement("a"), budget="nowhere"))),
            ],
        ),
        ("an interval with a receipt twice", [encode_command(interval(0, "a", "a"))]),
    ],
)
def test_a_record_that_cannot_be_applied_is_kept_and_shown(
    data: Path, service: LedgerService, what: str, records: list[bytes]
) -> None:
    """It turns the books red, is kept word for word, and the records behind it are applied: nothing is dropped."""
    open_books(service)
    journal = write(data, [], service.hello(GATEWAY, None))
    for record in [*records, encode_command(holding("next"))]:
        journal.append(record)
    journal.close()
    assert service.catch_up() == len(records) + 1, what
    assert "next" in service.state.holds
    assert red(service) == {"no record was left out"}
    with_reasons = service.store.rows("anomalies")
    assert all(writer == GATEWAY and reason for _, writer, _, reason in with_reasons)
    service.store.close()
    kept = apsw.Connection(str(data / "ledger.db"))
    assert {record for (record,) in kept.execute("SELECT record FROM anomaly")} <= set(records)
    kept.close()


def test_a_record_that_is_there_twice_counts_once(data: Path, service: LedgerService) -> None:
    """Same id, same effect: a hold repeated word for word is one hold, in memory and in the store."""
    open_books(service)
    write(data, [holding("a"), holding("a"), settling("a")], service.hello(GATEWAY, None)).close()
    assert service.catch_up() == 3
    assert service.state == service.store.load()
    assert service.state.tallies["team"].spent_nano == 700
    assert service.state.holds == {}


@pytest.mark.parametrize(
    ("tampering", "check"),
    [
        (
            "UPDATE balance SET amount = amount + 1 WHERE account = 'customer/acme' AND book = 'money'",
            "balances equal the sum of their entries",
        ),
        ("DELETE FROM balance WHERE account = 'customer/acme'", "balances equal the sum of their entries"),
        ("INSERT INTO balance VALUES ('money', 'payable/me', 5)", "balances equal the sum of their entries"),
        ("UPDATE receipt SET nano = nano - 1 WHERE id = 'rcpt_11'", "receipts equal what customers owe"),
        ("DELETE FROM receipt WHERE id = 'rcpt_11'", "receipts equal what customers owe"),
        (
            "UPDATE entry SET amount = amount + 1 WHERE seq = (SELECT max(seq) FROM entry)",
            "every transaction sums to zero in each book",
        ),
        ("DELETE FROM entry WHERE txn = 2", "balances equal the sum of their entries"),
        ("UPDATE budget SET spent_nano = 0 WHERE id = 'acme'", "budgets equal what their receipts spent"),
        ("UPDATE energy_line SET energy_mj = 9 WHERE receipt = 'rcpt_11'", "receipts' energy equals the energy"),
    ],
)
def test_the_books_find_what_was_tampered_with(prepared: Path, tampering: str, check: str) -> None:
    """One figure changed in the database is found by recomputing it from the lines."""
    assert finished(prepared)[1]["closed"] is True
    database = apsw.Connection(str(prepared / "ledger.db"))
    database.execute(tampering)
    assert database.changes() > 0
    database.close()
    service = LedgerService(prepared, CLOCK)
    assert any(failed.startswith(check) for failed in red(service)), red(service)
    service.close()


def test_a_newer_or_damaged_ledger_is_refused_with_a_hint(data: Path) -> None:
    """The file is left as it is, and the directory can be used again by the version that fits."""
    LedgerService(data, CLOCK).close()
    database = apsw.Connection(str(data / "ledger.db"))
    newest = migrations()[-1].number
    database.execute("UPDATE meta SET value = ? WHERE key = 'schema'", (str(newest + 1),))
    for _ in range(2):
        with pytest.raises(DataDirError, match=f"has format {newest + 1}, this version knows {newest}") as caught:
            LedgerService(data, CLOCK)
        assert "newer" in str(caught.value.hint)
    database.execute("UPDATE meta SET value = ? WHERE key = 'schema'", (str(newest),))
    database.close()
    LedgerService(data, CLOCK).close()
    (data / "ledger.db").write_bytes(b"not a database" * 100)
    with pytest.raises(DataDirError, match=r"cannot open the ledger ledger\.db"):
        LedgerService(data, CLOCK)


def test_one_process_keeps_the_books(data: Path, service: LedgerService) -> None:
    """A second ledger on the same directory is refused; a directory that does not exist is a sentence."""
    with pytest.raises(DataDirError, match="another process keeps the books"):
        LedgerService(data, CLOCK)
    with pytest.raises(DataDirError, match="No such file"):
        LedgerService(data / "missing", CLOCK)
    open_books(service)


def test_a_refused_command_leaves_neither_a_record_nor_a_change(service: LedgerService) -> None:
    """The second of two commands is refused, so the first did not happen; holds only come from gateways."""
    open_books(service)
    before = service.store.load(), service.directory_version
    new = OpenAccount(account=Account(id="new", name="new", opened_ns=1))
    nowhere = Budget(id="b", account="nobody", parent=None, name="b", limit_ustu=None, limit_nano=None)
    with pytest.raises(LedgerRefused, match="no account 'nobody'"):
        service.submit(new, SetBudget(budget=nowhere))
    with pytest.raises(LedgerRefused, match="gateway's journal"):
        service.submit(new, holding("a"))
    service.catch_up()
    assert (service.state, service.directory_version) == before
    assert service.store.load() == before[0]


def test_an_account_that_was_opened_by_half_can_be_opened_whole(
    service: LedgerService, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The disk is full between the account and its budget: asking again must give the account its budget."""
    open_books(service)
    real, left = Journal.append, [1]

    def full(journal: Journal, payload: bytes) -> Any:
        left[0] -= 1
        if left[0] < 0:
            raise ExchangeDown("cannot write the journal")
        return real(journal, payload)

    with monkeypatch.context() as patch:
        patch.setattr(Journal, "append", full)
        with pytest.raises(ExchangeDown):
            answer(service, "account_create", account="half", name=None, limit_nano=5, limit_ustu=None)
    service.catch_up()
    answer(service, "account_create", account="half", name=None, limit_nano=5, limit_ustu=None)
    assert service.state.budgets["half"].limit_nano == 5


def test_site_facts_survive_a_restart_in_their_last_version(data: Path) -> None:
    """Two descriptions at one instant: the later one holds, before and after the ledger starts again."""
    service = LedgerService(data, CLOCK)
    for entity in "ef":
        facts: dict[str, Any] = {"site": "home", "entity": entity, "place": None, "jurisdiction": None, "facts": {}}
        assert answer(service, "describe_site", facts=facts)["status"] == "described"
        assert answer(service, "describe_site", facts=facts)["status"] == "already_described"
    assert service.store.load().sites["home"].entity == "f"
    service.close()


def test_the_view_can_be_built_again_from_the_journals(data: Path) -> None:
    """``ledger.db`` is only a view, says its schema: without it, the journals lead to the same books."""
    service = LedgerService(data, CLOCK)
    open_books(service)
    write(data, traffic(), service.hello(GATEWAY, None)).close()
    service.catch_up()
    state = service.state
    service.close()
    for file in data.glob("ledger.db*"):
        file.unlink()
    assert finished(data)[0] == state


def test_the_view_can_be_built_again_after_a_gateway_died(data: Path) -> None:
    """The same when holds were voided: the void is in the ledger's journal, its hold in the gateway's."""
    service = LedgerService(data, CLOCK)
    open_books(service)
    write(data, traffic(), service.hello(GATEWAY, None)).close()
    service.hello(GATEWAY, None)
    state = service.state
    assert state.holds == {}
    service.close()
    for file in data.glob("ledger.db*"):
        file.unlink()
    rebuilt, books = finished(data)
    assert books["closed"] is True
    assert rebuilt == state


def test_unmetered_work_is_told_until_an_interval_takes_it(data: Path, service: LedgerService) -> None:
    """A restarted site agent learns what it has still to meter, also when the interval came before the settlement."""
    open_books(service)
    journal = write(data, [holding(name) for name in "abc"], service.hello(GATEWAY, None))
    for command in (settling("a"), settling("b"), interval(0, "a", "c"), interval(60, "b", ended=False)):
        journal.append(encode_command(command))
    service.catch_up()
    assert [work.receipt for work in service.store.unmetered()] == ["b"]
    journal.append(encode_command(settling("c")))
    service.catch_up()
    assert [work.receipt for work in service.store.unmetered()] == ["b"]
    journal.append(encode_command(interval(120, "b")))
    journal.close()
    service.catch_up()
    assert service.store.unmetered() == []


def test_a_late_work_is_on_its_receipt_and_in_all_sums(data: Path, service: LedgerService) -> None:
    """After a correction: receipt, bundle, trial balance and cake say the same, first and correction together."""
    open_books(service)
    names = ("rcpt_a", "rcpt_b")
    settled = [command for name in names for command in (holding(name), settling(name))]
    journal = write(data, [*settled, interval(0, "rcpt_a")], service.hello(GATEWAY, None))
    service.catch_up()
    assert [work.receipt for work in service.store.unmetered()] == ["rcpt_b"]
    before = answer(service, "receipt_export", receipts=["rcpt_a"])
    for command in (correcting(0, 1, "rcpt_b"), correcting(0, 2, "rcpt_a"), correcting(0, 2, "rcpt_a")):
        journal.append(encode_command(command))
    journal.close()
    assert red(service) == {"no record was left out"}, "what came twice"
    assert service.store.unmetered() == []
    late = answer(service, "receipt", receipt="rcpt_b", account="acme", operator=True)
    assert (late["status"], late["energy_mj"], [r["corrects"] for r in late["records"]]) == ("final", 11, [1])
    both = answer(service, "receipt", receipt="rcpt_a", account="acme", operator=False)
    assert (both["status"], both["energy_mj"], len(both["records"])) == ("final", 22, 2)
    assert [(line.get("market_ug"), line.get("water_ul")) for line in both["lines"][:2]] == [(8, None), (None, 5)]
    for bundle in (before, answer(service, "receipt_export", receipts=[*names])):
        verdict = verify_bundle(bundle)
        assert verdict.ok, verdict.wrong
        assert not any("energy" in path or "water" in path or "records" in path for path in verdict.unproven)
    books, cake = answer(service, "books"), answer(service, "cake")
    assert (books["intervals"], books["corrections"], books["receipts_without_energy_record"]) == (1, 2, 0)
    unknown = {"carbon_ug": None, "idle_embodied_ug": None, "embodied_ug": None}
    assert books["beside"] == {"market_ug": 16, "water_ul": 10} | unknown
    assert (cake["meter_mj"], cake["layers"]["power"]["mj"], cake["layers"]["idle"]["mj"]) == (20, 30, -13)
    assert (cake["span_ns"], cake["water_ul"], cake["market_ug"], cake["embodied_ug"]) == (60, 10, 16, None)


def test_the_offices_refuse_with_the_nearest_name(service: LedgerService) -> None:
    """What a person mistypes is answered with what exists, and names that would not be ids are refused."""
    open_books(service)
    with pytest.raises(NotFound) as caught:
        answer(service, "key_create", budget="tem")
    assert caught.value.hint == "did you mean 'team'?"
    with pytest.raises(BadRequest, match="not a name"):
        answer(service, "account_create", account="a/b", name=None, limit_nano=None, limit_ustu=None)
    with pytest.raises(BadRequest, match="no office"):
        answer(service, "burn")
    with pytest.raises(LedgerRefused, match="another parent"):
        answer(service, "budget_set", budget="acme", parent="team")
    with pytest.raises(LedgerRefused, match="no key"):
        answer(service, "key_revoke", key="nobody")
    with pytest.raises(NotFound):
        answer(service, "receipt", receipt="rcpt_none", account=None, operator=True)
    again = answer(service, "account_create", account="acme", name=None, limit_nano=None, limit_ustu=None)
    assert again["status"] == "already_opened"
    assert service.state.budgets["acme"].limit_nano == 10**9


def test_a_receipt_is_for_its_own_account(data: Path, service: LedgerService) -> None:
    """Another account's receipt does not exist for you, and looks exactly like one that does not exist."""
    open_books(service)
    write(data, traffic(), service.hello(GATEWAY, None)).close()
    own = answer(service, "receipt", receipt="rcpt_00", account="acme", operator=False)
    assert (own["status"], own["energy_mj"], own["price_nano"]) == ("final", 11, 1_000)
    messages = []
    for receipt, account in (("rcpt_00", "other"), ("rcpt_zz", "acme")):
        with pytest.raises(NotFound) as caught:
            answer(service, "receipt", receipt=receipt, account=account, operator=False)
        messages.append(str(caught.value).replace(receipt, "X"))
    assert messages[0] == messages[1]
    assert len(answer(service, "receipts", account="acme", limit=5)) == 5
    assert answer(service, "receipts", account="other") == []


# --- leases, grants, windows and ended epochs -----------------------------------------------------------------------

SILENT_S = LEASE_S + BOUND_S + 1
DAY_S = 86_400


class Fleet:
    """A ledger and gateways that write journals of their own, all on one clock that stands until it is moved."""

    def __init__(self, data: Path) -> None:
        self.data, self.clock = data, ManualClock()
        self.service = LedgerService(data, self.clock)
        self.journals: dict[str, Journal] = {}
        self.epochs: dict[str, int] = {}

    def ask(self, method: str, **params: Any) -> Any:
        return offices.answer(self.service, method, params)

    def hello(self, writer: str) -> int:
        """A gateway starts anew; its old journal stays open, so that it can still write too late."""
        epoch = self.epochs[writer] = self.service.hello(writer, None)
        self.journals[f"{writer}{epoch}"] = Journal(journal_folder(self.data, writer, epoch), writer, epoch)
        return epoch

    def journal(self, writer: str) -> Journal:
        return self.journals[f"{writer}{self.epochs[writer]}"]

    def lease(self, writer: str, wanted: dict[str, int], returned: dict[str, int] | None = None) -> dict[str, int]:
        """What this gateway may spend of each counter it asked for, in all."""
        leases = self.service.lease(writer, self.epochs[writer], wanted, returned or {})
        return {lease.counter: lease.allowance for lease in leases}

    def write(self, writer: str, *commands: AnyCommand) -> None:
        for command in commands:
            self.journal(writer).append(encode_command(command))

    def hold(self, receipt: str, budget: str = "team", nano: int = 1_000, burn: int = 0) -> PlaceHold:
        parts = (Burn(grant="g1", ustu=burn),) if burn else ()
        return PlaceHold(receipt=receipt, budget=budget, ustu=100, nano=nano, at_ns=self.clock.now_ns(), parts=parts)

    def settle(self, receipt: str, budget: str = "team", nano: int = 700, burn: int = 0) -> Settle:
        settled = settlement(receipt, nano=nano)
        burned = (Burn(grant="g1", ustu=burn),) if burn else ()
        at = {"arrived_ns": self.clock.now_ns(), "at_ns": self.clock.now_ns()}
        return Settle(
            settlement=msgspec.structs.replace(
                settled, budget=budget, list_nano=nano, burned=burned, entity="pool", **at
            )
        )

    def spend(self, writer: str, receipt: str, budget: str = "team", nano: int = 700, burn: int = 0) -> None:
        self.write(writer, self.hold(receipt, budget, nano, burn), self.settle(receipt, budget, nano, burn))

    def fall_silent(self, *alive: str) -> None:
        """Time passes in steps; only these gateways are heard."""
        for _ in range(SILENT_S):
            self.clock.advance(1)
            for writer in alive:
                self.lease(writer, {})
            self.service.reclaim()

    def close(self) -> None:
        for journal in self.journals.values():
            journal.close()
        self.service.close()


@pytest.fixture
def fleet(data: Path) -> Iterator[Fleet]:
    made = Fleet(data)
    yield made
    made.close()


def sell_packages(fleet: Fleet) -> None:
    """Accounts and a package of which ``acme`` has ``g1``."""
    fleet.ask("account_create", account="acme", limit_nano=1_000_000)
    fleet.ask("budget_set", budget="team", parent="acme")
    fleet.ask("entity_set", entity="pool", fee_permille=130)
    terms = {"code": "p", "name": "p", "size_ustu": 10_007, "price_nano": 99_991, "validity_ns": 30 * DAY_S * 10**9}
    fleet.ask("package_define", package=terms)
    fleet.ask("grant_sell", account="acme", package="p", grant="g1")


def history(fleet: Fleet) -> None:
    """Everything that can happen to two gateways and an operator, in turn."""
    sell_packages(fleet)
    fleet.ask("budget_set", budget="acme", limit_nano=1_000_000, window="day")
    for writer in "ab":
        fleet.hello(writer)
        fleet.lease(writer, {"n:acme": 5_000, "g:g1": 200})
    fleet.spend("a", "a1", burn=50)
    fleet.spend("b", "b1", burn=7)
    fleet.ask("budget_set", budget="acme", limit_nano=900_000)
    fleet.spend("b", "b2", burn=31)
    fleet.spend("a", "a2")
    fleet.ask("grant_sell", account="acme", package="p", grant="g2")
    fleet.write("a", fleet.settle("nobody_held_it"), fleet.hold("a3"), interval(0, "a1", "b1"), correcting(0, 1, "a2"))
    fleet.journal("a").append(b"\x93nonsense")
    fleet.write("b", fleet.hold("b3"), fleet.hold("b4", burn=20))
    fleet.ask("grant_refund", grant="g2", refund_nano=5)
    fleet.lease("a", {}, {"g:g1": 60})
    fleet.hello("a")  # ends the first epoch: a3 returns
    fleet.lease("a", {"n:acme": 3_000, "g:g1": 100})
    fleet.spend("a", "a4", burn=13)
    fleet.fall_silent("a")  # ends b: b3 and b4 return
    fleet.write(
        "b",
        fleet.settle("b3"),
        fleet.hold("b5"),
        fleet.settle("b5"),
        interval(60, "b2"),
        correcting(0, 2, "a1"),
        billing(40),
        billing(70),
        billing(70),
    )
    fleet.ask("budget_set", budget="acme", limit_nano=500_000)
    fleet.spend("a", "a5")
    fleet.write("b", fleet.settle("b4", burn=20))
    fleet.clock.advance(DAY_S)
    fleet.ask("budget_set", budget="sub", parent="acme", limit_nano=900, carved=True)
    fleet.spend("a", "a6", budget="sub", nano=800)
    fleet.hello("b")  # closes b's first epoch for good
    fleet.lease("b", {"n:acme": 100})
    fleet.write("b", fleet.hold("b6"))
    fleet.lease("a", {}, {"n:sub": 800})
    fleet.ask("budget_close", budget="sub")


def tables(data: Path) -> dict[str, list[Any]]:
    """All rows of all tables. Numbers of transactions and anomalies are left out: between two commands of the ledger
    the records of two gateways have no order."""
    database = apsw.Connection(str(data / "ledger.db"))
    names = [n for (n,) in database.execute("SELECT name FROM sqlite_schema WHERE type = 'table' ORDER BY name")]
    found = {name: sorted(database.execute(f"SELECT * FROM {name}"), key=repr) for name in names}
    transactions: dict[int, list[Any]] = {}
    for txn, *line in database.execute("SELECT txn, book, account, amount, at_ns FROM entry ORDER BY seq"):
        transactions.setdefault(txn, []).append(line)
    found["entry"] = sorted(transactions.values())
    found["anomaly"] = sorted(database.execute("SELECT writer, epoch, reason, record FROM anomaly"))
    database.close()
    return found


def test_everything_that_happened_is_in_the_books(fleet: Fleet) -> None:
    """The history of two gateways, with late settlements and voids, closes; what came too late is the operator's."""
    history(fleet)
    assert red(fleet.service) == {"no record was left out"}
    books = fleet.ask("books")
    assert books["loss_account_nano"] == 3 * 700
    assert books["books"]["money"]["accounts"]["cost/energy/demand"] == 70
    assert books["power_bills"] == [{"site": "home", "what": "peak 2023-11", "nano": 70}]
    assert [*fleet.service.state.holds] == ["b6"]
    assert fleet.service.state.grants["g1"].used_ustu == 50 + 7 + 31 + 13
    late = fleet.ask("receipt", receipt="b4", account="acme", operator=True)
    assert (late["price_nano"], late["ustu"]) == (0, 0)
    assert len(fleet.service.store.rows("anomalies")) == 2
    assert {source for source, (_, standing) in fleet.service.store.sources().items() if standing} == {
        ("a", 1),
        ("b", 1),
    }


def test_the_view_built_again_is_the_same_row_by_row(data: Path) -> None:
    """Without ``ledger.db`` the journals of ledger and gateways lead to the same rows, in the same order of events."""
    fleet = Fleet(data)
    history(fleet)
    fleet.ask("books")
    state = fleet.service.state
    fleet.close()
    before = tables(data)
    for file in data.glob("ledger.db*"):
        file.unlink()
    assert finished(data)[0] == state
    after = tables(data)
    for name in before:
        assert after[name] == before[name], name


def test_a_view_built_again_still_knows_the_ended_epochs(data: Path) -> None:
    """After the rebuild and one more restart, what an ended epoch settles is a loss as before, and it may not come
    back."""
    fleet = Fleet(data)
    history(fleet)
    fleet.close()
    for file in data.glob("ledger.db*"):
        file.unlink()
    finished(data)
    service = LedgerService(data, fleet.clock)
    assert {("a", 1), ("b", 1)} <= service.state.ended
    for writer in "ab":
        with pytest.raises(LedgerRefused, match="has ended"):
            service.hello(writer, 1)
    service.close()


def test_killed_at_any_write_grants_and_leases_are_whole(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A crash at each statement of batches that burn grants, use leases and end epochs: the same rows after it."""
    fleet = Fleet(data)
    history(fleet)
    fleet.close()
    for file in data.glob("ledger.db*"):
        file.unlink()
    copies: list[Path] = []

    def copy() -> None:
        copies.append(tmp_path / f"copy{len(copies)}")
        shutil.copytree(data, copies[-1])

    monkeypatch.setattr(module, "BATCH_RECORDS_MAX", 12)
    with monkeypatch.context() as patch:
        on_each_write(patch, copy)
        expected = finished(data)
    assert len(copies) > 50
    for number, copied in enumerate(copies):
        if number % 3 == 0:
            assert finished(copied) == expected, number
        shutil.rmtree(copied)


def test_a_silent_gateway_is_ended_and_what_it_settles_later_is_a_loss(fleet: Fleet) -> None:
    """Its leases return to the others, its holds are void, its receipts are kept and nobody is charged for them."""
    sell_packages(fleet)
    for writer in "ab":
        fleet.hello(writer)
    assert fleet.lease("b", {"n:acme": 1_000_000}) == {"n:acme": 1_000_000}
    assert fleet.lease("a", {"n:acme": 500}) == {}
    fleet.spend("b", "b1")
    fleet.write("b", fleet.hold("b2"))
    for _ in range(LEASE_S + BOUND_S):
        fleet.clock.advance(1)
        fleet.lease("a", {})
        fleet.service.reclaim()
    assert ("b", 1) not in fleet.service.state.ended
    fleet.fall_silent("a")
    assert ("b", 1) in fleet.service.state.ended
    assert ("a", 1) not in fleet.service.state.ended
    assert fleet.service.state.holds == {}
    assert fleet.service.state.tallies["acme"].held_nano == 0
    assert fleet.lease("a", {"n:acme": 1_000_000 - 700}) == {"n:acme": 1_000_000 - 700}
    fleet.write("b", fleet.settle("b2"))
    fleet.spend("b", "b3")
    with pytest.raises(LedgerRefused, match="has ended"):
        fleet.lease("b", {})
    books = fleet.ask("books")
    assert books["closed"] is True
    assert (books["receipts"], books["loss_account_nano"]) == (3, 1_400)
    assert fleet.service.state.tallies["acme"].spent_nano == 700
    assert fleet.hello("b") == 2
    fleet.lease("b", {})
    assert red(fleet.service) == set()


def test_a_gateway_that_the_ledger_never_heard_gets_its_time(data: Path) -> None:
    """A restarted ledger does not end a gateway before it had a lease's time and the bound to be heard."""
    fleet = Fleet(data)
    sell_packages(fleet)
    fleet.hello("a")
    fleet.service.close()
    fleet.clock.advance(10 * SILENT_S)
    fleet.service = LedgerService(data, fleet.clock)
    fleet.service.reclaim()
    assert fleet.service.hello("a", 1) == 1
    fleet.fall_silent()
    assert ("a", 1) in fleet.service.state.ended
    fleet.close()


def greedy(fleet: Fleet, budget: str, counter: str, rounds: int, price: int = 700) -> int:
    """Three gateways spend all that they are given, some of it told late; returns what they spent together."""
    spent = dict.fromkeys("abc", 0)
    allowed = dict(spent)
    number = 0
    for turn in range(rounds):
        for writer in "abc":
            allowed[writer] = fleet.lease(writer, {counter: price}).get(counter, allowed[writer])
            if turn % 3 == 2:
                continue  # it only asks, and spends later
            while spent[writer] + price <= allowed[writer]:
                fleet.spend(writer, f"{budget}_{fleet.clock.now_ns()}_{number}", budget, price)
                spent[writer] += price
                number += 1
    return sum(spent.values())


def test_three_gateways_cannot_overspend_one_budget(fleet: Fleet) -> None:
    """Whatever each leases and spends, together it is never more than the limit, and all of it can be spent."""
    sell_packages(fleet)
    fleet.ask("budget_set", budget="acme", limit_nano=70_000)
    for writer in "abc":
        fleet.hello(writer)
    spent = greedy(fleet, "team", "n:acme", 60)
    assert 70_000 - 3 * 700 <= spent <= 70_000
    assert fleet.service.state.tallies["acme"].spent_nano == spent
    assert red(fleet.service) == set()


def test_three_gateways_cannot_overspend_a_day(fleet: Fleet) -> None:
    """The same on two days: the leases of yesterday are void, and those of today count, also when they are equal."""
    sell_packages(fleet)
    fleet.ask("budget_set", budget="acme", limit_nano=70_000, window="day")
    for writer in "abc":
        fleet.hello(writer)
    for day in range(3):
        spent = greedy(fleet, "team", "n:acme", 60)
        assert 70_000 - 3 * 700 <= spent <= 70_000
        fleet.service.catch_up()
        assert fleet.service.state.tallies["acme"].window_nano == spent, day
        fleet.clock.advance(DAY_S)
    assert red(fleet.service) == set()


@pytest.mark.parametrize(
    ("before", "after"), [("day", "none"), ("day", "month"), ("month", "day"), ("month", "none"), ("none", "day")]
)
def test_a_limit_holds_after_its_window_was_changed(fleet: Fleet, before: str, after: str) -> None:
    """A budget that gets another window is still a limit: spending counts in the new window from then on."""
    sell_packages(fleet)
    fleet.ask("budget_set", budget="acme", limit_nano=70_000, window=before)
    for writer in "abc":
        fleet.hello(writer)
    greedy(fleet, "team", "n:acme", 2)
    fleet.clock.advance(1)
    with pytest.raises(LedgerRefused, match="leased to gateways"):
        fleet.ask("budget_set", budget="acme", limit_nano=70_000, window=after)
    for writer in "abc":
        used = fleet.service.state.leases[writer, fleet.epochs[writer]]["n:acme"].used
        fleet.lease(writer, {}, {"n:acme": used})
    fleet.ask("budget_set", budget="acme", limit_nano=70_000, window=after)
    assert greedy(fleet, "team", "n:acme", 100) <= 70_000
    assert red(fleet.service) == set()


def test_a_limit_lowered_below_what_is_out(fleet: Fleet) -> None:
    """Nothing more is leased, what is out may be spent, and what comes back is not given again."""
    sell_packages(fleet)
    for writer in "ab":
        fleet.hello(writer)
    assert fleet.lease("a", {"n:acme": 600_000}) == {"n:acme": 600_000}
    fleet.ask("budget_set", budget="acme", limit_nano=100_000)
    assert fleet.lease("b", {"n:acme": 1}) == {}
    assert fleet.lease("a", {"n:acme": 1}) == {"n:acme": 600_000}
    fleet.spend("a", "a1", nano=900)
    fleet.lease("a", {}, {"n:acme": 50_000})
    assert fleet.lease("b", {"n:acme": 50_001}) == {"n:acme": 50_000}
    fleet.ask("budget_set", budget="acme", limit_nano=200_000)
    assert fleet.lease("b", {"n:acme": 100_000}) == {"n:acme": 150_000}
    assert red(fleet.service) == set()


def test_a_carved_budget_returns_its_rest_when_it_is_closed(fleet: Fleet) -> None:
    """What is carved is gone from the parent at once; spending it costs the parent nothing more; the rest returns."""
    sell_packages(fleet)
    fleet.ask("budget_set", budget="acme", limit_nano=10_000)
    fleet.hello("a")
    with pytest.raises(LedgerRefused, match="not that much left"):
        fleet.ask("budget_set", budget="sub", parent="acme", limit_nano=10_001, carved=True)
    fleet.ask("budget_set", budget="sub", parent="acme", limit_nano=9_000, carved=True)
    assert fleet.lease("a", {"n:acme": 5_000, "n:sub": 5_000}) == {"n:acme": 1_000, "n:sub": 5_000}
    fleet.spend("a", "a1", "sub", nano=4_000)
    fleet.lease("a", {}, {"n:acme": 0, "n:sub": 4_000})
    tally = fleet.service.state.tallies["acme"]
    assert (tally.spent_nano, tally.window_nano, tally.carved_nano) == (4_000, 0, 9_000)
    with pytest.raises(LedgerRefused, match="more than that already"):
        fleet.ask("budget_set", budget="sub", limit_nano=3_999)
    assert fleet.ask("budget_close", budget="sub")["status"] == "closed"
    assert fleet.ask("budget_close", budget="sub")["status"] == "already_closed"
    assert fleet.lease("a", {"n:acme": 10_000}) == {"n:acme": 6_000}
    assert red(fleet.service) == set()


def test_a_closed_carved_budget_cannot_be_spent_twice(fleet: Fleet) -> None:
    """What is still leased or held of it when it closes is spent by its gateway and by nobody else."""
    sell_packages(fleet)
    fleet.ask("budget_set", budget="acme", limit_nano=10_000)
    fleet.hello("a")
    fleet.ask("budget_set", budget="sub", parent="acme", limit_nano=9_000, carved=True)
    fleet.lease("a", {"n:sub": 9_000})
    fleet.write("a", fleet.hold("a1", "sub", nano=9_000))
    with pytest.raises(LedgerRefused, match="leased it to gateways"):
        fleet.ask("budget_close", budget="sub")
    left = fleet.lease("a", {"n:acme": 10_000})["n:acme"]
    fleet.write("a", fleet.settle("a1", "sub", nano=9_000))
    fleet.service.catch_up()
    fleet.ask("budget_close", budget="sub")
    assert left + fleet.service.state.tallies["sub"].spent_nano <= 10_000
    assert red(fleet.service) == set()


def test_a_lease_outlives_a_restart_of_the_ledger(data: Path) -> None:
    """What a gateway has and what it used of it are there again, so nothing is leased twice."""
    fleet = Fleet(data)
    sell_packages(fleet)
    fleet.hello("a")
    fleet.hello("b")
    fleet.lease("a", {"n:acme": 900_000, "g:g1": 10_000})
    fleet.spend("a", "a1", burn=50)
    fleet.service.catch_up()
    leases = fleet.service.state.leases
    fleet.service.close()
    fleet.service = LedgerService(data, fleet.clock)
    assert fleet.service.state.leases == leases
    assert fleet.lease("b", {"n:acme": 900_000, "g:g1": 10_000}) == {"n:acme": 100_000, "g:g1": 7}
    fleet.close()


def test_a_carved_budget_has_every_limit_of_those_above(fleet: Fleet) -> None:
    """Carved out of money only, its standard tokens would count nowhere: the parent's own limit could be passed."""
    sell_packages(fleet)
    fleet.ask("budget_set", budget="acme", limit_nano=10_000, limit_ustu=1_000)
    with pytest.raises(LedgerRefused):
        fleet.ask("budget_set", budget="sub", parent="acme", limit_nano=9_000, carved=True)
    assert "sub" not in fleet.service.state.budgets
    fleet.ask("budget_set", budget="sub", parent="acme", limit_nano=9_000, limit_ustu=900, carved=True)
