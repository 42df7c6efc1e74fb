"""What went wrong in the field, failures F1 to F15, each with the naive algorithm that fails here."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from pathlib import Path

import msgspec
import pytest
from tests.support.exchange import budgeting, holding, opening
from tests.unit.exchange.test_exchange_desk import DECISION, DELIVERY, KEY, PRICES, REQUEST, Disk, directory, lease
from tests.unit.exchange.test_exchange_leases import TWO_AT_ONCE, World, play
from tests.unit.exchange.test_exchange_ledger import settling

from tokenworks.core.clock import ManualClock
from tokenworks.core.errors import BudgetSpent, ExchangeDown, LedgerRefused
from tokenworks.core.words import Amount, Usage
from tokenworks.engine.usage import read
from tokenworks.exchange.desk import Desk, Hold
from tokenworks.exchange.journal import START, journal_folder, read_from
from tokenworks.exchange.ledger import apply
from tokenworks.exchange.service import LedgerService
from tokenworks.exchange.state import State
from tokenworks.exchange.words import PlaceHold, Settle, Void, encode_command

LIMIT = 100


def make_desk(tmp_path: Path, limit: int = LIMIT, name: str = "journal") -> tuple[Desk, Disk]:
    disk = Disk(tmp_path / name, "w", 1)
    desk = Desk(PRICES, ManualClock(7), disk)
    desk.learn(directory())
    desk.budgets.path("team")
    lease(desk, n_team=10**9, n_acme=limit)
    return desk, disk


def place(desk: Desk, receipt: str, nano: int) -> Hold:
    hold = desk.hold(desk.identify(KEY), receipt, Amount(ustu=nano, nano=nano), "served")
    desk.trim(hold, hold.amount)
    return hold


def settle(desk: Desk, hold: Hold, usage: Usage) -> int:
    """What the customer is charged."""
    settled = desk.settle(hold, REQUEST, DECISION, usage, DELIVERY, None, None)
    return settled.nano - settled.loss_nano


def spent(desk: Desk) -> int:
    return desk.budgets.counters["n:acme"].used


def held(desk: Desk) -> int:
    return desk.budgets.counters["n:acme"].held


class Naive:
    """The books of the failing gateways: one balance, checked and charged at different moments."""

    def __init__(self, balance: int = LIMIT) -> None:
        self.balance = balance
        self.reserved = 0


async def test_f01_check_then_charge_race(tmp_path: Path) -> None:
    """F1: ten requests at once pass on one balance; with holds only as many pass as it covers."""
    naive = Naive()

    async def check_then_charge() -> None:
        if naive.balance >= 60:
            await asyncio.sleep(0)  # the engine works
            naive.balance -= 60

    desk, _ = make_desk(tmp_path)

    async def hold_then_settle() -> None:
        try:
            hold = place(desk, "r", 60)
        except BudgetSpent:
            return
        await asyncio.sleep(0)
        settle(desk, hold, Usage(input=60))

    await asyncio.gather(*(check_then_charge() for _ in range(10)))
    await asyncio.gather(*(hold_then_settle() for _ in range(10)))
    assert LIMIT - naive.balance > LIMIT
    assert spent(desk) == 60


def test_f02_trusted_users_skip_the_reservation(tmp_path: Path) -> None:
    """F2: a balance far above the estimate is no reason not to hold: enough requests at once exhaust any balance."""
    desk, _ = make_desk(tmp_path, limit=1_000)
    naive, admitted = Naive(1_000), 0
    for _ in range(200):
        if naive.balance > 100 * 6 or naive.balance - naive.reserved >= 6:
            admitted += 1  # nothing reserved for who is trusted
    assert admitted * 6 > 1_000
    for n in range(166):
        place(desk, f"r{n}", 6)
    with pytest.raises(BudgetSpent):
        place(desk, "last", 6)
    assert held(desk) == 996


async def test_f03_reservation_leaks_on_cancel(tmp_path: Path) -> None:
    """F3: a cancelled request is no Exception; its hold must return all the same, or the budget fills with ghosts."""
    desk, _ = make_desk(tmp_path)
    naive = Naive()

    async def naive_request() -> None:
        naive.reserved += 60
        try:
            await asyncio.sleep(3_600)
        except Exception:  # CancelledError is none
            naive.reserved -= 60
            raise

    async def request() -> None:
        hold = place(desk, "r", 60)
        try:
            await asyncio.sleep(3_600)
        finally:
            settle(desk, hold, Usage(certainty="none"))

    async def cancelled(work: Callable[[], Awaitable[None]]) -> None:
        task = asyncio.ensure_future(work())
        await asyncio.sleep(0)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task

    await cancelled(naive_request)
    await cancelled(request)
    assert naive.reserved == 60
    assert (held(desk), spent(desk), desk.open_holds) == (0, 0, 0)
    place(desk, "again", LIMIT)


def test_f04_spend_lost_when_the_commit_fails(tmp_path: Path) -> None:
    """F4: what was taken out of a queue before a failed write is gone; here it leaves the queue when it is written."""
    queue, table = [1, 2, 3], list[int]()

    def drain_then_commit(*, full: bool) -> None:
        rows, queue[:] = list(queue), []
        if not full:
            table.extend(rows)

    drain_then_commit(full=True)
    drain_then_commit(full=False)
    assert table == []
    desk, disk = make_desk(tmp_path)
    holds = [place(desk, f"r{n}", 10) for n in range(3)]
    disk.full = True
    for hold in holds:
        with pytest.raises(ExchangeDown):
            settle(desk, hold, Usage(input=1))
    disk.full = False
    place(desk, "next", 1)
    settles = [payload for payload, _ in read_from(tmp_path / "journal", START) if b"Settle" in payload[:8]]
    assert len(settles) == 3


def test_f05_spend_lives_in_process_memory() -> None:
    """F5: N gateways are not N budgets, and a restart refills nothing: rights come from one ledger, by epoch."""
    naive = World(2, naive=True)
    play(naive, TWO_AT_ONCE, check=False)
    assert naive.overspent()
    world = World(2)
    for _ in range(3):
        play(world, [*TWO_AT_ONCE, ("crash", 0, 0, 0, 0), ("crash", 1, 0, 0, 0)])
    assert not world.overspent()


def test_f06_counter_lost_and_rebuilt_from_a_stale_copy(tmp_path: Path) -> None:
    """F6: old news never undoes spending: a directory has no figures, and a late lease cannot free what is promised."""
    cache = {"spent": 0}
    stale = dict(cache)
    cache["spent"] += 90
    cache.clear()  # its time to live is over
    cache = cache or stale
    assert cache["spent"] == 0
    desk, _ = make_desk(tmp_path)
    settle(desk, place(desk, "r", 90), Usage(input=90))
    desk.learn(directory())
    lease(desk, n_acme=LIMIT)
    assert spent(desk) == 90
    with pytest.raises(BudgetSpent):
        place(desk, "s", 11)


def test_f07_disconnect_is_billed_zero(tmp_path: Path) -> None:
    """F7: a client that leaves pays what was made for it until the engine stopped, not nothing."""
    reported: int | None = None  # the last chunk with the usage never came
    assert (reported or 0) == 0
    desk, _ = make_desk(tmp_path)
    assert settle(desk, place(desk, "r", 90), Usage(input=10, output=5, certainty="counted")) == 30


def test_f08_error_text_is_billed_as_output(tmp_path: Path) -> None:
    """F8: an answer that failed before its first token costs nothing, whatever long text says so."""
    error = "upstream connect error or disconnect"
    assert 10 + 4 * len(error.split()) > 0  # the naive price of prompt and text
    desk, _ = make_desk(tmp_path)
    assert settle(desk, place(desk, "r", 90), Usage(certainty="none")) == 0
    assert (spent(desk), held(desk)) == (0, 0)


def test_f09_long_stream_runs_past_zero(tmp_path: Path) -> None:
    """F9: a stream holds its next slice before it goes on; at the limit it ends."""
    naive = Naive()
    for _ in range(20):
        naive.balance -= 10  # charged as it goes, never asked
    assert naive.balance < 0
    desk, _ = make_desk(tmp_path)
    hold = place(desk, "r", 10)
    for _ in range(9):
        desk.extend(hold, Amount(ustu=10, nano=10))
    with pytest.raises(BudgetSpent):
        desk.extend(hold, Amount(ustu=10, nano=10))
    assert held(desk) == LIMIT
    assert settle(desk, hold, Usage(input=LIMIT)) == LIMIT


def test_f10_empty_id_as_primary_key(tmp_path: Path) -> None:
    """F10: two requests of one id are two rows or a refusal, never one row that swallows the other."""
    rows: dict[str, int] = {}
    for cost in (5, 7):
        rows.setdefault("", cost)
    assert sum(rows.values()) != 12
    state = State()
    apply(state, opening("a"))
    apply(state, budgeting("b", "a"))
    apply(state, holding("", "b", 5, 5))
    with pytest.raises(LedgerRefused, match="held already with another amount"):
        apply(state, holding("", "b", 7, 7))


def test_f11_the_same_record_twice_is_billed_once() -> None:
    """F11: a retried record has its receipt's id: it neither holds nor charges again."""
    balance = 0
    for _ in range(2):
        balance += 7  # a new key for each try
    assert balance == 14
    state = State()
    apply(state, opening("a"))
    apply(state, budgeting("b", "a"))
    for _ in range(2):
        assert apply(state, holding("r", "b", 7, 7)) == []
    assert state.tallies["b"].held_nano == 7
    apply(state, settling("r", "b", "a", 7, 7))
    with pytest.raises(LedgerRefused, match="settled or voided once"):
        apply(state, settling("r", "b", "a", 7, 7))
    assert state.tallies["b"].spent_nano == 7


def test_f12_two_commits_and_the_second_fails() -> None:
    """F12: one command changes all nodes and books or none: a refused one leaves no half."""
    wallet, token = 100, 100
    try:
        wallet -= 60
        raise OSError("the second commit")
    except OSError:
        pass  # a log line
    assert wallet != token
    state = State()
    apply(state, opening("a"))
    apply(state, budgeting("b0", "a"))
    apply(state, budgeting("b1", "a", "b0"))
    apply(state, holding("r", "b1", 60, 60))
    with pytest.raises(LedgerRefused):
        apply(state, settling("r", "b1", "a", 60, 61))
    assert {(t.spent_nano, t.held_nano) for t in state.tallies.values()} == {(0, 60)}
    assert state.balances == {}
    apply(state, settling("r", "b1", "a", 60, 60))
    assert {(t.spent_nano, t.held_nano) for t in state.tallies.values()} == {(60, 0)}


def test_f13_double_settle_of_a_pending_row(tmp_path: Path) -> None:
    """F13: two workers that both saw a row pending settle it twice; here the second is an anomaly."""
    row, charged = {"status": "pending"}, 0
    seen = [row["status"], row["status"]]
    for status in seen:
        if status == "pending":
            row["status"], charged = "settled", charged + 9
    assert charged == 18
    service = LedgerService(tmp_path, ManualClock(7))
    try:
        service.submit(opening("a"), budgeting("b", "a"))
        epoch = service.hello("g", None)
        journal = Disk(journal_folder(tmp_path, "g", epoch), "g", epoch)
        for command in (holding("r", "b", 9, 9), settling("r", "b", "a", 9, 9), settling("r", "b", "a", 9, 9)):
            journal.append(encode_command(command))
        journal.append(encode_command(holding("r", "b", 9, 9)))  # nor is it held again
        journal.close()
        service.catch_up()
        assert service.state.tallies["b"].spent_nano == 9
        assert service.state.holds == {}
    finally:
        service.close()


def test_f14_undelivered_tokens_are_not_the_customers(tmp_path: Path) -> None:
    """F14: an engine that goes on after the cancel makes tokens that nobody held: they are the operator's loss."""
    made, delivered = 40, 10
    assert min(made, 10**9) > delivered  # naive: whatever the provider says
    desk, _ = make_desk(tmp_path)
    hold = place(desk, "r", 40)
    settled = desk.settle(hold, REQUEST, DECISION, Usage(output=made), DELIVERY, None, None)
    assert (settled.nano, settled.nano - settled.loss_nano, settled.loss_nano) == (160, 40, 120)
    assert spent(desk) == 40


@pytest.mark.parametrize(
    ("shape", "report"),
    [
        ("openai", {"prompt_tokens": 100, "completion_tokens": 20, "prompt_tokens_details": {"cached_tokens": 80}}),
        ("anthropic", {"input_tokens": 20, "cache_read_input_tokens": 80, "output_tokens": 20}),
    ],
)
def test_f15_cached_tokens_counted_twice(shape: str, report: dict[str, object]) -> None:
    """F15: one provider counts cached tokens inside the input, one beside it; the buckets are the same for both."""
    found = read("anthropic" if shape == "anthropic" else "openai", report).usage
    assert found == Usage(input=20, cached_input=80, output=20)
    naive = [
        {"prompt": 100, "cached": 80},  # one formula for both: what OpenAI says taken as Anthropic means it
        {"prompt": 20, "cached": 80},
    ]
    assert len({each["prompt"] + each["cached"] for each in naive}) == 2


def test_f03_a_dead_gateways_holds_return(tmp_path: Path) -> None:
    """F3 at the ledger: a hold is settled or voided; a void gives back the whole and cannot be settled later."""
    state = State()
    apply(state, opening("a"))
    apply(state, budgeting("b", "a"))
    placed: PlaceHold = holding("r", "b", 9, 9)
    apply(state, placed)
    apply(state, Void(receipt="r", reason="died", at_ns=1))
    assert state.tallies["b"].held_nano == 0
    late = msgspec.structs.replace(settling("r", "b", "a", 9, 9).settlement, at_ns=2)
    with pytest.raises(LedgerRefused):
        apply(state, Settle(settlement=late))
