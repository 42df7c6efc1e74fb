"""The table that a FOCUS 1.2 dataset is: its columns, the rows that are not usage, and its file formats."""

from __future__ import annotations

import csv
import importlib
import io
from collections.abc import Iterable, Sequence
from decimal import Decimal
from typing import Any

from tokenworks.core.errors import BadRequest
from tokenworks.core.units import NS_PER_S
from tokenworks.core.words import BUCKETS
from tokenworks.exchange.exports.sold import Credit, Purchase, Sold, decimal, invoice_id, iso, month_of

Row = dict[str, str | None]
COLUMNS = (
    *("AvailabilityZone", "BilledCost", "BillingAccountId", "BillingAccountName", "BillingAccountType"),
    *("BillingCurrency", "BillingPeriodEnd", "BillingPeriodStart", "CapacityReservationId"),
    *("CapacityReservationStatus", "ChargeCategory", "ChargeClass", "ChargeDescription", "ChargeFrequency"),
    *("ChargePeriodEnd", "ChargePeriodStart", "CommitmentDiscountCategory", "CommitmentDiscountId"),
    *("CommitmentDiscountName", "CommitmentDiscountQuantity", "CommitmentDiscountStatus", "CommitmentDiscountType"),
    *("CommitmentDiscountUnit", "ConsumedQuantity", "ConsumedUnit", "ContractedCost", "ContractedUnitPrice"),
    *("EffectiveCost", "InvoiceId", "InvoiceIssuerName", "ListCost", "ListUnitPrice", "PricingCategory"),
    *("PricingCurrency", "PricingCurrencyContractedUnitPrice", "PricingCurrencyEffectiveCost"),
    *("PricingCurrencyListUnitPrice", "PricingQuantity", "PricingUnit", "ProviderName", "PublisherName", "RegionId"),
    *("RegionName", "ResourceId", "ResourceName", "ResourceType", "ServiceCategory", "ServiceName"),
    *("ServiceSubcategory", "SkuId", "SkuMeter", "SkuPriceDetails", "SkuPriceId", "SubAccountId", "SubAccountName"),
    *("SubAccountType", "Tags"),
)
OWN_COLUMNS = (
    *("x_Model", "x_UsageBucket", "x_STU", "x_Requests", "x_EnergyMj", "x_CarbonUg", "x_Entity"),
    *("x_RateCard", "x_PriceBook", "x_PriceClass"),
)
DECIMALS = {name for name in COLUMNS if name.endswith(("Cost", "Quantity", "UnitPrice"))}
METERS = {bucket: f"{bucket.replace('_', ' ').title()} Tokens" for bucket in BUCKETS}
PRICED_IN = (
    "PricingCurrency",
    "PricingCurrencyEffectiveCost",
    "PricingCurrencyContractedUnitPrice",
    "PricingCurrencyListUnitPrice",
)
"""What the price was made in: the billing currency, or STU where packages paid."""
NANO_DIGITS, STU_DIGITS, EXACT_DIGITS = 9, 6, 15
"""Digits: of money, of STU and of millions of tokens, and of their product."""


def base_row(
    provider: str, of: Sold | Purchase | Credit, at_ns: int, period_ns: tuple[int, int], priced: Sequence[str | None]
) -> Row:
    """What all rows have: who is billed when, the period, and PRICED_IN. Every other column is null until said."""
    month = month_of(at_ns)
    return dict.fromkeys((*COLUMNS, *OWN_COLUMNS)) | {
        "BillingAccountId": of.account, "BillingAccountName": of.account_name, "BillingAccountType": "Account",
        "BillingCurrency": of.currency, "BillingPeriodStart": iso(month[0]), "BillingPeriodEnd": iso(month[1]),
        "ChargePeriodStart": iso(period_ns[0]), "ChargePeriodEnd": iso(period_ns[1]),
        "InvoiceId": invoice_id(of.account, at_ns),
        "InvoiceIssuerName": provider, "ProviderName": provider, "PublisherName": provider,
        "ServiceCategory": "AI and Machine Learning", "ServiceSubcategory": "Generative AI", "ServiceName": "Tokens",
        **dict(zip(PRICED_IN, priced, strict=True)),
    }  # fmt: skip


def purchase_row(bought: Purchase, provider: str) -> Row:
    """A package sold: billed whole; its cost takes effect with the usage that it pays."""
    price = decimal(bought.price_nano, NANO_DIGITS)
    end_ns = month_of(bought.effective_ns)[1] if bought.expires_ns is None else bought.expires_ns
    period_ns, priced = (bought.effective_ns, end_ns), (bought.currency, "0", price, price)
    return base_row(provider, bought, bought.at_ns, period_ns, priced) | {
        **dict.fromkeys(("BilledCost", "ListCost", "ContractedCost", "ListUnitPrice", "ContractedUnitPrice"), price),
        "EffectiveCost": "0",
        "ChargeCategory": "Purchase", "ChargeDescription": f"Package {bought.package}", "ChargeFrequency": "One-Time",
        "PricingCategory": "Standard", "PricingQuantity": "1", "PricingUnit": "Packages",
        "SkuId": f"package/{bought.package}", "SkuPriceId": f"package/{bought.package}/{bought.id}",
        "x_STU": decimal(bought.size_ustu, STU_DIGITS),
    }  # fmt: skip


def credit_row(credit: Credit, provider: str) -> Row:
    """Money given back: a negative charge that belongs to no other."""
    given = decimal(-credit.nano, NANO_DIGITS)
    period_ns, priced = (credit.at_ns, credit.at_ns + NS_PER_S), (credit.currency, given, None, None)
    return base_row(provider, credit, credit.at_ns, period_ns, priced) | {
        **dict.fromkeys(("BilledCost", "EffectiveCost", "ListCost", "ContractedCost"), given),
        "ChargeCategory": "Credit",
        "ChargeDescription": credit.reason,
        "ChargeFrequency": "One-Time",
    }


def csv_text(found: Iterable[Row]) -> str:
    """Rows as CSV with a header; null is an empty field."""
    out = io.StringIO()
    writer = csv.DictWriter(out, (*COLUMNS, *OWN_COLUMNS), lineterminator="\n")
    writer.writeheader()
    writer.writerows(found)
    return out.getvalue()


def parquet(found: Iterable[Row]) -> bytes:
    """Rows as a Parquet file, costs as decimal128(38, 15). Raises BadRequest where pyarrow is not installed."""
    try:
        arrow: Any = importlib.import_module("pyarrow")
        files: Any = importlib.import_module("pyarrow.parquet")
    except ImportError:
        raise BadRequest(
            "Parquet needs pyarrow, which is not installed", hint="pip install pyarrow, or export CSV"
        ) from None
    table = list(found)
    columns = {}
    for name in (*COLUMNS, *OWN_COLUMNS):
        values = [row[name] for row in table]
        if name in DECIMALS:
            numbers = [None if value is None else Decimal(value) for value in values]
            columns[name] = arrow.array(numbers, arrow.decimal128(38, EXACT_DIGITS))
        else:
            columns[name] = arrow.array(values, arrow.string())
    out = io.BytesIO()
    files.write_table(arrow.table(columns), out)
    return out.getvalue()
