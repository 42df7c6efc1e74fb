"""From a site's tables to what reads its meters: the grid file's, or else this machine's own, and the wet bulb."""

from __future__ import annotations

import os
from importlib.util import find_spec
from typing import Any

from tokenworks.core.clock import Clock
from tokenworks.core.errors import GridFileError
from tokenworks.gridfile.tables import Meter as MeterTable
from tokenworks.gridfile.tables import Site as SiteTable
from tokenworks.site.meters.meter import Meter, Panel, Wire
from tokenworks.site.meters.modbus import UNITS, Modbus, Register
from tokenworks.site.meters.nvml import Nvml
from tokenworks.site.meters.page import Page
from tokenworks.site.meters.rapl import Rapl, machine_wires
from tokenworks.site.meters.redfish import Redfish
from tokenworks.site.meters.snmp import Oid, Snmp
from tokenworks.site.words import Site

EVERY_S_MAX, POLLS = 5.0, 4
"""Meters are asked so often at least, and so many times in an interval."""
LEVELS: dict[str, Any] = {"site": "load", "it": "it", "server": "servers", "board": "boards"}
LIBRARIES = {"modbus": ("pymodbus", "meters"), "snmp": ("pysnmp", "snmp")}


def site_panel(clock: Clock, site: Site, table: SiteTable | None, interval_s: int, *, own: bool) -> Panel:
    """The meters of a site. ``own``: it has this machine, which is metered by RAPL if the file names no meter.

    Raises GridFileError for a secret or a library that is not there, BadTable for a file of the wet bulb.
    """
    wires, every_s = machine_wires(clock, site) if own else [], min(EVERY_S_MAX, interval_s / POLLS)
    if table is not None and table.meters:
        sources = dict[tuple[object, ...], Any]()
        wires = [_wire(clock, each, sources) for each in table.meters]
    if table is None or table.wet_bulb is None:
        return Panel(wires, every_s=every_s)
    from tokenworks.compose_power import signal_of  # numpy: only who has tables of signals pays for it
    from tokenworks.power.signal import mean

    signal = signal_of(table.wet_bulb)
    return Panel(wires, lambda start_ns, end_ns: mean(signal, start_ns, end_ns), every_s)


def _wire(clock: Clock, table: MeterTable, sources: dict[tuple[object, ...], Any]) -> Wire:
    """One channel and the judge of what it says: counters wrap where their register ends, and step by its unit."""
    per = UNITS[table.unit] * table.factor_ppm / 1e6 if table.unit else 0.0
    energy = table.unit is not None and not table.unit.endswith("W")
    bits = int(table.form[4:]) if table.form and table.form.startswith("uint") else 0
    wrap_mj = round(per * 2**bits) if energy and bits else None
    step_mj = max(1, round(per)) if energy else 1
    meter = Meter(table.max_mw, min_mw=table.min_mw, wrap_mj=wrap_mj, step_mj=step_mj)
    key = (table.kind, table.host, table.url, table.unit_id, table.user, table.secret_env)
    if key not in sources:
        sources[key] = _source(clock, table)
    source, channel = sources[key], table.channel or table.name
    if table.kind in ("modbus", "snmp"):
        channel = table.oid or f"{table.register} {table.form} {table.unit} {table.factor_ppm}"
    if table.kind == "modbus" and table.register is not None and table.form and table.unit:
        source.registers[channel] = Register(table.register, table.form, table.unit, table.factor_ppm / 1e6)
    elif table.kind == "snmp":
        source.objects[channel] = Oid((table.oid or "").lstrip("."), per, "energy" if energy else "power")
    elif table.kind == "redfish":
        source.paths.append(channel)
    return Wire(source, "machine" if table.kind == "rapl" else channel, LEVELS[table.of], table.name, meter)


def _source(clock: Clock, table: MeterTable) -> Any:
    """What is asked, once for all meters of the file that it has."""
    library, extra = LIBRARIES.get(table.kind, ("", ""))
    if library and find_spec(library) is None:
        raise GridFileError(f"a {table.kind} meter needs {library}", hint=f"pip install 'tokenworks[{extra}]'")
    secret = os.environ.get(table.secret_env or "", "")
    if table.secret_env is not None and not secret:
        raise GridFileError(f"a {table.kind} meter: the environment has no {table.secret_env}", hint="export it first")
    host, _, port = (table.host or ":0").rpartition(":")
    match table.kind:
        case "modbus":
            return Modbus(clock, host, int(port), table.unit_id)
        case "snmp":
            return Snmp(clock, host, int(port), secret or "public")
        case "redfish":
            return Redfish(clock, table.url or "", table.user or "", secret)
        case "page":
            return Page(clock, table.url or "")
        case "rapl":
            return Rapl(clock)
    import pynvml  # slow, and only here

    return Nvml(clock, pynvml)
