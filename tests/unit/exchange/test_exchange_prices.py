from __future__ import annotations

from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tokenworks.core.errors import BadQuantity
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
    """An overridden model has only what was written for it; others keep theirs; each version changes with its book."""
    base = default_prices("USD")
    laid = with_lines(base, {"m": {"input": 7}}, {"m": {"input": 3_000_000}}, "grid-7")
    assert laid.price("m", Usage(input=2)) == Amount(ustu=14, nano=6)
    assert laid.price("n", Usage(input=2)) == base.price("n", Usage(input=2))
    assert (laid.rate_card, laid.price_book) == ("grid-7", "grid-7")
    with pytest.raises(BadQuantity, match="no price for output tokens"):
        laid.price("m", Usage(output=1))
    only_rates = with_lines(base, {"m": {"input": 7}}, {}, "grid-8")
    assert (only_rates.rate_card, only_rates.price_book) == ("grid-8", base.price_book)
    assert with_lines(base, {}, {}, "grid-9") is base


def test_what_has_no_price_is_an_error_and_not_free() -> None:
    """A bucket missing in either book is named."""
    for prices in (card({"input": 1}, {}), card({}, {"input": 1})):
        with pytest.raises(BadQuantity, match="'x' has no price for input"):
            prices.price("x", Usage(input=1))
