"""A stream is passed on in blocks that nobody looks into; it must come out as if every event had been read alone."""

from __future__ import annotations

import asyncio
import json
import re
from collections.abc import Sequence
from itertools import pairwise
from typing import NamedTuple, cast

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from tokenworks.core.errors import EngineFailed
from tokenworks.core.words import Usage
from tokenworks.engine.events import MessagesReader, Reader, ResponsesReader
from tokenworks.engine.openai_compatible import Stream
from tokenworks.engine.pace import Pace
from tokenworks.engine.wire import Connection

_BLANKS = re.compile(rb"\n{2,}")
HEAD = b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n"


class Told(NamedTuple):
    """One event, and what the test that wrote it knows of it."""

    raw: bytes
    output: int = 0
    held: bool = False
    hidden: bool = False
    """It never reaches the client."""
    usage: Usage | None = None


class Wire:
    """The socket of a connection without a socket: packets go in by hand, and not while reading is paused."""

    def __init__(self) -> None:
        self.paused = self.closed = False
        self.kept = 0
        self.connection = Connection(self)
        self.connection.connection_made(cast(asyncio.Transport, self))
        self.response = self.connection.send(b"", 60)

    def write(self, data: bytes) -> None: ...
    def is_closing(self) -> bool:
        return self.closed

    def pause_reading(self) -> None:
        assert not self.paused
        self.paused = True

    def resume_reading(self) -> None:
        assert self.paused
        self.paused = False

    def abort(self) -> None:
        self.closed = True

    pace = Pace()

    def opened(self, connection: Connection) -> None: ...
    def release(self, connection: Connection, keep: bool) -> None:
        self.kept += keep

    def closing(self, connection: Connection) -> None: ...
    def lost(self, connection: Connection) -> None: ...

    async def feed(self, packets: Sequence[bytes]) -> None:
        for packet in packets:
            for turn in range(200):
                if not self.paused:
                    break
                await asyncio.sleep(0 if turn < 20 else 0.001)
            assert not self.paused, "it is never resumed"
            if self.closed:
                return
            self.connection.data_received(packet)
            await asyncio.sleep(0)


def cut(data: bytes, places: Sequence[int]) -> list[bytes]:
    edges = sorted({0, len(data), *(place % (len(data) + 1) for place in places)})
    return [data[start:end] for start, end in pairwise(edges)]


async def relayed(
    reader: Reader, body: bytes, chunks: Sequence[int], packets: Sequence[int], slice_chunks: int
) -> tuple[Stream, bytes, list[int]]:
    """The stream after its end, what its client got, and how far it was over each time that its hold was used up."""
    wire, got, over = Wire(), list[bytes](), list[int]()
    framed = b"".join(b"%x\r\n%b\r\n" % (len(part), part) for part in cut(body, chunks)) + b"0\r\n\r\n"
    stream = Stream(wire.response, reader)
    feeding = asyncio.create_task(wire.feed(cut(HEAD + framed, packets)))
    try:
        async with asyncio.timeout(5):
            while not wire.response.status:
                await wire.connection.wait(5)
            reach = slice_chunks
            while not await stream.relay(got.append, reach):
                over.append(stream.chunks - reach)
                reach += slice_chunks
            await feeding
    finally:
        feeding.cancel()
        await stream.abort()
    assert wire.kept == 1, "its connection serves the next one"
    return stream, b"".join(got), over


def data(value: object, name: str = "", spaced: bool = False, end: bytes = b"\n") -> bytes:
    text = json.dumps(value, separators=(", ", ": ") if spaced else (",", ":"))
    line = b"event: " + name.encode() + end if name else b""
    return line + b"data: " + text.encode() + end + end


FOOLING = ('"usage":{', '"content":""', "[DONE]", '{"error":{}}', "data: null", '"delta":"', "event: error\n\n", "\\")
texts = st.text(max_size=6) | st.sampled_from(FOOLING)
ends = st.sampled_from([b"\n", b"\n", b"\n", b"\r\n"])


def delta(made: dict[str, object], output: bool, spaced: bool, end: bytes, **more: object) -> Told:
    usage = more.get("usage")
    seen = Usage(input=3, output=usage["completion_tokens"]) if isinstance(usage, dict) else None
    return Told(
        data({"choices": [{"index": 0, "delta": made}], **more}, "", spaced, end), output=int(output), usage=seen
    )


def used(output: int) -> dict[str, object]:
    return {"prompt_tokens": 3, "completion_tokens": output}


chats = st.one_of(
    st.builds(lambda t, s, e: delta({"content": t}, bool(t), s, e), texts, st.booleans(), ends),
    st.builds(lambda t: delta({"content": t}, bool(t), False, b"\n"), texts),
    st.builds(lambda t: delta({"reasoning_content": t}, bool(t), False, b"\n"), texts),
    st.builds(lambda t: delta({"content": None, "reasoning": t}, bool(t), False, b"\n"), texts),
    st.builds(lambda t: delta({"tool_calls": [{"function": {"arguments": t}}]}, True, False, b"\n"), texts),
    st.builds(lambda t: delta({"content": t}, bool(t), False, b"\n", usage=None), texts),
    st.builds(lambda t, n: delta({"content": t}, bool(t), False, b"\n", usage=used(n)), texts, st.integers(0, 99)),
    st.builds(lambda t: Told(data({"choices": [{"text": t, "index": 0}]}), int(bool(t))), texts),
    st.just(delta({"role": "assistant", "content": ""}, False, False, b"\n")),
    st.just(Told(b": ping\n\n")),
    st.just(Told(b"data: null\n\n", hidden=True)),
    st.just(Told(b"\n\n")),
)
CHAT_END = [
    Told(data({"choices": [], "usage": used(7)}), held=True, usage=Usage(input=3, output=7)),
    Told(b"data: [DONE]\n\n", hidden=True),
]


def block(kind: str, name: str, text: str, output: bool) -> Told:
    return Told(data({"type": kind, name: {"type": "x", "text": text}}, kind), int(output))


def piece(name: str, text: str) -> Told:
    made = {"type": "content_block_delta", "index": 0, "delta": {"type": name + "_delta", name: text}}
    return Told(data(made, "content_block_delta"), int(bool(text)))


messages = st.one_of(
    st.builds(piece, st.sampled_from(["text", "text", "thinking", "partial_json"]), texts),
    st.builds(piece, st.just("text"), texts),
    st.builds(lambda t: block("content_block_start", "content_block", t, False), texts),
    st.just(Told(data({"type": "ping"}, "ping"))),
    st.just(Told(data({"type": "content_block_stop"}, "content_block_stop"))),
)
MESSAGES_START = [
    Told(
        data({"type": "message_start", "message": {"usage": {"input_tokens": 3, "output_tokens": 1}}}, "message_start")
    )
]
MESSAGES_END = [
    Told(
        data({"type": "message_delta", "usage": {"output_tokens": 7}}, "message_delta"),
        held=True,
        usage=Usage(input=3, output=7),
    ),
    Told(data({"type": "message_stop"}, "message_stop"), held=True),
]


def event(kind: str, text: str, **more: object) -> Told:
    made = {"type": kind, **({"delta": text} if kind.endswith(".delta") else {"text": text}), **more}
    return Told(data(made, kind), int(bool(text) and kind.endswith(".delta")))


KINDS = ("output_text.delta", "function_call_arguments.delta", "output_text.done", "reasoning_summary_text.delta")
responses = st.one_of(
    st.builds(event, st.sampled_from(["response." + kind for kind in KINDS]), texts),
    st.builds(event, st.just("response.output_text.delta"), texts),
    st.just(Told(data({"type": "response.in_progress", "response": {"error": None}}, "response.in_progress"))),
    st.just(Told(b"data: [DONE]\n\n", hidden=True)),
)
RESPONSES_END = [
    Told(
        data({"type": "response.completed", "response": {"usage": {"input_tokens": 3, "output_tokens": 7}}}),
        held=True,
        usage=Usage(input=3, output=7),
    )
]
streams = st.one_of(
    st.tuples(st.just(Reader), st.lists(chats, max_size=30).map(lambda made: made + CHAT_END)),
    st.tuples(
        st.just(MessagesReader), st.lists(messages, max_size=20).map(lambda made: MESSAGES_START + made + MESSAGES_END)
    ),
    st.tuples(st.just(ResponsesReader), st.lists(responses, max_size=20).map(lambda made: made + RESPONSES_END)),
)
A = delta({"content": "a"}, True, False, b"\n")
places = st.lists(st.integers(0, 1 << 20), max_size=25)


@settings(max_examples=250, deadline=None)
@given(streams, places, places, st.integers(1, 40))
@example((Reader, [A] * 50 + CHAT_END), [], [], 3)
@example((Reader, [A, Told(b"\n\n"), *CHAT_END]), [len(A.raw) + 1], [], 40)
@example((Reader, [A, Told(b"\n\n"), *CHAT_END]), [len(A.raw) + 1], [], 1)
async def test_blocks_come_out_as_if_every_event_was_read(
    stream: tuple[type[Reader], list[Told]], chunks: list[int], packets: list[int], slice_chunks: int
) -> None:
    """For any events, HTTP chunks and packets: the bytes, the second witness, the usage and what is held."""
    kind, told = stream
    body = b"".join(each.raw for each in told)
    seen, got, over = await relayed(kind(), body, chunks, packets, slice_chunks)
    # A newline more between two events says nothing, and goes with the event before it, shown or hidden.
    shown = b"".join(each.raw for each in told if not each.held and not each.hidden)
    assert _BLANKS.sub(b"\n\n", got).lstrip() == _BLANKS.sub(b"\n\n", shown).lstrip()
    assert seen.held == [each.raw for each in told if each.held]
    assert seen.chunks == sum(each.output for each in told)
    assert seen.usage == [each.usage for each in told if each.usage is not None][-1]
    # No more passes on one hold than the HTTP chunk in which it is used up.
    largest = max(len(part) for part in cut(body, chunks)) // min(len(each.raw) for each in told) + 1
    assert all(0 <= each <= largest for each in over)


async def test_a_hold_is_not_overrun_by_what_came_meanwhile() -> None:
    """A packet may bring far more events than the hold covers: they wait until it has grown."""
    told = [delta({"content": "a"}, True, False, b"\n")] * 500 + CHAT_END
    each = len(told[0].raw)
    body = b"".join(one.raw for one in told)
    seen, _, over = await relayed(Reader(), body, range(0, 500 * each, each), [], 100)
    assert seen.chunks == 500
    assert over == [0] * 4


@pytest.mark.parametrize("reader", [Reader, MessagesReader, ResponsesReader])
@pytest.mark.parametrize("packets", [[], [90, 120]])
async def test_an_error_breaks_the_stream_after_what_came_before(reader: type[Reader], packets: list[int]) -> None:
    """The events before it are passed on, it is not, and the connection is given up."""
    first = {Reader: chats_first(), MessagesReader: piece("text", "a"), ResponsesReader: event("x.delta", "a")}[reader]
    bad = data({"type": "error", "error": {"message": "out of memory"}}, "error")
    got: list[bytes] = []
    wire = Wire()
    stream = Stream(wire.response, reader())
    body = first.raw + bad
    feeding = asyncio.create_task(wire.feed(cut(HEAD + b"%x\r\n%b\r\n" % (len(body), body), packets)))
    while not wire.response.status:
        await wire.connection.wait(5)
    with pytest.raises(EngineFailed, match="out of memory"):
        await stream.relay(got.append, 100)
    assert b"".join(got) == first.raw
    assert stream.chunks == 1
    assert wire.closed
    await feeding


def chats_first() -> Told:
    return delta({"content": "a"}, True, False, b"\n")


@pytest.mark.parametrize("tail", [b"", b"data: {"])
async def test_an_end_without_its_mark_is_a_failure(tail: bytes) -> None:
    """An answer that is whole as HTTP may still be a cut stream."""
    with pytest.raises(EngineFailed, match="before its end mark"):
        await relayed(Reader(), chats_first().raw + tail, [], [], 100)
