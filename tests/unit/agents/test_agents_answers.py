"""Answers as clients read them: receipts beside the usage, the ends of streams, and errors in each dialect."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from tests.support import exchange as support
from tests.support.exchange import energy_line

from tokenworks.agents.answers import DONE, error_body, error_event, last_events, receipt_object, with_receipt
from tokenworks.core.errors import BadRequest, BudgetSpent, EngineDown, TokenworksError
from tokenworks.core.words import Endpoint, EnergyLine, Request
from tokenworks.exchange.words import Settlement

ESTIMATE = energy_line("rcpt_1", 900, overhead_mj=100, carbon_ug=12)


def settlement(estimate: EnergyLine | None = ESTIMATE, loss_ustu: int = 0, loss_nano: int = 0) -> Settlement:
    figures = {"ustu": 2_500_000, "nano": 1_234, "loss_ustu": loss_ustu, "loss_nano": loss_nano}
    return support.settlement("rcpt_1", estimate=estimate, **figures)


def asked(endpoint: Endpoint, shown: bool = False) -> Request:
    return Request(
        id="rcpt_1", endpoint=endpoint, model="m", body=b"{}", stream=True, show_usage=shown, input_max=1, output_max=1,
        choices=1, needs=frozenset(), arrived_ns=0,
    )  # fmt: skip


values = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**53), 2**53) | st.text(max_size=10),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=8,
)


@given(
    st.dictionaries(st.text(max_size=8).filter(lambda name: name != "tokenworks"), values, max_size=4),
    st.sampled_from([None, 2]),
    st.sampled_from(["", "\n", "  \r\n"]),
)
@example({}, None, "")
@example({}, 2, "\n")
def test_the_receipt_is_added_to_any_answer(answer: dict[str, Any], indent: int | None, tail: str) -> None:
    """However the engine formatted its object, the result is the same object with one member more."""
    body = (json.dumps(answer, indent=indent) + tail).encode()
    settled = settlement()
    assert json.loads(with_receipt(body, settled)) == answer | {"tokenworks": receipt_object(settled)}


def test_nothing_is_re_encoded() -> None:
    """The engine's own bytes stay: its number formats and its order are none of our business."""
    made = with_receipt(b'{"b": 1.10, "a":"\\u00e9"}', settlement())
    assert made.startswith(b'{"b": 1.10, "a":"\\u00e9","tokenworks":{')
    assert with_receipt(b"[1]", settlement()) == b"[1]"


def test_the_receipt_object_says_what_was_charged() -> None:
    """The price is exact text and an integer, without the operator's loss; the energy says that it is an estimate."""
    made = receipt_object(settlement(loss_ustu=500_000, loss_nano=234))
    assert made == {
        "receipt": "rcpt_1",
        "stu": "2 STU",
        "ustu": 2_000_000,
        "price": "0.000001 USD",
        "price_nano": 1_000,
        "energy_mj": 1_000,
        "carbon_ug": 12,
        "energy_status": "provisional",
        "energy_provenance": "modelled",
    }


def test_what_is_unknown_is_not_in_the_receipt_object() -> None:
    """Without an estimate there is no energy, and no word about its status."""
    assert {*receipt_object(settlement(None))} == {"receipt", "stu", "ustu", "price", "price_nano"}


def test_the_usage_event_carries_the_receipt() -> None:
    """One event in, one event out, with the engine's usage and our object in one JSON object; then the end mark."""
    raw = b'data: {"choices": [], "usage": {"prompt_tokens": 3}}\n\n'
    made = last_events(asked("chat", shown=True), [raw], settlement())
    assert made.startswith(b"data: {")
    assert made.endswith(b"}\n\n" + DONE)
    event = made.removesuffix(DONE)
    assert event.count(b"\n") == 2
    assert json.loads(event[len(b"data: ") :]) == {
        "choices": [],
        "usage": {"prompt_tokens": 3},
        "tokenworks": receipt_object(settlement()),
    }
    bare = raw.replace(b"data: ", b"data:").strip()
    assert last_events(asked("chat", shown=True), [bare], settlement()) == made
    assert last_events(asked("chat"), [raw], settlement()) == DONE, "nobody asked for it"


def test_the_last_events_of_other_streams_carry_the_receipt() -> None:
    """Messages end with two events, responses with one; the one with the usage gets our object, nothing is hidden."""
    delta = b'event: message_delta\ndata: {"type":"message_delta","usage":{"output_tokens":3}}\n\n'
    stop = b'event: message_stop\ndata: {"type":"message_stop"}\n\n'
    made = last_events(asked("messages"), [delta, stop], settlement())
    assert made.endswith(stop)
    name, data = made.removesuffix(stop).strip().split(b"\n")
    assert name == b"event: message_delta"
    assert json.loads(data[6:])["tokenworks"] == receipt_object(settlement())
    done = b'event: response.completed\ndata: {"type":"response.completed","response":{}}\n\n'
    name, data = last_events(asked("responses"), [done], settlement()).strip().split(b"\n")
    assert name == b"event: response.completed"
    assert {*json.loads(data[6:])} == {"type", "response", "tokenworks"}


@pytest.mark.parametrize(
    ("error", "shape"),
    [
        (
            BudgetSpent("no more", hint="ask for less"),
            {
                "message": "no more",
                "type": "insufficient_quota",
                "param": None,
                "code": "budget_exceeded",
                "hint": "ask for less",
            },
        ),
        (
            EngineDown(),
            {
                "message": "No replica can serve this model now.",
                "type": "server_error",
                "param": None,
                "code": "engine_unavailable",
            },
        ),
        (
            BadRequest("n is wrong", param="n"),
            {"message": "n is wrong", "type": "invalid_request_error", "param": "n", "code": "bad_request"},
        ),
    ],
)
def test_an_error_has_the_shape_that_clients_know(error: TokenworksError, shape: dict[str, Any]) -> None:
    """Message, type, param and code are always there; a hint only when there is one; in a stream it is one event."""
    assert error_body(error) == {"error": shape}
    made = error_event(error)
    assert json.loads(made.removeprefix(b"data: ")) == {"error": shape}
    assert made.endswith(b"}\n\n")
    assert made.count(b"\n") == 2


def test_other_dialects_have_errors_of_their_own() -> None:
    """Anthropic's SDK reads ``type`` and ``error``; a responses stream has a flat error event."""
    error = BadRequest("n is wrong", param="n")
    assert error_body(error, "messages") == {
        "type": "error",
        "error": {"type": "invalid_request_error", "message": "n is wrong", "code": "bad_request"},
    }
    endpoints: list[Endpoint] = ["messages", "responses"]
    for endpoint in endpoints:
        name, data = error_event(error, endpoint).strip().split(b"\n")
        assert name == b"event: error"
        assert json.loads(data[6:])["type"] == "error"
    assert json.loads(error_event(error, "responses").partition(b"data: ")[2])["message"] == "n is wrong"
