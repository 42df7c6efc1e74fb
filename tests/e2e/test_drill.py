"""A grid event on a real grid under interactive and deferrable load: the power falls, nobody interactive is refused."""

from __future__ import annotations

import http.client
from urllib.parse import urlsplit

import msgspec
import pytest
from bench.drill import play
from tests.support.grid_process import GridProcess, wait_until


@pytest.mark.timeout(120)
def test_a_drill_cuts_the_power_and_fails_nobody(own_grid: GridProcess) -> None:
    """25 % less for 12 s: deferrable work yields, the target is reached, interactive requests all succeed."""
    own_grid.start().wait_ready()
    found, statuses = play(own_grid.data, own_grid.env, 12)
    assert statuses
    assert set(statuses) == {200}
    assert found["interactive_failed"] == 0
    assert found["power"] == "modelled"
    assert found["seconds_to_target"] is not None
    assert found["cut_percent"] >= 25
    during = [second for second in found["seconds"] if second["phase"] == "during"]
    assert any(second["waiting"] == 3 for second in during), "all deferrable clients wait"
    assert all(second["running"] <= 2 for second in during if second["waiting"] == 3)
    assert found["delivered_mj"] is not None
    for phase in ("before", "during", "after"):
        assert found["latency_ms"][phase]["p99"] >= found["latency_ms"][phase]["p50"] > 0
    [site] = own_grid.ask("site", "status")
    assert site["max_mw"] is None, "the event is over"
    assert [event["cancelled"] for event in site["events"]] == [True]
    wait_until(lambda: all(not gateway["waiting"] for gateway in _gateways(own_grid)), 10, "all to be let in")


def _gateways(grid: GridProcess) -> list[dict[str, int]]:
    found: list[dict[str, int]] = grid.get("/v1/status", grid.keys.admin_key)[1]["gateways"]
    return found


def test_who_may_post_an_event_and_which(grid: GridProcess) -> None:
    """An administrator, one that makes sense, for a site that is there; cancelled, it asks for nothing."""
    now = grid.run.started_ns
    event = {
        "id": "x",
        "kind": "curtail",
        "start_ns": now,
        "end_ns": now + 10**12,
        "cut_permille": 10,
        "cancelled": True,
    }
    assert _post(grid, grid.keys.key, event) == 403
    assert _post(grid, grid.keys.admin_key, {"id": "x"}) == 400
    assert _post(grid, grid.keys.admin_key, event, "?site=nowhere") == 404
    assert _post(grid, grid.keys.admin_key, event) == 202
    wait_until(lambda: any(e["id"] == "x" for e in _site(grid)["events"]), 10, "the event to be heard")
    assert _site(grid)["max_mw"] is None
    assert "event x: curtail" in grid.cli("site", "status").stdout
    assert grid.cli("drill", "--curtail", "much").returncode == 2


def _site(grid: GridProcess) -> dict[str, list[dict[str, str]]]:
    found: dict[str, list[dict[str, str]]] = grid.get("/v1/status", grid.keys.admin_key)[1]["sites"][0]
    return found


def _post(grid: GridProcess, key: str, event: object, query: str = "") -> int:
    parts = urlsplit(grid.run.url)
    connection = http.client.HTTPConnection(parts.hostname or "", parts.port, timeout=30)
    try:
        headers = {"authorization": f"Bearer {key}"}
        connection.request("POST", f"/v1/grid-events{query}", msgspec.json.encode(event), headers)
        return connection.getresponse().status
    finally:
        connection.close()
