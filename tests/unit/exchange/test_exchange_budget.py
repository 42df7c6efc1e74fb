from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import NamedTuple

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from tokenworks.core.errors import BudgetSpent
from tokenworks.core.words import Amount
from tokenworks.exchange.budget import BudgetTree, Path
from tokenworks.exchange.words import Budget


class Limits(NamedTuple):
    """One budget of a drawn tree. ``parent`` picks an earlier budget, modulo; the first is the root."""

    parent: int
    ustu: int | None
    nano: int | None
    spent_permille: int


class Want(NamedTuple):
    """One request: it holds, gives a part back, and charges some of the rest."""

    leaf: int
    ustu: int
    nano: int
    trim_permille: int
    charge_permille: int


nodes = st.lists(
    st.builds(
        Limits,
        st.integers(0, 9),
        st.none() | st.integers(0, 100),
        st.none() | st.integers(0, 100),
        st.integers(0, 1_000),
    ),
    min_size=1,
    max_size=7,
)
permille = st.integers(0, 1_000)
wants = st.lists(
    st.builds(Want, st.integers(0, 9), st.integers(0, 60), st.integers(0, 60), permille, permille), max_size=12
)
Request = Callable[[Path, Want], Iterator[None]]


def plant(drawn: list[Limits]) -> BudgetTree:
    tree = BudgetTree()
    tree.learn(
        Budget(
            id=f"b{n}",
            account="a",
            parent=f"b{limits.parent % n}" if n else None,
            name="",
            limit_ustu=limits.ustu,
            limit_nano=limits.nano,
            spent_ustu=(limits.ustu or 0) * limits.spent_permille // 1_000,
            spent_nano=(limits.nano or 0) * limits.spent_permille // 1_000,
        )
        for n, limits in enumerate(drawn)
    )
    return tree


def part(amount: Amount, permille: int) -> Amount:
    return Amount(ustu=amount.ustu * permille // 1_000, nano=amount.nano * permille // 1_000)


def careful(path: Path, want: Want) -> Iterator[None]:
    """A request as the desk makes it; every ``yield`` is a moment at which others may run."""
    worst = Amount(ustu=want.ustu, nano=want.nano)
    try:
        BudgetTree.hold(path, worst, "USD")
    except BudgetSpent:
        return
    yield
    back = part(worst, want.trim_permille)
    BudgetTree.release(path, back)
    held = Amount(ustu=worst.ustu - back.ustu, nano=worst.nano - back.nano)
    yield
    BudgetTree.settle(path, held, part(held, want.charge_permille))


def naive(path: Path, want: Want) -> Iterator[None]:
    """Failure F1 of the field: look at the balance, let the engine work, then charge."""
    for node in path:
        if node.limit_ustu is not None and node.spent_ustu + want.ustu > node.limit_ustu:
            return
        if node.limit_nano is not None and node.spent_nano + want.nano > node.limit_nano:
            return
    yield
    for node in path:
        node.spent_ustu += want.ustu
        node.spent_nano += want.nano


def overspends(drawn: list[Limits], asked: list[Want], schedule: list[int], request: Request) -> bool:
    """Run requests interleaved as the schedule says. Did any budget ever have more spent and held than its limit?"""
    tree = plant(drawn)
    running = [request(tree.path(f"b{want.leaf % len(drawn)}"), want) for want in asked]
    turn = 0
    while running:
        chosen = running[(schedule[turn % len(schedule)] if schedule else 0) % len(running)]
        turn += 1
        try:
            next(chosen)
        except StopIteration:
            running.remove(chosen)
        for node in tree.nodes():
            assert min(node.spent_ustu, node.spent_nano, node.held_ustu, node.held_nano) >= 0
            if node.limit_ustu is not None and node.spent_ustu + node.held_ustu > node.limit_ustu:
                return True
            if node.limit_nano is not None and node.spent_nano + node.held_nano > node.limit_nano:
                return True
    if request is careful:
        assert all((node.held_ustu, node.held_nano) == (0, 0) for node in tree.nodes()), "a hold leaked"
    return False


RACE = ([Limits(0, 100, None, 0)], [Want(0, 60, 0, 0, 1_000), Want(0, 60, 0, 0, 1_000)], [0, 1])


@settings(deadline=None)
@given(nodes, wants, st.lists(st.integers(0, 11), max_size=40))
@example(*RACE)
def test_no_interleaving_overspends_any_budget(drawn: list[Limits], asked: list[Want], schedule: list[int]) -> None:
    """Spent plus held stays within every limit of every node at every step, and nothing stays held at the end."""
    assert not overspends(drawn, asked, schedule, careful)


def test_the_same_check_catches_check_then_charge() -> None:
    """Failure F1: two requests pass on one balance. The property above is worth something because this breaks it."""
    assert overspends(*RACE, naive)
    assert not overspends(RACE[0], RACE[1][:1], RACE[2], naive)


def budget(name: str, parent: str | None, limit_nano: int | None, **figures: int) -> Budget:
    return Budget(id=name, account="a", parent=parent, name=name, limit_ustu=None, limit_nano=limit_nano, **figures)


def test_a_refused_hold_names_the_budget_and_holds_nothing() -> None:
    """The parent is short: the message says which budget and how much is left, and the leaf is not touched."""
    tree = BudgetTree()
    tree.learn([budget("team", None, 10, spent_nano=4, held_nano=1), budget("agent", "team", 100)])
    path = tree.path("agent")
    with pytest.raises(BudgetSpent, match=r"'team' has 0\.000000005 USD left, .* up to 0\.000000006 USD"):
        tree.hold(path, Amount(ustu=0, nano=6), "USD")
    assert [(node.id, node.held_nano) for node in path] == [("agent", 0), ("team", 1)]
    tree.hold(path, Amount(ustu=10**9, nano=5), "USD")
    assert [node.held_nano for node in path] == [5, 6]


def test_standard_tokens_limit_as_money_does() -> None:
    """Each of the two books has its own limit, and the message speaks the unit of the one that is short."""
    tree = BudgetTree()
    tree.learn([Budget(id="b", account="a", parent=None, name="", limit_ustu=1_500_000, limit_nano=None)])
    with pytest.raises(BudgetSpent, match=r"'b' has 1\.5 STU left"):
        tree.hold(tree.path("b"), Amount(ustu=1_500_001, nano=0), "USD")
    tree.hold(tree.path("b"), Amount(ustu=1_500_000, nano=10**18), "USD")


def test_news_change_limits_and_keep_what_this_gateway_counted() -> None:
    """A directory that was sent before the last settlement must not undo it; a lowered limit only stops new holds."""
    tree = BudgetTree()
    tree.learn([budget("b", None, 100)])
    tree.hold(tree.path("b"), Amount(ustu=0, nano=80), "USD")
    tree.learn([budget("b", None, 50), budget("c", "b", None, spent_nano=7)])
    b, c = tree.path("b")[0], tree.path("c")[0]
    assert (b.held_nano, b.limit_nano, c.spent_nano) == (80, 50, 7)
    with pytest.raises(BudgetSpent, match=r"has 0\.00 USD left"):
        tree.hold(tree.path("c"), Amount(ustu=0, nano=1), "USD")


def test_a_charge_above_the_hold_is_a_mistake_of_the_caller() -> None:
    """It would break a limit, so it is refused and changes nothing."""
    tree = BudgetTree()
    tree.learn([budget("b", None, 100)])
    path = tree.path("b")
    tree.hold(path, Amount(ustu=5, nano=5), "USD")
    for charged in (Amount(ustu=6, nano=5), Amount(ustu=5, nano=6)):
        with pytest.raises(ValueError, match="more would be charged"):
            tree.settle(path, Amount(ustu=5, nano=5), charged)
    assert (path[0].held_nano, path[0].spent_nano) == (5, 0)


def test_an_unknown_leaf_has_no_path() -> None:
    """There is no silent unlimited budget."""
    with pytest.raises(KeyError):
        BudgetTree().path("b")
