"""The life of a request with a scripted engine: whatever happens, and whenever, no hold, slot or work outlives it."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path

import msgspec
import pytest

from tokenworks.agents.life import Headers, House, serve
from tokenworks.agents.metrics import Metrics
from tokenworks.brain.route import Offer, Scales
from tokenworks.compose import offer
from tokenworks.core.clock import WallClock
from tokenworks.core.errors import BudgetSpent, EngineDown, EngineFailed, ExchangeDown, TokenworksError
from tokenworks.core.ids import new_id, new_key
from tokenworks.core.words import Provenance, Request, Sourced, Usage
from tokenworks.engine.adapter import Chunk, Completion, Timing
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
    ExtendHold,
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
USAGE = Usage(input=7, output=3)


class Script:
    """An engine that does what the test says, yielding to the loop at every step as a real one would."""

    def __init__(self, fail_at: int | None = None, error: type[BaseException] = EngineFailed, chunks: int = 3) -> None:
        self.fail_at, self.error, self.chunks = fail_at, error, chunks
        self.aborted = 0
        self.asked = 0

    def _step(self, number: int) -> None:
        if number == self.fail_at:
            raise self.error("as scripted")

    async def complete(self, request: Request) -> Completion:
        self.asked += 1
        await asyncio.sleep(0)
        self._step(0)
        await asyncio.sleep(0)
        return Completion(body=b'{"choices": []}', usage=USAGE, timing=Timing(prefill_ns=1000, decode_ns=1000))

    async def stream(self, request: Request) -> Script:
        self.asked += 1
        await asyncio.sleep(0)
        self._step(0)
        return self

    async def __aiter__(self) -> AsyncIterator[Chunk]:
        for number in range(1, self.chunks + 1):
            await asyncio.sleep(0)
            self._step(number)
            yield Chunk(raw=b'data: {"choices": [1]}\n\n', output=True)
        yield Chunk(raw=b'data: {"choices": [], "usage": {}}\n\n', usage=USAGE, usage_only=True)
        await asyncio.sleep(0)
        self._step(self.chunks + 1)
        yield Chunk(raw=b"data: [DONE]\n\n", done=True)

    async def abort(self) -> None:
        self.aborted += 1

    async def count_input(self, request: Request) -> int | None:
        await asyncio.sleep(0)
        return 7

    async def healthy(self) -> bool:
        return True

    async def close(self) -> None:
        pass


class Listener:
    """A client that reads everything."""

    def __init__(self) -> None:
        self.status: int | None = None
        self.headers: dict[bytes, bytes] = {}
        self.body = b""
        self.ended = False

    async def start(self, status: int, headers: Headers) -> None:
        await asyncio.sleep(0)
        self.status, self.headers = status, dict(headers)

    async def send(self, data: bytes) -> None:
        await asyncio.sleep(0)
        self.body += data

    async def end(self) -> None:
        self.ended = True


class World:
    """A house over scripted engines, with a real desk, journal and site agent."""

    def __init__(
        self, folder: Path, scripts: list[Script], limit_nano: int = 10**9, leased_nano: int | None = None
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
                accounts=(Account(id="a", name="a", opened_ns=0),),
                budgets=(
                    Budget(id="root", account="a", parent=None, name="", limit_ustu=None, limit_nano=limit_nano),
                    Budget(id="leaf", account="a", parent="root", name="", limit_ustu=None, limit_nano=None),
                ),
                keys=(Key(id=KEY_ID, hash=HASH, account="a", budget="leaf", role="user", made_ns=0),),
            )
        )
        self.desk.identify(KEY)  # so that its counter is there to take a lease
        self.desk.take([Lease(counter="n:root", window_ns=0, allowance=self.leased_nano)], clock.now_ns())
        self.replicas = {}
        loads = []
        for number, script in enumerate(scripts):
            name = f"r{number}"
            spec = ReplicaSpec(name=name, model=MODEL, site="s", slice=name, slots=2, context_tokens=4096)
            replica = self.replicas[name] = Replica(spec, clock)
            replica.speaks_through(script)
            replica.turn(started)
            replica.turn(came_up)
            loads.append(
                SliceLoad(slice=name, idle_mw=1, busy_mw=1, power=Provenance.MODELLED, cost_nano_per_hour=None)
            )
        overhead = Sourced(value=0, provenance=Provenance.LISTED)
        supply = Supply(name="m", price=None, carbon=None)
        site = Site(
            name="s", entity="e", jurisdiction=None, place=None, overhead=overhead, supply=supply, loads=tuple(loads)
        )
        self.agent = SiteAgent(site, clock, lambda interval: None)

        def offers() -> list[Offer]:
            return [offer(replica, site) for replica in self.replicas.values()]

        self.house = House(
            desk=self.desk,
            replicas=self.replicas,
            sites={"s": self.agent},
            offers=offers,
            scales=Scales(),
            clock=clock,
            metrics=Metrics(),
            new_receipt=lambda: new_id("rcpt", clock.now_ns()),
        )

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

    def check_nothing_is_left(self) -> None:
        """After every request: each hold resolved once, nothing held, nothing running, no open work."""
        holds = [c.receipt for c in self.commands() if isinstance(c, PlaceHold)]
        settled = [c.settlement.receipt for c in self.commands() if isinstance(c, Settle)]
        assert sorted(holds) == sorted(settled)
        assert self.desk.open_holds == 0
        assert all(counter.held == 0 for counter in self.desk.counters())
        assert all(replica.running == 0 for replica in self.replicas.values())
        assert self.agent.known() == len(settled), "an open work was forgotten at its site"


@pytest.fixture
def world(tmp_path: Path) -> Iterator[Callable[..., World]]:
    """Makes worlds and closes their journals."""
    made: list[World] = []

    def make(*scripts: Script, limit_nano: int = 10**9, leased_nano: int | None = None) -> World:
        folder = tmp_path / str(len(made))
        folder.mkdir()
        made.append(World(folder, list(scripts), limit_nano, leased_nano))
        return made[-1]

    yield make
    for each in made:
        each.journal.close()


@pytest.mark.parametrize("stream", [False, True])
async def test_an_answer_settles_once(world: Callable[..., World], stream: bool) -> None:
    """The ordinary case: one hold, one settlement with the engine's usage, the receipt in the header."""
    w, reply = world(Script()), Listener()
    await w.serve(reply, stream=stream)
    [hold, settle] = w.commands()
    assert isinstance(hold, PlaceHold)
    assert isinstance(settle, Settle)
    assert settle.settlement.usage == USAGE
    assert settle.settlement.ustu == 7 * 20_000 + 3 * 80_000
    assert reply.headers[b"x-tokenworks-receipt"].decode() == hold.receipt
    assert reply.ended
    w.check_nothing_is_left()


@pytest.mark.parametrize("stream", [False, True])
async def test_cancelled_at_every_step_nothing_is_left(world: Callable[..., World], stream: bool) -> None:
    """F3: the client may leave at any await whatsoever; the hold always resolves and the engine is always aborted."""
    whole = 0
    for steps in range(60):
        script = Script()
        w, reply = world(script), Listener()
        task = asyncio.create_task(w.serve(reply, stream=stream))
        for _ in range(steps):
            await asyncio.sleep(0)
        task.cancel()
        try:
            await task
            whole += 1
        except asyncio.CancelledError:
            pass
        w.check_nothing_is_left()
        if stream and script.asked:
            assert script.aborted or steps <= 3
        settled = [c.settlement for c in w.commands() if isinstance(c, Settle)]
        if settled and settled[0].delivery.ending == "client_gone" and settled[0].delivery.chunks:
            assert settled[0].usage.input in (0, 7)
            assert settled[0].usage.output >= 1
    assert 0 < whole < 60, "some runs must end and some must be cut"


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("fail_at", range(5))
@pytest.mark.parametrize("error", [EngineFailed, EngineDown, ExchangeDown, RuntimeError])
async def test_failing_at_every_step_nothing_is_left(
    world: Callable[..., World], stream: bool, fail_at: int, error: type[Exception]
) -> None:
    """An engine may fail anywhere, even with a bug of ours; before any output the client owes nothing."""
    w, reply = world(Script(fail_at, error)), Listener()
    try:
        await w.serve(reply, stream=stream)
        failed = b'"error"' in reply.body
    except (TokenworksError, RuntimeError):
        failed = True
        if error is not RuntimeError:
            assert reply.status is None, "an exception is only for what was not answered yet"
    assert failed == (fail_at == 0 or stream)
    w.check_nothing_is_left()
    if failed and fail_at in (0, 1):
        assert all(c.settlement.nano == 0 for c in w.commands() if isinstance(c, Settle))


async def test_another_replica_takes_over_before_the_first_byte(world: Callable[..., World]) -> None:
    """A replica that is down is replaced under the same hold and receipt; it is billed once and the reason is kept."""
    down, up = Script(0, EngineDown), Script()
    w, reply = world(down, up), Listener()
    await w.serve(reply, stream=True)
    assert (down.asked, up.asked) == (1, 1)
    [hold, settle] = w.commands()
    assert isinstance(hold, PlaceHold)
    assert isinstance(settle, Settle)
    assert settle.settlement.decision is not None
    assert settle.settlement.decision.chosen.replica == "r1"
    assert settle.settlement.decision.refused == {"r0": "as scripted"}
    w.check_nothing_is_left()


async def test_no_replica_takes_over_after_the_first_byte(world: Callable[..., World]) -> None:
    """Once text is out nothing is tried again: the stream ends with an error and the delivered chunks are billed."""
    broken, spare = Script(3, EngineFailed), Script()
    w, reply = world(broken, spare), Listener()
    await w.serve(reply, stream=True)
    assert spare.asked == 0
    assert b'"engine_failed"' in reply.body
    assert b"[DONE]" not in reply.body
    [_, settle] = w.commands()
    assert isinstance(settle, Settle)
    assert settle.settlement.usage == Usage(output=2, certainty="counted")
    w.check_nothing_is_left()


async def test_concurrent_requests_cannot_pass_on_one_balance(world: Callable[..., World]) -> None:
    """F1: of many simultaneous requests only as many pass as the budget covers in the worst case."""
    script = Script()
    probe = world(script)
    await probe.serve(Listener())
    [hold, *_] = probe.commands()
    assert isinstance(hold, PlaceHold)
    w = world(script, limit_nano=3 * hold.nano)
    replies = [Listener() for _ in range(20)]
    ended = await asyncio.gather(*(w.serve(reply) for reply in replies), return_exceptions=True)
    passed = [result for result in ended if result is None]
    refused = [result for result in ended if isinstance(result, TokenworksError)]
    assert len(passed) + len(refused) == 20
    assert {error.code for error in refused} <= {"budget_exceeded", "engine_unavailable"}
    spent = sum(counter.used for counter in w.desk.counters() if counter.id == "n:root")
    assert 0 < spent <= 3 * hold.nano
    w.check_nothing_is_left()


def settlements(world: World) -> list[Settlement]:
    return [c.settlement for c in world.commands() if isinstance(c, Settle)]


@pytest.mark.parametrize("stream", [False, True])
async def test_a_short_lease_is_refilled_and_the_request_served(world: Callable[..., World], stream: bool) -> None:
    """The gateway has leased nothing yet: it asks the ledger for what the request needs, once, and serves it whole."""
    w, reply = world(Script(), leased_nano=0), Listener()
    await w.serve(reply, stream=stream)
    [asked] = w.asked
    [hold, settle] = w.commands()
    assert isinstance(hold, PlaceHold)
    assert isinstance(settle, Settle)
    assert asked == {"n:root": hold.nano}
    assert reply.ended
    assert b"x-tokenworks-max-tokens" not in reply.headers
    w.check_nothing_is_left()


@pytest.mark.parametrize("steps", range(12))
async def test_cancelled_while_it_waits_for_a_lease(world: Callable[..., World], steps: int) -> None:
    """The client leaves while the ledger is asked: nothing is held for it afterwards, and the lease stays usable."""
    w = world(Script(), leased_nano=0)
    task = asyncio.create_task(w.serve(Listener(), stream=True))
    for _ in range(steps):
        await asyncio.sleep(0)
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)
    w.check_nothing_is_left()
    await w.serve(Listener())
    w.check_nothing_is_left()


async def test_an_answer_is_cut_to_what_the_budget_affords(world: Callable[..., World]) -> None:
    """Not enough for what was asked, enough for some tokens: the header says how many, and no more are held."""
    probe = world(Script())
    await probe.serve(Listener(), max_tokens=40)
    [hold, *_] = probe.commands()
    assert isinstance(hold, PlaceHold)
    w, reply = world(Script(), limit_nano=hold.nano, leased_nano=0), Listener()
    await w.serve(reply, max_tokens=999)
    # "999" is one byte longer than "40", and the input's worst case counts the messages only.
    assert reply.headers[b"x-tokenworks-max-tokens"] == b"40"
    [cut, _] = w.commands()
    assert isinstance(cut, PlaceHold)
    assert cut.nano <= hold.nano
    w.check_nothing_is_left()
    with pytest.raises(BudgetSpent):
        await world(Script(), limit_nano=hold.nano // 10, leased_nano=0).serve(Listener(), max_tokens=999)


async def test_a_long_stream_holds_more_as_it_grows(world: Callable[..., World]) -> None:
    """Beyond its first slice the hold is extended, from the ledger when the lease is short; nothing is a loss."""
    w, reply = world(Script(chunks=2_000), leased_nano=0), Listener()
    await w.serve(reply, stream=True, max_tokens=3_000)
    hold, *extensions, settle = w.commands()
    assert isinstance(hold, PlaceHold)
    assert isinstance(settle, Settle)
    assert len(extensions) == 2
    assert all(isinstance(extension, ExtendHold) for extension in extensions)
    assert settle.settlement.held_nano == hold.nano + sum(e.nano for e in extensions if isinstance(e, ExtendHold))
    assert settle.settlement.delivery.ending == "complete"
    assert b"[DONE]" in reply.body
    w.check_nothing_is_left()


async def test_a_budget_that_ends_in_mid_stream_ends_the_stream(world: Callable[..., World]) -> None:
    """The budget covers the first slice only: an error event, what was delivered is billed as counted, no loss."""
    probe = world(Script())
    await probe.serve(Listener(), stream=True, max_tokens=3_000)
    [hold, *_] = probe.commands()
    assert isinstance(hold, PlaceHold)
    script = Script(chunks=2_000)
    w, reply = world(script, limit_nano=hold.nano, leased_nano=0), Listener()
    await w.serve(reply, stream=True, max_tokens=3_000)
    assert b'"budget_exceeded"' in reply.body
    assert b"[DONE]" not in reply.body
    assert reply.ended
    assert script.aborted == 1
    [settled] = settlements(w)
    assert settled.delivery.ending == "budget_spent"
    assert settled.usage == Usage(input=7, output=settled.delivery.chunks, certainty="counted")
    assert 16 < settled.delivery.chunks <= 1_024
    assert (settled.loss_nano, settled.loss_ustu) == (0, 0)
    assert 0 < settled.nano <= hold.nano
    w.check_nothing_is_left()
