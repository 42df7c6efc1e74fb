from __future__ import annotations

from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.support import exchange as support

from tokenworks.core.words import (
    LAYERS,
    Candidate,
    Decision,
    Delivery,
    Interval,
    Provenance,
    Sourced,
    Usage,
    Work,
)
from tokenworks.exchange.receipt import EnergySum, receipt_view
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
ENERGY = EnergySum(
    energy_mj=1_000,
    energy_nano=77,
    overhead_mj=500,
    overhead_nano=33,
    carbon_ug=11,
    slice_ns=2_000_000_000,
    device_nano=44,
    final=True,
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
COST_WORDS = ("money_nano", "price", "cost", "chosen", "alternatives", "refused", "replica", "operator_loss_nano")


def view(
    settled: Settlement = SETTLED,
    energy: EnergySum | None = ENERGY,
    intervals: tuple[Interval, ...] = (INTERVAL,),
    site: SiteFacts | None = SITE,
    *,
    operator: bool = False,
) -> dict[str, Any]:
    return receipt_view(settled, energy, [*intervals], site, operator=operator)


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
    assert view(energy=ENERGY._replace(final=False), intervals=())["status"] == "provisional"
    assert layers(view(energy=ENERGY._replace(final=False), intervals=()))["power"]["provenance"] == "modelled"
    assert layers(view())["power"]["provenance"] == "measured"
    none = view(energy=None, intervals=())
    assert not {"status", "energy_mj", "carbon_ug"} & {*none}
    assert tuple(layers(none)) == LAYERS[3:]


def test_the_mix_is_the_intervals_or_else_the_sites() -> None:
    """Where the energy came from is as recorded; before the record, as the site's facts say; else absent."""
    assert layers(view())["power"]["mix_permille"] == {"wind": 1_000}
    assert layers(view(intervals=()))["power"]["mix_permille"] == {"coal": 1_000}
    assert "mix_permille" not in layers(view(intervals=(), site=None))["power"]


@pytest.mark.parametrize("operator", [True, False])
def test_what_is_unknown_is_absent(operator: bool) -> None:
    """No site facts, no timing, no cost: the words are not there, neither empty nor as a zero."""
    unknown = ENERGY._replace(energy_nano=None, overhead_nano=None, carbon_ug=None, device_nano=None)
    bare = replace(delivery=Delivery(ending="client_gone", chunks=0), work=None, decision=None, loss_nano=0)
    receipt = view(bare, unknown, (), None, operator=operator)
    seen = layers(receipt)
    assert not {"ran_at", "carbon_ug"} & {*receipt}
    assert not {"money_nano", "carbon_ug", "price", "carbon", "basis"} & {*seen["power"]}
    assert not {"site", "overhead", "money_nano"} & {*seen["site"]}
    assert not {"slice", "cost", "money_nano"} & {*seen["device"]}
    assert not {"queued_ms", "prefill_ms", "decode_ms", "replica"} & {*seen["engine"]}
    assert not {"chosen", "decide_us", "alternatives", "refused"} & {*seen["brain"]}
    assert "ttft_ms" not in seen["agents"]
    assert None not in everything(receipt)


@given(
    st.builds(
        EnergySum,
        *[st.integers(0, 9), st.none() | st.integers(0, 9), st.integers(0, 9), st.none() | st.integers(0, 9)],
        *[st.none() | st.integers(0, 9), st.integers(0, 9), st.none() | st.integers(0, 9), st.booleans()],
    )
    | st.none(),
    st.sampled_from([(INTERVAL,), ()]),
    st.sampled_from([SITE, None]),
    st.sampled_from([SETTLED.decision, None]),
    st.sampled_from([SETTLED.work, None]),
    st.booleans(),
)
def test_any_receipt_is_json_without_a_null(
    energy: EnergySum | None,
    intervals: tuple[Interval, ...],
    site: SiteFacts | None,
    decision: Decision | None,
    work: Work | None,
    operator: bool,
) -> None:
    """Whatever is known and unknown, the view is JSON-ready and holds no None; a known zero is shown as a zero."""
    receipt = view(replace(decision=decision, work=work), energy, intervals, site, operator=operator)
    assert b"null" not in msgspec.json.encode(receipt)
    if energy is not None:
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
