"""What happens to a request that its account's packages do not cover, by the account's rule ``cheaper`` or ``slow``,
and to one that can wait while the grid asks for less power.

``block`` and ``payg`` need nothing here: the hold decides. Covered means that packages hold the most that the request
can cost and its budgets allow it, uncut; whoever comes close to the end of a package is served by the rule a little
early, and what is left in the package pays for that.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from typing import NamedTuple

import msgspec

from tokenworks.agents.promise import promise
from tokenworks.agents.shape import with_model
from tokenworks.brain.route import OUTPUT_TOKENS_EXPECTED, Offer, Offers, eligible
from tokenworks.core.clock import Clock
from tokenworks.core.errors import BadRequest, BudgetSpent, EngineDown
from tokenworks.core.steps import in_task
from tokenworks.core.units import NS_PER_S
from tokenworks.core.words import Request
from tokenworks.curtail import Order
from tokenworks.exchange.desk import Desk, Identity

RULES = ("cheaper", "slow")
MODEL_HEADER = b"x-tokenworks-model"
"""Which model serves, when it is not the one that was asked for."""
LANE_HEADER = b"x-tokenworks-lane"
WAITING_MAX = 64
"""Requests that wait for the slow lane or until the grid allows them, of all models together; more are refused."""
PATIENCE_S = 120
"""How long one waits there, at most."""
CAP_PATIENCE_S = 2.0
"""How long an interactive request waits, at most, where the grid's limit caps the requests of a replica."""
LOOK_S = 0.05
"""How often the first in the lane looks for a slot."""

LATER = "buy a package, or try again later"


class Served(NamedTuple):
    """The request as it will be served, and by whom it may be."""

    request: Request
    options: list[Offer]
    refused: dict[str, str]


def told(request: Request) -> bytes:
    """The header lines that tell a client which rule its request met."""
    lines = b"%b: %b\r\n" % (MODEL_HEADER, request.model.encode()) if request.model_asked else b""
    return lines + b"%b: %b\r\n" % (LANE_HEADER, request.lane.encode()) if request.lane else lines


class Overflow:
    """The rules of one gateway, and its slow lane."""

    def __init__(self, desk: Desk, offers: Offers, clock: Clock) -> None:
        self._desk, self._offers, self._clock = desk, offers, clock
        self._lanes: dict[str, asyncio.Lock] = {}
        """One for each model that is served here, and one for its requests that wait for the grid."""
        self.waiting = self.deferred = 0
        """Now, and that the grid made wait since the start."""
        self.orders: Mapping[str, Order] = {}
        """By site: what the grid's limits ask of it now."""

    async def admitted(self, found: Served, *, deferrable: bool) -> Served:
        """Hold a request back while all sites that could serve it are to draw less: until that is over, or, if it is
        interactive, for a moment where replicas are capped. Raises EngineDown when a deferrable one waited too long."""
        if self._open(found.options, deferrable):
            return self._elsewhere(found) if deferrable else found
        model, until_ns = found.request.model, self._clock.now_ns() + round(CAP_PATIENCE_S * NS_PER_S)
        if not deferrable:
            while not self._open(found.options, deferrable) and self._clock.now_ns() < until_ns:
                await self._clock.sleep(LOOK_S)
        else:
            self.deferred += 1
            try:
                line, what = f"{model} (deferred)", "queue of deferred requests"
                async with self._queue(line, what, lambda: self._slot_free(model)):
                    await self._clock.sleep(LOOK_S)  # so that the next one sees this one run
            except EngineDown as error:
                ends_ns = max((order.end_ns for order in self.orders.values()), default=0)
                error.retry_after_s = min(3_600, max(2, (ends_ns - self._clock.now_ns()) // NS_PER_S))
                raise
        return self._elsewhere(Served(found.request, *eligible(found.request, self._offers)))

    def _open(self, options: Sequence[Offer], deferrable: bool) -> bool:
        """Whether a request may start somewhere now."""
        for option in options:
            order = self.orders.get(option.site)
            most = None if order is None else 0 if deferrable else order.running_max
            if most is None or option.load.running < most:
                return True
        return False

    def _elsewhere(self, found: Served) -> Served:
        """Keep to the sites of which nothing is asked, where there are any."""
        free = [option for option in found.options if option.site not in self.orders]
        return found._replace(options=free or found.options)

    async def ruled(self, identity: Identity, found: Served, serve: Callable[[Served], Awaitable[None]]) -> None:
        """Serve a request of an account whose rule is one of ``RULES``. Raises as ``served``."""
        async with self.served(identity, found) as ruled:
            await serve(ruled)

    @contextlib.asynccontextmanager
    async def served(self, identity: Identity, found: Served) -> AsyncIterator[Served]:
        """How to serve a request of an account whose rule is one of ``RULES``; stay inside until it has ended.

        Raises EngineDown when the slow lane is full, or no slot became free in ``PATIENCE_S``.
        """
        if await self._covered(identity, found):
            yield found
        elif identity.account.overage == "cheaper":
            yield self._cheapest(identity, found)
        else:
            async with self._slow(found.request.model):
                options, refused = eligible(found.request, self._offers)
                slow = Served(msgspec.structs.replace(found.request, lane="slow"), options, refused)
                yield self._elsewhere(slow)

    async def _covered(self, identity: Identity, found: Served) -> bool:
        """Try the hold that the request would need, and give it back."""
        try:
            hold, request = await promise(self._desk, identity, found.request, found.options)
        except BudgetSpent:
            return False
        paid = sum(part for _, part in hold.parts)
        covered = not request.clamped and paid == hold.ustu
        self._desk.release(hold)
        return covered

    def _cheapest(self, identity: Identity, found: Served) -> Served:
        """The model that costs this request least, of those that the account allows and that can do it now.

        Equal prices go to the name; a model that costs no less than the one asked for is no help.
        """
        asked, offers = found.request, self._offers
        prices, price_class = self._desk.prices.at(asked.arrived_ns), identity.account.price_class
        output_max = (asked.output_max or OUTPUT_TOKENS_EXPECTED) * asked.choices

        def cost(model: str) -> tuple[int, int]:
            worst = prices.worst(model, asked.input_max, output_max, price_class)
            return worst.nano, worst.ustu

        room = min(asked.input_max, max(option.context_tokens for option in found.options))
        allowed = [model for model in identity.account.cheaper or offers if model in offers]
        for model in sorted(allowed, key=lambda model: (cost(model), model)):
            if cost(model) >= cost(asked.model):
                break
            other = msgspec.structs.replace(with_model(asked, model), model_asked=asked.model)
            with contextlib.suppress(BadRequest, EngineDown):
                options, refused = eligible(other, offers)
                if wide := [option for option in options if option.context_tokens >= room]:
                    return Served(other, wide, refused)
        return found

    @contextlib.asynccontextmanager
    async def _slow(self, model: str) -> AsyncIterator[None]:
        """One request of a model at a time, in order of arrival, each into a slot that nobody waits for."""
        async with self._queue(model, f"slow lane of {model!r}", lambda: self._slot_free(model)):
            yield

    @contextlib.asynccontextmanager
    async def _queue(self, line: str, what: str, free: Callable[[], bool]) -> AsyncIterator[None]:
        """In order of arrival, once it is free; the next one comes when this one leaves."""
        if self.waiting >= WAITING_MAX:
            raise EngineDown(f"the {what} is full", hint=LATER)
        async with contextlib.AsyncExitStack() as until_its_end:
            self.waiting += 1
            try:
                await in_task()
                async with asyncio.timeout(PATIENCE_S):
                    await until_its_end.enter_async_context(self._lanes.setdefault(line, asyncio.Lock()))
                    while not free():
                        await self._clock.sleep(LOOK_S)
            except TimeoutError:
                raise EngineDown(f"the {what} did not move for {PATIENCE_S} s", hint=LATER) from None
            finally:
                self.waiting -= 1
            yield

    def _slot_free(self, model: str) -> bool:
        return any(
            each.load.ready and not each.away and each.load.running < each.slots and each.site not in self.orders
            for each in self._offers.get(model, ())
        )
