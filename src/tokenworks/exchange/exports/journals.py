"""The money book as a general-ledger journal, for hledger and beancount: plain text, balanced, exact decimals.

The ledger's sign is the accountant's: what an account received is positive. Each transaction's postings of one day
balance on their own; what is booked ahead (breakage on the day of expiry) becomes a transaction of that day.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable, Sequence
from typing import NamedTuple

from tokenworks.core.errors import BooksDoNotClose
from tokenworks.exchange.exports.sold import decimal, instant

_TYPES = (
    ("customer", "Assets:Receivable"),
    ("depreciation", "Assets:Depreciation"),
    ("payable", "Liabilities:Payable"),
    ("clearing", "Liabilities:Clearing"),
    ("home", "Assets:Collected"),
    ("settled", "Assets:Settled"),
    ("deferred", "Liabilities:Deferred"),
    ("revenue", "Income"),
    ("adjustments", "Income:Adjustments"),
    ("loss", "Expenses:Loss"),
    ("cost", "Expenses"),
)
"""The ledger's first word -> where it stands in the chart of accounts. Anything else is equity until it has a place."""
_ELSEWHERE = "Equity:Other"


class Posting(NamedTuple):
    """One line of a book, as the ledger has it."""

    book: str
    account: str
    amount: int
    at_ns: int
    txn: str


class _Transaction(NamedTuple):
    day: str
    txn: str
    lines: list[tuple[str, int]]


def account_name(account: str) -> str:
    """``customer/acme`` -> ``Assets:Receivable:Acme``. Different accounts always have different names."""
    first, *rest = account.split("/")
    root = dict(_TYPES).get(first)
    return ":".join([root, *map(_component, rest)] if root else [_ELSEWHERE, *map(_component, account.split("/"))])


def _component(word: str) -> str:
    """A word as both programs allow it: a capital or digit first, then letters, digits, hyphens."""
    plain = re.sub(r"[^A-Za-z0-9-]", "-", word)
    shown = plain[:1].upper() + plain[1:]
    if not re.match(r"[A-Z0-9]", shown):
        shown = "X" + shown
    faithful = shown == word if word[:1].isdigit() else shown[:1].lower() + shown[1:] == word
    return shown if faithful else f"{shown}-{hashlib.sha256(word.encode()).hexdigest()[:12]}"


def _transactions(postings: Iterable[Posting]) -> list[_Transaction]:
    """By day and transaction, oldest first, each account once. Raises BooksDoNotClose for one that is not 0 in sum."""
    found: dict[tuple[int, str], dict[str, int]] = {}
    for posting in postings:
        if posting.book == "money":
            lines = found.setdefault((posting.at_ns, posting.txn), {})
            lines[posting.account] = lines.get(posting.account, 0) + posting.amount
    made = []
    for (at_ns, txn), lines in sorted(found.items()):
        if sum(lines.values()):
            raise BooksDoNotClose(f"transaction {txn} does not sum to 0", hint="export whole transactions")
        moved = [(account, amount) for account, amount in sorted(lines.items()) if amount]
        made.append(_Transaction(f"{instant(at_ns):%Y-%m-%d}", txn, moved))
    return made


def _line(text: str) -> str:
    """Text on one line, without what has a meaning in a journal's header."""
    return re.sub(r'[\x00-\x1f\x7f-\x9f\u2028\u2029;|"\\]+', " ", text).strip()


def hledger(postings: Iterable[Posting], currency: str) -> str:
    """A journal for hledger (and ledger). Raises BooksDoNotClose."""
    made = _transactions(postings)
    names = sorted({account_name(account) for each in made for account, _ in each.lines})
    text = [f"commodity 1000.000000000 {currency}", *(f"account {name}" for name in names), ""]
    for each in made:
        text += [f"{each.day} * {_line(each.txn)}", *_postings(each.lines, currency, "    "), ""]
    return "\n".join(text)


def beancount(postings: Iterable[Posting], currency: str) -> str:
    """A journal for beancount, with every account opened on its first day. Raises BooksDoNotClose."""
    made = _transactions(postings)
    opened: dict[str, str] = {}
    for each in made:
        for account, _ in each.lines:
            name = account_name(account)
            opened[name] = min(opened.get(name, each.day), each.day)
    text = [f'option "operating_currency" "{currency}"', ""]
    text += [*(f"{day} open {name} {currency}" for name, day in sorted(opened.items())), ""]
    for each in made:
        text += [f'{each.day} * "{_line(each.txn)}"', *_postings(each.lines, currency, "  "), ""]
    return "\n".join(text)


def _postings(lines: Sequence[tuple[str, int]], currency: str, indent: str) -> list[str]:
    return [f"{indent}{account_name(account)}  {decimal(amount, 9)} {currency}" for account, amount in lines]
