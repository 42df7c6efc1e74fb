from __future__ import annotations

from collections.abc import Callable, Iterator
from itertools import pairwise
from random import Random
from typing import NamedTuple

import msgspec
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from tokenworks.core.errors import BudgetSpent
from tokenworks.core.units import NS_PER_S
from tokenworks.core.words import Amount
from tokenworks.exchange import budget
from tokenworks.exchange.budget import BudgetTree, Counter, Path, Promise, Shortage, burn_order, burns
from tokenworks.exchange.words import Budget, Burn, Grant, Lease

DAY_NS = 86_400 * NS_PER_S


class Limits(NamedTuple):
    """One budget of a drawn tree, and how much of it is leased. ``parent`` picks an earlier budget, modulo."""

    parent: int
    ustu: int | None
    nano: int | None
    leased_permille: int


class Want(NamedTuple):
    """One request: it holds, gives a part back, and charges some of the rest."""

    leaf: int
    ustu: int
    nano: int
    trim_permille: int
    charge_permille: int


limits = st.builds(
    Limits, st.integers(0, 9), st.none() | st.integers(0, 100), st.none() | st.integers(0, 100), st.integers(0, 1_000)
)
nodes = st.lists(limits, min_size=1, max_size=7)
permille = st.integers(0, 1_000)
wants = st.lists(
    st.builds(Want, st.integers(0, 9), st.integers(0, 60), st.integers(0, 60), permille, permille), max_size=12
)
grant_sizes = st.lists(st.integers(1, 80), max_size=3)
Request = Callable[[Path, Want], Iterator[None]]


def lease(tree: BudgetTree, **allowances: int) -> None:
    """Give allowances of this moment's window: ``n_b=5`` is 5 nano of budget ``b``. Of a grant there is no more."""
    for name, allowance in allowances.items():
        counter = tree.counters[name.replace("_", ":", 1)]
        counter.dry_ns = 1 << 62
        counter.take(Lease(counter=counter.id, window_ns=counter.window_ns, allowance=allowance))


def node(name: str, parent: str | None = None, nano: int | None = None, ustu: int | None = None) -> Budget:
    return Budget(id=name, account="a", parent=parent, name=name, limit_ustu=ustu, limit_nano=nano)


def granted(name: str, size: int = 100) -> Grant:
    return Grant(
        id=name,
        account="a",
        package="p",
        size_ustu=size,
        price_nano=0,
        created_ns=0,
        effective_ns=0,
        expires_ns=None,
    )


def plant(drawn: list[Limits], grants: list[int]) -> BudgetTree:
    """A tree whose every counter has a lease; the leases are parts of the limits."""
    tree = BudgetTree()
    nodes = [node(f"b{n}", f"b{each.parent % n}" if n else None, each.nano, each.ustu) for n, each in enumerate(drawn)]
    tree.learn(nodes, [granted(f"p{n}", size) for n, size in enumerate(grants)], [])
    for n, each in enumerate(drawn):
        tree.path(f"b{n}")
        for kind, limit in (("n", each.nano), ("u", each.ustu)):
            if limit is not None:
                lease(tree, **{f"{kind}_b{n}": limit * each.leased_permille // 1_000})
    for n, size in enumerate(grants):
        lease(tree, **{f"g_p{n}": size})
    return tree


def hold(promise: Promise, ustu: int, nano: int, model: str = "m", site: str | None = None, at_ns: int = 1) -> None:
    budget.hold(promise, Amount(ustu=ustu, nano=nano), model, () if site is None else (site,), at_ns, "USD")


def part(amount: int, permille: int) -> int:
    return amount * permille // 1_000


def careful(path: Path, want: Want) -> Iterator[None]:
    """A request as the desk makes it; every ``yield`` is a moment at which others may run."""
    promise = Promise(path)
    try:
        hold(promise, want.ustu, want.nano)
    except BudgetSpent:
        return
    yield
    budget.settle(promise, 0, 0, ())
    try:
        hold(promise, part(want.ustu, want.trim_permille), part(want.nano, want.trim_permille))
    except BudgetSpent:
        return  # a grant covered it before, and no standard tokens are left for it to cover
    yield
    ustu = part(promise.ustu, want.charge_permille)
    budget.settle(promise, ustu, part(promise.nano, want.charge_permille), budget.burn(promise, ustu))


def naive(path: Path, want: Want) -> Iterator[None]:
    """Failure F1 of the field: look at the balance, let the engine work, then charge."""
    if any(counter.left < (want.nano if counter.money else want.ustu) for counter in path.counters):
        return
    yield
    for counter in path.counters:
        counter.left -= want.nano if counter.money else want.ustu


def overspends(
    drawn: list[Limits], grants: list[int], asked: list[Want], schedule: list[int], request: Request
) -> bool:
    """Run requests interleaved as the schedule says. Had any counter ever more used and held than its allowance?"""
    tree = plant(drawn, grants)
    running = [request(tree.path(f"b{want.leaf % len(drawn)}"), want) for want in asked]
    turn = 0
    while running:
        chosen = running[(schedule[turn % len(schedule)] if schedule else 0) % len(running)]
        turn += 1
        try:
            next(chosen)
        except StopIteration:
            running.remove(chosen)
        for counter in tree.counters.values():
            assert min(counter.used, counter.held) >= 0
            if counter.left < 0:
                return True
    if request is careful:
        assert not any(counter.held for counter in tree.counters.values()), "a hold leaked"
    return False


RACE: tuple[list[Limits], list[int], list[Want], list[int]] = (
    [Limits(0, 100, None, 1_000)],
    [],
    [Want(0, 60, 0, 1_000, 1_000)] * 2,
    [0, 1],
)


@settings(deadline=None)
@given(nodes, grant_sizes, wants, st.lists(st.integers(0, 11), max_size=40))
@example(*RACE)
def test_no_interleaving_overspends_any_counter(
    drawn: list[Limits], grants: list[int], asked: list[Want], schedule: list[int]
) -> None:
    """Used plus held stays within every allowance of every counter at every step, and nothing stays held at the end."""
    assert not overspends(drawn, grants, asked, schedule, careful)


def test_the_same_check_catches_check_then_charge() -> None:
    """Failure F1: two requests pass on one balance. The property above is worth something because this breaks it."""
    assert overspends(*RACE, naive)
    assert not overspends(RACE[0], [], RACE[2][:1], RACE[3], naive)


def tree_of(*budgets: Budget, grants: tuple[Grant, ...] = (), blocks: bool = False) -> BudgetTree:
    tree = BudgetTree()
    tree.learn(budgets, grants, ["a"] if blocks else [])
    for each in budgets:
        tree.path(each.id)
    return tree


def test_a_refused_hold_names_the_budget_and_holds_nothing() -> None:
    """The parent is short: the message says which budget and how much is left, and the leaf is not touched."""
    tree = tree_of(node("team", nano=10), node("agent", "team", nano=100))
    lease(tree, n_team=5, n_agent=100)
    promise = Promise(tree.path("agent"))
    with pytest.raises(Shortage, match=r"'team' has 0\.000000005 USD left, .* up to 0\.000000006 USD") as caught:
        hold(promise, 0, 6)
    assert [(counter.id, need) for counter, need in caught.value.counters] == [("n:team", 6)]
    assert [counter.held for counter in tree.counters.values()] == [0, 0]
    assert (promise.ustu, promise.nano, promise.parts) == (0, 0, [])
    hold(promise, 10**9, 5)
    assert [counter.held for counter in tree.counters.values()] == [5, 5]


def test_standard_tokens_limit_as_money_does() -> None:
    """Each of the two books has its own limit, and the message speaks the unit of the one that is short."""
    tree = tree_of(node("b", ustu=1_500_000))
    lease(tree, u_b=1_500_000)
    with pytest.raises(BudgetSpent, match=r"'b' has 1\.5 STU left"):
        hold(Promise(tree.path("b")), 1_500_001, 0)
    hold(Promise(tree.path("b")), 1_500_000, 10**18)


def test_news_change_limits_and_keep_what_this_gateway_counted() -> None:
    """A new directory neither forgets what is held nor gives an allowance: only the ledger's leases do."""
    tree = tree_of(node("b", nano=100))
    lease(tree, n_b=90)
    promise = Promise(tree.path("b"))
    hold(promise, 0, 80)
    tree.learn([node("b", nano=50), node("c", "b", nano=1_000)], [], [])
    b = tree.counters["n:b"]
    assert (b.held, b.allowance, tree.path("b").counters) == (80, 90, (b,))
    with pytest.raises(BudgetSpent, match=r"'c' has 0\.00 USD left"):
        hold(Promise(tree.path("c")), 0, 1)
    lease(tree, n_b=40, n_c=9)
    assert b.allowance == 80, "an allowance cannot fall below what is promised already"
    with pytest.raises(BudgetSpent, match=r"'b' has 0\.00 USD left"):
        hold(Promise(tree.path("c")), 0, 1)
    budget.settle(promise, 0, 30, ())
    hold(Promise(tree.path("c")), 0, 9)
    assert (b.used, b.held) == (30, 9)


def test_a_charge_above_the_hold_is_a_mistake_of_the_caller() -> None:
    """It would break a limit, so it is refused and changes nothing."""
    tree = tree_of(node("b", nano=100))
    lease(tree, n_b=100)
    promise = Promise(tree.path("b"))
    hold(promise, 5, 5)
    for ustu, nano in ((6, 5), (5, 6)):
        with pytest.raises(ValueError, match="more would be charged"):
            budget.settle(promise, ustu, nano, ())
    counter = tree.counters["n:b"]
    assert (counter.held, counter.used, promise.nano) == (5, 0, 5)


def test_an_unknown_leaf_has_no_path() -> None:
    """There is no silent unlimited budget."""
    with pytest.raises(KeyError):
        BudgetTree().path("b")


def test_a_carved_budget_is_held_on_its_own_limits_only() -> None:
    """Its parent gave the limit away when it was carved: a second count there would take it twice."""
    carved = msgspec.structs.replace(node("c", "b", nano=50, ustu=50), carved=True)
    tree = tree_of(node("b", nano=100), carved, node("d", "c", nano=20))
    assert [counter.id for counter in tree.path("d").counters] == ["n:d", "n:c", "u:c"]
    assert [each.id for each in tree.path("d").budgets] == ["d", "c", "b"]


# --- grants ----------------------------------------------------------------------------------------------------------

times = st.none() | st.integers(1, 3)
terms = st.builds(
    lambda priority, expires, promotional, effective, created: (priority, expires, promotional, effective, created),
    st.integers(0, 2),
    times,
    st.booleans(),
    st.integers(0, 2),
    st.integers(0, 2),
)


@given(st.lists(terms, max_size=6), st.randoms(use_true_random=False))
def test_burn_order_is_total_and_does_not_depend_on_who_came_first(
    drawn: list[tuple[int, int | None, bool, int, int]], random: Random
) -> None:
    """I10: any order of the same grants burns the same; each of its rules decides before the next."""
    grants = [
        msgspec.structs.replace(
            granted(f"p{n}"), priority=p, expires_ns=e, promotional=promotional, effective_ns=f, created_ns=c
        )
        for n, (p, e, promotional, f, c) in enumerate(drawn)
    ]
    found = burn_order(grants)
    shuffled = list(grants)
    random.shuffle(shuffled)
    assert burn_order(shuffled) == found
    for first, second in pairwise(found):
        end, other_end = (g.expires_ns if g.expires_ns is not None else 1 << 70 for g in (first, second))
        assert first.priority <= second.priority
        if first.priority == second.priority:
            assert end <= other_end
            if end == other_end:
                assert first.promotional >= second.promotional


def parts(promise: Promise) -> list[tuple[str, int]]:
    return [(burn.grant, burn.ustu) for burn in burns(promise.parts)]


def test_grants_cover_tokens_and_money_is_held_for_the_rest_rounded_up() -> None:
    """Half covered is half the price, a nano more at most; wholly covered is free; not covered is the whole price."""
    tree = tree_of(node("b", nano=100), grants=(granted("p", 10), granted("q", 5)))
    lease(tree, n_b=100, g_p=10, g_q=5)
    half = Promise(tree.path("b"))
    hold(half, 30, 31)
    assert (parts(half), half.nano) == ([("p", 10), ("q", 5)], 16)
    assert budget.burn(half, 12) == [(half.parts[0][0], 10), (half.parts[1][0], 2)]
    budget.settle(half, 12, 0, budget.burn(half, 12))
    counters = tree.counters
    assert [(counters[c].used, counters[c].held) for c in ("g:p", "g:q", "n:b")] == [(10, 0), (2, 0), (0, 0)]
    whole, none = Promise(tree.path("b")), Promise(tree.path("b"))
    hold(whole, 3, 31)
    hold(none, 3, 31)
    assert (parts(whole), whole.nano, parts(none), none.nano) == ([("q", 3)], 0, [], 31)


def test_a_grant_pays_only_for_its_models_and_sites_and_in_its_time() -> None:
    """A restricted grant is passed over by others; without a site only unrestricted ones fit; ends are exclusive."""
    grants = (
        msgspec.structs.replace(granted("model"), models=("m",), priority=1),
        msgspec.structs.replace(granted("site"), sites=("s",), priority=2),
        msgspec.structs.replace(granted("time"), effective_ns=10, expires_ns=20, priority=3),
        msgspec.structs.replace(granted("any"), priority=4),
    )
    tree = tree_of(node("b"), grants=grants)
    lease(tree, g_model=1, g_site=1, g_time=1, g_any=1)

    def taken(model: str, site: str | None, at_ns: int) -> list[str]:
        promise = Promise(tree.path("b"))
        hold(promise, 4, 0, model, site, at_ns)
        found = [name for name, _ in parts(promise)]
        budget.settle(promise, 0, 0, ())
        return found

    assert taken("m", None, 10) == ["model", "time", "any"]
    assert taken("m", "s", 19) == ["model", "site", "time", "any"]
    assert taken("n", "t", 20) == ["any"]
    assert taken("n", "s", 9) == ["site", "any"]


def test_an_account_that_lives_on_packages_never_pays_money() -> None:
    """A lease that is short may be refilled; without a package that fits there is nothing to ask for."""
    only = msgspec.structs.replace(granted("p"), models=("m",))
    tree = tree_of(node("b", nano=10**9), grants=(only,), blocks=True)
    lease(tree, n_b=10**9, g_p=5)
    promise = Promise(tree.path("b"))
    with pytest.raises(BudgetSpent, match="packages of 'a' lack") as dry:
        hold(promise, 6, 6)
    assert not isinstance(dry.value, Shortage)
    tree.counters["g:p"].dry_ns = 0
    with pytest.raises(Shortage, match="packages of 'a' lack") as caught:
        hold(promise, 6, 6)
    assert [counter.id for counter, _ in caught.value.counters] == ["g:p"]
    with pytest.raises(BudgetSpent) as refused:
        hold(promise, 1, 1, "other")
    assert not isinstance(refused.value, Shortage)
    assert not any(counter.held for counter in tree.counters.values())
    hold(promise, 5, 5)
    assert (parts(promise), promise.nano) == ([("p", 5)], 0)


def test_a_package_is_asked_for_before_money_is_spent() -> None:
    """A grant whose lease is short is a shortage also for who could pay; known to be dry, money pays the rest."""
    tree = tree_of(node("b", nano=100), grants=(granted("p"),))
    lease(tree, n_b=100)
    promise = Promise(tree.path("b"))
    with pytest.raises(Shortage) as caught:
        hold(promise, 10, 10)
    assert [(counter.id, need) for counter, need in caught.value.counters] == [("g:p", 10)]
    assert tree.counters["n:b"].held == 0
    tree.counters["g:p"].dry_ns = 2
    hold(promise, 10, 10, at_ns=1)
    assert (parts(promise), promise.nano) == ([], 10)


# --- time ------------------------------------------------------------------------------------------------------------


def test_a_mandate_ends_with_the_first_of_its_path() -> None:
    """The earliest end of any budget up to the root ends the leaf, whether it expired or was closed."""
    tree = tree_of(
        msgspec.structs.replace(node("b"), closed_ns=30),
        msgspec.structs.replace(node("c", "b"), expires_ns=20),
        node("d", "c"),
        node("e", "b"),
    )
    for leaf, end in (("b", 30), ("c", 20), ("d", 20), ("e", 30)):
        path = tree.path(leaf)
        budget.check_time(path, end - 1)
        with pytest.raises(BudgetSpent, match=f"'{leaf}' is over"):
            budget.check_time(path, end)


def test_a_new_window_voids_the_lease_of_the_old_one() -> None:
    """What was leased for yesterday cannot be spent today, and what is held of yesterday does not burden today."""
    tree = tree_of(msgspec.structs.replace(node("b", nano=100), window="day"))
    counter = tree.counters["n:b"]
    counter.roll(DAY_NS + 5)
    lease(tree, n_b=100)
    promise = Promise(tree.path("b"))
    hold(promise, 0, 60, at_ns=DAY_NS + 5)
    with pytest.raises(Shortage, match=r"has 0\.00 USD left"):
        hold(Promise(tree.path("b")), 0, 1, at_ns=2 * DAY_NS)
    assert (counter.window_ns, counter.ends_ns, counter.left) == (2 * DAY_NS, 3 * DAY_NS, 0)
    counter.take(Lease(counter="n:b", window_ns=DAY_NS, allowance=100))
    assert counter.left == 0, "a lease of yesterday came too late"
    lease(tree, n_b=10)
    hold(promise, 0, 5, at_ns=2 * DAY_NS)
    assert promise.nano == 65, "a stream goes on counting where it began"
    budget.settle(promise, 0, 65, ())
    assert (counter.used, counter.held, counter.left) == (0, 0, 10)


@given(st.lists(st.tuples(st.integers(0, 3), st.integers(0, 40), st.integers(0, 20)), max_size=12))
def test_a_counter_never_promises_more_than_its_windows_lease(steps: list[tuple[int, int, int]]) -> None:
    """However late leases and settlements come around midnight, what is left is never negative."""
    tree = tree_of(msgspec.structs.replace(node("b", nano=100), window="day"))
    counter: Counter = tree.counters["n:b"]
    now_ns, promises = DAY_NS, []
    for kind, amount, other in steps:
        if kind == 0:
            now_ns += amount * DAY_NS // 40
        elif kind == 1:
            counter.take(Lease(counter="n:b", window_ns=now_ns // DAY_NS * DAY_NS - other % 2 * DAY_NS, allowance=40))
        elif kind == 2:
            promise = Promise(tree.path("b"))
            try:
                hold(promise, 0, amount, at_ns=now_ns)
            except Shortage:
                continue
            promises.append(promise)
        elif promises:
            promise = promises.pop(other % len(promises))
            budget.settle(promise, 0, min(amount, promise.nano), ())
        assert counter.left >= 0
        assert min(counter.used, counter.held) >= 0
    open_now = sum(p.nano for p in promises if p.windows == (counter.window_ns,))
    assert counter.held == open_now


def test_burns_are_the_journals_words() -> None:
    """What a promise took of grants is written as it will be burned."""
    tree = tree_of(node("b"), grants=(granted("p"),))
    lease(tree, g_p=7)
    promise = Promise(tree.path("b"))
    hold(promise, 7, 0)
    assert burns(promise.parts) == (Burn(grant="p", ustu=7),)
