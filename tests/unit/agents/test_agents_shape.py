from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from tokenworks.agents.shape import (
    CHOICES_MAX,
    MESSAGES_MAX,
    Endpoint,
    error_body,
    error_event,
    event,
    parse_request,
    receipt_object,
    usage_event,
    with_receipt,
)
from tokenworks.core.errors import BadRequest, BudgetSpent, EngineDown, TokenworksError
from tokenworks.core.words import Delivery, EnergyLine, Request, Usage
from tokenworks.exchange.words import Settlement

HELLO = [{"role": "user", "content": "hello"}]
ESTIMATE = EnergyLine(
    receipt="rcpt_1",
    energy_mj=900,
    energy_nano=1,
    overhead_mj=100,
    overhead_nano=1,
    carbon_ug=12,
    slice_ns=1,
    device_nano=None,
    ended=True,
)


def settlement(estimate: EnergyLine | None = ESTIMATE, loss_ustu: int = 0, loss_nano: int = 0) -> Settlement:
    return Settlement(
        receipt="rcpt_1",
        account="acme",
        budget="team",
        key="k",
        endpoint="chat",
        model_asked="m",
        model_served="m",
        usage=Usage(input=1),
        ustu=2_500_000,
        nano=1_234,
        loss_ustu=loss_ustu,
        loss_nano=loss_nano,
        rate_card="1",
        price_book="1",
        currency="USD",
        decision=None,
        delivery=Delivery(ending="complete", chunks=1),
        work=None,
        estimate=estimate,
        held_ustu=0,
        held_nano=0,
        hold_ns=0,
        arrived_ns=0,
        at_ns=0,
    )


def parse(asked: object, endpoint: Endpoint = "chat") -> Request:
    return parse_request(endpoint, json.dumps(asked).encode(), "rcpt_1", 7)


def chat(**fields: Any) -> Request:
    return parse({"model": "m", "messages": HELLO} | fields)


def text(**fields: Any) -> Request:
    return parse({"model": "m", "prompt": "hello"} | fields, "text")


def sent(request: Request) -> dict[str, Any]:
    """What the engine will read."""
    body: dict[str, Any] = json.loads(request.body)
    return body


def test_a_chat_request_is_read_and_passed_on() -> None:
    """What the front door needs is taken out; everything else reaches the engine as it came."""
    request = chat(temperature=0.5, max_tokens=9, n=2, seed=4, unheard_of={"a": [1]})
    assert (request.id, request.endpoint, request.model, request.arrived_ns) == ("rcpt_1", "chat", "m", 7)
    assert (request.output_max, request.choices, request.stream, request.show_usage) == (9, 2, False, False)
    assert request.needs == frozenset()
    body = {"model": "m", "messages": HELLO, "temperature": 0.5, "max_tokens": 9, "n": 2, "seed": 4}
    assert sent(request) == body | {"unheard_of": {"a": [1]}, "stream": False}


def test_how_much_may_be_made() -> None:
    """The newer name wins over the older, the larger of two kinds of choices counts, and nothing said is unknown."""
    assert chat().output_max is None
    assert chat(max_tokens=5).output_max == 5
    assert chat(max_completion_tokens=6, max_tokens=5).output_max == 6
    assert chat(max_completion_tokens=None, max_tokens=5).output_max == 5
    assert text(max_tokens=0).output_max == 0
    assert text(n=2, best_of=5).choices == 5
    assert chat(n=None).choices == 1


@pytest.mark.parametrize("prompt", ["hello", ["hello", "world"], [1, 2, 3]])
def test_a_text_prompt_has_three_forms(prompt: object) -> None:
    """Text, texts and tokens reach the engine as they are."""
    request = text(prompt=prompt)
    assert sent(request)["prompt"] == prompt
    assert request.input_max >= 3


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"model": None}, "model"),
        ({"model": ""}, "model"),
        ({"model": 5}, "model"),
        ({"grammar": "root ::= x"}, "grammar"),
        ({"stream": "yes"}, "stream"),
        ({"stream": 1}, "stream"),
        ({"stream": True, "stream_options": []}, "stream_options"),
        ({"stream": False, "stream_options": {"include_usage": True}}, "stream_options"),
        ({"n": 0}, "n"),
        ({"n": CHOICES_MAX + 1}, "n"),
        ({"n": 1.5}, "n"),
        ({"n": True}, "n"),
        ({"n": 10**30}, "n"),
        ({"best_of": "2"}, "best_of"),
        ({"max_tokens": -1}, "max_tokens"),
        ({"max_tokens": 1 << 40}, "max_tokens"),
        ({"max_completion_tokens": 0}, "max_completion_tokens"),
        ({"messages": None}, "messages"),
        ({"messages": []}, "messages"),
        ({"messages": "hello"}, "messages"),
        ({"messages": HELLO * (MESSAGES_MAX + 1)}, "messages"),
        ({"messages": ["hello"]}, "messages[0].role"),
        ({"messages": [*HELLO, {"content": "x"}]}, "messages[1].role"),
        ({"messages": [{"role": "boss", "content": "x"}]}, "messages[0].role"),
        ({"messages": [{"role": ["user"], "content": "x"}]}, "messages[0].role"),
        ({"messages": [{"role": "user", "content": 5}]}, "messages[0].content"),
        ({"messages": [{"role": "user", "content": {"text": "x"}}]}, "messages[0].content"),
    ],
)
def test_a_wrong_chat_request_names_its_parameter(fields: dict[str, Any], param: str) -> None:
    """The client reads which parameter is wrong, in the shape of an OpenAI error."""
    with pytest.raises(BadRequest) as caught:
        chat(**fields)
    assert caught.value.param == param
    shape = error_body(caught.value)["error"]
    assert (shape["type"], shape["code"], caught.value.status) == ("invalid_request_error", "bad_request", 400)


@pytest.mark.parametrize(
    "prompt", [None, "", [], 5, {"a": 1}, [1, "a"], ["a", None], [1, 1.5], ["a", {"b": 1}], [True, False], [[1], [2]]]
)
def test_a_wrong_prompt_is_refused(prompt: object) -> None:
    """Nothing, an empty list and mixed kinds are no prompt; an engine would fail on them after a hold was placed."""
    with pytest.raises(BadRequest) as caught:
        text(prompt=prompt)
    assert caught.value.param == "prompt"


@pytest.mark.parametrize(
    "body", [b"", b"{", b"\xff\xfe", b'"text"', b"[]", b"null", b"{}x", b'{"model": "\xff"}', b"[" * 100_000]
)
def test_what_is_no_json_object_is_refused(body: bytes) -> None:
    """Neither broken bytes nor a hostile nesting is more than a bad request."""
    with pytest.raises(BadRequest, match=r"valid JSON|JSON object"):
        parse_request("chat", body, "rcpt_1", 0)


def test_a_stream_always_reports_its_usage_to_us() -> None:
    """Usage is forced on for the books; whether the client sees it is as the client said; other options are kept."""
    for options, shown in (
        (None, False),
        ({}, False),
        ({"include_usage": False}, False),
        ({"include_usage": True}, True),
        ({"include_usage": True, "include_obfuscation": False}, True),
    ):
        request = chat(stream=True, stream_options=options)
        assert (request.stream, request.show_usage) == (True, shown)
        assert sent(request)["stream_options"] == {**(options or {}), "include_usage": True}


def test_without_a_stream_nothing_is_forced() -> None:
    """A whole answer carries its usage anyway."""
    for stream in (None, False):
        request = chat(stream=stream)
        assert (request.stream, sent(request)["stream"]) == (False, False)
        assert "stream_options" not in sent(request)


IMAGE = {"type": "image_url", "image_url": {"url": "data:image/png;base64,AAAA"}}


@pytest.mark.parametrize(
    ("fields", "needs"),
    [
        ({}, set()),
        ({"tools": [{"type": "function"}]}, {"tools"}),
        ({"tools": []}, set()),
        ({"response_format": {"type": "json_schema"}}, {"json_schema"}),
        ({"response_format": {"type": "json_object"}}, {"json_schema"}),
        ({"response_format": {"type": "text"}}, set()),
        ({"logprobs": True}, {"logprobs"}),
        ({"logprobs": False}, set()),
        ({"messages": [{"role": "user", "content": [{"type": "text", "text": "x"}, IMAGE]}]}, {"images"}),
        ({"tools": [{}], "logprobs": True}, {"tools", "logprobs"}),
    ],
)
def test_what_a_request_needs_of_its_model(fields: dict[str, Any], needs: set[str]) -> None:
    """Only what is really asked for narrows the choice of models."""
    assert chat(**fields).needs == needs


words = st.text(max_size=40)
contents = words | st.none() | st.lists(st.fixed_dictionaries({"type": st.just("text"), "text": words}), max_size=3)
messages = st.lists(
    st.fixed_dictionaries({"role": st.sampled_from(["system", "user", "assistant"]), "content": contents}),
    min_size=1,
    max_size=5,
)


def bytes_of(content: Any) -> int:
    if isinstance(content, str):
        return len(content.encode())
    return sum(bytes_of(part["text"]) for part in content or ())


@given(messages, st.lists(st.fixed_dictionaries({"name": words}), max_size=2), st.booleans())
@example([{"role": "user", "content": "\u2028\x00\U0001f600" * 9}], [], True)
def test_no_tokenizer_makes_more_tokens_of_a_chat(
    asked: list[dict[str, Any]], tools: list[dict[str, str]], escaped: bool
) -> None:
    """The bound is at least one token a byte of all texts and tools, however they were escaped, and a template."""
    body = json.dumps({"model": "m", "messages": asked, "tools": tools}, ensure_ascii=escaped).encode()
    request = parse_request("chat", body, "rcpt_1", 0)
    text_bytes = sum(bytes_of(message["content"]) for message in asked)
    tool_bytes = sum(len(tool["name"].encode()) for tool in tools)
    assert request.input_max >= text_bytes + tool_bytes + len(asked)


@given(st.text(min_size=1) | st.lists(words, min_size=1) | st.lists(st.integers(0, 200_000), min_size=1))
def test_no_tokenizer_makes_more_tokens_of_a_prompt(prompt: Any) -> None:
    """The same for the three forms of a plain prompt."""
    if isinstance(prompt, str):
        least = len(prompt.encode())
    else:
        least = sum(len(part.encode()) if isinstance(part, str) else 1 for part in prompt)
    assert text(prompt=prompt).input_max > least


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
    """One event in, one event out, with the engine's usage and our object in one JSON object."""
    raw = b'data: {"choices": [], "usage": {"prompt_tokens": 3}}\n\n'
    made = usage_event(raw, settlement())
    assert made.startswith(b"data: {")
    assert made.endswith(b"}\n\n")
    assert made.count(b"\n") == 2
    assert json.loads(made[len(b"data: ") :]) == {
        "choices": [],
        "usage": {"prompt_tokens": 3},
        "tokenworks": receipt_object(settlement()),
    }
    assert usage_event(raw.replace(b"data: ", b"data:").strip(), settlement()) == made


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
    assert made == event(made.removeprefix(b"data: ").strip())
