from __future__ import annotations

import asyncio
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.support.site import home

from tokenworks.core.clock import ManualClock
from tokenworks.core.errors import Unreachable
from tokenworks.core.units import NS_PER_S
from tokenworks.site.meters.meter import FLOOR_SAMPLES, GAP_NS_MAX, Floor, Meter, Panel, Sample, Wire
from tokenworks.site.meters.nvml import Nvml
from tokenworks.site.meters.rapl import Rapl, machine_wires


def at(second: float, mj: int | None = None, mw: int | None = None) -> Sample:
    return Sample(round(second * NS_PER_S), mj, mw)


def meter(*samples: Sample, **more: Any) -> Meter:
    """One of a load of 10 to 100 W that heard these."""
    found = Meter(100_000, min_mw=10_000, **more)
    for sample in samples:
        found.see(sample)
    return found


def energy(of: Meter) -> tuple[int, int, int]:
    reading = of.reading()
    assert reading is not None
    return reading.mj, reading.implausible_mj, reading.seen_ns // NS_PER_S


@given(st.lists(st.integers(10_000, 100_000), min_size=1, max_size=20))
def test_a_counter_is_what_it_counted(powers: list[int]) -> None:
    """Conservation: however often a well-behaved counter is asked, the reading is its difference."""
    found, total = meter(at(0, 5_000)), 5_000
    for second, mw in enumerate(powers, 1):
        total += mw
        found.see(at(second, total))
    assert energy(found) == (total - 5_000, 0, len(powers))
    assert found.notes == set()


def test_a_jump_is_bounded_and_noted() -> None:
    """After a counter that jumped: what its load can draw is energy, the rest is implausible, and it is said."""
    found = meter(at(0, 0), at(1, 50_000), at(2, 900_050_000), at(3, 900_100_000))
    assert energy(found) == (50_000 + 110_001 + 50_000, 900_000_000 - 110_001, 3)
    assert found.notes == {"its counter jumped"}


def test_a_stall_is_silence_until_it_moves_again() -> None:
    """After a counter that froze: nothing is known, and what it counts when it moves covers the whole time."""
    found = meter(at(0, 0), at(10, 0), at(20, 0))
    assert found.reading() is None
    assert found.notes == {"its counter stalls"}
    found.see(at(30, 900_000))
    assert energy(found) == (900_000, 0, 30)
    coarse = meter(at(0, 0), at(10, 0), step_mj=360_000_000)  # a tenth of a kilowatt-hour may well stand still
    assert energy(coarse) == (0, 0, 10)


def test_a_reset_and_a_wrap_are_told_apart() -> None:
    """After a counter that begins again: a wrap loses nothing, of a reset only the time since is known."""
    assert energy(meter(at(0, 990_000), at(1, 40_000), wrap_mj=1_000_000)) == (50_000, 0, 1)
    reset = meter(at(0, 990_000), at(1, 40_000), at(2, 90_000))
    assert energy(reset) == (90_000, 0, 1)
    assert reset.notes == {"its counter was reset"}
    replaced = meter(at(0, 990_000), at(1, 700_000), at(2, 750_000))  # another meter: its past is not ours
    assert energy(replaced) == (50_000, 0, 1)


def test_late_answers_and_lies_are_noted() -> None:
    """After answers out of order, and power beyond what can be drawn: left out, or bounded, and said."""
    found = meter(at(5, 0), at(4, 9_999), at(6, 50_000))
    assert energy(found) == (50_000, 0, 1)
    assert found.notes == {"answered out of order"}
    liar = meter(at(0, mw=5_000_000), at(1, mw=5_000_000))
    assert energy(liar) == (100_000, 0, 1)
    assert liar.notes == {"says more power than can be drawn, or less than none"}
    liar = meter(at(0, mw=-900), at(1, mw=-900))
    assert energy(liar) == (0, 0, 1)


def test_power_goes_on_only_so_long() -> None:
    """After a silence filled by the last word: power between two samples is their mean, a long gap is not seen."""
    assert energy(meter(at(0, mw=20_000), at(2, mw=40_000))) == (60_000, 0, 2)
    gap_s = GAP_NS_MAX / NS_PER_S + 1
    assert meter(at(0, mw=20_000), at(gap_s, mw=20_000)).reading() is None
    assert energy(meter(at(0, mw=20_000), at(gap_s, mw=20_000), at(gap_s + 1, mw=20_000))) == (20_000, 0, 1)


class Script:
    """A source that says what it is told to."""

    def __init__(self) -> None:
        self.says: dict[str, Sample] | Exception = {}

    async def read(self) -> dict[str, Sample]:
        if isinstance(self.says, Exception):
            raise self.says
        return self.says


async def test_what_a_silent_counter_missed_comes_late_over_its_time() -> None:
    """After a dead sensor that comes back: the reading is spread over the intervals that were closed without it."""
    source = Script()
    panel = Panel([Wire(source, "c", "servers", "s", Meter(100_000))])

    async def hear(second: int, mj: int | None) -> None:
        source.says = Unreachable("gone") if mj is None else {"c": at(second, mj)}
        await panel.poll()

    def close(start: int, end: int) -> tuple[Any, Any]:
        found = panel.read(start * NS_PER_S, end * NS_PER_S)
        assert found == panel.read(start * NS_PER_S, end * NS_PER_S)  # asking does not change the answer
        panel.booked(start * NS_PER_S, end * NS_PER_S)
        return found

    await hear(0, 0)
    await hear(60, 600_000)
    assert close(0, 60)[0].servers == {"s": 600_000}
    for second in (60, 120):
        await hear(second + 60, None)
        said, late = close(second, second + 60)
        assert (said.servers, said.notes, late) == ({"s": None}, ("servers s: does not answer",), {})
    await hear(240, 1_500_001)
    said, late = close(180, 240)
    assert late == {60 * NS_PER_S: {("servers", "s"): 300_001}, 120 * NS_PER_S: {("servers", "s"): 300_000}}
    assert said.servers == {"s": 300_000}
    await hear(300, 1_600_000)
    assert close(240, 300) == ((*said[:2], {"s": 99_999}, *said[3:]), {})


async def test_a_panel_polls_until_it_is_stopped() -> None:
    """The loop asks on the clock's beat; without wires it ends at once."""
    clock, source = ManualClock(), Script()
    panel = Panel([Wire(source, "c", "it", "", Meter(100_000))], sink=lambda _start, _end: 17_000)
    source.says = {"c": at(1, mw=1)}
    task = asyncio.create_task(panel.run(clock))
    for _ in range(10):
        await asyncio.sleep(0)
    task.cancel()
    assert clock.now_ns() > ManualClock().now_ns()
    assert panel.read(0, 1)[0].sink_mc == 17_000
    await Panel().run(clock)


def test_a_floor_is_a_low_quantile_by_state() -> None:
    """After a cap or one odd sample that corrupts the idle power: states are apart, and the lowest is not believed."""
    floor = Floor()
    for mw in (1, *range(2_000, 2_030)):
        floor.see("resident", mw)
    floor.see("capped", 900)
    assert floor.mw("resident") == 2_000
    assert floor.mw("capped") is None
    for _ in range(FLOOR_SAMPLES):
        floor.see("resident", 5_000)
    assert floor.mw("resident") == 5_000


def powercap(root: Path, **domains: tuple[str, int]) -> None:
    for name, (kind, uj) in domains.items():
        folder = root / name.replace("_", ":")
        folder.mkdir(exist_ok=True)
        (folder / "name").write_text(kind + "\n")
        (folder / "energy_uj").write_text(f"{uj}\n")
        (folder / "max_energy_range_uj").write_text("1000000\n")


async def test_rapl_sums_packages_and_wraps_each(tmp_path: Path) -> None:
    """Linux's powercap files: packages and memory once, psys not again, each counter wrapping on its own."""
    folders = {"intel-rapl_0": ("package-0", 900_000), "intel-rapl_1": ("package-1", 5), "intel-rapl_2": ("psys", 7)}
    powercap(tmp_path, **folders)
    source = Rapl(ManualClock(1), tmp_path)
    assert await source.read() == {"machine": Sample(1, mj=0)}
    powercap(tmp_path, **{**folders, "intel-rapl_0": ("package-0", 100_000), "intel-rapl_1": ("package-1", 50_005)})
    assert await source.read() == {"machine": Sample(1, mj=250)}


async def test_a_machine_without_rapl_has_no_meter(tmp_path: Path) -> None:
    """Where there is nothing to read, all is modelled, and nothing is said of a meter."""
    assert machine_wires(ManualClock(), home(), tmp_path) == []
    powercap(tmp_path, **{"intel-rapl_0": ("package-0", 0)})
    panel = Panel(machine_wires(ManualClock(), home(), tmp_path))
    await panel.poll()
    assert panel.read(0, 1)[0].servers == {"": None}
    assert await Rapl(ManualClock(), tmp_path / "gone").read() == {}


def nvml(*boards: tuple[str, int | None, int | None]) -> Any:
    """The driver's library with these boards: UUID, counter, power."""

    class NVMLError(Exception):
        pass

    def said(value: int | None) -> int:
        if value is None:
            raise NVMLError
        return value

    return SimpleNamespace(
        NVMLError=NVMLError,
        nvmlInit=lambda: None,
        nvmlDeviceGetCount=lambda: len(boards),
        nvmlDeviceGetHandleByIndex=lambda index: boards[index],
        nvmlDeviceGetUUID=lambda board: board[0],
        nvmlDeviceGetTotalEnergyConsumption=lambda board: said(board[1]),
        nvmlDeviceGetPowerUsage=lambda board: said(board[2]),
    )


async def test_nvml_says_what_each_board_says() -> None:
    """Boards by UUID; one without a counter has its power only; a broken driver is unreachable."""
    source = Nvml(ManualClock(9), nvml(("GPU-a", 123, 456), ("GPU-b", None, 64_000)))
    assert await source.read() == {"GPU-a": Sample(9, 123, 456), "GPU-b": Sample(9, None, 64_000)}
    broken = nvml()

    def init() -> None:
        raise broken.NVMLError("driver not loaded")

    broken.nvmlInit = init
    with pytest.raises(Unreachable, match="driver not loaded"):
        await Nvml(ManualClock(), broken).read()
