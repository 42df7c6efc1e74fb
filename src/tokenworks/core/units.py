"""Quantities: what the books count, and how text becomes a number.

Everything that reaches a book is an integer in its smallest unit (DESIGN, "three books that close"):

========  =====================  ==========
suffix    unit                   one of it
========  =====================  ==========
_nano     money                  1e-9 of the grid's currency
_ustu     standard tokens        1e-6 STU
_mj       energy                 1 millijoule
_ug       carbon                 1 microgram of CO2 equivalent
_ns       time                   1 nanosecond, UTC since 1970 for instants
_mw       power                  1 milliwatt
_ul       water                  1 microlitre
========  =====================  ==========
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from fractions import Fraction
from typing import Final

from tokenworks.core.errors import BadQuantity, nearest

NANO = 1_000_000_000
"""Smallest units of money in one unit of currency; also nanoseconds in a second."""
MICRO = 1_000_000
"""Micro-STU in one standard token."""
MJ_PER_KWH = 3_600_000_000
"""Millijoules in one kilowatt-hour."""
NS_PER_S = 1_000_000_000
FIGURE_MAX: Final = 2**62 - 1
"""The largest figure of the books: 64 bits of a database's column hold the sum or the difference of two as well."""
NS_PER_MS = 1_000_000
NS_PER_US = 1_000

_SCALES: dict[str, dict[str, int]] = {  # -> the smallest unit
    "power": {"mW": 1, "W": 10**3, "kW": 10**6, "MW": 10**9, "GW": 10**12},
    "energy": {"mJ": 1, "J": 10**3, "Wh": 3_600_000, "kWh": MJ_PER_KWH, "MWh": 1_000 * MJ_PER_KWH},
    "time": {
        "ns": 1,
        "us": NS_PER_US,
        "ms": NS_PER_MS,
        "s": NS_PER_S,
        "min": 60 * NS_PER_S,
        "m": 60 * NS_PER_S,
        "h": 3_600 * NS_PER_S,
        "d": 86_400 * NS_PER_S,
        "year": 31_557_600 * NS_PER_S,
    },
    "memory": {"B": 1, "kB": 10**3, "MB": 10**6, "GB": 10**9, "TB": 10**12, "KiB": 2**10, "MiB": 2**20, "GiB": 2**30},
    "mass": {"g": 10**6, "kg": 10**9, "t": 10**12},
    "carbon": {"g/kWh": 10**6, "kg/kWh": 10**9, "kg/MWh": 10**6},
    "stu": {"STU": MICRO, "kSTU": 1_000 * MICRO, "MSTU": 10**6 * MICRO},
}
_PER: dict[str, int] = {"kWh": 1, "MWh": 1_000, "Mtok": 1, "tok": -1_000_000, "s": 1, "h": 3_600, "kg": 1, "t": 1_000}
_TEXT_MAX = 64
_NUMBER = re.compile(r"\s*([+-]?\d+(?:[_\d]*\d)?(?:\.\d+)?(?:[eE][+-]?\d{1,2})?)\s*(\S.*?)?\s*")


def _split(text: str, what: str) -> tuple[Fraction, str]:
    match = _NUMBER.fullmatch(text) if len(text) <= _TEXT_MAX else None  # bounded: 1e999999999 would fill the memory
    if match is None:
        raise BadQuantity(f"{text!r} is not a {what}", hint="write a number and a unit, like " + _EXAMPLES[what])
    return Fraction(match[1].replace("_", "")), match[2] or ""


_EXAMPLES = {
    "power": '"4 MW"',
    "energy": '"500 kWh"',
    "time": '"60 s"',
    "memory": '"24 GB"',
    "mass": '"150 kg"',
    "carbon": '"480 g/kWh"',
    "stu": '"10 MSTU"',
    "price": '"0.38 CNY/kWh"',
    "money": '"25 USD"',
}


def _whole(value: Fraction, text: str) -> int:
    """Round to the smallest unit, half to even. Written quantities below it would silently become 0: refuse."""
    whole = round(value)
    if whole == 0 and value != 0:
        raise BadQuantity(f"{text!r} is smaller than the smallest unit that the books count")
    return whole


def parse(text: str, kind: str) -> int:
    """Read ``"4 MW"`` (kind ``power``), ``"60 s"``, ``"24 GB"``, ``"480 g/kWh"`` or ``"10 MSTU"`` as smallest units.

    Raises BadQuantity, naming the nearest known unit, when the number or its unit cannot be read.
    """
    number, unit = _split(text, kind)
    scale = _SCALES[kind].get(unit)
    if scale is None:
        known = list(_SCALES[kind])
        near = nearest(unit, known) if unit else None
        wrong = f"unknown unit {unit!r} in {text!r}" if unit else f"{text!r} has no unit"
        raise BadQuantity(wrong, hint=f"did you mean {near!r}?" if near else f"write it like {_EXAMPLES[kind]}")
    return _whole(number * scale, text)


def parse_money(text: str, currency: str) -> int:
    """Read ``"25 USD"`` as nano-currency. Raises BadQuantity for another currency: nothing is converted silently."""
    number, unit = _split(text, "money")
    if unit != currency:
        raise BadQuantity(
            f"{text!r} is not in {currency}", hint=f"the grid's currency is {currency}; write amounts in it"
        )
    return _whole(number * NANO, text)


def parse_price(text: str, per: str, currency: str) -> int:
    """Read ``"0.38 CNY/kWh"`` as nano-currency per ``per`` ("kWh", "Mtok", "s" or "kg").

    ``USD/MWh`` is accepted for kWh, ``USD/tok`` for Mtok, ``USD/h`` for s, ``USD/t`` for kg.
    """
    number, unit = _split(text, "price")
    money, _, divisor = unit.partition("/")
    families = {"kWh": ("kWh", "MWh"), "Mtok": ("Mtok", "tok"), "s": ("s", "h"), "kg": ("kg", "t")}
    if money != currency or divisor not in families[per]:
        raise BadQuantity(
            f"{text!r} is not a price in {currency} per {per}",
            hint=f'write it like "0.12 {currency}/{families[per][-1] if per == "s" else per}"',
        )
    factor = Fraction(1, _PER[divisor]) if _PER[divisor] > 0 else Fraction(-_PER[divisor])
    return _whole(number * NANO * factor, text)


def split(total: int, weights: Sequence[int]) -> list[int]:
    """Split an integer by non-negative integer weights, exactly, by largest remainder; ties go to the earlier one.

    The parts always sum to ``total`` (which may be negative). All weights zero: equal weights.
    Raises ValueError for an empty or negative weighting, since the total would have nowhere to go.
    """
    if not weights or min(weights) < 0:
        raise ValueError("a total can only be split over one or more non-negative weights")
    whole = sum(weights)
    if whole == 0:
        return split(total, [1] * len(weights))
    sign = -1 if total < 0 else 1
    size = abs(total)
    parts = [size * weight // whole for weight in weights]
    left = size - sum(parts)
    by_remainder = sorted(range(len(weights)), key=lambda i: (-(size * weights[i] % whole), i))
    for i in by_remainder[:left]:
        parts[i] += 1
    return [sign * part for part in parts]


def energy_mj(power_mw: int, duration_ns: int) -> int:
    """Millijoules of a constant power over a time, rounded half up (both non-negative)."""
    return (power_mw * duration_ns + NS_PER_S // 2) // NS_PER_S


def rate_of(amount: int, per_unit: int, unit: int) -> int:
    """``amount * per_unit / unit`` rounded half up: the money or carbon of an amount at a rate."""
    return (2 * amount * per_unit + unit) // (2 * unit)


def money_text(nano: int, currency: str, digits: int = 9) -> str:
    """``1234567`` -> ``"0.001234567 USD"``: exact, no float on the way; trailing zeros beyond cents are dropped."""
    sign = "-" if nano < 0 else ""
    whole, fraction = divmod(abs(nano), NANO)
    tail = f"{fraction:09d}"[:digits].rstrip("0").ljust(2, "0")
    return f"{sign}{whole}.{tail} {currency}"


def stu_text(ustu: int) -> str:
    """``1500000`` -> ``"1.5 STU"``: exact."""
    sign = "-" if ustu < 0 else ""
    whole, fraction = divmod(abs(ustu), MICRO)
    decimals = "." + str(MICRO + fraction)[1:].rstrip("0") if fraction else ""
    return f"{sign}{whole}{decimals} STU"
