"""What was found wrong in the exchange's ledger, leases and desk: each test holds what the fault had broken."""

from __future__ import annotations

import asyncio
import copy
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import cast

import msgspec
import pytest
from tests.support.exchange import holding, opening
from tests.unit.brain.test_brain_route import offer
from tests.unit.exchange.test_exchange_desk import KEY, PRICES, REQUEST, Disk, directory, lease, written
from tests.unit.exchange.test_exchange_ledger import settling

from tokenworks.agents.life import House, _write
from tokenworks.agents.worst import hold_worst
from tokenworks.core.clock import ManualClock
from tokenworks.core.errors import BudgetSpent, LedgerRefused
from tokenworks.core.words import Amount, Candidate, Decision
from tokenworks.exchange.budget import Shortage, burns
from tokenworks.exchange.calendar import window_start_ns
from tokenworks.exchange.desk import Desk
from tokenworks.exchange.ledger import apply
from tokenworks.exchange.service import LedgerService
from tokenworks.exchange.state import Source, State
from tokenworks.exchange.words import (
    Budget,
    Burn,
    GiveLease,
    Grant,
    Lease,
    PlaceHold,
    SellGrant,
    SetBudget,
    Settle,
    Window,
)

DAY_NS = 86_400 * 10**9
GATEWAY: Source = ("g", 1)
TEN = Amount(ustu=10, nano=10)


def node(
    name: str,
    parent: str | None = None,
    *,
    nano: int | None = None,
    ustu: int | None = None,
    window: Window = "none",
    account: str = "a",
) -> Budget:
    return Budget(id=name, account=account, parent=parent, name=name, limit_ustu=ustu, limit_nano=nano, window=window)


def carved(
    name: str, parent: str, *, nano: int | None = None, ustu: int | None = None, closed_ns: int | None = None
) -> Budget:
    budget = node(name, parent, nano=nano, ustu=ustu)
    return msgspec.structs.replace(budget, carved=True, closed_ns=closed_ns)


def package(account: str, sites: tuple[str, ...] = (), size: int = 1_000, ended_ns: int | None = None) -> Grant:
    return Grant(
        id="p",
        account=account,
        package="p",
        size_ustu=size,
        price_nano=0,
        created_ns=0,
        effective_ns=0,
        expires_ns=None,
        sites=sites,
        ended_ns=ended_ns,
    )


def set_budget(state: State, budget: Budget, at_ns: int = 0) -> None:
    apply(state, SetBudget(budget=budget, at_ns=at_ns))


def books(*budgets: Budget) -> State:
    """Account ``a`` with these budgets."""
    state = State()
    apply(state, opening("a"))
    for budget in budgets:
        set_budget(state, budget)
    return state


def give(
    state: State, counter: str, allowance: int, *, window_ns: int = 0, at_ns: int = 0, source: Source = GATEWAY
) -> None:
    leases = (Lease(counter=counter, window_ns=window_ns, allowance=allowance),)
    apply(state, GiveLease(writer=source[0], epoch=source[1], leases=leases, at_ns=at_ns))


def charge(state: State, receipt: str, budget: str, amount: int, at_ns: int) -> None:
    apply(state, holding(receipt, budget, amount, amount, at_ns), GATEWAY)
    apply(state, settling(receipt, budget, "a", amount, amount), GATEWAY)


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Disk]:
    made = Disk(tmp_path / "journal-of-w", "w", 1)
    yield made
    made.close()


@pytest.fixture
def service(tmp_path: Path) -> Iterator[LedgerService]:
    made = LedgerService(tmp_path, ManualClock(DAY_NS))
    yield made
    made.close()


def test_a_budget_without_its_window_still_counts_what_was_spent() -> None:
    """Taking the window off a limit does not take the limit off: the lifetime's spending of every day counts."""
    state = books(node("b", nano=100, window="day"))
    charge(state, "r1", "b", 20, DAY_NS)
    charge(state, "r2", "b", 70, 2 * DAY_NS)
    set_budget(state, node("b", nano=100), 2 * DAY_NS)
    assert state.free("n:b", 2 * DAY_NS) == 10
    charge(state, "r3", "b", 10, 3 * DAY_NS)
    assert state.free("n:b", 3 * DAY_NS) == 0


def test_a_window_does_not_change_under_a_lease() -> None:
    """A gateway that still spends in the old window would be counted in neither, so nothing may be out."""
    state = books(node("b", nano=100, window="day"))
    give(state, "n:b", 60, window_ns=DAY_NS, at_ns=DAY_NS)
    with pytest.raises(LedgerRefused, match="leased to gateways"):
        set_budget(state, node("b", nano=100), DAY_NS)
    give(state, "n:b", 0, window_ns=DAY_NS, at_ns=DAY_NS)
    set_budget(state, node("b", nano=100), DAY_NS)
    assert state.free("n:b", DAY_NS) == 100


def test_a_lease_can_be_returned_after_its_limit_was_lowered() -> None:
    """Giving back is never refused, even while what is out is still more than the new limit."""
    state = books(node("b", nano=100))
    give(state, "n:b", 80)
    set_budget(state, node("b", nano=20))
    give(state, "n:b", 70)
    assert state.free("n:b", 0) == -50


def test_carving_is_bound_by_every_limit_above() -> None:
    """A parent with room does not help when its own parent has less: all of the soft path must have it."""
    state = books(node("root", nano=50), node("mid", "root", nano=100))
    with pytest.raises(LedgerRefused, match="'root' has not that much left"):
        set_budget(state, carved("c", "mid", nano=80, ustu=0))


def test_what_was_carved_counts_on_every_budget_above() -> None:
    """A limit cut out of a child is cut out of the root as well, or both could be spent."""
    state = books(node("root", nano=50), node("mid", "root", nano=100), carved("c", "mid", nano=30, ustu=0))
    assert (state.free("n:mid", 0), state.free("n:root", 0)) == (70, 20)


def test_a_carved_budget_has_each_limit_that_its_parent_has() -> None:
    """The path ends at a carved budget, so a kind that it does not limit would be limited by nobody."""
    state = books(node("root", nano=50))
    with pytest.raises(LedgerRefused, match="must have each limit"):
        set_budget(state, carved("c", "root", ustu=10))


@pytest.mark.parametrize(
    "changed",
    [carved("c", "root", nano=0, ustu=40), carved("c", "root", nano=40, ustu=40, closed_ns=5)],
    ids=["shrunk", "closed"],
)
def test_a_carved_budget_does_not_return_what_it_has_leased(changed: Budget) -> None:
    """Its parent would lease out again what a gateway may still spend."""
    state = books(node("root", nano=50, ustu=50), carved("c", "root", nano=40, ustu=40))
    give(state, "n:c", 40)
    with pytest.raises(LedgerRefused, match="leased it to gateways"):
        set_budget(state, changed, 5)
    assert state.free("n:root", 5) == 10


def test_a_closed_budget_leases_nothing() -> None:
    """What a closed budget gave back to its parent is the parent's alone."""
    state = books(node("root", nano=50, ustu=50), carved("c", "root", nano=40, ustu=40))
    set_budget(state, carved("c", "root", nano=40, ustu=40, closed_ns=5), 5)
    assert state.free("n:root", 5) == 50
    with pytest.raises(LedgerRefused, match="not that much left to lease"):
        give(state, "n:c", 40, at_ns=6)


def test_a_refused_lease_changes_nothing() -> None:
    """The state after a refusal is the state before it, down to the gateways that it knows."""
    state = books(node("b", nano=10))
    before = copy.deepcopy(state)
    with pytest.raises(LedgerRefused):
        give(state, "n:b", 11)
    assert state == before


@pytest.mark.parametrize("counter", ["n:x", "g:x", "x", "z:b"])
def test_a_lease_of_an_unknown_counter_is_refused(counter: str) -> None:
    """A counter that does not exist is the asker's mistake and must not stop the ledger with a KeyError."""
    with pytest.raises(LedgerRefused, match="there is no counter"):
        give(books(node("b", nano=10)), counter, 1)


def test_a_lease_of_another_window_is_refused() -> None:
    """What is out counts by window, so each gateway could otherwise lease all of tomorrow today."""
    state = books(node("b", nano=10, window="day"))
    for number in range(3):
        with pytest.raises(LedgerRefused, match="in another window"):
            give(state, "n:b", 10, window_ns=2 * DAY_NS, at_ns=DAY_NS, source=(f"g{number}", 1))


def test_a_settlement_burns_a_grant_once() -> None:
    """Two lines of one grant are checked as their sum, or a promise is used twice."""
    state = books(node("b"))
    apply(state, SellGrant(grant=package("a", size=10)))
    apply(state, PlaceHold(receipt="r", budget="b", ustu=20, nano=0, at_ns=0, parts=(Burn(grant="p", ustu=10),)))
    settled = settling("r", "b", "a", 20, 0).settlement
    twice = msgspec.structs.replace(settled, burned=(Burn(grant="p", ustu=10),) * 2)
    with pytest.raises(LedgerRefused, match="burn more of a grant"):
        apply(state, Settle(settlement=twice))
    assert state.grants["p"].used_ustu == 0


def test_a_grant_is_not_sold_ended() -> None:
    """A package that has ended before its sale is money for nothing."""
    with pytest.raises(LedgerRefused):
        apply(books(node("b")), SellGrant(grant=package("a", ended_ns=1)))


def test_a_hold_takes_no_grant_of_another_account() -> None:
    """A customer's package pays for that customer only."""
    state = books(node("b"))
    apply(state, opening("z"))
    apply(state, SellGrant(grant=package("z")))
    with pytest.raises(LedgerRefused, match="of another account"):
        apply(state, PlaceHold(receipt="r", budget="b", ustu=10, nano=0, at_ns=0, parts=(Burn(grant="p", ustu=10),)))
    assert not state.holds


def test_the_ledger_answers_only_leases_that_are_in_its_books(service: LedgerService) -> None:
    """A gateway that gives one counter back and asks for another is told exactly what the books then say."""
    service.submit(opening("a"), SetBudget(budget=node("x", nano=100)), SetBudget(budget=node("y", nano=100)))
    epoch = service.hello("g", None)
    service.lease("g", epoch, {"n:x": 80}, {})
    service.submit(SetBudget(budget=node("x", nano=20), at_ns=DAY_NS))
    given = service.lease("g", epoch, {"n:y": 100}, {"n:x": 70})
    assert given == [Lease(counter="n:y", window_ns=0, allowance=100)]
    leased = service.state.leases["g", epoch]
    assert {counter: found.allowance for counter, found in leased.items()} == {"n:x": 70, "n:y": 100}


async def test_an_account_that_pays_as_it_goes_uses_its_package_first(disk: Disk) -> None:
    """A package that no gateway has leased yet is asked for before money is held."""
    asked: list[dict[str, int]] = []

    async def ask(wanted: dict[str, int], returned: dict[str, int]) -> Sequence[Lease]:
        asked.append(wanted)
        return [Lease(counter=counter, window_ns=0, allowance=need) for counter, need in wanted.items()]

    desk = Desk(PRICES, ManualClock(7), disk, ask)
    desk.learn(directory(limit_nano=None, grants=(package("acme"),)))
    desk.take([], 7)
    identity = desk.identify(KEY)
    with pytest.raises(Shortage) as short:
        desk.hold(identity, "r", TEN, "served")
    assert await desk.refill(short.value)
    hold = desk.hold(identity, "r", TEN, "served")
    assert asked == [{"g:p": 10}]
    assert burns(hold.parts) == (Burn(grant="p", ustu=10),)
    assert hold.amount == Amount(ustu=10, nano=0)


async def test_a_sum_given_back_is_not_overtaken_by_an_answer(service: LedgerService, disk: Disk) -> None:
    """While a request waits for more of a counter the beat gives it back: the gateway never has more than the books."""
    budgets = node("acme", nano=1_000, account="acme"), node("team", "acme", nano=1_000, account="acme")
    service.submit(opening("acme"), *[SetBudget(budget=budget) for budget in budgets])
    epoch = service.hello("g", None)

    async def ask(wanted: dict[str, int], returned: dict[str, int]) -> Sequence[Lease]:
        given = service.lease("g", epoch, wanted, returned)  # the ledger answers in the order of the questions
        await asyncio.sleep(0)  # the answer travels
        await asyncio.sleep(0)
        return given

    desk = Desk(PRICES, ManualClock(DAY_NS), disk, ask)
    desk.learn(directory(limit_nano=1_000))
    path = desk.identify(KEY).path
    assert await desk.refill(Shortage([(counter, 10) for counter in path.counters], "", ""))
    await desk.beat()
    counter = desk.budgets.counters["n:acme"]
    await asyncio.gather(desk.refill(Shortage([(counter, counter.left + 500)], "", "")), desk.beat())
    leased = service.state.leases["g", epoch]
    assert all(mine.allowance <= leased[mine.id].allowance for mine in path.counters)


async def test_a_key_identified_before_a_rejoin_spends_no_rights_of_the_old_epoch(tmp_path: Path, disk: Disk) -> None:
    """The ledger took the leases of the old epoch back, whoever still has a path through them."""
    desk = Desk(PRICES, ManualClock(7), disk)
    desk.learn(directory())
    identity = desk.identify(KEY)
    lease(desk, n_acme=100, n_team=100)
    new = Disk(tmp_path / "journal-of-w-2", "w", 2)
    desk.rejoin(new, directory())
    desk.take([], 7)
    with pytest.raises(Shortage):
        desk.hold(identity, "r", TEN, "served")
    new.close()


def test_a_hold_over_midnight_is_written_in_the_window_of_its_promise(disk: Disk) -> None:
    """The ledger must count a hold where the gateway's lease did: on the day of the promise, not of the record."""
    clock = ManualClock(2 * DAY_NS - 10**9)
    desk = Desk(PRICES, clock, disk)
    known = directory()
    daily = tuple(msgspec.structs.replace(budget, window="day") for budget in known.budgets)
    desk.learn(msgspec.structs.replace(known, budgets=daily))
    identity = desk.identify(KEY)
    for counter in identity.path.counters:
        counter.roll(clock.now_ns())
    desk.take([Lease(counter=c.id, window_ns=DAY_NS, allowance=100) for c in identity.path.counters], clock.now_ns())
    hold = desk.hold(identity, "r", TEN, "served")
    clock.advance(2)
    desk.trim(hold, TEN)
    [placed] = written(disk)
    assert isinstance(placed, PlaceHold)
    assert hold.windows == (DAY_NS, DAY_NS)
    assert window_start_ns("day", placed.at_ns) == DAY_NS


def blocked(disk: Disk) -> Desk:
    """A desk whose one account lives on one package, for the site ``home``."""
    desk = Desk(PRICES, ManualClock(7), disk)
    desk.learn(directory(grants=(package("acme", sites=("home",)),), overage="block"))
    desk.identify(KEY)
    lease(desk, n_acme=100, n_team=100, g_p=100)
    return desk


def test_a_package_of_one_site_is_enough_to_hold_before_the_site_is_known(disk: Disk) -> None:
    """An account with nothing else can be promised what any of the sites that may serve it would take."""
    desk = blocked(disk)
    hold = desk.hold(desk.identify(KEY), "r", TEN, "served", ("away", "home"))
    desk.trim(hold, TEN, "home")
    [placed] = written(disk)
    assert isinstance(placed, PlaceHold)
    assert (placed.parts, placed.nano) == ((Burn(grant="p", ustu=10),), 0)


def test_a_package_does_not_pay_at_a_site_that_is_not_its_own(disk: Disk) -> None:
    """Once another site is chosen the promise is made anew there, and this account has nothing for it."""
    desk = blocked(disk)
    hold = desk.hold(desk.identify(KEY), "r", TEN, "served", ("away", "home"))
    with pytest.raises(BudgetSpent):
        desk.trim(hold, TEN, "away")
    assert hold.amount == Amount(ustu=0, nano=0)
    assert [counter.held for counter in desk.counters()] == [0, 0, 0]
    assert written(disk) == []


@pytest.mark.parametrize(("covered", "leased"), [(1_000, 0), (1_000, 500), (40, 50), (40, 500)])
async def test_where_the_package_does_not_pay_the_whole_price_is_held_in_money(
    disk: Disk, covered: int, leased: int
) -> None:
    """The package covered the promise, all of it or a part; at the chosen site it does not. The money is leased if it
    has to be, and all of it is held and written: not what the package left, and not the nothing that a first attempt
    without enough leases leaves.
    """

    async def ask(wanted: dict[str, int], returned: dict[str, int]) -> Sequence[Lease]:
        return [Lease(counter=counter, window_ns=0, allowance=leased + need) for counter, need in wanted.items()]

    desk = Desk(PRICES, ManualClock(7), disk, ask)
    desk.learn(directory(grants=(package("acme", sites=("home",), size=covered),)))
    identity = desk.identify(KEY)
    lease(desk, n_acme=leased, n_team=leased, g_p=covered)
    for purse in identity.path.grants:
        purse.counter.dry_ns = 8  # the ledger has no more of it
    options = [offer("r1", site="home"), offer("r2", site="away")]
    hold = hold_worst(desk, identity, REQUEST, options)
    assert hold.amount == Amount(ustu=90, nano=max(0, 90 - covered))
    chosen = Candidate(replica="r2", site="away", model="m", terms_nano={}, total_nano=0)
    await _write(cast(House, SimpleNamespace(desk=desk)), hold, REQUEST, options, Decision(chosen=chosen))
    [placed] = written(disk)
    assert isinstance(placed, PlaceHold)
    assert (placed.ustu, placed.nano, placed.parts) == (90, 90, ())
    assert [counter.held for counter in desk.counters()] == [90, 90, 0]
