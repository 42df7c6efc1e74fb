"""The tables of the grid file as frozen values: every quantity an integer that carries its unit in its name."""

from __future__ import annotations

from typing import Annotated, Literal

import msgspec
from msgspec import Meta, field

from tokenworks.core import units

EMBEDDED_MODEL = "smollm2-135m-instruct"
INT64_MAX = 2**63 - 1


def _as(kind: str, example: str) -> Meta:
    """Marks a field that is written as text with a unit and kept as an integer."""
    return Meta(extra={"quantity": kind, "example": example})


Name = Annotated[str, Meta(min_length=1, max_length=128, pattern=r"^[^\x00-\x1f\x7f-\x9f\u2028\u2029]*$")]
Count = Annotated[int, Meta(ge=1, le=INT64_MAX)]
Money = Annotated[int, _as("money", '"10 USD"')]
PerKwh = Annotated[int, _as("kWh", '"0.12 USD/kWh"')]
PerMtok = Annotated[int, _as("Mtok", '"0.02 USD/Mtok"')]
PerKg = Annotated[int, _as("kg", '"50 USD/t"')]
PerHour = Annotated[int, _as("h", '"0.04 USD/h"')]
Carbon = Annotated[int, _as("carbon", '"480 g/kWh"')]
Time = Annotated[int, _as("time", '"60 s"')]
Memory = Annotated[int, _as("memory", '"24 GB"')]
Power = Annotated[int, _as("power", '"7 W"')]
Stu = Annotated[int, _as("stu", "0.25")]
Pue = Annotated[int, _as("pue", "1.2")]
Mix = Annotated[dict[str, int], _as("mix", "{ hydro = 0.7, wind = 0.3 }")]
Capability = Literal["tools", "json_schema", "logprobs", "images"]


class _Table(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Base of all tables of the file."""


class Rate(_Table, frozen=True, kw_only=True):
    """STU per native token of a model (``*``: any other), in micro-STU. None: the rate card's own default."""

    model: Name
    input_ustu: Stu | None = field(default=None, name="input")
    cached_input_ustu: Stu | None = field(default=None, name="cached_input")
    cache_write_ustu: Stu | None = field(default=None, name="cache_write")
    output_ustu: Stu | None = field(default=None, name="output")
    reasoning_ustu: Stu | None = field(default=None, name="reasoning")


class Price(_Table, frozen=True, kw_only=True):
    """Nano-currency per million native tokens of a model (``*``: any other). None: the price book's own default."""

    model: Name
    input_nano_per_mtok: PerMtok | None = field(default=None, name="input")
    cached_input_nano_per_mtok: PerMtok | None = field(default=None, name="cached_input")
    cache_write_nano_per_mtok: PerMtok | None = field(default=None, name="cache_write")
    output_nano_per_mtok: PerMtok | None = field(default=None, name="output")
    reasoning_nano_per_mtok: PerMtok | None = field(default=None, name="reasoning")


class Exchange(_Table, frozen=True, kw_only=True):
    """Money: the one currency of the grid (ISO 4217), the first account's budget, rates and prices."""

    currency: str = "USD"
    store: str | None = None
    journal: Literal["written", "durable", "fast"] = "written"
    budget_nano: Money = field(default=10 * units.NANO, name="budget")
    rates: tuple[Rate, ...] = field(default=(), name="rate")
    prices: tuple[Price, ...] = field(default=(), name="price")


class Brain(_Table, frozen=True, kw_only=True):
    """What the router weighs beside prices. None: the term is left out of its decisions."""

    carbon_price_nano_per_kg: PerKg | None = field(default=None, name="carbon_price")
    delay_price_nano_per_h: PerHour | None = field(default=None, name="delay_price")


class Supply(_Table, frozen=True, kw_only=True):
    """Where a site's energy comes from. None: unknown. The mix sums to 1000; ``interval_ns`` is the meter's."""

    name: Name = "mains"
    price_nano_per_kwh: PerKwh | None = field(default=None, name="price")
    carbon_ug_per_kwh: Carbon | None = field(default=None, name="carbon")
    mix_permille: Mix = field(default_factory=dict, name="mix")
    interval_ns: Time = field(default=60 * units.NS_PER_S, name="interval")


class Device(_Table, frozen=True, kw_only=True):
    """An accelerator or processor of a site. None: discovered, or unknown."""

    id: Name
    catalogue: Name | None = None
    threads: Count | None = None
    memory_bytes: Memory | None = field(default=None, name="memory")
    cost_nano_per_h: PerHour | None = field(default=None, name="cost")
    idle_mw: Power | None = field(default=None, name="idle")
    max_mw: Power | None = field(default=None, name="max")


class Site(_Table, frozen=True, kw_only=True):
    """A factory. ``entity`` (whose books) is the grid's name unless given; no device listed: discovered."""

    name: Name
    entity: Name = ""
    jurisdiction: Name | None = None
    place: Name | None = None
    latency_ns: Time | None = field(default=None, name="latency")
    pue_permille: Pue | None = field(default=None, name="pue")
    supply: Supply = Supply()
    devices: tuple[Device, ...] = field(default=(), name="device")


class Replica(_Table, frozen=True, kw_only=True):
    """One engine with one model. ``name``, ``site``, ``device`` and ``driver`` are filled in when the file is read.

    ``api_key_env`` names the environment variable that holds the upstream's key. None: the driver decides.
    """

    model: Name
    name: Name = ""
    site: Name = ""
    device: Name | None = None
    driver: Literal["embedded", "external"] = "embedded"
    url: str | None = None
    upstream_model: Name | None = None
    api_key_env: str | None = None
    slots: Count | None = None
    context_tokens: Count | None = field(default=None, name="context")
    threads: Count | None = None
    capabilities: frozenset[Capability] | None = None
    memory_bytes: Memory | None = field(default=None, name="memory")


class GridFile(_Table, frozen=True, kw_only=True):
    """A whole grid, complete: at least one site and one replica, every name defined."""

    name: Name = "grid"
    exchange: Exchange = Exchange()
    brain: Brain = Brain()
    sites: tuple[Site, ...] = field(default=(), name="site")
    replicas: tuple[Replica, ...] = field(default=(), name="replica")
