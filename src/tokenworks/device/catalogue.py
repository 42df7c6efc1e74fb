"""The catalogue of accelerators: what data sheets, price lists and public measurements say, each row with its source.

Quantities are integers in the smallest useful unit; a blank cell is unknown and stays None.
"""

from __future__ import annotations

import csv
from fractions import Fraction
from functools import cache
from importlib.resources import files

from tokenworks.core.errors import NotFound, nearest
from tokenworks.core.units import NANO
from tokenworks.core.words import Word


class Accelerator(Word, frozen=True):
    """One row of the catalogue. A processor has no fixed size: its figures are per hardware thread."""

    id: str
    name: str
    vendor: str | None
    memory_mb: int | None
    """Millions of bytes."""
    memory_type: str | None
    bandwidth_mb_s: int | None
    bf16_dense_gflops: int | None
    fp8_dense_gflops: int | None
    board_mw: int | None
    idle_mw: int | None
    interconnect: str | None
    interconnect_mb_s_bidir: int | None
    partition_modes: str | None
    backend: str | None
    pci_vendor: str | None
    confidence: str | None
    """A: vendor or measured; B: secondary source; C: indicative."""
    source: str
    note: str | None
    idle_mw_per_thread: int | None
    max_mw_per_thread: int | None
    capital_nano_usd_per_thread: int | None
    life_years: int | None
    capital_source: str | None
    """Where price and life come from; ``source`` is that of the rest."""


def _scaled(text: str, scale: int) -> int | None:
    return round(Fraction(text) * scale) if text else None


def _row(cells: dict[str, str]) -> Accelerator:
    return Accelerator(
        id=cells["id"],
        name=cells["name"],
        vendor=cells["vendor"] or None,
        memory_mb=_scaled(cells["memory_gb"], 1_000),
        memory_type=cells["memory_type"] or None,
        bandwidth_mb_s=_scaled(cells["bandwidth_gb_s"], 1_000),
        bf16_dense_gflops=_scaled(cells["bf16_dense_tflops"], 1_000),
        fp8_dense_gflops=_scaled(cells["fp8_dense_tflops"], 1_000),
        board_mw=_scaled(cells["board_power_w"], 1_000),
        idle_mw=_scaled(cells["idle_power_w"], 1_000),
        interconnect=cells["interconnect"] or None,
        interconnect_mb_s_bidir=_scaled(cells["interconnect_gb_s_bidir"], 1_000),
        partition_modes=cells["partition_modes"] or None,
        backend=cells["backend"] or None,
        pci_vendor=cells["pci_vendor"] or None,
        confidence=cells["confidence"] or None,
        source=cells["source"],
        note=cells["note"] or None,
        idle_mw_per_thread=_scaled(cells["idle_w_per_thread"], 1_000),
        max_mw_per_thread=_scaled(cells["max_w_per_thread"], 1_000),
        capital_nano_usd_per_thread=_scaled(cells["capital_usd_per_thread"], NANO),
        life_years=_scaled(cells["life_years"], 1),
        capital_source=cells["capital_source"] or None,
    )


@cache
def catalogue() -> dict[str, Accelerator]:
    """All rows by id, read once."""
    text = files(__package__).joinpath("data", "catalogue.csv").read_text(encoding="utf-8")
    return {cells["id"]: _row(cells) for cells in csv.DictReader(text.splitlines())}


def accelerator(id: str) -> Accelerator:  # noqa: A002 - it is the id of the row
    """The row with this id. Raises NotFound, naming the nearest id."""
    found = catalogue().get(id)
    if found is None:
        near = nearest(id, catalogue())
        raise NotFound(
            f"no accelerator {id!r} in the catalogue",
            hint=f"did you mean {near!r}?" if near else "known: " + ", ".join(sorted(catalogue())),
        )
    return found
