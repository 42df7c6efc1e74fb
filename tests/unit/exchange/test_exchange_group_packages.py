"""Packages of one group: only requests of its budget and those below it burn them."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tokenworks.core.clock import ManualClock
from tokenworks.core.errors import LedgerRefused, NotFound
from tokenworks.exchange import offices
from tokenworks.exchange.budget import BudgetTree
from tokenworks.exchange.service import LedgerService
from tokenworks.exchange.words import Budget, Grant

CLOCK = ManualClock()


@pytest.fixture
def service(tmp_path: Path) -> Iterator[LedgerService]:
    made = LedgerService(tmp_path, CLOCK)
    ask(made, "account_create", account="acme")
    ask(made, "account_create", account="other")
    ask(made, "budget_set", budget="team", parent="acme")
    ask(made, "budget_set", budget="agent", parent="team")
    for code, size in (("small", 10), ("large", 100)):
        terms = {"code": code, "name": code, "size_ustu": size, "price_nano": 10**9, "validity_ns": None}
        ask(made, "package_define", package=terms)
    yield made
    made.close()


def ask(service: LedgerService, method: str, **params: Any) -> Any:
    return offices.answer(service, method, params)


def for_leaf(service: LedgerService, leaf: str) -> list[str]:
    tree, told = BudgetTree(), service.directory()
    tree.learn(told.budgets, told.grants, ())
    return [purse.grant.id for purse in tree.path(leaf).grants]


def test_a_groups_package_is_only_the_groups(service: LedgerService) -> None:
    """Sold to the team: the team and its agents have it, the rest of the account has not; an upgrade stays there."""
    ask(service, "grant_sell", account="acme", package="small", grant="all")
    ask(service, "grant_sell", account="acme", package="small", grant="teams", budget="team")
    assert for_leaf(service, "acme") == ["all"]
    assert for_leaf(service, "team") == for_leaf(service, "agent") == ["all", "teams"]
    assert for_leaf(service, "other") == []
    new = ask(service, "grant_upgrade", grant="teams", package="large")["grant"]
    assert for_leaf(service, "agent") == ["all", new]
    (acme,) = [account for account in ask(service, "accounts") if account["id"] == "acme"]
    assert {grant["id"]: grant["budget"] for grant in acme["grants"]}[new] == "team"


def test_a_package_is_not_sold_to_what_cannot_use_it(service: LedgerService) -> None:
    """Another account's budget, none at all, a closed one; and the same sale again is the same sale."""
    with pytest.raises(LedgerRefused, match="another account"):
        ask(service, "grant_sell", account="other", package="small", budget="team")
    with pytest.raises(NotFound, match="teem"):
        ask(service, "grant_sell", account="acme", package="small", budget="teem")
    ask(service, "grant_sell", account="acme", package="small", grant="g", budget="team")
    ask(service, "budget_close", budget="team")
    again = ask(service, "grant_sell", account="acme", package="small", grant="g", budget="acme")
    assert again["status"] == "already_sold"
    with pytest.raises(LedgerRefused, match="closed"):
        ask(service, "grant_sell", account="acme", package="small", budget="team")


def test_it_is_still_the_groups_after_a_restart(service: LedgerService) -> None:
    """The store keeps the whole grant."""
    ask(service, "grant_sell", account="acme", package="small", grant="g", budget="agent")
    assert service.store.load().grants["g"].budget == "agent"


@given(st.lists(st.integers(0, 8), min_size=1, max_size=8), st.lists(st.integers(-1, 8), max_size=6))
def test_a_leaf_has_exactly_the_grants_of_its_ancestors(parents: list[int], places: list[int]) -> None:
    """Against a walk up a random tree: the whole account's, its own, and those of every budget above it."""
    above = {str(n): None if n == 0 else str(min(parent, n - 1)) for n, parent in enumerate(parents)}
    budgets = [Budget(n, "a", parent, "", limit_ustu=None, limit_nano=None) for n, parent in above.items()]
    spots = ["" if place < 0 or str(place) not in above else str(place) for place in places]
    grants = [Grant(f"g{i}", "a", "p", 1, 0, 0, 0, None, budget=spot) for i, spot in enumerate(spots)]
    tree = BudgetTree()
    tree.learn(budgets, grants, ())
    for leaf in above:
        ancestors, node = {"", leaf}, above[leaf]
        while node is not None:
            ancestors.add(node)
            node = above[node]
        wanted = {grant.id for grant in grants if grant.budget in ancestors}
        assert {purse.grant.id for purse in tree.path(leaf).grants} == wanted
