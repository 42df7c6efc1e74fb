"""What leaves the data directory, what stays, and that neither the books nor a dead gateway's records depend on it."""

from __future__ import annotations

import asyncio
import os
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from tokenworks.cli import doctor
from tokenworks.core.clock import ManualClock, WallClock
from tokenworks.core.errors import DataDirError
from tokenworks.core.words import Delivery, Usage
from tokenworks.exchange import journals as module
from tokenworks.exchange import offices, report, server
from tokenworks.exchange.desk import LEASE_S
from tokenworks.exchange.journal import Journal, journal, journal_folder, verify
from tokenworks.exchange.journals import journals
from tokenworks.exchange.service import BOUND_S, LedgerService
from tokenworks.exchange.state import CLOSED, ENDED
from tokenworks.exchange.words import PlaceHold, Settle, Settlement, encode_command

SEGMENT_BYTES = 800


@pytest.fixture(autouse=True)
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    """Segments of a few records, each counted at its size."""
    monkeypatch.setattr(journal, "SEGMENT_BYTES_MAX", SEGMENT_BYTES)
    monkeypatch.setattr(module, "COUNTED_BYTES_MIN", 500)


@pytest.fixture
def data(tmp_path: Path) -> Path:
    made = tmp_path / "data"
    made.mkdir()
    return made


class Ledger:
    """A ledger on a data directory, that may be started again."""

    def __init__(self, data: Path) -> None:
        self.data, self.clock = data, ManualClock()
        self.service = LedgerService(data, self.clock)

    def restart(self) -> None:
        self.service.close()
        self.service = LedgerService(self.data, self.clock)

    def open_account(self, name: str) -> None:
        offices.answer(self.service, "account_create", {"account": name, "limit_nano": 10**9})


@pytest.fixture
def ledger(data: Path) -> Iterator[Ledger]:
    made = Ledger(data)
    made.open_account("acme")
    yield made
    made.service.close()


def spend(writing: Journal, *receipts: str) -> None:
    for receipt in receipts:
        settled = Settlement(
            receipt=receipt, account="acme", budget="acme", key="k", endpoint="chat", model_asked="m",
            model_served="m", usage=Usage(input=1), ustu=5, nano=50, loss_ustu=0, loss_nano=0, rate_card="1",
            price_book="1", currency="USD", decision=None, delivery=Delivery(ending="complete", chunks=1), work=None,
            estimate=None, held_ustu=9, held_nano=90, hold_ns=0, arrived_ns=1, at_ns=2, list_nano=50,
        )  # fmt: skip
        writing.append(encode_command(PlaceHold(receipt=receipt, budget="acme", ustu=9, nano=90, at_ns=1)))
        writing.append(encode_command(Settle(settlement=settled)))


def gateway(ledger: Ledger) -> Journal:
    epoch = ledger.service.hello("g", None)
    return Journal(journal_folder(ledger.data, "g", epoch), "g", epoch)


def names(prefix: str, count: int = 40) -> list[str]:
    return [f"rcpt_{prefix}{number}" for number in range(count)]


def sealed(data: Path) -> list[Path]:
    return sorted((data / "journal").rglob("*.twj"))


def test_what_the_store_has_leaves_oldest_first_and_the_chain_holds(data: Path, ledger: Ledger) -> None:
    """Nothing goes that is not applied; then so much stays as was said; what is left is a whole journal."""
    writing = gateway(ledger)
    spend(writing, *names("a"))
    before = sealed(data)
    assert ledger.service.prune(0) == 0, "nothing of it is in the store"
    ledger.service.catch_up()
    keep = 3 * (SEGMENT_BYTES + 300)
    assert ledger.service.prune(keep) > 5
    left = sealed(data)
    assert set(left) < set(before)
    kept = sum(path.stat().st_size for path in left if path.parent.parent.name == "g")
    assert keep - 2 * SEGMENT_BYTES < kept < keep + 2 * SEGMENT_BYTES
    found = verify(journal_folder(data, "g", 1))
    assert (found.bad, found.end.segment) == (None, writing.position.segment)
    assert ledger.service.prune(keep) == 0
    spend(writing, *names("b"))
    assert ledger.service.catch_up() == 80
    assert report.books(ledger.service)["closed"] is True
    assert report.books(ledger.service)["receipts"] == 80
    writing.close()


def test_a_pruned_journal_is_recovered_by_a_new_ledger_and_a_new_epoch(data: Path, ledger: Ledger) -> None:
    """The store is the snapshot: a ledger that starts again reads on where it was, in what is left."""
    writing = gateway(ledger)
    spend(writing, *names("a"))
    ledger.service.catch_up()
    ledger.service.checkpoint()
    ledger.service.prune(0)
    assert sealed(data)[0].name != "000001.twj"
    spend(writing, *names("b"))
    state = ledger.service.state
    ledger.service.close()
    again = LedgerService(data, ledger.clock)
    assert again.state == state
    assert again.catch_up() == 80
    assert again.hello("g", None) == 2
    assert again.store.sources()["g", 1][1] == CLOSED
    assert again.prune(0) > 0
    assert not journal_folder(data, "g", 1).exists(), "of a closed epoch everything goes"
    assert (report.books(again)["closed"], report.books(again)["receipts"]) == (True, 80)
    again.close()
    writing.close()
    ledger.service = LedgerService(data, ledger.clock)


def test_a_store_that_does_not_reach_the_pruned_head_is_refused(data: Path, ledger: Ledger, tmp_path: Path) -> None:
    """Whoever puts an older database back, or none, is told; books with a hole are not begun."""
    writing = gateway(ledger)
    spend(writing, *names("a"))
    ledger.service.catch_up()
    ledger.service.checkpoint()
    shutil.copytree(data, tmp_path / "old")
    spend(writing, *names("b"))
    ledger.service.catch_up()
    ledger.service.checkpoint()
    ledger.service.prune(0)
    spend(writing, *names("c"))
    writing.close()
    ledger.service.close()
    for case in ("old", "none", "none, with an empty folder"):
        copied = tmp_path / case.replace(" ", "_")
        if case != "old":
            shutil.copytree(data, copied)
            for file in [*copied.glob("ledger.db*"), copied / "log.checkpoint"]:
                file.unlink(missing_ok=True)
            if "folder" in case:
                shutil.rmtree(copied / "journal" / "g")
        else:
            shutil.rmtree(copied / "journal")
            shutil.copytree(data / "journal", copied / "journal")
        other = LedgerService(copied, ledger.clock)
        with pytest.raises(DataDirError, match=r"is gone") as caught:
            other.catch_up()
        assert caught.value.hint is not None
        other.close()
    ledger.service = LedgerService(data, ledger.clock)


def test_without_a_store_the_ledgers_own_pruned_epochs_are_missed(data: Path, ledger: Ledger) -> None:
    """Its accounts were in them."""
    for number in range(3):
        ledger.open_account(f"other-{number}")
        ledger.restart()
    ledger.open_account("last")
    assert ledger.service.prune(0) == 3
    assert [source for source in journals(data) if source[0] == "ledger"] == [("ledger", 4)]
    ledger.service.close()
    moved = data / "ledger.db"
    moved.rename(data / "kept.db")
    for name in ("ledger.db-wal", "ledger.db-shm"):
        (data / name).unlink(missing_ok=True)
    with pytest.raises(DataDirError, match="ledger, epoch 1, is gone"):
        LedgerService(data, ledger.clock)
    for file in data.glob("ledger.db*"):
        file.unlink()
    (data / "kept.db").rename(moved)
    ledger.service = LedgerService(data, ledger.clock)
    assert len(ledger.service.state.accounts) == 5


def test_a_gateway_killed_and_restarted_for_ever_leaves_bounded_files(data: Path, ledger: Ledger) -> None:
    """Each life is a folder; a small file counts as a larger one, so they are few; nothing of the books is lost."""
    most, lives = 0, 60
    for number in range(lives):
        writing = gateway(ledger)
        spend(writing, f"rcpt_{number}")
        ledger.service.catch_up()
        ledger.service.checkpoint()
        if number % 5 == 4:  # the ledger dies as well
            ledger.restart()
        ledger.service.prune(10 * 500)
        most = max(most, len(sealed(data)))
        writing.close()
    assert most < 20
    assert len(journals(data)) < 20
    assert (report.books(ledger.service)["closed"], report.books(ledger.service)["receipts"]) == (True, lives)
    assert ledger.service.hello("g", None) == lives + 1, "no epoch comes again"


def test_what_a_killed_gateway_wrote_is_synced_before_its_epoch_is_over(
    data: Path, ledger: Ledger, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A torn end is cut away; the records are on the disk before the ledger says the last word on them."""
    torn = journal_folder(data, "g", 1) / "000001.twj"
    writing = gateway(ledger)
    spend(writing, "rcpt_1")
    writing.append(encode_command(PlaceHold(receipt="rcpt_2", budget="acme", ustu=9, nano=90, at_ns=1)))
    writing.close()
    whole = torn.read_bytes()
    torn.write_bytes(whole + b"\x40\0\0\0torn")
    order: list[str] = []
    real_sync, real_append = os.fdatasync, Journal.append

    def sync(fd: int) -> None:
        if os.fstat(fd).st_ino == torn.stat().st_ino:
            order.append(f"sync {os.fstat(fd).st_size - len(whole)}")
        real_sync(fd)

    def append(self: Journal, payload: bytes) -> object:
        order.append("word" if b"EndEpoch" in payload else "other")
        return real_append(self, payload)

    monkeypatch.setattr(os, "fdatasync", sync)
    monkeypatch.setattr(Journal, "append", append)
    ledger.service.hello("g", None)
    assert order[0] == "sync 0"
    assert order[-1] == "word"
    assert torn.read_bytes() == whole
    assert ledger.service.state.holds == {}


def test_a_silent_gateways_journal_is_synced_and_not_cut(data: Path, ledger: Ledger) -> None:
    """It may be paused inside a write: what it goes on to write must find its beginning."""
    clock = ledger.clock
    writing = gateway(ledger)
    spend(writing, "rcpt_1")
    path = journal_folder(data, "g", 1) / "000001.twj"
    with path.open("ab") as half:
        half.write(b"\x40\0\0\0half")
    size = path.stat().st_size
    ledger.service.catch_up()
    clock.advance(LEASE_S + BOUND_S + 1)
    ledger.service.reclaim()
    assert ledger.service.store.sources()["g", 1][1] == ENDED
    assert path.stat().st_size == size
    writing.close()


def test_a_damaged_journal_is_told_kept_and_read_on_once_mended(
    data: Path, ledger: Ledger, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Records that cannot be read are no reason to close an epoch: books and doctor say so, pruning leaves it alone."""
    writing = gateway(ledger)
    spend(writing, *names("a", 3))
    writing.close()
    path = journal_folder(data, "g", 1) / "000001.twj"
    whole = path.read_bytes()
    path.write_bytes(whole[:600] + bytes([whole[600] ^ 1]) + whole[601:])
    monkeypatch.setenv("TOKENWORKS_DATA", str(data))
    second = gateway(ledger)
    assert ledger.service.store.sources()["g", 1][1] == ENDED
    wrong = [check for check in report.books(ledger.service)["checks"] if not check["ok"]]
    assert [check["check"] for check in wrong] == ["no ended journal is damaged"]
    assert "segment 1 at offset" in wrong[0]["wrong"][0]
    checked = doctor._journals()
    assert checked.status == "fail"
    assert "a frame is broken that had been synced" in checked.evidence
    ledger.service.prune(0)
    path.write_bytes(whole)
    second.close()
    gateway(ledger).close()
    assert ledger.service.store.sources()["g", 1][1] == CLOSED
    books = report.books(ledger.service)
    assert (books["closed"], books["receipts"]) == (True, 3)
    assert doctor._journals() == ("journals", "ok", doctor._journals().evidence, None)
    assert doctor._journals().evidence.startswith("1")


def test_what_is_in_flight_through_a_fence_settles_into_the_old_journal(data: Path, ledger: Ledger) -> None:
    """A gateway that begins a new epoch is no dead one: its long streams end later, and their receipts are kept."""
    clock = ledger.clock
    first = gateway(ledger)
    first.append(encode_command(PlaceHold(receipt="rcpt_1", budget="acme", ustu=9, nano=90, at_ns=1)))
    clock.advance(LEASE_S + BOUND_S + 1)
    ledger.service.reclaim()
    clock.advance(LEASE_S + BOUND_S + 1)
    ledger.service.catch_up()
    assert ledger.service.hello("g", None, lives_since=1) == 2
    assert ledger.service.hello("g", None, lives_since=1) == 3
    assert {ledger.service.store.sources()["g", epoch][1] for epoch in (1, 2)} == {ENDED}
    ledger.service.prune(0)
    spend(first, "rcpt_1")
    ledger.service.catch_up()
    books = report.books(ledger.service)
    assert (books["closed"], books["receipts"], books["loss_account_nano"]) == (True, 1, 50)
    assert ledger.service.hello("g", None) == 4
    assert {ledger.service.store.sources()["g", epoch][1] for epoch in (1, 2, 3)} == {CLOSED}
    first.close()


async def test_the_running_ledger_prunes(data: Path, ledger: Ledger, monkeypatch: pytest.MonkeyPatch) -> None:
    """The server does it by itself; a disk that refuses ends nothing."""
    writing = gateway(ledger)
    spend(writing, *names("a"))
    monkeypatch.setattr(server, "PRUNE_NS", 0)
    refused: list[int] = []
    until = asyncio.Event()
    real = LedgerService.prune

    def prune(self: LedgerService, keep_bytes: int) -> int:
        if not refused:
            refused.append(keep_bytes)
            raise DataDirError("cannot prune")
        if went := real(self, keep_bytes):
            until.set()
        return went

    monkeypatch.setattr(LedgerService, "prune", prune)
    async with asyncio.timeout(10):
        await server.LedgerServer(ledger.service, data / "ledger.sock", WallClock(), 5_000).serve(until)
    assert not (journal_folder(data, "g", 1) / "000001.twj").exists()
    assert refused == [5_000]
    assert report.books(ledger.service)["receipts"] == 40
    writing.close()
