"""The standard token and money: a rate card turns native tokens into STU, a price book turns them into money.

Rates are integer micro-STU per native token, prices integer nano-currency per million native tokens: a rate is exact.
One request's price is rounded up by less than one billionth of the currency; a ``Rater`` (``rater.py``) carries the
remainder instead, so that a period's total is quantity times price. Cards and books are versioned, dated and may be
signed.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Mapping
from importlib import resources
from typing import ClassVar

from tokenworks.core.errors import BadQuantity, NotFound
from tokenworks.core.words import BUCKETS, Amount, Usage, Word
from tokenworks.exchange.cards import Card, PriceBook, RateCard, Signature, in_force, read_cards

TOKENS_PER_PRICE = 1_000_000
STANDS_IN = {"cached_input": "input", "cache_write": "input", "reasoning": "output"} | dict.fromkeys(
    ("image", "audio", "video"), "input"
)
"""What a bucket costs that a line does not name: no token is ever left without a price."""
_NOTHING = dict.fromkeys(BUCKETS, 0)
_Line = tuple[tuple[int, ...], tuple[int, ...], tuple[int, ...]]
"""Rates and prices in bucket order; the dearest rate and price of an input token, then of an output token."""
Lines = dict[str, dict[str, int]]
"""Model -> bucket -> rate or price. ``"*"`` is any model without a line."""


class Prices(Word, frozen=True, dict=True):
    """The rate card and the price book in force, with their versions. Lookups are worked out once, when it is made."""

    currency: str
    rate_card: str
    price_book: str
    rates: Lines
    """Micro-STU per token."""
    prices: Lines
    """Nano-currency per million tokens, of the class and tier ``standard``."""
    classes: dict[str, Lines] = {}
    """``"business"`` or ``"business/batch"`` -> prices of that class (and tier) where they differ from ``prices``."""
    _tables: ClassVar[dict[str, dict[str, _Line]]]

    def __post_init__(self) -> None:
        self.__dict__["_tables"] = {key: self._table(key) for key in ("standard", *self.classes)}

    def _table(self, key: str) -> dict[str, _Line]:
        """The nearest lines win: class and tier, tier, class, standard; in each a model's own line, then ``"*"``."""
        layers = [*(self.classes.get(each, {}) for each in _fallbacks(key)), self.prices]
        made = {}
        for model in {"*", *self.rates, *(model for layer in layers for model in layer)}:
            own = next((layer.get(model) or layer["*"] for layer in layers if model in layer or "*" in layer), {})
            rates, prices = _whole(self.rates.get(model) or self.rates["*"], _NOTHING), _whole(own, _NOTHING)
            # Only text: the most that a request may use is counted in text tokens.
            dearest = [max(t[b] for b in BUCKETS[a:z]) for a, z in ((0, 3), (3, 5)) for t in (rates, prices)]
            made[model] = (tuple(rates.values()), tuple(prices.values()), tuple(dearest))
        return made

    def at(self, time_ns: int) -> Prices:
        """These, always."""
        return self

    def _line(self, model: str, price_class: str, tier: str) -> _Line:
        tables = self._tables
        if tier == "standard":
            table = tables.get(price_class) or tables["standard"]
        else:
            table = next(
                (tables[key] for key in _fallbacks(f"{price_class}/{tier}") if key in tables), tables["standard"]
            )
        return table.get(model) or table["*"]

    def exact(self, model: str, usage: Usage, price_class: str = "standard", tier: str = "standard") -> tuple[int, int]:
        """Micro-STU, and money in millionths of a nano: nothing is rounded."""
        (a, b, c, d, e, f, g, h), (i, j, k, m, n, o, p, q), _ = self._line(model, price_class, tier)
        ustu = usage.input * a + usage.cached_input * b + usage.cache_write * c + usage.output * d
        money = usage.input * i + usage.cached_input * j + usage.cache_write * k + usage.output * m
        if usage.reasoning or usage.image or usage.audio or usage.video:
            ustu += usage.reasoning * e + usage.image * f + usage.audio * g + usage.video * h
            money += usage.reasoning * n + usage.image * o + usage.audio * p + usage.video * q
        return ustu, money

    def price(self, model: str, usage: Usage, price_class: str = "standard", tier: str = "standard") -> Amount:
        """What this usage of this model costs. Every line has every bucket, so a used token always has a price."""
        ustu, money = self.exact(model, usage, price_class, tier)
        return Amount(ustu=ustu, nano=-(-money // TOKENS_PER_PRICE))

    def worst(
        self, model: str, input_max: int, output_max: int, price_class: str = "standard", tier: str = "standard"
    ) -> Amount:
        """The most that a request can cost: nothing cached, every token of the dearest bucket of its kind."""
        rate_in, price_in, rate_out, price_out = self._line(model, price_class, tier)[2]
        money = input_max * price_in + output_max * price_out
        return Amount(ustu=input_max * rate_in + output_max * rate_out, nano=-(-money // TOKENS_PER_PRICE))

    def line(self, model: str, price_class: str = "standard", tier: str = "standard") -> dict[str, tuple[int, int]]:
        """Bucket -> (micro-STU per token, nano per million tokens), for reports."""
        rates, prices, _ = self._line(model, price_class, tier)
        return {bucket: (rates[i], prices[i]) for i, bucket in enumerate(BUCKETS)}


def _fallbacks(key: str) -> tuple[str, ...]:
    price_class, _, tier = key.partition("/")
    return (key, f"standard/{tier}", price_class) if tier else (key,)


def _whole(line: Mapping[str, int], fallback: Mapping[str, int]) -> dict[str, int]:
    """A line with all buckets: what it names, what stands in for the rest, and last the line of any model."""
    return {b: line.get(b, line.get(STANDS_IN.get(b, b), fallback[b])) for b in BUCKETS}


class PriceList(Word, frozen=True, dict=True):
    """All cards and books of a grid in one currency, past and to come, with the signatures of those that have one."""

    currency: str
    cards: tuple[RateCard, ...]
    books: tuple[PriceBook, ...] = ()
    signatures: dict[str, Signature] = {}
    """A card's ``name`` -> its signature. Shipped cards have none."""
    rates: Lines = {}
    prices: Lines = {}
    """Lines of a grid file: they lie over whatever card and book are in force."""
    laid: str = ""
    """The version of these lines."""
    _changes: ClassVar[list[int]]
    _made: ClassVar[dict[int, Prices]]

    def __post_init__(self) -> None:
        every = self.every_card()
        if len({c.name for c in every}) < len(every) or len({(c.line_of, c.effective_ns) for c in every}) < len(every):
            raise BadQuantity("two cards or books have one version or one effective date", hint="give each its own")
        self.__dict__["_changes"] = sorted({card.effective_ns for card in every})
        self.__dict__["_made"] = {}

    def at(self, time_ns: int) -> Prices:
        """What holds at an instant. Raises NotFound before the first card; without an own book money is 0."""
        number = bisect_right(self._changes, time_ns)
        found = self._made.get(number)
        if found is None:
            found = self._made[number] = self._at(time_ns)
        return found

    def _at(self, time_ns: int) -> Prices:
        card = in_force(self.cards, time_ns)
        book = in_force([b for b in self.books if b.kind == "own" and b.currency == self.currency], time_ns)
        if card is None:
            raise NotFound("no rate card was in force then", hint="its first version has the earliest effective date")
        classes: dict[str, Lines] = {"standard": {}}
        for line in book.lines if book else ():
            key = line.price_class if line.tier == "standard" else f"{line.price_class}/{line.tier}"
            classes.setdefault(key, {})[line.model] = line.nano_per_mtok
        standard = classes.pop("standard")
        found = Prices(
            currency=self.currency,
            rate_card=card.version,
            price_book=book.version if book else "none",
            rates=_complete({line.model: line.ustu for line in card.lines}),
            prices=_complete(standard),
            classes=classes,
        )
        return with_lines(found, self.rates, self.prices, self.laid)

    def every_card(self) -> list[Card]:
        """Cards and books, whatever their date."""
        return [*self.cards, *self.books]

    def every(self) -> list[Prices]:
        """What holds, held or will hold: one for each change since the first card."""
        first_ns = min(card.effective_ns for card in self.cards)
        return [self.at(change_ns) for change_ns in self._changes if change_ns >= first_ns]

    def next_change_ns(self, time_ns: int) -> int | None:
        """When what ``at`` says may next be different."""
        return next((change_ns for change_ns in self._changes if change_ns > time_ns), None)

    def listed(self, model: str, time_ns: int) -> list[tuple[PriceBook, dict[str, int]]]:
        """List prices in force of those who price this model, or any, in and out: nano per million tokens by bucket."""
        found = []
        for series in sorted({book.line_of for book in self.books if book.kind == "list"}):
            book = in_force([each for each in self.books if (each.kind, each.line_of) == ("list", series)], time_ns)
            lines = {each.model: each.nano_per_mtok for each in book.lines} if book else {}
            line = lines.get(model) or lines.get("*")
            if book and line and {"input", "output"} <= {*line}:
                found.append((book, _whole(line, _NOTHING)))
        return found


Tariff = Prices | PriceList
"""Says ``at`` any instant what holds then; ``Prices`` never change."""


def _complete(lines: Lines) -> Lines:
    """Every line with all buckets, and a line for any model."""
    any_model = _whole(lines.get("*", {}), _NOTHING)
    return {**{model: _whole(line, any_model) for model, line in lines.items()}, "*": any_model}


def shipped_prices(currency: str) -> PriceList:
    """The cards and books that come with Tokenworks. They are not signed: they are defaults, nobody's promise."""
    text = resources.files("tokenworks.exchange").joinpath("data/prices.toml").read_text("utf-8")
    cards, books = read_cards(text)
    return PriceList(currency=currency, cards=cards, books=books)


def default_prices(currency: str) -> Prices:
    """The newest shipped card and book. In another currency than theirs only the standard tokens hold and money is 0.

    That is deliberate: nothing is converted silently, and a grid in another currency names its own prices.
    """
    return shipped_prices(currency).every()[-1]


def with_lines(
    base: Prices, rates: Mapping[str, Mapping[str, int]], prices: Mapping[str, Mapping[str, int]], version: str
) -> Prices:
    """The base with lines of a grid file laid over it; a model's own line replaces the base's whole.

    A receipt names both versions, since either may change without the other.
    """
    if not rates and not prices:
        return base
    any_rate, any_price = (
        _whole(given.get("*", {}), shipped["*"]) for given, shipped in ((rates, base.rates), (prices, base.prices))
    )
    return Prices(
        currency=base.currency,
        rate_card=f"{base.rate_card}+{version}" if rates else base.rate_card,
        price_book=f"{base.price_book}+{version}" if prices else base.price_book,
        rates={**base.rates, "*": any_rate, **{m: _whole(line, any_rate) for m, line in rates.items()}},
        prices={**base.prices, "*": any_price, **{m: _whole(line, any_price) for m, line in prices.items()}},
        classes=base.classes,
    )
