from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest
from tests.support import exchange as support

from tokenworks.agents.promise import promise
from tokenworks.brain.route import Offer
from tokenworks.core.clock import ManualClock
from tokenworks.core.errors import BudgetSpent, ExchangeDown, UnknownKey
from tokenworks.core.ids import new_key
from tokenworks.core.words import Amount, Candidate, Decision, Delivery, Interval, Request, Usage
from tokenworks.exchange.budget import Shortage, burns
from tokenworks.exchange.desk import LEASE_S, Desk, Hold, Identity
from tokenworks.exchange.journal import START, Journal, Position, read_from
from tokenworks.exchange.prices import Prices
from tokenworks.exchange.words import (
    Account,
    AnyCommand,
    Budget,
    Burn,
    CloseInterval,
    Directory,
    ExtendHold,
    Grant,
    Key,
    Lease,
    Overage,
    PlaceHold,
    Settle,
    Settlement,
    decode_command,
)

KEY_ID, KEY, HASH = new_key(bytes)
OTHER_ID, OTHER, OTHER_HASH = new_key(lambda count: b"\xff" * count)
LINE = {"input": 1, "cached_input": 1, "cache_write": 1, "output": 4, "reasoning": 4}
PRICES = Prices(
    currency="USD",
    rate_card="card-1",
    price_book="book-1",
    rates={"*": LINE},
    prices={"*": {bucket: rate * 1_000_000 for bucket, rate in LINE.items()}},
)
"""One nano and one micro-STU per input token, four per output token."""
REQUEST = Request(
    id="unused",
    endpoint="chat",
    model="m",
    body=b"{}",
    stream=False,
    show_usage=False,
    input_max=10,
    output_max=20,
    choices=1,
    needs=frozenset(),
    arrived_ns=5,
)
DECISION = Decision(chosen=Candidate(replica="r", site="home", model="served", terms_nano={}, total_nano=0))
DELIVERY = Delivery(ending="complete", chunks=3)


LIMIT = 10**9


class Disk(Journal):
    """A journal whose disk can be full."""

    full = False

    def append(self, payload: bytes) -> Position:
        if self.full:
            raise ExchangeDown("cannot write the journal")
        return super().append(payload)


def directory(
    limit_nano: int | None = LIMIT,
    revoked_ns: int | None = None,
    grants: tuple[Grant, ...] = (),
    overage: Overage = "payg",
    clamp: bool = True,
) -> Directory:
    """An account with a team below its root, a key for each, and packages."""
    budgets = (
        Budget(id="acme", account="acme", parent=None, name="all", limit_ustu=None, limit_nano=limit_nano),
        Budget(id="team", account="acme", parent="acme", name="team", limit_ustu=None, limit_nano=LIMIT),
    )
    keys = (
        Key(id=KEY_ID, hash=HASH, account="acme", budget="team", role="user", made_ns=1),
        Key(id=OTHER_ID, hash=OTHER_HASH, account="acme", budget="acme", role="user", made_ns=1, revoked_ns=revoked_ns),
    )
    account = Account(id="acme", name="Acme", opened_ns=1, overage=overage, clamp=clamp)
    return Directory(accounts=(account,), budgets=budgets, keys=keys, grants=grants)


def lease(desk: Desk, **allowances: int) -> None:
    """As the ledger gives them, all of the window ``none``."""
    desk.take([Lease(counter=c.replace("_", ":", 1), window_ns=0, allowance=a) for c, a in allowances.items()], 7)


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Disk]:
    made = Disk(tmp_path / "journal", "w", 1)
    yield made
    made.full = False
    made.close()


@pytest.fixture
def desk(disk: Disk) -> Desk:
    made = Desk(PRICES, ManualClock(7), disk)
    made.learn(directory())
    made.budgets.path("team")
    lease(made, n_team=LIMIT, n_acme=1_000)
    return made


def written(disk: Disk) -> list[AnyCommand]:
    """What the journal has."""
    return [decode_command(payload) for payload, _ in read_from(disk._folder, START)]


def figures(identity: Identity) -> list[tuple[int, int]]:
    """Held and spent money on the path, leaf first."""
    return [(counter.held, counter.used) for counter in identity.path.counters if counter.money]


def settle(desk: Desk, hold: Hold, usage: Usage) -> Settlement:
    return desk.settle(hold, REQUEST, DECISION, usage, DELIVERY, None, None)


def held(desk: Desk, receipt: str, nano: int) -> Hold:
    """A hold that is written down."""
    hold = desk.hold(desk.identify(KEY), receipt, Amount(ustu=nano, nano=nano), "served")
    desk.trim(hold, hold.amount)
    return hold


def test_a_key_names_its_account_and_its_path(desk: Desk) -> None:
    """The right key finds who asks and what it spends from, leaf first."""
    identity = desk.identify(KEY)
    assert (identity.account.name, identity.key.id) == ("Acme", KEY_ID)
    assert [node.id for node in identity.path.budgets] == ["team", "acme"]


def test_a_wrong_key_looks_like_a_revoked_one(desk: Desk) -> None:
    """Missing, misshapen, unknown, with a wrong secret or revoked: one code, one status, nothing to learn from it."""
    desk.learn(directory(revoked_ns=3))
    wrong_secret = KEY[:-1] + ("1" if KEY[-1] != "1" else "2")
    unknown = new_key()[1]
    messages = set()
    for key in (wrong_secret, unknown, OTHER, "sk-something-else", "tw--", "tw-" + "x" * 100, "schlüssel"):
        with pytest.raises(UnknownKey) as caught:
            desk.identify(key)
        messages.add((caught.value.message, caught.value.hint, caught.value.code, caught.value.status))
    assert len(messages) == 1
    for nothing in (None, ""):
        with pytest.raises(UnknownKey, match="no API key was given") as caught:
            desk.identify(nothing)
        assert (caught.value.code, caught.value.status) == ("invalid_api_key", 401)


def test_a_revoked_key_stops_working_with_the_next_news(desk: Desk) -> None:
    """The key works until the directory says that it is revoked."""
    assert desk.identify(OTHER).key.id == OTHER_ID
    desk.learn(directory(revoked_ns=3))
    with pytest.raises(UnknownKey):
        desk.identify(OTHER)


def test_the_numbers_of_one_request(desk: Desk, disk: Disk) -> None:
    """The worst case is held, the chosen price is kept and written, the true cost is charged, the rest returns."""
    identity = desk.identify(KEY)
    hold = desk.hold(identity, "rcpt_1", Amount(ustu=100, nano=100), "served")
    assert (figures(identity), written(disk), desk.open_holds) == ([(100, 0), (100, 0)], [], 1)
    desk.trim(hold, Amount(ustu=90, nano=90))
    assert figures(identity) == [(90, 0), (90, 0)]
    placed = PlaceHold(receipt="rcpt_1", budget="team", ustu=90, nano=90, at_ns=7)
    assert written(disk) == [placed]
    settled = settle(desk, hold, Usage(input=10, output=15))
    assert figures(identity) == [(0, 70), (0, 70)]
    assert written(disk) == [placed, Settle(settlement=settled)]
    assert (settled.ustu, settled.nano, settled.loss_ustu, settled.loss_nano) == (70, 70, 0, 0)
    assert (settled.held_ustu, settled.held_nano) == (90, 90)
    assert (settled.account, settled.budget, settled.key, settled.receipt) == ("acme", "team", KEY_ID, "rcpt_1")
    assert (settled.model_asked, settled.model_served) == ("m", "served")
    assert (settled.rate_card, settled.price_book, settled.currency) == ("card-1", "book-1", "USD")
    assert (desk.open_holds, hold.open) == (0, False)


def test_what_exceeds_the_hold_is_the_operators_loss(desk: Desk, disk: Disk) -> None:
    """An engine that made more than it was asked for does not cost the customer more than was promised."""
    identity = desk.identify(KEY)
    settled = settle(desk, held(desk, "rcpt_1", 50), Usage(input=10, output=20))
    assert (settled.nano, settled.loss_nano, settled.ustu, settled.loss_ustu) == (90, 40, 90, 40)
    assert figures(identity) == [(0, 50), (0, 50)]


def test_each_book_has_its_own_loss(desk: Desk) -> None:
    """Standard tokens may exceed their hold while money does not."""
    hold = desk.hold(desk.identify(KEY), "rcpt_1", Amount(ustu=50, nano=100), "served")
    desk.trim(hold, hold.amount)
    settled = settle(desk, hold, Usage(input=90))
    assert (settled.ustu, settled.loss_ustu, settled.nano, settled.loss_nano) == (90, 40, 90, 0)


def test_nothing_delivered_costs_nothing(desk: Desk) -> None:
    """An empty usage settles at zero and the whole hold returns."""
    identity = desk.identify(KEY)
    settled = settle(desk, held(desk, "rcpt_1", 50), Usage(certainty="none"))
    assert (settled.nano, settled.ustu, figures(identity)) == (0, 0, [(0, 0), (0, 0)])


def test_a_hold_is_only_trimmed_downwards(desk: Desk, disk: Disk) -> None:
    """A choice that costs more than was promised is written with the promise: no limit breaks, the rest is a loss."""
    identity = desk.identify(KEY)
    hold = desk.hold(identity, "rcpt_1", Amount(ustu=10, nano=10), "served")
    desk.trim(hold, Amount(ustu=11, nano=11))
    assert (figures(identity), hold.amount) == ([(10, 0), (10, 0)], Amount(ustu=10, nano=10))
    assert written(disk) == [PlaceHold(receipt="rcpt_1", budget="team", ustu=10, nano=10, at_ns=7)]
    assert settle(desk, hold, Usage(input=11)).loss_nano == 1


def test_a_budget_that_is_spent_holds_nothing(desk: Desk) -> None:
    """The request is refused before anything is counted or written."""
    identity = desk.identify(KEY)
    held(desk, "rcpt_1", 600)
    with pytest.raises(BudgetSpent, match="'acme'"):
        desk.hold(identity, "rcpt_2", Amount(ustu=0, nano=401), "served")
    assert (figures(identity), desk.open_holds) == ([(600, 0), (600, 0)], 1)
    lease(desk, n_acme=1_001)
    desk.hold(identity, "rcpt_2", Amount(ustu=0, nano=401), "served")


def test_a_released_hold_leaves_no_trace(desk: Desk, disk: Disk) -> None:
    """A request that never reached an engine is as if it had not been."""
    identity = desk.identify(KEY)
    hold = desk.hold(identity, "rcpt_1", Amount(ustu=10, nano=10), "served")
    desk.release(hold)
    assert (figures(identity), written(disk), hold.open, desk.open_holds) == ([(0, 0), (0, 0)], [], False, 0)


def test_a_hold_that_cannot_be_written_is_not_held(desk: Desk, disk: Disk) -> None:
    """No engine may be called on a promise that a crash would forget."""
    identity = desk.identify(KEY)
    hold = desk.hold(identity, "rcpt_1", Amount(ustu=10, nano=10), "served")
    disk.full = True
    with pytest.raises(ExchangeDown):
        desk.trim(hold, Amount(ustu=5, nano=5))
    assert (figures(identity), hold.open, hold.written, desk.open_holds) == ([(0, 0), (0, 0)], False, False, 0)


def interval(start_ns: int) -> Interval:
    return support.interval("home", start_ns, end_ns=start_ns + 1)


def test_what_the_disk_refused_is_written_later_and_in_order(desk: Desk, disk: Disk) -> None:
    """Settlements wait in memory, no new hold is taken meanwhile, and all are written once, before the next hold. An
    interval does not wait: its site goes on with it, and says it again, longer."""
    identity = desk.identify(KEY)
    holds = [held(desk, f"rcpt_{n}", 100) for n in range(3)]
    disk.full = True
    for hold in holds[:2]:
        with pytest.raises(ExchangeDown):
            settle(desk, hold, Usage(input=10))
        assert not hold.open
    with pytest.raises(ExchangeDown):
        desk.book(CloseInterval(interval=interval(0)))
    assert figures(identity) == [(100, 20), (100, 20)]
    for _ in range(2):
        with pytest.raises(ExchangeDown):
            desk.hold(identity, "rcpt_9", Amount(ustu=1, nano=1), "served")
    assert (figures(identity), desk.open_holds) == ([(100, 20), (100, 20)], 1)
    disk.full = False
    held(desk, "rcpt_9", 1)
    settle(desk, holds[2], Usage(input=10))
    desk.book(CloseInterval(interval=interval(1)))
    assert [_name(command) for command in written(disk)] == [
        *("hold rcpt_0", "hold rcpt_1", "hold rcpt_2"),
        *("settle rcpt_0", "settle rcpt_1", "hold rcpt_9", "settle rcpt_2", "interval 1"),
    ]


def _name(command: AnyCommand) -> str:
    match command:
        case PlaceHold(receipt=receipt):
            return f"hold {receipt}"
        case Settle(settlement=settlement):
            return f"settle {settlement.receipt}"
        case CloseInterval(interval=closed):
            return f"interval {closed.start_ns}"
    raise AssertionError(command)


def test_the_backlog_survives_a_disk_that_fails_again_half_way(
    desk: Desk, disk: Disk, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each waiting settlement is written exactly once, however often the disk changes its mind."""
    holds = [held(desk, f"rcpt_{n}", 10) for n in range(4)]
    disk.full = True
    for hold in holds:
        with pytest.raises(ExchangeDown):
            settle(desk, hold, Usage(input=1))
    real, left = Journal.append, [0]

    def moody(journal: Journal, payload: bytes) -> Position:
        left[0] -= 1
        if left[0] < 0:
            raise ExchangeDown("cannot write the journal")
        return real(journal, payload)

    disk.full = False
    with monkeypatch.context() as patch:
        patch.setattr(Journal, "append", moody)
        for left[0] in (1, 0, 2):
            with pytest.raises(ExchangeDown):
                desk.hold(desk.identify(KEY), "rcpt_9", Amount(ustu=0, nano=0), "served")
    desk.hold(desk.identify(KEY), "rcpt_9", Amount(ustu=0, nano=0), "served")
    names = [_name(command) for command in written(disk)]
    assert names[4:] == [f"settle rcpt_{n}" for n in range(4)]
    assert desk.open_holds == 1


# --- the ledger's answers --------------------------------------------------------------------------------------------


class Ledger:
    """Answers of a ledger that has ``rest`` of every counter, and what it was asked."""

    def __init__(self, rest: int) -> None:
        self.rest = rest
        self.allowances: dict[str, int] = {}
        self.asked: list[tuple[dict[str, int], dict[str, int]]] = []

    async def ask(self, wanted: dict[str, int], returned: dict[str, int]) -> list[Lease]:
        self.asked.append((dict(wanted), dict(returned)))
        self.allowances |= returned
        for counter, need in wanted.items():
            self.allowances[counter] = self.allowances.get(counter, 0) + min(need, self.rest)
        return [Lease(counter=counter, window_ns=0, allowance=self.allowances[counter]) for counter in wanted]


def linked(disk: Disk, rest: int = 10**6, **terms: Any) -> tuple[Desk, Ledger, ManualClock]:
    clock, ledger = ManualClock(7), Ledger(rest)
    desk = Desk(PRICES, clock, disk, ledger.ask)
    desk.learn(directory(**terms))
    desk.budgets.path("team")
    return desk, ledger, clock


async def test_a_refill_asks_for_what_is_missing_and_says_whether_it_came(disk: Disk) -> None:
    """Only the missing part is asked for; a ledger that gives nothing is not asked for ever."""
    desk, ledger, _ = linked(disk)
    await desk.beat()
    with pytest.raises(Shortage) as short:
        desk.hold(desk.identify(KEY), "r", Amount(ustu=40, nano=40), "served")
    assert await desk.refill(short.value)
    held(desk, "r", 40)
    with pytest.raises(Shortage) as short:
        held(desk, "s", 10)
    ledger.rest = 0
    assert not await desk.refill(short.value)
    asked = [wanted for wanted, _ in ledger.asked if wanted]
    assert asked == [{"n:team": 40, "n:acme": 40}, {"n:team": 10, "n:acme": 10}]


async def test_the_beat_gives_back_what_is_idle_and_asks_where_it_runs_low(disk: Disk) -> None:
    """Nobody's lease strands: unused for a beat it returns, but not what is held; a busy one is refilled ahead."""
    desk, ledger, _ = linked(disk)
    await desk.beat()
    lease(desk, n_team=100, n_acme=100)
    ledger.allowances = {"n:team": 100, "n:acme": 100}
    hold = held(desk, "r", 90)
    await desk.beat()
    assert ledger.asked[-1] == ({"n:team": 25, "n:acme": 25}, {})
    settle(desk, hold, Usage(input=90))
    await desk.beat()
    assert ledger.asked[-1][1] == {}, "it was used since the last beat"
    await desk.beat()
    assert ledger.asked[-1][1] == {"n:team": 90, "n:acme": 90}
    assert {counter.left for counter in desk.counters()} == {0}


async def test_nothing_is_promised_when_the_ledger_was_not_heard_for_too_long(disk: Disk) -> None:
    """After LEASE_S without an answer the ledger may have given the rights to others; what is open still settles."""
    desk, _, clock = linked(disk)
    with pytest.raises(ExchangeDown, match="not been heard"):
        desk.hold(desk.identify(KEY), "r", Amount(ustu=0, nano=0), "served")
    await desk.beat()
    lease(desk, n_team=100, n_acme=100)
    hold = held(desk, "r", 10)
    clock.advance(LEASE_S - 0.001)
    held(desk, "s", 10)
    clock.advance(0.001)
    with pytest.raises(ExchangeDown, match="not been heard"):
        held(desk, "t", 10)
    assert settle(desk, hold, Usage(input=10)).nano == 10
    await desk.beat()
    held(desk, "t", 10)


def test_a_new_epoch_has_no_rights_and_what_is_in_flight_ends_in_the_old_journal(desk: Desk, tmp_path: Path) -> None:
    """Leases of the old epoch are void; its requests settle where they were held."""
    hold, old = held(desk, "r", 10), desk._journal
    new = Disk(tmp_path / "new", "w", 2)
    desk.rejoin(new, directory())
    with pytest.raises(Shortage):
        held(desk, "s", 1)
    settle(desk, hold, Usage(input=10))
    assert isinstance(old, Disk)
    assert [_name(command) for command in written(old)] == ["hold r", "settle r"]
    assert (written(new), desk.open_holds) == ([], 0)
    new.close()


def test_a_stream_is_extended_and_settles_against_the_whole(desk: Desk, disk: Disk) -> None:
    """Each slice is written down; a refused one changes nothing."""
    identity, hold = desk.identify(KEY), held(desk, "r", 400)
    desk.extend(hold, Amount(ustu=500, nano=500))
    with pytest.raises(Shortage):
        desk.extend(hold, Amount(ustu=101, nano=101))
    assert figures(identity) == [(900, 0), (900, 0)]
    assert settle(desk, hold, Usage(input=850)).loss_nano == 0
    assert written(disk)[1] == ExtendHold(receipt="r", ustu=500, nano=500)
    assert figures(identity) == [(0, 850), (0, 850)]


def test_a_grant_for_a_site_is_used_when_the_site_is_known(desk: Desk, disk: Disk) -> None:
    """The promise is made before the site is chosen; the choice lets the site's package pay, others are left alone."""
    grants = tuple(
        Grant(name, "acme", "p", 1_000, 0, created_ns=0, effective_ns=0, expires_ns=None, sites=(site,))
        for name, site in (("h", "home"), ("o", "other"))
    )
    desk.learn(directory(grants=grants))
    desk.budgets.path("team")
    lease(desk, g_h=1_000, g_o=1_000)
    hold = desk.hold(desk.identify(KEY), "r", Amount(ustu=50, nano=50), "served")
    assert (burns(hold.parts), hold.amount.nano) == ((), 50)
    desk.trim(hold, Amount(ustu=40, nano=40), "home")
    assert (burns(hold.parts), hold.amount.nano) == ((Burn(grant="h", ustu=40),), 0)
    settled = settle(desk, hold, Usage(input=30))
    assert (settled.nano, settled.list_nano, settled.burned) == (0, 30, (Burn(grant="h", ustu=30),))


def offer() -> Offer:
    values: dict[str, Any] = dict.fromkeys(Offer.__struct_fields__)
    return Offer(**(values | {"replica": "r", "site": "home", "model": "served", "context_tokens": 4_096}))


async def test_max_tokens_is_cut_to_what_is_affordable(disk: Disk) -> None:
    """The most that fits is held and told to the engine; below OUTPUT_MIN, or when the account opts out, it is 402."""
    wish = msgspec.structs.replace(REQUEST, output_max=1_000, input_max=10)
    for affordable, clamp, tokens in ((10 + 4 * 100 + 3, True, 100), (10 + 4 * 16, True, 16), (73, True, None)):
        for opted_out in (False, True):
            desk, ledger, _ = linked(disk, rest=affordable, clamp=clamp and not opted_out)
            await desk.beat()
            ledger.rest = affordable
            real = ledger.ask

            async def once(wanted: dict[str, int], returned: dict[str, int], real: Any = real) -> Any:
                answer = await real(wanted, returned)
                ledger.rest = 0  # noqa: B023
                return answer

            desk._ask = once
            if tokens is None or opted_out:
                with pytest.raises(BudgetSpent) as caught:
                    await promise(desk, desk.identify(KEY), wish, [offer()])
                assert caught.value.status == 402
                assert desk.open_holds == 0
                continue
            hold, cut = await promise(desk, desk.identify(KEY), wish, [offer()])
            assert (cut.output_max, cut.clamped, desk.open_holds) == (tokens, True, 1)
            assert hold.amount.nano == 10 + 4 * tokens
            assert msgspec.json.decode(cut.body)["max_tokens"] == tokens
