"""What a request may cost at most, and the hold of that."""

from __future__ import annotations

from collections.abc import Sequence

import msgspec

from tokenworks.brain.route import Offer
from tokenworks.core.words import Amount, Decision, Request
from tokenworks.exchange.desk import Desk, Hold, Identity
from tokenworks.exchange.prices import Prices

SLICE_TOKENS = 1024
"""Output tokens of one choice that a stream's hold covers at first, and by which it grows."""


def asked(request: Request, options: Sequence[Offer]) -> int:
    """Output tokens of one choice that the client allows, at most the context."""
    context = _context(options)
    return context if request.output_max is None else min(request.output_max, context)


def _context(options: Sequence[Offer]) -> int:
    most = 0
    for option in options:
        most = max(most, option.context_tokens)
    return most


def worst(prices: Prices, request: Request, model: str, options: Sequence[Offer], price_class: str) -> Amount:
    """The most that this model can cost; of a stream only its first slice, the hold grows with it."""
    mine = options if len(options) == 1 else [option for option in options if option.model == model]
    output = asked(request, mine)
    output_max = (min(output, SLICE_TOKENS) if request.stream else output) * request.choices
    return prices.worst(model, min(request.input_max, _context(mine)), output_max, price_class)


def dearest(prices: Prices, request: Request, options: Sequence[Offer], price_class: str) -> Amount:
    """The most that any option can cost, in each book."""
    if len(options) == 1:
        return worst(prices, request, options[0].model, options, price_class)
    amounts = [worst(prices, request, model, options, price_class) for model in {option.model for option in options}]
    return Amount(ustu=max(a.ustu for a in amounts), nano=max(a.nano for a in amounts))


def hold_worst(
    desk: Desk, identity: Identity, request: Request, options: Sequence[Offer], output_max: int | None = None
) -> Hold:
    """Hold the worst case, or that of ``output_max`` tokens. Raises Shortage when leases do not cover it."""
    prices = desk.prices.at(request.arrived_ns)
    wanted = request if output_max is None else msgspec.structs.replace(request, output_max=output_max)
    amount = dearest(prices, wanted, options, identity.account.price_class)
    sites = [option.site for option in options]
    return desk.hold(identity, request.id, amount, request.model, sites, prices)


def trimmed(hold: Hold, request: Request, options: Sequence[Offer], decision: Decision) -> Amount | None:
    """What the chosen option can cost at most, where that may be another amount than what is held: less, or more money
    where a package that the hold counted on does not pay."""
    model = decision.chosen.model
    if len(options) == 1 or (not hold.parts and all(option.model == model for option in options)):
        return None
    return worst(hold.prices, request, model, options, hold.identity.account.price_class)
