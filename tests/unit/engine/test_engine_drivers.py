"""Drivers against scripted engines: what breaks is detected, shown and routed around, what idles sleeps and wakes."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import msgspec
import pytest
from tests.support.engine_server import KEY, LOAD_S, MODEL, WORDS, EngineServer
from tests.support.house import Listener, Script, World
from tests.unit.engine.test_engine_contract import ask, begun, until

from tokenworks.core.clock import ManualClock, WallClock
from tokenworks.core.errors import EngineDown, EngineFailed, TokenworksError
from tokenworks.core.units import NS_PER_MS, NS_PER_S
from tokenworks.device.slices import Limits
from tokenworks.engine import replica as life_of
from tokenworks.engine.adapter import Completion, Load
from tokenworks.engine.drivers import Pace
from tokenworks.engine.fleet import Fleet
from tokenworks.engine.lifeline import Orders
from tokenworks.engine.record import FAILED_MAX, Replica
from tokenworks.engine.replica import Life, ReplicaSpec, State, came_up, fell_asleep, may_start, started, went_down
from tokenworks.engine.reports import TooBusy

ENGINE = Path(__file__).resolve().parents[2] / "support" / "engine_server.py"
PACE = Pace(
    health_s=0.02, external_s=0.02, health_timeout_s=0.5, missed_max=20, silent_s=0.15, silent_full_s=0.3, probe_s=0.1,
    drain_s=0.1, load_poll_s=0.01, stop_s=2.0,
)  # fmt: skip
SPEC = ReplicaSpec(name="r", model="served", site="s", slice="", slots=2, context_tokens=64, upstream_model=MODEL)


@pytest.fixture(autouse=True)
def _short_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(life_of, "BACKOFF_FIRST_NS", 20 * NS_PER_MS)


@asynccontextmanager
async def running(spec: ReplicaSpec, tmp: Path, pace: Pace = PACE) -> AsyncIterator[Replica]:
    fleet = Fleet([spec], WallClock(), tmp, tmp, pace=pace)
    await fleet.start()
    try:
        yield fleet.replicas[spec.name]
    finally:
        await fleet.stop()
        assert fleet.replicas[spec.name].life.state is State.COLD


@asynccontextmanager
async def watched(kind: Any, tmp: Path, **fields: Any) -> AsyncIterator[tuple[EngineServer, Replica]]:
    """An external engine, as soon as it gets requests."""
    server = await EngineServer(kind, KEY).start()
    spec = msgspec.structs.replace(SPEC, driver="external", engine=kind, url=server.url, api_key=KEY, **fields)
    async with running(spec, tmp) as replica:
        await until(lambda: replica.ready)
        yield server, replica
    await server.stop()


def figures(replica: Replica) -> Load | None:
    return replica.load


async def use(replica: Replica, text: str = "hi") -> Completion:
    """One request, as the life of a request treats its replica."""
    replica.begin()
    try:
        done = await replica.adapter.complete(ask(text))
    except TokenworksError as error:
        replica.heard(error)
        raise
    finally:
        replica.end()
    replica.heard(None)
    return done


# Life and record.


def test_only_a_ready_replica_falls_asleep() -> None:
    """It is woken by coming up; nothing starts it meanwhile, and when waking fails it has failed."""
    ready = came_up(started(Life(), 0), 1)
    asleep = fell_asleep(ready, 2)
    assert asleep.state is State.ASLEEP
    assert not may_start(asleep, 10**18)
    assert came_up(asleep, 3).state is State.READY
    assert went_down(asleep, 3).state is State.FAILED
    for state in set(State) - {State.READY}:
        with pytest.raises(ValueError, match="cannot fall asleep"):
            fell_asleep(Life(state=state), 0)


def test_failures_in_a_row_take_it_out() -> None:
    """Clients' mistakes and good answers in between do not; a busy engine is only left alone for a while."""
    clock = ManualClock()
    replica = Replica(SPEC, clock)
    replica.turn(started)
    replica.turn(came_up)
    for _ in range(FAILED_MAX - 1):
        replica.heard(EngineFailed("x"))
    replica.heard(TokenworksError("theirs"))
    replica.heard(None)
    busy = TooBusy()
    busy.retry_after_s = 7
    replica.heard(busy)
    assert replica.ready
    full = []
    for seconds in (0.0, 6.9, 0.2):
        clock.advance(seconds)
        full.append(replica.full)
    assert full == [True, True, False]
    for _ in range(FAILED_MAX):
        replica.heard(EngineDown("it is on fire"))
    assert replica.life.state is State.FAILED
    assert replica.why == "(3 answers in a row failed, the last one so: it is on fire)"


def test_one_that_sleeps_can_be_asked_and_tells_how_long_it_takes() -> None:
    """What the router needs to know of it."""
    replica = Replica(SPEC, ManualClock())
    replica.turn(started)
    replica.turn(came_up)
    replica.wake_ns = 5 * NS_PER_S
    assert (replica.ready, replica.wait_ns) == (True, 0)
    replica.turn(fell_asleep)
    assert (replica.ready, replica.wait_ns) == (True, 5 * NS_PER_S)


# Engines that break.


@pytest.mark.parametrize(("how", "says"), [("500", "CUDA error"), ("garbage", "not an answer")])
async def test_bad_answers_take_it_out_until_it_makes_a_token_again(tmp_path: Path, how: str, says: str) -> None:
    """Its health check is fine all the time: only a real token brings it back, tried after growing pauses."""
    async with watched("openai", tmp_path) as (server, replica):
        server.broken = how
        for _ in range(FAILED_MAX):
            with pytest.raises(EngineFailed):
                await use(replica)
        assert not replica.ready, "at once, without waiting for the next look"
        assert says in replica.why
        await until(lambda: replica.life.failures >= 3)
        assert "asked for one token" in replica.why
        pause_ns = replica.life.next_try_ns - replica.life.since_ns
        assert pause_ns >= 80 * NS_PER_MS
        server.broken = ""
        await until(lambda: replica.ready)
        assert replica.why == ""
        assert (await use(replica)).usage


async def test_streams_that_go_well_may_end_when_others_took_it_out(tmp_path: Path) -> None:
    """A replica is not cut off in the middle because of somebody else's answers."""
    async with watched("openai", tmp_path) as (server, replica):
        replica.begin()
        got: list[bytes] = []
        stream = await replica.adapter.stream(ask(stream=True))
        server.broken = "500"
        for _ in range(FAILED_MAX):
            replica.heard(EngineFailed("x"))
        assert await stream.relay(got.append, 10**9)
        replica.end()
        assert stream.chunks == len(WORDS)


@pytest.mark.parametrize("requests", [1, 2])
async def test_a_hang_behind_a_good_health_check_is_seen(tmp_path: Path, requests: int) -> None:
    """With a free slot it is asked for a token; with none its silence is enough. Who waits may go elsewhere."""
    async with watched("vllm", tmp_path) as (server, replica):
        server.broken = "hang"
        hung = [asyncio.create_task(use(replica)) for _ in range(requests)]
        await until(lambda: replica.life.state is State.FAILED)
        says = "did not make one token" if requests == 1 else "2 requests are with it, and it has said nothing"
        assert says in replica.why
        for ended in await asyncio.gather(*hung, return_exceptions=True):
            assert isinstance(ended, EngineDown)
        server.broken = ""
        await until(lambda: replica.ready)


async def test_a_slow_engine_that_still_makes_a_token_is_not_hung(tmp_path: Path) -> None:
    """One answer that takes long, and a token for whoever asks beside it."""
    async with watched("vllm", tmp_path) as (_, replica):
        slow = asyncio.create_task(use(replica, "slow"))
        await asyncio.sleep(0.5)
        assert replica.ready
        slow.cancel()
        await asyncio.gather(slow, return_exceptions=True)


async def test_lies_are_shown_and_not_believed(tmp_path: Path) -> None:
    """The engine goes on serving; its own figures are left out until they can be true again."""
    async with watched("vllm", tmp_path) as (server, replica):
        await until(lambda: replica.load is not None)
        for _ in range(2):
            replica.begin()
        streams = [await begun(replica._adapter) for _ in range(2)]  # type: ignore[arg-type]
        await until(lambda: replica.load is not None and replica.load.running == 2)
        server.broken = "lies"
        await until(lambda: "0 requests, 2 are with it; they are not believed" in replica.why)
        assert figures(replica) is None
        assert replica.ready
        server.broken = "nonsense"
        await until(lambda: "7.5 of its memory" in replica.why)
        server.broken = ""
        await until(lambda: replica.load is not None and replica.why == "")
        for stream, relaying in streams:
            relaying.cancel()
            await asyncio.gather(relaying, return_exceptions=True)
            await stream.abort()
            replica.end()


async def test_a_lost_engine_is_looked_for(tmp_path: Path) -> None:
    """Health checks that fail take it out; it comes back when they succeed."""
    async with watched("openai", tmp_path) as (server, replica):
        server.broken = "sick"
        await until(lambda: replica.life.state is State.FAILED)
        await until(lambda: "does not answer health checks" in replica.why)
        assert replica.restarts == 1
        server.broken = ""
        await until(lambda: replica.ready)


async def test_an_exhausted_rate_limit_pauses_it(tmp_path: Path) -> None:
    """What the provider's headers say is heeded before it refuses."""
    async with watched("anthropic", tmp_path) as (_, replica):
        adapter: Any = replica.adapter
        adapter._room = Load(requests_left=0, resets_s=0.2)
        await until(lambda: replica.full)
        adapter._room = None
        await until(lambda: not replica.full)


async def test_the_front_door_routes_around(tmp_path: Path) -> None:
    """Three answers of one replica fail; from then on every request goes to the other one."""
    bad, good = Script(0, EngineFailed), Script()
    world = World(tmp_path, [bad, good])
    failed = 0
    for _ in range(8):
        try:
            await world.serve(Listener())
        except EngineFailed:
            failed += 1
    assert (failed, bad.asked, good.asked) == (FAILED_MAX, FAILED_MAX, 8 - FAILED_MAX)
    world.check_nothing_is_left()
    world.journal.close()


# Sleep.


@pytest.mark.parametrize("kind", ["vllm", "sglang", "ollama"])
async def test_an_idle_replica_sleeps_and_a_request_wakes_it(tmp_path: Path, kind: str) -> None:
    """All that come while it wakes wait together, nothing is refused, and how long it took is known."""
    async with watched(kind, tmp_path, sleep_after_ns=100 * NS_PER_MS) as (server, replica):
        if kind != "ollama":  # it begins with nothing loaded, and that is seen
            await until(lambda: replica.life.state is State.READY)
            assert replica.wake_ns is None, "nothing known before the first time"
            await use(replica)
        await until(lambda: replica.life.state is State.ASLEEP and server.asleep)
        assert replica.ready
        done = await asyncio.gather(*(use(replica) for _ in range(3)))
        assert all(each.usage for each in done)
        assert replica.wake_ns is not None
        assert LOAD_S <= replica.wake_ns / NS_PER_S < 1
        wakes = [path for path, _ in server.seen if path in ("/wake_up", "/resume_memory_occupation")]
        assert len(wakes) == (kind != "ollama")
        await until(lambda: replica.life.state is State.ASLEEP and server.asleep)


async def test_one_that_cannot_sleep_stays_up(tmp_path: Path) -> None:
    """An external engine without such a route is asked once."""
    async with watched("openai", tmp_path, sleep_after_ns=20 * NS_PER_MS) as (_, replica):
        await asyncio.sleep(0.2)
        assert replica.life.state is State.READY
        assert (await use(replica)).usage


async def test_one_that_does_not_wake_sends_its_requests_away(tmp_path: Path) -> None:
    """Whoever woke it gets an error that lets another replica try."""
    async with watched("vllm", tmp_path, sleep_after_ns=20 * NS_PER_MS) as (server, replica):
        await until(lambda: server.asleep)
        await server.stop()
        with pytest.raises(EngineDown, match="could not be woken"):
            await use(replica)
        await until(lambda: replica.life.state is State.FAILED)


# Processes.


def command(*more: str) -> tuple[str, ...]:
    return (sys.executable, str(ENGINE), "{port}", *more)


def process_spec(*words: str, **fields: Any) -> ReplicaSpec:
    return msgspec.structs.replace(SPEC, driver="process", engine="openai", command=words or command(), **fields)


def descendants(pid: int) -> list[int]:
    """Processes below this one, as /proc tells."""
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdecimal():
            try:
                state, parent = (entry / "stat").read_text().rpartition(")")[2].split()[:2]
            except OSError:
                continue
            if int(parent) == pid and state != "Z":
                found += [int(entry.name), *descendants(int(entry.name))]
    return found


def engines() -> list[int]:
    mine = descendants(os.getpid())
    found = []
    for pid in mine:
        with contextlib.suppress(OSError):  # it ended meanwhile
            if ENGINE.name.encode() in Path(f"/proc/{pid}/cmdline").read_bytes().split(b"/")[-1]:
                found.append(pid)
    return found


async def test_any_command_is_an_engine(tmp_path: Path) -> None:
    """It gets a free port and its devices; when it dies it is started again; nothing of it outlives the fleet."""
    spec = process_spec(limits=Limits(env={"CUDA_VISIBLE_DEVICES": "GPU-7"}))
    async with running(spec, tmp_path) as replica:
        await until(lambda: replica.ready, 10)
        assert (await use(replica)).usage
        [pid] = engines()
        assert b"CUDA_VISIBLE_DEVICES=GPU-7" in Path(f"/proc/{pid}/environ").read_bytes().split(b"\0")
        await until(lambda: replica.took is not None)
        assert replica.took is not None
        assert replica.took.memory_bytes > 10**7, "the command and the process that holds it"
        os.kill(pid, signal.SIGKILL)
        await until(lambda: replica.life.state is State.FAILED)
        assert replica.why.startswith("(the engine's process ended with status")
        await until(lambda: replica.ready, 10)
        assert (await use(replica)).usage
    assert not engines()


async def test_its_own_children_end_with_it(tmp_path: Path) -> None:
    """Engines start workers; those must not keep the device when the engine is gone."""
    shell = f"sleep 987 & exec {sys.executable} {ENGINE} {{port}}"
    before = set(descendants(os.getpid()))
    async with running(process_spec("sh", "-c", shell), tmp_path) as replica:
        await until(lambda: replica.ready, 10)
        ours = set(descendants(os.getpid())) - before
        assert len(ours) == 3
    assert not [pid for pid in ours if alive(pid)]


def alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


async def test_a_lost_parent_ends_the_engine(tmp_path: Path) -> None:
    """kill -9 of the gateway closes the lifeline: the engine and its workers leave."""
    shell = f"sleep 986 & exec {sys.executable} {ENGINE} {{port}}"
    lifeline = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "tokenworks.engine.lifeline", start_new_session=True,
        stdin=asyncio.subprocess.PIPE, stdout=asyncio.subprocess.PIPE,
    )  # fmt: skip
    assert lifeline.stdin is not None
    assert lifeline.stdout is not None
    lifeline.stdin.write(msgspec.json.encode(Orders(command=("sh", "-c", shell), model=MODEL)) + b"\n")
    assert b"port" in await lifeline.stdout.readline()
    below = descendants(lifeline.pid)
    assert len(below) in (1, 2)
    lifeline.stdin.close()
    await lifeline.wait()
    await until(lambda: not any(alive(pid) for pid in below))


@pytest.mark.parametrize(
    ("words", "says"),
    [(("no-such-engine",), "status 127"), ((sys.executable, "-c", "raise SystemExit(3)"), "status 3")],
)
async def test_a_command_that_does_not_work_is_told(tmp_path: Path, words: tuple[str, ...], says: str) -> None:
    """With its status and, in the log, what it printed."""
    async with running(process_spec(*words), tmp_path) as replica:
        await until(lambda: says in replica.why, 10)
    if words[0] == "no-such-engine":
        assert "No such file" in (tmp_path / "r.log").read_text()


async def test_a_process_without_sleep_of_its_own_is_ended_and_started(tmp_path: Path) -> None:
    """Scale to zero for any engine: no process while nobody asks, and the time to wake is measured."""
    async with running(process_spec(sleep_after_ns=50 * NS_PER_MS), tmp_path) as replica:
        await until(lambda: replica.ready, 10)
        loaded_ns = replica.wake_ns
        assert loaded_ns, "until it was woken, loading is what is known"
        await until(lambda: replica.life.state is State.ASLEEP and not engines())
        first, second = await asyncio.gather(use(replica), use(replica))
        assert first.usage == second.usage
        assert replica.life.state in (State.READY, State.ASLEEP)
        assert replica.wake_ns not in (None, loaded_ns)
        assert replica.restarts == 0, "that was no failure"
        await until(lambda: replica.life.state is State.ASLEEP and not engines())
