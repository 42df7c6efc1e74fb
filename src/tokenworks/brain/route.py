"""Routing, first depth: filter by hard limits, price what is left in money, take the least.

Pure functions over snapshots. Every term of an option's price is nano-currency, so terms add and compare; a term that
is not known (no carbon price, no cost of the device) is left out, and its absence shows on the receipt.
"""

from __future__ import annotations

from collections.abc import Sequence

from tokenworks.brain.offer import Offer, Offers, Scales
from tokenworks.core.errors import BadRequest, EngineDown, UnknownModel, nearest
from tokenworks.core.units import MJ_PER_KWH, NS_PER_S
from tokenworks.core.words import Candidate, Decision, Request

__all__ = ["Offer", "Offers", "Scales", "choose", "eligible", "price"]

ALTERNATIVES_MAX = 3
LACKS = "lacks a capability"
PREFILL_TPS_ASSUMED = 100.0
DECODE_TPS_ASSUMED = 20.0
"""Before a replica has served anything: slow enough that a replica with a record is preferred."""
OUTPUT_TOKENS_EXPECTED = 200
"""Used only to compare replicas. The conversations of the public Azure trace of 2023 average 211 output tokens."""
BYTES_PER_TOKEN = 4
"""English text under byte-level BPE; only for comparing replicas, never for holds or bills."""
MICROGRAMS_PER_KG = 1_000_000_000


def eligible(request: Request, offers: Offers) -> tuple[list[Offer], dict[str, str]]:
    """Who may serve the request, and why the others may not.

    Raises UnknownModel naming the nearest model, BadRequest when the model cannot do what is asked, EngineDown when it
    could but no replica of it can serve now.
    """
    of_model = offers.get(request.model)
    if not of_model:
        near = nearest(request.model, sorted(offers))
        hint = f"did you mean {near!r}?" if near else f"served here: {', '.join(sorted(offers)) or 'nothing'}"
        raise UnknownModel(f"no model {request.model!r} is served here", hint=hint, param="model")
    options: list[Offer] = []
    refused: dict[str, str] = {}
    for offer in of_model:
        if not request.needs <= offer.capabilities:
            refused[offer.replica] = LACKS
        elif offer.away:
            refused[offer.replica] = offer.away
        elif not offer.load.ready:
            refused[offer.replica] = "not ready"
        elif offer.load.full:
            refused[offer.replica] = "queue full"
        else:
            options.append(offer)
    if not options:
        if all(why == LACKS for why in refused.values()):
            lacking = sorted(request.needs - of_model[0].capabilities)
            raise BadRequest(f"model {request.model!r} cannot do: {', '.join(lacking)}", param="model")
        why = sorted({why for why in refused.values() if why != LACKS})
        raise EngineDown(
            f"no replica of {request.model!r} can serve now ({', '.join(why)})",
            hint="try again in a moment; tokenworks status shows the replicas",
        )
    return options, refused


def price(request: Request, offer: Offer, scales: Scales) -> Candidate:
    """All terms of one option, in nano-currency. Expected work over measured speed gives the time on the slice."""
    load = offer.load
    output_tokens = OUTPUT_TOKENS_EXPECTED
    if request.output_max is not None:
        output_tokens = min(output_tokens, request.output_max)
    prefill_s = request.input_max / BYTES_PER_TOKEN / (load.prefill_tps or PREFILL_TPS_ASSUMED)
    busy_s = prefill_s + output_tokens / (load.decode_tps or DECODE_TPS_ASSUMED)
    terms: dict[str, int] = {}
    if offer.busy_mw is not None:
        energy_mj = offer.busy_mw * busy_s
        if offer.price_nano_per_kwh is not None:
            terms["energy"] = round(energy_mj * offer.price_nano_per_kwh / MJ_PER_KWH)
        if offer.carbon_ug_per_kwh is not None and scales.carbon_nano_per_kg is not None:
            carbon_ug = energy_mj * offer.carbon_ug_per_kwh / MJ_PER_KWH
            terms["carbon"] = round(carbon_ug * scales.carbon_nano_per_kg / MICROGRAMS_PER_KG)
    if offer.device_nano_per_hour is not None:
        terms["device"] = round(offer.device_nano_per_hour * busy_s / 3600)
    if scales.delay_nano_per_s is not None:
        waiting = max(0, load.running + 1 - offer.slots)
        queue_s = waiting * busy_s / max(1, offer.slots)
        wait_s = (offer.latency_ns + load.wait_ns) / NS_PER_S
        terms["delay"] = round(scales.delay_nano_per_s * (queue_s + busy_s + wait_s))
    return Candidate(
        replica=offer.replica, site=offer.site, model=offer.model, terms_nano=terms, total_nano=sum(terms.values())
    )


def choose(request: Request, options: Sequence[Offer], refused: dict[str, str], scales: Scales) -> Decision:
    """The cheapest option and the next best. Equal prices: sooner ready, fewer running per slot, then the name."""
    if len(options) == 1:
        return Decision(chosen=price(request, options[0], scales), refused=refused)
    load = {offer.replica: (offer.load.wait_ns, offer.load.running / max(1, offer.slots)) for offer in options}
    candidates = sorted(
        (price(request, offer, scales) for offer in options), key=lambda c: (c.total_nano, load[c.replica], c.replica)
    )
    return Decision(chosen=candidates[0], alternatives=tuple(candidates[1 : 1 + ALTERNATIVES_MAX]), refused=refused)
