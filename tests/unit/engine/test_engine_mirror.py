"""A fleet shown by another process: what of it is believed, what is told back, and when engines are spoken to anew."""

from __future__ import annotations

import asyncio

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tokenworks.core.clock import ManualClock
from tokenworks.core.errors import EngineDown, EngineFailed
from tokenworks.core.words import Request
from tokenworks.engine.adapter import Nap
from tokenworks.engine.mirror import Mirror, ReplicaNow, Use, now_of, used
from tokenworks.engine.record import FAILED_MAX, Replica
from tokenworks.engine.replica import Address, Life, ReplicaSpec, State, came_up, fell_asleep, started, went_down

SPEC = ReplicaSpec(name="r", model="m", site="s", slice="s/0", slots=2, context_tokens=256)
REQUEST = Request(
    id="q", endpoint="chat", model="m", body=b"{}", stream=False, show_usage=False, input_max=2, output_max=1,
    choices=1, needs=frozenset(), arrived_ns=0,
)  # fmt: skip


def keeper(port: int = 1) -> Replica:
    """A replica that is up."""
    replica = Replica(SPEC, ManualClock())
    replica.address = Address(url=f"http://127.0.0.1:{port}", api_key="k")
    replica.turn(started)
    replica.turn(came_up)
    return replica


def sent(now: ReplicaNow) -> ReplicaNow:
    """Through the pipe."""
    return msgspec.json.decode(msgspec.json.encode(now), type=ReplicaNow)


async def shown(replica: Replica) -> Mirror:
    mirror = Mirror([SPEC], ManualClock())
    await mirror.show(sent(now_of(replica, 0)))
    return mirror


async def test_an_engine_at_a_new_address_is_spoken_to_there() -> None:
    """The same address keeps its connections, whatever else has changed; nothing is spoken to while it is down."""
    replica = keeper()
    mirror = await shown(replica)
    mine = mirror.replicas["r"]
    before = mine.adapter
    replica.restarts = 1
    await mirror.show(sent(now_of(replica, 0)))
    assert (mine.adapter, mine.restarts) == (before, 1)
    replica.turn(went_down)
    await mirror.show(sent(now_of(replica, 0)))
    assert not mine.ready
    with pytest.raises(EngineDown):
        _ = mine.adapter
    replica.address = Address(url="http://127.0.0.1:2", api_key="k2")
    replica.turn(started)
    replica.turn(came_up)
    await mirror.show(sent(now_of(replica, 0)))
    assert (mine.ready, mine.adapter is before) == (True, False)
    await mirror.close()


async def test_a_request_wakes_a_sleeper_that_another_process_keeps() -> None:
    """It waits here until the keeper, who is told, has woken the engine; then it goes there."""
    replica = keeper()
    replica.speaks_through(nap := Nap())
    replica.turn(fell_asleep)
    mirror = await shown(replica)
    waiting = asyncio.create_task(mirror.replicas["r"].adapter.complete(REQUEST))
    await asyncio.sleep(0)
    used(replica, mirror.uses()["r"], 1)
    assert (nap.wanted.is_set(), waiting.done()) == (True, False)
    replica.turn(came_up)
    await mirror.show(sent(now_of(replica, 1)))
    with pytest.raises(EngineDown, match="Cannot connect"):  # nobody listens there in this test
        await waiting
    await mirror.close()


async def test_failing_answers_are_told_once_and_take_it_out_for_all() -> None:
    """The keeper takes it out; as long as it has not, what is shown does not put it in again."""
    replica = keeper()
    mirror = await shown(replica)
    mine = mirror.replicas["r"]
    for _ in range(FAILED_MAX):
        mine.heard(EngineFailed("broken"))
    await mirror.show(sent(msgspec.structs.replace(now_of(replica, 0), restarts=7)))
    assert not mine.ready
    use = mirror.uses()["r"]
    assert use.out is not None
    assert mirror.uses()["r"].out is None
    used(replica, use, 0)
    assert (replica.life.state, replica.failed) == (State.FAILED, FAILED_MAX)
    assert "broken" in replica.why
    replica.turn(started)
    replica.turn(came_up)
    await mirror.show(sent(now_of(replica, 0)))
    assert (mine.ready, mine.failed) == (True, 0)
    await mirror.close()


@given(st.lists(st.tuples(st.integers(0, 2), st.booleans()), max_size=60))
def test_requests_add_up_over_all(moves: list[tuple[int, bool]]) -> None:
    """Whoever begins and ends them, after a round of telling all know how many run, and the keeper how many ended."""
    life = Life(state=State.READY)
    each = [Replica(msgspec.structs.replace(SPEC, slots=100), ManualClock()) for _ in range(3)]
    running, ended, told = [0, 0, 0], 0, [0, 0, 0]
    for who, begins in moves:
        each[who].life = life
        if begins:
            each[who].begin()
            running[who] += 1
        elif running[who]:
            each[who].end()
            running[who] -= 1
            ended += 1
    for who in (1, 2):
        use = Use(running=each[who].running - each[who].elsewhere, served=each[who].served)
        told[who] = use.running
        used(each[0], use, sum(told[1:]))
    assert (each[0].running, each[0].served) == (sum(running), ended)
    for who in (1, 2):
        each[who].meanwhile(now_of(each[0], told[who]).elsewhere)
        assert each[who].running == sum(running)
