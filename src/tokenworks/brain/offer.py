"""What the router chooses between: offers, and what the operator says that time and carbon are worth."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Protocol

from tokenworks.core.words import Word


class Load(Protocol):
    """What moves from request to request at one replica; the engine floor keeps it."""

    @property
    def ready(self) -> bool: ...
    @property
    def full(self) -> bool: ...
    @property
    def running(self) -> int: ...
    @property
    def wait_ns(self) -> int: ...  # until it can begin: one that sleeps has to wake first
    @property
    def prefill_tps(self) -> float | None: ...
    @property
    def decode_tps(self) -> float | None: ...


class Offer(Word, frozen=True):
    """One replica as the router sees it: what stands in the grid file and the contracts, and its load now."""

    replica: str
    site: str
    model: str
    load: Load
    slots: int
    context_tokens: int
    capabilities: frozenset[str]
    latency_ns: int
    busy_mw: int | None
    """Power above idle while the replica works, with the facility's overhead."""
    price_nano_per_kwh: int | None
    carbon_ug_per_kwh: int | None
    device_nano_per_hour: int | None
    away: str = ""
    """Why its site cannot be reached now; empty: it can."""


Offers = Mapping[str, Sequence[Offer]]
"""All offers by model."""


class Scales(Word, frozen=True):
    """What the operator says that time and carbon are worth. None: not weighed."""

    delay_nano_per_s: int | None = None
    carbon_nano_per_kg: int | None = None
