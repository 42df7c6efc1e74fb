"""What only shows when the tables are read together: defaults that depend on others, names that must be defined."""

from __future__ import annotations

import re
from typing import Any

from tokenworks.core.errors import did_you_mean
from tokenworks.device.vendors import vendors
from tokenworks.engine.server import sound
from tokenworks.gridfile.place import At, PlaceError, unique
from tokenworks.gridfile.power import check_power
from tokenworks.gridfile.tables import EMBEDDED_MODEL, GridFile, Replica


def fill(raw: dict[str, Any]) -> None:
    """Write the defaults that depend on the rest of the file into it; its types are right already."""
    raw.setdefault("name", "grid")
    listed = bool(raw.get("site"))
    sites = raw["site"] = raw.get("site") or [{"name": "here"}]
    for site in sites:
        site.setdefault("entity", raw["name"])
    if listed and not raw.get("replica"):
        hint = f"add [[replica]] with model and site = {sites[0]['name']!r}"
        raise PlaceError(("site", 0), "the file has sites but no replica, so nothing makes tokens", hint)
    replicas = raw["replica"] = raw.get("replica") or [{"model": EMBEDDED_MODEL}]
    for index, replica in enumerate(replicas):
        if "site" not in replica and len(sites) > 1:
            names = ", ".join(repr(site["name"]) for site in sites[:5])
            raise PlaceError(("replica", index, "site"), "is missing, and there are several sites", f"one of {names}")
        site = replica.setdefault("site", sites[0]["name"])
        replica.setdefault("name", f"{site}-{sum(each['site'] == site for each in replicas[: index + 1])}")
        outside = "url" in replica or replica.get("engine") == "any-llm"
        replica.setdefault("driver", "process" if "command" in replica else "external" if outside else "embedded")
        devices = next((each.get("device") for each in sites if each["name"] == site), None)
        if devices and len(devices) == 1:
            replica.setdefault("device", devices[0]["id"])


def check(grid: GridFile) -> None:
    """Raise PlaceError for the first thing that only shows when the tables are read together."""
    exchange = grid.exchange
    if exchange.store is not None and not exchange.store.startswith(("postgresql://", "postgres://")):
        raise PlaceError(("exchange", "store"), "is not a PostgreSQL address", 'like "postgresql://host/database"')
    for index, key in enumerate(exchange.price_keys):
        if exchange.price_file is None:
            raise PlaceError(("exchange", "price_keys"), "there is no price_file whose signatures they could check")
        if not re.fullmatch("[0-9a-f]{64}", key):
            raise PlaceError(("exchange", "price_keys", index), "is no public key", "tokenworks price sign prints it")
    sites = unique([site.name for site in grid.sites], ("site",), "name")
    unique([replica.name for replica in grid.replicas], ("replica",), "name")
    models = [replica.model for replica in grid.replicas]
    for key, tables in (("rate", exchange.rates), ("price", exchange.prices)):
        for index, model in enumerate(unique([table.model for table in tables], ("exchange", key), "model")):
            _defined(model, ["*", *models], ("exchange", key, index, "model"), "served by no replica")
    for index, site in enumerate(grid.sites):
        at: At = ("site", index)
        unique([device.id for device in site.devices], (*at, "device"), "id")
        if site.pue_permille is not None and site.pue_permille < 1000:
            raise PlaceError((*at, "pue"), "is below 1: a site takes at least what its devices take")
        check_power(site, at)
        for number, device in enumerate(site.devices):
            if device.idle_mw is not None and device.max_mw is not None and device.max_mw < device.idle_mw:
                raise PlaceError((*at, "device", number, "max"), "is below idle")
    for index, replica in enumerate(grid.replicas):
        at = ("replica", index)
        _defined(replica.site, sites, (*at, "site"), "no such site")
        devices = [device.id for device in grid.sites[sites.index(replica.site)].devices]
        if devices and replica.device is not None:
            _defined(replica.device, devices, (*at, "device"), f"no such device at site {replica.site!r}")
        if replica.vendor is not None:
            _defined(replica.vendor, [vendor.name for vendor in vendors()], (*at, "vendor"), "no such vendor")
        _check_upstream(replica, at)


_ONLY_FOR = {
    "url": ("external", "process"),
    **dict.fromkeys(("upstream_model", "api_key_env", "engine"), ("external", "process", "ray")),
    **dict.fromkeys(("command", "cards"), ("process", "ray")),
    **dict.fromkeys(("vendor", "share"), ("process",)),
    **dict.fromkeys(("resources", "cluster"), ("ray",)),
}
"""Which drivers know a key, the likeliest first."""
_OWNERS = {"external": "an external", "process": "a process or ray", "ray": "a ray"}


def _check_upstream(replica: Replica, at: At) -> None:
    """What each driver needs and must not have. Messages show no secret written by mistake."""
    driver, said = replica.driver, {"resources": replica.resources_milli, "share": replica.share_permille}
    for key, drivers in _ONLY_FOR.items():
        if driver not in drivers and said.get(key, getattr(replica, key, None)):
            hint = f'write driver = "{drivers[0]}"' + (" and url" if drivers[0] == "external" else "")
            raise PlaceError((*at, key), f"belongs to {_OWNERS[drivers[0]]} replica", hint)
    if driver in ("process", "ray") and not replica.command:
        what = f'is missing: the driver "{driver}" starts the engine with it'
        raise PlaceError((*at, "command"), what, 'like ["vllm", "serve", "{model}", "--port", "{port}"]')
    if driver == "ray" and not replica.resources_milli:
        raise PlaceError((*at, "resources"), "is missing: Ray places by it", "like { CPU = 2, NPU = 0.5 }")
    share, several = replica.share_permille, replica.cards not in (None, 1)
    if share is not None and (several or not 0 < share <= 1000):
        raise PlaceError((*at, "share"), "must be above 0 and at most 1, and is of a single card")
    if replica.sleep_after_ns == 0:
        raise PlaceError((*at, "sleep_after"), "must be more than 0: it would sleep between two requests")
    if replica.engine == "any-llm":
        if ":" not in (replica.upstream_model or ""):
            what = "must name provider and model: the library is told both"
            raise PlaceError((*at, "upstream_model"), what, 'like "mistral:mistral-small-latest"')
        if (replica.url or "").startswith("unix:"):
            raise PlaceError((*at, "url"), "is a unix address: any-llm reaches its providers over http and https only")
    elif driver == "external" and replica.url is None:
        raise PlaceError((*at, "url"), "is missing: an external replica is reached by it")
    if replica.url is not None:
        _check_url(replica.url, (*at, "url"))
    if replica.api_key_env is not None and not re.fullmatch("[A-Z_][A-Z0-9_]*", replica.api_key_env):
        what = "must be the name of an environment variable in capitals, never the key itself"
        raise PlaceError((*at, "api_key_env"), what, 'like "UPSTREAM_API_KEY"')


def _check_url(written: str, at: At) -> None:
    if not sound(written):
        hint = 'like "http://127.0.0.1:8000/v1" or "unix:///run/engine.sock", without user, password or query'
        raise PlaceError(at, "is not an http, https or unix address", hint)


def _defined(name: str, known: list[str], at: At, what: str) -> None:
    if name not in known:
        hint = did_you_mean(name, known, "defined: " + ", ".join(repr(each) for each in known[:5]))
        raise PlaceError(at, f"{name!r}: {what}", hint)
