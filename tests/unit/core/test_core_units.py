from __future__ import annotations

from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tokenworks.core.errors import BadQuantity
from tokenworks.core.units import (
    MJ_PER_KWH,
    NANO,
    NS_PER_S,
    energy_mj,
    money_text,
    parse,
    parse_money,
    parse_price,
    rate_of,
    split,
    stu_text,
)

BIG = 10**18


@pytest.mark.parametrize(
    ("text", "kind", "smallest"),
    [
        ("1 mW", "power", 1),
        ("350 W", "power", 350_000),
        ("2.5 kW", "power", 2_500_000),
        ("4 MW", "power", 4_000_000_000),
        ("1 GW", "power", 10**12),
        ("7 mJ", "energy", 7),
        ("7 J", "energy", 7_000),
        ("1 Wh", "energy", 3_600_000),
        ("500 kWh", "energy", 500 * MJ_PER_KWH),
        ("1 MWh", "energy", 1_000 * MJ_PER_KWH),
        ("60 s", "time", 60 * NS_PER_S),
        ("1.5 ms", "time", 1_500_000),
        ("3 us", "time", 3_000),
        ("9 ns", "time", 9),
        ("2 min", "time", 120 * NS_PER_S),
        ("2 m", "time", 120 * NS_PER_S),
        ("1 h", "time", 3_600 * NS_PER_S),
        ("1 d", "time", 86_400 * NS_PER_S),
        ("1 year", "time", 31_557_600 * NS_PER_S),
        ("24 GB", "memory", 24 * 10**9),
        ("1 TB", "memory", 10**12),
        ("1 MB", "memory", 10**6),
        ("1 kB", "memory", 1_000),
        ("1 B", "memory", 1),
        ("1 KiB", "memory", 1 << 10),
        ("1 MiB", "memory", 1 << 20),
        ("24 GiB", "memory", 24 << 30),
        ("164 kg", "mass", 164 * 10**9),
        ("1.2 t", "mass", 1_200 * 10**9),
        ("9 g", "mass", 9 * 10**6),
        ("480 g/kWh", "carbon", 480_000_000),
        ("0.48 kg/kWh", "carbon", 480_000_000),
        ("480 kg/MWh", "carbon", 480_000_000),
        ("1 STU", "stu", 1_000_000),
        ("2 kSTU", "stu", 2 * 10**9),
        ("10 MSTU", "stu", 10**13),
    ],
)
def test_every_unit_of_every_kind_is_read_exactly(text: str, kind: str, smallest: int) -> None:
    """A quantity as people write it becomes the integer of smallest units that a book counts."""
    assert parse(text, kind) == smallest


@pytest.mark.parametrize(
    ("text", "watts_mw"),
    [("  4  MW ", 4 * 10**9), ("4MW", 4 * 10**9), ("1_000 W", 10**6), ("1e3 W", 10**6), ("+1 W", 1_000)],
)
def test_a_number_may_be_written_in_several_ways(text: str, watts_mw: int) -> None:
    """Spaces, underscores, exponents and a sign do not change what is read."""
    assert parse(text, "power") == watts_mw


@pytest.mark.parametrize(
    ("text", "kind", "says", "hint"),
    [
        ("4 MWW", "power", "unknown unit 'MWW'", "did you mean 'MW'?"),
        ("60 mins", "time", "unknown unit 'mins'", "did you mean 'min'?"),
        ("480 g/kwh", "carbon", "unknown unit 'g/kwh'", "did you mean 'g/kWh'?"),
        ("4 parsecs", "memory", "unknown unit 'parsecs'", 'write it like "24 GB"'),
        ("4", "power", "has no unit", 'write it like "4 MW"'),
        ("much", "energy", "is not a energy", 'write a number and a unit, like "500 kWh"'),
        ("", "stu", "is not a stu", 'like "10 MSTU"'),
        ("1.2.3 W", "power", "unknown unit", 'write it like "4 MW"'),
    ],
)
def test_a_bad_quantity_says_what_is_wrong_and_what_to_write(text: str, kind: str, says: str, hint: str) -> None:
    """The error quotes the text, and its hint names the nearest unit or shows an example of the kind."""
    with pytest.raises(BadQuantity) as caught:
        parse(text, kind)
    assert says in caught.value.message
    assert caught.value.hint is not None
    assert hint in caught.value.hint
    assert caught.value.code == "bad_quantity"


def test_a_quantity_below_the_smallest_unit_is_refused_and_zero_is_not() -> None:
    """What would silently round to nothing is an error; a written zero is a zero."""
    with pytest.raises(BadQuantity, match="smaller than the smallest unit"):
        parse("0.0001 mW", "power")
    with pytest.raises(BadQuantity, match="smaller than the smallest unit"):
        parse_money("0.0000000001 USD", "USD")
    assert parse("0 W", "power") == 0


def test_money_is_read_in_the_grids_currency_only() -> None:
    """Another currency is refused with the grid's own in the hint: nothing is converted silently."""
    assert parse_money("25 USD", "USD") == 25 * NANO
    assert parse_money("0.000000001 USD", "USD") == 1
    for wrong in ("25 EUR", "25", "25 usd"):
        with pytest.raises(BadQuantity) as caught:
            parse_money(wrong, "USD")
        assert "USD" in str(caught.value.hint)


@pytest.mark.parametrize(
    ("text", "per", "nano"),
    [
        ("0.38 CNY/kWh", "kWh", 380_000_000),
        ("380 CNY/MWh", "kWh", 380_000_000),
        ("0.10 CNY/Mtok", "Mtok", 100_000_000),
        ("0.0000001 CNY/tok", "Mtok", 100_000_000),
        ("2 CNY/s", "s", 2 * NANO),
        ("7.2 CNY/h", "s", 2_000_000),
        ("0.1 CNY/kg", "kg", 100_000_000),
        ("100 CNY/t", "kg", 100_000_000),
    ],
)
def test_the_two_spellings_of_each_price_family_agree(text: str, per: str, nano: int) -> None:
    """Prices per MWh, token, hour and tonne become prices per kWh, million tokens, second and kilogram, exactly."""
    assert parse_price(text, per, "CNY") == nano


@pytest.mark.parametrize(
    ("text", "per", "hint"),
    [
        ("0.38 USD/kWh", "kWh", "CNY/kWh"),
        ("0.38 CNY/Mtok", "kWh", "CNY/kWh"),
        ("0.38 CNY", "kWh", "CNY/kWh"),
        ("1 CNY/day", "s", "CNY/h"),
        ("1 CNY/lb", "kg", "CNY/kg"),
        ("1 CNY/kWh", "Mtok", "CNY/Mtok"),
    ],
)
def test_a_price_of_another_family_or_currency_is_refused(text: str, per: str, hint: str) -> None:
    """The hint shows a price that would be accepted."""
    with pytest.raises(BadQuantity) as caught:
        parse_price(text, per, "CNY")
    assert hint in str(caught.value.hint)


@given(st.integers(-BIG, BIG), st.lists(st.integers(0, BIG), min_size=1, max_size=12))
def test_a_split_loses_nothing_and_is_never_a_unit_away_from_fair(total: int, weights: list[int]) -> None:
    """Parts sum to the total, have its sign, and each is the exact share rounded up or down."""
    parts = split(total, weights)
    assert sum(parts) == total
    whole = sum(weights)
    fair = weights if whole else [1] * len(weights)
    for part, weight in zip(parts, fair, strict=True):
        assert abs(part - Fraction(total * weight, sum(fair))) < 1
        assert part == 0 or (part < 0) == (total < 0)
        assert part == 0 or weight > 0


@given(st.integers(-BIG, BIG), st.lists(st.integers(0, 10**6), min_size=1, max_size=12))
def test_a_split_mirrors_and_favours_the_largest_remainder(total: int, weights: list[int]) -> None:
    """The units left over go to the largest remainders, the earlier of equals; a negative total is the mirror image."""
    parts = split(total, weights)
    assert split(-total, weights) == [-part for part in parts]
    fair = weights if sum(weights) else [1] * len(weights)
    floors = [abs(total) * weight // sum(fair) for weight in fair]
    remainders = [abs(total) * weight % sum(fair) for weight in fair]
    raised = [i for i, part in enumerate(parts) if abs(part) > floors[i]]
    kept = [i for i in range(len(parts)) if i not in raised]
    assert all((remainders[r], -r) > (remainders[k], -k) for r in raised for k in kept)


def test_known_splits() -> None:
    """Ties go to the earlier part; no weight at all is the same weight for all."""
    assert split(10, [1, 1, 1]) == [4, 3, 3]
    assert split(-10, [1, 1, 1]) == [-4, -3, -3]
    assert split(5, [0, 0]) == [3, 2]
    assert split(7, [0, 3, 0]) == [0, 7, 0]
    assert split(0, [2, 1]) == [0, 0]


@pytest.mark.parametrize("weights", [[], [-1, 2]])
def test_a_total_without_a_place_to_go_is_an_error(weights: list[int]) -> None:
    """An empty or a negative weighting is a mistake of the caller, never a lost total."""
    with pytest.raises(ValueError, match="non-negative weights"):
        split(1, weights)


@given(st.integers(0, BIG), st.integers(0, BIG))
def test_energy_of_a_power_is_rounded_half_up(power_mw: int, duration_ns: int) -> None:
    """Milliwatts times nanoseconds become millijoules, at most half a millijoule away, halves upwards."""
    exact = Fraction(power_mw * duration_ns, NS_PER_S)
    assert -Fraction(1, 2) < energy_mj(power_mw, duration_ns) - exact <= Fraction(1, 2)


@given(st.integers(-BIG, BIG), st.integers(0, BIG), st.integers(1, BIG))
def test_an_amount_at_a_rate_is_rounded_half_up(amount: int, per_unit: int, unit: int) -> None:
    """The result is the nearest integer, halves upwards, however large the numbers."""
    exact = Fraction(amount * per_unit, unit)
    assert -Fraction(1, 2) < rate_of(amount, per_unit, unit) - exact <= Fraction(1, 2)


def test_known_rounding() -> None:
    """One half goes up, less goes down."""
    assert energy_mj(1, NS_PER_S // 2) == 1
    assert energy_mj(1, NS_PER_S // 2 - 1) == 0
    assert rate_of(1, 1, 2) == 1
    assert rate_of(1, 1, 3) == 0
    assert rate_of(MJ_PER_KWH, 120_000_000, MJ_PER_KWH) == 120_000_000


@given(st.integers(-(10**24), 10**24))
def test_money_as_text_is_exact_and_comes_back(nano: int) -> None:
    """No float is on the way: the text is the amount, to the last of nine decimals, with at least cents."""
    text = money_text(nano, "USD")
    assert Fraction(text.removesuffix(" USD")) * NANO == nano
    assert len(text.split(".")[1].removesuffix(" USD")) >= 2
    if nano:
        assert parse_money(text, "USD") == nano


@given(st.integers(-(10**24), 10**24))
def test_standard_tokens_as_text_are_exact(ustu: int) -> None:
    """The text is the amount, without trailing zeros or a bare point."""
    text = stu_text(ustu)
    number = text.removesuffix(" STU")
    assert Fraction(number) * 1_000_000 == ustu
    assert not ("." in number and number.endswith(("0", ".")))


def test_known_texts() -> None:
    """What a person sees."""
    assert money_text(1_234_567, "USD") == "0.001234567 USD"
    assert money_text(-2_500_000_000, "CNY") == "-2.50 CNY"
    assert money_text(0, "USD") == "0.00 USD"
    assert money_text(1_239_000_000, "USD", digits=2) == "1.23 USD"
    assert stu_text(1_500_000) == "1.5 STU"
    assert stu_text(-2_000_000) == "-2 STU"
    assert stu_text(20_000_000) == "20 STU"
    assert stu_text(1) == "0.000001 STU"
