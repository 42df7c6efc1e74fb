"""Packages on a real grid: what was bought is used up first, and the books know what it was worth."""

from __future__ import annotations

from typing import Any

import openai
import pytest
from tests.support.grid_process import MODEL, GridProcess, wait_until

HELLO: Any = [{"role": "user", "content": "Say hello."}]
pytestmark = pytest.mark.engine


def opened(grid: GridProcess, account: str, *terms: str) -> openai.OpenAI:
    """A new account and a client that spends from it, without retries."""
    assert grid.ask("account", "create", account, *terms)["status"] == "opened"
    return grid.client(grid.ask("key", "create", account)["key"], max_retries=0)


def define(grid: GridProcess, code: str, size: str, price: str = "1 USD", *terms: str) -> None:
    made = grid.ask("package", "define", code, "--size", size, "--price", price, *terms)
    assert made["status"] == "defined"


def sell(grid: GridProcess, account: str, package: str, grant: str) -> None:
    assert grid.ask("package", "sell", account, package, "--grant", grant)["status"] == "sold"


def cost(client: openai.OpenAI, tokens: int = 5) -> dict[str, Any]:
    """One small request, and what its answer says that it cost."""
    answer = client.chat.completions.create(model=MODEL, messages=HELLO, max_tokens=tokens)
    assert answer.model_extra is not None
    found: dict[str, Any] = answer.model_extra["tokenworks"]
    return found


def status(client: openai.OpenAI) -> int:
    try:
        cost(client, 16)
    except openai.APIStatusError as error:
        return error.status_code
    return 200


def grants(grid: GridProcess, account: str) -> dict[str, dict[str, Any]]:
    return {grant["id"]: grant for grant in grid.ask("grant", "list", account)}


def spent_nano(grid: GridProcess, account: str) -> int:
    accounts = {found["id"]: found for found in grid.ask("account", "list")}
    spent: int = accounts[account]["budgets"][0]["spent_nano"]
    return spent


def check_books(grid: GridProcess) -> None:
    books = grid.ask("books")
    assert books["closed"] is True, [check for check in books["checks"] if not check["ok"]]


def test_a_package_pays_for_what_it_covers(grid: GridProcess) -> None:
    """Define, sell, use: the request costs no money, the grant has so much less left, and the books close."""
    client = opened(grid, "pack-use")
    define(grid, "pack-big", "1 MSTU", "9.90 USD", "--validity", "30 d", "--name", "Big")
    assert "pack-big" in {package["code"] for package in grid.ask("package", "list")}
    sell(grid, "pack-use", "pack-big", "pack-use-1")
    told = cost(client)
    assert told["ustu"] > 0
    assert told["price_nano"] == 0
    grant = grants(grid, "pack-use")["pack-use-1"]
    assert grant["size_ustu"] == 10**12
    assert grant["left_ustu"] == 10**12 - told["ustu"]
    assert "pack-big" in grid.cli("grant", "list", "pack-use").stdout
    status, receipt = grid.get(f"/v1/receipts/{told['receipt']}", client.api_key)
    assert (status, receipt["ustu"], receipt["price_nano"]) == (200, told["ustu"], 0)
    assert spent_nano(grid, "pack-use") == 0
    check_books(grid)


def test_a_retried_sale_is_one_sale(grid: GridProcess) -> None:
    """The same --grant id twice sells once, and the account owes one price."""
    opened(grid, "pack-twice")
    define(grid, "pack-retry", "1 kSTU", "2 USD")
    sell(grid, "pack-twice", "pack-retry", "pack-twice-1")
    again = grid.ask("package", "sell", "pack-twice", "pack-retry", "--grant", "pack-twice-1")
    assert again["status"] == "already_sold"
    assert [*grants(grid, "pack-twice")] == ["pack-twice-1"]
    assert grid.ask("books")["books"]["money"]["accounts"]["customer/pack-twice"] == 2 * 10**9
    check_books(grid)


def test_a_package_for_another_model_is_not_used(grid: GridProcess) -> None:
    """A restricted package covers only what it names: money pays, and nothing of the package is gone."""
    client = opened(grid, "pack-other")
    define(grid, "pack-elsewhere", "1 MSTU", "1 USD", "--models", "qwen3-8b")
    sell(grid, "pack-other", "pack-elsewhere", "pack-other-1")
    assert cost(client)["price_nano"] > 0
    assert grants(grid, "pack-other")["pack-other-1"]["left_ustu"] == 10**12
    check_books(grid)


def test_an_account_that_blocks_is_refused_when_its_packages_are_used_up(grid: GridProcess) -> None:
    """Without a package it gets 402; with one it is served until what is left is too little; never any money."""
    client = opened(grid, "pack-block", "--overage", "block")
    with pytest.raises(openai.APIStatusError) as caught:
        cost(client)
    assert caught.value.status_code == 402
    assert "pack-block" in caught.value.message
    define(grid, "pack-small", "6 STU")
    sell(grid, "pack-block", "pack-small", "pack-block-1")
    assert cost(client, 16)["price_nano"] == 0
    wait_until(lambda: status(client) == 402, 30, "the package to be used up")
    assert 0 <= grants(grid, "pack-block")["pack-block-1"]["left_ustu"] < 6_000_000
    assert spent_nano(grid, "pack-block") == 0
    check_books(grid)


def test_after_the_package_money_pays(grid: GridProcess) -> None:
    """An account that pays as it goes is served on: the package to its end, then money, one request perhaps both."""
    client = opened(grid, "pack-payg")
    define(grid, "pack-tiny", "3 STU")
    sell(grid, "pack-payg", "pack-tiny", "pack-payg-1")
    prices = [cost(client)["price_nano"] for _ in range(10)]
    assert prices[0] == 0
    assert prices[-1] > 0
    assert grants(grid, "pack-payg")["pack-payg-1"]["left_ustu"] == 0
    assert spent_nano(grid, "pack-payg") == sum(prices)
    check_books(grid)


def test_promotional_tokens_go_first(grid: GridProcess) -> None:
    """Among equals the gift is used before what was paid for, whichever was sold first."""
    client = opened(grid, "pack-gift")
    define(grid, "pack-paid", "1 MSTU")
    define(grid, "pack-free", "1 MSTU", "0 USD", "--promotional")
    sell(grid, "pack-gift", "pack-paid", "pack-gift-paid")
    sell(grid, "pack-gift", "pack-free", "pack-gift-free")
    told = cost(client)
    left = {name: grant["left_ustu"] for name, grant in grants(grid, "pack-gift").items()}
    assert left == {"pack-gift-paid": 10**12, "pack-gift-free": 10**12 - told["ustu"]}
    assert [*left] == ["pack-gift-free", "pack-gift-paid"], "listed in burn order"
    check_books(grid)


def test_refund_and_upgrade(grid: GridProcess) -> None:
    """What was not used is given back in money; an upgrade is that and a new sale. Both wait for leases to return."""
    client = opened(grid, "pack-back")
    define(grid, "pack-old", "1 kSTU", "10 USD")
    define(grid, "pack-new", "1 MSTU", "30 USD")
    sell(grid, "pack-back", "pack-old", "pack-back-1")
    told = cost(client)
    wait_until(lambda: grid.cli("grant", "refund", "pack-back-1").returncode == 0, 20, "the gateway to return leases")
    owed = grid.ask("books")["books"]["money"]["accounts"]["customer/pack-back"]
    assert owed == 10**10 * told["ustu"] // 10**9
    assert grid.cli("grant", "refund", "pack-back-1").returncode != 0
    sell(grid, "pack-back", "pack-old", "pack-back-2")
    made = grid.ask("grant", "upgrade", "pack-back-2", "pack-new")
    assert (made["status"], made["refund_nano"]) == ("upgraded", 10**10)
    assert grid.ask("books")["books"]["money"]["accounts"]["customer/pack-back"] == owed + 30 * 10**9
    assert cost(client)["price_nano"] == 0
    assert grants(grid, "pack-back")[made["grant"]]["left_ustu"] < 10**12
    check_books(grid)
