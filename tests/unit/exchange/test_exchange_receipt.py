from __future__ import annotations

from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.support import exchange as support

from tokenworks.core.words import (
    FIGURES,
    LAYERS,
    Candidate,
    Decision,
    Delivery,
    EnergyLine,
    Provenance,
    Sourced,
    Usage,
    Work,
)
from tokenworks.exchange.log.leaves import Metered
from tokenworks.exchange.receipt import receipt_view
from tokenworks.exchange.words import Settlement, SiteFacts


def candidate(replica: str, total: int) -> Candidate:
    return Candidate(replica=replica, site="home", model="m", terms_nano={"energy": total}, total_nano=total)


SETTLED = Settlement(
    receipt="rcpt_1",
    account="acme",
    budget="team",
    key="k",
    endpoint="chat",
    model_asked="m",
    model_served="m",
    usage=Usage(input=3, output=4),
    ustu=2_500_000,
    nano=130,
    loss_ustu=500_000,
    loss_nano=30,
    rate_card="card-1",
    price_book="book-1",
    currency="USD",
    decision=Decision(
        chosen=candidate("secret-replica", 5),
        alternatives=(candidate("secret-other", 6),),
        refused={"secret-third": "queue full"},
        decide_ns=2_000,
    ),
    delivery=Delivery(ending="complete", chunks=4, prefill_ns=3_000_000, ttft_ns=4_000_000, total_ns=9_000_000),
    work=Work(
        receipt="rcpt_1",
        replica="secret-replica",
        site="home",
        slice="slice-0",
        start_ns=1,
        first_ns=None,
        end_ns=2,
        input_tokens=3,
        output_tokens=4,
    ),
    estimate=None,
    held_ustu=2_000_000,
    held_nano=100,
    hold_ns=7_000,
    arrived_ns=0,
    at_ns=0,
)
ENERGY = EnergyLine(
    receipt="rcpt_1",
    energy_mj=1_000,
    energy_nano=77,
    overhead_mj=500,
    overhead_nano=33,
    carbon_ug=11,
    slice_ns=2_000_000_000,
    device_nano=44,
    water_ul=55,
    ended=True,
)
INTERVAL = support.interval("home", 0, end_ns=1, meter=Provenance.MEASURED, mix_permille={"wind": 1_000})
SITE = SiteFacts(
    site="home",
    entity="Acme Power",
    place="Lyon",
    jurisdiction="FR",
    facts={
        "energy": Sourced(value=0, provenance=Provenance.MODELLED, source="two sensors"),
        "price": Sourced(value=120_000_000, provenance=Provenance.LISTED, source="tariff"),
        "carbon": Sourced(value=50_000_000, provenance=Provenance.LISTED, source="statistic", error_permille=100),
        "overhead": Sourced(value=500, provenance=Provenance.LISTED),
        "device_cost": Sourced(value=9, provenance=Provenance.LISTED, source="data sheet"),
    },
    mix_permille={"coal": 1_000},
)
KNOWN = ("energy_mj", "overhead_mj", "slice_ns")
"""Figures that are never unknown."""
COST_WORDS = ("money_nano", "price", "cost", "chosen", "alternatives", "refused", "replica", "operator_loss_nano")


def view(
    settled: Settlement = SETTLED,
    energy: EnergyLine | None = ENERGY,
    site: SiteFacts | None = SITE,
    *,
    operator: bool = False,
    metered: bool = True,
) -> dict[str, Any]:
    """Not ``metered``: the energy is an estimate."""
    if metered and energy is not None:
        return receipt_view(settled, [Metered(7, energy, INTERVAL)], site, operator=operator)
    return receipt_view(msgspec.structs.replace(settled, estimate=energy), [], site, operator=operator)


def layers(receipt: dict[str, Any]) -> dict[str, dict[str, Any]]:
    return {line["layer"]: line for line in receipt["lines"]}


def replace(**fields: Any) -> Settlement:
    return msgspec.structs.replace(SETTLED, **fields)


def everything(value: Any) -> list[Any]:
    """All values inside, at any depth."""
    if isinstance(value, dict):
        return [found for inner in value.values() for found in everything(inner)]
    if isinstance(value, list | tuple):
        return [found for inner in value for found in everything(inner)]
    return [value]


def test_a_receipt_has_a_line_for_each_layer_in_order() -> None:
    """From watt to agent, every line with its provenance."""
    for operator in (True, False):
        receipt = view(operator=operator)
        assert tuple(line["layer"] for line in receipt["lines"]) == LAYERS
        assert all(line["provenance"] in [*Provenance] for line in receipt["lines"])


def test_the_owner_does_not_see_cost_nor_the_router() -> None:
    """No word and no figure of cost, margin, replicas or alternatives is anywhere in the owner's view."""
    receipt = view()
    for line in receipt["lines"]:
        assert not {*COST_WORDS} & {*line}, line
    text = msgspec.json.encode(receipt).decode()
    assert "secret" not in text
    assert "queue full" not in text
    for figure in (77, 33, 44, 120_000_000, 9):
        assert figure not in everything(receipt), figure
    assert (receipt["price_nano"], receipt["energy_mj"], receipt["carbon_ug"]) == (100, 1_500, 11)
    assert layers(receipt)["power"]["carbon"]["error_permille"] == 100
    assert receipt["ran_at"] == {"site": "home", "entity": "Acme Power", "place": "Lyon", "jurisdiction": "FR"}


def test_the_operator_sees_cost_and_the_router() -> None:
    """The same receipt with the money of each layer, the loss, the terms and who was left out."""
    seen = layers(view(operator=True))
    assert [seen[layer]["money_nano"] for layer in ("power", "site", "device")] == [77, 33, 44]
    assert seen["power"]["price"] == {"nano_per_kwh": 120_000_000, "provenance": "listed", "source": "tariff"}
    assert seen["device"]["cost"]["nano_per_hour"] == 9
    assert seen["engine"]["replica"] == "secret-replica"
    assert seen["exchange"]["operator_loss_nano"] == 30
    assert seen["brain"]["chosen"] == {"replica": "secret-replica", "terms_nano": {"energy": 5}, "total_nano": 5}
    assert [other["replica"] for other in seen["brain"]["alternatives"]] == ["secret-other"]
    assert seen["brain"]["refused"] == {"secret-third": "queue full"}


def test_the_operator_sees_all_that_the_owner_sees() -> None:
    """The two views never contradict each other."""
    owner, operator = view(), view(operator=True)
    assert {k: v for k, v in operator.items() if k != "lines"} == {k: v for k, v in owner.items() if k != "lines"}
    for mine, theirs in zip(owner["lines"], operator["lines"], strict=True):
        assert mine.items() <= theirs.items()


def test_the_customer_is_shown_what_it_was_charged() -> None:
    """The operator's loss is in neither of the two amounts: standard tokens and money tell the same story."""
    receipt = view()
    line = layers(receipt)["exchange"]
    assert (line["charged_ustu"], line["charged_nano"], line["held_nano"]) == (2_000_000, 100, 100)
    assert receipt["price_nano"] == line["charged_nano"]
    assert receipt["ustu"] == line["charged_ustu"]
    assert (receipt["stu"], receipt["price"]) == ("2 STU", "0.0000001 USD")


def test_energy_is_provisional_until_its_record_is_final() -> None:
    """An estimate is never dressed as a record, and a request without either has no status at all."""
    assert view()["status"] == "final"
    assert view(metered=False)["status"] == "provisional"
    assert layers(view(metered=False))["power"]["provenance"] == "modelled"
    going = Metered(7, msgspec.structs.replace(ENERGY, energy_mj=1, ended=False), INTERVAL)
    estimated = receipt_view(replace(estimate=ENERGY), [going], SITE, operator=False)
    assert estimated == view(metered=False), "a part of a record is no record, and its meter measured no estimate"
    assert layers(view())["power"]["provenance"] == "measured"
    none = view(energy=None)
    assert not {"status", "energy_mj", "carbon_ug"} & {*none}
    assert tuple(layers(none)) == LAYERS[3:]


def test_the_mix_is_the_intervals_or_else_the_sites() -> None:
    """Where the energy came from is as recorded; before the record, as the site's facts say; else absent."""
    assert layers(view())["power"]["mix_permille"] == {"wind": 1_000}
    assert layers(view(metered=False))["power"]["mix_permille"] == {"coal": 1_000}
    assert "mix_permille" not in layers(view(metered=False, site=None))["power"]


def test_corrections_are_shown_beside_what_they_correct() -> None:
    """First, corrections and their sum; where the energy came from is as it was known last. What nobody knows of
    water, contracts and hardware is absent, also from the sum; without a correction there is no list."""
    late = support.interval("home", 0, end_ns=1, meter=Provenance.METERED, corrects=1, mix_permille={"sun": 1_000})
    more = EnergyLine(
        receipt="rcpt_1", energy_mj=-400, energy_nano=-7, overhead_mj=5, overhead_nano=None, carbon_ug=None,
        slice_ns=0, device_nano=0, market_ug=8, ended=False,
    )  # fmt: skip
    receipt = receipt_view(SETTLED, [Metered(7, ENERGY, INTERVAL), Metered(9, more, late)], SITE, operator=True)
    seen = layers(receipt)
    assert (receipt["status"], receipt["energy_mj"], receipt["carbon_ug"]) == ("final", 1_105, 11)
    assert (seen["power"]["money_nano"], seen["power"]["market_ug"], seen["power"]["provenance"]) == (70, 8, late.meter)
    assert (seen["site"]["water_ul"], seen["power"]["mix_permille"]) == (55, {"sun": 1_000})
    assert "embodied_ug" not in seen["device"]
    at = {"site": "home", "start": "1970-01-01T00:00:00.000Z", "end": "1970-01-01T00:00:00.000Z"}
    first, second = receipt["records"]
    assert first == at | {
        "energy_mj": 1_000, "overhead_mj": 500, "slice_ns": 2_000_000_000, "carbon_ug": 11, "water_ul": 55,
        "provenance": "measured",
    }  # fmt: skip
    assert second == at | {
        "corrects": 1, "energy_mj": -400, "overhead_mj": 5, "slice_ns": 0, "market_ug": 8,
        "provenance": "metered by engine",
    }  # fmt: skip
    assert "records" not in view()


def test_energy_of_a_work_that_came_too_late_is_absent() -> None:
    """After a line of zeros that read as no energy: no record has its time, so nothing is known of it."""
    zeros = msgspec.structs.replace(ENERGY, **dict.fromkeys(FIGURES, 0))
    receipt = receipt_view(replace(estimate=ENERGY), [Metered(7, zeros, INTERVAL)], SITE, operator=True)
    assert receipt["status"] == "unmetered"
    assert not {"energy_mj", "carbon_ug", "records"} & receipt.keys()
    assert not {"power", "site", "device"} & layers(receipt).keys()
    going = msgspec.structs.replace(zeros, ended=False)
    assert "status" not in receipt_view(SETTLED, [Metered(7, going, INTERVAL)], SITE, operator=True)
    whole = [Metered(7, ENERGY, INTERVAL), Metered(8, zeros, INTERVAL)]  # told after the cut, but known before it
    assert receipt_view(SETTLED, whole, SITE, operator=True)["energy_mj"] == 1_500


@pytest.mark.parametrize("operator", [True, False])
def test_what_is_unknown_is_absent(operator: bool) -> None:
    """No site facts, no timing, no cost: the words are not there, neither empty nor as a zero."""
    unknown = msgspec.structs.replace(
        ENERGY, energy_nano=None, overhead_nano=None, carbon_ug=None, device_nano=None, water_ul=None
    )
    bare = replace(delivery=Delivery(ending="client_gone", chunks=0), work=None, decision=None, loss_nano=0)
    receipt = view(bare, unknown, None, operator=operator, metered=False)
    seen = layers(receipt)
    assert not {"ran_at", "carbon_ug"} & {*receipt}
    assert not {"money_nano", "carbon_ug", "price", "carbon", "basis"} & {*seen["power"]}
    assert not {"site", "overhead", "money_nano", "water_ul"} & {*seen["site"]}
    assert not {"slice", "cost", "money_nano"} & {*seen["device"]}
    assert not {"queued_ms", "prefill_ms", "decode_ms", "replica"} & {*seen["engine"]}
    assert not {"chosen", "decide_us", "alternatives", "refused"} & {*seen["brain"]}
    assert "ttft_ms" not in seen["agents"]
    assert None not in everything(receipt)


@given(
    st.fixed_dictionaries(
        {name: st.integers(0, 9) | (st.nothing() if name in KNOWN else st.none()) for name in FIGURES}
    )
    | st.none(),
    st.booleans(),
    st.sampled_from([SITE, None]),
    st.sampled_from([SETTLED.decision, None]),
    st.sampled_from([SETTLED.work, None]),
    st.booleans(),
)
def test_any_receipt_is_json_without_a_null(
    figures: dict[str, Any] | None,
    metered: bool,
    site: SiteFacts | None,
    decision: Decision | None,
    work: Work | None,
    operator: bool,
) -> None:
    """Whatever is known and unknown, the view is JSON-ready and holds no None; a known zero is shown as a zero."""
    energy = None if figures is None else EnergyLine(receipt="rcpt_1", ended=True, **figures)
    receipt = view(replace(decision=decision, work=work), energy, site, operator=operator, metered=metered)
    assert b"null" not in msgspec.json.encode(receipt)
    if energy is not None and (energy.slice_ns or not metered):
        assert receipt["energy_mj"] == energy.energy_mj + energy.overhead_mj
        assert ("carbon_ug" in receipt) is (energy.carbon_ug is not None)


def test_the_engine_line_names_the_calibration_of_its_replica() -> None:
    """To the operator, when there is one of that replica; its source may be an address of the inside."""
    measured = Sourced(value=52_000, provenance=Provenance.MEASURED, source="calibrated", error_permille=40)
    facts = {**SITE.facts, "decode_milli_tps:secret-replica": measured}
    site = msgspec.structs.replace(SITE, facts=facts)
    engine = layers(view(site=site, operator=True))["engine"]
    assert engine["calibration"] == {
        "decode_milli_tps": 52_000, "provenance": "measured", "source": "calibrated", "error_permille": 40,
    }  # fmt: skip
    assert "calibration" not in layers(view(site=site))["engine"]
    assert "calibration" not in layers(view(operator=True))["engine"]
