"""The life of a request, from the key to the receipt. Read ``serve`` first: it is the whole house in one function.

It knows no transport: what it needs of one is the ``Reply`` port, which ``lane.py`` is.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from functools import partial
from typing import Protocol

from tokenworks.agents.answers import error_event, last_events, with_receipt
from tokenworks.agents.overage import RULES, Served
from tokenworks.agents.promise import extend, promise, trim
from tokenworks.agents.settling import RECEIPT_HEADER, Answering, House, begin, decide, give_back, headers, settle
from tokenworks.agents.shape import parse_request
from tokenworks.agents.worst import SLICE_TOKENS, hold_worst, trimmed
from tokenworks.brain.route import Offer, eligible
from tokenworks.core.errors import BudgetSpent, EngineDown, ExchangeDown, TokenworksError
from tokenworks.core.words import Decision, Endpoint, Request, Usage
from tokenworks.engine.adapter import TokenStream
from tokenworks.engine.record import Replica
from tokenworks.exchange.budget import Shortage
from tokenworks.exchange.desk import Hold, Identity
from tokenworks.exchange.words import Settlement

__all__ = ["RECEIPT_HEADER", "Flow", "House", "Reply", "Still", "serve"]

ATTEMPTS_MAX = 3
"""Replicas tried for one request; only before its first byte."""


class Flow(Protocol):
    """What can be told that the client is slow."""

    def pause(self) -> None: ...
    def resume(self) -> None: ...


class Reply(Protocol):
    """The client's side. Nothing here waits: a client that is slow is told to the ``flow`` that ``start`` was given,
    one that hangs up by cancelling ``serve`` where it waits.
    """

    def whole(self, headers: bytes, body: bytes, status: int = 200) -> None:
        """The answer is this JSON. ``headers`` are whole lines."""
        ...

    def start(self, headers: bytes, flow: Flow) -> None:
        """The answer is a stream of events."""
        ...

    def send(self, events: bytes) -> None:
        """Whole events of it."""
        ...

    def end(self) -> None:
        """The stream is whole."""
        ...


class Still:
    """The flow of what is there already."""

    def pause(self) -> None:
        return

    def resume(self) -> None:
        return


_STILL = Still()


async def serve(
    house: House, endpoint: Endpoint, key: str | Identity | None, body: bytes, reply: Reply, *, deferrable: bool = False
) -> None:
    """Serve one request. Raises a TokenworksError only before anything was sent to the client.

    ``key``: what was presented, or whose it was found to be. ``deferrable``: it can wait while the grid asks for less
    power.
    """
    arrived_ns = house.clock.now_ns()
    identity = key if isinstance(key, Identity) else house.desk.identify(key)
    request = parse_request(endpoint, body, house.new_receipt(arrived_ns), arrived_ns)
    found = Served(request, *eligible(request, house.offers))
    if house.overflow.orders:
        found = await house.overflow.admitted(found, deferrable=deferrable)
    if identity.account.overage in RULES:
        await house.overflow.ruled(identity, found, partial(_serve, house, identity, reply))
    else:
        await _serve(house, identity, reply, found)


async def _serve(house: House, identity: Identity, reply: Reply, found: Served) -> None:
    request, options, refused = found
    hold: Hold | None
    try:
        hold = hold_worst(house.desk, identity, request, options)
    except Shortage:
        hold = None
    if hold is None:
        hold, request = await promise(house.desk, identity, request, options)
    decision: Decision | None = None
    try:
        for attempt in range(ATTEMPTS_MAX):
            decision = decide(house, request, options, refused)
            if not hold.written:
                await _write(house, hold, request, options, decision)
            try:
                answer = _stream if request.stream else _whole
                await answer(house, request, hold, decision, reply)
                return
            except EngineDown as error:
                # Nothing has reached the client: another replica may try, under the same hold and receipt.
                tried = house.replicas[decision.chosen.replica].spec
                house.sites[tried.site].forget(request.id, tried.name, tried.slice)
                refused = {**refused, decision.chosen.replica: error.message}
                options = [option for option in options if option.replica != decision.chosen.replica]
                if not options or attempt + 1 == ATTEMPTS_MAX:
                    raise
    except TokenworksError as error:
        error.receipt = request.id if hold.written else None
        raise
    finally:
        if hold.open:
            give_back(house, request, hold, decision)


async def _write(house: House, hold: Hold, request: Request, options: Sequence[Offer], decision: Decision) -> None:
    """The hold goes into the journal before an engine is asked."""
    amount = trimmed(hold, request, options, decision) or hold.amount
    short = False
    try:
        house.desk.trim(hold, amount, decision.chosen.site)
    except Shortage:
        short = True
    if short:
        await trim(house.desk, hold, amount, decision)
    if hold.waits:
        await house.desk.safe(hold)


async def _whole(house: House, request: Request, hold: Hold, decision: Decision, reply: Reply) -> None:
    """One answer in one piece."""
    replica = house.replicas[decision.chosen.replica]
    state = begin(house, request, replica)
    try:
        completion = await replica.adapter.complete(request)
    except asyncio.CancelledError:
        # Nothing was delivered and nobody counted: the client owes nothing.
        settle(house, request, hold, decision, state, "client_gone")
        raise
    except TokenworksError as error:
        replica.heard(error)
        if isinstance(error, EngineDown):
            raise
        settle(house, request, hold, decision, state, "engine_failed" if error.status >= 500 else "refused")
        raise
    finally:
        replica.end()
    state.usage, state.timing, state.chunks = completion.usage, completion.timing, 1
    settled = settle(house, request, hold, decision, state, "complete")
    if hold.waits:
        await house.desk.safe(hold)
    reply.whole(headers(request), with_receipt(completion.body, settled))


async def _stream(house: House, request: Request, hold: Hold, decision: Decision, reply: Reply) -> None:
    """An answer in events, relayed as they come. The books have it before its last event leaves."""
    replica = house.replicas[decision.chosen.replica]
    state = begin(house, request, replica)
    error: BaseException | None = None
    stream: TokenStream | None = None
    ending = "complete"
    try:
        stream = await replica.adapter.stream(request)
        await _relay(house, request, hold, decision, state, stream, reply)
    except BaseException as broken:  # looked at below: what is compiled cannot wait while it handles an error
        error = broken
    try:
        if stream is not None:
            state.chunks, state.usage, state.timing = stream.chunks, stream.usage, stream.timing
            await stream.abort()
        if isinstance(error, TokenworksError):
            replica.heard(error)
            if isinstance(error, EngineDown) and not state.sent:
                raise error
            ending = "engine_failed" if error.status >= 500 else "refused"
        elif isinstance(error, asyncio.CancelledError):
            await _settle_cut(house, request, hold, decision, state, replica, "client_gone")
            raise error
        elif error is not None:
            raise error
    finally:
        replica.end()
    try:
        if isinstance(error, BudgetSpent):
            settled = await _settle_cut(house, request, hold, decision, state, replica, "budget_spent")
        else:
            settled = settle(house, request, hold, decision, state, ending)
            if hold.waits:
                await house.desk.safe(hold)
        last = last_events(request, stream.held if stream is not None else (), settled)
    except ExchangeDown as refused:
        error, last = error or refused, b""
    if isinstance(error, TokenworksError):
        if not state.sent:
            raise error
        last = error_event(error, request.endpoint)
    elif not state.sent:
        reply.start(headers(request), _STILL)
    reply.send(last)
    reply.end()


async def _relay(
    house: House,
    request: Request,
    hold: Hold,
    decision: Decision,
    state: Answering,
    stream: TokenStream,
    reply: Reply,
) -> None:
    """All of the stream but what is held back at its end."""

    def sink(events: bytes) -> None:
        if not state.sent:
            state.first_ns, state.sent = house.clock.now_ns(), True
            reply.start(headers(request), stream)
        reply.send(events)

    slice_tokens = SLICE_TOKENS * request.choices
    # The hold grows before it is used up, since a chunk can be more than one token.
    reach = slice_tokens * 7 // 8
    while not await stream.relay(sink, reach):
        await extend(house.desk, request, hold, decision)
        reach += slice_tokens


async def _settle_cut(
    house: House,
    request: Request,
    hold: Hold,
    decision: Decision,
    state: Answering,
    replica: Replica,
    ending: str,
) -> Settlement:
    """A stream was cut short: its input and what was made until the abort, counted by us since no report came."""
    if state.chunks and state.usage is None:
        counted = await asyncio.shield(_count_input(replica, request))
        state.usage = Usage(input=counted or 0, output=state.chunks, certainty="counted")
    return settle(house, request, hold, decision, state, ending)


async def _count_input(replica: Replica, request: Request) -> int | None:
    try:
        return await replica.adapter.count_input(request)
    except TokenworksError:
        return None
