from __future__ import annotations

import json
from collections.abc import Callable
from decimal import Decimal
from itertools import pairwise
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tokenworks.core.errors import BadRequest
from tokenworks.core.units import NANO
from tokenworks.core.words import Usage
from tokenworks.exchange.exports.openai_usage import COST_GROUPS, USAGE_GROUPS, costs_page, encode, usage_page
from tokenworks.exchange.exports.sold import Credit, Purchase, Sold, catalogue
from tokenworks.exchange.prices import default_prices

START = 1_793_491_200  # 2026-11-01
PRICES = default_prices("USD")
KNOWN = catalogue([PRICES])
USAGE = Usage(input=100, cached_input=10, cache_write=1, output=7, reasoning=3, image=2, audio=4, video=5)


def row(at: int, usage: Usage = USAGE, budget: str = "b", model: str = "m") -> Sold:
    amount = PRICES.price(model, usage)
    return Sold(
        receipt=f"r{at}",
        account="acme",
        account_name="Acme",
        budget=budget,
        key="k",
        at_ns=at * NANO + 1,
        model=model,
        usage=usage,
        ustu=amount.ustu,
        nano=amount.nano,
        loss_nano=0,
        list_nano=amount.nano,
        burned=(),
        entity="",
        site="",
        rate_card=PRICES.rate_card,
        price_book=PRICES.price_book,
        currency="USD",
        energy_mj=None,
        carbon_ug=None,
    )


def walk(ask: Callable[[str | None], dict[str, Any]]) -> list[dict[str, Any]]:
    """All buckets of a question, page by page, as a client reads them."""
    buckets: list[dict[str, Any]] = []
    cursor = None
    while True:
        page = json.loads(encode(ask(cursor)), parse_float=Decimal)
        assert page["object"] == "page"
        buckets += page["data"]
        cursor = page["next_page"]
        assert page["has_more"] == (cursor is not None)
        if cursor is None:
            return buckets


spans = st.tuples(st.integers(0, 90_000), st.integers(1, 200_000), st.lists(st.integers(0, 300_000), max_size=20))


@given(spans, st.sampled_from(["1h", "1d"]), st.integers(1, 31), st.sets(st.sampled_from(USAGE_GROUPS)))
def test_pages_hold_every_request_of_the_period_once(
    span: tuple[int, int, list[int]], width: str, limit: int, groups: set[str]
) -> None:
    """Whatever the width, the page size and the grouping: buckets follow each other and counts sum up."""
    offset, length, times = span
    rows, (start, end) = [row(START + at) for at in times], (START + offset, START + offset + length)
    buckets = walk(
        lambda page: usage_page(
            rows, start_time=start, end_time=end, bucket_width=width, limit=limit, page=page, group_by=sorted(groups)
        )
    )
    inside = [each for each in rows if start <= each.at_ns // NANO < end]
    assert sum(result["num_model_requests"] for bucket in buckets for result in bucket["results"]) == len(inside)
    assert buckets[0]["start_time"] <= start
    assert buckets[-1]["end_time"] == end
    for before, after in pairwise(buckets):
        assert before["end_time"] == after["start_time"]


@given(spans, st.sets(st.sampled_from(COST_GROUPS)))
def test_costs_are_exact_however_they_are_grouped(span: tuple[int, int, list[int]], groups: set[str]) -> None:
    """Usage, packages and credits: the page's numbers are the ledger's to the nano, as JSON numbers."""
    offset, length, times = span
    rows, (start, end) = [row(START + at) for at in times], (START + offset, START + offset + length)
    at_ns = start * NANO
    bought = Purchase(
        id="g",
        account="acme",
        account_name="Acme",
        package="S",
        size_ustu=1,
        price_nano=9_900_000_001,
        currency="USD",
        at_ns=at_ns,
        effective_ns=at_ns,
        expires_ns=None,
    )
    credit = Credit(id="c", account="acme", account_name="A", nano=5, currency="USD", at_ns=at_ns, reason="x")
    buckets = walk(
        lambda page: costs_page(
            rows,
            known=KNOWN,
            currency="USD",
            start_time=start,
            end_time=end,
            purchases=[bought],
            credits_=[credit],
            group_by=sorted(groups),
            page=page,
        )
    )
    results = [result for bucket in buckets for result in bucket["results"]]
    assert {result["amount"]["currency"] for result in results} == {"usd"}
    nano = sum(Decimal(result["amount"]["value"]) for result in results) * NANO
    inside = [each for each in rows if start <= each.at_ns // NANO < end]
    assert nano == sum(each.nano for each in inside) + 9_900_000_001 - 5


def test_counts_follow_openais_inclusive_words() -> None:
    """input_tokens has cached ones and cache writes in it, output_tokens has reasoning; media stand apart."""
    page = usage_page([row(START)], start_time=START, end_time=START + 60, bucket_width="1m", group_by=["model"])
    (bucket,) = page["data"]
    (result,) = bucket["results"]
    assert (bucket["object"], bucket["start_time"], bucket["end_time"]) == ("bucket", START, START + 60)
    assert result["object"] == "organization.usage.completions.result"
    assert (result["input_tokens"], result["input_cached_tokens"], result["output_tokens"]) == (111, 10, 10)
    assert (result["input_audio_tokens"], result["model"], result["project_id"]) == (4, "m", None)
    tokens = [name for name in result if name.endswith("_tokens")]
    parts = {"input_uncached_tokens", "input_cached_tokens", "input_cache_write_tokens", "x_output_reasoning_tokens"}
    assert sum(result[name] for name in tokens if name not in parts) == USAGE.total()


def test_groups_have_their_field_filled() -> None:
    """A project is a budget, a user an account; costs name the model and the bucket."""
    rows = [row(START), row(START + 1, budget="c", model="n"), row(START + 2)]
    page = usage_page(rows, start_time=START, end_time=START + 60, group_by=["project_id", "user_id"])
    seen = [
        (r["project_id"], r["user_id"], r["api_key_id"], r["num_model_requests"]) for r in page["data"][0]["results"]
    ]
    assert seen == [("b", "acme", None, 2), ("c", "acme", None, 1)]
    costs = costs_page(rows, known=KNOWN, currency="USD", start_time=START, end_time=START + 60, group_by=["line_item"])
    assert "n, cached input" in {result["line_item"] for result in costs["data"][0]["results"]}


@pytest.mark.parametrize(
    ("wrong", "param"),
    [
        ({"bucket_width": "1w"}, "bucket_width"),
        ({"group_by": ["colour"]}, "group_by"),
        ({"limit": 0}, "limit"),
        ({"limit": 32}, "limit"),
        ({"end_time": START}, "end_time"),
        ({"page": "page_3"}, "page"),
        ({"page": "page_²"}, "page"),
        ({"page": "next"}, "page"),
    ],
)
def test_a_wrong_question_names_its_parameter(wrong: dict[str, Any], param: str) -> None:
    """The error can be turned into OpenAI's shape: it knows which parameter was wrong."""
    with pytest.raises(BadRequest) as refused:
        usage_page([], **({"start_time": START, "end_time": START + 60} | wrong))
    assert refused.value.param == param
