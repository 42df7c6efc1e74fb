from __future__ import annotations

from fractions import Fraction

from hypothesis import given
from hypothesis import strategies as st

from tokenworks.core.words import BUCKETS, Amount, Usage
from tokenworks.exchange.prices import Prices, default_prices, with_lines

TEXT = ("input", "cached_input", "cache_write", "output", "reasoning")
line = st.fixed_dictionaries({bucket: st.integers(0, 10**9) for bucket in TEXT})
counts = st.fixed_dictionaries({bucket: st.integers(0, 10**6) for bucket in TEXT})


def card(rates: dict[str, int], prices: dict[str, int]) -> Prices:
    return Prices(currency="USD", rate_card="1", price_book="1", rates={"*": rates}, prices={"*": prices})


def usage(buckets: dict[str, int]) -> Usage:
    return Usage(**buckets)  # type: ignore[arg-type]  # the buckets are all integers


@given(line, line, counts)
def test_standard_tokens_are_exact_and_money_is_rounded_up_once(
    rates: dict[str, int], prices: dict[str, int], used: dict[str, int]
) -> None:
    """STU is the plain sum; money is the exact sum rounded up by less than one billionth of the currency."""
    priced = card(rates, prices).price("any", usage(used))
    exact = Fraction(sum(used[bucket] * prices[bucket] for bucket in TEXT), 1_000_000)
    assert priced.ustu == sum(used[bucket] * rates[bucket] for bucket in TEXT)
    assert 0 <= priced.nano - exact < 1


@given(line, line, counts, st.integers(0, 100), st.integers(0, 100))
def test_the_worst_case_covers_every_usage_within_its_maxima(
    rates: dict[str, int], prices: dict[str, int], used: dict[str, int], spare_in: int, spare_out: int
) -> None:
    """Whatever the engine reports within the maxima, the hold covers it in both books: no loss by pricing."""
    input_max = used["input"] + used["cached_input"] + used["cache_write"] + spare_in
    output_max = used["output"] + used["reasoning"] + spare_out
    prices_ = card(rates, prices)
    worst, priced = prices_.worst("any", input_max, output_max), prices_.price("any", usage(used))
    assert worst.ustu >= priced.ustu
    assert worst.nano >= priced.nano


@given(st.integers(0, 10**6), st.integers(0, 10**6))
def test_the_worst_case_is_reached(input_max: int, output_max: int) -> None:
    """With the shipped card it is the price of uncached input and plain output, not more."""
    prices = default_prices("USD")
    assert prices.worst("m", input_max, output_max) == prices.price("m", Usage(input=input_max, output=output_max))


def test_the_shipped_card_counts_a_cached_token_a_tenth_and_output_four_times() -> None:
    """The default rates of an unlisted model, and of the small one that has its own line."""
    prices = default_prices("USD")
    assert prices.price("unlisted", Usage(input=1_000_000)) == Amount(ustu=10**12, nano=100_000_000)
    assert prices.price("unlisted", Usage(cached_input=10)) == Amount(ustu=1_000_000, nano=100)
    assert prices.price("unlisted", Usage(output=1)) == Amount(ustu=4_000_000, nano=400)
    assert prices.price("smollm2-135m-instruct", Usage(input=1)) == Amount(ustu=20_000, nano=20)
    assert prices.price("unlisted", Usage()) == Amount(ustu=0, nano=0)


def test_every_shipped_line_prices_text_and_the_general_one_everything() -> None:
    """No usage of a text model may fail to be priced after its tokens were delivered."""
    prices = default_prices("USD")
    for lines in (prices.rates, prices.prices):
        assert {*lines["*"]} == {*BUCKETS}
        for model, buckets in lines.items():
            assert {*TEXT} <= {*buckets}, model


def test_another_currency_has_standard_tokens_and_no_money() -> None:
    """Nothing is converted silently: the price is 0 and the price book says none."""
    prices = default_prices("CNY")
    assert (prices.currency, prices.price_book) == ("CNY", "none")
    assert prices.price("m", Usage(input=5, image=1, output=1)) == Amount(ustu=10_000_000, nano=0)
    assert prices.worst("smollm2-135m-instruct", 100, 100).nano == 0
    assert prices.rate_card != "none"


def test_lines_of_a_grid_file_replace_a_models_own_line_whole() -> None:
    """Others keep theirs, and each version changes with its own book."""
    base = default_prices("USD")
    laid = with_lines(base, {"m": {"input": 7}}, {"m": {"input": 3_000_000}}, "grid-7")
    assert laid.price("m", Usage(input=2)) == Amount(ustu=14, nano=6)
    assert laid.price("n", Usage(input=2)) == base.price("n", Usage(input=2))
    assert (laid.rate_card, laid.price_book) == ("grid-7", "grid-7")
    assert laid.price("m", Usage(output=1)) == base.price("any", Usage(output=1))
    only_rates = with_lines(base, {"m": {"input": 7}}, {}, "grid-8")
    assert (only_rates.rate_card, only_rates.price_book) == ("grid-8", base.price_book)
    assert with_lines(base, {}, {}, "grid-9") is base


@given(
    st.dictionaries(st.sampled_from(["m", "*"]), st.dictionaries(st.sampled_from(BUCKETS), st.integers(1, 10**9))),
    st.sampled_from(["USD", "CNY"]),
    st.sampled_from(["m", "other", "smollm2-135m-instruct"]),
    st.fixed_dictionaries(dict.fromkeys(BUCKETS, st.integers(0, 10**6))),
)
def test_any_lines_of_a_grid_file_price_every_bucket(
    lines: dict[str, dict[str, int]], currency: str, model: str, used: dict[str, int]
) -> None:
    """Tokens that were delivered always have a price, whatever the file leaves out, and the worst case covers text."""
    laid = with_lines(default_prices(currency), lines, lines, "grid")
    priced = laid.price(model, usage(used))
    if any(used.values()):
        assert priced.ustu > 0
    text = usage({bucket: used[bucket] for bucket in TEXT})
    worst = laid.worst(model, used["input"] + used["cached_input"] + used["cache_write"], text.output + text.reasoning)
    assert worst.ustu >= laid.price(model, text).ustu
    assert worst.nano >= laid.price(model, text).nano


def test_a_bucket_that_a_line_leaves_out_costs_what_stands_in_for_it() -> None:
    """Cached input costs as input does and reasoning as output does, unless the line says otherwise."""
    line = {"input": 7, "output": 9, "cache_write": 8}
    laid = with_lines(default_prices("USD"), {"m": line}, {"m": line}, "grid")
    for bucket, rate in (("cached_input", 7), ("cache_write", 8), ("reasoning", 9), ("image", 7)):
        assert laid.price("m", usage({bucket: 1_000_000})) == Amount(ustu=rate * 1_000_000, nano=rate)
