"""OpenAI's admin API for usage and costs, filled from our books, so that tools made for it work here.

Paths: ``/v1/organization/usage/completions`` and ``/v1/organization/costs``. A project is a budget, a user an account.
``input_tokens`` includes cached tokens and cache writes, ``output_tokens`` includes reasoning, as there. Amounts are
``Decimal``; ``encode`` writes them as exact JSON numbers. Source: OpenAI API reference, openai-python 3.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from decimal import Decimal
from typing import Any, TypeVar

import msgspec

from tokenworks.core.errors import BadRequest
from tokenworks.core.units import NS_PER_S
from tokenworks.exchange.exports.sold import Catalogue, Credit, Purchase, Sold, decimal, parts

Page = dict[str, Any]
_Row = TypeVar("_Row", Sold, Purchase, Credit)
_WIDTHS_S: dict[str, int] = {"1m": 60, "1h": 3_600, "1d": 86_400}
_LIMITS: dict[str, tuple[int, int]] = {"1m": (60, 1_440), "1h": (24, 168), "1d": (7, 31)}
"""Buckets on a page: default and most."""
_COSTS_LIMIT = (7, 180)
USAGE_GROUPS = ("project_id", "user_id", "api_key_id", "model", "batch", "service_tier")
COST_GROUPS = ("project_id", "line_item", "api_key_id")
_GROUPS: dict[str, Callable[[Sold], object]] = {
    "project_id": lambda row: row.budget,
    "user_id": lambda row: row.account,
    "api_key_id": lambda row: row.key,
    "model": lambda row: row.model,
    "batch": lambda row: False,
    "service_tier": lambda row: "default",
}
_encoder = msgspec.json.Encoder(decimal_format="number")


def encode(page: Page) -> bytes:
    """A page as JSON."""
    return _encoder.encode(page)


def usage_page(
    sold: Iterable[Sold],
    *,
    start_time: int,
    end_time: int,
    bucket_width: str = "1d",
    group_by: Sequence[str] = (),
    limit: int | None = None,
    page: str | None = None,
) -> Page:
    """Token counts per bucket. Times are seconds since 1970, ``end_time`` exclusive. Raises BadRequest."""
    _known_groups(group_by, USAGE_GROUPS)
    if bucket_width not in _WIDTHS_S:
        raise BadRequest(f"bucket_width {bucket_width!r} is unknown", hint="1m, 1h or 1d", param="bucket_width")
    starts, shown = _buckets(start_time, end_time, _WIDTHS_S[bucket_width], limit, _LIMITS[bucket_width], page)
    found: dict[int, dict[tuple[object, ...], dict[str, int]]] = {start: {} for start in shown}
    for row, start in _placed(sold, shown, _WIDTHS_S[bucket_width], start_time, end_time):
        sums = found[start].setdefault(tuple(_GROUPS[name](row) for name in group_by), {})
        for name, count in _counts(row).items():
            sums[name] = sums.get(name, 0) + count
    empty = dict.fromkeys(USAGE_GROUPS)
    results = {
        start: [
            {
                "object": "organization.usage.completions.result",
                **sums,
                **empty,
                **dict(zip(group_by, key, strict=True)),
            }
            for key, sums in sorted(groups.items(), key=lambda item: str(item[0]))
        ]
        for start, groups in found.items()
    }
    return _page(results, starts, shown, _WIDTHS_S[bucket_width], end_time)


def costs_page(
    sold: Iterable[Sold],
    *,
    known: Catalogue,
    currency: str,
    start_time: int,
    end_time: int,
    purchases: Iterable[Purchase] = (),
    credits_: Iterable[Credit] = (),
    group_by: Sequence[str] = (),
    limit: int | None = None,
    page: str | None = None,
) -> Page:
    """Money per day: usage beyond packages, packages sold, credits. Raises BadRequest."""
    _known_groups(group_by, COST_GROUPS)
    width = _WIDTHS_S["1d"]
    starts, shown = _buckets(start_time, end_time, width, limit, _COSTS_LIMIT, page)
    found: dict[int, dict[tuple[object, ...], int]] = {start: {} for start in shown}

    def add(start: int, nano: int, project: str | None, key: str | None, item: str) -> None:
        all_of = {"project_id": project, "api_key_id": key, "line_item": item}
        group = tuple(all_of[name] for name in group_by)
        found[start][group] = found[start].get(group, 0) + nano

    for row, start in _placed(sold, shown, width, start_time, end_time):
        for part in parts(row, known.get((row.rate_card, row.price_book))):
            add(start, part.nano, row.budget, row.key, f"{row.model}, {part.bucket.replace('_', ' ')}")
    for bought, start in _placed(purchases, shown, width, start_time, end_time):
        add(start, bought.price_nano, None, None, f"package {bought.package}")
    for credit, start in _placed(credits_, shown, width, start_time, end_time):
        add(start, -credit.nano, None, None, "credit")
    results = {
        start: [
            {
                "object": "organization.costs.result",
                "amount": {"value": Decimal(decimal(nano, 9)), "currency": currency.lower()},
                **dict.fromkeys(COST_GROUPS),
                **dict(zip(group_by, group, strict=True)),
            }
            for group, nano in sorted(groups.items(), key=lambda item: str(item[0]))
        ]
        for start, groups in found.items()
    }
    return _page(results, starts, shown, width, end_time)


def _counts(row: Sold) -> dict[str, int]:
    usage = row.usage
    text = usage.input + usage.cached_input + usage.cache_write
    return {
        "input_tokens": text,
        "input_uncached_tokens": usage.input,
        "input_cached_tokens": usage.cached_input,
        "input_cache_write_tokens": usage.cache_write,
        "output_tokens": usage.output + usage.reasoning,
        "input_image_tokens": usage.image,
        "input_audio_tokens": usage.audio,
        "x_input_video_tokens": usage.video,
        "x_output_reasoning_tokens": usage.reasoning,
        "num_model_requests": 1,
    }


def _known_groups(group_by: Sequence[str], known: Sequence[str]) -> None:
    for name in group_by:
        if name not in known:
            raise BadRequest(f"group_by {name!r} is unknown", hint=", ".join(known), param="group_by")


def _buckets(
    start_time: int, end_time: int, width: int, limit: int | None, limits: tuple[int, int], page: str | None
) -> tuple[range, range]:
    """Starts of all buckets, aligned in UTC, and of those on this page. The cursor is the first start on the page."""
    if not 0 <= start_time < end_time:
        raise BadRequest("end_time must be after start_time", param="end_time")
    size = limits[0] if limit is None else limit
    if not 1 <= size <= limits[1]:
        raise BadRequest(f"limit must be from 1 to {limits[1]}", param="limit")
    starts = range(start_time - start_time % width, end_time, width)
    first = 0
    if page is not None:
        cursor = page.removeprefix("page_")
        if not cursor.isdecimal() or len(cursor) > 12 or int(cursor) not in starts:
            raise BadRequest("page is no cursor of this question", hint="use next_page as it came", param="page")
        first = starts.index(int(page.removeprefix("page_")))
    return starts, starts[first : first + size]


def _placed(
    rows: Iterable[_Row], shown: range, width: int, start_time: int, end_time: int
) -> Iterator[tuple[_Row, int]]:
    """The rows of the period that fall into a bucket of this page, with its start."""
    for row in rows:
        at = row.at_ns // NS_PER_S
        if start_time <= at < end_time and at - at % width in shown:
            yield row, at - at % width


def _page(results: dict[int, list[Page]], starts: range, shown: range, width: int, end_time: int) -> Page:
    more = bool(shown) and shown[-1] != starts[-1]
    return {
        "object": "page",
        "data": [
            {
                "object": "bucket",
                "start_time": start,
                "end_time": min(start + width, end_time),
                "results": results[start],
            }
            for start in shown
        ],
        "has_more": more,
        "next_page": f"page_{shown[-1] + width}" if more else None,
    }
