"""What a site's supplies, contract and events need of each other, checked when the file is read."""

from __future__ import annotations

import re
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

import msgspec

from tokenworks.core.errors import did_you_mean
from tokenworks.gridfile.place import At, PlaceError, unique
from tokenworks.gridfile.tables import Charge, Meter, Site, Supply

_SUPPLY_NEEDS = {"solar": ("capacity",), "wind": ("capacity",), "genset": ("capacity",), "battery": ("energy", "power")}
_CHARGE_NEEDS = {"demand": ("per_kw",), "capacity": ("per_kw", "power"), "standing": ("per_month",), "ppa": ("price",)}
_METER = ("kind", "of", "name", "max", "min")
_METER_NEEDS = {
    "modbus": ("host", "register", "form", "unit"), "snmp": ("host", "oid", "unit"),
    "redfish": ("url", "channel"), "page": ("url",), "nvml": (), "rapl": (),
}  # fmt: skip
_METER_MAY = {
    "modbus": ("unit_id", "factor"), "snmp": ("factor", "secret_env"), "redfish": ("user", "secret_env"),
    "page": ("channel",), "nvml": ("channel",), "rapl": (),
}  # fmt: skip
_PRICED = ("energy", "export", "curtailment")


def check_power(site: Site, at: At) -> None:
    """Raise PlaceError for the first thing wrong with a site's power."""
    several = not isinstance(site.supply_tables, Supply)
    names = unique([supply.name for supply in site.supplies], (*at, "supply"), "name")
    for number, supply in enumerate(site.supplies):
        here: At = (*at, "supply", number) if several else (*at, "supply")
        _needs(supply, _SUPPLY_NEEDS.get(supply.kind, ()), here)
        if supply.interval_ns == 0:
            raise PlaceError((*here, "interval"), "must be longer than 0 s")
        if not 0 < supply.efficiency_permille <= 1000:
            raise PlaceError((*here, "efficiency"), "must be above 0 and at most 1")
    grids = [number for number, supply in enumerate(site.supplies) if supply.kind == "grid"]
    if len(grids) > 1:
        raise PlaceError((*at, "supply", grids[1]), "a site has one grid feed", "give the others another kind")
    if not site.supplies:
        raise PlaceError((*at, "supply"), "a site needs a supply")
    if site.contract is not None:
        _zone(site.contract.zone, (*at, "contract", "zone"))
        charges: list[str] = []
        for number, charge in enumerate(site.contract.charges):
            _check_charge(charge, names, (*at, "contract", "charge", number))
            if (charge.name or charge.kind) in charges:
                raise PlaceError((*at, "contract", "charge", number), "needs a name of its own")
            charges.append(charge.name or charge.kind)
    if site.openadr is not None:
        _address(site.openadr.url, (*at, "openadr", "url"))
    for number, module in enumerate(site.modules):
        if not 0 < module.it_mw <= module.capacity_mw:
            raise PlaceError((*at, "module", number, "it"), "must be above 0 and at most its capacity")
    for key, said in (("window", site.windows), ("wet_bulb", site.wet_bulb)):
        if said and not site.modules:
            raise PlaceError((*at, key), f"a site with a {key} needs a module", "[[site.module]]")
    _check_meters(site, at)
    for number, window in enumerate(site.windows):
        if window.start.tzinfo is None:
            raise PlaceError((*at, "window", number, "start"), "needs a zone", "like 2026-01-31T23:00:00Z")
        if window.period_ns is not None and window.period_ns <= window.length_ns:
            raise PlaceError((*at, "window", number, "period"), "must be longer than the window")
    unique([event.id for event in site.events], (*at, "event"), "id")
    for number, event in enumerate(site.events):
        for key in ("start", "raise_start"):
            if (when := getattr(event, key)) is not None and when.tzinfo is None:
                raise PlaceError((*at, "event", number, key), "needs a zone", "like 2026-01-31T23:00:00Z")


def _check_meters(site: Site, at: At) -> None:
    servers, seen = [server.name for server in site.servers], list[tuple[str, str]]()
    known = {"server": ["", *servers], "board": [d.board for d in site.devices if d.board], "site": [""], "it": [""]}
    for number, device in enumerate(site.devices):
        if device.server not in known["server"]:
            raise PlaceError((*at, "device", number, "server"), f"{device.server!r}: no such server", "[[site.server]]")
    for number, meter in enumerate(site.meters):
        here: At = (*at, "meter", number)
        _needs(meter, _METER_NEEDS[meter.kind], here)
        known_keys = {*_METER, *_METER_NEEDS[meter.kind], *_METER_MAY[meter.kind]}
        for field in msgspec.structs.fields(Meter):
            if field.encode_name not in known_keys and getattr(meter, field.name) != field.default:
                raise PlaceError((*here, field.encode_name), f"does not belong to a {meter.kind} meter")
        if meter.name not in known[meter.of]:
            hint = did_you_mean(meter.name, known[meter.of], "a [[site.server]], or the board of a [[site.device]]")
            raise PlaceError((*here, "name"), f"{meter.name!r}: no such {meter.of}", hint)
        if (meter.of, meter.name) in seen:
            raise PlaceError((*here, "of"), "is metered twice", "give what is inside a [[site.server]] of its own")
        seen.append((meter.of, meter.name))
        if meter.host is not None and not re.fullmatch(r"[^\s:/]+:\d{1,5}", meter.host):
            raise PlaceError((*here, "host"), "is not a host and its port", 'like "192.0.2.7:502"')
        if meter.url is not None:
            _address(meter.url, (*here, "url"))


def _check_charge(charge: Charge, supplies: list[str], at: At) -> None:
    _needs(charge, _CHARGE_NEEDS.get(charge.kind, ()), at)
    if charge.index is not None and charge.index.zone is not None:
        _zone(charge.index.zone, (*at, "index", "zone"))
    given = (charge.price_nano_per_kwh is not None) + bool(charge.tiers) + (charge.index is not None)
    if charge.kind in _PRICED and given != 1:
        raise PlaceError(at, f"{charge.kind!r} needs a price", "one of price, [[…tier]] and index")
    if charge.kind == "ppa" and (charge.of is None) == (charge.power_mw is None):
        raise PlaceError(at, "a PPA is on a plant or a constant power", 'of = "wind" or power = "2 MW"')
    if charge.power_mw is not None and charge.kind == "ppa" and charge.index is None:
        raise PlaceError((*at, "index"), "is missing: a baseload PPA is settled against it")
    if charge.of is not None and charge.of not in (*supplies, "import", "export", "curtailed", "load"):
        raise PlaceError((*at, "of"), f"{charge.of!r}: no such supply", did_you_mean(charge.of, supplies))
    if charge.window_ns == 0:
        raise PlaceError((*at, "window"), "must be longer than 0 s")
    for number, tier in enumerate(charge.tiers):
        for hours in tier.hours:
            parts = re.fullmatch(r"(\d\d):([0-5]\d)-(\d\d):([0-5]\d)", hours, re.ASCII)
            first, last = (int(parts[n]) * 60 + int(parts[n + 1]) for n in (1, 3)) if parts else (0, 0)
            if first % 15 or last % 15 or not first < last <= 1440:
                hint = 'like "08:00-11:30"; write hours over midnight as two, the last one to 24:00'
                raise PlaceError((*at, "tier", number, "hours"), f"{hours!r} are not hours on a quarter", hint)


def _needs(table: Supply | Charge | Meter, keys: tuple[str, ...], at: At) -> None:
    for field in table.__struct_fields__:
        name = dict(zip(table.__struct_fields__, table.__struct_encode_fields__, strict=True))[field]
        if name in keys and getattr(table, field) is None:
            raise PlaceError((*at, name), f"is missing: {table.kind} needs it")


def _address(url: str, at: At) -> None:
    if not re.fullmatch(r"https?://[^\s/@]+(/\S*)?", url):
        raise PlaceError(at, "is not an http or https address")


def _zone(name: str, at: At) -> None:
    try:
        ZoneInfo(name)
    except (ZoneInfoNotFoundError, ValueError, OSError) as error:
        raise PlaceError(at, f"{name!r} is not a time zone known here", 'an IANA name like "Asia/Shanghai"') from error
