"""A grid on accelerators of two vendors, which scripts in the place of their tools show: placed, shown and lost."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from tests.support.grid_process import GridProcess
from tests.support.machines import OUTPUTS, output

ENGINE = Path(__file__).resolve().parents[1] / "support" / "engine_server.py"
GRID = """
[[site]]
name = "here"
[site.supply]
interval = "1 s"
[[site.device]]
id = "nvidia1"
[[site.device]]
id = "nvidia0:1"
[[site.device]]
id = "ascend8"
[[site.device]]
id = "ascend9"
[[site.device]]
id = "cpu0"
"""
REPLICA = """
[[replica]]
name = "{name}"
model = "tiny"
engine = "openai"
command = ["engine.sh", "{name}", "{{port}}"]
{asks}
"""
ASKS = {
    "whole": 'vendor = "NVIDIA"',
    "part": 'device = "nvidia0:1"\nshare = 0.25\nmemory = "2 GB"',
    "pair": 'vendor = "Huawei"\ncards = 2',
}


def said_to_hold(found: list[dict[str, Any]]) -> dict[str, tuple[int, int, bool]]:
    return {each["device"]: (each["booked_permille"], each["memory_booked_bytes"], each["gone"]) for each in found}


@pytest.fixture
def running(tmp_path: Path) -> Iterator[GridProcess]:
    tools = tmp_path / "tools"
    tools.mkdir()
    for name, script in {
        "nvidia-smi": 'case "$1" in -q) cat "$0.xml";; *) cat "$0.list";; esac',
        "npu-smi": f'cat "{OUTPUTS}/ascend.txt"',
        "engine.sh": f'env > "$0.$1"; exec "{sys.executable}" "{ENGINE}" "$2" openai',
    }.items():
        (tools / name).write_text(f"#!/bin/sh\n{script}\n")
        (tools / name).chmod(0o755)
    for kind in ("xml", "list"):
        (tools / f"nvidia-smi.{kind}").write_text(output(f"nvidia-mig.{kind}"))
    replicas = [REPLICA.format(name=name, asks=asks) for name, asks in ASKS.items()]
    (tmp_path / "grid.toml").write_text(GRID + "".join(replicas))
    grid = GridProcess(tmp_path / "data", "--grid", str(tmp_path / "grid.toml"))
    grid.env["PATH"] = f"{tools}:{grid.env['PATH']}"
    yield grid.start().wait_ready()
    grid.stop()


def until(grid: GridProcess, what: Any) -> dict[str, Any]:
    deadline = time.monotonic() + 20
    while True:
        status = grid.get("/v1/status", grid.keys.admin_key)[1]
        if what({each["name"]: each for each in status["replicas"]}):
            return dict(status)
        assert time.monotonic() < deadline, json.dumps(status, indent=1)
        time.sleep(0.1)


def test_a_grid_on_accelerators(running: GridProcess, tmp_path: Path) -> None:
    """After the whole way from a survey to a child's environment; a card goes, its replica with it, and requests to
    the others; it comes back, and so does the replica."""
    status = until(running, lambda replicas: all(each["state"] == "ready" for each in replicas.values()))
    assert said_to_hold(status["sites"][0]["devices"]) == {
        "nvidia1": (1_000, 81_559 << 20, False),
        "nvidia0:1": (250, 2 * 10**9, False),
        "ascend8": (1_000, 21_527 << 20, False),
        "ascend9": (1_000, 21_527 << 20, False),
        "cpu0": (0, 0, False),
    }
    said = {name: (tmp_path / "tools" / f"engine.sh.{name}").read_text().splitlines() for name in ASKS}
    shown = {name: {line for line in lines if "VISIBLE" in line or "MPS" in line} for name, lines in said.items()}
    assert shown == {
        "whole": {"CUDA_VISIBLE_DEVICES=GPU-5a1c0c3e-0000-4000-8000-000000000002"},
        "part": {
            "CUDA_VISIBLE_DEVICES=MIG-11111111-0000-5000-8000-000000000002", "CUDA_MPS_ACTIVE_THREAD_PERCENTAGE=25",
            "CUDA_MPS_PINNED_DEVICE_MEM_LIMIT=0=1907M",
        },
        "pair": {"ASCEND_RT_VISIBLE_DEVICES=8,9"},
    }  # fmt: skip
    listed = running.ask("device", "list")
    assert listed["booked"]["nvidia1"] == 81_559 << 20
    measured = {each["id"]: each["memory_used_bytes"] for each in listed["devices"]}
    assert measured["nvidia0:1"] == 12 << 20

    xml = tmp_path / "tools" / "nvidia-smi.xml"
    whole = xml.read_text()
    xml.write_text(whole.replace("GPU-5a1c0c3e-0000-4000-8000-000000000002", "GPU is lost").replace("81559 MiB", "x"))
    until(running, lambda replicas: "nvidia1: gone" in (replicas["whole"]["why"] or ""))
    assert "GONE" in running.cli("status").stdout
    client = running.client()
    for _ in range(5):
        client.chat.completions.create(model="tiny", messages=[{"role": "user", "content": "hi"}], max_tokens=3)
    xml.write_text(whole)
    until(running, lambda replicas: replicas["whole"]["state"] == "ready")
