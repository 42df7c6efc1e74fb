from __future__ import annotations

from fractions import Fraction

import msgspec
import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from hypothesis import given
from hypothesis import strategies as st

from tokenworks.core.errors import BadQuantity, NotFound
from tokenworks.core.words import BUCKETS, Amount, Usage
from tokenworks.exchange.cards import Card, PriceBook, PriceLine, RateCard, RateLine, read_cards, sign_card, verify_card
from tokenworks.exchange.prices import (
    PriceList,
    Prices,
    default_prices,
    shipped_prices,
    with_lines,
)
from tokenworks.exchange.rater import Rater

TEXT = ("input", "cached_input", "cache_write", "output", "reasoning")
line = st.fixed_dictionaries({bucket: st.integers(0, 10**9) for bucket in TEXT})
counts = st.fixed_dictionaries({bucket: st.integers(0, 10**6) for bucket in TEXT})


def card(rates: dict[str, int], prices: dict[str, int]) -> Prices:
    return Prices(currency="USD", rate_card="1", price_book="1", rates={"*": rates}, prices={"*": prices})


def rated(rater: Rater, prices: Prices, account: str, model: str, used: Usage, covered_ustu: int = 0) -> int:
    """What a standard request costs in nano, as the desk asks for it."""
    ustu, money = prices.exact(model, used, "standard")
    return rater.charge((account, "standard", "standard", model), ustu, money, covered_ustu)


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
    assert (laid.rate_card, laid.price_book) == (f"{base.rate_card}+grid-7", f"{base.price_book}+grid-7")
    assert laid.price("m", Usage(output=1)) == base.price("any", Usage(output=1))
    only_rates = with_lines(base, {"m": {"input": 7}}, {}, "grid-8")
    assert (only_rates.rate_card, only_rates.price_book) == (f"{base.rate_card}+grid-8", base.price_book)
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


KEY = Ed25519PrivateKey.from_private_bytes(bytes(range(32)))
PUBLIC = KEY.public_key().public_bytes_raw().hex()


def rate_card(version: str, effective_ns: int, rate: int) -> RateCard:
    lines = (RateLine(model="*", ustu=dict.fromkeys(BUCKETS, rate)),)
    return RateCard(version=version, series="own", effective_ns=effective_ns, reference_class="c", lines=lines)


def price_book(
    version: str, effective_ns: int, *lines: PriceLine, kind: str = "own", currency: str = "USD"
) -> PriceBook:
    return msgspec.convert(
        {
            "type": "price_book",
            "version": version,
            "series": f"{kind}-{currency}",
            "effective_ns": effective_ns,
            "currency": currency,
            "kind": kind,
            "source": "somebody, 2026-11",
            "lines": [msgspec.to_builtins(line) for line in lines],
        },
        PriceBook,
    )


requests = st.lists(st.tuples(st.sampled_from("ab"), st.sampled_from("mn"), counts), max_size=30)


@given(line, line, requests)
def test_a_periods_total_is_quantity_times_price(
    rates: dict[str, int], prices: dict[str, int], asked: list[tuple[str, str, dict[str, int]]]
) -> None:
    """After every request each account's money per line is the floor of the exact sum; standard tokens are exact."""
    rater, priced = Rater(), card(rates, prices)
    money: dict[tuple[str, str], int] = {}
    exact: dict[tuple[str, str], Fraction] = {}
    for account, model, used in asked:
        nano = rated(rater, priced, account, model, usage(used))
        key = account, model
        money[key] = money.get(key, 0) + nano
        exact[key] = exact.get(key, Fraction()) + Fraction(sum(used[b] * prices[b] for b in TEXT), 1_000_000)
        assert money[key] == exact[key].numerator // exact[key].denominator
        worst = priced.worst(model, used["input"] + used["cached_input"] + used["cache_write"], 2 * 10**6)
        assert worst.nano >= nano


@given(line, line, st.lists(counts, max_size=20), st.integers(0, 1000))
def test_what_grants_cover_is_not_charged(
    rates: dict[str, int], prices: dict[str, int], asked: list[dict[str, int]], covered_permille: int
) -> None:
    """Money follows the uncovered share of the standard tokens, below its exact sum by less than one nano."""
    rater, priced, charged, exact = Rater(), card(rates, prices), 0, Fraction()
    for used in asked:
        ustu = sum(used[bucket] * rates[bucket] for bucket in TEXT)
        covered = ustu * covered_permille // 1000
        charged += rated(rater, priced, "a", "m", usage(used), covered)
        whole = Fraction(sum(used[b] * prices[b] for b in TEXT), 1_000_000)
        exact += whole * (ustu - covered) / ustu if ustu else whole
    assert 0 <= exact - charged < 1 + Fraction(len(asked), 1_000_000)


def test_remainders_are_bounded_and_dropping_one_favours_the_customer() -> None:
    """The one unused for longest goes first; its account loses nothing, the operator less than a nano."""
    priced, rater = card(dict.fromkeys(TEXT, 1), dict.fromkeys(TEXT, 600_000)), Rater(remembered_max=2)
    one = Usage(input=1)
    assert [rated(rater, priced, account, "m", one) for account in "aab"] == [0, 1, 0]
    assert [rated(rater, priced, account, "m", one) for account in "cca"] == [0, 1, 0]
    assert len(rater) == 2


def test_a_class_has_its_own_prices_and_falls_back_to_the_standard() -> None:
    """Class and tier, then tier, then class, then standard; a model's own line before the one of any model."""

    def priced(model: str, price: int, price_class: str = "standard", tier: str = "standard") -> PriceLine:
        return PriceLine(
            model=model, nano_per_mtok=dict.fromkeys(TEXT, price * 10**6), price_class=price_class, tier=tier
        )

    book = price_book(
        "1",
        0,
        priced("*", 10),
        priced("m", 9),
        priced("m", 7, "business"),
        priced("*", 5, tier="batch"),
        priced("m", 3, "business", "batch"),
    )
    prices = PriceList(currency="USD", cards=(rate_card("1", 0, 1),), books=(book,)).at(0)
    one = Usage(output=1)
    wanted = [
        ("m", "standard", "standard", 9),
        ("n", "standard", "standard", 10),
        ("m", "business", "standard", 7),
        ("n", "business", "standard", 10),
        ("m", "business", "batch", 3),
        ("n", "business", "batch", 5),
        ("m", "unheard-of", "batch", 5),
        ("m", "unheard-of", "standard", 9),
        ("m", "business", "unheard-of", 7),
    ]
    for model, price_class, tier, nano in wanted:
        assert prices.price(model, one, price_class, tier).nano == nano, (model, price_class, tier)
        assert prices.worst(model, 0, 1, price_class, tier).nano == nano
        assert prices.line(model, price_class, tier)["output"] == (1, nano * 10**6)


def test_cards_and_books_follow_each_other_in_time() -> None:
    """Each holds from its own date until the next of its series; what was rated keeps its version."""
    one = Usage(input=1)
    first = PriceLine(model="*", nano_per_mtok={"input": 10**6})
    second = PriceLine(model="*", nano_per_mtok={"input": 2 * 10**6})
    prices = PriceList(
        currency="USD",
        cards=(rate_card("r2", 50, 6), rate_card("r1", 10, 5)),
        books=(price_book("p1", 20, first), price_book("p2", 60, second)),
    )
    seen = [(at, (p := prices.at(at)).rate_card, p.price_book, p.price("m", one)) for at in (10, 20, 49, 50, 60)]
    assert [row[1:3] for row in seen] == [("r1", "none"), ("r1", "p1"), ("r1", "p1"), ("r2", "p1"), ("r2", "p2")]
    assert [(row[3].ustu, row[3].nano) for row in seen] == [(5, 0), (5, 1), (5, 1), (6, 1), (6, 2)]
    assert [prices.next_change_ns(at) for at in (0, 10, 49, 60)] == [10, 20, 50, None]
    with pytest.raises(NotFound):
        prices.at(9)


changes = st.lists(st.tuples(st.integers(1, 50), st.integers(0, 10**9)), min_size=1, max_size=6)


@given(changes, st.lists(st.tuples(st.integers(0, 60), counts), max_size=20))
def test_a_request_costs_what_held_when_it_arrived(
    books: list[tuple[int, int]], asked: list[tuple[int, dict[str, int]]]
) -> None:
    """However prices change while requests run, each is rated as of its arrival, within what was held for it then.

    The oracle looks through all books for the latest before the arrival.
    """
    starts = {0: 7, **dict(books)}
    tariff = PriceList(
        currency="USD",
        cards=(rate_card("r", 0, 1),),
        books=tuple(
            price_book(str(at), at, PriceLine(model="*", nano_per_mtok=dict.fromkeys(BUCKETS, price)))
            for at, price in starts.items()
        ),
    )
    rater, charged, exact = Rater(), 0, Fraction()
    for arrived, used in asked:
        price = starts[max(at for at in starts if at <= arrived)]
        held = tariff.at(arrived).worst("m", used["input"] + used["cached_input"] + used["cache_write"], 2 * 10**6)
        nano = rated(rater, tariff.at(arrived), "a", "m", usage(used))
        assert nano <= held.nano
        charged += nano
        exact += Fraction(sum(used[bucket] for bucket in TEXT) * price, 1_000_000)
        assert charged == exact.numerator // exact.denominator, "the remainder outlives the change"
        assert tariff.at(arrived) is tariff.at(arrived), "worked out once"
    assert [each.price_book for each in tariff.every()] == [str(at) for at in sorted(starts)]


def test_prices_that_never_change_hold_at_any_time() -> None:
    """A desk asks both in the same way."""
    prices = default_prices("USD")
    assert prices.at(0) is prices.at(2**62) is prices


def test_lines_of_a_grid_file_lie_over_whatever_is_in_force() -> None:
    """The base changes below them; a receipt names both."""
    books = [price_book(str(at), at, PriceLine(model="*", nano_per_mtok={"input": 10**6})) for at in (0, 9)]
    laid = PriceList(
        currency="USD", cards=(rate_card("r", 0, 1),), books=tuple(books), prices={"m": {"input": 7}}, laid="g-1"
    )
    assert [laid.at(at).price_book for at in (0, 8, 9)] == ["0+g-1", "0+g-1", "9+g-1"]
    assert laid.at(9).rate_card == "r"
    assert laid.at(9).line("m")["input"][1] == 7
    assert laid.at(9).line("n")["input"][1] == 10**6


def test_a_version_is_never_reused() -> None:
    """Two cards of one version, or two of one series from one date, would make a receipt ambiguous."""
    for twin in (rate_card("1", 5, 1), rate_card("2", 0, 1)):
        with pytest.raises(BadQuantity):
            PriceList(currency="USD", cards=(rate_card("1", 0, 1), twin))


def test_list_prices_are_shown_and_never_charged() -> None:
    """Others' prices stand beside in their own currency; only those that price the model in and out compare."""
    whole = PriceLine(model="*", nano_per_mtok={"input": 4 * 10**9, "output": 8 * 10**9})
    half = PriceLine(model="m", nano_per_mtok={"input": 1})
    books = (
        price_book("1", 0, whole, kind="list", currency="CNY"),
        price_book("1", 0, half, kind="list", currency="EUR"),
        price_book("1", 99, whole, kind="list", currency="JPY"),
    )
    prices = PriceList(currency="USD", cards=(rate_card("1", 0, 1),), books=books)
    assert prices.at(5).price("m", Usage(input=1000, output=500)).nano == 0
    ((book, line),) = prices.listed("m", 5)
    assert (book.currency, book.source) == ("CNY", "somebody, 2026-11")
    assert (line["input"], line["cached_input"], line["output"]) == (4 * 10**9, 4 * 10**9, 8 * 10**9)
    shipped = [book.series for book, _ in shipped_prices("USD").listed("m", 2**62)]
    assert shipped == ["china-telecom-developer", "china-telecom-personal"]


@given(st.integers(0, 10**6), st.integers(0, 10**6))
def test_a_signature_holds_for_exactly_one_card(rate: int, other: int) -> None:
    """The same card read back verifies; another figure, another key or no signature does not."""
    cards: list[Card] = [
        rate_card("1", 0, rate),
        price_book("1", 0, PriceLine(model="*", nano_per_mtok={"output": rate, "input": other})),
    ]
    for card_ in cards:
        signature = sign_card(card_, KEY)
        back = msgspec.json.decode(msgspec.json.encode(card_), type=type(card_))
        assert verify_card(back, signature, PUBLIC)
        assert not verify_card(msgspec.structs.replace(card_, version="2"), signature, PUBLIC)
        assert not verify_card(card_, None, PUBLIC)
        assert not verify_card(card_, signature, "00" * 32)
        assert not verify_card(card_, msgspec.structs.replace(signature, signature="no hex"), PUBLIC)
        assert not verify_card(card_, sign_card(msgspec.structs.replace(card_, series="x"), KEY), PUBLIC)


def test_what_ships_is_unsigned_and_says_so() -> None:
    """Defaults are nobody's promise; every book names its source."""
    shipped = shipped_prices("USD")
    assert shipped.signatures == {}
    assert all(book.source for book in shipped.books)
    assert {book.kind for book in shipped.books} == {"own", "list"}


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("2026-11-01T00:00:00Z", "2026-11-01"),
        ("2026-11-01T00:00:00Z", "2026-11-01T00:00:00"),
        ('"0.08"', '"0.0000001"'),
        ('"0.08"', '"1e9"'),
        ('"0.40"', '"-0.40"'),
        ('"0.40"', '"dear"'),
        ('"4"', '"-4"'),
        ('"4"', "4"),
        ("output=", "outptu="),
        ("model=", "modle="),
        ('"*"', '"m"'),
        ("series='s'", ""),
        ("kind='own'", "kind='mine'"),
        ("[[book]]", "[[books]]"),
        ("version", "[version"),
    ],
)
def test_a_price_list_that_cannot_be_booked_is_refused(old: str, new: str) -> None:
    """Odd instants and amounts, misspelt keys, models without any price, and what is no TOML: one error each."""
    text = (
        "[[card]]\nversion='1'\nseries='s'\neffective=2026-11-01T00:00:00Z\nreference_class='c'\n"
        '[[card.line]]\nmodel="*"\ninput="0.08"\noutput="4"\n'
        "[[book]]\nversion='1'\nseries='s'\neffective=2026-11-01T00:00:00Z\ncurrency='USD'\nkind='own'\nsource='x'\n"
        '[[book.line]]\nmodel="*"\ninput="0.1"\noutput="0.40"\n'
    )
    assert read_cards(text)
    with pytest.raises(BadQuantity):
        read_cards(text.replace(old, new))


def test_prices_travel_as_words() -> None:
    """The working tables are no part of the word: it compares and travels by what it says."""
    prices = default_prices("USD")
    assert msgspec.json.decode(msgspec.json.encode(prices), type=Prices) == prices
