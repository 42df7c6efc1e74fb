"""The receipt as people read it: seven layer lines from agent to watt, each with its provenance.

Two views. The owner of the account sees usage, price, energy, carbon and where it ran; cost, margin, the router's terms
and its alternatives are for the operator. What is unknown is absent.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import msgspec

from tokenworks.core.clock import utc_text
from tokenworks.core.units import NS_PER_US, money_text, stu_text
from tokenworks.core.words import FIGURES, Candidate, EnergyLine, Interval, Provenance, Sourced
from tokenworks.exchange.log.figures import RECORD, UNMETERED
from tokenworks.exchange.log.leaves import Metered
from tokenworks.exchange.words import Settlement, SiteFacts

View = dict[str, Any]


def energy_view(estimate: EnergyLine | None, records: Sequence[Metered]) -> EnergyLine | None:
    """The energy of a receipt: the sum of its records once one is of its end, until then the estimate, if any. What no
    record knows is not known; a work told too late to be booked has no time in any, and then nothing is."""
    if not any(line.ended for _, line, _ in records):
        return None if estimate is None else msgspec.structs.replace(estimate, ended=False)
    if not sum(line.slice_ns for _, line, _ in records):
        return None
    sums: dict[str, Any] = {}
    for name in FIGURES:
        known = [figure for _, line, _ in records if (figure := getattr(line, name)) is not None]
        sums[name] = sum(known) if known else None
    return EnergyLine(receipt=records[0].line.receipt, ended=True, **sums)


def _record(line: EnergyLine, interval: Interval) -> View:
    said = {name: getattr(line, name, None) for name in RECORD} | {"site": interval.site}
    said |= {"start": utc_text(interval.start_ns), "end": utc_text(interval.end_ns)}
    return _known(**said | {"corrects": interval.corrects or None, "provenance": interval.meter})


def _known(**figures: object) -> View:
    return {name: figure for name, figure in figures.items() if figure is not None}


def _us(ns: int | None) -> int | None:
    return None if ns is None else ns // NS_PER_US


def receipt_view(settled: Settlement, records: Sequence[Metered], site: SiteFacts | None, *, operator: bool) -> View:
    """Everything about one request, as JSON-ready values; ``records`` of its energy in the order of their booking."""
    decision, energy = settled.decision, energy_view(settled.estimate, records)
    final, ended = energy is not None and energy.ended, any(each.line.ended for each in records)
    intervals = sorted((each.interval for each in records), key=lambda i: (i.start_ns, i.site, -i.corrects))
    return _known(
        id=settled.receipt,
        status=("final" if final else "provisional") if energy else UNMETERED if ended else None,
        at=utc_text(settled.at_ns),
        account=settled.account,
        budget=settled.budget,
        model=_known(asked=settled.model_asked, served=settled.model_served),
        usage=dict(settled.usage.counts()) | {"certainty": settled.usage.certainty},
        stu=stu_text(settled.ustu - settled.loss_ustu),
        ustu=settled.ustu - settled.loss_ustu,
        price=money_text(settled.nano - settled.loss_nano, settled.currency),
        price_nano=settled.nano - settled.loss_nano,
        currency=settled.currency,
        energy_mj=None if energy is None else energy.energy_mj + energy.overhead_mj,
        carbon_ug=None if energy is None else energy.carbon_ug,
        ran_at=None
        if decision is None
        else _known(
            site=decision.chosen.site,
            **{name: getattr(site, name, None) for name in ("entity", "place", "jurisdiction")},
        ),
        lines=_lines(settled, energy, intervals if final else [], site, operator=operator),
        records=[_record(*each[1:]) for each in records] if final and any(i.corrects for i in intervals) else None,
    )


def _lines(
    settled: Settlement, energy: EnergyLine | None, intervals: list[Interval], site: SiteFacts | None, *, operator: bool
) -> list[View]:
    facts = site.facts if site else {}
    cost = operator
    lines: list[View] = []
    if energy is not None:
        metered = intervals[0].meter if intervals else Provenance.MODELLED
        mix = intervals[0].mix_permille if intervals else site.mix_permille if site else {}
        lines += [
            _known(
                layer="power",
                energy_mj=energy.energy_mj,
                money_nano=energy.energy_nano if cost else None,
                carbon_ug=energy.carbon_ug,
                market_ug=energy.market_ug,
                mix_permille=mix or None,
                provenance=metered,
                basis=facts["energy"].source if "energy" in facts else None,
                price=_sourced(facts.get("price"), "nano_per_kwh") if cost else None,
                carbon=_sourced(facts.get("carbon"), "ug_per_kwh"),
            ),
            _known(
                layer="site",
                site=settled.decision.chosen.site if settled.decision else None,
                overhead_mj=energy.overhead_mj,
                water_ul=energy.water_ul,
                money_nano=energy.overhead_nano if cost else None,
                provenance=Provenance.MODELLED,
                overhead=_sourced(facts.get("overhead"), "permille"),
            ),
            _known(
                layer="device",
                slice=settled.work.slice if settled.work else None,
                slice_us=_us(energy.slice_ns),
                embodied_ug=energy.embodied_ug,
                embodied=_sourced(facts.get(f"embodied:{settled.work.slice}" if settled.work else ""), "ug_per_hour"),
                money_nano=energy.device_nano if cost else None,
                provenance=Provenance.MODELLED,
                cost=_sourced(facts.get("device_cost"), "nano_per_hour") if cost else None,
            ),
        ]
    return [*lines, *_upper_lines(settled, facts, operator=operator)]


def _upper_lines(settled: Settlement, facts: dict[str, Sourced], *, operator: bool) -> list[View]:
    delivery, decision = settled.delivery, settled.decision
    engine = _known(
        layer="engine",
        replica=decision.chosen.replica if decision and operator else None,
        model=settled.model_served,
        queued_us=_us(delivery.queued_ns),
        prefill_us=_us(delivery.prefill_ns),
        decode_us=_us(delivery.decode_ns),
        calibration=_sourced(facts.get(f"decode_milli_tps:{decision.chosen.replica}"), "decode_milli_tps")
        if decision and operator
        else None,
        provenance=delivery.timing,
    )
    exchange = _known(
        layer="exchange",
        held_ustu=settled.held_ustu,
        held_nano=settled.held_nano,
        charged_ustu=settled.ustu - settled.loss_ustu,
        charged_nano=settled.nano - settled.loss_nano,
        burned=[msgspec.structs.asdict(part) for part in settled.burned] or None,
        list_nano=settled.list_nano if settled.burned else None,
        operator_loss_nano=(settled.loss_nano or None) if operator else None,
        rate_card=settled.rate_card,
        price_book=settled.price_book,
        took_us=_us(settled.hold_ns),
        provenance=Provenance.MEASURED,
    )
    brain: View = {"layer": "brain", "provenance": Provenance.MEASURED}
    if decision is not None:
        brain["decide_us"] = _us(decision.decide_ns)
        if operator:
            brain |= _known(
                chosen=_candidate(decision.chosen),
                alternatives=[_candidate(other) for other in decision.alternatives] or None,
                refused=decision.refused or None,
            )
    agents = _known(
        layer="agents",
        key=settled.key,
        endpoint=settled.endpoint,
        lane=settled.lane or None,
        delivered_chunks=delivery.chunks,
        ending=delivery.ending,
        ttft_us=_us(delivery.ttft_ns),
        total_us=_us(delivery.total_ns),
        provenance=Provenance.MEASURED,
    )
    return [engine, exchange, brain, agents]


def _candidate(candidate: Candidate) -> View:
    return {"replica": candidate.replica, "terms_nano": candidate.terms_nano, "total_nano": candidate.total_nano}


def _sourced(fact: Sourced | None, unit: str) -> View | None:
    if fact is None:
        return None
    return _known(
        **{unit: fact.value}, provenance=fact.provenance, source=fact.source, error_permille=fact.error_permille
    )
