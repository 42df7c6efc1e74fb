"""The life of a request with a scripted engine: whatever happens, and whenever, no hold, slot or work outlives it."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from tests.support.house import USAGE, Listener, Script, World

from tokenworks.core.errors import BudgetSpent, EngineDown, EngineFailed, ExchangeDown, TokenworksError
from tokenworks.core.words import Usage
from tokenworks.exchange.words import ExtendHold, PlaceHold, Settle


@pytest.fixture
def world(tmp_path: Path) -> Iterator[Callable[..., World]]:
    """Makes worlds and closes their journals."""
    made: list[World] = []

    def make(*scripts: Script, limit_nano: int = 10**9, leased_nano: int | None = None) -> World:
        folder = tmp_path / str(len(made))
        folder.mkdir()
        made.append(World(folder, scripts, limit_nano, leased_nano))
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
        settled = w.settlements()
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
            assert not reply.answered, "an exception is only for what was not answered yet"
    assert failed == (stream or fail_at <= 1), "a whole answer has two steps"
    w.check_nothing_is_left()
    if failed and fail_at in (0, 1):
        assert all(settled.nano == 0 for settled in w.settlements())


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
    [settled] = w.settlements()
    assert settled.delivery.ending == "budget_spent"
    assert settled.usage == Usage(input=7, output=settled.delivery.chunks, certainty="counted")
    assert 16 < settled.delivery.chunks <= 1_024
    assert (settled.loss_nano, settled.loss_ustu) == (0, 0)
    assert 0 < settled.nano <= hold.nano
    w.check_nothing_is_left()
