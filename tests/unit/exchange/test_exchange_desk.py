from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tokenworks.core.clock import ManualClock
from tokenworks.core.errors import BudgetSpent, ExchangeDown, UnknownKey
from tokenworks.core.ids import new_key
from tokenworks.core.words import Amount, Candidate, Decision, Delivery, Interval, Provenance, Request, Usage
from tokenworks.exchange.desk import Desk, Hold, Identity
from tokenworks.exchange.journal import START, Journal, Position, read_from
from tokenworks.exchange.prices import Prices
from tokenworks.exchange.words import (
    Account,
    AnyCommand,
    Budget,
    CloseInterval,
    Directory,
    Key,
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


class Disk(Journal):
    """A journal whose disk can be full."""

    full = False

    def append(self, payload: bytes) -> Position:
        if self.full:
            raise ExchangeDown("cannot write the journal")
        return super().append(payload)


def directory(limit_nano: int | None = 1_000, revoked_ns: int | None = None) -> Directory:
    budgets = (
        Budget(id="acme", account="acme", parent=None, name="all", limit_ustu=None, limit_nano=limit_nano),
        Budget(id="team", account="acme", parent="acme", name="team", limit_ustu=None, limit_nano=None),
    )
    keys = (
        Key(id=KEY_ID, hash=HASH, account="acme", budget="team", role="user", made_ns=1),
        Key(id=OTHER_ID, hash=OTHER_HASH, account="acme", budget="acme", role="user", made_ns=1, revoked_ns=revoked_ns),
    )
    return Directory(accounts=(Account(id="acme", name="Acme", opened_ns=1),), budgets=budgets, keys=keys)


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
    return made


def written(disk: Disk) -> list[AnyCommand]:
    """What the journal has."""
    return [decode_command(payload) for payload, _ in read_from(disk._folder, START)]


def figures(identity: Identity) -> list[tuple[int, int]]:
    """Held and spent money on the path, leaf first."""
    return [(node.held_nano, node.spent_nano) for node in identity.path]


def settle(desk: Desk, hold: Hold, usage: Usage) -> Settlement:
    return desk.settle(hold, REQUEST, DECISION, usage, DELIVERY, None, None)


def held(desk: Desk, receipt: str, nano: int) -> Hold:
    """A hold that is written down."""
    hold = desk.hold(desk.identify(KEY), receipt, Amount(ustu=nano, nano=nano))
    desk.trim(hold, hold.amount)
    return hold


def test_a_key_names_its_account_and_its_path(desk: Desk) -> None:
    """The right key finds who asks and what it spends from, leaf first."""
    identity = desk.identify(KEY)
    assert (identity.account.name, identity.key.id) == ("Acme", KEY_ID)
    assert [node.id for node in identity.path] == ["team", "acme"]


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
    hold = desk.hold(identity, "rcpt_1", Amount(ustu=100, nano=100))
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
    hold = desk.hold(desk.identify(KEY), "rcpt_1", Amount(ustu=50, nano=100))
    desk.trim(hold, hold.amount)
    settled = settle(desk, hold, Usage(input=90))
    assert (settled.ustu, settled.loss_ustu, settled.nano, settled.loss_nano) == (90, 40, 90, 0)


def test_nothing_delivered_costs_nothing(desk: Desk) -> None:
    """An empty usage settles at zero and the whole hold returns."""
    identity = desk.identify(KEY)
    settled = settle(desk, held(desk, "rcpt_1", 50), Usage(certainty="none"))
    assert (settled.nano, settled.ustu, figures(identity)) == (0, 0, [(0, 0), (0, 0)])


def test_a_hold_is_only_trimmed_downwards(desk: Desk, disk: Disk) -> None:
    """More than was promised on the path could break a limit; the hold stays as it was."""
    identity = desk.identify(KEY)
    hold = desk.hold(identity, "rcpt_1", Amount(ustu=10, nano=10))
    for more in (Amount(ustu=11, nano=10), Amount(ustu=10, nano=11)):
        with pytest.raises(ValueError, match="downwards"):
            desk.trim(hold, more)
    assert (figures(identity), written(disk), hold.open) == ([(10, 0), (10, 0)], [], True)


def test_a_budget_that_is_spent_holds_nothing(desk: Desk) -> None:
    """The request is refused before anything is counted or written."""
    identity = desk.identify(KEY)
    held(desk, "rcpt_1", 600)
    with pytest.raises(BudgetSpent, match="'acme'"):
        desk.hold(identity, "rcpt_2", Amount(ustu=0, nano=401))
    assert (figures(identity), desk.open_holds) == ([(600, 0), (600, 0)], 1)
    desk.learn(directory(limit_nano=1_001))
    desk.hold(identity, "rcpt_2", Amount(ustu=0, nano=401))


def test_a_released_hold_leaves_no_trace(desk: Desk, disk: Disk) -> None:
    """A request that never reached an engine is as if it had not been."""
    identity = desk.identify(KEY)
    hold = desk.hold(identity, "rcpt_1", Amount(ustu=10, nano=10))
    desk.release(hold)
    assert (figures(identity), written(disk), hold.open, desk.open_holds) == ([(0, 0), (0, 0)], [], False, 0)


def test_a_hold_that_cannot_be_written_is_not_held(desk: Desk, disk: Disk) -> None:
    """No engine may be called on a promise that a crash would forget."""
    identity = desk.identify(KEY)
    hold = desk.hold(identity, "rcpt_1", Amount(ustu=10, nano=10))
    disk.full = True
    with pytest.raises(ExchangeDown):
        desk.trim(hold, Amount(ustu=5, nano=5))
    assert (figures(identity), hold.open, hold.written, desk.open_holds) == ([(0, 0), (0, 0)], False, False, 0)


def interval(start_ns: int) -> Interval:
    return Interval(
        site="home",
        supply="grid",
        start_ns=start_ns,
        end_ns=start_ns + 1,
        meter_mj=0,
        meter=Provenance.MODELLED,
        scale_ppm=1_000_000,
        requests=(),
        services=(),
        idle_mj=0,
        idle_nano=None,
        overhead_mj=0,
        overhead_nano=None,
        residual_mj=0,
        bill_nano=None,
        carbon_ug=None,
        idle_device_nano=None,
    )


def test_what_the_disk_refused_is_written_later_and_in_order(desk: Desk, disk: Disk) -> None:
    """Settlements wait in memory, no new hold is taken meanwhile, and all are written once, before the next hold."""
    identity = desk.identify(KEY)
    holds = [held(desk, f"rcpt_{n}", 100) for n in range(3)]
    disk.full = True
    for hold in holds[:2]:
        with pytest.raises(ExchangeDown):
            settle(desk, hold, Usage(input=10))
        assert not hold.open
    with pytest.raises(ExchangeDown):
        desk.close_interval(interval(0))
    assert figures(identity) == [(100, 20), (100, 20)]
    for _ in range(2):
        with pytest.raises(ExchangeDown):
            desk.hold(identity, "rcpt_9", Amount(ustu=1, nano=1))
    assert (figures(identity), desk.open_holds) == ([(100, 20), (100, 20)], 1)
    disk.full = False
    held(desk, "rcpt_9", 1)
    settle(desk, holds[2], Usage(input=10))
    desk.close_interval(interval(1))
    assert [_name(command) for command in written(disk)] == [
        *("hold rcpt_0", "hold rcpt_1", "hold rcpt_2"),
        *("settle rcpt_0", "settle rcpt_1", "interval 0", "hold rcpt_9", "settle rcpt_2", "interval 1"),
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
                desk.hold(desk.identify(KEY), "rcpt_9", Amount(ustu=0, nano=0))
    desk.hold(desk.identify(KEY), "rcpt_9", Amount(ustu=0, nano=0))
    names = [_name(command) for command in written(disk)]
    assert names[4:] == [f"settle rcpt_{n}" for n in range(4)]
    assert desk.open_holds == 1
