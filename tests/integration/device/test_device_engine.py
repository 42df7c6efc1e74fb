"""The embedded engine in its slice: the real engine, held to real processors and measured memory."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable
from pathlib import Path

import pytest

from tokenworks.core.clock import WallClock
from tokenworks.device.slices import Limits
from tokenworks.engine.fleet import Fleet, Pace
from tokenworks.engine.pull import model_cache
from tokenworks.engine.replica import ReplicaSpec, State

pytestmark = pytest.mark.engine
MB = 1_000_000


def fleet(tmp: Path, limits: Limits) -> Fleet:
    spec = ReplicaSpec(
        name="one", model="smollm2-135m-instruct", site="s", slice="cpu0/0", slots=1, context_tokens=256, limits=limits
    )
    return Fleet([spec], WallClock(), tmp / "logs", model_cache(), pace=Pace(health_s=0.1))


async def test_the_engine_stays_on_its_processors_and_is_measured(tmp_path: Path) -> None:
    """After booked and measured: every thread of the engine is on the booked processor, and its memory is known."""
    one = max(os.sched_getaffinity(0))
    running = fleet(tmp_path, Limits(cpus=(one,), memory_bytes=1_000 * MB))
    await running.start()
    try:
        assert await running.wait_ready(120)
        replica = running.replicas["one"]
        await until(lambda: replica.took is not None)
        assert replica.took is not None
        assert 100 * MB < replica.took.memory_bytes < 1_000 * MB
        [pid] = children()
        threads = [int(name) for name in os.listdir(f"/proc/{pid}/task")]  # noqa: PTH208
        assert len(threads) > 5
        assert {frozenset(os.sched_getaffinity(thread)) for thread in threads} == {frozenset({one})}
    finally:
        await running.stop()
    assert children() == []


async def test_an_engine_that_takes_more_than_it_booked_is_stopped(tmp_path: Path) -> None:
    """After a neighbour's memory: the engine is killed as soon as it is measured, and its operator is told why."""
    running = fleet(tmp_path, Limits(memory_bytes=100 * MB))
    await running.start()
    try:
        replica = running.replicas["one"]
        await until(lambda: replica.life.state is State.FAILED)
        assert "booked are 100,000,000, and was killed" in replica.why
        assert replica.took is None
    finally:
        await running.stop()
    assert children() == []


async def until(true: Callable[[], bool]) -> None:
    """Wait for it, for two minutes at most."""
    for _ in range(6_000):
        if true():
            return
        await asyncio.sleep(0.02)
    pytest.fail("it did not come true within two minutes")


def children() -> list[int]:
    """Engines that this test process started and that still run."""
    tasks = Path(f"/proc/{os.getpid()}/task").glob("*/children")
    pids = [int(pid) for task in tasks for pid in task.read_text().split()]
    return [pid for pid in pids if b"llamacpp_child" in Path(f"/proc/{pid}/cmdline").read_bytes()]
