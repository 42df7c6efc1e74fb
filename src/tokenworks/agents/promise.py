"""What a request may cost, promised before it is served: worst cases, leases that run short, and cutting max_tokens."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TypeVar

import msgspec

from tokenworks.agents.shape import with_output
from tokenworks.brain.route import Offer
from tokenworks.core.errors import BudgetSpent
from tokenworks.core.words import Amount, Decision, Request
from tokenworks.exchange.budget import Shortage
from tokenworks.exchange.desk import Desk, Hold, Identity
from tokenworks.exchange.prices import Prices

T = TypeVar("T")
OUTPUT_MIN = 16
"""A budget that affords fewer output tokens than this is spent."""
SLICE_TOKENS = 1024
"""Output tokens of one choice that a stream's hold covers at first, and by which it grows."""
REFILLS_MAX = 8
"""Questions to the ledger for one request: one for each grant that turns out to be used up, one for the budgets."""


def asked(request: Request, options: Sequence[Offer]) -> int:
    """Output tokens of one choice that the client allows, at most the context."""
    context = max(option.context_tokens for option in options)
    return context if request.output_max is None else min(request.output_max, context)


def worst(prices: Prices, request: Request, model: str, options: Sequence[Offer], price_class: str) -> Amount:
    """The most that this model can cost; of a stream only its first slice, the hold grows with it."""
    mine = [option for option in options if option.model == model]
    output = asked(request, mine)
    output_max = (min(output, SLICE_TOKENS) if request.stream else output) * request.choices
    input_max = min(request.input_max, max(option.context_tokens for option in mine))
    return prices.worst(model, input_max, output_max, price_class)


def dearest(prices: Prices, request: Request, options: Sequence[Offer], price_class: str) -> Amount:
    """The most that any option can cost, in each book."""
    models = {option.model for option in options}
    if len(models) == 1:
        return worst(prices, request, models.pop(), options, price_class)
    amounts = [worst(prices, request, model, options, price_class) for model in models]
    return Amount(ustu=max(a.ustu for a in amounts), nano=max(a.nano for a in amounts))


async def promise(desk: Desk, identity: Identity, request: Request, options: Sequence[Offer]) -> tuple[Hold, Request]:
    """Hold the worst case. When leases are short the ledger is asked; then max_tokens is cut to what is affordable.

    Raises BudgetSpent when not even ``OUTPUT_MIN`` tokens are, or when the account would rather have the refusal.
    """
    sites = [option.site for option in options]
    price_class, prices = identity.account.price_class, desk.prices.at(request.arrived_ns)

    def hold(tokens: int | None = None) -> Hold:
        wanted = request if tokens is None else msgspec.structs.replace(request, output_max=tokens)
        amount = dearest(prices, wanted, options, price_class)
        return desk.hold(identity, request.id, amount, request.model, sites, prices)

    try:
        return await _leased(desk, hold), request
    except Shortage as short:
        if not identity.account.clamp:
            raise
        shortage = short
    low, high = 0, asked(request, options)
    while low < high:  # the price grows with every token, so the most that fits is found by halving
        middle = (low + high + 1) // 2
        try:
            desk.release(hold(middle))
            low = middle
        except BudgetSpent:
            high = middle - 1
    if low < OUTPUT_MIN:
        raise shortage
    return hold(low), with_output(request, low)


async def trim(desk: Desk, hold: Hold, request: Request, options: Sequence[Offer], decision: Decision) -> None:
    """Fix the hold at the chosen price. A package that does not pay at the chosen site leaves money to be leased."""
    chosen, amount = decision.chosen, None
    if len(options) > 1 and any(option.model != chosen.model for option in options):
        amount = worst(hold.prices, request, chosen.model, options, hold.identity.account.price_class)
    await _leased(desk, lambda: desk.trim(hold, amount, chosen.site))


async def extend(desk: Desk, request: Request, hold: Hold, decision: Decision) -> None:
    """A stream goes on: promise its next slice. Raises BudgetSpent when the budget ends here."""
    more = hold.prices.worst(
        decision.chosen.model, 0, SLICE_TOKENS * request.choices, hold.identity.account.price_class
    )
    await _leased(desk, lambda: desk.extend(hold, more, decision.chosen.site))


async def _leased(desk: Desk, attempt: Callable[[], T]) -> T:
    """Try; while leases are short and the ledger gives more of them, try again. Raises the last Shortage."""
    for _ in range(REFILLS_MAX):
        try:
            return attempt()
        except Shortage as shortage:
            if not await desk.refill(shortage):
                raise
    return attempt()
