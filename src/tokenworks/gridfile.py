"""The grid file: one strict TOML file that describes a grid, read as values. Nothing is started here.

Every quantity is an integer in the smallest unit of the books (``core.units``) and says so in its name. A wrong file
raises GridFileError with file, line, path (arrays counted from 1: ``site[1]`` is the first) and the nearest right word.
"""

from __future__ import annotations

import re
import tomllib
from bisect import bisect_left
from collections.abc import Iterator
from contextlib import suppress
from decimal import Decimal
from fractions import Fraction
from functools import partial
from pathlib import Path
from types import NoneType
from typing import Annotated, Any, Literal, get_args, get_origin
from urllib.parse import urlsplit

import msgspec
from msgspec import Meta, field

from tokenworks.core import units
from tokenworks.core.errors import BadQuantity, GridFileError, nearest

EMBEDDED_MODEL = "smollm2-135m-instruct"
SIZE_MAX = 1_000_000
"""Bytes. A grid of thousands of sites fits; a file of another kind, named by mistake, does not."""
_INT64_MAX = 2**63 - 1


def _as(kind: str, example: str) -> Meta:
    """Marks a field that is written as text with a unit and kept as an integer."""
    return Meta(extra={"quantity": kind, "example": example})


Name = Annotated[str, Meta(min_length=1, max_length=128, pattern=r"^[^\x00-\x1f\x7f-\x9f\u2028\u2029]*$")]
Count = Annotated[int, Meta(ge=1, le=_INT64_MAX)]
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


_At = tuple[str | int, ...]


class _PlaceError(Exception):
    """Something is wrong at a path of the file; ``parse`` adds the file and the line."""

    def __init__(self, at: _At, what: str, hint: str | None = None) -> None:
        super().__init__(what)
        self.at, self.what, self.hint = at, what, hint


def default_grid() -> GridFile:
    """This machine as site ``here`` with its devices discovered and one embedded replica, ``here-1``."""
    return parse("", "default")


def load(path: Path) -> GridFile:
    """Read a grid file. Raises GridFileError when it cannot be read, is over 1 MB or is wrong."""
    try:
        with path.open("rb") as file:
            content = file.read(SIZE_MAX + 1)
        text = content.decode()
    except (OSError, ValueError) as error:  # ValueError: not UTF-8, or a NUL in the path
        reason = error.strerror if isinstance(error, OSError) else "not UTF-8 text"
        raise GridFileError(f"{path}: cannot be read: {reason}") from error
    return parse(text, str(path))


def parse(text: str, name: str) -> GridFile:
    """Read a grid file's text; ``name`` is what errors call it. Raises GridFileError for the first thing wrong."""
    if len(text) > SIZE_MAX:
        raise GridFileError(f"{name}: over 1 MB", hint="is this a grid file?")
    try:
        raw = tomllib.loads(text, parse_float=Decimal)
    except (ValueError, RecursionError) as error:  # ValueError: also a number of thousands of digits
        what, line = str(error), ""
        if place := re.search(r" \(at (?:line (\d+), column \d+|end of document)\)", what):
            what, line = what[: place.start()], f":{place[1] or text.count(chr(10)) + 1}"
        raise GridFileError(f"{name}{line}: not TOML: {what}") from error
    try:
        _quantities(GridFile, raw, (), _currency(raw))
        _convert(raw)
        _fill(raw)
        grid = _convert(raw)
        _check(grid)
    except _PlaceError as error:
        number = _line(text, error.at)
        places = (f"{name}:{number}" if number else name, _where(error.at), error.what[:300])
        raise GridFileError(": ".join(place for place in places if place), hint=error.hint) from error
    return grid


def _convert(raw: dict[str, Any]) -> GridFile:
    """Check every type that is not a quantity; raises _PlaceError with msgspec's finding in the words of TOML."""
    try:
        return msgspec.convert(raw, GridFile, strict=True)
    except (msgspec.ValidationError, ValueError) as error:
        what, _, path = str(error).partition(" - at `$")
        at: _At = tuple(key or int(index) for key, index in re.findall(r"\.(\w+)|\[(\d+)\]", path))
        if missing := re.match(r"Object missing required field `(\w+)`", what):
            raise _PlaceError((*at, missing[1]), "is missing") from error
        hint = f"write [[{at[-1]}]] above each" if what == "Expected `array`, got `object`" and at else None
        for pattern, word in _WORDS.items():
            what = re.sub(pattern, word, what)
        raise _PlaceError(at, what, hint) from error


_WORDS = {
    r"Expected `int` >= (\d+)": r"must be at least \1",
    r"Expected `int` <= (\d+)|Integer value out of range": "is too large",
    r"Expected `str` of length >= 1": "must not be empty",
    r"Expected `str` of length <= (\d+)": r"must not be longer than \1 characters",
    r"Expected `str` matching .*": "must not have control characters",
    r"Expected ": "must be ",
    r"`str(?: \| null)?`": "a string",
    r"`int(?: \| null)?`": "a whole number",
    r"`(?:float|decimal)`": "a number with decimals",
    r"`array(?: \| null)?`": "an array",
    r"`object(?: \| null)?`": "a table",
    r"`bool`": "true or false",
    r", got ": ", not ",
}


def _currency(raw: dict[str, Any]) -> str:
    """The grid's currency, read first because every amount of money is checked against it."""
    exchange = raw.get("exchange")
    currency = exchange.get("currency", "USD") if isinstance(exchange, dict) else "USD"
    if isinstance(currency, str) and not re.fullmatch("[A-Z]{3}", currency):
        raise _PlaceError(("exchange", "currency"), "is not a currency", "three capital letters of ISO 4217, like USD")
    return str(currency)


def _quantities(table: type[msgspec.Struct], raw: Any, at: _At, currency: str) -> None:
    """Replace every written quantity of a table by its integer, in place; refuse unknown keys and wrong choices."""
    if not isinstance(raw, dict):
        return  # _convert says so, with the type that belongs there
    fields = {each.encode_name: each for each in msgspec.structs.fields(table)}
    for key, value in raw.items():
        here = (*at, key)
        if key not in fields:
            near = nearest(key, fields)
            hint = f"did you mean {near!r}?" if near else "known here: " + ", ".join(fields)
            raise _PlaceError(here, "unknown key", hint)
        for kind in _members(fields[key].type):
            if isinstance(kind, type) and issubclass(kind, msgspec.Struct):
                for index, item in enumerate(value) if isinstance(value, list) else ((None, value),):
                    _quantities(kind, item, here if index is None else (*here, index), currency)
            elif isinstance(kind, Meta) and kind.extra:
                raw[key] = _quantity(kind.extra["quantity"], kind.extra["example"], value, here, currency)
            elif get_origin(kind) is Literal:
                wrong = [w for w in (value if isinstance(value, list) else [value]) if w not in get_args(kind)]
                if wrong and isinstance(wrong[0], str):
                    raise _PlaceError(here, f"{wrong[0]!r} is not known here", f"one of {', '.join(get_args(kind))}")


def _members(kind: Any) -> Iterator[Any]:
    """The Literals, quantities and tables that a field's type is made of."""
    if get_origin(kind) is Annotated:
        yield from kind.__metadata__
    elif get_origin(kind) in (None, Literal):
        yield kind
    else:
        for part in get_args(kind):
            if part not in (NoneType, Ellipsis):
                yield from _members(part)


def _quantity(kind: str, example: str, value: Any, at: _At, currency: str) -> Any:
    """One quantity in its smallest unit; raises _PlaceError when it is negative, too large or not of this kind."""
    example = "like " + example.replace("USD", currency)
    if kind == "mix":
        return _mix(value, at, example)
    try:
        if kind in ("stu", "pue"):
            amount = _number(value, at, example, micro=kind == "stu")
        elif not isinstance(value, str):
            raise _PlaceError(at, "must be a string with a number and its unit", example)
        elif len(value) > 64 or re.search(r"[eE][+-]?\d{3}", value):  # 1e999999999 would be computed to the last digit
            raise _PlaceError(at, "is not a quantity", example)
        elif kind == "money":
            amount = units.parse_money(value, currency)
        elif kind == "h":  # as units.parse_price would, but per second the rounding of a small price is 1 % of it
            head, _, per = value.rpartition("/")
            if per.strip() not in ("h", "s"):
                raise _PlaceError(at, f"{value!r} is not a price in {currency} per h", example)
            amount = units.parse_money(head, currency) * (1 if per.strip() == "h" else 3600)
        elif kind in ("kWh", "Mtok", "kg"):
            amount = units.parse_price(value, kind, currency)
        else:
            amount = units.parse(value, kind)
    except BadQuantity as error:
        raise _PlaceError(at, error.message, error.hint) from error
    if amount < 0 or amount > _INT64_MAX:
        raise _PlaceError(at, f"{value} is {'negative' if amount < 0 else 'larger than the books can count'}", example)
    return amount


def _number(value: Any, at: _At, example: str, *, micro: bool) -> int:
    """A plain number in millionths (``micro``; more than 6 decimals are refused, not rounded) or thousandths."""
    if isinstance(value, str) and re.fullmatch(r"[+-]?\d{1,18}(\.\d{1,18})?", value, re.ASCII):
        value = Decimal(value)
    sound = isinstance(value, int) and not isinstance(value, bool) and abs(value) <= _INT64_MAX
    if isinstance(value, Decimal):  # no nan or inf, no 1e999999999, no million digits
        sound = value.is_finite() and abs(value.adjusted()) <= 18 and len(value.as_tuple().digits) <= 36
    if not sound:
        raise _PlaceError(at, "must be a number", example)
    scaled = Fraction(value) * (1_000_000 if micro else 1000)
    if micro and scaled.denominator != 1:
        raise _PlaceError(at, f"{value} has more than 6 decimals")
    return round(scaled)


def _mix(value: Any, at: _At, example: str) -> dict[str, int]:
    """Shares of energy sources as permille that sum to 1000, by largest remainder."""
    if not isinstance(value, dict) or not value:
        raise _PlaceError(at, "must be a table of sources and their shares", example)
    shares = [_number(share, (*at, source), "like 0.3", micro=True) for source, share in value.items()]
    if min(shares) < 0:
        raise _PlaceError(at, "a share is negative", example)
    if abs(sum(shares) - 1_000_000) > 1000:
        raise _PlaceError(at, f"the shares sum to {Decimal(sum(shares)) / 1_000_000}, not to 1", example)
    return dict(zip(value, units.split(1000, shares), strict=True))


def _fill(raw: dict[str, Any]) -> None:
    """Write the defaults that depend on the rest of the file into it; its types are right already."""
    raw.setdefault("name", "grid")
    listed = bool(raw.get("site"))
    sites = raw["site"] = raw.get("site") or [{"name": "here"}]
    for site in sites:
        site.setdefault("entity", raw["name"])
    if listed and not raw.get("replica"):
        hint = f"add [[replica]] with model and site = {sites[0]['name']!r}"
        raise _PlaceError(("site", 0), "the file has sites but no replica, so nothing makes tokens", hint)
    replicas = raw["replica"] = raw.get("replica") or [{"model": EMBEDDED_MODEL}]
    for index, replica in enumerate(replicas):
        if "site" not in replica and len(sites) > 1:
            names = ", ".join(repr(site["name"]) for site in sites[:5])
            raise _PlaceError(("replica", index, "site"), "is missing, and there are several sites", f"one of {names}")
        site = replica.setdefault("site", sites[0]["name"])
        replica.setdefault("name", f"{site}-{sum(each['site'] == site for each in replicas[: index + 1])}")
        replica.setdefault("driver", "external" if "url" in replica else "embedded")
        devices = next((each.get("device") for each in sites if each["name"] == site), None)
        if devices:
            replica.setdefault("device", devices[0]["id"])


def _check(grid: GridFile) -> None:
    """Raise _PlaceError for the first thing that only shows when the tables are read together."""
    exchange = grid.exchange
    sites = _unique([site.name for site in grid.sites], ("site",), "name")
    _unique([replica.name for replica in grid.replicas], ("replica",), "name")
    models = [replica.model for replica in grid.replicas]
    for key, tables in (("rate", exchange.rates), ("price", exchange.prices)):
        for index, model in enumerate(_unique([table.model for table in tables], ("exchange", key), "model")):
            _defined(model, ["*", *models], ("exchange", key, index, "model"), "served by no replica")
    for index, site in enumerate(grid.sites):
        at: _At = ("site", index)
        _unique([device.id for device in site.devices], (*at, "device"), "id")
        if site.pue_permille is not None and site.pue_permille < 1000:
            raise _PlaceError((*at, "pue"), "is below 1: a site takes at least what its devices take")
        if site.supply.interval_ns == 0:
            raise _PlaceError((*at, "supply", "interval"), "must be longer than 0 s")
        for number, device in enumerate(site.devices):
            if device.idle_mw is not None and device.max_mw is not None and device.max_mw < device.idle_mw:
                raise _PlaceError((*at, "device", number, "max"), "is below idle")
    for index, replica in enumerate(grid.replicas):
        at = ("replica", index)
        _defined(replica.site, sites, (*at, "site"), "no such site")
        devices = [device.id for device in grid.sites[sites.index(replica.site)].devices]
        if devices and replica.device is not None:
            _defined(replica.device, devices, (*at, "device"), f"no such device at site {replica.site!r}")
        _check_upstream(replica, at)


def _check_upstream(replica: Replica, at: _At) -> None:
    """What an external replica needs and an embedded one must not have. Messages show no secret written by mistake."""
    if replica.driver == "embedded":
        for key in ("url", "upstream_model", "api_key_env"):
            if getattr(replica, key) is not None:
                raise _PlaceError((*at, key), "belongs to an external replica", 'write driver = "external" and url')
        return
    if replica.url is None:
        raise _PlaceError((*at, "url"), "is missing: an external replica is reached by it")
    try:
        url = urlsplit(replica.url)
        sound = url.scheme in ("http", "https") and bool(url.hostname) and url.port != 0 and replica.url.isprintable()
    except ValueError:
        url, sound = urlsplit(""), False
    if not sound or url.username is not None or url.query or url.fragment:
        hint = 'like "http://127.0.0.1:8000/v1", without user, password or query'
        raise _PlaceError((*at, "url"), "is not an http or https address", hint)
    if replica.api_key_env is not None and not re.fullmatch("[A-Z_][A-Z0-9_]*", replica.api_key_env):
        what = "must be the name of an environment variable in capitals, never the key itself"
        raise _PlaceError((*at, "api_key_env"), what, 'like "UPSTREAM_API_KEY"')


def _unique(names: list[str], at: _At, key: str) -> list[str]:
    for index, name in enumerate(names):
        if name in names[:index]:
            raise _PlaceError((*at, index, key), f"{name!r} is there twice")
    return names


def _defined(name: str, known: list[str], at: _At, what: str) -> None:
    if name not in known:
        near = nearest(name, known)
        hint = f"did you mean {near!r}?" if near else "defined: " + ", ".join(repr(each) for each in known[:5])
        raise _PlaceError(at, f"{name!r}: {what}", hint)


def _where(at: _At) -> str:
    """A path as people count: ``site[1].supply.price`` for the first site. Odd keys are quoted, long ones cut."""
    text = ""
    for part in at:
        if isinstance(part, int):
            text += f"[{part + 1}]"
        else:
            text += "." + (part if re.fullmatch(r"[\w-]{1,64}", part) else repr(part[:64]))
    return text.removeprefix(".")


def _line(text: str, at: _At) -> int | None:
    """The line where a path begins, or the longest part of it that is there. None: the path is empty.

    What is there by a line is asked of the TOML parser itself, so dotted keys, inline tables and strings of many lines
    need no second grammar; a line inside a statement counts for the statement's end (looked for over 100 lines).
    """
    lines = text.split("\n")

    def there(depth: int, count: int) -> bool:
        for end in range(count, min(count + 100, len(lines)) + 1):
            with suppress(ValueError):
                here: Any = tomllib.loads("\n".join(lines[:end]))
                break
        else:
            return False
        with suppress(KeyError, IndexError, TypeError):
            for part in at[:depth]:
                here = here[part]
            return True
        return False

    for depth in range(len(at), 0, -1):
        before = bisect_left(range(1, len(lines) + 1), True, key=partial(there, depth))
        if before < len(lines):
            return before + 1
    return None
