"""Rate cards and price books as documents: versioned, dated, immutable, and signed when the operator has a key.

A new version never edits an old one: it has its own date from which it holds. The signature is Ed25519 over canonical
JSON, so that anybody with the public key can check what a receipt cites.
"""

from __future__ import annotations

import re
import tomllib
from collections.abc import Iterable
from datetime import datetime
from fractions import Fraction
from typing import Any, Literal, TypeVar

import msgspec
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey

from tokenworks.core.errors import BadQuantity
from tokenworks.core.units import MICRO, NS_PER_S, parse_price
from tokenworks.core.words import BUCKETS, Word


class RateLine(Word, frozen=True):
    """A model's rates: micro-STU per native token, by bucket."""

    model: str
    ustu: dict[str, int]


class RateCard(Word, frozen=True, tag="rate_card"):
    """One version of the rates of a series, in force from ``effective_ns`` (UTC). It is never edited."""

    version: str
    series: str
    effective_ns: int
    reference_class: str
    lines: tuple[RateLine, ...]

    @property
    def line_of(self) -> str:
        """The line of succession in which a later version replaces an earlier one."""
        return f"rate_card:{self.series}"

    @property
    def name(self) -> str:
        """Of this version, once for ever."""
        return f"{self.line_of}@{self.version}"


class PriceLine(Word, frozen=True):
    """A model's prices for one class of accounts and one tier of service: nano per million native tokens, by bucket."""

    model: str
    nano_per_mtok: dict[str, int]
    price_class: str = "standard"
    tier: str = "standard"


class PriceBook(Word, frozen=True, tag="price_book"):
    """One version of the prices of a series. ``own`` prices are charged; ``list`` prices are others', to compare."""

    version: str
    series: str
    effective_ns: int
    currency: str
    kind: Literal["own", "list"]
    source: str
    """Who says so and when."""
    lines: tuple[PriceLine, ...]

    @property
    def line_of(self) -> str:
        """As of a rate card; each currency has its own."""
        return f"price_book:{self.series}/{self.currency}"

    @property
    def name(self) -> str:
        """As of a rate card."""
        return f"{self.line_of}@{self.version}"


Card = RateCard | PriceBook


class Signature(Word, frozen=True):
    """Ed25519 over the canonical bytes of a card; both in hexadecimal."""

    public_key: str
    signature: str


def canonical(card: Card) -> bytes:
    """What is signed: JSON with sorted keys and no spaces, after a line that says what it is."""
    return b"tokenworks card v1\n" + msgspec.json.encode(card, order="sorted")


def sign_card(card: Card, key: Ed25519PrivateKey) -> Signature:
    """The operator's word that this is the card."""
    return Signature(public_key=key.public_key().public_bytes_raw().hex(), signature=key.sign(canonical(card)).hex())


def verify_card(card: Card, signature: Signature | None, public_key: str) -> bool:
    """Did the holder of ``public_key`` (hexadecimal) sign exactly this card? An unsigned card verifies for nobody."""
    if signature is None or signature.public_key != public_key:
        return False
    try:
        key = Ed25519PublicKey.from_public_bytes(bytes.fromhex(public_key))
        key.verify(bytes.fromhex(signature.signature), canonical(card))
    except (InvalidSignature, ValueError):
        return False
    return True


_Card = TypeVar("_Card", RateCard, PriceBook)


def in_force(cards: Iterable[_Card], time_ns: int) -> _Card | None:
    """The latest of these that holds at an instant; None before the first."""
    return max((card for card in cards if card.effective_ns <= time_ns), key=lambda c: c.effective_ns, default=None)


class _File(msgspec.Struct, forbid_unknown_fields=True):
    card: list[dict[str, Any]] = []
    book: list[dict[str, Any]] = []


def read_cards(text: str) -> tuple[tuple[RateCard, ...], tuple[PriceBook, ...]]:
    """Cards and books as TOML, in the form of ``data/prices.toml``. Raises BadQuantity for what cannot be booked."""
    try:
        file = msgspec.convert(tomllib.loads(text), _File)
        return tuple(_card(raw) for raw in file.card), tuple(_book(raw) for raw in file.book)
    except BadQuantity:
        raise
    except (ValueError, RecursionError, msgspec.ValidationError) as error:
        raise BadQuantity(f"that is no price list: {error}", hint="write it like the shipped prices.toml") from None


def _card(raw: dict[str, Any]) -> RateCard:
    lines = [
        RateLine(model=model, ustu={bucket: _ustu(text) for bucket, text in said.items()})
        for model, said, _ in _lines(raw, charged=True)
    ]
    return msgspec.convert({"type": "rate_card", "effective_ns": _effective_ns(raw), **raw, "lines": lines}, RateCard)


def _book(raw: dict[str, Any]) -> PriceBook:
    currency = str(raw.get("currency"))
    lines = [
        PriceLine(model=model, nano_per_mtok={b: _nano(text, currency) for b, text in said.items()}, **column)
        for model, said, column in _lines(raw, charged=raw.get("kind") == "own")
    ]
    return msgspec.convert({"type": "price_book", "effective_ns": _effective_ns(raw), **raw, "lines": lines}, PriceBook)


def _lines(raw: dict[str, Any], charged: bool) -> list[tuple[str, dict[str, str], dict[str, str]]]:
    """Of each line its model, what it says of buckets, and its class and tier where it names them."""
    found, general = [], not charged
    for line in msgspec.convert(raw.pop("line", []), list[dict[str, str]]):
        model = line.pop("model", "")
        column: dict[str, str] = {name: line.pop(name) for name in ("price_class", "tier") if name in line}
        for name in line.keys() - {*BUCKETS}:
            raise BadQuantity(f"{name!r} is no usage bucket", hint=f"one of: {', '.join(BUCKETS)}")
        general |= model == "*" and not column and {"input", "output"} <= line.keys()
        found.append((model, line, column))
    if not general:
        raise BadQuantity("a card prices only some models", hint='add a line: model = "*", input and output')
    return found


def _effective_ns(raw: dict[str, Any]) -> int:
    date = raw.pop("effective", None)
    if not isinstance(date, datetime) or date.tzinfo is None:
        raise BadQuantity(f"{date} is no instant", hint="write it with its zone, like 2026-11-01T00:00:00Z")
    return int(date.timestamp()) * NS_PER_S


def _ustu(text: str) -> int:
    if not re.fullmatch(r"\d{1,9}(\.\d{1,6})?", text):
        raise BadQuantity(f"{text!r} STU per token cannot be booked", hint="use at most six decimals, not negative")
    return int(Fraction(text) * MICRO)


def _nano(text: str, currency: str) -> int:
    nano = parse_price(f"{text} {currency}/Mtok", "Mtok", currency)
    if nano < 0:
        raise BadQuantity(f"a price of {text} cannot be booked", hint="a price is 0 or more")
    return nano
