"""FOCUS 1.2, the FinOps open cost and usage specification: all its 57 columns, and our own with the prefix ``x_``.

One row per usage bucket, for each hour of (account, budget, model, site, prices). What packages paid is priced in the
virtual currency STU: billed 0, effective cost the package's own price spread over its tokens. The purchase of the
package is billed whole and has effective cost 0. Per InvoiceId the BilledCost sums to the invoice.

Source: FinOps-Open-Cost-and-Usage-Spec/FOCUS_Spec, specification/columns and appendix "Token Based Pricing Currency".
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from operator import attrgetter

import msgspec

from tokenworks.core.units import NS_PER_S, split
from tokenworks.exchange.exports import focus_table
from tokenworks.exchange.exports.sold import Catalogue, Credit, Purchase, Sold, decimal, parts
from tokenworks.exchange.words import Grant

HOUR_NS = 3_600 * NS_PER_S
PRICING_UNIT = "1000000 Tokens"


@dataclass(slots=True)
class _Sum:
    """One row of usage; ``of`` is a request of it, for what all of them have in common."""

    of: Sold
    start_ns: int
    bucket: str
    packaged: bool
    tokens: int = 0
    ustu: int = 0
    billed_nano: int = 0
    effective_nano: int = 0
    requests: int = 0
    energy_mj: int | None = 0
    carbon_ug: int | None = 0


_COMMON = attrgetter(
    *("account", "account_name", "budget", "model", "site", "entity"),
    *("rate_card", "price_book", "price_class", "currency"),
)


def rows(
    sold: Iterable[Sold], *, provider: str, known: Catalogue, grants: Mapping[str, Grant] | None = None,
    purchases: Iterable[Purchase] = (), credits_: Iterable[Credit] = (),
) -> list[focus_table.Row]:  # fmt: skip
    """The rows of a dataset, oldest first. ``provider`` is who sells and invoices; ``grants`` gives packages' prices.

    Without the grant of a burn its effective cost is the book's value of what it covered. Memory is bounded by the rows
    that come out, not by the requests that go in.
    """
    sums: dict[tuple[object, ...], _Sum] = {}
    burnt: dict[str, int] = {}
    for row in sold:
        _add(sums, row, known, _package_nano(row, grants or {}, burnt))
    usage = [_usage_row(each, provider, known) for each in sums.values()]
    bought = [focus_table.purchase_row(each, provider) for each in purchases]
    given = [focus_table.credit_row(each, provider) for each in credits_]
    return sorted([*usage, *bought, *given], key=lambda row: (row["ChargePeriodStart"] or "", row["SkuId"] or ""))


def _package_nano(row: Sold, grants: Mapping[str, Grant], burnt: dict[str, int]) -> int:
    """What was paid for the tokens that packages covered, cumulative per grant so that no nano is lost between rows."""
    nano = 0
    for burn in row.burned:
        grant = grants.get(burn.grant)
        if grant is None:
            nano += row.list_nano * burn.ustu // max(1, row.ustu)
            continue
        before = burnt.get(grant.id, 0)
        burnt[grant.id] = after = before + burn.ustu
        nano += grant.price_nano * after // grant.size_ustu - grant.price_nano * before // grant.size_ustu
    return nano


def _add(sums: dict[tuple[object, ...], _Sum], row: Sold, known: Catalogue, package_nano: int) -> None:
    start = row.at_ns - row.at_ns % HOUR_NS
    found = parts(row, known.get((row.rate_card, row.price_book)))
    amortised = split(package_nano, [part.covered_ustu for part in found]) if found else []
    for part, package in zip(found, amortised, strict=True):
        covered = min(part.covered_ustu, part.ustu)
        rest = part.ustu - covered
        # A request that a package covered in part gives two rows: its tokens go with what paid for them.
        tokens = split(part.tokens, [covered, rest] if part.ustu else [0, 1])
        energy, carbon = (
            [None, None] if whole is None else split(whole, tokens if part.tokens else [0, 1])
            for whole in (part.energy_mj, part.carbon_ug)
        )
        for packaged in (True, False):
            side = 0 if packaged else 1
            ustu = covered if packaged else rest
            if not (tokens[side] or ustu or (package if packaged else part.nano)):
                continue
            key = (start, part.bucket, packaged, _COMMON(row))
            into = sums.setdefault(key, _Sum(row, start, part.bucket, packaged))
            into.tokens += tokens[side]
            into.ustu += ustu
            into.billed_nano += 0 if packaged else part.nano
            into.effective_nano += package if packaged else part.nano
            into.requests += 1
            into.energy_mj = _plus(into.energy_mj, energy[side])
            into.carbon_ug = _plus(into.carbon_ug, carbon[side])


def _plus(sum_: int | None, more: int | None) -> int | None:
    """A sum with an unknown part is unknown."""
    return None if sum_ is None or more is None else sum_ + more


def _usage_row(sum_: _Sum, provider: str, known: Catalogue) -> focus_table.Row:
    of, meter = sum_.of, focus_table.METERS[sum_.bucket]
    prices = known.get((of.rate_card, of.price_book))
    contracted = prices.line(of.model, of.price_class)[sum_.bucket] if prices else None
    listed = prices.line(of.model)[sum_.bucket] if prices else None
    paid = decimal(sum_.effective_nano, focus_table.NANO_DIGITS)
    unit_price, list_price = (
        decimal(each[1], focus_table.NANO_DIGITS) if each else None for each in (contracted, listed)
    )
    priced: tuple[str | None, ...] = (of.currency, paid, unit_price, list_price)
    if sum_.packaged:
        # Micro-STU per token is the same number as STU per million tokens.
        rates = (None if rate is None else str(rate[0]) for rate in (contracted, listed))
        priced = ("STU", decimal(sum_.ustu, focus_table.STU_DIGITS), *rates)
    period_ns = sum_.start_ns, sum_.start_ns + HOUR_NS
    # Unit price times quantity is the cost, to the last digit; without a unit price the cost is what was paid.
    return focus_table.base_row(provider, of, sum_.start_ns, period_ns, priced) | {
        "BilledCost": decimal(sum_.billed_nano, focus_table.NANO_DIGITS), "EffectiveCost": paid,
        "ListCost": decimal(sum_.tokens * listed[1], focus_table.EXACT_DIGITS) if listed else paid,
        "ContractedCost": decimal(sum_.tokens * contracted[1], focus_table.EXACT_DIGITS) if contracted else paid,
        "ListUnitPrice": list_price, "ContractedUnitPrice": unit_price,
        "ChargeCategory": "Usage", "ChargeFrequency": "Usage-Based",
        "ChargeDescription": f"{meter} of {of.model}{', from packages' if sum_.packaged else ''}",
        "ConsumedQuantity": str(sum_.tokens), "ConsumedUnit": "Tokens",
        "PricingCategory": "Standard", "PricingUnit": PRICING_UNIT,
        "PricingQuantity": decimal(sum_.tokens, focus_table.STU_DIGITS),
        "PublisherName": of.entity or provider, "RegionId": of.site or None, "RegionName": of.site or None,
        "SkuId": f"{of.model}/{sum_.bucket}", "SkuMeter": meter,
        "SkuPriceId": f"{of.price_book}/{of.price_class}/{of.model}/{sum_.bucket}",
        "SkuPriceDetails": msgspec.json.encode({"x_PriceClass": of.price_class}).decode(),
        "SubAccountId": of.budget, "SubAccountName": of.budget, "SubAccountType": "Budget",
        "x_Model": of.model, "x_UsageBucket": sum_.bucket, "x_Entity": of.entity or None,
        "x_STU": decimal(sum_.ustu, focus_table.STU_DIGITS), "x_Requests": str(sum_.requests),
        "x_EnergyMj": None if sum_.energy_mj is None else str(sum_.energy_mj),
        "x_CarbonUg": None if sum_.carbon_ug is None else str(sum_.carbon_ug),
        "x_RateCard": of.rate_card, "x_PriceBook": of.price_book, "x_PriceClass": of.price_class,
    }  # fmt: skip
