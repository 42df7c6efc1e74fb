"""``tokenworks export``: the books in the forms that other people's tools read."""

from __future__ import annotations

import re
import sys
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal, TypeVar

import msgspec

from tokenworks.cli import out as show
from tokenworks.cli.price import known_prices
from tokenworks.cli.talk import Json
from tokenworks.core.clock import WallClock
from tokenworks.core.errors import BadRequest
from tokenworks.core.units import NS_PER_S
from tokenworks.datadir import currency_of, data_directory, write_private
from tokenworks.exchange.ask import ask
from tokenworks.exchange.exports import cloudevents, focus, focus_table, invoice, journals, openai_usage
from tokenworks.exchange.exports.sold import Catalogue, Credit, Purchase, Sold, catalogue, month_of, nanos
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
        self._first: dict[str, Any] | None = None

    def _page(self, method: str, after: object) -> dict[str, Any]:
        found: dict[str, Any] = ask(
            self._data,
            method,
            account=self.account,
            since_ns=self.since_ns,
            until_ns=self.until_ns,
            after=after,
            limit=PAGE,
        )
        return found

    def _rows(self, method: str, page: dict[str, Any]) -> Iterator[Any]:
        while True:
            yield from page["rows"]
            if page["next"] is None:
                return
            page = self._page(method, page["next"])

    @property
    def first(self) -> dict[str, Any]:
        """The first page of what was sold: it has what belongs to the period and not to one request."""
        if self._first is None:
            self._first = self._page("sold", None)
        return self._first

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


def export(
    kind: Kind,
    /,
    *,
    account: str | None = None,
    since: str | None = None,
    until: str | None = None,
    out: Path | None = None,
    as_json: Json = False,
) -> int:
    """Write the books of a period for another program.

    Parameters
    ----------
    kind:
        focus: FOCUS 1.2 as CSV. focus-parquet: the same as Parquet (needs pyarrow). cloudevents: usage as CloudEvents.
        invoice: a printable page. hledger, beancount: the money book. openai-usage, openai-costs: OpenAI's admin API.
    account:
        Only this account's; an invoice needs one.
    since:
        First day or month in UTC, like 2026-11-01 or 2026-11; the current month without it.
    until:
        First day or month after it; without it the end of the month of the beginning.
    out:
        Write to this file instead of standard output.
    """
    since_ns, until_ns = _period(since, until, WallClock().now_ns())
    if account is not None and kind in ("hledger", "beancount"):
        raise BadRequest(f"{kind} is the whole money book, not one account's", hint="leave --account out")
    books = Books(data_directory(), account, since_ns, until_ns)
    if as_json:
        made = msgspec.json.format(openai_usage.encode(_AS_JSON[kind](books)), indent=2) + b"\n"
    else:
        made = _AS_TEXT[kind](books)
    if out is not None:
        try:
            write_private(out, made)
        except OSError as error:
            raise BadRequest(f"cannot write {out}: {error.strerror}", hint="name another file") from error
        show.note(f"wrote {len(made):,} bytes to {out}")
    elif kind == "focus-parquet" and not as_json:
        raise BadRequest("Parquet is not text", hint="name a file: --out focus.parquet")
    else:
        sys.stdout.write(made.decode())
    return 0


def _period(since: str | None, until: str | None, now_ns: int) -> tuple[int, int]:
    start = month_of(now_ns)[0] if since is None else day_ns(since)
    end = month_of(start)[1] if until is None else day_ns(until)
    if end <= start:
        raise BadRequest("the period ends before it begins", hint="until is the first day after the period")
    return start, end


def day_ns(text: str) -> int:
    """A day or a month in UTC as its first nanosecond. Raises BadRequest."""
    if not re.fullmatch(r"2\d{3}-\d\d(-\d\d)?", text):
        raise BadRequest(f"{text!r} is no day", hint="write 2026-11-01, or 2026-11 for a month")
    try:
        return nanos(datetime.fromisoformat(text if len(text) > 7 else text + "-01").replace(tzinfo=UTC))
    except ValueError:
        raise BadRequest(f"{text!r} is no day", hint="write 2026-11-01, or 2026-11 for a month") from None


def _focus(books: Books) -> list[focus_table.Row]:
    grants = {grant.id: grant for grant in books.words("grants", Grant)}
    return focus.rows(
        books.sold(),
        provider="Tokenworks",
        known=books.known(),
        grants=grants,
        purchases=books.words("purchases", Purchase),
        credits_=books.words("credits", Credit),
    )


def _events(books: Books) -> list[str]:
    return list(cloudevents.events(books.sold(), "/tokenworks"))


def _invoice(books: Books) -> invoice.Invoice:
    if books.account is None:
        raise BadRequest(
            "an invoice is of one account", hint="--account, as in: tokenworks export invoice --account ID"
        )
    rows = list(books.sold())
    return invoice.invoice(
        rows,
        account=books.account,
        account_name=rows[0].account_name if rows else books.account,
        currency=books.currency,
        since_ns=books.since_ns,
        until_ns=books.until_ns,
        known=books.known(),
        purchases=books.words("purchases", Purchase),
        credits_=books.words("credits", Credit),
        owed_nano=books.first.get("owed_nano"),
    )


def _usage(books: Books) -> openai_usage.Page:
    sold, start, end = list(books.sold()), books.since_ns // NS_PER_S, books.until_ns // NS_PER_S
    return _whole(
        lambda page: openai_usage.usage_page(
            sold, start_time=start, end_time=end, group_by=("model",), limit=31, page=page
        )
    )


def _costs(books: Books) -> openai_usage.Page:
    sold, known, currency = list(books.sold()), books.known(), books.currency
    bought, given = books.words("purchases", Purchase), books.words("credits", Credit)
    return _whole(
        lambda page: openai_usage.costs_page(
            sold,
            known=known,
            currency=currency,
            start_time=books.since_ns // NS_PER_S,
            end_time=books.until_ns // NS_PER_S,
            purchases=bought,
            credits_=given,
            group_by=("line_item",),
            limit=180,
            page=page,
        )
    )


def _whole(ask_page: Callable[[str | None], openai_usage.Page]) -> openai_usage.Page:
    """All pages as one: a file has no next page."""
    made = ask_page(None)
    cursor = made["next_page"]
    while cursor is not None:
        more = ask_page(cursor)
        made["data"] += more["data"]
        cursor = more["next_page"]
    return made | {"has_more": False, "next_page": None}


def _json_text(page: openai_usage.Page) -> bytes:
    return msgspec.json.format(openai_usage.encode(page), indent=2) + b"\n"


_AS_TEXT: dict[str, Callable[[Books], bytes]] = {
    "focus": lambda books: focus_table.csv_text(_focus(books)).encode(),
    "focus-parquet": lambda books: focus_table.parquet(_focus(books)),
    "cloudevents": lambda books: "".join(f"{line}\n" for line in _events(books)).encode(),
    "invoice": lambda books: invoice.as_html(_invoice(books)).encode(),
    "hledger": lambda books: journals.hledger(books.postings(), books.currency).encode(),
    "beancount": lambda books: journals.beancount(books.postings(), books.currency).encode(),
    "openai-usage": lambda books: _json_text(_usage(books)),
    "openai-costs": lambda books: _json_text(_costs(books)),
}
_AS_JSON: dict[str, Callable[[Books], Any]] = {
    "focus": _focus,
    "focus-parquet": _focus,
    "cloudevents": lambda books: [msgspec.json.decode(line) for line in _events(books)],
    "invoice": _invoice,
    "hledger": lambda books: {"journal": journals.hledger(books.postings(), books.currency)},
    "beancount": lambda books: {"journal": journals.beancount(books.postings(), books.currency)},
    "openai-usage": _usage,
    "openai-costs": _costs,
}
