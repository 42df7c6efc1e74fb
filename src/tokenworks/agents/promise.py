"""What a request may cost, promised before it is served: worst cases, leases that run short, and cutting max_tokens."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TypeVar

from tokenworks.agents.shape import with_output
from tokenworks.agents.worst import SLICE_TOKENS, asked, hold_worst
from tokenworks.brain.route import Offer
from tokenworks.core.errors import BudgetSpent
from tokenworks.core.words import Amount, Decision, Request
from tokenworks.exchange.budget import Shortage
from tokenworks.exchange.desk import Desk, Hold, Identity

T = TypeVar("T")
OUTPUT_MIN = 16
"""A budget that affords fewer output tokens than this is spent."""
REFILLS_MAX = 8
"""Questions to the ledger for one request: one for each grant that turns out to be used up, one for the budgets."""


async def promise(desk: Desk, identity: Identity, request: Request, options: Sequence[Offer]) -> tuple[Hold, Request]:
    """Hold the worst case. When leases are short the ledger is asked; then max_tokens is cut to what is affordable.

    Raises BudgetSpent when not even ``OUTPUT_MIN`` tokens are, or when the account would rather have the refusal.
    """

    def hold(tokens: int | None = None) -> Hold:
        return hold_worst(desk, identity, request, options, tokens)

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


async def trim(desk: Desk, hold: Hold, amount: Amount, decision: Decision) -> None:
    """Fix the hold at the chosen price: a package that does not pay at the chosen site leaves money to be leased."""
    await _leased(desk, lambda: desk.trim(hold, amount, decision.chosen.site))


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
        except Shortage as error:
            shortage = error
        if not await desk.refill(shortage):
            raise shortage
    return attempt()
