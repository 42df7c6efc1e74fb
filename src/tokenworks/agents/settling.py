"""What the life of a request does between its waits: choose, count in, and settle. All of it is synchronous."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import msgspec

from tokenworks.agents.metrics import Metrics
from tokenworks.agents.overage import Overflow, told
from tokenworks.brain.route import Offer, Offers, Scales, choose
from tokenworks.core.clock import Clock
from tokenworks.core.errors import ExchangeDown, TokenworksError
from tokenworks.core.words import Decision, Delivery, Provenance, Request, Usage, Work
from tokenworks.engine.adapter import Timing
from tokenworks.engine.record import Replica
from tokenworks.exchange.desk import Desk, Hold
from tokenworks.exchange.words import Settlement
from tokenworks.site.agent import SiteAgent

RECEIPT_HEADER = b"x-tokenworks-receipt"
CLAMP_HEADER = b"x-tokenworks-max-tokens"
"""Tells a client that its max_tokens was cut to what its budget affords, and to what."""


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


def give_back(house: House, request: Request, hold: Hold, decision: Decision | None) -> None:
    """No hold outlives its request, whatever happened: unwritten it is released, written it settles at nothing."""
    if hold.written and decision is not None:
        with contextlib.suppress(ExchangeDown):  # then it is in the desk's backlog
            settle(house, request, hold, decision, Answering(house.clock.now_ns()), "engine_failed")
    else:
        house.desk.release(hold)


def decide(house: House, request: Request, options: Sequence[Offer], refused: dict[str, str]) -> Decision:
    """Who serves it, and how long it took to choose."""
    began = house.clock.now_ns()
    decision = choose(request, options, refused, house.scales)
    took = house.clock.now_ns() - began
    house.brain_ns += took
    msgspec.structs.force_setattr(decision, "decide_ns", took)  # nobody else has seen it yet
    return decision


def headers(request: Request) -> bytes:
    """The lines of the answer's head that tell of this request."""
    lines = b"%b: %b\r\n" % (RECEIPT_HEADER, request.id.encode())
    if request.clamped and request.output_max is not None:
        lines += b"%b: %d\r\n" % (CLAMP_HEADER, request.output_max)
    return lines + told(request) if request.model_asked or request.lane else lines


def begin(house: House, request: Request, replica: Replica) -> Answering:
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


def settle(house: House, request: Request, hold: Hold, decision: Decision, state: Answering, ending: str) -> Settlement:
    """Write the settlement; what failed before any output is free, whatever the engine reports."""
    now = house.clock.now_ns()
    usage = state.usage if state.chunks else None
    if usage is None:
        usage = Usage(output=state.chunks, certainty="counted") if state.chunks else Usage(certainty="none")
    replica = house.replicas[decision.chosen.replica]
    timing = state.timing
    worked_ns = (timing.prefill_ns or 0) + (timing.decode_ns or 0) if timing else 0
    start_ns = max(state.dispatched_ns, now - worked_ns) if worked_ns else state.dispatched_ns
    site, slice_ = house.sites[replica.spec.site], replica.spec.slice
    work: Work | None = None
    if slice_:  # a replica without a slice of ours is not metered
        work = Work(
            receipt=request.id,
            replica=replica.spec.name,
            site=replica.spec.site,
            slice=slice_,
            start_ns=start_ns,
            first_ns=state.first_ns,
            end_ns=now,
            input_tokens=usage.input + usage.cached_input + usage.cache_write,
            output_tokens=usage.output + usage.reasoning,
            cached_tokens=usage.cached_input,
        )
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
    estimate = site.estimate(work) if work is not None else None
    return house.desk.settle(hold, request, decision, usage, delivery, work, estimate, site.site.entity)
