"""The Ray driver on a real cluster of two nodes on loopback."""

from __future__ import annotations

import asyncio
import os
import shutil
import signal
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest
import ray
from ray.cluster_utils import Cluster
from tests.support.house import Listener, World
from tests.unit.engine.test_engine_contract import ask, until

from tokenworks.core.clock import WallClock
from tokenworks.core.errors import TokenworksError
from tokenworks.core.words import Request
from tokenworks.engine.adapter import Completion, TokenStream
from tokenworks.engine.drivers import Pace
from tokenworks.engine.fleet import Fleet
from tokenworks.engine.record import Replica
from tokenworks.engine.replica import ReplicaSpec

ENGINE = Path(__file__).resolve().parents[2] / "support" / "engine_server.py"
PACE = Pace(health_s=0.1, load_poll_s=0.05, place_s=20.0)
SPEC = ReplicaSpec(
    name="a", model="tiny", site="s", slice="", slots=8, context_tokens=64, driver="ray", engine="openai",
    command=(sys.executable, str(ENGINE), "{port}", "openai", "0.0.0.0"), resources_milli={"CPU": 250, "npu": 600},
)  # fmt: skip


class Nodes:
    """A head without room for engines, and nodes that have some."""

    def __init__(self, folder: str) -> None:
        small: dict[str, Any] = {"object_store_memory": 80_000_000, "include_dashboard": False}
        self._small, self._folder = small, folder
        self.cluster: Any = Cluster(
            initialize_head=True, connect=False, head_node_args={"num_cpus": 0, "temp_dir": folder, **small}
        )

    def add(self, npu: int) -> Any:
        return self.cluster.add_node(num_cpus=1, resources={"npu": npu}, temp_dir=self._folder, **self._small)


@pytest.fixture
def nodes(monkeypatch: pytest.MonkeyPatch) -> Iterator[Nodes]:
    monkeypatch.setenv("RAY_USAGE_STATS_ENABLED", "0")
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(path for path in sys.path if path))
    folder = tempfile.mkdtemp(prefix="ray", dir="/tmp")  # its sockets need a short path
    made = Nodes(folder)
    yield made
    made.cluster.shutdown()
    deadline = time.monotonic() + 5
    while (left := of_ray(folder)) and time.monotonic() < deadline:
        time.sleep(0.05)
    shutil.rmtree(folder, ignore_errors=True)
    assert not left, "every process of Ray has ended"


def of_ray(folder: str) -> list[int]:
    """Processes of this cluster, by its folder on their command lines, and engines."""
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdecimal():
            try:
                words = (entry / "cmdline").read_bytes()
            except OSError:
                continue
            if folder.encode() in words or ENGINE.name.encode() in words:
                found.append(int(entry.name))
    return found


class Via:
    """A replica of the fleet as an engine of the scripted house."""

    def __init__(self, replica: Replica) -> None:
        self._replica = replica

    async def stream(self, request: Request) -> TokenStream:
        return await self._replica.adapter.stream(request)

    async def complete(self, request: Request) -> Completion:
        return await self._replica.adapter.complete(request)

    async def count_input(self, request: Request) -> int | None:
        return None

    async def healthy(self) -> bool:
        return True

    async def close(self) -> None:
        return


def alive() -> set[str]:
    """The nodes that have room for engines."""
    tables: Any = ray.nodes()  # type: ignore[no-untyped-call]
    return {node["NodeID"] for node in tables if node["Alive"] and "npu" in node["Resources"]}


async def test_placed_killed_and_placed_elsewhere(nodes: Nodes, tmp_path: Path) -> None:
    """Fractions of a resource of our own decide where; a node dies under load, and no request is lost with it."""
    first = nodes.add(1)
    specs = [msgspec.structs.replace(SPEC, name=name, cluster=nodes.cluster.address) for name in ("a", "b")]
    fleet = Fleet(specs, WallClock(), tmp_path, tmp_path, pace=PACE)
    await fleet.start()
    try:
        replicas = list(fleet.replicas.values())
        await until(lambda: any(replica.ready for replica in replicas), 20)
        [lost] = [replica for replica in replicas if replica.ready]  # 0.6 and 0.6 do not fit on one node
        second = nodes.add(3)
        await until(lambda: all(replica.ready for replica in replicas), 20)

        world = World(tmp_path / "house", [Via(replica) for replica in replicas])
        failed: list[TokenworksError] = []
        listeners: list[Listener] = []

        async def send() -> None:
            listeners.append(Listener())
            try:
                await world.serve(listeners[-1], messages=[{"role": "user", "content": "later"}])
            except TokenworksError as error:
                failed.append(error)

        asking = [asyncio.create_task(send()) for _ in range(8)]
        await asyncio.sleep(0.1)
        await asyncio.to_thread(nodes.cluster.remove_node, first, allow_graceful=False)
        asking += [asyncio.create_task(send()) for _ in range(8)]
        await asyncio.gather(*asking)
        assert not failed
        assert len(listeners) == 16
        assert all(listener.ended for listener in listeners)
        world.check_nothing_is_left()
        world.journal.close()

        await until(lambda: lost.restarts == 1 and lost.ready, 20)
        await until(lambda: alive() == {second.node_id}, 20)  # there is only one place where it can be now
        done = await lost.adapter.complete(ask())
        assert done.usage
    finally:
        await fleet.stop()
    await over_two_nodes(nodes, tmp_path)


async def over_two_nodes(nodes: Nodes, tmp_path: Path) -> None:
    """A replica whose cards fit on no node has a command on each of two, which know their places; it stands and falls
    with either, and is placed again."""
    nodes.add(2)
    wide = msgspec.structs.replace(
        SPEC, name="wide", cluster=nodes.cluster.address, cards=2, resources_milli={"CPU": 250, "npu": 1700},
        command=(sys.executable, "-X", "rank{rank}of{nodes}at{head}", *SPEC.command[1:]),
    )  # fmt: skip
    fleet = Fleet([wide], WallClock(), tmp_path, tmp_path, pace=PACE)
    await fleet.start()
    try:
        replica = fleet.replicas["wide"]
        await until(lambda: replica.ready, 20)
        assert (await replica.adapter.complete(ask())).usage
        [first], [second] = commands("rank0of2at"), commands("rank1of2at")
        tables: Any = ray.util.placement_group_table()
        [placed] = [table for table in tables.values() if table["state"] == "CREATED"]
        assert len(set(placed["bundles_to_node_id"].values())) == 2
        os.kill(second, signal.SIGKILL)
        await until(lambda: replica.restarts == 1 and replica.ready, 20)
        assert first not in commands("rank0of2at")
    finally:
        await fleet.stop()


def commands(word: str) -> list[int]:
    """Engines with this on their command lines."""
    lines = ((int(e.name), e / "cmdline") for e in Path("/proc").iterdir() if e.name.isdecimal())
    found = []
    for pid, line in lines:
        try:
            words = line.read_bytes().split(b"\0")
        except OSError:
            continue
        if any(each.decode(errors="replace").startswith(word) for each in words):
            found.append(pid)
    return found
