"""The standard token and money: a rate card turns native tokens into STU, a price book turns them into money.

Rates are integer micro-STU per native token, prices integer nano-currency per million native tokens, so a rate is
exact and a price is rounded up once per request, by less than one billionth of the currency.
"""

from __future__ import annotations

import tomllib
from collections.abc import Mapping
from fractions import Fraction
from importlib import resources
from typing import Any

from tokenworks.core.errors import BadQuantity
from tokenworks.core.units import MICRO, parse_price
from tokenworks.core.words import BUCKETS, Amount, Usage, Word

_TOKENS_PER_PRICE = 1_000_000


class Prices(Word, frozen=True):
    """The rate card and the price book in force, with their versions. ``"*"`` is any model without a line."""

    currency: str
    rate_card: str
    price_book: str
    rates: dict[str, dict[str, int]]
    """Model -> bucket -> micro-STU per token."""
    prices: dict[str, dict[str, int]]
    """Model -> bucket -> nano-currency per million tokens."""

    def price(self, model: str, usage: Usage) -> Amount:
        """What this usage of this model costs. Every line has every bucket, so a used token always has a price."""
        rates = self.rates.get(model) or self.rates["*"]
        prices = self.prices.get(model) or self.prices["*"]
        ustu = nano_millionths = 0
        for bucket, count in usage.counts():
            ustu += count * rates[bucket]
            nano_millionths += count * prices[bucket]
        return Amount(ustu=ustu, nano=-(-nano_millionths // _TOKENS_PER_PRICE))

    def worst(self, model: str, input_max: int, output_max: int) -> Amount:
        """The most that a request can cost: nothing cached, every token of the dearest bucket of its kind."""
        rates = self.rates.get(model) or self.rates["*"]
        prices = self.prices.get(model) or self.prices["*"]

        def dearest(table: Mapping[str, int], *buckets: str) -> int:
            return max(table.get(bucket, 0) for bucket in buckets)

        inputs, outputs = ("input", "cached_input", "cache_write"), ("output", "reasoning")
        nano_millionths = input_max * dearest(prices, *inputs) + output_max * dearest(prices, *outputs)
        return Amount(
            ustu=input_max * dearest(rates, *inputs) + output_max * dearest(rates, *outputs),
            nano=-(-nano_millionths // _TOKENS_PER_PRICE),
        )


def _ustu(text: str) -> int:
    exact = Fraction(text) * MICRO
    if exact.denominator != 1 or exact < 0:
        raise BadQuantity(f"{text!r} STU per token cannot be booked", hint="use at most six decimals, not negative")
    return int(exact)


def default_prices(currency: str) -> Prices:
    """The shipped card and book. In another currency than theirs only the standard tokens hold and money is 0.

    That is deliberate: nothing is converted silently, and a grid in another currency names its own prices.
    """
    text = resources.files("tokenworks.exchange").joinpath("data/prices.toml").read_text("utf-8")
    raw: dict[str, Any] = tomllib.loads(text)
    rates = {
        line["model"]: {bucket: _ustu(line[bucket]) for bucket in BUCKETS if bucket in line} for line in raw["rate"]
    }
    prices = {
        line["model"]: {b: parse_price(line[b], "Mtok", currency) for b in BUCKETS if b in line}
        for line in raw["price"]
        if line["currency"] == currency
    }
    version = str(raw["version"])
    any_price = prices.get("*", dict.fromkeys(BUCKETS, 0))
    return Prices(
        currency=currency,
        rate_card=version,
        price_book=version if prices else "none",
        rates={model: _whole(line, rates["*"]) for model, line in rates.items()},
        prices={model: _whole(line, any_price) for model, line in prices.items()} or {"*": any_price},
    )


_STANDS_IN = {"cached_input": "input", "cache_write": "input", "reasoning": "output"} | dict.fromkeys(
    ("image", "audio", "video"), "input"
)
"""What a bucket costs that a line does not name: no token is ever left without a price."""


def _whole(line: Mapping[str, int], fallback: Mapping[str, int]) -> dict[str, int]:
    """A line with all buckets: what it names, what stands in for the rest, and last the line of any model."""
    return {b: line.get(b, line.get(_STANDS_IN.get(b, b), fallback[b])) for b in BUCKETS}


def with_lines(
    base: Prices, rates: Mapping[str, Mapping[str, int]], prices: Mapping[str, Mapping[str, int]], version: str
) -> Prices:
    """The base with lines of a grid file laid over it; a model's own line replaces the shipped one whole."""
    if not rates and not prices:
        return base
    any_rate, any_price = (
        _whole(given.get("*", {}), shipped["*"]) for given, shipped in ((rates, base.rates), (prices, base.prices))
    )
    return Prices(
        currency=base.currency,
        rate_card=version if rates else base.rate_card,
        price_book=version if prices else base.price_book,
        rates={**base.rates, "*": any_rate, **{m: _whole(line, any_rate) for m, line in rates.items()}},
        prices={**base.prices, "*": any_price, **{m: _whole(line, any_price) for m, line in prices.items()}},
    )
