"""A mock engine that is faster than any gateway: ``python -m bench.gateway.mock [PORT]`` on 127.0.0.1.

It answers ``/v1/chat/completions`` whole or as a stream of 64 events, each its own write in a turn of the event loop of
its own, and what routers ask of vLLM and SGLang servers before they trust them. ``GET /counts`` tells what was served.
"""

from __future__ import annotations

import asyncio
import sys
from typing import cast

import httptools
import msgspec
import uvloop
from bench.gateway.words import CHUNKS, IDLE, MODEL, NUMBER, Mode, text, tokens

_HEAD = b"HTTP/1.1 %d %s\r\ncontent-type: %s\r\ncontent-length: %d\r\n\r\n%s"
_STREAM_HEAD = b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n"
_WHOLE_A, _WHOLE_B = (
    msgspec.json.encode({
        "id": "chatcmpl-bench", "object": "chat.completion", "created": 1_700_000_000, "model": MODEL,
        "choices": [{"index": 0, "message": {"role": "assistant", "content": text(0, "whole")},
                     "finish_reason": "stop"}],
    })[:-1].split(b"000000000000")
)  # fmt: skip
_ABOUT = {
    b"/health": {}, b"/health_generate": {}, b"/ping": {}, b"/liveness": {}, b"/readiness": {},
    b"/v1/models": {"object": "list", "data": [{"id": MODEL, "object": "model", "created": 0, "owned_by": "bench",
                                                "root": MODEL, "max_model_len": 32_768}]},
    b"/get_server_info": {"model_path": MODEL, "served_model_name": MODEL, "dp_size": 1, "version": "0"},
    b"/get_model_info": {"model_path": MODEL, "is_generation": True},
    b"/version": {"version": "0"},
}  # fmt: skip
_ABOUT |= {b"/server_info": _ABOUT[b"/get_server_info"], b"/model_info": _ABOUT[b"/get_model_info"]}
_METRICS = b"# TYPE vllm:num_requests_running gauge\nvllm:num_requests_running 0\n"


def _event(choices: list[object], usage: object = None) -> bytes:
    made = {"id": "chatcmpl-bench", "object": "chat.completion.chunk", "created": 1_700_000_000, "model": MODEL}
    body = msgspec.json.encode(made | {"choices": choices} | ({"usage": usage} if usage else {}))
    return _chunk(b"data: " + body + b"\n\n")


def _chunk(data: bytes) -> bytes:
    return b"%x\r\n%s\r\n" % (len(data), data)


def _delta(content: str, **more: str) -> list[object]:
    return [{"index": 0, "delta": {**more, "content": content}, "finish_reason": None}]


_FIRST_A, _FIRST_B = _event(_delta("#000000000000", role="assistant")).split(b"000000000000")
_NEXT = [_event(_delta(f" w{piece:02d}")) for piece in range(1, CHUNKS)]
_FINISH = _event([{"index": 0, "delta": {}, "finish_reason": "stop"}])
_DONE = _chunk(b"data: [DONE]\n\n") + b"0\r\n\r\n"


def _usage(number: int, mode: Mode) -> dict[str, object]:
    used = tokens(number, mode)
    return {
        "prompt_tokens": used.prompt, "completion_tokens": used.completion,
        "total_tokens": used.prompt + used.completion, "prompt_tokens_details": {"cached_tokens": used.cached},
    }  # fmt: skip


class Counts:
    """What this process served."""

    def __init__(self) -> None:
        self.whole = self.streams = self.idle = self.cut = 0


class Engine(asyncio.Protocol):
    """One connection."""

    def __init__(self, counts: Counts) -> None:
        self._counts = counts
        self._loop = asyncio.get_running_loop()
        self._parser = httptools.HttpRequestParser(self)
        self._url = self._body = b""
        self._next = 0
        self._tail = b""
        self._paused = False

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("asyncio.Transport", transport)  # uvloop's is none by name

    def connection_lost(self, exc: Exception | None) -> None:
        self._counts.cut += bool(self._tail)
        self._tail = b""

    def data_received(self, data: bytes) -> None:
        try:
            self._parser.feed_data(data)
        except httptools.HttpParserError:  # smg tries HTTP/2 first
            self._transport.close()

    def on_message_begin(self) -> None:
        self._url = self._body = b""

    def on_url(self, url: bytes) -> None:
        self._url += url

    def on_body(self, part: bytes) -> None:
        self._body = self._body + part if self._body else part

    def on_message_complete(self) -> None:
        if self._parser.get_method() == b"POST" and self._url == b"/v1/chat/completions":
            self._chat()
        else:
            self._about()

    def _about(self) -> None:
        path = self._url.partition(b"?")[0]
        if path == b"/counts":
            self._answer(200, msgspec.json.encode(vars(self._counts)))
        elif path == b"/metrics":
            self._answer(200, _METRICS, b"text/plain")
        elif path in _ABOUT:
            self._answer(200, msgspec.json.encode(_ABOUT[path]))
        else:
            self._answer(404, b'{"error":{"message":"there is no such path"}}')

    def _answer(self, status: int, body: bytes, kind: bytes = b"application/json") -> None:
        self._transport.write(_HEAD % (status, b"OK" if status == 200 else b"No", kind, len(body), body))
        if not self._parser.should_keep_alive():
            self._transport.close()

    def _chat(self) -> None:
        found = NUMBER.search(self._body)
        if found is None:
            self._answer(400, b'{"error":{"message":"the prompt has no number"}}')
            return
        digits = found[1]
        number = int(digits)
        if b'"stream":true' not in self._body and b'"stream": true' not in self._body:
            self._counts.whole += 1
            usage = msgspec.json.encode(_usage(number, "whole"))
            self._answer(200, b'%s%s%s,"usage":%s}' % (_WHOLE_A, digits, _WHOLE_B, usage))
            return
        self._transport.write(_STREAM_HEAD)
        self._transport.write(_FIRST_A + digits + _FIRST_B)
        if IDLE in self._body:
            self._counts.idle += 1
            return
        self._counts.streams += 1
        shown = b'"include_usage":true' in self._body or b'"include_usage": true' in self._body
        self._tail = _FINISH + (_event([], _usage(number, "stream")) if shown else b"") + _DONE
        self._next = 0
        self._loop.call_soon(self._go_on)

    def _go_on(self) -> None:
        if self._paused or not self._tail:
            return
        if self._next < len(_NEXT):
            self._transport.write(_NEXT[self._next])
            self._next += 1
            self._loop.call_soon(self._go_on)
        else:
            self._transport.write(self._tail)
            self._tail = b""

    def pause_writing(self) -> None:
        self._paused = True

    def resume_writing(self) -> None:
        self._paused = False
        self._loop.call_soon(self._go_on)


async def serve(port: int) -> None:
    """Serve until cancelled; the port is printed when it listens."""
    counts = Counts()
    server = await asyncio.get_running_loop().create_server(lambda: Engine(counts), "127.0.0.1", port, backlog=16_384)
    print(server.sockets[0].getsockname()[1], flush=True)
    await server.serve_forever()


if __name__ == "__main__":
    uvloop.run(serve(int(sys.argv[1]) if len(sys.argv) > 1 else 0))
