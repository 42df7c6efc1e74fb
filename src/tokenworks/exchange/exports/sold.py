"""What the exports need from one settlement, and how its sums are split over its usage buckets without losing a nano.

A row carries the versions of card and book that rated it; ``Catalogue`` finds them again. Where a version is not in it
(somebody else's export of an old period) shares follow token counts and there is no unit price: sums stay exact.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from datetime import UTC, datetime
from typing import NamedTuple

from tokenworks.core.units import NS_PER_S, split
from tokenworks.core.words import Usage, Word, like
from tokenworks.exchange.calendar import window_end_ns, window_start_ns
from tokenworks.exchange.prices import Prices
from tokenworks.exchange.words import Burn, Grant, Settlement

Catalogue = Mapping[tuple[str, str], Prices]
"""(rate card, price book) -> the prices of that time."""


class Sold(Word, frozen=True):
    """One settled request, as exports see it. Amounts as in ``Settlement``; energy and carbon are None when unknown."""

    receipt: str
    account: str
    account_name: str
    budget: str
    key: str
    at_ns: int
    model: str
    usage: Usage
    ustu: int
    nano: int
    loss_nano: int
    list_nano: int
    burned: tuple[Burn, ...]
    entity: str
    site: str
    rate_card: str
    price_book: str
    currency: str
    energy_mj: int | None
    carbon_ug: int | None
    loss_ustu: int = 0
    price_class: str = "standard"

    @property
    def charged_nano(self) -> int:
        """What the customer owes in money."""
        return self.nano - self.loss_nano

    @property
    def charged_ustu(self) -> int:
        """What the customer consumed, from packages and for money."""
        return self.ustu - self.loss_ustu

    @property
    def covered_ustu(self) -> int:
        """What packages paid."""
        return sum(burn.ustu for burn in self.burned)


class Purchase(Word, frozen=True):
    """A package sold to an account."""

    id: str
    account: str
    account_name: str
    package: str
    size_ustu: int
    price_nano: int
    currency: str
    at_ns: int
    effective_ns: int
    expires_ns: int | None


class Credit(Word, frozen=True):
    """Money given back to an account: a refund or goodwill. ``nano`` is positive and lowers what is owed."""

    id: str
    account: str
    account_name: str
    nano: int
    currency: str
    at_ns: int
    reason: str


class Part(NamedTuple):
    """One bucket's share of a row. The shares of a row sum to the row."""

    bucket: str
    tokens: int
    ustu: int
    nano: int
    """Charged."""
    covered_ustu: int
    energy_mj: int | None
    carbon_ug: int | None


def sold_of(
    settled: Settlement, *, account_name: str = "", price_class: str = "standard", energy_mj: int | None = None,
    carbon_ug: int | None = None,
) -> Sold:  # fmt: skip
    """A settlement as a row; ``energy_mj`` with its share of the site's overhead."""
    return like(
        settled, Sold, account_name=account_name or settled.account, model=settled.model_served,
        site=settled.decision.chosen.site if settled.decision else "", price_class=price_class, energy_mj=energy_mj,
        carbon_ug=carbon_ug,
    )  # fmt: skip


def purchase_of(grant: Grant, currency: str, account_name: str = "") -> Purchase:
    """A grant as it was sold."""
    name = account_name or grant.account
    return like(grant, Purchase, account_name=name, currency=currency, at_ns=grant.created_ns)


def catalogue(prices: Iterable[Prices]) -> dict[tuple[str, str], Prices]:
    """Prices by the versions that receipts cite."""
    return {(each.rate_card, each.price_book): each for each in prices}


def parts(row: Sold, prices: Prices | None) -> list[Part]:
    """The row by bucket, each figure by largest remainder: money by list value, STU by rate, energy by tokens."""
    used = row.usage.counts() or ((("output", 0),) if row.nano or row.ustu else ())
    if not used:
        return []
    tokens = [count for _, count in used]
    line = prices.line(row.model, row.price_class) if prices else {bucket: (1, 1) for bucket, _ in used}
    by_rate = [count * line[bucket][0] for bucket, count in used]
    by_price = [count * line[bucket][1] for bucket, count in used]
    energy, carbon = (
        [None] * len(used) if sum_ is None else split(sum_, tokens) for sum_ in (row.energy_mj, row.carbon_ug)
    )
    split_up = split(row.ustu, by_rate), split(row.charged_nano, by_price), split(row.covered_ustu, by_rate)
    names = (bucket for bucket, _ in used)
    return [Part(*each) for each in zip(names, tokens, *split_up, energy, carbon, strict=True)]


def instant(ns: int) -> datetime:
    """An instant in UTC, to the second below."""
    return datetime.fromtimestamp(ns // NS_PER_S, tz=UTC)


def iso(ns: int) -> str:
    """``2026-11-21T03:46:00Z``."""
    return instant(ns).strftime("%Y-%m-%dT%H:%M:%SZ")


def nanos(at: datetime) -> int:
    """Nanoseconds since 1970 of an instant to the second."""
    return int(at.timestamp()) * NS_PER_S


def month_of(ns: int) -> tuple[int, int]:
    """The calendar month in UTC that an instant is in, as [start, end) in nanoseconds."""
    start_ns = window_start_ns("month", ns)
    return start_ns, window_end_ns("month", start_ns) or start_ns


def invoice_id(account: str, at_ns: int) -> str:
    """The invoice of the calendar month in which something was charged."""
    return f"{account}-{instant(at_ns):%Y%m}"


def decimal(amount: int, digits: int) -> str:
    """``amount`` of ``10 ** -digits`` as exact decimal text without needless zeros: ``decimal(1500, 3)`` is 1.5."""
    sign = "-" if amount < 0 else ""
    whole, fraction = divmod(abs(amount), 10**digits)
    tail = f"{fraction:0{digits}d}".rstrip("0") if fraction else ""
    return f"{sign}{whole}.{tail}" if tail else f"{sign}{whole}"
