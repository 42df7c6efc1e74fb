"""The life of a request, from the key to the receipt. Read ``serve`` first: it is the whole house in one function.

It knows no transport. What it needs of one is the ``Reply`` port, so the fast lane is another Reply and nothing else.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

import msgspec

from tokenworks.agents.metrics import Metrics
from tokenworks.agents.promise import SLICE_TOKENS, extend, promise, trim, worst
from tokenworks.agents.shape import Endpoint, error_event, parse_request, usage_event, with_receipt
from tokenworks.brain.route import Offer, Scales, choose, eligible
from tokenworks.core.clock import Clock
from tokenworks.core.errors import BudgetSpent, EngineDown, ExchangeDown, TokenworksError
from tokenworks.core.words import Decision, Delivery, Provenance, Request, Usage, Work
from tokenworks.engine.adapter import Chunk, Timing
from tokenworks.engine.fleet import Replica
from tokenworks.exchange.desk import Desk, Hold
from tokenworks.exchange.words import Settlement
from tokenworks.site.agent import SiteAgent

ATTEMPTS_MAX = 3
"""Replicas tried for one request; only before its first byte."""
RECEIPT_HEADER = b"x-tokenworks-receipt"
CLAMP_HEADER = b"x-tokenworks-max-tokens"
"""Tells a client that its max_tokens was cut to what its budget affords, and to what."""
Headers = Sequence[tuple[bytes, bytes]]
_EVENTS = ((b"content-type", b"text/event-stream; charset=utf-8"), (b"cache-control", b"no-cache"))
_JSON = ((b"content-type", b"application/json"),)


class Reply(Protocol):
    """The client's side. A client that hangs up is told by cancelling the task that runs ``serve``."""

    async def start(self, status: int, headers: Headers) -> None:
        """Send the head."""
        ...

    async def send(self, data: bytes) -> None:
        """Send a part of the body; returns when the client can take more."""
        ...

    async def end(self) -> None:
        """The body is whole."""
        ...


@dataclass(slots=True)
class House:
    """The floors below, as the front door needs them."""

    desk: Desk
    replicas: Mapping[str, Replica]
    sites: Mapping[str, SiteAgent]
    offers: Callable[[], list[Offer]]
    scales: Scales
    clock: Clock
    metrics: Metrics
    new_receipt: Callable[[], str]
    brain_ns: int = 0
    """Time spent deciding since it was last taken, for the energy of the house itself."""


class Answering:
    """What is known of one answer while it is made."""

    __slots__ = ("chunks", "dispatched_ns", "extend_at", "first_ns", "sent", "timing", "usage")

    def __init__(self, dispatched_ns: int, slice_tokens: int = SLICE_TOKENS) -> None:
        self.extend_at = slice_tokens * 7 // 8
        """Chunks at which the hold must grow: before it is used up, since a chunk can be more than one token."""
        self.dispatched_ns = dispatched_ns
        self.first_ns: int | None = None
        self.chunks = 0
        self.usage: Usage | None = None
        self.timing: Timing | None = None
        self.sent = False


async def serve(house: House, endpoint: Endpoint, key: str | None, body: bytes, reply: Reply) -> None:
    """Serve one request. Raises a TokenworksError only before anything was sent to the client."""
    arrived_ns = house.clock.now_ns()
    identity = house.desk.identify(key)
    request = parse_request(endpoint, body, house.new_receipt(), arrived_ns)
    options, refused = eligible(request, house.offers())
    hold, request = await promise(house.desk, identity, request, options)
    decision: Decision | None = None
    try:
        for attempt in range(ATTEMPTS_MAX):
            decision = _decide(house, request, options, refused)
            if not hold.written:
                model, price_class = decision.chosen.model, identity.account.price_class
                amount = worst(house.desk.prices, request, model, options, price_class)
                await trim(house.desk, hold, amount, decision)
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
    except EngineDown:
        raise
    except TokenworksError as error:
        _settle(house, request, hold, decision, state, "engine_failed" if error.status >= 500 else "refused")
        raise
    finally:
        replica.end()
    state.usage, state.timing, state.chunks = completion.usage, completion.timing, 1
    settled = _settle(house, request, hold, decision, state, "complete")
    await house.desk.safe(hold)
    await reply.start(200, (*_JSON, *_headers(request)))
    await reply.send(with_receipt(completion.body, settled))
    await reply.end()


async def _stream(house: House, request: Request, hold: Hold, decision: Decision, reply: Reply) -> None:
    """An answer in events, relayed as they come. The books have it before its last event leaves."""
    replica = house.replicas[decision.chosen.replica]
    state = _begin(house, request, replica)
    usage_chunk: Chunk | None = None
    try:
        stream = await replica.adapter.stream(request)
        try:
            async for chunk in stream:
                if chunk.output:
                    state.chunks += 1
                    state.first_ns = state.first_ns or house.clock.now_ns()
                    if state.chunks >= state.extend_at:
                        state.extend_at += SLICE_TOKENS * request.choices
                        await extend(house.desk, request, hold, decision)
                if chunk.usage is not None:
                    state.usage, state.timing = chunk.usage, chunk.timing
                if chunk.usage_only:
                    usage_chunk = chunk
                elif chunk.done:
                    break
                else:
                    await _relay(reply, request, state, chunk.raw)
        finally:
            await stream.abort()
    except asyncio.CancelledError:
        await _settle_cut(house, request, hold, decision, state, replica, "client_gone")
        raise
    except BudgetSpent as error:
        await _settle_cut(house, request, hold, decision, state, replica, "budget_spent")
        await reply.send(error_event(error))
        await reply.end()
        return
    except TokenworksError as error:
        if not state.sent and isinstance(error, EngineDown):
            raise
        _settle(house, request, hold, decision, state, "engine_failed" if error.status >= 500 else "refused")
        if not state.sent:
            raise
        await reply.send(error_event(error))
        await reply.end()
        return
    finally:
        replica.end()
    try:
        settled = _settle(house, request, hold, decision, state, "complete")
        await house.desk.safe(hold)
    except ExchangeDown as error:
        await reply.send(error_event(error))
    else:
        if usage_chunk is not None and request.show_usage:
            await reply.send(usage_event(usage_chunk.raw, settled))
        await reply.send(b"data: [DONE]\n\n")
    await reply.end()


async def _relay(reply: Reply, request: Request, state: Answering, raw: bytes) -> None:
    if not state.sent:
        await reply.start(200, (*_EVENTS, *_headers(request)))
        state.sent = True
    await reply.send(raw)


def _headers(request: Request) -> Headers:
    receipt = (RECEIPT_HEADER, request.id.encode())
    return (receipt, (CLAMP_HEADER, str(request.output_max).encode())) if request.clamped else (receipt,)


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
    return Answering(now, SLICE_TOKENS * request.choices)


async def _settle_cut(
    house: House,
    request: Request,
    hold: Hold,
    decision: Decision,
    state: Answering,
    replica: Replica,
    ending: str,
) -> None:
    """A stream was cut short: its input and what was made until the abort, counted by us since no report came."""
    if state.usage is None:
        counted = await asyncio.shield(_count_input(replica, request)) if state.chunks else None
        if state.chunks:
            state.usage = Usage(input=counted or 0, output=state.chunks, certainty="counted")
    _settle(house, request, hold, decision, state, ending)


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
    usage = state.usage
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
    house.metrics.settled(decision, usage, delivery)
    estimate = site.estimate(work) if metered else None
    work_done = work if metered else None
    return house.desk.settle(hold, request, decision, usage, delivery, work_done, estimate, site.site.entity)
