"""Grid events on a running grid, with a scripted site: baselines, orders, what an event is worth, posted files."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import msgspec
import pytest
from tests.support.house import Script, World

from tokenworks.core.clock import ManualClock
from tokenworks.core.errors import BadRequest, ExchangeDown, NotFound
from tokenworks.core.units import MJ_PER_KWH, NS_PER_S, rate_of
from tokenworks.core.words import Provenance, Sourced
from tokenworks.curtail import CAP, DEFER, SLEEP, Order
from tokenworks.exchange.words import BillPower
from tokenworks.power.events import GridEvent
from tokenworks.power.supply import Supply
from tokenworks.respond import EVENTS_MAX, KEEP_NS, Responder, Watch, post_event
from tokenworks.site.agent import SiteAgent
from tokenworks.site.words import Site, SliceLoad

PRICE = Sourced(value=10**9, provenance=Provenance.LISTED)
SITE = Site(
    name="s", entity="e", jurisdiction=None, place=None, overhead=Sourced(value=0, provenance=Provenance.LISTED),
    supply=Supply(name="m", price=PRICE, carbon=None), base_idle_mw=1_000,
    loads=(SliceLoad(slice="x", idle_mw=1_000, busy_mw=8_000, power=Provenance.MODELLED, cost_nano_per_hour=None),),
)  # fmt: skip


class Room:
    """One watched site on a clock of its own."""

    def __init__(self, folder: Path) -> None:
        self.clock = ManualClock()
        self.agent = SiteAgent(SITE, self.clock, lambda interval: None)
        self.orders: dict[str, Order] = {}
        self.folder = folder
        self.bills: list[BillPower] = []
        self.asked, self.refuses = 0, False
        self.replicas = World(folder, [Script()]).replicas
        self.responder = Responder({"s": self.agent}, self.replicas, self.orders, self.clock, folder)

    @property
    def watch(self) -> Watch:
        return self.responder.watches["s"]

    def look(self, seconds: int) -> None:
        for _ in range(seconds):
            self.clock.advance(1)
            self.responder.look()

    def bill(self, bill: BillPower) -> None:
        self.asked += 1
        if self.refuses:
            raise ExchangeDown("the disk is full")
        self.bills.append(bill)

    def event(self, **more: Any) -> GridEvent:
        now = self.clock.now_ns()
        fields: dict[str, Any] = {"start_ns": now, "end_ns": now + 20 * NS_PER_S, "cut_permille": 250} | more
        return GridEvent(id="e", kind="curtail", **fields)

    def status(self) -> dict[str, Any]:
        return self.responder.status()[0]


@pytest.fixture
def room(tmp_path: Path) -> Room:
    return Room(tmp_path)


def test_power_by_the_model_is_idle_and_what_is_busy(room: Room) -> None:
    """2 W idle, 10 W with work on the slice, said to be modelled."""
    room.look(2)
    assert (room.status()["power_mw"], room.status()["power"]) == (2_000, "modelled")
    room.agent.begin("r", "x-1", "x", room.clock.now_ns())
    room.look(1)
    assert room.status()["power_mw"] == 10_000


def test_an_event_has_a_baseline_an_order_and_an_end(room: Room) -> None:
    """The cut is of what was drawn before; steps follow while nothing gives; afterwards nothing is left."""
    room.agent.begin("r", "x-1", "x", room.clock.now_ns())
    room.look(15)
    room.watch.hear(room.event(pay_nano_per_kwh=10**9))
    room.look(1)
    assert room.orders["s"].max_mw == 7_500
    assert room.orders["s"].step == DEFER
    room.look(4)
    assert room.orders["s"].step == CAP
    assert room.agent.state == "capped"
    room.look(4)
    assert room.orders["s"].step == SLEEP
    assert all(replica.rest for replica in room.replicas.values())
    room.agent.forget("r", "x-1", "x")
    room.look(12)
    assert room.orders == {}
    assert room.agent.state == "resident"
    assert not any(replica.rest for replica in room.replicas.values())
    [event] = room.status()["events"]
    assert event["baseline_mw"] == 10_000
    # 9 s at 10 W, 11 s at 2 W; asked for were 2.5 W less over 20 s.
    assert event["delivered_mj"] == 200_000 - 9 * 10_000 - 11 * 2_000
    assert event["asked_mj"] == 50_000
    assert event["nano"] == rate_of(50_000, 10**9, MJ_PER_KWH)
    assert abs(event["avoided_nano"] - rate_of(88_000, 10**9, MJ_PER_KWH)) <= 10, "rounded each second"
    assert event["baseline"] == "the 10 seconds before"
    room.clock.advance(KEEP_NS // NS_PER_S)
    room.look(1)
    assert room.status()["events"] == []


def test_an_event_that_is_over_is_billed_once(room: Room) -> None:
    """What the grid owes is a negative bill; while the journal refuses it is said again; a new price is a new sum. One
    that began before this process is not billed."""
    room.responder.watches["s"].bill = room.bill
    event = room.event(pay_nano_per_kwh=10**12, penalty_nano_per_kwh=10**11)
    room.watch.hear(event)
    early = room.event(start_ns=room.clock.now_ns() - 1, pay_nano_per_kwh=10**12)
    room.watch.hear(msgspec.structs.replace(early, id="early"))
    room.look(19)
    assert (room.bills, room.asked) == ([], 0)
    room.refuses = True
    room.look(2)
    room.refuses = False
    room.look(3)
    assert room.asked == 3, "twice refused, then taken"
    owed = {each["id"]: each["nano"] for each in room.status()["events"]}
    assert owed["e"] < 0, "nothing gave way: it is fined"
    said: dict[str, Any] = {"part": "events", "what": "event e", "nano": -owed["e"], "at_ns": event.end_ns}
    assert room.bills == [BillPower(site="s", supply="m", **said)]
    room.watch.hear(msgspec.structs.replace(event, penalty_nano_per_kwh=0))
    room.look(2)
    assert [bill.nano for bill in room.bills] == [-owed["e"], 0]


def test_a_posted_event_is_heard_changed_and_cancelled(room: Room) -> None:
    """By way of the data directory, where any gateway process can put it; a broken file is left out."""
    now = room.clock.now_ns()
    body = {"id": "e", "kind": "curtail", "start_ns": now, "end_ns": now + 60 * NS_PER_S, "cut_permille": 100}
    room.look(1)
    told = post_event(room.folder, ["s"], None, json.dumps(body).encode(), now)
    assert (told["site"], told["id"]) == ("s", "e")
    (room.folder / "grid-events" / "broken.json").write_text("{")
    room.look(1)
    assert room.orders["s"].max_mw == 1_800
    post_event(room.folder, ["s"], "s", json.dumps(body | {"cap_mw": 500, "cut_permille": None}).encode(), now)
    room.look(1)
    assert room.orders["s"].max_mw == 500
    post_event(room.folder, ["s"], "s", json.dumps(body | {"cancelled": True}).encode(), now)
    room.look(1)
    assert room.orders == {}
    assert room.status()["events"][0]["cancelled"]


def test_a_posted_event_must_make_sense(tmp_path: Path) -> None:
    """Its site, its body, and how many are known."""
    good = json.dumps({"id": "e", "kind": "disconnect", "start_ns": 1, "end_ns": 2}).encode()
    with pytest.raises(BadRequest, match="which site"):
        post_event(tmp_path, ["a", "b"], None, good, 0)
    with pytest.raises(NotFound, match="no site 'c'"):
        post_event(tmp_path, ["a", "b"], "c", good, 0)
    with pytest.raises(BadRequest, match="not a grid event"):
        post_event(tmp_path, ["a"], None, b"[]", 0)
    for number in range(EVENTS_MAX):
        post_event(tmp_path, ["a"], None, good.replace(b'"e"', b'"%d"' % number), 0)
    with pytest.raises(BadRequest, match="known already"):
        post_event(tmp_path, ["a"], None, good, 0)
    post_event(tmp_path, ["a"], None, good.replace(b'"e"', b'"7"'), 0)


def test_an_event_is_measured_against_similar_days_where_there_are_enough(room: Room) -> None:
    """What it drew before does not matter then: neither a site that was idle by chance nor one that raised its load."""
    history, now = room.watch.history, room.clock.now_ns()
    start, day = now + 20 * 86_400 * NS_PER_S, 86_400 * NS_PER_S
    for minute in range(20 * 1_440):
        at = now + minute * 60 * NS_PER_S
        history.see(at, at + 60 * NS_PER_S, 8_000, event=False)
    room.clock.advance(20 * day // NS_PER_S)
    room.look(1)
    room.watch.hear(room.event(start_ns=start + 2 * NS_PER_S, end_ns=start + 60 * NS_PER_S))
    room.look(2)
    [event] = room.status()["events"]
    assert (event["baseline_mw"], event["baseline"]) == (8_000, "the same time on ten similar days")
    assert room.orders["s"].max_mw == 6_000
