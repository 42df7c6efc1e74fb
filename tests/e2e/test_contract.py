"""A site with sun, a battery and a contract on a real grid: its intervals are billed by them, over a restart too."""

from __future__ import annotations

from pathlib import Path

from tests.support.grid_process import GridProcess, wait_until

FILE = """
[[site]]
name = "here"
[[site.supply]]
name = "grid"
interval = "1 s"
carbon = "300 g/kWh"
[[site.supply]]
name = "roof"
kind = "solar"
capacity = "3 W"
[[site.supply]]
name = "cells"
kind = "battery"
energy = "1 Wh"
power = "5 W"
[site.contract]
[[site.contract.charge]]
kind = "energy"
price = "0.10 USD/kWh"
[[site.contract.charge]]
kind = "ppa"
of = "roof"
price = "1 USD/kWh"
[[site.module]]
name = "box"
capacity = "1 kW"
it = "900 W"
cooling = "air"
[[replica]]
model = "smollm2-135m-instruct"
"""


def test_intervals_are_billed_by_contract_and_batteries_survive(tmp_path: Path) -> None:
    """All power is the sun's: the mix says so, the PPA is paid, PUE and water are the module's; the books close."""
    (tmp_path / "grid.toml").write_text(FILE)
    for _ in range(2):
        grid = GridProcess(tmp_path / "data", "--grid", str(tmp_path / "grid.toml")).start().wait_ready()
        try:
            grid.client().chat.completions.create(
                model="smollm2-135m-instruct", messages=[{"role": "user", "content": "hi"}], max_tokens=4
            )
            wait_until(lambda: grid.ask("books")["receipts_without_energy_record"] == 0, 20, "the interval to close")  # noqa: B023
            [site] = grid.ask("site", "status")
            assert grid.ask("books")["closed"]
        finally:
            grid.stop()
        last = site["interval"]
        assert last["mix_permille"].get("roof", 0) > 500
        assert last["bill_nano"] > 0
        assert 1_000_000 < last["pue_ppm"] < 1_580_000
        assert last["water_ul"] is not None
        assert len(list((tmp_path / "data" / "power").iterdir())) == 1
