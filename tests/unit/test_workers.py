"""Works of other gateway processes at the first one: begun, ended and forgotten as if they ran here."""

from __future__ import annotations

import asyncio
from pathlib import Path
from types import SimpleNamespace
from typing import Any, Literal, cast

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tokenworks import compose, gridfile
from tokenworks.channel import STEPS_MAX, Brief, Heard, Step, line
from tokenworks.core.clock import ManualClock, WallClock
from tokenworks.core.errors import EngineDown, ExchangeDown
from tokenworks.core.words import Interval, Work
from tokenworks.engine.mirror import Use
from tokenworks.gateway import Gateway, listen
from tokenworks.site.agent import SiteAgent
from tokenworks.worker import OUTBOX_MAX, Outpost, Post
from tokenworks.workers import Worker, Workers

PLAN = compose.plan(gridfile.parse("[gateway]\nworkers = 3\n", "grid.toml"))
SITE = PLAN.sites[0]
SLICE, REPLICA = SITE.loads[0].slice, PLAN.replicas[0].name
To = Literal["begun", "ended", "forgotten"]


class Link:
    """The ledger's answer to what is settled and not metered; the first question is not answered."""

    def __init__(self) -> None:
        self.settled: list[Work] = []
        self.asked = 0

    async def unmetered(self) -> tuple[Work, ...]:
        self.asked += 1
        if self.asked == 1:
            raise ExchangeDown("restarting")
        return tuple(self.settled)


class World:
    """The first process without its engines, and two workers that are only heard."""

    def __init__(self) -> None:
        self.clock, self.link, self.closed = ManualClock(), Link(), list[Interval]()
        clock = cast(WallClock, self.clock)
        clock.anchor_ns = 0
        self.site = SiteAgent(SITE, self.clock, self.closed.append)
        house = SimpleNamespace(sites={SITE.name: self.site}, replicas={})
        first = SimpleNamespace(clock=clock, link=self.link, house=house, data=Path("data"), plan=PLAN)
        self.crew = Workers(cast(Gateway, first), cast(Any, None), "127.0.0.1", 0)
        self.workers = [Worker(self.crew, brief(name)) for name in ("gateway-2", "gateway-3")]

    def hear(self, who: int, *steps: Step) -> None:
        heard = Heard(uses={}, requests=1, open_holds=0, services={"agents": 5}, steps=steps)
        self.crew.hear(self.workers[who], msgspec.json.decode(line(heard), type=Heard))


def brief(name: str) -> Brief:
    return Brief(name=name, host="127.0.0.1", port=0, data="data", anchor_ns=0, plan=PLAN)


def step(to: To, receipt: str, start_ns: int, end_ns: int) -> Step:
    return Step(to=to, work=Work(
        receipt=receipt, replica=REPLICA, site=SITE.name, slice=SLICE, start_ns=start_ns, first_ns=None, end_ns=end_ns,
        input_tokens=1, output_tokens=1,
    ))  # fmt: skip


@given(st.lists(st.tuples(st.integers(0, 1), st.sampled_from(["begun", "ended", "forgotten"]), st.integers(0, 5))))
def test_the_site_knows_what_all_workers_said(said: list[tuple[int, To, int]]) -> None:
    """Against a plain set: open is what was begun and neither ended nor forgotten, ended is what ended."""
    world = World()
    running: list[set[str]] = [set(), set()]
    ended: list[str] = []
    for number, (who, to, name) in enumerate(said):
        receipt = f"{who}-{name}"
        if (to == "begun") == (receipt in running[who]) or receipt in ended:
            continue
        if to == "begun":
            running[who].add(receipt)
        else:
            running[who].discard(receipt)
            ended += [receipt] if to == "ended" else []
        now_ns = world.clock.now_ns() + number
        world.hear(who, step(to, receipt, now_ns, now_ns + 1))
    for worker, open_ in zip(world.workers, running, strict=True):
        assert {receipt for receipt, _ in worker.open} == open_
    assert world.site.receipts() == running[0] | running[1] | set(ended)
    assert world.site.known() == len(running[0]) + len(running[1]) + len(ended)


async def test_a_dead_workers_works_are_what_the_books_say() -> None:
    """Settled ones get their energy, told of or not; the begun one is nobody's; the others' works are left alone."""
    world = World()
    t = world.clock.now_ns()
    told, open_, unknown, other, late = (
        step("ended", receipt, t, t + 100_000_000) for receipt in ("told", "open", "unknown", "other", "late")
    )
    world.hear(0, step("begun", "told", t, t), step("begun", "open", t, t), step("begun", "lost", t, t), told)
    world.hear(1, step("begun", "other", t, t))
    world.link.settled = [told.work, open_.work, unknown.work, other.work, late.work]
    await world.crew.bury(world.workers[0])
    assert world.workers[0].open == {}
    world.hear(1, other)
    world.hear(1, step("begun", "late", t, t), late)  # the ledger told of it first
    interval = world.site.close(t + 2_000_000_000)
    assert interval is not None
    ended = {each.receipt: each for each in interval.requests if each.ended}
    assert set(ended) == {"told", "open", "unknown", "other", "late"} == {each.receipt for each in interval.requests}
    assert max(each.slice_ns for each in ended.values()) - min(each.slice_ns for each in ended.values()) <= 1
    assert world.site.known() == 0
    assert world.crew.services == {"agents": 20}


class Pipe:
    """A pipe that is full after so many lines."""

    def __init__(self, lines: int) -> None:
        self.lines, self.written = lines, list[bytes]()

    def get_write_buffer_size(self) -> int:
        return 0 if len(self.written) < self.lines else 1 << 30

    def write(self, data: bytes) -> None:
        self.written.append(data)


def test_a_worker_passes_on_all_its_works_in_order() -> None:
    """A full pipe loses nothing: what did not go waits, and at the bound no request is accepted."""
    outbox: list[Step] = []
    post = Outpost(SITE, ManualClock(), outbox)
    expected: list[tuple[str, str]] = []
    for number in range(STEPS_MAX):
        receipt = f"r{number}"
        post.begin(receipt, REPLICA, SLICE, number)
        if number % 3:
            post.end(step("ended", receipt, number, number + 1).work)
        else:
            post.forget(receipt, REPLICA, SLICE)
        expected += [("begun", receipt), ("ended" if number % 3 else "forgotten", receipt)]
    assert post.known() == 0
    gateway = SimpleNamespace(
        metrics=SimpleNamespace(requests=0), desk=SimpleNamespace(open_holds=0), services=dict[str, int], waiting=0
    )
    mirror = SimpleNamespace(uses=dict[str, Use])
    passed: list[tuple[str, str]] = []
    for lines in (1, 0, 5):
        pipe = Pipe(lines)
        Post(cast(Gateway, gateway), cast(Any, mirror), outbox).say(cast(Any, pipe))
        for said in pipe.written:
            passed += [(each.to, each.work.receipt) for each in msgspec.json.decode(said, type=Heard).steps]
    assert passed == expected
    outbox += [step("ended", "x", 0, 1)] * OUTBOX_MAX
    with pytest.raises(EngineDown, match="not kept"):
        post.begin("r", REPLICA, SLICE, 0)


def test_the_plan_travels_whole() -> None:
    """A worker is started with the very plan that the first process has."""
    assert msgspec.json.decode(line(brief("gateway-2")), type=Brief).plan == PLAN
    assert {spec.gateways for spec in PLAN.replicas} == {3}


def test_a_port_is_shared_only_with_those_who_ask() -> None:
    """Another grid is refused, as by any program that listens there; a worker joins."""
    with listen("127.0.0.1", 0) as first:
        port = first.getsockname()[1]
        with pytest.raises(Exception, match="is taken"):
            listen("127.0.0.1", port)
        with listen("127.0.0.1", port, share=True) as second:
            assert second.getsockname()[1] == port


async def test_an_interval_is_closed_when_late_words_are_in() -> None:
    """The cut lies a lag in the past: a work that is told of after its interval's end has its energy in it."""
    clock, closed = ManualClock(), list[Interval]()
    agent = SiteAgent(SITE, clock, closed.append, 1, lag_s=1)
    t = clock.now_ns()
    running = asyncio.create_task(agent.run())
    await asyncio.sleep(0)  # it sleeps: this clock is at the end of interval and lag
    agent.end(step("ended", "late", t + 800_000_000, t + 900_000_000).work)
    agent.end(step("ended", "next", t + 900_000_000, t + 1_500_000_000).work)
    for _ in range(8):
        await asyncio.sleep(0)
    running.cancel()
    first, second = closed[:2]
    assert (first.start_ns, first.end_ns, second.end_ns) == (t, t + 1_000_000_000, t + 2_000_000_000)
    assert {line.receipt: line.ended for line in first.requests} == {"late": True, "next": False}
    assert [(line.receipt, line.ended, line.slice_ns) for line in second.requests] == [("next", True, 500_000_000)]
