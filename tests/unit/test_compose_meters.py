"""From ``[[site.meter]]`` to what is asked and where it counts; the servers and the air that stand beside."""

from __future__ import annotations

from pathlib import Path

import msgspec
import pytest

from tokenworks import compose_meters, gridfile
from tokenworks.compose import plan
from tokenworks.compose_meters import EVERY_S_MAX, site_panel
from tokenworks.core.clock import ManualClock
from tokenworks.core.errors import GridFileError
from tokenworks.core.units import NS_PER_S
from tokenworks.site.meters.meter import Panel, Sample, Wire
from tokenworks.site.meters.modbus import Modbus
from tokenworks.site.meters.nvml import Nvml
from tokenworks.site.meters.page import Page
from tokenworks.site.meters.rapl import Rapl
from tokenworks.site.meters.redfish import Redfish
from tokenworks.site.meters.snmp import Oid, Snmp

GRID = """
[[site]]
name = "s"
wet_bulb = { file = "air.csv", column = "wet_bulb_c" }
wet_bulb_assumed = 9.5
[[site.module]]
name = "m"
capacity = "2 MW"
it = "1 MW"
loss = 0.03
full_loss = 0.01
[[site.server]]
name = "n1"
idle = "150 W"
[[site.device]]
id = "a"
server = "n1"
board = "GPU-a"
threads = 2
memory = "4 GB"
idle = "60 W"
max = "700 W"
[[site.device]]
id = "b"
threads = 4
memory = "4 GB"
idle = "20 W"
max = "90 W"
[[replica]]
model = "m"
url = "http://127.0.0.1:1"
device = "a"
threads = 1
"""
METER = {
    "modbus": 'host = "10.0.0.9:502"\nregister = 100\nform = "uint32"\nunit = "kWh"\nfactor = 0.1\nunit_id = 7\n',
    "power": 'host = "10.0.0.9:502"\nregister = 200\nform = "float32"\nunit = "kW"\nunit_id = 7\n',
    "snmp": 'host = "10.0.0.8:161"\noid = ".1.3.6.9"\nunit = "kWh"\nfactor = 0.1\nsecret_env = "PDU_WORD"\n',
    "redfish": 'url = "https://bmc"\nchannel = "/m"\nuser = "u"\nsecret_env = "PDU_WORD"\n',
    "page": 'url = "http://dcgm/metrics"\n',
    "nvml": 'channel = "GPU-0"\n',
    "rapl": "",
}


def meter(kind: str, of: str, name: str = "", key: str = "", more: str = "") -> str:
    named = f'name = "{name}"\n' if name else ""
    return f'[[site.meter]]\nkind = "{kind}"\nof = "{of}"\n{named}max = "1 MW"\n{METER[key or kind]}{more}'


def wired(text: str, folder: Path) -> tuple[Panel, list[Wire]]:
    head, _, replica = GRID.partition("[[replica]]")
    (folder / "air.csv").write_text("ts_utc,wet_bulb_c\n1970-01-01T00:00Z,4\n1970-01-01T01:00Z,\n")
    (folder / "g.toml").write_text(head + text + "[[replica]]" + replica)
    made = plan(gridfile.load(folder / "g.toml"))
    panel = site_panel(ManualClock(), made.sites[0], made.powers[0], 60, own=True)
    return panel, list(panel._wires)


def test_each_kind_of_meter_is_reached_from_the_grid_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """After code that only a test could reach: what is asked, by which channel, and what it measures."""
    monkeypatch.setenv("PDU_WORD", "word")
    text = meter("modbus", "site") + meter("modbus", "it", key="power") + meter("snmp", "server", "n1")
    text += meter("nvml", "board", "GPU-a")
    _, (energy, power, pdu, board) = wired(text, tmp_path)
    assert energy.source is power.source, "one connection for one device"
    assert isinstance(energy.source, Modbus)
    assert [(r.address, r.unit, r.factor) for r in energy.source.registers.values()] == [
        (100, "kWh", 0.1), (200, "kW", 1.0),
    ]  # fmt: skip
    assert list(energy.source.registers) == [energy.channel, power.channel]
    assert [(w.level, w.target) for w in (energy, power, pdu, board)] == [
        ("load", ""), ("it", ""), ("servers", "n1"), ("boards", "GPU-a"),
    ]  # fmt: skip
    assert isinstance(pdu.source, Snmp)
    assert pdu.source.objects == {pdu.channel: Oid("1.3.6.9", 360_000_000.0, "energy")}
    assert (pdu.source._address, pdu.source._word) == (("10.0.0.8", 161), "word")
    assert isinstance(board.source, Nvml)
    assert board.channel == "GPU-0"
    text = meter("redfish", "server", "n1") + meter("page", "board", "GPU-a") + meter("rapl", "server")
    _, (bmc, page, own) = wired(text, tmp_path)
    assert isinstance(bmc.source, Redfish)
    assert (bmc.source.paths, bmc.channel) == (["/m"], "/m")
    assert isinstance(page.source, Page)
    assert page.channel == "GPU-a"
    assert isinstance(own.source, Rapl)
    assert (own.channel, own.level, own.target) == ("machine", "servers", "")


def test_a_counter_wraps_where_its_register_ends(tmp_path: Path) -> None:
    """A uint32 of tenths of a kilowatt-hour begins again after 2^32 of them: nothing is lost; one tenth is its step."""
    step = 360_000_000
    _, [wire] = wired(meter("modbus", "site"), tmp_path)
    wire.meter.see(Sample(0, 2**32 * step - step))
    wire.meter.see(Sample(3_600 * NS_PER_S, step))
    reading = wire.meter.reading()
    assert reading is not None
    assert (reading.mj, wire.meter.notes) == (2 * step, set())


def test_servers_boards_and_the_building_stand_in_the_file(tmp_path: Path) -> None:
    """Slices know their server and board, idle energy is each server's own, losses and the wet bulb are the file's."""
    panel, wires = wired("", tmp_path)
    made = plan(gridfile.load(tmp_path / "g.toml"))
    site = made.sites[0]
    assert [(load.server, load.board, load.idle_mw) for load in site.loads] == [("n1", "GPU-a", 30_000)]
    assert (site.base_idle_mw, site.hosts_mw) == (20_000, {"n1": 180_000})
    assert site.facility is not None
    [module] = site.facility.modules
    assert (module.loss_ppm, module.full_loss_ppm, site.facility.design_sink_mc) == (30_000, 10_000, 9_500)
    assert panel.read(0, 60 * NS_PER_S)[0].sink_mc == 4_000
    assert panel.read(3_700 * NS_PER_S, 3_760 * NS_PER_S)[0].sink_mc is None, "a gap is not zero degrees"
    assert all(isinstance(wire.source, Rapl) for wire in wires), "no meter named: this machine's own"


def test_meters_are_asked_several_times_an_interval(tmp_path: Path) -> None:
    """However short the interval; and a site that is not here has no meter unless the file names one."""
    wired("", tmp_path)
    made = plan(gridfile.load(tmp_path / "g.toml"))
    assert site_panel(ManualClock(), made.sites[0], None, 2, own=False)._every_s == 0.5
    other = site_panel(ManualClock(), made.sites[0], None, 900, own=False)
    assert (other._every_s, other._wires) == (EVERY_S_MAX, ())


def test_what_a_meter_needs_is_told_before_the_grid_starts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A secret that is not in the environment, and a library that is not installed, with what to do."""
    monkeypatch.delenv("PDU_WORD", raising=False)
    with pytest.raises(GridFileError, match="the environment has no PDU_WORD"):
        wired(meter("snmp", "server", "n1"), tmp_path)
    monkeypatch.setattr(compose_meters, "find_spec", lambda _: None)
    with pytest.raises(GridFileError, match="needs pymodbus") as caught:
        wired(meter("modbus", "site"), tmp_path)
    assert caught.value.hint == "pip install 'tokenworks[meters]'"


def test_a_slice_costs_its_part_of_the_building(tmp_path: Path) -> None:
    """Capital and operation of the modules, by reserved power, on top of the device's own cost."""
    wired("", tmp_path)
    text = (tmp_path / "g.toml").read_text().replace('max = "700 W"', 'max = "700 W"\ncost = "0.5 USD/h"')
    money = 'capacity = "2 MW"\ncapex = "8766000 USD"\nopex = "0 USD"\nlife = 1'
    loads = [
        plan(gridfile.parse(each, "g", tmp_path)).sites[0].loads[0]
        for each in (text, text.replace('capacity = "2 MW"', money))
    ]
    device, both = (load.cost_nano_per_hour for load in loads)
    assert device == 250_000_000
    watts = (loads[0].idle_mw + loads[0].busy_mw) / 1_000
    assert both == device + round(1_000 * watts / 10**6 * 10**9), "1,000 USD an hour for 1 MW"


def test_plans_with_meters_travel() -> None:
    """A worker gets the plan as JSON."""
    made = plan(gridfile.default_grid())
    assert msgspec.json.decode(msgspec.json.encode(made), type=type(made)) == made
