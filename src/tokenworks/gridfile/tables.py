"""The tables of the grid file as frozen values: every quantity an integer that carries its unit in its name."""

from __future__ import annotations

from datetime import date, datetime
from typing import Annotated, Literal

import msgspec
from msgspec import Meta, field

from tokenworks.core import units

EMBEDDED_MODEL = "smollm2-135m-instruct"
WORKERS_MAX = 64


def _as(kind: str, example: str) -> Meta:
    """Marks a field that is written as text with a unit and kept as an integer."""
    return Meta(extra={"quantity": kind, "example": example})


_PLAIN = Meta(min_length=1, pattern=r"^[^\x00-\x1f\x7f-\x9f\u2028\u2029]*\Z")
Name = Annotated[str, _PLAIN, Meta(max_length=128)]
Argument = Annotated[str, _PLAIN, Meta(max_length=4096)]
Count = Annotated[int, Meta(ge=1, le=units.FIGURE_MAX)]
Money = Annotated[int, _as("money", '"10 USD"')]
PerKwh = Annotated[int, _as("kWh", '"0.12 USD/kWh"')]
PerMtok = Annotated[int, _as("Mtok", '"0.02 USD/Mtok"')]
PerKg = Annotated[int, _as("kg", '"50 USD/t"')]
PerHour = Annotated[int, _as("h", '"0.04 USD/h"')]
Carbon = Annotated[int, _as("carbon", '"480 g/kWh"')]
Time = Annotated[int, _as("time", '"60 s"')]
Memory = Annotated[int, _as("memory", '"24 GB"')]
Mass = Annotated[int, _as("mass", '"150 kg"')]
Power = Annotated[int, _as("power", '"7 W"')]
Stu = Annotated[int, _as("stu", "0.25")]
Energy = Annotated[int, _as("energy", '"8 MWh"')]
Share = Annotated[int, _as("pue", "0.25")]
Pue = Annotated[int, _as("pue", "1.2")]
Degrees = Annotated[int, _as("pue", "18.5")]
Mix = Annotated[dict[str, int], _as("mix", "{ hydro = 0.7, wind = 0.3 }")]
Amounts = Annotated[dict[str, int], _as("amounts", "{ CPU = 2, NPU = 0.5 }")]
Capability = Literal["tools", "json_schema", "logprobs", "images", "embeddings", "messages", "responses"]
Engine = Literal["openai", "llamacpp", "vllm", "sglang", "ollama", "anthropic", "any-llm"]


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
    journal: Literal["written", "durable", "fast", "off"] = "written"
    journal_keep_bytes: Memory = field(default=256 * 10**6, name="journal_keep")
    budget_nano: Money = field(default=10 * units.NANO, name="budget")
    price_file: str | None = None
    """A price list; when read from a file, a path from where this runs."""
    price_keys: tuple[str, ...] = ()
    """Public keys, one of which must have signed every card and book of it."""
    rates: tuple[Rate, ...] = field(default=(), name="rate")
    prices: tuple[Price, ...] = field(default=(), name="price")


class Brain(_Table, frozen=True, kw_only=True):
    """What the router weighs beside prices. None: the term is left out of its decisions."""

    carbon_price_nano_per_kg: PerKg | None = field(default=None, name="carbon_price")
    delay_price_nano_per_h: PerHour | None = field(default=None, name="delay_price")


class Gateway(_Table, frozen=True, kw_only=True):
    """The front door: ``workers`` processes on one port."""

    workers: Annotated[int, Meta(ge=1, le=WORKERS_MAX)] = 1


class SignalFile(_Table, frozen=True, kw_only=True):
    """A column of a CSV or Parquet file beside the grid file; ``length_ns`` is the longest step, ``zone`` that of
    ``ts_local``; ``by_end``: its stamps are the ends of steps."""

    file: Name
    column: Name
    length_ns: Time = field(default=3600 * units.NS_PER_S, name="length")
    zone: Name | None = None
    by_end: bool = False


class Supply(_Table, frozen=True, kw_only=True):
    """Where a site's energy comes from. None: unknown, or no limit. The mix sums to 1000.

    ``interval_ns`` is the meter's. A ``grid`` has price, carbon, mix and limits, a plant a capacity, a battery
    ``energy_mj`` and ``power_mw``.
    """

    name: Name = "mains"
    kind: Literal["grid", "solar", "wind", "genset", "battery"] = "grid"
    price_nano_per_kwh: PerKwh | None = field(default=None, name="price")
    carbon_ug_per_kwh: Carbon | None = field(default=None, name="carbon")
    residual_ug_per_kwh: Carbon | None = field(default=None, name="residual")
    carbon_file: SignalFile | None = None
    mix_permille: Mix = field(default_factory=dict, name="mix")
    interval_ns: Time = field(default=60 * units.NS_PER_S, name="interval")
    limit_mw: Power | None = field(default=None, name="limit")
    export_limit_mw: Power = field(default=0, name="export_limit")
    capacity_mw: Power | None = field(default=None, name="capacity")
    availability: SignalFile | None = None
    remote: bool = False
    energy_mj: Energy | None = field(default=None, name="energy")
    power_mw: Power | None = field(default=None, name="power")
    efficiency_permille: Share = field(default=900, name="efficiency")


class Tier(_Table, frozen=True, kw_only=True):
    """A price of a time-of-use tariff; the first that holds is the price. ``hours`` are local, like "08:00-11:00"."""

    price_nano_per_kwh: PerKwh = field(name="price")
    months: tuple[Annotated[int, Meta(ge=1, le=12)], ...] = ()
    days: Literal["all", "workday", "weekend", "holiday"] = "all"
    hours: tuple[Name, ...] = ()


class Charge(_Table, frozen=True, kw_only=True):
    """One line of a contract. An energy charge has a price, tiers or an index (times ``factor``, plus ``adder``).

    ``ppa`` names a plant in ``of`` (as produced), settles it against ``index`` (for difference), or has a constant
    ``power_mw`` instead (baseload).
    """

    kind: Literal["energy", "ppa", "demand", "capacity", "standing", "export", "curtailment"]
    name: Name = ""
    of: Name | None = None
    price_nano_per_kwh: PerKwh | None = field(default=None, name="price")
    tiers: tuple[Tier, ...] = field(default=(), name="tier")
    index: SignalFile | None = None
    adder_nano_per_kwh: PerKwh = field(default=0, name="adder")
    factor_permille: Share = field(default=1000, name="factor")
    power_mw: Power | None = field(default=None, name="power")
    nano_per_kw: Money | None = field(default=None, name="per_kw")
    nano_per_month: Money | None = field(default=None, name="per_month")
    window_ns: Time = field(default=900 * units.NS_PER_S, name="window")


class Contract(_Table, frozen=True, kw_only=True):
    """What energy costs a site; ``zone`` (an IANA name) is the calendar of its months, days and hours."""

    name: Name = "contract"
    zone: Name = "UTC"
    holidays: tuple[date, ...] = ()
    charges: tuple[Charge, ...] = field(default=(), name="charge")


class Event(_Table, frozen=True, kw_only=True):
    """A grid event that is known beforehand."""

    id: Name
    kind: Literal["curtail", "shift", "disconnect"]
    start: datetime
    duration_ns: Time = field(name="duration")
    cap_mw: Power | None = field(default=None, name="cap")
    cut_permille: Share | None = field(default=None, name="cut")
    ramp_ns: Time = field(default=0, name="ramp")
    raise_start: datetime | None = None
    raise_duration_ns: Time | None = field(default=None, name="raise_duration")
    pay_nano_per_kwh: PerKwh | None = field(default=None, name="pay")
    penalty_nano_per_kwh: PerKwh | None = field(default=None, name="penalty")


class OpenAdr(_Table, frozen=True, kw_only=True):
    """A utility's OpenADR 2.0b server (VTN), and what this site is called there."""

    url: Name
    ven: Name


class Module(_Table, frozen=True, kw_only=True):
    """A block of the building; with any, overhead and water are their result. None: unknown."""

    name: Name
    capacity_mw: Power = field(name="capacity")
    it_mw: Power = field(name="it")
    cooling: Literal["air", "liquid", "immersion", "sea"] = "liquid"
    fixed_mw: Power = field(default=0, name="fixed")
    loss_ppm: Stu = field(default=20_000, name="loss")
    full_loss_ppm: Stu = field(default=20_000, name="full_loss")
    capex_nano: Money | None = field(default=None, name="capex")
    opex_nano_per_year: Money | None = field(default=None, name="opex")
    life_years: Count = field(default=15, name="life")


class _Made(_Table, frozen=True, kw_only=True):
    embodied_ug: Mass | None = field(default=None, name="embodied")
    life_years: Count = field(default=6, name="life")


class Server(_Made, frozen=True, kw_only=True):
    """What shares a meter: a server, tray or rack. ``idle_mw`` is taken beside its devices (processors, fans)."""

    name: Name
    idle_mw: Power = field(default=0, name="idle")


class Meter(_Table, frozen=True, kw_only=True):
    """One reading: of the ``site``, its ``it``, a ``server`` (no name: this machine) or a ``board``, which can draw
    ``max_mw`` and must draw ``min_mw``. ``check_power`` knows which keys a kind has."""

    kind: Literal["modbus", "snmp", "redfish", "page", "nvml", "rapl"]
    of: Literal["site", "it", "server", "board"]
    name: Name = ""
    max_mw: Power = field(name="max")
    min_mw: Power = field(default=1, name="min")
    host: Name | None = None
    url: Name | None = None
    channel: Name | None = None
    unit_id: Annotated[int, Meta(ge=0, le=255)] = 1
    register: Annotated[int, Meta(ge=0, le=65535)] | None = None
    form: Literal["uint16", "uint32", "uint64", "float32", "float64"] | None = None
    oid: Name | None = None
    unit: Literal["Wh", "kWh", "J", "W", "kW"] | None = None
    factor_ppm: Stu = field(default=1_000_000, name="factor")
    user: Name | None = None
    secret_env: Name | None = None


class Window(_Table, frozen=True, kw_only=True):
    """When a site can be reached: from ``start`` for a time, again after every ``period_ns``."""

    start: datetime
    length_ns: Time = field(name="length")
    period_ns: Time | None = field(default=None, name="period")


class Device(_Made, frozen=True, kw_only=True):
    """An accelerator or processor of a site. None: discovered, or unknown."""

    id: Name
    catalogue: Name | None = None
    threads: Count | None = None
    memory_bytes: Memory | None = field(default=None, name="memory")
    cost_nano_per_h: PerHour | None = field(default=None, name="cost")
    idle_mw: Power | None = field(default=None, name="idle")
    max_mw: Power | None = field(default=None, name="max")
    server: Name = ""
    board: Name = ""


class Site(_Table, frozen=True, kw_only=True):
    """A factory. ``entity`` (whose books) is the grid's name unless given; no device listed: discovered. The wet bulb
    of its air (or how warm its sea is) is in C, over time and where that has a gap."""

    name: Name
    entity: Name = ""
    jurisdiction: Name | None = None
    place: Name | None = None
    latency_ns: Time | None = field(default=None, name="latency")
    pue_permille: Pue | None = field(default=None, name="pue")
    supply_tables: Supply | tuple[Supply, ...] = field(default=Supply(), name="supply")
    contract: Contract | None = None
    events: tuple[Event, ...] = field(default=(), name="event")
    openadr: OpenAdr | None = None
    modules: tuple[Module, ...] = field(default=(), name="module")
    windows: tuple[Window, ...] = field(default=(), name="window")
    wet_bulb: SignalFile | None = None
    wet_bulb_mc: Degrees = field(default=18_000, name="wet_bulb_assumed")
    servers: tuple[Server, ...] = field(default=(), name="server")
    meters: tuple[Meter, ...] = field(default=(), name="meter")
    devices: tuple[Device, ...] = field(default=(), name="device")

    @property
    def supplies(self) -> tuple[Supply, ...]:
        """All supplies, whether the file has one table or several."""
        return (self.supply_tables,) if isinstance(self.supply_tables, Supply) else self.supply_tables

    @property
    def powered(self) -> bool:
        """Whether its power is more than one price and one intensity of the mains."""
        carbon = self.supply.carbon_file or self.supply.residual_ug_per_kwh is not None
        special = self.supply.kind != "grid" or carbon or self.contract or self.events or self.openadr
        return len(self.supplies) > 1 or bool(special)

    @property
    def supply(self) -> Supply:
        """The grid feed; on an island, the first of the others."""
        return next((each for each in self.supplies if each.kind == "grid"), self.supplies[0])


class Replica(_Table, frozen=True, kw_only=True):
    """One engine with one model. ``name``, ``site``, ``device`` and ``driver`` are filled in when the file is read.

    ``api_key_env`` names the environment variable that holds the upstream's key, ``command`` starts the engine for the
    drivers ``process`` and ``ray``. ``cards`` work together for it, or it has a ``share`` of one. None: the driver
    decides.
    """

    model: Name
    name: Name = ""
    site: Name = ""
    device: Name | None = None
    driver: Literal["embedded", "external", "process", "ray"] = "embedded"
    engine: Engine | None = None
    url: str | None = None
    command: tuple[Argument, ...] = ()
    sleep_after_ns: Time | None = field(default=None, name="sleep_after")
    resources_milli: Amounts | None = field(default=None, name="resources")
    cluster: Name | None = None
    upstream_model: Name | None = None
    api_key_env: str | None = None
    slots: Count = 4
    context_tokens: Count = field(default=2048, name="context")
    threads: Count | None = None
    capabilities: frozenset[Capability] | None = None
    memory_bytes: Memory | None = field(default=None, name="memory")
    cards: Count | None = None
    vendor: Name | None = None
    share_permille: Share | None = field(default=None, name="share")
    reserved: Name = ""


class GridFile(_Table, frozen=True, kw_only=True):
    """A whole grid, complete: at least one site and one replica, every name defined."""

    name: Name = "grid"
    exchange: Exchange = Exchange()
    brain: Brain = Brain()
    gateway: Gateway = Gateway()
    sites: tuple[Site, ...] = field(default=(), name="site")
    replicas: tuple[Replica, ...] = field(default=(), name="replica")
