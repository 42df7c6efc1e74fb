"""OpenAI's admin API for usage and costs, filled from our books, so that tools made for it work here.

Paths: ``/v1/organization/usage/completions`` and ``/v1/organization/costs``. A project is a budget, a user an account.
``input_tokens`` includes cached tokens and cache writes, ``output_tokens`` includes reasoning, as there. Amounts are
``Decimal``; ``encode`` writes them as exact JSON numbers. Source: OpenAI API reference, openai-python 3.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from decimal import Decimal
from typing import Any, Required, TypedDict, Unpack

import msgspec

from tokenworks.core.errors import BadRequest
from tokenworks.core.units import NS_PER_S
from tokenworks.exchange.exports.sold import Catalogue, Credit, Purchase, Sold, decimal, parts

Page = dict[str, Any]
_LIMITS: dict[int, tuple[int, int]] = {60: (60, 1_440), 3_600: (24, 168), 86_400: (7, 31)}
"""By width in seconds, buckets on a page: default and most."""
_WIDTHS_S = dict(zip(("1m", "1h", "1d"), _LIMITS, strict=True))
_COSTS_LIMIT = (7, 180)
_GROUPS: dict[str, Callable[[Sold], object]] = {
    "project_id": lambda row: row.budget,
    "user_id": lambda row: row.account,
    "api_key_id": lambda row: row.key,
    "model": lambda row: row.model,
    "batch": lambda row: False,
    "service_tier": lambda row: "default",
}
USAGE_GROUPS = tuple(_GROUPS)
COST_GROUPS = ("project_id", "line_item", "api_key_id")
Charge = tuple[int, Mapping[str, object], Mapping[str, int]]
"""When [ns], what it is grouped by, and what is summed."""
_encoder = msgspec.json.Encoder(decimal_format="number")


class Asked(TypedDict, total=False):
    """Times are seconds since 1970, ``end_time`` exclusive; ``page`` is the ``next_page`` of the one before."""

    start_time: Required[int]
    end_time: Required[int]
    group_by: Sequence[str]
    limit: int | None
    page: str | None


def encode(page: Any) -> bytes:
    """A page as JSON."""
    return _encoder.encode(page)


def usage_page(sold: Iterable[Sold], *, bucket_width: str = "1d", **asked: Unpack[Asked]) -> Page:
    """Token counts per bucket. Raises BadRequest."""
    if bucket_width not in _WIDTHS_S:
        raise BadRequest(f"bucket_width {bucket_width!r} is unknown", hint="1m, 1h or 1d", param="bucket_width")
    width = _WIDTHS_S[bucket_width]
    charges = ((row.at_ns, {name: of(row) for name, of in _GROUPS.items()}, _counts(row)) for row in sold)
    kind = "organization.usage.completions.result"
    return _page(charges, lambda sums: {"object": kind, **sums}, USAGE_GROUPS, width, _LIMITS[width], asked)


def costs_page(
    sold: Iterable[Sold], *, known: Catalogue, currency: str, purchases: Iterable[Purchase] = (),
    credits_: Iterable[Credit] = (), **asked: Unpack[Asked],
) -> Page:  # fmt: skip
    """Money per day: usage beyond packages, packages sold, credits. Raises BadRequest."""

    def charges() -> Iterator[Charge]:
        for row in sold:
            for part in parts(row, known.get((row.rate_card, row.price_book))):
                item = f"{row.model}, {part.bucket.replace('_', ' ')}"
                by = {"project_id": row.budget, "api_key_id": row.key, "line_item": item}
                yield row.at_ns, by, {"nano": part.nano}
        for bought in purchases:
            yield bought.at_ns, {"line_item": f"package {bought.package}"}, {"nano": bought.price_nano}
        for credit in credits_:
            yield credit.at_ns, {"line_item": "credit"}, {"nano": -credit.nano}

    def result(sums: dict[str, int]) -> Page:
        amount = {"value": Decimal(decimal(sums["nano"], 9)), "currency": currency.lower()}
        return {"object": "organization.costs.result", "amount": amount}

    return _page(charges(), result, COST_GROUPS, _WIDTHS_S["1d"], _COSTS_LIMIT, asked)


def _counts(row: Sold) -> dict[str, int]:
    usage = row.usage
    return {
        "input_tokens": usage.input + usage.cached_input + usage.cache_write, "input_uncached_tokens": usage.input,
        "input_cached_tokens": usage.cached_input, "input_cache_write_tokens": usage.cache_write,
        "output_tokens": usage.output + usage.reasoning, "input_image_tokens": usage.image,
        "input_audio_tokens": usage.audio, "x_input_video_tokens": usage.video,
        "x_output_reasoning_tokens": usage.reasoning, "num_model_requests": 1,
    }  # fmt: skip


def _buckets(asked: Asked, width: int, limits: tuple[int, int]) -> tuple[range, range]:
    """Starts of all buckets, aligned in UTC, and of those on this page. The cursor is the first start on the page."""
    start_time, end_time, limit, page = asked["start_time"], asked["end_time"], asked.get("limit"), asked.get("page")
    if not 0 <= start_time < end_time:
        raise BadRequest("end_time must be after start_time", param="end_time")
    size = limits[0] if limit is None else limit
    if not 1 <= size <= limits[1]:
        raise BadRequest(f"limit must be from 1 to {limits[1]}", param="limit")
    starts, first = range(start_time - start_time % width, end_time, width), 0
    if page is not None:
        cursor = page.removeprefix("page_")
        if not cursor.isdecimal() or len(cursor) > 12 or int(cursor) not in starts:
            raise BadRequest("page is no cursor of this question", hint="use next_page as it came", param="page")
        first = starts.index(int(cursor))
    return starts, starts[first : first + size]


def _page(
    charges: Iterable[Charge], result: Callable[[dict[str, int]], Page], groups: Sequence[str], width: int,
    limits: tuple[int, int], asked: Asked,
) -> Page:  # fmt: skip
    """The charges of the period that fall into a bucket of this page, summed by group."""
    group_by, start_time, end_time = asked.get("group_by", ()), asked["start_time"], asked["end_time"]
    for name in group_by:
        if name not in groups:
            raise BadRequest(f"group_by {name!r} is unknown", hint=", ".join(groups), param="group_by")
    starts, shown = _buckets(asked, width, limits)
    found: dict[int, dict[tuple[object, ...], dict[str, int]]] = {start: {} for start in shown}
    for at_ns, by, counts in charges:
        at = at_ns // NS_PER_S
        if start_time <= at < end_time and (start := at - at % width) in found:
            sums = found[start].setdefault(tuple(by.get(name) for name in group_by), dict.fromkeys(counts, 0))
            for name, count in counts.items():
                sums[name] += count
    data = [
        {
            "object": "bucket",
            "start_time": start,
            "end_time": min(start + width, end_time),
            "results": [
                result(sums) | dict.fromkeys(groups) | dict(zip(group_by, key, strict=True))
                for key, sums in sorted(of.items(), key=lambda item: str(item[0]))
            ],
        }
        for start, of in found.items()
    ]
    more = bool(shown) and shown[-1] != starts[-1]
    return {
        "object": "page",
        "data": data,
        "has_more": more,
        "next_page": f"page_{shown[-1] + width}" if more else None,
    }
