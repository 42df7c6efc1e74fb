"""The life of a request, from the key to the receipt. Read ``serve`` first: it is the whole house in one function.

It knows no transport: what it needs of one is the ``Reply`` port, which ``lane.py`` is.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

import msgspec

from tokenworks.agents.answers import error_event, last_events, with_receipt
from tokenworks.agents.metrics import Metrics
from tokenworks.agents.overage import RULES, Overflow, Served, told
from tokenworks.agents.promise import SLICE_TOKENS, extend, promise, trim
from tokenworks.agents.shape import parse_request
from tokenworks.brain.route import Offer, Offers, Scales, choose, eligible
from tokenworks.core.clock import Clock
from tokenworks.core.errors import BudgetSpent, EngineDown, ExchangeDown, TokenworksError
from tokenworks.core.words import Decision, Delivery, Endpoint, Provenance, Request, Usage, Work
from tokenworks.engine.adapter import Timing
from tokenworks.engine.fleet import Replica
from tokenworks.exchange.desk import Desk, Hold, Identity
from tokenworks.exchange.words import Settlement
from tokenworks.site.agent import SiteAgent

ATTEMPTS_MAX = 3
"""Replicas tried for one request; only before its first byte."""
RECEIPT_HEADER = b"x-tokenworks-receipt"
CLAMP_HEADER = b"x-tokenworks-max-tokens"
"""Tells a client that its max_tokens was cut to what its budget affords, and to what."""


class Flow(Protocol):
    """What can be told that the client is slow."""

    def pause(self) -> None: ...
    def resume(self) -> None: ...


class Reply(Protocol):
    """The client's side. Nothing here waits: a client that is slow is told to the ``flow`` that ``start`` was given,
    one that hangs up by cancelling the task that runs ``serve``.
    """

    def whole(self, headers: bytes, body: bytes) -> None:
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


@dataclass(slots=True)
class House:
    """The floors below, as the front door needs them."""

    desk: Desk
    replicas: Mapping[str, Replica]
    sites: Mapping[str, SiteAgent]
    offers: Offers
    scales: Scales
    clock: Clock
    metrics: Metrics
    overflow: Overflow
    new_receipt: Callable[[int], str]
    """The id of a request that arrived at this time."""
    brain_ns: int = 0
    """Time spent deciding since it was last taken, for the energy of the house itself."""


class Answering:
    """What is known of one answer while it is made."""

    __slots__ = ("chunks", "dispatched_ns", "first_ns", "sent", "timing", "usage")

    def __init__(self, dispatched_ns: int) -> None:
        self.dispatched_ns = dispatched_ns
        self.first_ns: int | None = None
        self.chunks = 0
        self.usage: Usage | None = None
        self.timing: Timing | None = None
        self.sent = False


async def serve(
    house: House, endpoint: Endpoint, key: str | None, body: bytes, reply: Reply, *, deferrable: bool = False
) -> None:
    """Serve one request. Raises a TokenworksError only before anything was sent to the client.

    ``deferrable``: it can wait while the grid asks for less power.
    """
    arrived_ns = house.clock.now_ns()
    identity = house.desk.identify(key)
    request = parse_request(endpoint, body, house.new_receipt(arrived_ns), arrived_ns)
    found = Served(request, *eligible(request, house.offers))
    if house.overflow.orders:
        found = await house.overflow.admitted(found, deferrable=deferrable)
    if identity.account.overage not in RULES:
        await _serve(house, identity, *found, reply)
        return
    async with house.overflow.served(identity, found) as ruled:
        await _serve(house, identity, *ruled, reply)


async def _serve(
    house: House, identity: Identity, request: Request, options: list[Offer], refused: dict[str, str], reply: Reply
) -> None:
    hold, request = await promise(house.desk, identity, request, options)
    decision: Decision | None = None
    try:
        for attempt in range(ATTEMPTS_MAX):
            decision = _decide(house, request, options, refused)
            if not hold.written:
                await trim(house.desk, hold, request, options, decision)
                await house.desk.safe(hold)
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
            _give_back(house, request, hold, decision)


def _give_back(house: House, request: Request, hold: Hold, decision: Decision | None) -> None:
    """No hold outlives its request, whatever happened: unwritten it is released, written it settles at nothing."""
    if hold.written and decision is not None:
        with contextlib.suppress(ExchangeDown):  # then it is in the desk's backlog
            _settle(house, request, hold, decision, Answering(house.clock.now_ns()), "engine_failed")
    else:
        house.desk.release(hold)


def _decide(house: House, request: Request, options: Sequence[Offer], refused: dict[str, str]) -> Decision:
    began = house.clock.now_ns()
    decision = choose(request, options, refused, house.scales)
    took = house.clock.now_ns() - began
    house.brain_ns += took
    return msgspec.structs.replace(decision, decide_ns=took)


async def _whole(house: House, request: Request, hold: Hold, decision: Decision, reply: Reply) -> None:
    """One answer in one piece."""
    replica = house.replicas[decision.chosen.replica]
    state = _begin(house, request, replica)
    try:
        completion = await replica.adapter.complete(request)
    except asyncio.CancelledError:
        # Nothing was delivered and nobody counted: the client owes nothing.
        _settle(house, request, hold, decision, state, "client_gone")
        raise
    except TokenworksError as error:
        replica.heard(error)
        if isinstance(error, EngineDown):
            raise
        _settle(house, request, hold, decision, state, "engine_failed" if error.status >= 500 else "refused")
        raise
    finally:
        replica.end()
    state.usage, state.timing, state.chunks = completion.usage, completion.timing, 1
    settled = _settle(house, request, hold, decision, state, "complete")
    await house.desk.safe(hold)
    reply.whole(_headers(request), with_receipt(completion.body, settled))


async def _stream(house: House, request: Request, hold: Hold, decision: Decision, reply: Reply) -> None:
    """An answer in events, relayed as they come. The books have it before its last event leaves."""
    replica = house.replicas[decision.chosen.replica]
    state = _begin(house, request, replica)
    error: TokenworksError | None = None
    held: Sequence[bytes] = ()
    ending = "complete"
    try:
        stream = await replica.adapter.stream(request)

        def sink(events: bytes) -> None:
            if not state.sent:
                state.first_ns, state.sent = house.clock.now_ns(), True
                reply.start(_headers(request), stream)
            reply.send(events)

        try:
            slice_tokens = SLICE_TOKENS * request.choices
            # The hold grows before it is used up, since a chunk can be more than one token.
            reach = slice_tokens * 7 // 8
            while not await stream.relay(sink, reach):
                await extend(house.desk, request, hold, decision)
                reach += slice_tokens
            held = stream.held
        finally:
            state.chunks, state.usage, state.timing = stream.chunks, stream.usage, stream.timing
            await stream.abort()
    except asyncio.CancelledError:
        await _settle_cut(house, request, hold, decision, state, replica, "client_gone")
        raise
    except TokenworksError as broken:
        replica.heard(broken)
        if isinstance(broken, EngineDown) and not state.sent:
            raise
        error, ending = broken, "engine_failed" if broken.status >= 500 else "refused"
    finally:
        replica.end()
    try:
        if isinstance(error, BudgetSpent):
            settled = await _settle_cut(house, request, hold, decision, state, replica, "budget_spent")
        else:
            settled = _settle(house, request, hold, decision, state, ending)
            await house.desk.safe(hold)
        last = last_events(request, held, settled)
    except ExchangeDown as refused:
        error, last = error or refused, b""
    if error is not None:
        if not state.sent:
            raise error
        last = error_event(error, request.endpoint)
    elif not state.sent:
        reply.start(_headers(request), _STILL)
    reply.send(last)
    reply.end()


def _headers(request: Request) -> bytes:
    lines = b"%b: %b\r\n" % (RECEIPT_HEADER, request.id.encode())
    if request.clamped and request.output_max is not None:
        lines += b"%b: %d\r\n" % (CLAMP_HEADER, request.output_max)
    return lines + told(request) if request.model_asked or request.lane else lines


def _begin(house: House, request: Request, replica: Replica) -> Answering:
    """Count the request in at its replica and at its site. A replica without a slice of ours is not metered."""
    now, spec = house.clock.now_ns(), replica.spec
    replica.begin()
    try:
        if spec.slice:
            house.sites[spec.site].begin(request.id, spec.name, spec.slice, now)
    except TokenworksError:
        replica.end()
        raise
    return Answering(now)


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
    return _settle(house, request, hold, decision, state, ending)


async def _count_input(replica: Replica, request: Request) -> int | None:
    try:
        return await replica.adapter.count_input(request)
    except TokenworksError:
        return None


def _settle(
    house: House, request: Request, hold: Hold, decision: Decision, state: Answering, ending: str
) -> Settlement:
    """Write the settlement; what failed before any output is free, whatever the engine reports."""
    now = house.clock.now_ns()
    usage = state.usage if state.chunks else None
    if usage is None:
        usage = Usage(output=state.chunks, certainty="counted") if state.chunks else Usage(certainty="none")
    replica = house.replicas[decision.chosen.replica]
    timing = state.timing
    worked_ns = (timing.prefill_ns or 0) + (timing.decode_ns or 0) if timing else 0
    start_ns = max(state.dispatched_ns, now - worked_ns) if worked_ns else state.dispatched_ns
    work = Work(
        receipt=request.id,
        replica=replica.spec.name,
        site=replica.spec.site,
        slice=replica.spec.slice,
        start_ns=start_ns,
        first_ns=state.first_ns,
        end_ns=now,
        input_tokens=usage.input + usage.cached_input + usage.cache_write,
        output_tokens=usage.output + usage.reasoning,
        cached_tokens=usage.cached_input,
    )
    site = house.sites[replica.spec.site]
    metered = bool(replica.spec.slice)
    if metered:
        site.end(work)
    delivery = Delivery(
        ending=ending,  # type: ignore[arg-type]  # one of its literals, by the callers above
        chunks=state.chunks,
        queued_ns=start_ns - state.dispatched_ns if timing else None,
        prefill_ns=timing.prefill_ns if timing else None,
        decode_ns=timing.decode_ns if timing else None,
        ttft_ns=state.first_ns - request.arrived_ns if state.first_ns else None,
        total_ns=now - request.arrived_ns,
        timing=Provenance.METERED if timing else Provenance.MEASURED,
    )
    if timing is not None:
        replica.observe(usage, timing)
    if ending == "complete":
        replica.heard(None)
    house.metrics.settled(decision, usage, delivery)
    estimate = site.estimate(work) if metered else None
    work_done = work if metered else None
    return house.desk.settle(hold, request, decision, usage, delivery, work_done, estimate, site.site.entity)
