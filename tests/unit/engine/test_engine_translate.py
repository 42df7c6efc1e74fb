"""OpenAI's chat in Anthropic's Messages and back, checked against examples of both references."""

from __future__ import annotations

import json
from typing import Any

import pytest

from tokenworks.core.errors import BadRequest, EngineFailed
from tokenworks.core.words import Request
from tokenworks.engine.anthropic import Anthropic
from tokenworks.engine.translate import ChatReader, to_chat, to_messages

TOOL = {"type": "function", "function": {"name": "price", "description": "d", "parameters": {"type": "object"}}}
CALL = {"id": "call_1", "type": "function", "function": {"name": "price", "arguments": '{"of": "tea"}'}}
BROKEN = {"id": "i", "function": {"name": "price", "arguments": "{"}}
USE = {"type": "tool_use", "id": "call_1", "name": "price", "input": {"of": "tea"}}


def chat(messages: list[Any] | None = None, *, stream: bool = False, choices: int = 1, **fields: Any) -> Request:
    body = {"model": "m", "messages": messages or [{"role": "user", "content": "hi"}]} | fields
    return Request(
        id="r", endpoint="chat", model="m", body=json.dumps(body).encode(), stream=stream, show_usage=True,
        input_max=9, output_max=9, choices=choices, needs=frozenset(), arrived_ns=7 * 10**9,
    )  # fmt: skip


def text(said: str) -> dict[str, str]:
    return {"type": "text", "text": said}


def test_a_conversation_with_tools_and_pictures() -> None:
    """System apart, results of one turn in one message, pictures by value and by address."""
    picture = [
        text("what?"),
        {"type": "image_url", "image_url": {"url": "data:image/png;base64,QUJD"}},
        {"type": "image_url", "image_url": {"url": "https://x/y.png"}},
    ]
    messages = [
        {"role": "system", "content": "be brief"},
        {"role": "developer", "content": [text("no lists")]},
        {"role": "user", "content": picture},
        {"role": "assistant", "content": None, "tool_calls": [CALL, CALL | {"id": "call_2"}]},
        {"role": "tool", "tool_call_id": "call_1", "content": "3"},
        {"role": "tool", "tool_call_id": "call_2", "content": "4"},
        {"role": "assistant", "content": "three"},
    ]
    made = json.loads(to_messages(chat(messages)))
    assert made["system"] == "be brief\n\nno lists"
    user, assistant, results, last = made["messages"]
    assert [part["type"] for part in user["content"]] == ["text", "image", "image"]
    assert user["content"][1]["source"] == {"type": "base64", "media_type": "image/png", "data": "QUJD"}
    assert user["content"][2]["source"] == {"type": "url", "url": "https://x/y.png"}
    assert assistant == {"role": "assistant", "content": [USE, USE | {"id": "call_2"}]}
    assert results["role"] == "user"
    assert [(r["tool_use_id"], r["content"]) for r in results["content"]] == [
        ("call_1", [text("3")]),
        ("call_2", [text("4")]),
    ]
    assert last["content"] == [text("three")]
    assert made["max_tokens"] == 4096


def test_settings_are_carried_over() -> None:
    """Limits, stops, tools and who asks; a temperature beyond theirs is their greatest."""
    asked = chat(
        max_tokens=5, max_completion_tokens=6, temperature=1.7, top_p=0.5, stop="END", user="u", seed=3, stream=True,
        tools=[TOOL], tool_choice="required", parallel_tool_calls=False,
    )  # fmt: skip
    made = json.loads(to_messages(asked))
    assert {name: made[name] for name in ("max_tokens", "temperature", "top_p", "stop_sequences", "metadata")} == {
        "max_tokens": 6, "temperature": 1, "top_p": 0.5, "stop_sequences": ["END"], "metadata": {"user_id": "u"},
    }  # fmt: skip
    assert made["tools"] == [{"name": "price", "description": "d", "input_schema": {"type": "object"}}]
    assert made["tool_choice"] == {"type": "any", "disable_parallel_tool_use": True}
    assert "seed" not in made
    named = json.loads(to_messages(chat(tools=[TOOL], tool_choice={"function": {"name": "price"}}, stop=["a", "b"])))
    assert named["tool_choice"] == {"type": "tool", "name": "price"}
    assert named["stop_sequences"] == ["a", "b"]


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"choices": 2}, "n"),
        ({"response_format": {"type": "json_object"}}, "response_format"),
        ({"logprobs": True}, "logprobs"),
        ({"messages": [{"role": "user", "content": [{"type": "input_audio"}]}]}, "messages"),
        ({"messages": [{"role": "assistant", "tool_calls": [BROKEN]}]}, "messages"),
    ],
)
def test_what_messages_cannot_say_is_refused(fields: dict[str, Any], param: str) -> None:
    """Rather an error than an answer of another shape."""
    with pytest.raises(BadRequest) as caught:
        to_messages(chat(**fields))
    assert caught.value.param == param


async def test_a_malformed_request_is_the_clients_mistake() -> None:
    """The front door does not read messages; the translation meets what is wrong in them."""
    adapter = Anthropic("http://127.0.0.1:1", api_key="k")
    for wrong in ("text", [1], [{"role": "tool"}, {"role": "user", "content": [{"type": "image_url"}]}]):
        with pytest.raises(BadRequest, match="not one of chat"):
            adapter.body_for(chat(messages=wrong))  # type: ignore[arg-type]
    await adapter.close()


@pytest.mark.parametrize(
    ("ends", "finish"),
    [("end_turn", "stop"), ("max_tokens", "length"), ("tool_use", "tool_calls"), ("refusal", "content_filter")],
)
def test_an_answer_comes_back_as_chat(ends: str, finish: str) -> None:
    """Thoughts, text and calls where chat has them; tokens written to the cache are prompt tokens."""
    said = {
        "id": "msg", "stop_reason": ends,
        "content": [{"type": "thinking", "thinking": "hm"}, text("a"), text("b"), USE],
        "usage": {"input_tokens": 3, "cache_creation_input_tokens": 4, "output_tokens": 5},
    }  # fmt: skip
    made = json.loads(to_chat(json.dumps(said).encode(), chat()))
    [choice] = made["choices"]
    assert (made["id"], made["created"], made["model"], choice["finish_reason"]) == ("msg", 7, "m", finish)
    assert choice["message"]["content"] == "ab"
    assert choice["message"]["reasoning_content"] == "hm"
    [call] = choice["message"]["tool_calls"]
    assert json.loads(call["function"].pop("arguments")) == {"of": "tea"}
    assert call == {"id": "call_1", "type": "function", "function": {"name": "price"}}
    assert (made["usage"]["prompt_tokens"], made["usage"]["total_tokens"]) == (7, 12)


@pytest.mark.parametrize("body", [b"no", b"[]", b"{}", b'{"content": 3}', b'{"content": [{"type": "text"}]}'])
def test_what_is_no_answer_is_the_engines_failure(body: bytes) -> None:
    """Also when it is JSON."""
    with pytest.raises(EngineFailed):
        to_chat(body, chat())


def test_a_stream_of_thoughts_text_and_calls() -> None:
    """Each event in chat's words, calls counted, arguments piece by piece, the report once and last."""
    events: list[dict[str, Any]] = [
        {"type": "message_start", "message": {"id": "msg", "usage": {"input_tokens": 3, "output_tokens": 1}}},
        {"type": "ping"},
        {"type": "content_block_start", "index": 0, "content_block": {"type": "thinking"}},
        {"type": "content_block_delta", "index": 0, "delta": {"type": "thinking_delta", "thinking": "hm"}},
        {"type": "content_block_delta", "index": 0, "delta": {"type": "signature_delta", "signature": "s"}},
        {"type": "content_block_stop", "index": 0},
        {"type": "content_block_delta", "index": 1, "delta": {"type": "text_delta", "text": "so"}},
        {"type": "content_block_start", "index": 2, "content_block": USE | {"input": {}}},
        {"type": "content_block_delta", "index": 2, "delta": {"type": "input_json_delta", "partial_json": '{"of":'}},
        {"type": "content_block_delta", "index": 2, "delta": {"type": "input_json_delta", "partial_json": '"tea"}'}},
        {"type": "message_delta", "delta": {"stop_reason": "tool_use"}, "usage": {"output_tokens": 9}},
        {"type": "message_stop"},
    ]
    reader = ChatReader(chat(stream=True))
    raw = [f"event: {event['type']}\ndata: {json.dumps(event)}\n\n".encode() for event in events]
    assert reader.deltas(raw[6]) is None
    chunks = [chunk for each in raw if (chunk := reader.read(each)) is not None]
    made = [json.loads(chunk.raw[6:]) for chunk in chunks]
    deltas = [each["choices"][0]["delta"] for each in made if each["choices"]]
    start = {"index": 0, "id": "call_1", "type": "function", "function": {"name": "price", "arguments": ""}}
    assert deltas == [
        {"role": "assistant", "content": ""},
        {"reasoning_content": "hm"},
        {"content": "so"},
        {"tool_calls": [start]},
        {"tool_calls": [{"index": 0, "function": {"arguments": '{"of":'}}]},
        {"tool_calls": [{"index": 0, "function": {"arguments": '"tea"}'}}]},
        {},
    ]
    assert made[-2]["choices"][0]["finish_reason"] == "tool_calls"
    assert [(chunk.held, chunk.done) for chunk in chunks] == [(False, False)] * 7 + [(True, True)]
    assert made[-1]["usage"]["completion_tokens"] == 9
    assert sum(chunk.output for chunk in chunks) == 4


def test_an_error_in_the_stream_is_an_error() -> None:
    """And so is an event that no version of Messages has."""
    reader = ChatReader(chat(stream=True))
    with pytest.raises(EngineFailed, match="Overloaded"):
        reader.read(b'event: error\ndata: {"type":"error","error":{"message":"Overloaded"}}\n\n')
    with pytest.raises(EngineFailed, match="not one of Messages"):
        reader.read(b'data: {"type":"content_block_delta"}\n\n')
