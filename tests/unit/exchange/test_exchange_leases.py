from __future__ import annotations

import msgspec
from hypothesis import example, given, settings
from hypothesis import strategies as st
from tests.support import exchange as support

from tokenworks.core.errors import BudgetSpent
from tokenworks.core.units import NS_PER_S
from tokenworks.core.words import Amount
from tokenworks.exchange import budget
from tokenworks.exchange.budget import BudgetTree, Counter, Promise, Shortage, burns
from tokenworks.exchange.calendar import window_start_ns
from tokenworks.exchange.ledger import apply, as_booked
from tokenworks.exchange.state import Source, State
from tokenworks.exchange.words import (
    Budget,
    Burn,
    EndEpoch,
    GiveLease,
    Grant,
    Lease,
    PlaceHold,
    SellGrant,
    SetBudget,
    Settle,
    Settlement,
    Void,
)

DAY_NS = 86_400 * NS_PER_S
BUDGETS = (
    Budget("root", "a", None, "", limit_ustu=300, limit_nano=200, window="day"),
    Budget("soft", "a", "root", "", limit_ustu=None, limit_nano=90),
    Budget("month", "a", "soft", "", limit_ustu=120, limit_nano=None, window="month"),
    Budget("carved", "a", "root", "", limit_ustu=60, limit_nano=50, carved=True),
    Budget("below", "a", "carved", "", limit_ustu=30, limit_nano=None),
)
LEAVES = tuple(each.id for each in BUDGETS)


def package(name: str, size: int, **terms: object) -> Grant:
    plain = Grant(name, "a", "p", size, price_nano=7, created_ns=0, effective_ns=0, expires_ns=None)
    return msgspec.structs.replace(plain, **terms)


GRANTS = (package("p", 40), package("q", 25, priority=1, models=("m",)), package("r", 30, expires_ns=21 * DAY_NS))


def settlement(hold: PlaceHold, ustu: int, nano: int, burned: tuple[Burn, ...], at_ns: int) -> Settlement:
    figures = {"ustu": ustu, "nano": nano, "list_nano": nano, "held_ustu": hold.ustu, "held_nano": hold.nano}
    return support.settlement(hold.receipt, budget=hold.budget, **figures, burned=burned, at_ns=at_ns)


class Gateway:
    """A gateway's memory: its tree, and its open requests with the holds that its journal has."""

    def __init__(self, number: int, epoch: int) -> None:
        self.source: Source = (f"g{number}", epoch)
        self.tree = BudgetTree()
        self.tree.learn(BUDGETS, GRANTS, [])
        for leaf in LEAVES:
            self.tree.path(leaf)
        self.open: list[tuple[Promise, PlaceHold]] = []


class World:
    """Gateways and one ledger. ``naive`` ledgers forget what they gave: every gateway is told the whole rest."""

    def __init__(self, gateways: int, naive: bool = False) -> None:
        self.state, self.naive = State(), naive
        apply(self.state, support.opening("a"))
        for each in BUDGETS:
            apply(self.state, SetBudget(budget=each))
        for grant in GRANTS:
            apply(self.state, SellGrant(grant=grant))
        self.gateways = [Gateway(number, 1) for number in range(gateways)]
        self.receipts, self.now_ns = 0, 20 * DAY_NS
        self.charged: list[tuple[PlaceHold, int, int]] = []
        self.ghosts: list[tuple[Source, PlaceHold]] = []

    def give(self, gateway: Gateway, counter: Counter, need: int) -> None:
        """As the ledger's service gives: what a request needs, as far as it is free."""
        counter.roll(self.now_ns)
        old = self.state.leases.get(gateway.source, {}).get(counter.id)
        before = old.allowance if old is not None and old.window_ns == counter.window_ns else 0
        free = self.state.free(counter.id, self.now_ns) or 0
        more = need if self.naive else max(0, min(free, need))
        lease = Lease(counter=counter.id, window_ns=counter.window_ns, allowance=before + more)
        if not self.naive:
            apply(self.state, self.command(gateway, lease))
        counter.take(lease)

    def command(self, gateway: Gateway, lease: Lease) -> GiveLease:
        writer, epoch = gateway.source
        return GiveLease(writer=writer, epoch=epoch, leases=(lease,), at_ns=self.now_ns)

    def hold(self, gateway: Gateway, leaf: str, amount: Amount, model: str) -> None:
        path = gateway.tree.path(leaf)
        for purse in path.grants:
            if purse.fits(model, (), self.now_ns) and purse.counter.left < amount.ustu:
                self.give(gateway, purse.counter, amount.ustu - purse.counter.left)
            purse.counter.dry_ns = self.now_ns + 1  # more is not to be had now
        promise = Promise(path)
        for attempt in range(2):
            try:
                budget.hold(promise, amount, model, (), self.now_ns, "USD")
            except Shortage as short:
                if attempt:
                    return
                for counter, need in short.counters:
                    self.give(gateway, counter, need - counter.left)
            except BudgetSpent:
                return
            else:
                break
        self.receipts += 1
        placed = PlaceHold(
            receipt=f"r{self.receipts}",
            budget=leaf,
            ustu=promise.ustu,
            nano=promise.nano,
            at_ns=self.now_ns,
            parts=burns(promise.parts),
        )
        apply(self.state, placed, gateway.source)
        gateway.open.append((promise, placed))

    def settle(self, gateway: Gateway, number: int, permille: int) -> None:
        promise, placed = gateway.open.pop(number % len(gateway.open))
        ustu, nano = promise.ustu * permille // 1_000, promise.nano * permille // 1_000
        burned = budget.burn(promise, ustu)
        budget.settle(promise, ustu, nano, burned)
        words = tuple(Burn(grant=purse.grant.id, ustu=part) for purse, part in burned)
        apply(self.state, Settle(settlement=settlement(placed, ustu, nano, words, self.now_ns)), gateway.source)
        self.charged.append((placed, ustu, nano))

    def give_back(self, gateway: Gateway) -> None:
        for counter in gateway.tree.counters.values():
            old = self.state.leases.get(gateway.source, {}).get(counter.id)
            counter.roll(self.now_ns)
            if old is not None and old.window_ns == counter.window_ns and counter.left > 0:
                counter.allow(0)
                lease = Lease(counter=counter.id, window_ns=counter.window_ns, allowance=counter.allowance)
                apply(self.state, self.command(gateway, lease))

    def crash(self, number: int) -> None:
        """Its epoch ends: what it held is void, and comes late or never."""
        dead = self.gateways[number]
        for _, placed in dead.open:
            apply(self.state, Void(receipt=placed.receipt, reason="", at_ns=self.now_ns))
            self.ghosts.append((dead.source, placed))
        writer, epoch = dead.source
        apply(self.state, EndEpoch(writer=writer, epoch=epoch, reason="", at_ns=self.now_ns))
        self.gateways[number] = Gateway(number, epoch + 1)

    def haunt(self) -> None:
        """A settlement of a dead epoch arrives: it charges nobody."""
        source, placed = self.ghosts.pop()
        told = settlement(placed, placed.ustu, placed.nano, placed.parts, self.now_ns)
        apply(self.state, Settle(settlement=as_booked(self.state, told, source)), source)

    def overspent(self) -> list[str]:
        """Counters of which more was charged in a window than the limit, added up from the requests alone."""
        spent: dict[tuple[str, int], int] = {}
        for placed, ustu, nano in self.charged:
            for name in self.state.limited_path(placed.budget):
                window_ns = window_start_ns(self.state.budgets[name].window, placed.at_ns)
                for counter, amount in ((f"n:{name}", nano), (f"u:{name}", ustu)):
                    spent[counter, window_ns] = spent.get((counter, window_ns), 0) + amount
        limits = {f"n:{each.id}": each.limit_nano for each in BUDGETS}
        limits |= {f"u:{each.id}": each.limit_ustu for each in BUDGETS}
        limits["n:root"], limits["u:root"] = 150, 240  # less what was carved out
        found = [c for (c, _), amount in spent.items() if (limit := limits[c]) is not None and amount > limit]
        return found + [grant.id for grant in self.state.grants.values() if grant.used_ustu > grant.size_ustu]

    def check(self) -> None:
        """No step may leave a counter short: what is out and spent is within each limit, here and in each memory."""
        assert not self.overspent()
        for each in BUDGETS:
            for kind in "nu":
                free = self.state.free(f"{kind}:{each.id}", self.now_ns)
                assert free is None or free >= 0
        for gateway in self.gateways:
            leases = self.state.leases.get(gateway.source, {})
            for counter in gateway.tree.counters.values():
                assert counter.left >= 0
                lease = leases.get(counter.id)
                if lease is not None and lease.window_ns == counter.window_ns:
                    assert (counter.allowance, counter.used) == (lease.allowance, lease.used)
                else:
                    assert counter.allowance == counter.used == counter.held == 0


Step = tuple[str, int, int, int, int]
steps = st.lists(
    st.tuples(
        st.sampled_from(["hold", "hold", "hold", "settle", "settle", "return", "crash", "haunt", "wait"]),
        st.integers(0, 3),
        st.integers(0, 9),
        st.integers(0, 70),
        st.integers(0, 1_000),
    ),
    max_size=40,
)


def play(world: World, script: list[Step], check: bool = True) -> None:
    for word, who, which, amount, permille in script:
        gateway = world.gateways[who % len(world.gateways)]
        if word == "hold":
            model = "m" if which % 2 else "n"
            world.hold(gateway, LEAVES[which % 5], Amount(ustu=amount, nano=permille * 70 // 1_000), model)
        elif word == "settle" and gateway.open:
            world.settle(gateway, which, permille)
        elif word == "return":
            world.give_back(gateway)
        elif word == "crash":
            world.crash(who % len(world.gateways))
        elif word == "haunt" and world.ghosts:
            world.haunt()
        elif word == "wait":
            world.now_ns += amount * DAY_NS // 35
        if check:
            world.check()


@settings(deadline=None, max_examples=150)
@given(st.integers(1, 4), steps)
def test_gateways_that_share_a_ledger_never_overspend(gateways: int, script: list[Step]) -> None:
    """However holds, settlements, returns, crashes and midnights interleave, no limit of any node or grant breaks."""
    world = World(gateways)
    play(world, script)
    for gateway in world.gateways:
        while gateway.open:
            world.settle(gateway, 0, 1_000)
        world.check()
    for number in range(gateways):
        world.crash(number)
    assert world.state.leases == {}
    assert world.state.holds == {}
    assert all((tally.held_ustu, tally.held_nano) == (0, 0) for tally in world.state.tallies.values())
    for grant in GRANTS:
        over = grant.expires_ns is not None and world.now_ns >= grant.expires_ns
        left = grant.size_ustu - world.state.grants[grant.id].used_ustu
        assert world.state.free(f"g:{grant.id}", world.now_ns) == (0 if over else left)


TWO_AT_ONCE: list[Step] = [(word, who, 1, 0, 1_000) for who in (0, 1) for word in ("hold", "settle")]


def test_the_same_check_catches_a_ledger_that_forgets_what_it_gave() -> None:
    """Failure F5: each gateway with the whole budget in its memory spends it once for each gateway."""
    world = World(2, naive=True)
    play(world, TWO_AT_ONCE, check=False)
    assert world.overspent() == ["n:soft"]
    world = World(2)
    play(world, TWO_AT_ONCE)


@settings(deadline=None, max_examples=60)
@given(st.integers(2, 4), steps, st.permutations(range(4)))
@example(2, TWO_AT_ONCE, [3, 2, 1, 0])
def test_what_a_crash_returns_can_be_spent_by_others(gateways: int, script: list[Step], order: list[int]) -> None:
    """After every epoch has ended nothing is out: the whole rest of a limit can be leased to one gateway."""
    world = World(gateways)
    play(world, script)
    for number in order:
        if number < gateways:
            world.crash(number)
    gateway = world.gateways[0]
    for counter in gateway.tree.counters.values():
        rest = world.state.free(counter.id, world.now_ns)
        assert rest is not None
        world.give(gateway, counter, 10**9)
        assert (counter.left, world.state.free(counter.id, world.now_ns)) == (rest, 0)
    world.check()


def test_what_a_dead_gateway_delivered_is_the_operators_loss() -> None:
    """A late settlement of an ended epoch is booked whole as a loss: customer, grants and limits do not feel it."""
    world = World(1)
    world.hold(world.gateways[0], "soft", Amount(ustu=200, nano=80), "m")
    _, placed = world.gateways[0].open[0]
    assert sum(part.ustu for part in placed.parts) == 95
    world.crash(0)
    before = {name: grant.used_ustu for name, grant in world.state.grants.items()}
    world.haunt()
    balances = world.state.balances
    assert (balances["stu", "loss/operator"], balances["money", "loss/operator"]) == (200, placed.nano)
    assert ("stu", "customer/a") not in balances
    assert {name: grant.used_ustu for name, grant in world.state.grants.items()} == before
    assert world.state.free("n:soft", world.now_ns) == 90
