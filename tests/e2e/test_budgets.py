"""Budgets on a real grid: limits, windows, mandates, carved budgets, and answers cut to what is affordable."""

from __future__ import annotations

import itertools
from typing import Any

import openai
import pytest
from tests.support.grid_process import MODEL, GridProcess, wait_until

HELLO: Any = [{"role": "user", "content": "Tell me a long story about a robot."}]
STORY: Any = [{"role": "user", "content": "Write a very long list of numbers from 1 to 2000, one a line."}]
SLICE_TOKENS = 1024
pytestmark = pytest.mark.engine
names = (f"bud-{number}" for number in itertools.count())


def opened(grid: GridProcess, *terms: str) -> tuple[str, openai.OpenAI]:
    """A new account and a client that spends from it."""
    account = next(names)
    assert grid.ask("account", "create", account, *terms)["status"] == "opened"
    return account, client_of(grid, account)


def client_of(grid: GridProcess, budget: str) -> openai.OpenAI:
    return grid.client(grid.ask("key", "create", budget)["key"], max_retries=0)


def ask(client: openai.OpenAI, tokens: int = 20) -> Any:
    """The raw answer of one request."""
    return client.chat.completions.with_raw_response.create(model=MODEL, messages=HELLO, max_tokens=tokens, seed=3)


def refused(client: openai.OpenAI, tokens: int = 20) -> str:
    """What a 402 says."""
    with pytest.raises(openai.APIStatusError) as caught:
        ask(client, tokens)
    assert caught.value.status_code == 402
    assert caught.value.code == "budget_exceeded"
    return caught.value.message


def budgets(grid: GridProcess, account: str) -> dict[str, dict[str, Any]]:
    [found] = [found for found in grid.ask("account", "list") if found["id"] == account]
    return {budget["id"]: budget for budget in found["budgets"]}


def check_books(grid: GridProcess) -> None:
    books = grid.ask("books")
    assert books["closed"] is True, [check for check in books["checks"] if not check["ok"]]


def test_a_nested_budget_limits_itself_and_not_its_parent(grid: GridProcess) -> None:
    """The child is spent while the account goes on; what the child spent counts above it too."""
    account, parent = opened(grid, "--limit", "1 USD")
    child = f"{account}-team"
    assert grid.ask("budget", "set", child, "--parent", account, "--limit", "0.00001 USD")["status"] == "made"
    client = client_of(grid, child)
    message = ""
    for _ in range(20):
        try:
            ask(client)
        except openai.APIStatusError as error:
            message = error.message
            break
    assert child in message
    ask(parent)
    found = budgets(grid, account)
    assert 0 < found[child]["spent_nano"] <= 10_000
    assert found[account]["spent_nano"] > found[child]["spent_nano"]
    check_books(grid)


def test_a_limit_of_a_day(grid: GridProcess) -> None:
    """What is spent today counts in the window, and the limit refuses like any other."""
    account, client = opened(grid, "--limit", "0.00001 USD", "--window", "day")
    answers = 0
    while served(client, 20):
        answers += 1
        assert answers < 20
    assert answers > 0
    assert "left" in refused(client)
    [found] = budgets(grid, account).values()
    assert 0 < found["window_spent_nano"] == found["spent_nano"] <= 10_000
    check_books(grid)


def test_a_mandate_ends(grid: GridProcess) -> None:
    """A budget for a time serves until it is over; then the refusal names the mandate."""
    account, _ = opened(grid)
    agent = f"{account}-agent"
    grid.ask("budget", "set", agent, "--parent", account, "--limit", "1 USD", "--expires-in", "6 s")
    client = client_of(grid, agent)
    ask(client, 3)
    wait_until(lambda: not served(client, 1), 30, "the mandate to end")
    assert f"the mandate '{agent}'" in refused(client)
    check_books(grid)


def test_a_closed_budget_refuses(grid: GridProcess) -> None:
    """Closing takes effect at the gateway by the time the command returns, and can be repeated."""
    account, parent = opened(grid)
    child = f"{account}-old"
    grid.ask("budget", "set", child, "--parent", account)
    client = client_of(grid, child)
    ask(client, 3)
    assert grid.ask("budget", "close", child)["status"] == "closed"
    assert grid.ask("budget", "close", child)["status"] == "already_closed"
    assert child in refused(client)
    ask(parent, 3)
    check_books(grid)


def test_a_carved_budget_is_there_whatever_the_parent_spends(grid: GridProcess) -> None:
    """Carving leaves the parent with the rest only; closing gives back what was not spent."""
    account, parent = opened(grid, "--limit", "0.00002 USD", "--no-clamp")
    child = f"{account}-own"
    grid.ask("budget", "set", child, "--parent", account, "--limit", "0.000019 USD", "--carved")
    assert account in refused(parent)
    client = client_of(grid, child)
    ask(client)
    assert 0 < budgets(grid, account)[child]["spent_nano"] < 19_000
    grid.ask("budget", "close", child)
    wait_until(lambda: served(parent), 20, "the carved rest to return")
    assert budgets(grid, account)[account]["spent_nano"] <= 20_000
    check_books(grid)


def served(client: openai.OpenAI, tokens: int = 3) -> bool:
    try:
        ask(client, tokens)
    except openai.APIStatusError:
        return False
    return True


@pytest.mark.parametrize("stream", [False, True])
def test_max_tokens_is_cut_to_what_is_affordable(grid: GridProcess, stream: bool) -> None:
    """A budget for about forty tokens answers with at most as many as the header says, and is not overspent."""
    account, client = opened(grid, "--limit", "0.000007 USD")
    options: dict[str, Any] = {"model": MODEL, "messages": HELLO, "max_tokens": 500, "seed": 3, "stream": stream}
    raw: Any = client.chat.completions.with_raw_response.create(**options)
    allowed = int(raw.headers["x-tokenworks-max-tokens"])
    assert 16 <= allowed <= 80
    answer = raw.parse()
    tokens = len([c for c in answer if c.choices[0].delta.content]) if stream else answer.usage.completion_tokens
    assert 0 < tokens <= allowed
    assert budgets(grid, account)[account]["spent_nano"] <= 7_000
    check_books(grid)


def test_an_account_that_does_not_clamp_is_refused(grid: GridProcess) -> None:
    """The same request gets 402 there; a smaller one passes whole and says nothing of a cut."""
    _, client = opened(grid, "--limit", "0.000007 USD", "--no-clamp")
    assert "left" in refused(client, 500)
    assert "x-tokenworks-max-tokens" not in ask(client, 16).headers


def test_a_raised_limit_takes_effect(grid: GridProcess) -> None:
    """Spent, refused, raised, served: without a restart and without a new key."""
    account, client = opened(grid, "--limit", "0.000001 USD")
    assert account in refused(client)
    assert grid.ask("budget", "set", account, "--limit", "1 USD")["status"] == "changed"
    assert "x-tokenworks-max-tokens" not in ask(client).headers
    assert budgets(grid, account)[account]["limit_nano"] == 10**9
    check_books(grid)


def test_a_long_stream_extends_its_hold(grid: GridProcess) -> None:
    """A stream holds its first slice only and more as it grows: beyond a slice the receipt shows a larger hold."""
    _, client = opened(grid, "--limit", "1 USD")
    first = long = 0
    for seed in range(3):
        stream = client.chat.completions.create(
            model=MODEL,
            messages=STORY,
            max_tokens=1100 if first else 8,
            temperature=1.3 if first else 0,
            seed=seed,
            stream=True,
            stream_options={"include_usage": True},
        )
        *_, last = stream
        assert last.model_extra is not None
        assert last.usage is not None
        _, receipt = grid.get(f"/v1/receipts/{last.model_extra['tokenworks']['receipt']}", client.api_key)
        [exchange] = [line for line in receipt["lines"] if line["layer"] == "exchange"]
        if not first:
            # The same input with eight tokens of output: what a hold of one whole slice would be.
            first = exchange["held_ustu"] + (SLICE_TOKENS - 8) * 80_000
        elif last.usage.completion_tokens > 1000:
            long = exchange["held_ustu"]
            assert receipt["ustu"] <= long
            break
        else:
            assert exchange["held_ustu"] >= first
    assert long == 0 or long > first
    check_books(grid)
