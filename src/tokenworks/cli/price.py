"""``tokenworks price``: what tokens cost and when that changes, and price lists signed and checked as files."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import msgspec
from rich.console import RenderableType
from rich.text import Text

from tokenworks.cli import given, out
from tokenworks.cli.out import Answer, command
from tokenworks.core.clock import WallClock, utc_text
from tokenworks.core.errors import DataDirError
from tokenworks.core.ids import random_bytes
from tokenworks.core.words import BUCKETS
from tokenworks.datadir import data_directory, read_keys, read_run
from tokenworks.exchange.cards import sign_card
from tokenworks.exchange.log.checkpoint import load_key, new_key, save_key
from tokenworks.exchange.price_file import load_price_list, signatures_path, signer
from tokenworks.exchange.prices import STANDS_IN, PriceList, shipped_prices

SIGNER = "prices"


def known_prices(data: Path) -> tuple[PriceList, str]:
    """The prices of the grid of a data directory, and whose they are; before its first start what ships."""
    try:
        found = msgspec.json.decode((data / "prices.json").read_bytes(), type=PriceList)
    except FileNotFoundError:
        keys = read_keys(data)
        return shipped_prices(keys.currency if keys else "USD"), "what ships; no grid has told its own"
    except (OSError, msgspec.DecodeError) as error:
        raise DataDirError(f"cannot read {data / 'prices.json'}: {error}") from error
    return found, "the running grid" if read_run(data) else "the grid when it last ran"


@command
def price_show(model: str | None = None, /, *, at: str | None = None, file: Path | None = None) -> Answer:
    """What tokens cost, in standard tokens and in money, with what others list beside.

    Args:
        model: Only this one; without it every model that has a line, and "*" for all others.
        at: An instant or a day in UTC, like 2026-12-01 or 2026-12-01T08:00; now without it.
        file: A price list, instead of the grid's.
    """
    prices, whose = known_prices(data_directory())
    if file is not None:
        prices, whose = load_price_list(file, prices.currency), str(file)
    at_ns = WallClock().now_ns() if at is None else given.instant_ns(at)
    now, change_ns = prices.at(at_ns), prices.next_change_ns(at_ns)
    head = {
        "prices_of": whose, "at": utc_text(at_ns), "rate_card": now.rate_card, "price_book": now.price_book,
        "next_change": out.when(change_ns),
        "signed_by": {name: signature.public_key for name, signature in prices.signatures.items()},
    }  # fmt: skip
    models = [model] if model else sorted({*now.rates, *now.prices, *(m for c in now.classes.values() for m in c)})
    shown: list[RenderableType] = [Text(f"{name:12} {value or '-'}") for name, value in head.items()]
    lines = []
    for each in models:
        rates = {bucket: rate for bucket, (rate, _) in now.line(each).items()}
        columns = _columns(prices, each, at_ns)
        lines.append({"model": each, "ustu_per_token": rates, "nano_per_mtok": columns})
        differ = [b for b in BUCKETS if any(_differs(line, b) for line in (rates, *(c["line"] for c in columns)))]
        rows = [(b, out.stu(rates[b]), *(out.money(c["line"][b], c["currency"]) for c in columns)) for b in differ]
        heads = ("bucket", "a token", *(column["of"] for column in columns))
        title = f"\n{each}; money per million tokens; what is not shown costs as input or output"
        shown.append(out.table(title, heads, rows, right=heads[1:]))
    return Answer(head | {"models": lines}, shown)


def _columns(prices: PriceList, model: str, at_ns: int) -> list[dict[str, Any]]:
    """Own prices by class and tier, then others' list prices, each by bucket in nano per million tokens."""
    now = prices.at(at_ns)
    lines = {name: now.line(model, *name.split("/")) for name in ("standard", *now.classes)}
    own = [
        {"of": name, "currency": now.currency, "line": {bucket: price for bucket, (_, price) in line.items()}}
        for name, line in lines.items()
    ]
    listed = [
        {"of": book.series, "currency": book.currency, "version": book.version, "source": book.source, "line": line}
        for book, line in prices.listed(model, at_ns)
    ]
    return [*own, *listed]


def _differs(line: dict[str, int], bucket: str) -> bool:
    return bucket not in STANDS_IN or line[bucket] != line[STANDS_IN[bucket]]


@command
def price_sign(file: Path, /, *, key: Path) -> Answer:
    """Sign every card and book of a price list, offline. The signatures go to FILE.sig.

    Args:
        file: The price list, as TOML.
        key: The private key, as PEM; made when there is none. Keep it away from the grid.
    """
    prices = load_price_list(file, "")
    if not key.exists():
        save_key(key, new_key(SIGNER, random_bytes))
        out.note(f"made a new key: {key}; whoever has it can sign prices in your name")
    private = load_key(key, SIGNER).private
    signatures = {card.name: sign_card(card, private) for card in prices.every_card()}
    given.write(signatures_path(file), msgspec.json.format(msgspec.json.encode(signatures)) + b"\n")
    public = private.public_key().public_bytes_raw().hex()
    said = f'signed {", ".join(signatures)}; for the grid file: price_keys = ["{public}"]'
    return Answer({"public_key": public, "signed": [*signatures]}, [said])


@command
def price_verify(file: Path, /, *, key: str | None = None) -> Answer:
    """Check the signatures of a price list, offline. Exit status 1 when one is missing or wrong.

    Args:
        file: The price list; its signatures are in FILE.sig.
        key: The operator's public key, in hexadecimal. Without it each is checked with the key that came with it, which
            shows only that they fit together.
    """
    prices = load_price_list(file, "")
    found = {card.name: signer(prices, card, [key] if key else []) for card in prices.every_card()}
    sound = bool(found) and all(found.values())
    lines = [f"ok     {n}: {by}" if by else f"WRONG  {n}: not signed, or not by that key" for n, by in found.items()]
    return Answer({"ok": sound, "signed_by": found}, lines, 0 if sound else 1)
