"""Energy of requests that another gateway process served: the first one keeps the site's books for all."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from tests.support.grid_process import MODEL, GridProcess, wait_until

pytestmark = pytest.mark.engine
GRID = f"""
[gateway]
workers = 2
[[site]]
name = "here"
[site.supply]
interval = "1 s"
[[replica]]
model = "{MODEL}"
"""


@pytest.fixture
def two(tmp_path: Path) -> Iterator[GridProcess]:
    file = tmp_path / "grid.toml"
    file.write_text(GRID)
    grid = GridProcess(tmp_path / "data", "--grid", str(file)).start().wait_ready()
    yield grid
    grid.stop()


def second(grid: GridProcess) -> dict[str, Any]:
    """The other gateway, as status shows it; what was asked of one that died meanwhile is asked again."""
    status, found = 0, dict[str, Any]()
    while status != 200:
        status, found = grid.get("/v1/status", grid.keys.admin_key)
    return dict(found["gateways"][1])


def served_by_both(grid: GridProcess, before: int) -> list[str]:
    """Requests on connections of their own until the second gateway has settled three more."""
    receipts: list[str] = []

    def ask() -> bool:
        receipts.append(ask_once(grid))
        return bool(second(grid)["requests"] >= before + 3)

    wait_until(ask, 60, "three requests at the second gateway")
    return receipts


def ask_once(grid: GridProcess) -> str:
    """A request on a connection of its own; its receipt."""
    with grid.client() as client:
        answer = client.chat.completions.with_raw_response.create(
            model=MODEL, messages=[{"role": "user", "content": "Say hello."}], max_tokens=4
        )
    return answer.headers["x-tokenworks-receipt"]


def final(grid: GridProcess, receipts: list[str]) -> None:
    """Every receipt has the energy of its work, and the books close."""
    wait_until(lambda: grid.ask("books")["receipts_without_energy_record"] == 0, 20, "all energy records")
    for receipt in receipts:
        status, found = grid.get(f"/v1/receipts/{receipt}", grid.keys.key)
        assert (status, found["status"]) == (200, "final")
        assert found["energy_mj"] > 0
    report = grid.ask("books")
    assert report["closed"], report["checks"]
    assert report["receipts"] == len(receipts)


def test_works_that_are_told_late_get_their_energy_by_a_correction(two: GridProcess) -> None:
    """After records of zeros: the first process stands still while the second serves, and closes the interval before it
    has heard of it. What it hears then is corrected, and no receipt is final without energy."""
    receipts = served_by_both(two, 0)
    first, before = two.get("/v1/status", two.keys.admin_key)[1]["gateways"][0]["pid"], len(receipts)
    asking = [threading.Thread(target=lambda: receipts.append(ask_once(two))) for _ in range(12)]
    os.kill(first, signal.SIGSTOP)
    try:
        for thread in asking:
            thread.start()
        wait_until(lambda: len(receipts) > before, 30, "an answer of the second gateway")
        time.sleep(2)  # longer than an interval and what it waits for works
    finally:
        os.kill(first, signal.SIGCONT)
    for thread in asking:
        thread.join(60)
    final(two, receipts)
    assert two.ask("books")["corrections"] > 0
    shown = [two.get(f"/v1/receipts/{receipt}", two.keys.key)[1] for receipt in receipts]
    assert any(record.get("corrects") for receipt in shown for record in receipt.get("records", ()))
    assert two.stop() == 0
    assert two.ask("books")["closed"]


def test_energy_of_requests_at_any_gateway(two: GridProcess) -> None:
    """Their receipts get energy records, also after a gateway was killed and the engine began anew on another port."""
    receipts = served_by_both(two, 0)
    (worker,), (engine,) = two.children()["gateway"], two.children()["engine"]
    os.kill(worker, signal.SIGKILL)
    wait_until(lambda: second(two)["pid"] != worker, 20, "the second gateway to come back")
    os.kill(engine, signal.SIGKILL)
    wait_until(lambda: engine not in two.children()["engine"], 10, "the engine to be gone")
    wait_until(lambda: all(two.get("/healthz")[0] == 200 for _ in range(6)), 40, "both to see it ready again")
    receipts += served_by_both(two, 0)
    final(two, receipts)
    assert two.ask("cake")["receipts"] == len(receipts)
    assert two.stop() == 0
    assert two.ask("books")["closed"]
