"""The official ``openai`` SDK, unchanged, against a real grid with the real engine: every promised feature."""

from __future__ import annotations

import json
import time
from typing import Any

import openai
import pytest
from tests.support.grid_process import MODEL, GridProcess, wait_until

HELLO: Any = [{"role": "user", "content": "Say hello."}]
pytestmark = pytest.mark.engine


def _cost(answer: Any) -> dict[str, Any]:
    found: dict[str, Any] = answer.model_extra["tokenworks"]
    return found


def test_chat_returns_text_usage_and_a_receipt(grid: GridProcess) -> None:
    """A plain answer has the SDK's shape, the engine's usage, and a receipt that can be fetched with the same key."""
    raw = grid.client().chat.completions.with_raw_response.create(model=MODEL, messages=HELLO, max_tokens=12)
    answer = raw.parse()
    assert answer.choices[0].message.content
    assert answer.usage is not None
    assert 0 < answer.usage.completion_tokens <= 12
    receipt_id = raw.headers["x-tokenworks-receipt"]
    assert _cost(answer)["receipt"] == receipt_id
    status, receipt = grid.get(f"/v1/receipts/{receipt_id}", grid.keys.key)
    assert status == 200
    assert receipt["id"] == receipt_id
    usage = receipt["usage"]
    assert usage["output"] == answer.usage.completion_tokens
    assert usage.get("input", 0) + usage.get("cached_input", 0) == answer.usage.prompt_tokens
    assert [line["layer"] for line in receipt["lines"]] == [
        "power",
        "site",
        "device",
        "engine",
        "exchange",
        "brain",
        "agents",
    ]
    assert all(line["provenance"] for line in receipt["lines"])


def test_stream_carries_the_same_text_and_hides_usage_that_was_not_asked_for(grid: GridProcess) -> None:
    """A stream with a fixed seed equals the whole answer; no usage chunk appears, as with the original API."""
    options: dict[str, Any] = {"model": MODEL, "messages": HELLO, "max_tokens": 16, "seed": 5, "temperature": 0}
    whole = grid.client().chat.completions.create(**options)
    chunks = list(grid.client().chat.completions.create(stream=True, **options))
    text = "".join(chunk.choices[0].delta.content or "" for chunk in chunks)
    assert text == whole.choices[0].message.content
    assert all(chunk.usage is None and chunk.choices for chunk in chunks)
    assert chunks[-1].choices[0].finish_reason in ("stop", "length")


def test_stream_usage_chunk_carries_the_tokenworks_object(grid: GridProcess) -> None:
    """With include_usage the last chunk has usage and the cost of exactly this answer."""
    chunks = list(
        grid.client().chat.completions.create(
            model=MODEL, messages=HELLO, max_tokens=8, stream=True, stream_options={"include_usage": True}
        )
    )
    last = chunks[-1]
    assert last.choices == []
    assert last.usage is not None
    cost = _cost(last)
    assert cost["ustu"] > 0
    assert cost["price"].endswith(" USD")
    assert cost["energy_mj"] > 0
    assert cost["carbon_ug"] > 0
    assert cost["energy_provenance"] == "modelled"
    _, receipt = grid.get(f"/v1/receipts/{cost['receipt']}", grid.keys.key)
    assert receipt["price_nano"] == cost["price_nano"]


def test_text_completions_stream_and_not(grid: GridProcess) -> None:
    """The older completions endpoint works both ways."""
    options: dict[str, Any] = {"model": MODEL, "prompt": "Once upon a time", "max_tokens": 8, "temperature": 0}
    whole = grid.client().completions.create(**options)
    text = "".join(chunk.choices[0].text for chunk in grid.client().completions.create(stream=True, **options))
    assert whole.choices[0].text == text
    assert whole.usage is not None


def test_seed_and_stop(grid: GridProcess) -> None:
    """A seed makes sampling repeatable; a stop word ends the answer before it."""
    options: dict[str, Any] = {"model": MODEL, "messages": HELLO, "max_tokens": 20, "seed": 7, "temperature": 1.0}
    first, second = (grid.client().chat.completions.create(**options) for _ in range(2))
    text = first.choices[0].message.content
    assert text
    assert second.choices[0].message.content == text
    word = text.split()[-1]
    stopped = grid.client().chat.completions.create(stop=[word], **options)
    assert word not in (stopped.choices[0].message.content or "")
    assert stopped.choices[0].finish_reason == "stop"


def test_logprobs(grid: GridProcess) -> None:
    """Log probabilities come through in the SDK's shape."""
    answer = grid.client().chat.completions.create(
        model=MODEL, messages=HELLO, max_tokens=3, logprobs=True, top_logprobs=2
    )
    logprobs = answer.choices[0].logprobs
    assert logprobs is not None
    assert logprobs.content
    assert logprobs.content[0].logprob <= 0
    assert len(logprobs.content[0].top_logprobs) == 2


def test_json_schema(grid: GridProcess) -> None:
    """A schema is enforced by the engine: even this small model answers with valid JSON of that shape."""
    schema: Any = {
        "type": "json_schema",
        "json_schema": {
            "name": "city",
            "strict": True,
            "schema": {
                "type": "object",
                "properties": {"city": {"enum": ["Paris", "Rome"]}},
                "required": ["city"],
                "additionalProperties": False,
            },
        },
    }
    answer = grid.client().chat.completions.create(
        model=MODEL, messages=[{"role": "user", "content": "A city?"}], max_tokens=40, response_format=schema
    )
    assert json.loads(answer.choices[0].message.content or "")["city"] in ("Paris", "Rome")


def test_tools_are_passed_through(grid: GridProcess) -> None:
    """A request with tools reaches the engine and is answered; that so small a model calls them is not promised."""
    tool: Any = {
        "type": "function",
        "function": {"name": "now", "description": "The time.", "parameters": {"type": "object", "properties": {}}},
    }
    answer = grid.client().chat.completions.create(model=MODEL, messages=HELLO, max_tokens=8, tools=[tool])
    assert answer.choices[0].message.content or answer.choices[0].message.tool_calls


def test_models_list(grid: GridProcess) -> None:
    """The list names what is served."""
    assert [model.id for model in grid.client().models.list()] == [MODEL]


async def test_async_client(grid: GridProcess) -> None:
    """The asynchronous client works like the other."""
    async with openai.AsyncOpenAI(base_url=f"{grid.run.url}/v1", api_key=grid.keys.key) as client:
        stream = await client.chat.completions.create(model=MODEL, messages=HELLO, max_tokens=5, stream=True)
        assert [chunk async for chunk in stream]


def test_hanging_up_frees_the_engine_and_is_billed_as_counted(grid: GridProcess) -> None:
    """A client that leaves in mid-stream stops the engine within a second, and pays for what was made until then."""
    client = grid.client()
    endless = {"ignore_eos": True}  # of llama.cpp: the answer must not end before the client leaves
    stream = client.chat.completions.create(
        model=MODEL, messages=HELLO, max_tokens=1500, stream=True, temperature=1.5, extra_body=endless
    )
    receipt_id = stream.response.headers["x-tokenworks-receipt"]
    for number, _ in enumerate(stream):
        if number == 5:
            break
    stream.close()
    left = time.monotonic()
    wait_until(lambda: grid.ask("status")["replicas"][0]["running"] == 0, 5, "the engine to be free")
    took_s = time.monotonic() - left
    wait_until(lambda: grid.get(f"/v1/receipts/{receipt_id}", grid.keys.key)[0] == 200, 5, "the receipt")
    receipt = grid.ask("receipt", "show", receipt_id)
    agents = receipt["lines"][-1]
    assert agents["ending"] == "client_gone"
    assert receipt["usage"]["certainty"] == "counted"
    assert 5 <= receipt["usage"]["output"] < 1000
    assert receipt["usage"]["input"] > 0
    assert receipt["price_nano"] > 0
    # The engine's own clock, not this test's: it worked at most a second longer than the client listened.
    listened_us = agents["ttft_us"]
    assert agents["total_us"] < listened_us + 1_000_000 * (took_s + 4)


def test_energy_record_becomes_final_and_the_books_close(grid: GridProcess) -> None:
    """When its interval closes, the receipt's energy is a record and the three books balance."""
    answer = grid.client().chat.completions.create(model=MODEL, messages=HELLO, max_tokens=8)
    receipt_id = _cost(answer)["receipt"]
    wait_until(
        lambda: grid.get(f"/v1/receipts/{receipt_id}", grid.keys.key)[1]["status"] == "final",
        20,
        "a final energy record",
    )
    report = grid.ask("books")
    assert report["closed"]
    energy = report["books"]["energy"]["accounts"]
    assert energy["meter/here"] == -sum(amount for account, amount in energy.items() if account != "meter/here")
    cake = grid.ask("cake")
    assert cake["tokens"] > 0
    assert cake["tokens_per_kwh"] > 0
    assert sum(part["mj"] for part in cake["layers"].values()) == cake["meter_mj"]


def test_owner_and_operator_see_different_receipts(grid: GridProcess) -> None:
    """Cost and the router's terms are the operator's; another account cannot see the receipt at all."""
    answer = grid.client().chat.completions.create(model=MODEL, messages=HELLO, max_tokens=4)
    path = f"/v1/receipts/{_cost(answer)['receipt']}"
    owner = grid.get(path, grid.keys.key)[1]
    operator = grid.get(path, grid.keys.admin_key)[1]
    assert "money_nano" not in owner["lines"][0]
    assert "money_nano" in operator["lines"][0]
    assert "chosen" not in owner["lines"][5]
    assert operator["lines"][5]["chosen"]["terms_nano"]["energy"] > 0
    grid.ask("account", "create", "stranger", "--limit", "1 USD")
    stranger = grid.ask("key", "create", "stranger")["key"]
    assert grid.get(path, stranger)[0] == 404
    assert grid.get(path)[0] == 401
