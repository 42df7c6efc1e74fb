"""A site that cannot be reached, and one with a contract, on a real grid of two gateway processes."""

from __future__ import annotations

import asyncio
from functools import partial
from pathlib import Path

import openai
import pytest
from tests.support.engine_server import MODEL, EngineServer
from tests.support.grid_process import GridProcess, wait_until

GRID = """
[gateway]
workers = 2
[[site]]
name = "ground"
[site.contract]
name = "day and night"
[[site.contract.charge]]
kind = "energy"
[[site.contract.charge.tier]]
price = "0.25 USD/kWh"
[[site.device]]
id = "box"
threads = 2
memory = "4 GB"
idle = "10 W"
max = "100 W"
[[site]]
name = "orbit"
[site.supply]
price = "0 USD/kWh"
[[site.module]]
name = "bus"
capacity = "2 kW"
it = "1 kW"
[[site.window]]
start = 2020-01-01T00:00:00Z
length = "8 min"
[[replica]]
model = "{model}"
site = "ground"
url = "{url}"
threads = 1
[[replica]]
model = "{model}"
site = "orbit"
url = "{url}"
[[replica]]
model = "far"
site = "orbit"
url = "{url}"
upstream_model = "{model}"
"""


def _there(grid: GridProcess, path: str) -> bool:
    return grid.get(path, grid.keys.key)[0] == 200


def _play(grid: GridProcess) -> None:
    grid.wait_ready()
    asked: list[str] = []

    def both_asked() -> bool:
        with grid.client() as client:
            for _ in range(4):
                answer = client.chat.completions.with_raw_response.create(
                    model=MODEL, messages=[{"role": "user", "content": "hello"}]
                )
                asked.append(answer.headers["x-tokenworks-receipt"])
        _, found = grid.get("/v1/status", grid.keys.admin_key)
        return bool(found and all(gateway["requests"] >= 4 for gateway in found["gateways"]))

    wait_until(both_asked, 30, "requests at both gateways")
    for receipt in asked:
        path = f"/v1/receipts/{receipt}"
        wait_until(partial(_there, grid, path), 10, "its receipt")
        _, found = grid.get(path, grid.keys.admin_key)
        [brain] = (line for line in found["lines"] if line["layer"] == "brain")
        assert brain["chosen"]["replica"] == "ground-1", "the cheaper site cannot be reached"
        assert brain["chosen"]["terms_nano"]["energy"] > 0, "the contract's price of the moment"
        assert brain["refused"] == {"orbit-1": "site orbit cannot be reached any more"}
        assert found["lines"][0].get("money_nano") is not None, "and so is the estimate's"
    for _ in range(8):
        with grid.client(max_retries=0) as client, pytest.raises(openai.InternalServerError, match="any more"):
            client.chat.completions.create(model="far", messages=[{"role": "user", "content": "hello"}])
    _, models = grid.get("/v1/models", grid.keys.key)
    assert models is not None
    assert {model["id"]: model["ready"] for model in models["data"]} == {MODEL: True, "far": False}
    [ground, orbit] = grid.ask("site", "status")
    assert (ground["price_nano_per_kwh"], orbit["price_nano_per_kwh"]) == (250_000_000, 0)


async def test_both_gateways_follow_the_moment(tmp_path: Path) -> None:
    """Neither sends anything to the site out of contact, both say why, and both know the contract's price."""
    engine, file = await EngineServer().start(), tmp_path / "grid.toml"
    file.write_text(GRID.format(url=engine.url, model=MODEL))
    grid = GridProcess(tmp_path / "data", "--grid", str(file)).start()
    try:
        await asyncio.to_thread(_play, grid)
    finally:
        await asyncio.to_thread(grid.stop)
        await engine.stop()
