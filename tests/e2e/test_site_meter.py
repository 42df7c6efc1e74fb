"""A grid whose site has a revenue meter: a real Modbus server on loopback, read by the real composition."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from tests.support.engine_server import MODEL, EngineServer
from tests.support.grid_process import GridProcess
from tests.support.meter_room import modbus_counter

GRID = """
[[site]]
name = "here"
pue = 1.25
[site.supply]
interval = "1 s"
[[site.device]]
id = "box"
threads = 2
memory = "4 GB"
idle = "250 W"
max = "350 W"
[[site.meter]]
kind = "modbus"
of = "site"
host = "127.0.0.1:{meter}"
register = 100
form = "uint64"
unit = "J"
max = "2 kW"
min = "10 W"
[[replica]]
model = "{model}"
url = "http://127.0.0.1:{engine}"
threads = 1
"""


class Dial:
    """A counter of 340 W that can be stopped and pushed."""

    def __init__(self) -> None:
        self.began, self.more, self.stopped = time.monotonic(), 0, False
        self.last = 0

    def __call__(self) -> int:
        if not self.stopped:
            self.last = round(340 * (time.monotonic() - self.began)) + self.more
        return self.last


async def until(said: Callable[[dict[str, Any]], bool], grid: GridProcess, what: str) -> dict[str, Any]:
    """The site's status, once it says that."""
    found = None
    for _ in range(200):
        _, found = await asyncio.to_thread(grid.get, "/v1/status", grid.keys.admin_key)
        if found and found["sites"] and said(found["sites"][0]):
            return dict(found["sites"][0])
        await asyncio.sleep(0.1)
    raise AssertionError(f"{what}: {found and found['sites']}")


def metered(site: dict[str, Any]) -> bool:
    """The last interval is by the meter, and nothing is wrong with it."""
    last = site["interval"]
    return bool(last and last["meter"] == "measured" and not last["notes"] and last["quality_permille"])


def ask(grid: GridProcess) -> str:
    """One request that takes a moment; its receipt."""
    answer = grid.client().chat.completions.with_raw_response.create(
        model=MODEL, messages=[{"role": "user", "content": "later"}]
    )
    return str(answer.headers["x-tokenworks-receipt"])


async def test_a_running_grid_attributes_what_its_modbus_meter_counted(tmp_path: Path) -> None:
    """Measured energy on receipts, residual and quality in status; a stall is no zero, a jump is nobody's energy."""
    dial, engine, file = Dial(), await EngineServer().start(), tmp_path / "grid.toml"
    async with modbus_counter(dial) as meter:
        file.write_text(GRID.format(meter=meter, engine=engine.port, model=MODEL))
        grid = GridProcess(tmp_path / "data", "--grid", str(file)).start()
        try:
            await asyncio.to_thread(grid.wait_ready)
            site = await until(metered, grid, "an interval by the meter")
            assert site["power"] == "measured"
            assert 250_000 < site["power_mw"] < 450_000
            receipts = [await asyncio.to_thread(ask, grid) for _ in range(3)]
            site = await until(metered, grid, "another one")
            assert 200_000 < site["interval"]["meter_mj"] < 700_000, "340 W for about a second"

            dial.stopped = True
            site = await until(lambda s: "stalls" in str(s["meters"]), grid, "a stalled counter")
            site = await until(lambda s: s["interval"]["meter"] == "modelled", grid, "an interval without a reading")
            assert "stalls" in str(site["interval"]["notes"])
            assert site["interval"]["quality_permille"] == 0
            assert site["interval"]["meter_mj"] > 0, "silence is not zero"

            dial.stopped, dial.more = False, 10**7
            site = await until(lambda s: "jumped" in str(s["interval"]["notes"]), grid, "a jump")
            assert site["interval"]["residual_mj"] > 9 * 10**9, "what no load can draw is nobody's"
            site = await until(metered, grid, "trust again")

            shown = await asyncio.to_thread(grid.cli, "site", "status")
            assert "meter of load" in shown.stdout, shown.stdout + shown.stderr
            assert "placed by readings, residual" in shown.stdout
            for receipt in receipts:
                _, found = await asyncio.to_thread(grid.get, f"/v1/receipts/{receipt}", grid.keys.key)
                assert (found["status"], found["energy_mj"] > 0) == ("final", True), found
            assert (await asyncio.to_thread(grid.ask, "books"))["closed"]
        finally:
            await asyncio.to_thread(grid.stop)
            await engine.stop()
