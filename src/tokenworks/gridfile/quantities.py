"""Quantities of the grid file: text with a unit in, integers in the smallest unit out."""

from __future__ import annotations

import re
from collections.abc import Iterator
from decimal import Decimal
from fractions import Fraction
from types import NoneType
from typing import Annotated, Any, Literal, get_args, get_origin

import msgspec
from msgspec import Meta

from tokenworks.core import units
from tokenworks.core.errors import BadQuantity, did_you_mean
from tokenworks.gridfile.place import At, PlaceError


def currency_of(raw: dict[str, Any]) -> str:
    """The grid's currency, read first because every amount of money is checked against it."""
    exchange = raw.get("exchange")
    currency = exchange.get("currency", "USD") if isinstance(exchange, dict) else "USD"
    if isinstance(currency, str) and not re.fullmatch("[A-Z]{3}", currency):
        raise PlaceError(("exchange", "currency"), "is not a currency", "three capital letters of ISO 4217, like USD")
    return str(currency)


def quantities(table: type[msgspec.Struct], raw: Any, at: At, currency: str) -> None:
    """Replace every written quantity of a table by its integer, in place; refuse unknown keys and wrong choices."""
    if not isinstance(raw, dict):
        return  # _convert says so, with the type that belongs there
    fields = {each.encode_name: each for each in msgspec.structs.fields(table)}
    for key, value in raw.items():
        here = (*at, key)
        if key not in fields:
            raise PlaceError(here, "unknown key", did_you_mean(key, fields, "known here: " + ", ".join(fields)))
        for kind in dict.fromkeys(_members(fields[key].type)):  # one table or several: the same table
            if isinstance(kind, type) and issubclass(kind, msgspec.Struct):
                for index, item in enumerate(value) if isinstance(value, list) else ((None, value),):
                    quantities(kind, item, here if index is None else (*here, index), currency)
            elif isinstance(kind, Meta) and kind.extra:
                raw[key] = _quantity(kind.extra["quantity"], kind.extra["example"], value, here, currency)
            elif get_origin(kind) is Literal:
                wrong = [w for w in (value if isinstance(value, list) else [value]) if w not in get_args(kind)]
                if wrong and isinstance(wrong[0], str):
                    raise PlaceError(here, f"{wrong[0]!r} is not known here", f"one of {', '.join(get_args(kind))}")


def _members(kind: Any) -> Iterator[Any]:
    """The Literals, quantities and tables that a field's type is made of."""
    if get_origin(kind) is Annotated:
        yield from kind.__metadata__
    elif get_origin(kind) in (None, Literal):
        yield kind
    else:
        for part in get_args(kind):
            if part not in (NoneType, Ellipsis):
                yield from _members(part)


def _quantity(kind: str, example: str, value: Any, at: At, currency: str) -> Any:
    """One quantity in its smallest unit; raises PlaceError when it is negative, too large or not of this kind."""
    example = "like " + example.replace("USD", currency)
    if kind == "mix":
        return _mix(value, at, example)
    if kind == "amounts":
        if not isinstance(value, dict):
            raise PlaceError(at, "must be a table of names and amounts", example)
        return {name: _number(amount, (*at, name), "like 0.5", micro=False) for name, amount in value.items()}
    try:
        if kind in ("stu", "pue"):
            amount = _number(value, at, example, micro=kind == "stu")
        elif not isinstance(value, str):
            raise PlaceError(at, "must be a string with a number and its unit", example)
        elif len(value) > 64 or re.search(r"[eE][+-]?\d{3}", value):  # 1e999999999 would be computed to the last digit
            raise PlaceError(at, "is not a quantity", example)
        elif kind == "money":
            amount = units.parse_money(value, currency)
        elif kind == "h":  # as units.parse_price would, but per second the rounding of a small price is 1 % of it
            head, _, per = value.rpartition("/")
            if per.strip() not in ("h", "s"):
                raise PlaceError(at, f"{value!r} is not a price in {currency} per h", example)
            amount = units.parse_money(head, currency) * (1 if per.strip() == "h" else 3600)
        elif kind in ("kWh", "Mtok", "kg"):
            amount = units.parse_price(value, kind, currency)
        else:
            amount = units.parse(value, kind)
    except BadQuantity as error:
        raise PlaceError(at, error.message, error.hint) from error
    if amount < 0 or amount > units.FIGURE_MAX:
        raise PlaceError(at, f"{value} is {'negative' if amount < 0 else 'larger than the books can count'}", example)
    return amount


def _number(value: Any, at: At, example: str, *, micro: bool) -> int:
    """A plain number in millionths (``micro``; more than 6 decimals are refused, not rounded) or thousandths."""
    if isinstance(value, str) and re.fullmatch(r"[+-]?\d{1,18}(\.\d{1,18})?", value, re.ASCII):
        value = Decimal(value)
    sound = isinstance(value, int) and not isinstance(value, bool) and abs(value) <= units.FIGURE_MAX
    if isinstance(value, Decimal):  # no nan or inf, no 1e999999999, no million digits
        sound = value.is_finite() and abs(value.adjusted()) <= 18 and len(value.as_tuple().digits) <= 36
    if not sound:
        raise PlaceError(at, "must be a number", example)
    scaled = Fraction(value) * (1_000_000 if micro else 1000)
    if micro and scaled.denominator != 1:
        raise PlaceError(at, f"{value} has more than 6 decimals")
    return round(scaled)


def _mix(value: Any, at: At, example: str) -> dict[str, int]:
    """Shares of energy sources as permille that sum to 1000, by largest remainder."""
    if not isinstance(value, dict) or not value:
        raise PlaceError(at, "must be a table of sources and their shares", example)
    shares = [_number(share, (*at, source), "like 0.3", micro=True) for source, share in value.items()]
    if min(shares) < 0:
        raise PlaceError(at, "a share is negative", example)
    if abs(sum(shares) - 1_000_000) > 1000:
        raise PlaceError(at, f"the shares sum to {Decimal(sum(shares)) / 1_000_000}, not to 1", example)
    return dict(zip(value, units.split(1000, shares), strict=True))
