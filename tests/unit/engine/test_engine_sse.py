"""Server-sent events and what is read from them."""

from __future__ import annotations

from itertools import pairwise
from typing import Literal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tokenworks.core.errors import EngineFailed
from tokenworks.core.words import Request, Usage
from tokenworks.engine.adapter import Chunk, Timing
from tokenworks.engine.events import Reader
from tokenworks.engine.llamacpp import LlamaReader
from tokenworks.engine.sse import Splitter, payload

ROLE = b'data: {"choices":[{"finish_reason":null,"index":0,"delta":{"role":"assistant","content":null}}],"id":"c"}\n\n'
WORD = b'data: {"choices":[{"finish_reason":null,"index":0,"delta":{"content":"What"}}],"id":"c"}\n\n'
LAST = b'data: {"choices":[{"finish_reason":"length","index":0,"delta":{}}],"id":"c"}\n\n'
USAGE = (
    b'data: {"choices":[],"id":"c","usage":{"completion_tokens":5,"prompt_tokens":33,"total_tokens":38,'
    b'"prompt_tokens_details":{"cached_tokens":32}},"timings":{"prompt_ms":10.465,"predicted_ms":39.158}}\n\n'
)
DONE = b"data: [DONE]\n\n"
TEXT = b'data: {"choices":[{"text":" of","index":0,"logprobs":null,"finish_reason":null}],"id":"c"}\n\n'
TEXT_LAST = (
    b'data: {"choices":[{"text":"","index":%d,"logprobs":null,"finish_reason":"length"}],'
    b'"usage":{"completion_tokens":3,"prompt_tokens":2}}\n\n'
)
STREAM = b"".join([ROLE, WORD, b": ping\n\n", LAST, USAGE.replace(b"\n\n", b"\r\n\r\n"), DONE])


def asked(endpoint: Literal["chat", "text"] = "chat", choices: int = 1, body: bytes = b"{}") -> Request:
    return Request(
        id="r", endpoint=endpoint, model="m", body=body, stream=True, show_usage=True, input_max=99, output_max=9,
        choices=choices, needs=frozenset(), arrived_ns=0,
    )  # fmt: skip


def read(raw: bytes, reader: Reader | None = None) -> Chunk:
    chunk = (reader or Reader()).read(raw)
    assert chunk is not None
    return chunk


def feed(splitter: Splitter, block: bytes) -> list[bytes]:
    return splitter.split(splitter.whole(block))


@given(st.lists(st.integers(0, len(STREAM)), max_size=40))
def test_any_packet_split_gives_the_same_events(cuts: list[int]) -> None:
    """Where packets end must not matter, nor may a byte change on the way."""
    whole = feed(Splitter(), STREAM)
    splitter, events = Splitter(), list[bytes]()
    edges = [0, *sorted(cuts), len(STREAM)]
    for start, end in pairwise(edges):
        events += feed(splitter, STREAM[start:end])
    assert events == whole
    assert len(events) == 6
    assert b"".join(events) == STREAM
    assert splitter.rest == b""


def test_an_endless_event_is_refused() -> None:
    """An engine that never ends an event must not fill the memory."""
    splitter = Splitter(event_bytes_max=100)
    assert splitter.whole(b"data: " + b"x" * 90) == b""
    with pytest.raises(EngineFailed, match="larger than 100 bytes"):
        splitter.whole(b"x" * 10)
    with pytest.raises(EngineFailed, match="larger than 100 bytes"):
        feed(Splitter(event_bytes_max=100), b"data: " + b"x" * 100 + b"\n\n")


def test_payload_joins_data_lines_and_drops_the_rest() -> None:
    """The data of an event is found whatever other fields and line ends there are."""
    assert payload(b"data: a\n\n") == b"a"
    assert payload(b"data:a\r\n\r\n") == b"a"
    assert payload(b"event: x\ndata: a\ndata: b\n\n") == b"a\nb"
    assert payload(b": ping\n\n") == b""


@pytest.mark.parametrize(
    ("raw", "output"),
    [
        (ROLE, False),
        (WORD, True),
        (LAST, False),
        (USAGE, False),
        (DONE, False),
        (TEXT, True),
        (b": ping\n\n", False),
        (b'data: {"choices":[{"index":0,"delta":{"role":"assistant","content":""}}]}\n\n', False),
        (b'data: {"choices": [{"index": 0, "delta": {"content": "\\n"}}], "usage": null}\n\n', True),
        (b'data: {"choices":[{"index":0,"delta":{"reasoning_content":"so"}}]}\n\n', True),
        (b'data: {"choices":[{"index":0,"delta":{"tool_calls":[{"index":0}]}}]}\n\n', True),
        (b'data: {"choices":[{"index":0,"delta":{"tool_calls":[]}}]}\n\n', False),
        (b'data: {"choices":[{"delta":{},"logprobs":{"content":[{"token":"a"}]}}]}\n\n', False),
    ],
)
def test_output_is_told_from_the_rest(raw: bytes, output: bool) -> None:
    """The second witness counts what carries text or a tool call, and nothing else."""
    assert read(raw).output is output


def test_text_that_looks_like_an_event_is_only_text() -> None:
    """A model that writes JSON about usage and errors fools nobody, because its quotes are escaped."""
    raw = b'data: {"choices":[{"delta":{"content":"{\\"error\\":{},\\"usage\\":{\\"x\\":1}}"}}]}\n\n'
    assert read(raw) == Chunk(raw, output=True)


def test_the_usage_event_is_marked_for_hiding() -> None:
    """A client that did not ask for usage gets a stream without that event."""
    chunk = read(USAGE, LlamaReader(asked()))
    assert chunk.held
    assert chunk.usage == Usage(input=1, cached_input=32, output=5)
    assert chunk.timing == Timing(prefill_ns=10_465_000, decode_ns=39_158_000)
    assert read(TEXT_LAST % 0).held is False
    assert read(DONE).done


def test_an_error_in_the_stream_is_raised() -> None:
    """An engine that fails in the middle is not taken for one that ended."""
    for raw in (
        b'data: {"error":{"message":"no"}}\n\n',
        b'error: {"message":"no"}\n\n',
        b'event: error\ndata: "no"\n\n',
    ):
        with pytest.raises(EngineFailed):
            Reader().read(raw)
    assert read(b'data: {"choices":[{"delta":{"content":"a"}}],"error":null}\n\n').output
    with pytest.raises(EngineFailed, match="not an answer"):
        Reader().read(b'data: {"error" oops\n\n')


def test_a_null_event_is_dropped() -> None:
    """llama.cpp begins some text streams with a null that no client understands."""
    assert Reader().read(b"data: null\n\n") is None


def test_choices_add_up_and_their_prompt_counts_once() -> None:
    """llama.cpp reports each choice for itself; the stream's usage is all of them."""
    reader = LlamaReader(asked(choices=2))
    assert read(USAGE, reader).usage == Usage(input=1, cached_input=32, output=5)
    assert read(USAGE, reader).usage == Usage(input=1, cached_input=32, output=10)


def test_several_prompts_each_count_once() -> None:
    """Two prompts with two choices each: two prompts and four answers were worked on."""
    reader = LlamaReader(asked("text", 4, b'{"prompt":["a","b"],"n":2}'))
    usages = [read(TEXT_LAST % index, reader).usage for index in (1, 0, 3, 2)]
    assert usages[-1] is not None
    assert usages[-1].output == 12
    assert usages[-1].input == 4
