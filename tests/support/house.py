"""A whole house over scripted engines, with a real desk, journal and site agent, for tests of the front door."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from pathlib import Path

import msgspec

from tokenworks.agents.life import Flow, House, serve
from tokenworks.agents.metrics import Metrics
from tokenworks.agents.overage import Overflow
from tokenworks.brain.route import Scales
from tokenworks.compose import offer
from tokenworks.core.clock import WallClock
from tokenworks.core.errors import EngineFailed
from tokenworks.core.ids import new_id, new_key
from tokenworks.core.words import Provenance, Request, Sourced, Usage
from tokenworks.engine.adapter import Adapter, Completion, Timing
from tokenworks.engine.record import Replica
from tokenworks.engine.replica import ReplicaSpec, came_up, started
from tokenworks.exchange.desk import Desk
from tokenworks.exchange.journal import START, Journal, read_from
from tokenworks.exchange.prices import default_prices
from tokenworks.exchange.words import (
    Account,
    AnyCommand,
    Budget,
    Directory,
    Key,
    Lease,
    PlaceHold,
    Settle,
    Settlement,
    decode_command,
)
from tokenworks.power.supply import Supply
from tokenworks.site.agent import SiteAgent
from tokenworks.site.words import Site, SliceLoad

MODEL = "smollm2-135m-instruct"
KEY_ID, KEY, HASH = new_key()
OTHER_ID, OTHER_KEY, OTHER_HASH = new_key()
"""Of another account."""
USAGE = Usage(input=7, output=3)
SLOTS = 64


class Script:
    """An engine that does what the test says, yielding to the loop at every step as a real one would.

    It answers each request with that request's own last message. ``gate`` holds back all that comes before step
    ``gate_at``: 0 is the acceptance, then one step for each chunk, then the end.
    """

    def __init__(self, fail_at: int | None = None, error: type[BaseException] = EngineFailed, chunks: int = 3) -> None:
        self.fail_at, self.error, self.chunks = fail_at, error, chunks
        self.gate, self.gate_at = asyncio.Event(), 1
        self.gate.set()
        self.asked = self.aborted = self.pauses = self.resumes = 0
        self.padding = ""

    async def step(self, number: int) -> None:
        await asyncio.sleep(0)
        if number == self.gate_at:
            await self.gate.wait()
        if number == self.fail_at:
            raise self.error("as scripted")

    async def complete(self, request: Request) -> Completion:
        self.asked += 1
        await self.step(0)
        await self.step(1)
        body = msgspec.json.encode({"choices": [{"message": {"content": said(request) + self.padding}}]})
        return Completion(body=body, usage=USAGE, timing=Timing(prefill_ns=1000, decode_ns=1000))

    async def stream(self, request: Request) -> ScriptedStream:
        self.asked += 1
        await self.step(0)
        return ScriptedStream(self, said(request) + self.padding)

    async def count_input(self, request: Request) -> int | None:
        await asyncio.sleep(0)
        return 7

    async def healthy(self) -> bool:
        return True

    async def close(self) -> None:
        pass


class ScriptedStream:
    """One answer of a Script: the text in every chunk, then the usage, which is held."""

    def __init__(self, script: Script, text: str) -> None:
        self._script = script
        self._event = b"data: " + msgspec.json.encode({"choices": [{"delta": {"content": text}}]}) + b"\n\n"
        self._flowing = asyncio.Event()
        self._flowing.set()
        self.chunks = 0
        self.usage: Usage | None = None
        self.timing: Timing | None = None
        self.held: list[bytes] = []

    async def relay(self, sink: Callable[[bytes], None], chunks_max: int) -> bool:
        while self.chunks < self._script.chunks:
            if self.chunks >= chunks_max:
                return False
            await self._flowing.wait()
            await self._script.step(self.chunks + 1)
            self.chunks += 1
            sink(self._event)
        self.usage = USAGE
        self.held.append(b'data: {"choices": [], "usage": {}}\n\n')
        await self._script.step(self._script.chunks + 1)
        return True

    def pause(self) -> None:
        self._script.pauses += 1
        self._flowing.clear()

    def resume(self) -> None:
        self._script.resumes += 1
        self._flowing.set()

    async def abort(self) -> None:
        self._script.aborted += 1


def said(request: Request) -> str:
    """What the client said last."""
    asked = msgspec.json.decode(request.body.decode(errors="replace"))  # as lenient as who let it in
    if "messages" in asked:
        return str(asked["messages"][-1].get("content"))
    return str(asked.get("prompt") or asked.get("input"))


class Listener:
    """A client that reads everything."""

    def __init__(self) -> None:
        self.answered = False
        self.headers: dict[bytes, bytes] = {}
        self.body = b""
        self.ended = False

    def whole(self, headers: bytes, body: bytes, status: int = 200) -> None:
        self._head(headers)
        self.body, self.ended = body, True

    def start(self, headers: bytes, flow: Flow) -> None:
        self._head(headers)

    def _head(self, headers: bytes) -> None:
        assert not self.answered, "one answer a request"
        assert headers.endswith(b"\r\n"), "headers are whole lines"
        self.answered = True
        self.headers = dict(line.split(b": ", 1) for line in headers.split(b"\r\n")[:-1])

    def send(self, events: bytes) -> None:
        assert self.answered
        assert not self.ended
        self.body += events

    def end(self) -> None:
        self.ended = True


class World:
    """A house over engines; ``limit_nano`` is what the account may spend."""

    def __init__(
        self, folder: Path, engines: Sequence[Adapter], limit_nano: int = 10**9, leased_nano: int | None = None
    ) -> None:
        """The gateway has leased the whole limit, or ``leased_nano`` of it; then it asks this world for the rest."""
        self.clock = clock = WallClock()
        self.limit_nano, self.asked = limit_nano, list[dict[str, int]]()
        self.leased_nano = limit_nano if leased_nano is None else leased_nano
        self.journal = Journal(folder / "journal", "g", 1)
        self.folder = folder / "journal"
        ask = None if leased_nano is None else self._lease
        self.desk = Desk(default_prices("USD"), clock, self.journal, ask)
        self.desk.learn(
            Directory(
                accounts=(Account(id="a", name="a", opened_ns=0), Account(id="b", name="b", opened_ns=0)),
                budgets=(
                    Budget(id="root", account="a", parent=None, name="", limit_ustu=None, limit_nano=limit_nano),
                    Budget(id="leaf", account="a", parent="root", name="", limit_ustu=None, limit_nano=None),
                    Budget(id="other", account="b", parent=None, name="", limit_ustu=None, limit_nano=limit_nano),
                ),
                keys=(
                    Key(id=KEY_ID, hash=HASH, account="a", budget="leaf", role="user", made_ns=0),
                    Key(id=OTHER_ID, hash=OTHER_HASH, account="b", budget="other", role="user", made_ns=0),
                ),
            )
        )
        for key in (KEY, OTHER_KEY):
            self.desk.identify(key)  # so that its counter is there to take a lease
        leases = [Lease(counter=name, window_ns=0, allowance=self.leased_nano) for name in ("n:root", "n:other")]
        self.desk.take(leases, clock.now_ns())
        self.replicas = {f"r{number}": self._replica(f"r{number}", engine) for number, engine in enumerate(engines)}
        loads = tuple(
            SliceLoad(slice=name, idle_mw=1, busy_mw=1, power=Provenance.MODELLED, cost_nano_per_hour=None)
            for name in self.replicas
        )
        overhead = Sourced(value=0, provenance=Provenance.LISTED)
        supply = Supply(name="m", price=None, carbon=None)
        site = Site(name="s", entity="e", jurisdiction=None, place=None, overhead=overhead, supply=supply, loads=loads)
        self.agent = SiteAgent(site, clock, lambda interval: None)
        offers = {MODEL: [offer(replica, site) for replica in self.replicas.values()]}
        self.house = House(
            desk=self.desk,
            replicas=self.replicas,
            sites={"s": self.agent},
            offers=offers,
            scales=Scales(),
            clock=clock,
            metrics=Metrics(),
            overflow=Overflow(self.desk, offers, clock),
            new_receipt=lambda arrived_ns: new_id("rcpt", arrived_ns),
        )

    def _replica(self, name: str, engine: Adapter) -> Replica:
        spec = ReplicaSpec(name=name, model=MODEL, site="s", slice=name, slots=SLOTS, context_tokens=4096)
        replica = Replica(spec, self.clock)
        replica.speaks_through(engine)
        replica.turn(started)
        replica.turn(came_up)
        return replica

    async def _lease(self, wanted: dict[str, int], returned: dict[str, int]) -> list[Lease]:
        """The ledger's answer: what is wanted, as far as the limit goes."""
        await asyncio.sleep(0)
        self.asked.append(wanted)
        self.leased_nano = min(self.limit_nano, self.leased_nano + wanted.get("n:root", 0))
        return [Lease(counter="n:root", window_ns=0, allowance=self.leased_nano)]

    async def serve(self, reply: Listener, **body: object) -> None:
        asked = {"model": MODEL, "messages": [{"role": "user", "content": "hi"}], "max_tokens": 5, **body}
        await serve(self.house, "chat", KEY, msgspec.json.encode(asked), reply)

    def commands(self) -> list[AnyCommand]:
        return [decode_command(record) for record, _ in read_from(self.folder, START)]

    def settlements(self) -> list[Settlement]:
        return [c.settlement for c in self.commands() if isinstance(c, Settle)]

    def check_nothing_is_left(self) -> None:
        """After every request: each hold resolved once, nothing held, nothing running, no open work."""
        holds = [c.receipt for c in self.commands() if isinstance(c, PlaceHold)]
        settled = [settlement.receipt for settlement in self.settlements()]
        assert sorted(holds) == sorted(settled)
        assert self.desk.open_holds == 0
        assert all(counter.held == 0 for counter in self.desk.counters())
        assert all(replica.running == 0 for replica in self.replicas.values())
        assert self.agent.known() == len(settled), "an open work was forgotten at its site"
