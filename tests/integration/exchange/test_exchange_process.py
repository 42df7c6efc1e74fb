from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from tests.support.exchange import settlement

from tokenworks import datadir
from tokenworks.core.clock import WallClock
from tokenworks.core.errors import DataDirError, ExchangeDown, TokenworksError, Unreachable
from tokenworks.core.files import socket_address
from tokenworks.exchange.ask import ask
from tokenworks.exchange.journal import Journal, journal_folder
from tokenworks.exchange.link import LedgerLink, Welcome
from tokenworks.exchange.wire import RemoteError
from tokenworks.exchange.words import AnyCommand, Directory, PlaceHold, Settle, encode_command

GATEWAY = "gateway"
WAIT_S = 30.0


class LedgerProcess:
    """The real ledger process on a data directory."""

    def __init__(self, data: Path) -> None:
        self.data = data
        self.process = subprocess.Popen(
            [sys.executable, "-m", "tokenworks.exchange.server", str(data)], stdin=subprocess.PIPE
        )
        deadline = time.monotonic() + WAIT_S
        while not self.answers():
            assert self.process.poll() is None, "the ledger process ended"
            assert time.monotonic() < deadline, "the ledger process does not answer"
            time.sleep(0.01)

    def answers(self) -> bool:
        with socket.socket(socket.AF_UNIX) as connection, socket_address(self.data / "ledger.sock") as address:
            return connection.connect_ex(address) == 0

    def kill(self) -> None:
        """As a crash: no handler runs."""
        self.process.kill()
        self.end()

    def end(self) -> int:
        """Close its standard input, as the end of its gateway would."""
        assert self.process.stdin is not None
        with contextlib.suppress(BrokenPipeError):
            self.process.stdin.close()
        return self.process.wait(WAIT_S)


@pytest.fixture
def data(tmp_path: Path) -> Path:
    made = tmp_path / "data"
    datadir.prepare(made)
    return made


Start = Callable[[], LedgerProcess]


@pytest.fixture
def start(data: Path) -> Iterator[Start]:
    """Starts ledger processes, and ends those that a test leaves."""
    started: list[LedgerProcess] = []

    def begin() -> LedgerProcess:
        started.append(LedgerProcess(data))
        return started[-1]

    yield begin
    for ledger in started:
        ledger.end()


def open_account(data: Path) -> None:
    ask(data, "account_create", account="acme", name=None, limit_nano=None, limit_ustu=None)


def holding(receipt: str) -> PlaceHold:
    return PlaceHold(receipt=receipt, budget="acme", ustu=9, nano=9, at_ns=1)


def settling(receipt: str) -> Settle:
    return Settle(settlement=settlement(receipt, account="acme", budget="acme", ustu=5, nano=7))


def journal_of(data: Path, epoch: int) -> Journal:
    return Journal(journal_folder(data, GATEWAY, epoch), GATEWAY, epoch)


def write(journal: Journal, *commands: AnyCommand) -> None:
    for command in commands:
        journal.append(encode_command(command))


def test_the_ledger_is_asked_over_its_socket(data: Path, start: Start) -> None:
    """Accounts, keys and reports over the socket; a refusal keeps its code, its status and its hint."""
    start()
    open_account(data)
    made = ask(data, "key_create", budget="acme")
    assert made["key"].startswith("tw-")
    (listed,) = ask(data, "keys")
    assert listed["id"] == made["id"]
    assert "hash" not in listed
    assert made["key"] not in str(listed)
    assert ask(data, "books")["closed"] is True
    with pytest.raises(RemoteError) as caught:
        ask(data, "key_create", budget="acmee")
    assert (caught.value.code, caught.value.status, caught.value.exit_status) == ("not_found", 404, 3)
    assert caught.value.hint == "did you mean 'acme'?"
    with pytest.raises(RemoteError, match="books has no parameter 'wrong'"):
        ask(data, "books", wrong=1)
    with pytest.raises(RemoteError, match="no office 'burn'"):
        ask(data, "burn")


def test_the_socket_is_its_owners_and_goes_with_its_process(data: Path, start: Start) -> None:
    """Nobody else may ask; when standard input closes, the process ends by itself and takes the socket with it."""
    ledger = start()
    path = data / "ledger.sock"
    assert path.stat().st_mode & 0o777 == 0o600
    ledger.process.send_signal(signal.SIGINT)
    assert ask(data, "accounts") == []
    assert ledger.end() == 0
    assert not path.exists()


def test_what_was_written_before_the_end_is_in_the_books(data: Path, start: Start) -> None:
    """The last settlements of a gateway that closes the pipe right behind them are applied before the process ends."""
    ledger = start()
    open_account(data)
    journal = journal_of(data, ask(data, "hello", writer=GATEWAY)["epoch"])
    write(journal, holding("rcpt_1"), settling("rcpt_1"))
    journal.close()
    assert ledger.end() == 0
    books = ask(data, "books")
    assert (books["receipts"], books["open_holds"], books["closed"]) == (1, 0, True)


def test_without_a_process_the_books_answer_themselves(data: Path, start: Start) -> None:
    """The CLI works on a grid that is down, also when a killed process left its socket behind."""
    open_account(data)
    ledger = start()
    assert [account["id"] for account in ask(data, "accounts")] == ["acme"]
    ledger.kill()
    assert (data / "ledger.sock").exists()
    assert ask(data, "budget_set", budget="team", parent="acme") == {"budget": "team", "status": "made"}
    start()
    assert [budget["id"] for budget in ask(data, "accounts")[0]["budgets"]] == ["acme", "team"]
    with pytest.raises(DataDirError, match="no grid") as caught:
        ask(data / "nowhere", "books")
    assert caught.value.hint == "start one: tokenworks up"


def test_a_second_ledger_process_is_refused(data: Path, start: Start) -> None:
    """It says so in one sentence, ends with status 1, and leaves the first one's socket alone."""
    start()
    second = subprocess.run(
        [sys.executable, "-m", "tokenworks.exchange.server", str(data)],
        input="",
        capture_output=True,
        text=True,
        timeout=WAIT_S,
    )
    assert second.returncode == 1
    assert second.stderr == "ledger: another process keeps the books of this data directory\n"
    assert ask(data, "accounts") == []


class Gateway:
    """The gateway's end of a link, with what it learned."""

    def __init__(self, data: Path) -> None:
        self.learned: list[Directory] = []
        self._news = asyncio.Event()
        self.link = LedgerLink(data, GATEWAY, WallClock(), self._learn)
        self._keeping: asyncio.Task[None] | None = None

    def _learn(self, directory: Directory) -> None:
        self.learned.append(directory)
        self._news.set()

    async def start(self) -> Welcome:
        welcome = await self.link.start(WAIT_S)
        self._keeping = asyncio.create_task(self.link.keep())
        return welcome

    async def until(self, learned: Callable[[Directory], bool]) -> None:
        """Wait for a directory of which that is true."""
        async with asyncio.timeout(WAIT_S):
            while not learned(self.learned[-1]):
                self._news.clear()
                await self._news.wait()

    async def close(self) -> None:
        if self._keeping is not None:
            self._keeping.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._keeping
        await self.link.close()


async def test_a_gateway_learns_of_a_key_that_was_made_elsewhere(data: Path, start: Start) -> None:
    """It says hello once; a key created over another connection, and its revocation, reach it unasked."""
    start()
    gateway = Gateway(data)
    try:
        welcome = await gateway.start()
        assert (welcome.epoch, welcome.directory.accounts, welcome.unmetered) == (1, (), ())
        await asyncio.to_thread(open_account, data)
        made = await asyncio.to_thread(ask, data, "key_create", budget="acme")
        await gateway.until(lambda directory: [key.id for key in directory.keys] == [made["id"]])
        assert [budget.id for budget in gateway.learned[-1].budgets] == ["acme"]
        await asyncio.to_thread(ask, data, "key_revoke", key=made["id"])
        await gateway.until(lambda directory: directory.keys[0].revoked_ns is not None)
        assert [account["id"] for account in await gateway.link.call("accounts")] == ["acme"]
    finally:
        await gateway.close()


async def test_a_gateway_comes_back_to_a_restarted_ledger(data: Path, start: Start) -> None:
    """The ledger is killed: calls fail at once, the link returns with the same epoch and a fresh directory."""
    ledger = start()
    gateway = Gateway(data)
    try:
        welcome = await gateway.start()
        await asyncio.to_thread(ledger.kill)
        with pytest.raises(ExchangeDown):
            await gateway.link.call("books")
        await asyncio.to_thread(open_account, data)
        await asyncio.to_thread(start)
        await gateway.until(lambda directory: [account.id for account in directory.accounts] == ["acme"])
        again = await gateway.link.call("hello", writer=GATEWAY, epoch=welcome.epoch)
        assert again["epoch"] == welcome.epoch
    finally:
        await gateway.close()


async def test_a_link_without_a_ledger_says_so(data: Path) -> None:
    """Nothing answers in time: one sentence that names the log."""
    with pytest.raises(Unreachable) as caught:
        await LedgerLink(data, GATEWAY, WallClock(), lambda directory: None).start(0.05)
    assert "ledger.log" in str(caught.value.hint)


async def test_a_very_long_data_path_works(tmp_path: Path) -> None:
    """A Unix socket's address is short, a data directory's path need not be: server, calls and link all reach it."""
    data = tmp_path / ("a" * 120) / ("b" * 120)
    datadir.prepare(data)
    ledger = await asyncio.to_thread(LedgerProcess, data)
    gateway = Gateway(data)
    try:
        await asyncio.to_thread(open_account, data)
        welcome = await gateway.start()
        assert [account.id for account in welcome.directory.accounts] == ["acme"]
        assert (data / "ledger.sock").stat().st_mode & 0o777 == 0o600
    finally:
        await gateway.close()
        assert await asyncio.to_thread(ledger.end) == 0
    assert not (data / "ledger.sock").exists()


def test_a_ledger_killed_under_load_applies_everything_once(data: Path, start: Start) -> None:
    """A gateway writes while its ledger is killed again and again: every record counts once, and the books close."""
    ledger = start()
    open_account(data)
    journal = journal_of(data, ask(data, "hello", writer=GATEWAY)["epoch"])
    requests, failed = 4_000, list[BaseException]()

    def load() -> None:
        try:
            for number in range(requests):
                write(journal, holding(f"rcpt_{number}"), settling(f"rcpt_{number}"))
                if number % 8 == 0:
                    time.sleep(0.001)
            write(journal, holding("rcpt_open"))
        except BaseException as error:
            failed.append(error)

    writer = threading.Thread(target=load)
    writer.start()
    kills = 0
    while writer.is_alive() or kills < 4:
        time.sleep(0.05)
        ledger.kill()
        kills += 1
        ledger = start()
    writer.join()
    journal.close()
    assert not failed
    books = ask(data, "books")
    assert books["closed"] is True, [check for check in books["checks"] if not check["ok"]]
    assert (books["receipts"], books["open_holds"]) == (requests, 1)
    assert books["books"]["money"]["accounts"]["customer/acme"] == 7 * requests
    assert books["books"]["money"]["entries"] == 2 * requests
    ((budget,),) = [account["budgets"] for account in ask(data, "accounts")]
    assert (budget["spent_ustu"], budget["held_ustu"]) == (5 * requests, 9)


def test_a_killed_gateway_leaves_a_readable_journal(data: Path, start: Start) -> None:
    """What ``append`` returned for is in the books after kill -9 of the writer, and what it held returns."""
    start()
    open_account(data)
    epoch = ask(data, "hello", writer=GATEWAY)["epoch"]
    program = f"""
import sys
sys.path.insert(0, {str(Path(__file__).parent)!r})
from test_exchange_process import *
journal = journal_of(Path({str(data)!r}), {epoch})
for number in range(10**6):
    write(journal, holding(f"rcpt_{{number}}"), settling(f"rcpt_{{number}}"), holding(f"open_{{number}}"))
    print(number, flush=True)
"""
    writer = subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE, text=True)
    assert writer.stdout is not None
    acknowledged = -1
    for text in writer.stdout:
        acknowledged = int(text)
        if acknowledged >= 300:
            os.kill(writer.pid, signal.SIGKILL)
            break
    with writer.stdout:
        rest = writer.stdout.read().split()
    writer.wait(WAIT_S)
    acknowledged = max([acknowledged, *map(int, rest)])
    assert ask(data, "hello", writer=GATEWAY)["epoch"] == epoch + 1
    books = ask(data, "books")
    assert books["closed"] is True
    assert acknowledged + 1 <= books["receipts"] <= acknowledged + 2
    assert books["open_holds"] == 0
    with pytest.raises(TokenworksError, match="has ended"):
        ask(data, "hello", writer=GATEWAY, epoch=epoch)
