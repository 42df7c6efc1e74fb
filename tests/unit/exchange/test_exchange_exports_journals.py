from __future__ import annotations

import re
from collections import defaultdict
from decimal import Decimal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tokenworks.core.errors import BooksDoNotClose
from tokenworks.core.units import NS_PER_S
from tokenworks.exchange.exports.journals import Posting, account_name, beancount, hledger

DAY = 86_400 * NS_PER_S
START = 1_793_491_200 * NS_PER_S  # 2026-11-01
COMPONENT = re.compile(r"[A-Z0-9][A-Za-z0-9-]*")
words = st.sampled_from(["acme", "Acme", "ACME", "a.b", "a-b", "ä", "", "9", "-x", "hall 1", "hall;1"])
accounts = st.builds(
    lambda kind, word: f"{kind}/{word}",
    st.sampled_from(["customer", "payable", "revenue", "other", "cost/energy"]),
    words,
)
transactions = st.lists(
    st.tuples(st.integers(0, 3), st.lists(st.tuples(accounts, st.integers(-(10**12), 10**12)), min_size=1, max_size=5)),
    max_size=8,
)


def postings(drawn: list[tuple[int, list[tuple[str, int]]]]) -> list[Posting]:
    """Balanced transactions, as the ledger makes them; other books are between them."""
    made = []
    for i, (day, lines) in enumerate(drawn):
        at_ns, txn = START + day * DAY + i, f"settle r{i}"
        made += [Posting("money", account, amount, at_ns, txn) for account, amount in lines]
        made.append(Posting("money", "revenue/tokens", -sum(amount for _, amount in lines), at_ns, txn))
        made.append(Posting("stu", "customer/acme", 77, at_ns, txn))
    return made


def read(journal: str, currency: str) -> list[dict[str, Decimal]]:
    """The transactions of a journal: account -> amount. A reader of our own, as strict as the programs' grammars."""
    found: list[dict[str, Decimal]] = []
    for line in journal.splitlines():
        if re.match(r"\d{4}-\d\d-\d\d \* ", line):
            found.append({})
        elif line.startswith("  "):
            name, number, unit = re.split(r"  +| (?=[A-Z]+$)", line.strip())
            assert unit == currency
            assert all(COMPONENT.fullmatch(part) for part in name.split(":")), name
            assert name.split(":")[0] in {"Assets", "Liabilities", "Income", "Expenses", "Equity"}
            assert name not in found[-1]
            found[-1][name] = Decimal(number)
    return found


@given(transactions)
def test_every_transaction_balances_and_accounts_keep_their_balance(
    drawn: list[tuple[int, list[tuple[str, int]]]],
) -> None:
    """Both formats say the same, exactly: each transaction sums to 0, each account to what the money book says."""
    given_ = postings(drawn)
    balances: dict[str, Decimal] = defaultdict(Decimal)
    for posting in given_:
        if posting.book == "money":
            balances[account_name(posting.account)] += Decimal(posting.amount).scaleb(-9)
    for journal in (hledger(given_, "USD"), beancount(given_, "USD")):
        told: dict[str, Decimal] = defaultdict(Decimal)
        for transaction in read(journal, "USD"):
            assert sum(transaction.values()) == 0
            for name, amount in transaction.items():
                told[name] += amount
        assert {name: amount for name, amount in told.items() if amount} == {n: a for n, a in balances.items() if a}


@given(st.lists(accounts, unique=True))
def test_different_accounts_have_different_names(names: list[str]) -> None:
    """Case, dots and letters that the programs do not allow never merge two accounts."""
    assert len({account_name(name) for name in names}) == len(names)


def test_the_chart_of_accounts() -> None:
    """Where the ledger's accounts stand."""
    assert [
        account_name(name)
        for name in (
            "customer/acme",
            "deferred/acme",
            "payable/entity/north",
            "revenue/breakage",
            "loss/operator",
            "cost/energy/idle",
            "depreciation/hall",
        )
    ] == [
        "Assets:Receivable:Acme",
        "Liabilities:Deferred:Acme",
        "Liabilities:Payable:Entity:North",
        "Income:Breakage",
        "Expenses:Loss:Operator",
        "Expenses:Energy:Idle",
        "Assets:Depreciation:Hall",
    ]
    assert account_name("something/new") == "Equity:Other:Something:New"


def test_what_is_booked_ahead_stands_on_its_own_day() -> None:
    """Breakage is booked at the sale for the day of expiry: two days, two transactions, each balanced."""
    sale = [
        Posting("money", "customer/acme", 10, START, "sell g1"),
        Posting("money", "deferred/acme", -10, START, "sell g1"),
        Posting("money", "deferred/acme", 10, START + 30 * DAY, "sell g1"),
        Posting("money", "revenue/breakage", -10, START + 30 * DAY, "sell g1"),
    ]
    journal = beancount(sale, "CNY")
    assert '2026-11-01 * "sell g1"' in journal
    assert '2026-12-01 * "sell g1"' in journal
    assert "2026-11-01 open Liabilities:Deferred:Acme CNY" in journal
    assert "2026-12-01 open Income:Breakage CNY" in journal
    assert "  Assets:Receivable:Acme  0.00000001 CNY" in journal


def test_half_a_transaction_is_refused() -> None:
    """A page that ends inside a transaction must not become a journal that looks whole."""
    with pytest.raises(BooksDoNotClose):
        hledger([Posting("money", "customer/acme", 10, START, "t")], "USD")


def test_a_hostile_name_stays_in_its_line() -> None:
    """Ids come from people: a line break or a quote in one cannot make another transaction."""
    evil = 'x"\n2026-01-01 * "stolen"\n  Assets:Cash  1 USD ; |'
    lines = [Posting("money", f"customer/{evil}", 1, START, evil), Posting("money", "cash/bank", -1, START, evil)]
    for journal in (hledger(lines, "USD"), beancount(lines, "USD")):
        assert len(read(journal, "USD")) == 1
        assert sum(line.startswith("2026-01-01") for line in journal.splitlines()) == 0
