"""``tokenworks export``: the books in the forms that other people's tools read."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from functools import cached_property
from pathlib import Path
from typing import Any, Literal, NamedTuple, TypeVar

import msgspec

from tokenworks.cli import given
from tokenworks.cli import out as show
from tokenworks.cli.price import known_prices
from tokenworks.core.clock import WallClock
from tokenworks.core.errors import BadRequest
from tokenworks.core.units import NS_PER_S
from tokenworks.datadir import currency_of, data_directory
from tokenworks.exchange.ask import ask
from tokenworks.exchange.exports import cloudevents, focus, focus_table, invoice, journals, openai_usage
from tokenworks.exchange.exports.sold import Catalogue, Credit, Purchase, Sold, catalogue, month_of
from tokenworks.exchange.words import Grant

Kind = Literal[
    "focus", "focus-parquet", "cloudevents", "invoice", "hledger", "beancount", "openai-usage", "openai-costs"
]
PAGE = 1_000
_Word = TypeVar("_Word")


class Books:
    """What the exports read, page by page, from the running ledger or from the books themselves."""

    def __init__(self, data: Path, account: str | None, since_ns: int, until_ns: int) -> None:
        self.currency = currency_of(data)
        self.account, self.since_ns, self.until_ns = account, since_ns, until_ns
        self._data = data

    def _page(self, method: str, after: object) -> dict[str, Any]:
        period = {"account": self.account, "since_ns": self.since_ns, "until_ns": self.until_ns}
        found: dict[str, Any] = ask(self._data, method, **period, after=after, limit=PAGE)
        return found

    def _rows(self, method: str, page: dict[str, Any]) -> Iterator[Any]:
        while True:
            yield from page["rows"]
            if page["next"] is None:
                return
            page = self._page(method, page["next"])

    @cached_property
    def first(self) -> dict[str, Any]:
        """The first page of what was sold: it has what belongs to the period and not to one request."""
        return self._page("sold", None)

    def sold(self) -> Iterator[Sold]:
        """Each settlement of the period once."""
        return (msgspec.convert(row, Sold) for row in self._rows("sold", self.first))

    def postings(self) -> Iterator[journals.Posting]:
        """Each entry of the period once."""
        rows = self._rows("entries", self._page("entries", None))
        return (journals.Posting(*(row[name] for name in journals.Posting._fields)) for row in rows)

    def words(self, name: str, kind: type[_Word]) -> list[_Word]:
        """Words that the first page has beside its rows; none when the ledger does not tell them."""
        return msgspec.convert(self.first.get(name) or [], list[kind])  # type: ignore[valid-type]

    def known(self) -> Catalogue:
        """The prices that the receipts cite."""
        return catalogue(known_prices(self._data)[0].every())

    def beside(self) -> dict[str, Any]:
        """What was bought and given back in the period, and the prices."""
        return {
            "known": self.known(),
            "purchases": self.words("purchases", Purchase),
            "credits_": self.words("credits", Credit),
        }


def export(
    kind: Kind, /, *, account: str | None = None, since: str | None = None, until: str | None = None,
    out: Path | None = None, as_json: show.Json = False,
) -> int:  # fmt: skip
    """Write the books of a period for another program.

    Args:
        kind: focus: FOCUS 1.2 as CSV. focus-parquet: the same as Parquet (needs pyarrow). cloudevents: CloudEvents.
            invoice: a printable page. hledger, beancount: the money book. openai-usage, openai-costs: OpenAI's API.
        account: Only this account's; an invoice needs one.
        since: First day or month in UTC, like 2026-11-01 or 2026-11; the current month without it.
        until: First day or month after it; without it the end of the month of the beginning.
        out: Write to this file instead of standard output.
    """
    since_ns, until_ns = _period(since, until, WallClock().now_ns())
    if account is not None and kind in ("hledger", "beancount"):
        raise BadRequest(f"{kind} is the whole money book, not one account's", hint="leave --account out")
    data, text = _KINDS[kind]
    found = data(Books(data_directory(), account, since_ns, until_ns))
    made = _json_text(found) if as_json else text(found)
    if out is not None:
        given.write(out, made)
        show.note(f"wrote {len(made):,} bytes to {out}")
    elif kind == "focus-parquet" and not as_json:
        raise BadRequest("Parquet is not text", hint="name a file: --out focus.parquet")
    else:
        sys.stdout.write(made.decode())
    return 0


def _period(since: str | None, until: str | None, now_ns: int) -> tuple[int, int]:
    start = month_of(now_ns)[0] if since is None else given.day_ns(since)
    end = month_of(start)[1] if until is None else given.day_ns(until)
    if end <= start:
        raise BadRequest("the period ends before it begins", hint="until is the first day after the period")
    return start, end


def _focus(books: Books) -> list[focus_table.Row]:
    grants = {grant.id: grant for grant in books.words("grants", Grant)}
    return focus.rows(books.sold(), provider="Tokenworks", grants=grants, **books.beside())


def _invoice(books: Books) -> invoice.Invoice:
    if books.account is None:
        raise BadRequest(
            "an invoice is of one account", hint="--account, as in: tokenworks export invoice --account ID"
        )
    rows = list(books.sold())
    return invoice.invoice(
        rows, account=books.account, account_name=rows[0].account_name if rows else books.account,
        currency=books.currency, since_ns=books.since_ns, until_ns=books.until_ns,
        owed_nano=books.first.get("owed_nano"), **books.beside(),
    )  # fmt: skip


def _pages(books: Books, ask_page: Callable[..., openai_usage.Page], **more: Any) -> openai_usage.Page:
    """All pages of OpenAI's API as one: a file has no next page."""
    sold, page, data = list(books.sold()), None, list[Any]()
    while True:
        start, end = books.since_ns // NS_PER_S, books.until_ns // NS_PER_S
        made = ask_page(sold, start_time=start, end_time=end, page=page, **more)
        data += made["data"]
        if (page := made["next_page"]) is None:
            return made | {"data": data}


def _usage(books: Books) -> openai_usage.Page:
    return _pages(books, openai_usage.usage_page, group_by=("model",), limit=31)


def _costs(books: Books) -> openai_usage.Page:
    more = {"currency": books.currency, "group_by": ("line_item",), "limit": 180}
    return _pages(books, openai_usage.costs_page, **more, **books.beside())


def _json_text(found: Any) -> bytes:
    return msgspec.json.format(openai_usage.encode(found), indent=2) + b"\n"


class _Kind(NamedTuple):
    """What an export is made of, and the text made of that."""

    data: Callable[[Books], Any]
    text: Callable[[Any], bytes]


def _journal(write: Callable[[Iterator[journals.Posting], str], str]) -> _Kind:
    return _Kind(
        lambda books: {"journal": write(books.postings(), books.currency)}, lambda made: str(made["journal"]).encode()
    )


_KINDS: dict[str, _Kind] = {
    "focus": _Kind(_focus, lambda rows: focus_table.csv_text(rows).encode()),
    "focus-parquet": _Kind(_focus, focus_table.parquet),
    "cloudevents": _Kind(lambda books: list(cloudevents.events(books.sold())), msgspec.json.Encoder().encode_lines),
    "invoice": _Kind(_invoice, lambda made: invoice.as_html(made).encode()),
    "hledger": _journal(journals.hledger),
    "beancount": _journal(journals.beancount),
    "openai-usage": _Kind(_usage, _json_text),
    "openai-costs": _Kind(_costs, _json_text),
}
