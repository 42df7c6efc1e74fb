from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from tokenworks.agents.answers import error_body
from tokenworks.agents.shape import CHOICES_MAX, MESSAGES_MAX, parse_request, with_model, with_output
from tokenworks.core.errors import BadRequest
from tokenworks.core.words import Endpoint, Request

HELLO = [{"role": "user", "content": "hello"}]


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
    body["unheard_of"] = {"a": [1]}
    assert sent(request) == body
    raw = b' {"seed" : 1.0, "model":"m","messages":[{"role":"user","content":"\\u00e9"}]}\n'
    assert parse_request("chat", raw, "rcpt_1", 7).body is raw, "not even written anew"


RESPONSE = {"model": "m", "input": "hello"}


def messages_request(**fields: Any) -> Request:
    return parse({"model": "m", "messages": HELLO, "max_tokens": 9} | fields, "messages")


def test_every_endpoint_needs_a_model_that_speaks_it() -> None:
    """What OpenAI's older engines cannot do is asked as a capability; embeddings make no tokens."""
    embeddings = parse({"model": "m", "input": ["a", "b"]}, "embeddings")
    assert embeddings.needs == {"embeddings"}
    assert embeddings.output_max == 0
    assert messages_request().needs == {"messages"}
    assert messages_request().output_max == 9
    responses = parse(RESPONSE | {"max_output_tokens": 4}, "responses")
    assert responses.needs == {"responses"}
    assert responses.output_max == 4
    image = [{"type": "image", "source": {}}]
    asked = messages_request(messages=[{"role": "user", "content": image}], tools=[{"name": "x"}])
    assert asked.needs == {"messages", "images", "tools"}
    shaped = parse(RESPONSE | {"text": {"format": {"type": "json_schema"}}}, "responses")
    assert shaped.needs == {"responses", "json_schema"}


@pytest.mark.parametrize(
    ("endpoint", "fields", "param"),
    [
        ("embeddings", {"model": "m"}, "input"),
        ("embeddings", {"model": "m", "input": []}, "input"),
        ("messages", {"model": "m", "messages": HELLO}, "max_tokens"),
        ("messages", {"model": "m", "messages": HELLO, "max_tokens": 0}, "max_tokens"),
        ("messages", {"model": "m", "max_tokens": 5}, "messages"),
        ("responses", {"model": "m"}, "input"),
        ("responses", {"model": "m", "input": ""}, "input"),
        ("responses", {"model": "m", "input": {}}, "input"),
        ("responses", RESPONSE | {"max_output_tokens": 0}, "max_output_tokens"),
        ("responses", RESPONSE | {"previous_response_id": "r"}, "previous_response_id"),
        ("responses", RESPONSE | {"background": True}, "background"),
    ],
)
def test_a_wrong_request_of_any_endpoint_names_its_parameter(
    endpoint: Endpoint, fields: dict[str, Any], param: str
) -> None:
    """What is stored nowhere cannot be continued; the rest is as with a chat."""
    with pytest.raises(BadRequest) as caught:
        parse(fields, endpoint)
    assert caught.value.param == param


@pytest.mark.parametrize(
    ("endpoint", "fields", "name"),
    [
        ("chat", {"messages": HELLO}, "max_tokens"),
        ("chat", {"messages": HELLO, "max_completion_tokens": 50}, "max_completion_tokens"),
        ("text", {"prompt": "a", "max_tokens": 50}, "max_tokens"),
        ("messages", {"messages": HELLO, "max_tokens": 50}, "max_tokens"),
        ("responses", {"input": "a"}, "max_output_tokens"),
    ],
)
def test_a_limit_is_put_where_its_endpoint_reads_it(endpoint: Endpoint, fields: dict[str, Any], name: str) -> None:
    """Cut by the budget or sent to another model: only that member of the body changes."""
    asked = parse({"model": "m", "seed": 3} | fields, endpoint)
    cut = with_output(asked, 7)
    assert (cut.output_max, cut.clamped) == (7, True)
    assert sent(cut) == sent(asked) | {name: 7}
    other = with_model(asked, "n")
    assert (other.model, sent(other)) == ("n", sent(asked) | {"model": "n"})


def test_how_much_may_be_made() -> None:
    """The newer name wins over the older, the larger of two kinds of choices counts, and nothing said is unknown."""
    assert chat().output_max is None
    assert chat(max_tokens=5).output_max == 5
    assert chat(max_completion_tokens=6, max_tokens=5).output_max == 6
    assert chat(max_completion_tokens=None, max_tokens=5).output_max == 5
    assert text(max_tokens=0).output_max == 0
    assert text(n=2, best_of=5).choices == 5
    assert text(n=2, prompt=["a", "b", "c"]).choices == 6, "each prompt has answers of its own"
    assert text(n=2, prompt=[1, 2, 3]).choices == 2
    assert text(prompt=[[1, 2], [3]]).choices == 2
    assert chat(n=None).choices == 1


@pytest.mark.parametrize("prompt", ["hello", ["hello", "world"], [1, 2, 3], [[1, 2], [3]]])
def test_a_text_prompt_has_four_forms(prompt: object) -> None:
    """Text, texts, tokens and lists of tokens reach the engine as they are."""
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
    "prompt",
    [None, "", [], 5, {"a": 1}, [1, "a"], ["a", None], [1, 1.5], ["a", {"b": 1}], [True, False], [[1], ["a"]], [[]]],
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
        assert request.stream is False
        assert sent(request) == {"model": "m", "messages": HELLO, "stream": stream}


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
