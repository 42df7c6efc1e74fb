"""Every export of a running grid, read as the programs that they are made for would read them."""

from __future__ import annotations

import csv
import importlib.util
import io
import json
import re
from collections import defaultdict
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from html.parser import HTMLParser
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from tests.support.grid_process import MODEL, GridProcess, wait_until

from tokenworks.exchange.exports.focus_table import COLUMNS

HELLO: Any = [{"role": "user", "content": "Say hello."}]
ACCOUNT = "exports"
NANO = Decimal(10) ** 9
pytestmark = pytest.mark.engine


class Books(NamedTuple):
    """A grid on which one account made requests, bought a package that it uses and one that it gave back."""

    grid: GridProcess
    period: tuple[str, ...]
    receipts: list[dict[str, Any]]
    refund_nano: int

    def export(self, kind: str, *arguments: str) -> str:
        """What an export prints, without a word beside it."""
        done = self.grid.cli("export", kind, *self.period, *arguments)
        assert done.returncode == 0, done.stderr
        assert done.stderr == ""
        return done.stdout

    def invoice(self) -> dict[str, Any]:
        made: dict[str, Any] = json.loads(self.export("invoice", "--account", ACCOUNT, "--json"))
        return made


@pytest.fixture(scope="module")
def books(grid: GridProcess) -> Books:
    """Three requests for money, a sale and two requests from it, another sale and its refund."""
    assert grid.ask("account", "create", ACCOUNT, "--name", "Export & <Sons>")["status"] == "opened"
    client = grid.client(grid.ask("key", "create", ACCOUNT)["key"], max_retries=0)
    for tokens in (2, 5, 9):
        client.chat.completions.create(model=MODEL, messages=HELLO, max_tokens=tokens)
    grid.ask("package", "define", "exports-small", "--size", "1.5 STU", "--price", "3 USD")
    grid.ask("package", "define", "exports-back", "--size", "1 MSTU", "--price", "7.77 USD", "--models", "no-model")
    grid.ask("package", "sell", ACCOUNT, "exports-small", "--grant", "exports-1")
    for tokens in (3, 6):
        client.chat.completions.create(model=MODEL, messages=HELLO, max_tokens=tokens)
    grid.ask("package", "sell", ACCOUNT, "exports-back", "--grant", "exports-2")
    refunds: list[int] = []

    def refunded() -> bool:
        done = grid.cli("grant", "refund", "exports-2", "--amount", "5.55 USD", "--json")
        if done.returncode == 0:
            refunds.append(json.loads(done.stdout)["refund_nano"])
        return bool(refunds)

    wait_until(refunded, 20, "the gateway to return leases")
    receipts = [grid.ask("receipt", "show", each) for each in grid.ask("receipt", "list", "--account", ACCOUNT)]
    assert len(receipts) == 5
    today = datetime.now(UTC)
    since, until = today - timedelta(days=1), today + timedelta(days=2)
    return Books(grid, ("--since", f"{since:%Y-%m-%d}", "--until", f"{until:%Y-%m-%d}"), receipts, refunds[0])


def test_focus_is_a_table_that_sums_to_the_invoice(books: Books) -> None:
    """FOCUS: all its columns, exact decimals, one purchase each, one credit; BilledCost sums to the invoice."""
    text = books.export("focus", "--account", ACCOUNT)
    rows = list(csv.DictReader(io.StringIO(text), strict=True))
    assert {*COLUMNS} <= rows[0].keys()
    assert all(name in COLUMNS or name.startswith("x_") for name in rows[0])
    assert {row["BillingAccountId"] for row in rows} == {ACCOUNT}
    assert {row["BillingCurrency"] for row in rows} == {"USD"}
    by_category: dict[str, list[Decimal]] = defaultdict(list)
    for row in rows:
        by_category[row["ChargeCategory"]].append(Decimal(row["BilledCost"]))
        assert row["ChargePeriodStart"] < row["ChargePeriodEnd"]
        assert Decimal(row["EffectiveCost"]).is_finite()
    total = sum(Decimal(row["BilledCost"]) for row in rows)
    assert total * NANO == books.invoice()["total_nano"]
    assert sorted(by_category["Purchase"]) == [Decimal(3), Decimal("7.77")]
    assert by_category["Credit"] == [Decimal("-5.55")]
    assert sum(by_category["Usage"]) * NANO == sum(each["price_nano"] for each in books.receipts)
    usage = [row for row in rows if row["ChargeCategory"] == "Usage"]
    tokens = sum(receipt["usage"].get(name, 0) for receipt in books.receipts for name in ("input", "output"))
    assert sum(int(row["ConsumedQuantity"]) for row in usage if row["x_UsageBucket"] in ("input", "output")) == tokens
    assert "STU" in {row["PricingCurrency"] for row in usage}, "what packages paid is priced in STU"
    assert json.loads(books.export("focus", "--account", ACCOUNT, "--json")) == [
        {name: value or None for name, value in row.items()} for row in rows
    ]


def test_cloudevents_are_one_event_a_receipt(books: Books) -> None:
    """CloudEvents 1.0: the required attributes, one event per receipt, its amounts those of the receipt."""
    events = [json.loads(line) for line in books.export("cloudevents", "--account", ACCOUNT).splitlines()]
    receipts = {receipt["id"]: receipt for receipt in books.receipts}
    assert {event["id"] for event in events} == receipts.keys()
    assert len({(event["source"], event["id"]) for event in events}) == len(events)
    for event in events:
        assert event["specversion"] == "1.0"
        assert event["type"] == "tokenworks.usage.settled.v1"
        assert event["subject"] == ACCOUNT
        assert event["datacontenttype"] == "application/json"
        assert datetime.fromisoformat(event["time"]).tzinfo is not None
        receipt = receipts[event["id"]]
        assert event["data"]["charged_nano"] == receipt["price_nano"]
        assert event["data"]["charged_ustu"] == receipt["ustu"]
        assert event["data"]["usage"] == receipt["usage"]
    assert json.loads(books.export("cloudevents", "--account", ACCOUNT, "--json")) == events


class _Page(HTMLParser):
    """The words of a page, and whether its tags close."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: set[str] = set()
        self.words = ""

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.add(tag)
        if tag not in ("meta", "br"):
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.words += data


def test_the_invoice_adds_up_and_prints(books: Books, tmp_path: Path) -> None:
    """Lines, packages and credits sum to the total, which is what the account owes; the page is whole and escaped."""
    made = books.invoice()
    lines, packages = sum(line["nano"] for line in made["lines"]), sum(p["price_nano"] for p in made["packages"])
    credits_ = sum(credit["nano"] for credit in made["credits"])
    assert (packages, credits_) == (10_770_000_000, books.refund_nano)
    assert lines + packages - credits_ + made["rounding_nano"] == made["total_nano"]
    assert made["receipts"] == len(books.receipts)
    money = books.grid.ask("books")["books"]["money"]["accounts"]
    assert made["total_nano"] == money[f"customer/{ACCOUNT}"]
    file = tmp_path / "invoice.html"
    done = books.grid.cli("export", "invoice", *books.period, "--account", ACCOUNT, "--out", str(file))
    assert (done.returncode, done.stdout) == (0, ""), done.stderr
    assert file.stat().st_mode & 0o077 == 0
    page = _Page()
    page.feed(file.read_text())
    page.close()
    assert page.open == []
    assert "Export & <Sons>" in page.words
    assert not page.tags & {"sons", "script", "link", "img"}
    assert f"{Decimal(made['total_nano']) / NANO:f}".rstrip("0") in page.words
    refused = books.grid.cli("export", "invoice", *books.period)
    assert refused.returncode == 2
    assert "--account" in refused.stderr


def journal(text: str, indent: str) -> list[dict[str, Decimal]]:
    """The transactions of a journal: account to amount. Each posting is one line with its amount."""
    found: list[dict[str, Decimal]] = []
    for line in text.splitlines():
        if re.match(r"\d{4}-\d\d-\d\d \*", line):
            found.append({})
        elif line.startswith(indent):
            match = re.fullmatch(
                r"([A-Z][A-Za-z0-9-]*(?::[A-Z0-9][A-Za-z0-9-]*)*)  (-?\d+(?:\.\d+)?) USD", line.strip()
            )
            assert match is not None, line
            assert match[1] not in found[-1]
            found[-1][match[1]] = Decimal(match[2])
    return found


@pytest.mark.parametrize(("kind", "indent"), [("hledger", "    "), ("beancount", "  ")])
def test_journals_balance_and_end_where_the_books_end(books: Books, kind: str, indent: str) -> None:
    """Each transaction sums to zero, accounts are declared, and the customer's account ends at the invoice."""
    text = books.export(kind)
    made = journal(text, indent)
    assert made
    sums: dict[str, Decimal] = defaultdict(Decimal)
    for transaction in made:
        assert len(transaction) >= 2
        assert sum(transaction.values()) == 0
        for account, amount in transaction.items():
            sums[account] += amount
    assert sums["Assets:Receivable:Exports"] * NANO == books.invoice()["total_nano"]
    declared = {*re.findall(r"^(?:account|\d{4}-\d\d-\d\d open) (\S+)", text, re.MULTILINE)}
    assert sums.keys() == declared
    if kind == "hledger":
        assert text.startswith("commodity 1000.000000000 USD\n")
    else:
        assert {account.split(":")[0] for account in sums} <= {"Assets", "Liabilities", "Income", "Expenses", "Equity"}


def test_a_journal_of_one_account_is_of_that_account(books: Books) -> None:
    """With --account a journal has only that account's transactions, or it is refused; never passed over."""
    done = books.grid.cli("export", "hledger", *books.period, "--account", ACCOUNT)
    if done.returncode == 0:
        customers = {name for each in journal(done.stdout, "    ") for name in each if "Receivable" in name}
        assert customers == {"Assets:Receivable:Exports"}
    else:
        assert (done.returncode, done.stdout) == (2, "")
        assert "account" in done.stderr


def test_openai_usage_and_costs_are_pages_of_the_same_sums(books: Books) -> None:
    """OpenAI's pages: tokens are those of the receipts, and the days' costs sum to the invoice exactly."""
    usage = json.loads(books.export("openai-usage", "--account", ACCOUNT))
    costs = json.loads(books.export("openai-costs", "--account", ACCOUNT), parse_float=Decimal, parse_int=Decimal)
    for page in (usage, costs):
        assert (page["object"], page["has_more"], page["next_page"]) == ("page", False, None)
        assert {bucket["object"] for bucket in page["data"]} == {"bucket"}
    results = [result for bucket in usage["data"] for result in bucket["results"]]
    assert {result["object"] for result in results} == {"organization.usage.completions.result"}
    assert sum(result["num_model_requests"] for result in results) == len(books.receipts)
    assert sum(result["output_tokens"] for result in results) == sum(r["usage"]["output"] for r in books.receipts)
    inputs = ("input", "cached_input", "cache_write")
    assert sum(result["input_tokens"] for result in results) == sum(
        receipt["usage"].get(name, 0) for receipt in books.receipts for name in inputs
    )
    amounts = [result["amount"] for bucket in costs["data"] for result in bucket["results"]]
    assert {amount["currency"] for amount in amounts} == {"usd"}
    assert sum(amount["value"] for amount in amounts) * NANO == books.invoice()["total_nano"]


def test_parquet_says_what_it_needs(books: Books, tmp_path: Path) -> None:
    """Without pyarrow: one sentence and a hint, status 2, no file; with it: a Parquet file."""
    file = tmp_path / "focus.parquet"
    done = books.grid.cli("export", "focus-parquet", *books.period, "--account", ACCOUNT, "--out", str(file))
    if importlib.util.find_spec("pyarrow") is not None:
        assert file.read_bytes()[:4] == b"PAR1"
        return
    assert done.returncode == 2
    assert done.stdout == ""
    sentence, hint = done.stderr.splitlines()
    assert "pyarrow" in sentence
    assert hint.startswith("  hint: ")
    assert not file.exists()


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["focsu"], ["focsu"]),
        (["focus", "--since", "soon"], ["'soon'", "hint"]),
        (["focus", "--since", "2026-13"], ["'2026-13'", "hint"]),
        (["focus", "--since", "2026-11", "--until", "2026-10"], ["ends before it begins"]),
        (["focus", "--out", "/nowhere/focus.csv"], ["/nowhere/focus.csv"]),
    ],
)
def test_wrong_questions_are_named(books: Books, arguments: list[str], words: list[str]) -> None:
    """A wrong kind, day, period or file is named on stderr, with a status that is not 0 and nothing on stdout."""
    done = books.grid.cli("export", *arguments)
    assert done.returncode != 0
    assert done.stdout == ""
    assert "Traceback" not in done.stderr
    for word in words:
        assert word in done.stderr
