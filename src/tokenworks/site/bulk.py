"""``attribution`` on columns, for an hour of a site with millions of works: the same integers, by numpy.

Products beyond 64 bits never arise: a quotient is found in floating point and put right by its remainder, which is
small and so exact in the wrapping arithmetic of int64.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from tokenworks.core.units import split
from tokenworks.core.words import Interval, Work
from tokenworks.site.attribution import FINE, Share, close_shares
from tokenworks.site.costing import Lists
from tokenworks.site.placing import PPM
from tokenworks.site.words import Pricing, Readings, Site, SliceLoad

Ints = npt.NDArray[np.int64]
TOTAL_MAX, WEIGHTS_MAX = 1 << 50, 1 << 61


class Columns(NamedTuple):
    """Works as arrays of one length. ``receipt`` is an index into the sorted ids; ``slice`` one into ``slices``;
    ``first_ns`` is ``end_ns`` where no token came. Works that held no time in the interval have no line."""

    slices: Sequence[str]
    receipt: Ints
    slice: Ints
    start_ns: Ints
    first_ns: Ints
    end_ns: Ints
    input_tokens: Ints
    cached_tokens: Ints
    output_tokens: Ints


def columns(works: Sequence[Work], at: Mapping[str, int]) -> Columns:
    """Works as columns; ``at``: the index of each receipt."""
    slices = sorted({work.slice for work in works})
    on = {name: index for index, name in enumerate(slices)}
    rows = [
        (
            at[w.receipt], on[w.slice], w.start_ns, w.end_ns if w.first_ns is None else w.first_ns, w.end_ns,
            w.input_tokens, w.cached_tokens, w.output_tokens,
        )
        for w in works
    ]  # fmt: skip
    return Columns(slices, *np.array(rows, np.int64).reshape(-1, 8).T)


def divided(total: int, weights: Ints) -> Ints:
    """``units.split`` of an array: by largest remainder, ties to the earlier one."""
    whole, size = int(weights.sum(dtype=np.float64)), abs(total)
    if size >= TOTAL_MAX or not 0 < whole < WEIGHTS_MAX:
        return np.array(split(total, weights.tolist()), np.int64)
    whole = int(weights.sum())
    parts = (weights * (size / whole)).astype(np.int64)
    left = weights * np.int64(size)
    left -= parts * np.int64(whole)
    while (low := left.min() < 0) or left.max() >= whole:  # the estimate is off by less than 2
        wrong = np.flatnonzero(left < 0 if low else left >= whole)
        parts[wrong] += -1 if low else 1
        left[wrong] += whole if low else -whole
    missing = size - int(parts.sum())
    if missing:
        bound = np.partition(left, left.size - missing)[left.size - missing]
        more = left > bound
        ties = np.flatnonzero(left == bound)[: missing - int(more.sum())]
        parts[more] += 1
        parts[ties] += 1
    return parts if total >= 0 else -parts


def _over(ns: Ints, mw: int, unit: int) -> Ints:
    """``ns * mw // unit`` within 64 bits."""
    return ns // unit * mw + ns % unit * mw // unit


class Arrays(Lists):
    """As ``Lists`` says."""

    def zeros(self, count: int) -> Any:
        return np.zeros(count, np.int64)

    def add(self, sums: Any, places: Any, figures: Any) -> None:
        sums[places] += figures

    def scaled(self, ns: Any, mw: int) -> Any:
        return _over(ns, mw, 1_000_000)

    def divide(self, total: int, requests: Any, others: list[int]) -> tuple[Any, list[int]]:
        weights = np.append(requests, np.array(others, np.int64))
        if not total or not weights.any():
            return self.zeros(requests.size), [0] * (len(others) - 1) + [total] * bool(others)
        parts = divided(total, weights)
        return parts[: requests.size], parts[requests.size :].tolist()

    def plus(self, a: Any, b: Any) -> Any:
        return a + b

    def total(self, figures: Any) -> int:
        return int(figures.sum())

    def unknown(self, count: int) -> Any:
        return None


ARRAYS = Arrays()


def _summed(receipt: Ints, values: Ints) -> tuple[Ints, Ints]:
    """Values by receipt, which are sorted first unless they are."""
    if np.all(receipt[1:] > receipt[:-1]):
        return receipt, values
    order_ = np.argsort(receipt, kind="stable")
    ids = receipt[order_]
    firsts = np.flatnonzero(np.append(True, ids[1:] != ids[:-1]))
    return ids[firsts], np.add.reduceat(values[order_], firsts)


def _shares(works: Columns, rows: Ints, start_ns: int, end_ns: int) -> tuple[int, Ints, Ints]:
    """Busy time, receipts and their parts of it on one slice: ``attribution.shares``."""
    begin, finish = np.maximum(works.start_ns[rows], start_ns), np.minimum(works.end_ns[rows], end_ns)
    edges = np.concatenate((begin, finish))
    by_time = np.argsort(edges, kind="stable")
    running = np.cumsum(np.where(by_time < rows.size, 1, -1))[:-1]
    gaps = np.diff(edges[by_time])
    ticks = np.zeros(edges.size, np.int64)
    ticks[by_time[1:]] = np.cumsum(np.where(running > 0, gaps * FINE // np.maximum(running, 1), 0))
    ids, weights = _summed(works.receipt[rows], ticks[rows.size :] - ticks[: rows.size])
    busy_ns = int(gaps[running > 0].sum())
    return busy_ns, ids, divided(busy_ns, weights)


def _within(amount: Ints, begin: Ints, finish: Ints, start_ns: int, end_ns: int) -> Ints:
    inside = np.maximum(0, np.minimum(finish, end_ns) - np.maximum(begin, start_ns))
    ppm = inside * PPM // np.maximum(1, finish - begin)
    ppm = np.where(begin < finish, ppm, np.where((start_ns <= begin) & (begin < end_ns), PPM, 0))
    return amount // PPM * ppm + amount % PPM * ppm // PPM


def _weights(load: SliceLoad | None, works: Columns, rows: Ints, ns: Ints, start: int, end: int) -> Ints:
    """``attribution.weights``."""
    if load is None:
        return ns
    mw = load.busy_mw if load.stream_mw is None else load.stream_mw
    found = _over(ns, mw, 1_000)
    if load.prefill_nj or load.context_nj:
        begin, finish = works.start_ns[rows], works.end_ns[rows]
        first = np.minimum(np.maximum(works.first_ns[rows], begin), finish)
        taken, made = works.input_tokens[rows], works.output_tokens[rows]
        fresh = np.maximum(0, taken - works.cached_tokens[rows]) * load.prefill_nj
        read = made * (2 * taken + made) // 2 * load.context_nj
        own = _within(fresh, begin, first, start, end) + _within(read, first, finish, start, end)
        found = found + _summed(works.receipt[rows], own)[1]
    return found if found.any() else ns


def _by_slice(works: Columns, start_ns: int, end_ns: int) -> Iterator[tuple[str, Ints]]:
    """Rows that hold time in the interval, slice by slice in the order of their names."""
    held = np.flatnonzero(np.maximum(works.start_ns, start_ns) < np.minimum(works.end_ns, end_ns))
    narrow = works.slice[held].astype(np.min_scalar_type(len(works.slices)))  # 16 bits sort in linear time
    held = held[np.argsort(narrow, kind="stable")]
    bounds = np.searchsorted(works.slice[held], np.arange(len(works.slices) + 1))
    for at in sorted(range(len(works.slices)), key=works.slices.__getitem__):
        if bounds[at] < bounds[at + 1]:
            yield works.slices[at], held[bounds[at] : bounds[at + 1]]


def close_columns(
    site: Site,
    start_ns: int,
    end_ns: int,
    works: Columns,
    receipts: int,
    services: Mapping[str, int],
    said: Readings,
    pricing: Pricing | None = None,
) -> tuple[Interval, dict[str, Any]]:
    """``attribution.close_interval`` for works in columns of so many receipts: the interval without its request lines,
    and those as columns by index of receipt (None: not known; what slice time costs is 0 where it is not known). At
    most ``BULK_NS_MAX`` at once: the arithmetic of more would not fit."""
    loads, found = {load.slice: load for load in site.loads}, []
    for name, rows in _by_slice(works, start_ns, end_ns):
        busy_ns, ids, ns = _shares(works, rows, start_ns, end_ns)
        weights = _weights(loads.get(name), works, rows, ns, start_ns, end_ns)
        found.append(Share(name, busy_ns, ids, ns, weights))
    return close_shares(site, start_ns, end_ns, found, receipts, services, said, pricing, ARRAYS)
