from __future__ import annotations

import asyncio
import socket

import pytest
from pysnmp.carrier.asyncio.dgram import udp
from pysnmp.entity import config, engine
from pysnmp.entity.rfc3413 import cmdrsp, context
from pysnmp.smi import builder
from tests.support.meter_room import Bmc, http_server, modbus_meter

from tokenworks.core.clock import ManualClock
from tokenworks.core.errors import Unreachable
from tokenworks.site.meters.meter import Meter, Panel, Sample, Wire
from tokenworks.site.meters.modbus import Modbus, Register
from tokenworks.site.meters.page import BODY_BYTES_MAX, Page, fetch
from tokenworks.site.meters.redfish import Redfish
from tokenworks.site.meters.snmp import Oid, Snmp

CLOCK = ManualClock(1_000)

DCGM = b"""# HELP DCGM_FI_DEV_POWER_USAGE Power draw (in W).
# TYPE DCGM_FI_DEV_POWER_USAGE gauge
DCGM_FI_DEV_POWER_USAGE{gpu="0",UUID="GPU-a",device="nvidia0"} 502.5
DCGM_FI_DEV_POWER_USAGE{gpu="1",UUID="GPU-b",device="nvidia1"} 64
# HELP DCGM_FI_DEV_TOTAL_ENERGY_CONSUMPTION Total energy consumption since boot (in mJ).
# TYPE DCGM_FI_DEV_TOTAL_ENERGY_CONSUMPTION counter
DCGM_FI_DEV_TOTAL_ENERGY_CONSUMPTION{gpu="0",UUID="GPU-a",device="nvidia0"} 123456789
# TYPE npu_chip_info_power gauge
npu_chip_info_power{id="3",model_name="910B"} 310.4
unrelated_total 5
"""


def modbus(port: int, **registers: Register) -> Modbus:
    made = Modbus(CLOCK, "127.0.0.1", port)
    made.registers.update(registers)
    return made


def redfish(url: str, path: str = Bmc.METRICS) -> Redfish:
    made = Redfish(CLOCK, url, user="u", password="p")
    made.paths.append(path)
    return made


async def test_a_modbus_meter_is_read() -> None:
    """Energy of 64 bits and power of a float, from a real server; both in the books' units."""
    registers = {"energy": Register(100, "uint64", "Wh"), "power": Register(200, "float32", "kW")}
    async with modbus_meter(7_000_000_123, 1.5) as (port, _):
        found = await modbus(port, **registers).read()
    assert found["energy"] == Sample(1_000, mj=7_000_000_123 * 3_600_000)
    assert found["power"] == Sample(1_000, mw=1_500_000)


@pytest.mark.parametrize("kw", [float("nan"), float("inf")])
async def test_a_modbus_meter_that_says_no_number_is_unreachable(kw: float) -> None:
    """After a figure from nonsense: not a number is not a reading."""
    async with modbus_meter(0, kw) as (port, _):
        with pytest.raises(Unreachable):
            await modbus(port, p=Register(200, "float32", "kW")).read()


async def test_a_modbus_register_that_is_not_there_and_a_meter_that_is_gone() -> None:
    """After silence: an exception answer, and nobody at all, are one error that says where."""
    async with modbus_meter(0, 0.0) as (port, _):
        with pytest.raises(Unreachable, match="register 900"):
            await modbus(port, e=Register(900, "uint32", "Wh")).read()
    with pytest.raises(Unreachable, match="no meter answers"):
        await modbus(port, e=Register(100, "uint32", "Wh")).read()


async def test_redfish_is_read() -> None:
    """A BMC's tree: energy and power of a chassis; what is not there, or is no Redfish, is unreachable."""
    with http_server(Bmc()) as url:
        assert await redfish(url).read() == {Bmc.METRICS: Sample(1_000, mj=1_172_430_900_000_000, mw=374_000)}
        with pytest.raises(Unreachable):
            await redfish(url, "/redfish/v1/nowhere").read()
    with http_server(lambda *_: (200, b"<html>")) as url, pytest.raises(Unreachable, match="DMTF"):
        await redfish(url).read()


@pytest.mark.parametrize(
    "metrics", [[], {"EnergykWh": {"Reading": "lots"}}, {"PowerWatts": 5}, {"EnergykWh": {"Reading": 1e308}}]
)
async def test_a_bmc_that_answers_in_another_shape_is_unreachable(metrics: object) -> None:
    """After a poll that dies of one odd answer: what is not as it should be is an error like silence."""
    bmc = Bmc()
    bmc.tree[Bmc.METRICS] = metrics
    with http_server(bmc) as url, pytest.raises(Unreachable, match="DMTF"):
        await redfish(url).read()


async def test_pages_of_metrics_are_read() -> None:
    """DCGM's and Ascend's pages: counters and gauges by device, everything else ignored, nonsense refused."""
    with http_server(lambda *_: (200, DCGM)) as url:
        found = await Page(CLOCK, url).read()
    assert found == {
        "GPU-a": Sample(1_000, mj=123_456_789, mw=502_500),
        "GPU-b": Sample(1_000, mw=64_000),
        "3": Sample(1_000, mw=310_400),
    }
    for page in (b"# TYPE\nno page{", b"npu_chip_info_power NaN\n", b"x" * (BODY_BYTES_MAX + 1)):
        with http_server(lambda *_, page=page: (200, page)) as url, pytest.raises(Unreachable):
            await Page(CLOCK, url).read()
    with pytest.raises(Unreachable):
        await fetch(url)


async def test_a_pdu_is_read_over_snmp() -> None:
    """An APC-shaped PDU: tenths of kilowatt-hours and hundredths of kilowatts of a real agent."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    agent = engine.SnmpEngine()
    config.add_transport(agent, udp.DOMAIN_NAME, udp.UdpAsyncioTransport().open_server_mode(("127.0.0.1", port)))
    config.add_v1_system(agent, "area", "public")
    config.add_vacm_user(agent, 2, "area", "noAuthNoPriv", (1, 3, 6))
    where = context.SnmpContext(agent)
    mib: builder.MibBuilder = where.get_mib_instrum().get_mib_builder()
    scalar, instance = mib.import_symbols("SNMPv2-SMI", "MibScalar", "MibScalarInstance")
    (integer,) = mib.import_symbols("SNMPv2-SMI", "Integer32")
    base = (1, 3, 6, 1, 4, 1, 318, 1, 1, 26, 4, 3, 1)
    for at, value in ((5, 117), (9, 420_113)):
        mib.export_symbols(f"PDU{at}", scalar((*base, at), integer()), instance((*base, at), (1,), integer(value)))
    cmdrsp.GetCommandResponder(agent, where)
    await asyncio.sleep(0.05)
    oid = ".".join(map(str, base))
    objects = {"kwh": Oid(f"{oid}.9.1", 360e6, "energy"), "kw": Oid(f"{oid}.5.1", 1e4, "power")}
    try:
        pdu = Snmp(CLOCK, "127.0.0.1", port)
        pdu.objects.update(objects)
        found = await pdu.read()
        pdu.objects["x"] = Oid("1.3.6.1.4.1.9.9", 1, "power")
        with pytest.raises(Unreachable):
            await pdu.read()
    finally:
        agent.close_dispatcher()
    assert found == {"kwh": Sample(1_000, mj=420_113 * 360_000_000), "kw": Sample(1_000, mw=1_170_000)}


async def test_a_panel_hears_who_answers_and_notes_who_does_not() -> None:
    """After one dead sensor that stops all: the others are read, the silent and the late are noted, none is zero."""
    clock, bmc = ManualClock(1_000), Bmc()

    class Sleeper:
        async def read(self) -> dict[str, Sample]:
            await asyncio.sleep(60)
            return {}

    with http_server(bmc) as url:
        gone, bmc_source = Modbus(clock, "127.0.0.1", port=1), Redfish(clock, url)
        gone.registers["energy"] = Register(100, "uint64", "Wh")
        bmc_source.paths.append(Bmc.METRICS)
        panel = Panel(
            [
                Wire(bmc_source, Bmc.METRICS, "servers", "s1", Meter(1_000_000)),
                Wire(gone, "energy", "load", "grid", Meter(10**9)),
                Wire(Sleeper(), "x", "servers", "s2", Meter(10**9)),
            ],
            timeout_s=0.1,
        )
        await panel.poll()
        clock.advance(10)
        bmc.tree[Bmc.METRICS]["EnergykWh"]["Reading"] += 0.001
        await panel.poll()
    said, late = panel.read(1_000, clock.now_ns())
    assert (said.load, said.servers, late) == (None, {"s1": 3_600_000, "s2": None}, {})
    assert said.seen_permille == 0
    assert said.notes == ("load grid: does not answer", "servers s2: does not answer")
