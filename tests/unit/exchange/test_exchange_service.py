from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import apsw
import msgspec
import pytest

from tokenworks.core.clock import ManualClock
from tokenworks.core.errors import BadRequest, DataDirError, ExchangeDown, LedgerRefused, NotFound
from tokenworks.core.words import (
    Candidate,
    Decision,
    Delivery,
    EnergyLine,
    Interval,
    Provenance,
    Usage,
    Work,
)
from tokenworks.exchange import offices
from tokenworks.exchange import service as module
from tokenworks.exchange.journal import Journal, journal_folder
from tokenworks.exchange.service import LedgerService
from tokenworks.exchange.store.sqlite import SqliteStore
from tokenworks.exchange.words import (
    Account,
    AnyCommand,
    CloseInterval,
    OpenAccount,
    PlaceHold,
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
    return offices.answer(service, CLOCK, method, params)


def open_books(service: LedgerService) -> None:
    """An account ``acme`` with a nested budget ``team``."""
    answer(service, "account_create", account="acme", name=None, limit_nano=10**9, limit_ustu=None)
    answer(service, "budget_set", budget="team", parent="acme")


def holding(receipt: str, ustu: int = 100, nano: int = 1_000) -> PlaceHold:
    return PlaceHold(receipt=receipt, budget="team", ustu=ustu, nano=nano, at_ns=1)


def settlement(receipt: str, ustu: int = 60, nano: int = 700, loss_nano: int = 0) -> Settlement:
    chosen = Candidate(replica="r", site="home", model="m", terms_nano={}, total_nano=0)
    return Settlement(
        receipt=receipt,
        account="acme",
        budget="team",
        key="k",
        endpoint="chat",
        model_asked="m",
        model_served="m",
        usage=Usage(input=3, output=4),
        ustu=ustu,
        nano=nano,
        loss_ustu=0,
        loss_nano=loss_nano,
        rate_card="1",
        price_book="1",
        currency="USD",
        decision=Decision(chosen=chosen),
        delivery=Delivery(ending="complete", chunks=4),
        work=Work(
            receipt=receipt,
            replica="r",
            site="home",
            slice="a",
            start_ns=10,
            first_ns=None,
            end_ns=20,
            input_tokens=3,
            output_tokens=4,
        ),
        estimate=None,
        held_ustu=100,
        held_nano=1_000,
        hold_ns=0,
        arrived_ns=1,
        at_ns=20,
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


SAVES = ["save_position", "save_entries", "save_figures", "save_command"]


def on_each_save(monkeypatch: pytest.MonkeyPatch, called: Callable[[], None]) -> None:
    """Call something before every write of the store."""

    def wrap(real: Callable[..., None]) -> Callable[..., None]:
        def wrapped(*args: Any, **kwargs: Any) -> None:
            called()
            real(*args, **kwargs)

        return wrapped

    for name in SAVES:
        monkeypatch.setattr(SqliteStore, name, wrap(getattr(SqliteStore, name)))


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
        on_each_save(patch, copy)
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
        on_each_save(patch, fail)
        while True:
            passed[0] = 0
            try:
                service.catch_up()
                break
            except apsw.FullError:
                failures, allowed = failures + 1, allowed % 15 + 1
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
    database.execute("UPDATE meta SET value = '2'")
    for _ in range(2):
        with pytest.raises(DataDirError, match="has format 2, this version knows 1") as caught:
            LedgerService(data, CLOCK)
        assert "newer" in str(caught.value.hint)
    database.execute("UPDATE meta SET value = '1'")
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
    with pytest.raises(LedgerRefused):
        service.submit(new, OpenAccount(account=Account(id="acme", name="x", opened_ns=1)))
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
    assert [work.receipt for work in service.unmetered()] == ["b"]
    journal.append(encode_command(settling("c")))
    service.catch_up()
    assert [work.receipt for work in service.unmetered()] == ["b"]
    journal.append(encode_command(interval(120, "b")))
    journal.close()
    service.catch_up()
    assert service.unmetered() == []


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
