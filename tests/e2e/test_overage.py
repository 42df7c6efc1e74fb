"""Overage rules and packages of groups on a real grid. (tests/e2e/test_overage.py)"""

from __future__ import annotations

import pytest
from tests.e2e.test_packages import HELLO, check_books, cost, define, grants, opened
from tests.support.grid_process import MODEL, GridProcess

pytestmark = pytest.mark.engine


def test_the_slow_lane_is_told_and_is_on_the_receipt(grid: GridProcess) -> None:
    """Without a package it is slow, in a header and on the receipt; with one it is served like everybody."""
    client = opened(grid, "over-slow", "--overage", "slow")
    raw = client.chat.completions.with_raw_response.create(model=MODEL, messages=HELLO, max_tokens=5)
    assert raw.headers["x-tokenworks-lane"] == "slow"
    told = raw.parse().model_extra
    assert told is not None
    _, receipt = grid.get(f"/v1/receipts/{told['tokenworks']['receipt']}", client.api_key)
    assert receipt["lines"][-1]["lane"] == "slow"
    define(grid, "over-pack", "1 MSTU")
    assert grid.ask("package", "sell", "over-slow", "over-pack")["status"] == "sold"
    again = client.chat.completions.with_raw_response.create(model=MODEL, messages=HELLO, max_tokens=5)
    assert "x-tokenworks-lane" not in again.headers
    check_books(grid)


def test_a_groups_package_pays_only_for_the_group(grid: GridProcess) -> None:
    """The team's key burns it; the account's own key pays money."""
    client = opened(grid, "over-group")
    grid.ask("budget", "set", "over-team", "--parent", "over-group")
    define(grid, "over-small", "1 MSTU")
    made = grid.ask("package", "sell", "over-group", "over-small", "--budget", "over-team", "--grant", "over-1")
    assert made["status"] == "sold"
    team = grid.client(grid.ask("key", "create", "over-team")["key"], max_retries=0)
    told = cost(team)
    assert told["price_nano"] == 0
    assert cost(client)["price_nano"] > 0
    assert grants(grid, "over-group")["over-1"]["left_ustu"] == 10**12 - told["ustu"]
    check_books(grid)


def test_price_show_asks_the_running_grid(grid: GridProcess) -> None:
    """And says so, with the versions that receipts cite."""
    page = grid.ask("price", "show", MODEL)
    assert page["prices_of"] == "the running grid"
    told = cost(opened(grid, "over-price"))
    receipt = grid.ask("receipt", "show", told["receipt"])
    exchange = next(line for line in receipt["lines"] if line["layer"] == "exchange")
    assert (exchange["rate_card"], exchange["price_book"]) == (page["rate_card"], page["price_book"])
