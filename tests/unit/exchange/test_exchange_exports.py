from __future__ import annotations

import csv
import io
import re
from collections import defaultdict
from decimal import Decimal
from html.parser import HTMLParser
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.support.exchange import settlement

from tokenworks.core.errors import BadRequest, BooksDoNotClose
from tokenworks.core.units import NANO
from tokenworks.core.words import BUCKETS, Candidate, Decision, Usage
from tokenworks.exchange.exports import cloudevents, focus, focus_table
from tokenworks.exchange.exports.invoice import Invoice, as_html, invoice
from tokenworks.exchange.exports.sold import (
    Credit,
    Purchase,
    Sold,
    catalogue,
    decimal,
    month_of,
    parts,
    purchase_of,
    sold_of,
)
from tokenworks.exchange.prices import default_prices
from tokenworks.exchange.rater import Rater
from tokenworks.exchange.words import Burn, Grant

PRICES = default_prices("USD")
KNOWN = catalogue([PRICES])
SINCE, UNTIL = month_of(1_795_232_760 * NANO)  # November 2026
HOUR = 3_600 * NANO
GRANT = Grant(
    id="g1",
    account="acme",
    package="40M",
    size_ustu=40 * 10**12,
    price_nano=29_900_000_000,
    created_ns=SINCE + 5,
    effective_ns=SINCE + 5,
    expires_ns=SINCE + 90 * 24 * HOUR,
)
BOUGHT = purchase_of(GRANT, "USD", "Acme Ltd")
GIVEN = Credit(
    id="c1",
    account="acme",
    account_name="Acme Ltd",
    nano=123_456_789,
    currency="USD",
    at_ns=SINCE + 7,
    reason="goodwill",
)


class Asked(msgspec.Struct):
    """One request as a test draws it."""

    account: str
    model: str
    after_h: int
    usage: Usage
    covered_permille: int
    loss_permille: int
    energy_mj: int | None


def settle(asked: list[Asked]) -> list[Sold]:
    """Rows as the exchange makes them: rated with a carried remainder, some covered by a package, some with a loss."""
    rater, rows = Rater(), []
    for i, each in enumerate(asked):
        whole = PRICES.price(each.model, each.usage)
        covered = whole.ustu * each.covered_permille // 1000
        ustu, money = PRICES.exact(each.model, each.usage, "standard")
        nano = rater.charge((each.account, "standard", "standard", each.model), ustu, money, covered)
        rows.append(
            Sold(
                receipt=f"r{i}",
                account=each.account,
                account_name=each.account.title(),
                budget=f"{each.account}-root",
                key="k1",
                at_ns=SINCE + each.after_h * HOUR + i,
                model=each.model,
                usage=each.usage,
                ustu=ustu,
                nano=nano,
                loss_nano=nano * each.loss_permille // 1000,
                list_nano=whole.nano,
                burned=(Burn(grant="g1", ustu=covered),) if covered else (),
                entity="north",
                site="hall-1",
                rate_card=PRICES.rate_card,
                price_book=PRICES.price_book,
                currency="USD",
                energy_mj=each.energy_mj,
                carbon_ug=None if each.energy_mj is None else each.energy_mj * 3,
            )
        )
    return rows


usages = st.fixed_dictionaries(dict.fromkeys(BUCKETS, st.sampled_from([0, 0, 1, 7, 12_345]))).map(
    lambda counts: msgspec.convert(counts, Usage)
)
asked = st.lists(
    st.builds(
        Asked,
        account=st.sampled_from(["acme", "bolt"]),
        model=st.sampled_from(["smollm2-135m-instruct", "big"]),
        after_h=st.integers(0, 50),
        usage=usages,
        covered_permille=st.sampled_from([0, 0, 0, 300, 1000]),
        loss_permille=st.sampled_from([0, 0, 0, 500]),
        energy_mj=st.none() | st.integers(0, 10**6),
    ),
    max_size=25,
)


def bill(rows: list[Sold], **more: Any) -> Invoice:
    return invoice(
        rows,
        account="acme",
        account_name="Acme Ltd",
        currency="USD",
        since_ns=SINCE,
        until_ns=UNTIL,
        known=KNOWN,
        **more,
    )


# --- rows -----------------------------------------------------------------------------------------------------------


@given(asked, st.booleans())
def test_the_parts_of_a_row_sum_to_the_row(drawn: list[Asked], priced: bool) -> None:
    """Tokens, STU, money, energy and carbon: split over buckets, nothing is lost, prices known or not."""
    for row in settle(drawn):
        found = parts(row, PRICES if priced else None)
        assert [(part.bucket, part.tokens) for part in found] == list(row.usage.counts())
        if found:
            assert sum(part.ustu for part in found) == row.ustu
            assert sum(part.nano for part in found) == row.charged_nano
            assert sum(part.covered_ustu for part in found) == row.covered_ustu
            assert row.energy_mj is None or sum(part.energy_mj or 0 for part in found) == row.energy_mj
        else:
            assert row.ustu == row.nano == 0


@given(st.integers(-(10**20), 10**20), st.integers(1, 15))
def test_decimal_text_is_exact(amount: int, digits: int) -> None:
    """No float on the way, and no zeros that say nothing."""
    text = decimal(amount, digits)
    assert Decimal(text).scaleb(digits) == amount
    assert not ("." in text and text.endswith(("0", ".")))


def test_a_settlement_becomes_a_row() -> None:
    """What the exports need, with the site from the decision and the name of the account."""
    figures = {"ustu": 9, "nano": 5, "loss_ustu": 2, "loss_nano": 1, "list_nano": 8}
    chosen = Candidate(replica="r1", site="hall", model="m", terms_nano={}, total_nano=0)
    settled = settlement(
        "r",
        account="acme",
        model_served="m",
        decision=Decision(chosen=chosen),
        burned=(Burn(grant="g", ustu=4),),
        entity="north",
        **figures,
    )
    row = sold_of(settled, account_name="Acme", energy_mj=7)
    assert (row.site, row.model, row.entity, row.energy_mj, row.carbon_ug) == ("hall", "m", "north", 7, None)
    assert (row.charged_nano, row.charged_ustu, row.covered_ustu) == (4, 7, 4)
    assert sold_of(msgspec.structs.replace(settled, decision=None)).site == ""
    assert sold_of(settled).account_name == "acme"


# --- FOCUS ----------------------------------------------------------------------------------------------------------


def dataset(rows: list[Sold], **more: Any) -> list[dict[str, str]]:
    """Rows after a trip through CSV; null is an empty field."""
    found = focus.rows(rows, provider="Grid", known=KNOWN, grants={"g1": GRANT}, **more)
    return list(csv.DictReader(io.StringIO(focus_table.csv_text(found))))


@given(asked)
def test_billed_cost_is_the_invoice(drawn: list[Asked]) -> None:
    """FOCUS's own rule: per InvoiceId, BilledCost sums exactly to what is payable."""
    rows = settle(drawn)
    found = dataset(rows, purchases=[BOUGHT], credits_=[GIVEN])
    billed: dict[str, Decimal] = defaultdict(Decimal)
    for row in found:
        billed[row["InvoiceId"]] += Decimal(row["BilledCost"])
    total = bill(rows, purchases=[BOUGHT], credits_=[GIVEN]).total_nano
    assert billed["acme-202611"] == Decimal(total).scaleb(-9)
    assert billed["bolt-202611"] == Decimal(sum(r.charged_nano for r in rows if r.account == "bolt")).scaleb(-9)
    usage = [row for row in found if row["ChargeCategory"] == "Usage"]
    assert sum((Decimal(row["x_STU"]) for row in usage), Decimal()).scaleb(6) == sum(row.ustu for row in rows)
    assert sum(int(row["ConsumedQuantity"]) for row in usage) == sum(row.usage.total() for row in rows)
    known_energy = [row for row in rows if row.energy_mj is not None]
    if len(known_energy) == len(rows):
        metered = sum(int(row["x_EnergyMj"] or 0) for row in usage)
        assert metered == sum(row.energy_mj or 0 for row in known_energy if row.usage.total())


@given(asked)
def test_a_unit_price_times_its_quantity_is_its_cost(drawn: list[Asked]) -> None:
    """Another rule of FOCUS, in list and contracted prices, to the last digit; and columns are null as it says."""
    for row in dataset(settle(drawn), purchases=[BOUGHT], credits_=[GIVEN]):
        assert not [name for name in MANDATORY if not row[name]]
        priced, used = row["ChargeCategory"] in ("Usage", "Purchase"), row["ChargeCategory"] == "Usage"
        assert {bool(row[name]) for name in PRICED} == {priced}
        assert {bool(row[name]) for name in USED} == {used}
        assert bool(row["SubAccountType"]) == bool(row["SubAccountId"])
        if not priced:
            continue
        for kind in ("List", "Contracted"):
            assert Decimal(row[f"{kind}UnitPrice"]) * Decimal(row["PricingQuantity"]) == Decimal(row[f"{kind}Cost"])


MANDATORY = (
    *("BilledCost", "BillingAccountId", "BillingAccountName", "BillingCurrency", "BillingPeriodEnd"),
    *("BillingPeriodStart", "ChargeCategory", "ChargeDescription", "ChargeFrequency", "ChargePeriodEnd"),
    *("ChargePeriodStart", "ContractedCost", "EffectiveCost", "InvoiceIssuerName", "ListCost", "PricingCurrency"),
    *("ProviderName", "PublisherName", "ServiceCategory", "ServiceName", "ServiceSubcategory", "InvoiceId"),
    *("BillingAccountType", "PricingCurrencyEffectiveCost"),
)
"""Never null."""
PRICED = (
    *("PricingCategory", "PricingQuantity", "PricingUnit", "ListUnitPrice", "ContractedUnitPrice", "SkuId"),
    *("SkuPriceId", "PricingCurrencyListUnitPrice", "PricingCurrencyContractedUnitPrice"),
)
"""Not null of usage and purchases, null of credits."""
USED = ("ConsumedQuantity", "ConsumedUnit", "SkuMeter", "x_UsageBucket")


def test_the_table_has_the_columns_of_focus_1_2() -> None:
    """57 of the specification, then only our own with the prefix x_."""
    assert len(focus_table.COLUMNS) == len({*focus_table.COLUMNS}) == 57
    assert list(focus_table.COLUMNS) == sorted(focus_table.COLUMNS, key=str.lower)
    assert {*MANDATORY, *PRICED, *USED[:3]} <= {*focus_table.COLUMNS}
    assert all(name.startswith("x_") for name in focus_table.OWN_COLUMNS)
    header = focus_table.csv_text([]).strip().split(",")
    assert header == [*focus_table.COLUMNS, *focus_table.OWN_COLUMNS]


def test_a_package_is_billed_once_and_takes_effect_with_use() -> None:
    """The purchase has its price and effect 0; the use has billed 0, effect in money, and a price in STU."""
    usage = Usage(input=2_000_000, output=500_000)
    rows = settle([Asked("acme", "big", 1, usage, 1000, 0, None)])
    found = dataset(rows, purchases=[BOUGHT])
    (bought,) = [row for row in found if row["ChargeCategory"] == "Purchase"]
    used = [row for row in found if row["ChargeCategory"] == "Usage"]
    assert (bought["BilledCost"], bought["EffectiveCost"], bought["PricingCurrencyEffectiveCost"]) == ("29.9", "0", "0")
    assert (bought["x_STU"], bought["ChargeFrequency"]) == ("40000000", "One-Time")
    assert {row["PricingCurrency"] for row in used} == {"STU"}
    assert {row["BilledCost"] for row in used} == {"0"}
    # 4 of 40 MSTU were used: a tenth of the price takes effect.
    assert sum(Decimal(row["EffectiveCost"]) for row in used) == Decimal("2.99")
    assert sum(Decimal(row["PricingCurrencyEffectiveCost"]) for row in used) == 4_000_000
    for row in used:
        assert Decimal(row["PricingCurrencyListUnitPrice"]) * Decimal(row["PricingQuantity"]) == Decimal(row["x_STU"])


@given(asked)
def test_a_used_up_package_has_taken_effect_whole(drawn: list[Asked]) -> None:
    """Effective cost is cumulative per grant, so no nano of its price is lost between requests."""
    rows = settle(drawn)
    burned = sum(row.covered_ustu for row in rows)
    if burned:
        grant = msgspec.structs.replace(GRANT, size_ustu=burned, price_nano=777_777_777)
        found = focus.rows(rows, provider="Grid", known=KNOWN, grants={"g1": grant})
        packaged = [row for row in found if row["PricingCurrency"] == "STU"]
        assert sum(Decimal(row["EffectiveCost"] or 0) for row in packaged) == Decimal("0.777777777")


def test_a_credit_is_a_negative_charge() -> None:
    """It belongs to no other charge: no quantity, no unit price."""
    (row,) = dataset([], credits_=[GIVEN])
    assert (row["ChargeCategory"], row["BilledCost"], row["ContractedCost"]) == (
        "Credit",
        "-0.123456789",
        "-0.123456789",
    )
    assert row["PricingQuantity"] == row["ListUnitPrice"] == ""


def test_an_export_without_the_price_book_still_sums_up() -> None:
    """Rows of a book that is not at hand: shares by tokens, no unit price, costs as paid."""
    rows = settle([Asked("acme", "big", 1, Usage(input=10, output=5), 300, 0, 9)])
    found = focus.rows(rows, provider="Grid", known={})
    assert sum((Decimal(row["BilledCost"] or 0) for row in found), Decimal()).scaleb(9) == rows[0].charged_nano
    assert {row["ListUnitPrice"] for row in found} == {None}


def test_parquet_needs_pyarrow_and_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    """It is no dependency: without it the error tells what to do."""

    def missing(name: str) -> Any:
        raise ImportError(name)

    monkeypatch.setattr("importlib.import_module", missing)
    with pytest.raises(BadRequest, match="pip install pyarrow"):
        focus_table.parquet([])


# --- invoices -------------------------------------------------------------------------------------------------------


@given(asked)
def test_lines_and_rounding_are_the_total(drawn: list[Asked]) -> None:
    """I9: the invoice is what the ledger says, and a paid line is its tokens times its unit price."""
    rows = settle(drawn)
    owed = sum(row.charged_nano for row in rows if row.account == "acme") + BOUGHT.price_nano - GIVEN.nano
    made = bill(rows, purchases=[BOUGHT], credits_=[GIVEN], owed_nano=owed)
    lines = sum(line.nano for line in made.lines) + BOUGHT.price_nano - GIVEN.nano
    assert lines + made.rounding_nano == made.total_nano == owed
    assert abs(made.rounding_nano) <= made.receipts + len(made.lines)
    for line in made.lines:
        if line.unit_nano_per_mtok is not None:
            assert line.nano == line.tokens * line.unit_nano_per_mtok // 1_000_000
        if line.funding == "package":
            assert line.nano == 0
    own = [row for row in rows if row.account == "acme"]
    assert sum(line.tokens for line in made.lines) == sum(row.usage.total() for row in own)
    assert msgspec.json.decode(msgspec.json.encode(made), type=Invoice) == made


def test_a_years_small_requests_are_charged_to_the_nano() -> None:
    """Rounding carried over: ten thousand requests of a fraction of a nano cost what their sum costs."""
    rows = settle([Asked("acme", "smollm2-135m-instruct", 0, Usage(cached_input=1), 0, 0, None)] * 10_001)
    made = bill(rows)
    (line,) = made.lines
    assert (line.tokens, line.nano, made.rounding_nano, made.total_nano) == (10_001, 20_002, 0, 20_002)


def test_the_invoice_refuses_what_does_not_close() -> None:
    """Another total than the ledger's, or a row in another currency."""
    rows = settle([Asked("acme", "big", 1, Usage(input=10), 0, 0, None)])
    with pytest.raises(BooksDoNotClose, match="the ledger says"):
        bill(rows, owed_nano=rows[0].nano + 1)
    with pytest.raises(BooksDoNotClose, match="currency"):
        bill([msgspec.structs.replace(rows[0], currency="EUR")])


def test_only_the_account_and_the_period_are_billed() -> None:
    """The end of a period is exclusive, and a period other than a month has an id of its own."""
    row = settle([Asked("acme", "big", 0, Usage(input=10), 0, 0, None)])[0]
    rows = [
        row,
        msgspec.structs.replace(row, receipt="x", account="bolt"),
        msgspec.structs.replace(row, receipt="y", at_ns=UNTIL),
        msgspec.structs.replace(row, receipt="z", at_ns=SINCE - 1),
    ]
    assert (bill(rows).receipts, bill(rows).id) == (1, "acme-202611")
    week = invoice(
        rows, account="acme", account_name="A", currency="USD", since_ns=SINCE, until_ns=SINCE + HOUR, known=KNOWN
    )
    assert (week.receipts, week.id) == (1, "acme-2026-11-01T00:00:00Z-2026-11-01T01:00:00Z")


class Page(HTMLParser):
    """What a browser would fetch or run, and the text."""

    def __init__(self) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_data(self, data: str) -> None:
        self.text += data


def test_the_page_prints_without_fetching_or_running_anything() -> None:
    """Names come from people: they are escaped, and the page loads nothing from anywhere."""
    evil = '<script>alert("1")</script>'
    rows = settle([Asked("acme", "big", 1, Usage(input=10), 0, 0, None)])
    rows = [msgspec.structs.replace(row, model=f"{evil}&") for row in rows]
    credit = msgspec.structs.replace(GIVEN, reason=evil)
    made = msgspec.structs.replace(
        bill(rows, purchases=[BOUGHT], credits_=[credit]), account_name=evil, rounding_nano=1
    )
    page = Page()
    page.feed(as_html(made))
    assert not {tag for tag, _ in page.tags} & {"script", "link", "img", "iframe", "object"}
    assert not any({"src", "href", "onload"} & {*attrs} for _, attrs in page.tags)
    assert page.text.count(evil) >= 3
    assert "29.90 USD" in page.text
    assert "url(" not in as_html(made)


# --- CloudEvents ----------------------------------------------------------------------------------------------------


@given(asked)
def test_an_event_is_named_once_for_ever(drawn: list[Asked]) -> None:
    """CloudEvents 1.0: a period sent twice has the same sources and ids, by which a receiver counts it once."""
    rows = settle(drawn)
    events = list(cloudevents.events(rows, "/grids/g"))
    assert events == list(cloudevents.events(rows, "/grids/g"))
    for event, row in zip(events, rows, strict=True):
        assert (event["specversion"], event["source"], event["id"]) == ("1.0", "/grids/g", row.receipt)
        assert re.fullmatch(r"2026-11-\d\dT\d\d:\d\d:\d\d\.\d{9}Z", event["time"])
        assert event["data"]["charged_nano"] == row.charged_nano
        counts = {name: count for name, count in event["data"]["usage"].items() if name != "certainty"}
        assert counts == dict(row.usage.counts())


def test_a_purchase_without_an_end_is_charged_to_the_end_of_its_month() -> None:
    """A period needs an end, and a package for ever has none."""
    (row,) = dataset([], purchases=[msgspec.structs.replace(BOUGHT, expires_ns=None)])
    assert isinstance(BOUGHT, Purchase)
    assert (row["ChargePeriodStart"], row["ChargePeriodEnd"]) == ("2026-11-01T00:00:00Z", "2026-12-01T00:00:00Z")
