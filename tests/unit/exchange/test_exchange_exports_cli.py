from __future__ import annotations

import csv
import io
import json
from pathlib import Path
from typing import Any, get_args

import msgspec
import pytest

from tokenworks.cli import export as command
from tokenworks.core.errors import BadRequest, BooksDoNotClose
from tokenworks.core.units import NANO
from tokenworks.core.words import Usage
from tokenworks.exchange.exports.sold import Sold
from tokenworks.exchange.prices import default_prices

START = 1_793_491_200  # 2026-11-01
PRICES = default_prices("USD")


def row(i: int) -> dict[str, Any]:
    usage = Usage(input=1000 + i, output=100)
    amount = PRICES.price("big", usage)
    sold = Sold(
        receipt=f"r{i}",
        account="acme",
        account_name="Acme Ltd",
        budget="b",
        key="k",
        at_ns=(START + i * 3_600) * NANO,
        model="big",
        usage=usage,
        ustu=amount.ustu,
        nano=amount.nano,
        loss_nano=0,
        list_nano=amount.nano,
        burned=(),
        entity="",
        site="",
        rate_card=PRICES.rate_card,
        price_book=PRICES.price_book,
        currency="USD",
        energy_mj=None,
        carbon_ug=None,
    )
    found: dict[str, Any] = msgspec.to_builtins(sold)
    return found


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> list[dict[str, Any]]:
    """A ledger that answers in pages of two; the calls that it got."""
    calls: list[dict[str, Any]] = []
    rows = [row(i) for i in range(5)]
    owed = sum(each["nano"] for each in rows)
    entries = [
        {"book": "money", "account": account, "amount": amount, "at_ns": START * NANO, "txn": "settle r0"}
        for account, amount in (("customer/acme", owed), ("revenue/tokens", -owed))
    ]

    def answer(data: Path, method: str, **params: Any) -> dict[str, Any]:
        calls.append({"method": method, **params})
        first, all_of = params["after"] or 0, entries if method == "entries" else rows
        end = first + 2
        page: dict[str, Any] = {"rows": all_of[first:end], "next": end if end < len(all_of) else None}
        return page | ({"owed_nano": owed} if method == "sold" and not first else {})

    monkeypatch.setattr(command, "ask", answer)
    monkeypatch.setattr(command, "currency_of", lambda data: "USD")
    monkeypatch.setattr(command, "data_directory", lambda: tmp_path)
    return calls


@pytest.mark.parametrize("kind", [kind for kind in get_args(command.Kind) if kind != "focus-parquet"])
@pytest.mark.parametrize("as_json", [False, True])
def test_every_kind_prints_what_it_says(
    kind: Any, as_json: bool, asked: list[dict[str, Any]], capsys: pytest.CaptureFixture[str]
) -> None:
    """Something on stdout that reads as its format, from all pages."""
    account = None if kind in ("hledger", "beancount") else "acme"
    assert command.export(kind, account=account, since="2026-11", as_json=as_json) == 0
    printed = capsys.readouterr().out
    assert printed
    if as_json or kind.startswith("openai"):
        assert json.loads(printed)
    if kind not in ("hledger", "beancount"):
        assert [call["after"] for call in asked] == [None, 2, 4]


def test_pages_follow_the_cursor_and_the_period(asked: list[dict[str, Any]], tmp_path: Path) -> None:
    """Every request once, with the period and the account in each call; the file is written whole."""
    path = tmp_path / "focus.csv"
    command.export("focus", account="acme", since="2026-11-01", until="2026-11-08", out=path)
    table = list(csv.DictReader(io.StringIO(path.read_text())))
    assert sum(int(each["x_Requests"]) for each in table) == 2 * 5
    assert {(call["account"], call["since_ns"], call["until_ns"]) for call in asked} == {
        ("acme", START * NANO, (START + 7 * 86_400) * NANO)
    }


def test_the_invoice_is_checked_against_the_ledger(
    asked: list[dict[str, Any]], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """What the ledger says is owed stands on the first page; another sum is no invoice."""
    command.export("invoice", account="acme", since="2026-11", as_json=True)
    assert json.loads(capsys.readouterr().out)["receipts"] == 5
    good: Any = command.__dict__["ask"]

    def wrong(data: Path, method: str, **params: Any) -> Any:
        page = good(data, method, **params)
        return page | {"owed_nano": 1} if "owed_nano" in page else page

    monkeypatch.setattr(command, "ask", wrong)
    with pytest.raises(BooksDoNotClose):
        command.export("invoice", account="acme", since="2026-11")


def test_a_long_period_has_no_next_page(asked: list[dict[str, Any]], capsys: pytest.CaptureFixture[str]) -> None:
    """A file has all buckets, however many pages the API would need."""
    command.export("openai-usage", since="2026-10", until="2027-01")
    page = json.loads(capsys.readouterr().out)
    assert (len(page["data"]), page["has_more"], page["next_page"]) == (92, False, None)


@pytest.mark.parametrize(
    "wrong",
    [
        {"since": "yesterday"},
        {"since": "2026-13"},
        {"since": "2026-11-08", "until": "2026-11-08"},
        {"out": Path("/proc/nothing/here.csv")},
    ],
)
def test_a_wrong_question_is_told(wrong: dict[str, Any], asked: list[dict[str, Any]]) -> None:
    """A day that is none, a period of nothing, a file that cannot be."""
    with pytest.raises(BadRequest):
        command.export("focus", **wrong)


def test_an_invoice_needs_an_account(asked: list[dict[str, Any]]) -> None:
    """And the current month is meant when nothing is said."""
    with pytest.raises(BadRequest, match="one account"):
        command.export("invoice")
