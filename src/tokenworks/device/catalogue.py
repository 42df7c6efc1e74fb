"""The catalogue of accelerators: what data sheets, price lists and public measurements say, each row with its source.

Quantities are integers in the smallest useful unit; a blank cell is unknown and stays None.
"""

from __future__ import annotations

import csv
import re
from functools import cache
from importlib.resources import files

import msgspec

from tokenworks.core.errors import NotFound, did_you_mean
from tokenworks.core.words import Word


class Accelerator(Word, frozen=True, kw_only=True):
    """One row of the catalogue. A processor has no fixed size: its figures are per hardware thread."""

    id: str
    name: str
    vendor: str | None = None
    memory_mb: int | None = None
    """Millions of bytes."""
    memory_type: str | None = None
    bandwidth_mb_s: int | None = None
    bf16_dense_gflops: int | None = None
    fp8_dense_gflops: int | None = None
    board_mw: int | None = None
    idle_mw: int | None = None
    interconnect: str | None = None
    interconnect_mb_s_bidir: int | None = None
    partition_modes: str | None = None
    backend: str | None = None
    pci_vendor: str | None = None
    confidence: str | None = None
    """A: the vendor, or code that it wrote; B: measured, or a good third party; C: secondary or disputed."""
    source: str
    note: str | None = None
    idle_mw_per_thread: int | None = None
    max_mw_per_thread: int | None = None
    capital_nano_usd_per_thread: int | None = None
    life_years: int | None = None
    capital_source: str | None = None
    """Where price and life come from; ``source`` is that of the rest."""


@cache
def catalogue() -> dict[str, Accelerator]:
    """All rows by id, read once."""
    text = files(__package__).joinpath("data", "catalogue.csv").read_text(encoding="utf-8")
    known = ({column: cell for column, cell in row.items() if cell} for row in csv.DictReader(text.splitlines()))
    return {row.id: row for row in msgspec.convert(list(known), list[Accelerator], strict=False)}


def accelerator(id: str) -> Accelerator:  # noqa: A002 - it is the id of the row
    """The row with this id. Raises NotFound, naming the nearest id."""
    found = catalogue().get(id)
    if found is None:
        hint = did_you_mean(id, catalogue(), "known: " + ", ".join(sorted(catalogue())))
        raise NotFound(f"no accelerator {id!r} in the catalogue", hint=hint)
    return found


def recognise(vendor: str, name: str, memory_bytes: int | None) -> Accelerator | None:
    """The row that a device's own name means, or None when no row or more than one fits: nothing is guessed.

    The first word of a row's id must stand in the name ("NVIDIA H100 80GB HBM3": h100); further words and the type of
    memory choose between variants (sxm, pcie, 80g). When the row's memory is not about the device's, it is another
    card or a part of one. Vendors call 2**30 bytes a GB, so a device may have 7 % more than its data sheet says.
    """
    parts = re.findall(r"[a-z0-9]+", name.lower())
    words = {"".join(parts[i:j]) for i in range(len(parts)) for j in range(i + 1, i + 4)}
    scores: dict[str, int] = {}
    for row in catalogue().values():
        first, *more = row.id.split("-")[1:]
        if row.vendor == vendor and first in words:
            more.append((row.memory_type or "?").lower())
            hits = sum(any(word.startswith(hint) for word in words) for hint in more)
            scores[row.id] = 2 * hits - (("pcie" in more) != ("pcie" in words))
    best = [catalogue()[key] for key, score in scores.items() if score == max(scores.values())]
    fits = [
        row
        for row in best
        if not (row.memory_mb and memory_bytes) or 90 <= memory_bytes // (row.memory_mb * 10_000) <= 112
    ]
    return fits[0] if len(fits) == 1 else None
