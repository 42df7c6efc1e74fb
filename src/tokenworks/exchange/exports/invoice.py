"""The invoice of an account for a period: lines per model and bucket, packages, credits, and one line for rounding.

Three kinds of usage lines. ``paid``: tokens times the unit price of the book, so that a customer can multiply again.
``part``: requests that packages or the operator's loss covered in part, with what was charged of them. ``package``:
packages paid all. The sum of the lines plus the rounding line is exactly what the ledger says is owed.
"""

from __future__ import annotations

from collections.abc import Iterable
from html import escape
from typing import Literal, TypeVar

import msgspec

from tokenworks.core.errors import BooksDoNotClose
from tokenworks.core.units import money_text, stu_text
from tokenworks.core.words import Word, like
from tokenworks.exchange.exports.sold import Catalogue, Credit, Purchase, Sold, invoice_id, iso, month_of, parts
from tokenworks.exchange.prices import TOKENS_PER_PRICE, Prices

Funding = Literal["paid", "part", "package"]
_Row = TypeVar("_Row", Sold, Purchase, Credit)
_NOTHING = {"tokens": 0, "ustu": 0, "nano": 0}


class UsageLine(Word, frozen=True):
    """Tokens of one bucket of one model at one price; ``nano`` is owed for them."""

    funding: Funding
    model: str
    bucket: str
    price_book: str
    price_class: str
    unit_nano_per_mtok: int | None
    """None where quantity times price is not what is owed."""
    tokens: int
    ustu: int
    nano: int


class Invoice(Word, frozen=True):
    """``sum(lines) + sum(packages) - sum(credits) + rounding_nano == total_nano``."""

    id: str
    account: str
    account_name: str
    currency: str
    since_ns: int
    until_ns: int
    """Exclusive."""
    receipts: int
    lines: tuple[UsageLine, ...]
    packages: tuple[Purchase, ...]
    credits: tuple[Credit, ...]
    rounding_nano: int
    """What was charged, less quantity times price of the paid lines: below one nano per request."""
    total_nano: int
    ustu: int
    loss_nano: int
    """Delivered and not charged: the operator bore it."""


def invoice(
    sold: Iterable[Sold], *, account: str, account_name: str, currency: str, since_ns: int, until_ns: int,
    known: Catalogue, purchases: Iterable[Purchase] = (), credits_: Iterable[Credit] = (),
    owed_nano: int | None = None,
) -> Invoice:  # fmt: skip
    """The account's invoice of [since, until). Rows of others and of other times are left out.

    ``owed_nano`` is what the ledger says the customer came to owe in the period. Raises BooksDoNotClose when that is
    not the total, or when a row is in another currency.
    """
    sums: dict[UsageLine, list[int]] = {}
    used = _of(account, since_ns, until_ns, currency, sold)
    for row in used:
        _add(sums, row, known.get((row.rate_card, row.price_book)))
    charged = sum(row.charged_nano for row in used)
    lines = tuple(
        msgspec.structs.replace(key, tokens=tokens, ustu=ustu, nano=millionths // TOKENS_PER_PRICE)
        for key, (tokens, ustu, millionths) in sorted(sums.items(), key=str)
    )
    bought = _of(account, since_ns, until_ns, currency, purchases)
    given = _of(account, since_ns, until_ns, currency, credits_)
    total = charged + sum(each.price_nano for each in bought) - sum(each.nano for each in given)
    if owed_nano is not None and owed_nano != total:
        raise BooksDoNotClose(
            f"the invoice of {account} is {money_text(total, currency)} and the ledger says "
            f"{money_text(owed_nano, currency)}",
            hint="its rows are not all of the period, or a package or credit is missing",
        )
    monthly = (since_ns, until_ns) == month_of(since_ns)
    return Invoice(
        id=invoice_id(account, since_ns) if monthly else f"{account}-{iso(since_ns)}-{iso(until_ns)}",
        account=account, account_name=account_name, currency=currency, since_ns=since_ns, until_ns=until_ns,
        receipts=len(used), lines=lines, packages=tuple(bought), credits=tuple(given),
        rounding_nano=charged - sum(line.nano for line in lines), total_nano=total,
        ustu=sum(row.charged_ustu for row in used), loss_nano=sum(row.loss_nano for row in used),
    )  # fmt: skip


def _of(account: str, since_ns: int, until_ns: int, currency: str, rows: Iterable[_Row]) -> list[_Row]:
    """The account's rows of the period, oldest first."""
    own = [row for row in rows if row.account == account and since_ns <= row.at_ns < until_ns]
    if any(row.currency != currency for row in own):
        raise BooksDoNotClose(f"{account} has rows in another currency than {currency}", hint="invoice them apart")
    return sorted(own, key=lambda row: row.at_ns)


def _add(sums: dict[UsageLine, list[int]], row: Sold, prices: Prices | None) -> None:
    """Tokens, micro-STU and money into the lines; the money of a paid line in millionths of a nano, exact."""
    exact = prices.exact(row.model, row.usage, row.price_class)[1] if prices else 0
    off = row.charged_nano * TOKENS_PER_PRICE - exact
    if row.covered_ustu and not row.charged_nano:
        funding: Funding = "package"
    elif row.covered_ustu or row.loss_nano or prices is None or not -TOKENS_PER_PRICE < off < TOKENS_PER_PRICE:
        funding = "part"
    else:
        funding = "paid"
    line = prices.line(row.model, row.price_class) if prices else {}
    for part in parts(row, prices):
        unit = line[part.bucket][1] if funding == "paid" else None
        key = like(row, UsageLine, funding=funding, bucket=part.bucket, unit_nano_per_mtok=unit, **_NOTHING)
        into = sums.setdefault(key, [0, 0, 0])
        nano = part.nano * TOKENS_PER_PRICE if unit is None else part.tokens * unit
        into[:] = (a + b for a, b in zip(into, (part.tokens, part.ustu, nano), strict=True))


_STYLE = (
    "body{font:14px/1.5 system-ui,sans-serif;max-width:60em;margin:2em auto;padding:0 1em;color:#111}"
    "table{border-collapse:collapse;width:100%}th,td{padding:.3em .6em;border-bottom:1px solid #ccc;text-align:left}"
    "td.n,th.n{text-align:right;font-variant-numeric:tabular-nums}tfoot td{font-weight:bold;border-top:2px solid #111}"
    "@media print{body{margin:0;max-width:none}tr{break-inside:avoid}}"
)
_FUNDED = {"paid": "", "part": "charged in part", "package": "from packages"}


def as_html(made: Invoice) -> str:
    """The invoice as one printable page without outside resources; everything from the books is escaped."""
    currency = made.currency

    def row(what: str, note: str, tokens: str, price: str, nano: int) -> str:
        cells = "".join(f'<td class="n">{escape(each)}</td>' for each in (tokens, price, money_text(nano, currency)))
        return f"<tr><td>{escape(what)}</td><td>{escape(note)}</td>{cells}</tr>\n"

    body = ""
    for line in made.lines:
        unit = line.unit_nano_per_mtok
        price = "" if unit is None else f"{money_text(unit, currency)}/Mtok"
        tokens = f"{line.tokens:,}"
        what = f"{line.model}: {line.bucket.replace('_', ' ')}"
        body += row(what, f"{_FUNDED[line.funding]} {stu_text(line.ustu)}".strip(), tokens, price, line.nano)
    for package in made.packages:
        size = f"{stu_text(package.size_ustu)}, {iso(package.at_ns)}"
        body += row(f"Package {package.package}", size, "", "", package.price_nano)
    for credit in made.credits:
        body += row(f"Credit: {credit.reason}", iso(credit.at_ns), "", "", -credit.nano)
    if made.rounding_nano:
        body += row("Rounding", "below one billionth per request", "", "", made.rounding_nano)
    title = f"Invoice {escape(made.id)}"
    period = f"{iso(made.since_ns)} to {iso(made.until_ns)} (exclusive)"
    return (
        f'<!doctype html>\n<html lang="en"><head><meta charset="utf-8"><title>{title}</title>'
        f"<style>{_STYLE}</style></head>\n"
        f"<body><h1>{title}</h1>\n<p>{escape(made.account_name)} ({escape(made.account)})<br>\n"
        f"{period}, {made.receipts:,} requests, {stu_text(made.ustu)}</p>\n"
        '<table><thead><tr><th>What</th><th></th><th class="n">Tokens</th><th class="n">Unit price</th>'
        f'<th class="n">Amount</th></tr></thead>\n<tbody>\n{body}</tbody>\n<tfoot><tr><td colspan="4">Total</td>'
        f'<td class="n">{escape(money_text(made.total_nano, currency))}</td></tr></tfoot></table>\n</body></html>\n'
    )
