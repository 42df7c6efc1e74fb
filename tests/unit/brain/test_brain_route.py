from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tokenworks.brain.route import Offer, Scales, choose, eligible, price
from tokenworks.core.errors import BadRequest, EngineDown, UnknownModel
from tokenworks.core.units import NANO
from tokenworks.core.words import Request


def request(model: str = "m", needs: frozenset[str] = frozenset(), **fields: Any) -> Request:
    asked: dict[str, Any] = {"input_max": 400, "output_max": 100, "endpoint": "chat"} | fields
    return Request(
        id="r",
        model=model,
        body=b"{}",
        stream=False,
        show_usage=False,
        choices=1,
        needs=needs,
        arrived_ns=0,
        **asked,
    )


@dataclass
class Load:
    """What moves from request to request; it takes one second for 100 input tokens and 100 output tokens."""

    ready: bool = True
    full: bool = False
    running: int = 0
    wait_ns: int = 0
    prefill_tps: float | None = 200.0
    decode_tps: float | None = 200.0


def offer(replica: str, **fields: Any) -> Offer:
    """A replica; ``fields`` of its load too."""
    moving = {name: fields.pop(name) for name in Load.__dataclass_fields__ if name in fields}
    asked: dict[str, Any] = {
        "site": "s",
        "model": "m",
        "load": Load(**moving),
        "slots": 2,
        "context_tokens": 4_096,
        "capabilities": frozenset({"tools"}),
        "latency_ns": 0,
        "busy_mw": 3_600_000,
        "price_nano_per_kwh": 100_000_000,
        "carbon_ug_per_kwh": None,
        "device_nano_per_hour": None,
    }
    return Offer(replica=replica, **(asked | fields))


def by_model(*offers: Offer) -> dict[str, list[Offer]]:
    found: dict[str, list[Offer]] = {}
    for each in offers:
        found.setdefault(each.model, []).append(each)
    return found


def chosen(offers: list[Offer], scales: Scales | None = None, asked: Request | None = None) -> str:
    return choose(asked or request(), offers, {}, scales or Scales()).chosen.replica


def test_an_unknown_model_is_answered_with_the_nearest() -> None:
    """A misspelling gets its model, nonsense the list, and an empty grid says that it serves nothing."""
    offers = by_model(offer("a", model="smollm2-135m-instruct"), offer("b", model="qwen3-0.6b"))
    for asked, hint in (
        ("smollm2-135m", "did you mean 'smollm2-135m-instruct'?"),
        ("zzz", "served here: qwen3-0.6b, smollm2-135m-instruct"),
    ):
        with pytest.raises(UnknownModel) as caught:
            eligible(request(asked), offers)
        assert (caught.value.hint, caught.value.param, caught.value.status) == (hint, "model", 404)
    with pytest.raises(UnknownModel) as caught:
        eligible(request("m"), {})
    assert caught.value.hint == "served here: nothing"


def test_a_capability_that_no_replica_has_is_the_clients_mistake() -> None:
    """All that is lacking is named, and it is a bad request, not a busy grid."""
    with pytest.raises(BadRequest, match="'m' cannot do: images, logprobs") as caught:
        eligible(request(needs=frozenset({"tools", "logprobs", "images"})), by_model(offer("a", ready=False)))
    assert caught.value.param == "model"


def test_hard_limits_leave_out_and_say_which() -> None:
    """Only ready replicas with room and with every capability may serve; the others are listed with their reason."""
    offers = by_model(
        offer("able", capabilities=frozenset({"tools", "logprobs"})),
        offer("plain"),
        offer("asleep", capabilities=frozenset({"logprobs"}), ready=False, full=True),
        offer("busy", capabilities=frozenset({"logprobs"}), full=True),
        offer("other", model="n"),
    )
    options, refused = eligible(request(needs=frozenset({"logprobs"})), offers)
    assert [option.replica for option in options] == ["able"]
    assert refused == {"plain": "lacks a capability", "asleep": "not ready", "busy": "queue full"}
    assert choose(request(), options, refused, Scales()).refused == refused


@pytest.mark.parametrize(("fields", "why"), [({"ready": False}, "not ready"), ({"full": True}, "queue full")])
def test_a_model_that_nobody_can_serve_now_may_be_asked_again(fields: dict[str, bool], why: str) -> None:
    """It is the grid's fault: 503 with a time to wait, and the reason."""
    with pytest.raises(EngineDown, match=why) as caught:
        eligible(request(), by_model(offer("a", **fields), offer("b", **fields)))
    assert (caught.value.status, caught.value.retry_after_s) == (503, 2)


def test_the_terms_by_hand() -> None:
    """One second at 3.6 kW is one watt-hour-thousandth of a kWh: each term from its own formula."""
    option = offer("a", carbon_ug_per_kwh=500_000_000, device_nano_per_hour=3_600, latency_ns=NANO // 2)
    scales = Scales(delay_nano_per_s=1_000, carbon_nano_per_kg=2 * NANO)
    candidate = price(request(), option, scales)
    assert candidate.terms_nano == {"energy": 100_000, "carbon": 1_000_000, "device": 1, "delay": 1_500}
    assert candidate.total_nano == 1_101_501
    loaded = price(request(), offer("a", running=3, slots=2), Scales(delay_nano_per_s=1_000))
    assert loaded.terms_nano["delay"] == 2_000


def test_what_is_not_known_has_no_term() -> None:
    """No price, no carbon price, no cost of the device: no word in the terms, and no zero."""
    bare = offer("a", price_nano_per_kwh=None, carbon_ug_per_kwh=5, busy_mw=7)
    assert price(request(), bare, Scales()).terms_nano == {}
    assert (
        price(request(), offer("a", busy_mw=None, carbon_ug_per_kwh=5), Scales(carbon_nano_per_kg=5)).terms_nano == {}
    )
    assert price(request(), bare, Scales()).total_nano == 0


def test_cheaper_energy_wins_until_carbon_has_a_price() -> None:
    """The dirty site is cheaper; a price on carbon turns the order round."""
    dirty = offer("dirty", price_nano_per_kwh=50_000_000, carbon_ug_per_kwh=900_000_000)
    clean = offer("clean", price_nano_per_kwh=90_000_000, carbon_ug_per_kwh=20_000_000)
    assert chosen([clean, dirty]) == "dirty"
    assert chosen([clean, dirty], Scales(carbon_nano_per_kg=NANO // 10)) == "clean"
    assert chosen([clean, dirty], Scales(carbon_nano_per_kg=NANO // 100)) == "dirty"


def test_a_price_on_delay_avoids_a_loaded_replica() -> None:
    """Waiting costs nothing until the operator says what it is worth; then the queue and the distance count."""
    loaded = offer("loaded", price_nano_per_kwh=50_000_000, running=8)
    idle = offer("idle", price_nano_per_kwh=60_000_000)
    assert chosen([loaded, idle]) == "loaded"
    assert chosen([loaded, idle], Scales(delay_nano_per_s=NANO)) == "idle"
    near, far = offer("z-near"), offer("a-far", latency_ns=NANO)
    assert chosen([far, near]) == "a-far"
    assert chosen([far, near], Scales(delay_nano_per_s=NANO)) == "z-near"


def test_a_replica_without_a_record_is_taken_for_slow() -> None:
    """Before it has served anything it is assumed slow, so one with a record is preferred."""
    assert chosen([offer("a-new", prefill_tps=None, decode_tps=None), offer("z-known")]) == "z-known"


def test_equal_prices_go_to_the_less_loaded_and_then_by_name() -> None:
    """A tie never depends on the order in which replicas were listed."""
    offers = [offer("c", running=1), offer("b"), offer("a", running=1, slots=1), offer("d")]
    for order in (offers, offers[::-1], offers[2:] + offers[:2]):
        decision = choose(request(), order, {}, Scales())
        assert decision.chosen.replica == "b"
        assert [other.replica for other in decision.alternatives] == ["d", "c", "a"]


def test_an_answer_of_no_tokens_is_not_priced_as_a_long_one() -> None:
    """``max_tokens`` 0 asks for the prompt only, so no output is expected of it."""
    none, one = (price(request(endpoint="text", output_max=n), offer("a"), Scales()) for n in (0, 1))
    assert none.total_nano <= one.total_nano


speeds = st.none() | st.floats(0.1, 10_000)
offers = st.lists(
    st.builds(
        Offer,
        replica=st.text("abcdef", min_size=1, max_size=4),
        site=st.just("s"),
        model=st.just("m"),
        load=st.builds(Load, running=st.integers(0, 100), prefill_tps=speeds, decode_tps=speeds),
        slots=st.integers(0, 8),
        context_tokens=st.just(4_096),
        capabilities=st.just(frozenset()),
        latency_ns=st.integers(0, 10 * NANO),
        busy_mw=st.none() | st.integers(0, 10**7),
        price_nano_per_kwh=st.none() | st.integers(-(10**9), 10**9),
        carbon_ug_per_kwh=st.none() | st.integers(0, 10**9),
        device_nano_per_hour=st.none() | st.integers(0, 10**10),
    ),
    min_size=1,
    max_size=8,
    unique_by=lambda made: made.replica,
)
scales = st.builds(
    Scales,
    delay_nano_per_s=st.none() | st.integers(0, 10**9),
    carbon_nano_per_kg=st.none() | st.integers(0, 10**9),
)


@given(offers, scales, st.integers(0, 10**6), st.none() | st.integers(1, 10**5))
def test_the_chosen_option_is_the_cheapest_and_its_terms_add_up(
    options: list[Offer], weights: Scales, input_max: int, output_max: int | None
) -> None:
    """Against brute force: no option is cheaper, the alternatives are the next ones, and every total is its terms."""
    asked = request(input_max=input_max, output_max=output_max)
    decision = choose(asked, options, {}, weights)
    ranked = [decision.chosen, *decision.alternatives]
    assert all(candidate.total_nano == sum(candidate.terms_nano.values()) for candidate in ranked)
    totals = {option.replica: price(asked, option, weights).total_nano for option in options}
    assert [candidate.total_nano for candidate in ranked] == sorted(totals.values())[:4]
    assert {candidate.replica: candidate.total_nano for candidate in ranked}.items() <= totals.items()
    assert choose(asked, options[::-1], {}, weights) == decision
