"""A scripted engine on loopback that speaks one engine's dialect. Standard library only.

It is used inside tests and as a process: ``python engine_server.py PORT [DIALECT [HOST]]``. What a client says chooses
what happens: ``too long``, ``busy``, ``boom`` and ``wrong`` are errors, ``slow`` makes tokens for ever, ``cut`` breaks
off, ``later`` waits a moment. A whole server is ``broken`` as ``500``, ``garbage``, ``hang``, ``lies``, ``nonsense`` or
``sick`` (its health).
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import sys
from pathlib import Path
from typing import Any

KEY = "sk-right"
MODEL = "tiny"
WORDS = ("one", " two", " three")
PROMPT, CACHED = 7, 2
LOAD_S = 0.05
"""How long waking takes."""
TOO_LONG = "This model's maximum context length is 64 tokens. However, you requested 99 tokens."
Answer = tuple[int, Any]


def event(data: Any, name: str = "") -> bytes:
    head = f"event: {name}\n" if name else ""
    return f"{head}data: {data if isinstance(data, str) else json.dumps(data)}\n\n".encode()


class EngineServer:
    def __init__(self, dialect: str = "openai", key: str | None = None) -> None:
        self.dialect, self.key = dialect, key
        self.broken = ""
        self.asleep = dialect == "ollama"
        self.running = self.aborted = self.made = 0
        self.seen: list[tuple[str, Any]] = []
        self.port, self.url = 0, ""
        self._server: asyncio.Server | None = None
        self._tasks: set[asyncio.Task[None]] = set()

    async def start(self, port: int = 0, host: str = "127.0.0.1") -> EngineServer:
        self._server = await asyncio.start_server(self._serve, host, port)
        self.port = self._server.sockets[0].getsockname()[1]
        self.url = f"http://127.0.0.1:{self.port}"
        return self

    async def start_at(self, socket: Path) -> EngineServer:
        """At a Unix socket."""
        self._server, self.url = await asyncio.start_unix_server(self._serve, socket), f"unix://{socket}"
        return self

    async def stop(self) -> None:
        assert self._server is not None
        self._server.close()
        for task in list(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._tasks.add(task)
        try:
            while head := (await reader.readuntil(b"\r\n\r\n")).decode().lower():
                length = next((x for x in head.split("\r\n") if x.startswith("content-length:")), ":0")
                body = await reader.readexactly(int(length.split(":")[1]))
                method, path, _ = head.split(" ", 2)
                await self._answer(method.upper(), path, head, json.loads(body or b"{}"), reader, writer)
                await writer.drain()
        except (asyncio.IncompleteReadError, ConnectionError, asyncio.CancelledError):
            pass
        finally:
            self._tasks.discard(task)
            writer.close()

    async def _answer(
        self, method: str, path: str, head: str, body: Any,
        reader: asyncio.StreamReader, writer: asyncio.StreamWriter,
    ) -> None:  # fmt: skip
        self.seen.append((path, body))
        if path.startswith(("/v1/chat", "/v1/completions", "/v1/messages")) and "count_tokens" not in path:
            return await self._tokens(path, head, body, reader, writer)
        status, said = await self._control(path, body)
        return self._say(writer, status, said)

    @staticmethod
    def _say(writer: asyncio.StreamWriter, status: int, said: Any, extra: str = "") -> None:
        data = said if isinstance(said, bytes) else json.dumps(said).encode()
        writer.write(f"HTTP/1.1 {status} X\r\ncontent-length: {len(data)}\r\n{extra}\r\n".encode() + data)

    # Beside the tokens.

    async def _control(self, path: str, body: Any) -> Answer:
        plain = path.partition("?")[0]
        special = getattr(self, f"_{self.dialect}_control", None)
        if special is not None and (answer := await special(plain, body)) is not None:
            return answer  # type: ignore[no-any-return]
        if plain == "/v1/models":
            return 200, {"data": [{"id": MODEL}]}
        if plain == "/health" and self.dialect in ("openai", "vllm", "sglang", "llamacpp"):
            return (500, {}) if self.broken == "sick" else (200, {})
        return 404, {"error": "no such path"}

    async def _vllm_control(self, path: str, body: Any) -> Answer | None:
        if path == "/metrics":
            return self._page(
                'vllm:num_requests_running{engine="0",model_name="a}b"}', 'vllm:num_requests_waiting{engine="0"}',
                "vllm:kv_cache_usage_perc",
                "vllm:prefix_cache_hits_total 2", "vllm:prefix_cache_queries_total 8",
                f'vllm:engine_sleep_state{{sleep_state="awake"}} {0 if self.asleep else 1}',
            )  # fmt: skip
        if path in ("/sleep", "/wake_up"):
            await self._slumber(path == "/sleep")
            return 200, b""
        return (200, {"count": PROMPT}) if path == "/tokenize" else None

    async def _sglang_control(self, path: str, body: Any) -> Answer | None:
        if path == "/metrics":
            return self._page(
                "sglang:num_running_reqs", "sglang:num_queue_reqs", "sglang:token_usage", "sglang:cache_hit_rate 0.25"
            )
        if path in ("/release_memory_occupation", "/resume_memory_occupation"):
            await self._slumber("release" in path)
            return 200, {}
        return None

    async def _llamacpp_control(self, path: str, body: Any) -> Answer | None:
        if path == "/metrics":
            return self._page(
                "llamacpp:requests_processing", "llamacpp:requests_deferred", "",
                "llamacpp:prompt_tokens_cached_total 2", "llamacpp:prompt_tokens_total 6",
            )  # fmt: skip
        if path == "/slots":
            return 200, [{"n_ctx": 10, "is_processing": bool(self.running), "n_prompt_tokens": 5}]
        if path == "/apply-template":
            return 200, {"prompt": "x"}
        return (200, {"tokens": [0] * PROMPT}) if path == "/tokenize" else None

    async def _ollama_control(self, path: str, body: Any) -> Answer | None:
        if path == "/api/ps":
            return 200, {"models": [] if self.asleep else [{"name": f"{MODEL}:latest", "size_vram": 1}]}
        if path == "/api/generate":
            if body["model"] != MODEL:
                return 404, {"error": "model not found"}
            await self._slumber(body.get("keep_alive") == 0)
            return 200, {"done": True, "done_reason": "unload" if self.asleep else "load"}
        return (200, {"version": "0.40.12"}) if path == "/api/version" else None

    async def _anthropic_control(self, path: str, body: Any) -> Answer | None:
        return (200, {"input_tokens": PROMPT}) if path == "/v1/messages/count_tokens" else None

    async def _slumber(self, asleep: bool) -> None:
        if not asleep:
            await asyncio.sleep(LOAD_S)
        self.asleep = asleep

    def _page(self, running: str, waiting: str, kv: str, *more: str) -> Answer:
        """The kv series is half full while something runs."""
        claimed = 0 if self.broken == "lies" else self.running
        share = 7.5 if self.broken == "nonsense" else 0.5 if self.running else 0
        lines = [f"{running} {claimed}.0", f"{waiting} 0.0", *([f"{kv} {share}"] if kv else []), *more]
        if self.broken == "nonsense" and not kv:
            lines[0] = f"{running} NaN"
        return 200, ("# TYPE x gauge\n" + "\n".join(lines) + "\n").encode()

    # Tokens.

    async def _tokens(
        self, path: str, head: str, body: Any, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> None:
        said = str(body.get("messages", body.get("prompt")))
        if refused := self._refusal(head, said):
            return self._say(writer, *refused)
        if self.broken == "500":
            return self._say(writer, 500, {"error": {"message": "CUDA error"}})
        if self.broken == "garbage":
            return self._say(writer, 200, b"<html>it works</html>", "content-type: text/html\r\n")
        self.running += 1
        try:
            if self.broken == "hang":
                await self._until_gone(reader)
            elif body.get("stream"):
                await self._stream(path, said, reader, writer)
            else:
                if "slow" in said:
                    await self._until_gone(reader)
                if "later" in said:
                    await asyncio.sleep(0.3)
                self.made += 1
                self._say(writer, 200, self._whole(path))
        finally:
            self.running -= 1

    def _refusal(self, head: str, said: str) -> tuple[int, Any] | tuple[int, Any, str] | None:
        if self.key is not None and self.key not in head:
            return 401, {"error": {"message": "wrong key", "type": "authentication_error"}}
        if "too long" in said:
            kind = "exceed_context_size_error" if self.dialect == "llamacpp" else "invalid_request_error"
            error = {"message": TOO_LONG, "type": kind, "code": "context_length_exceeded"}
            return 400, {"type": "error", "error": error}
        if "busy" in said:
            status = 529 if self.dialect == "anthropic" else 429
            return status, {"error": {"message": "rate limit", "type": "overloaded_error"}}, "retry-after: 7\r\n"
        if "boom" in said:
            return 500, {"error": {"message": "boom"}}
        return (400, {"error": {"message": "temperature is wrong"}}) if "wrong" in said else None

    async def _until_gone(self, reader: asyncio.StreamReader) -> None:
        if not await reader.read(1):
            self.aborted += 1
            raise ConnectionError

    def _usage(self) -> dict[str, Any]:
        if self.dialect == "anthropic":
            return {"input_tokens": PROMPT - CACHED, "cache_read_input_tokens": CACHED, "output_tokens": len(WORDS)}
        return {
            "prompt_tokens": PROMPT, "completion_tokens": len(WORDS), "total_tokens": PROMPT + len(WORDS),
            "prompt_tokens_details": {"cached_tokens": CACHED},
        }  # fmt: skip

    def _timings(self) -> dict[str, Any]:
        if self.dialect != "llamacpp":
            return {}
        timings = {"cache_n": CACHED, "prompt_n": PROMPT - CACHED, "predicted_n": len(WORDS)}
        return {"timings": timings | {"prompt_ms": 5.0, "predicted_ms": 9.0}}

    def _whole(self, path: str) -> Any:
        text = "".join(WORDS)
        if path == "/v1/messages":
            content = [{"type": "text", "text": text}]
            return {"id": "m", "type": "message", "content": content, "stop_reason": "end_turn", "usage": self._usage()}
        choice = {"index": 0, "message": {"role": "assistant", "content": text}, "finish_reason": "stop"}
        made = {"id": "c", "object": "chat.completion", "created": 1, "model": MODEL, "choices": [choice]}
        return made | {"usage": self._usage()} | self._timings()

    async def _stream(
        self, path: str, said: str, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> None:  # fmt: skip
        gone = asyncio.create_task(reader.read(1))
        extra = "anthropic-ratelimit-requests-remaining: 41\r\n" if self.dialect == "anthropic" else ""
        writer.write(f"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\n{extra}connection: close\r\n\r\n".encode())
        first, last = self._messages_frame() if path == "/v1/messages" else self._chat_frame()
        writer.write(first)
        for number in range(10**9 if "slow" in said else len(WORDS)):
            writer.write(self._delta(path, WORDS[number % 3]))
            await writer.drain()
            done, _ = await asyncio.wait({gone}, timeout=0.01)
            if done:
                self.aborted += 1
                raise ConnectionError
            if "cut" in said:
                gone.cancel()
                raise ConnectionError
        writer.write(last)
        self.made += 1
        gone.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await gone
        await writer.drain()
        raise ConnectionError  # it ends with its connection

    def _delta(self, path: str, word: str) -> bytes:
        if path == "/v1/messages":
            delta = {"type": "text_delta", "text": word}
            return event({"type": "content_block_delta", "index": 0, "delta": delta}, "content_block_delta")
        choice = {"index": 0, "delta": {"content": word}, "finish_reason": None}
        return self._chunk([choice])

    @staticmethod
    def _chunk(choices: list[Any], **more: Any) -> bytes:
        made = {"id": "c", "object": "chat.completion.chunk", "created": 1, "model": MODEL, "choices": choices}
        text = json.dumps(made | more, separators=(",", ":"))
        return event(text)

    def _chat_frame(self) -> tuple[bytes, bytes]:
        first = self._chunk([{"index": 0, "delta": {"role": "assistant", "content": ""}, "finish_reason": None}])
        end = self._chunk([{"index": 0, "delta": {}, "finish_reason": "stop"}])
        return first, end + self._chunk([], usage=self._usage(), **self._timings()) + event("[DONE]")

    def _messages_frame(self) -> tuple[bytes, bytes]:
        usage = self._usage() | {"output_tokens": 1}
        first = event({"type": "message_start", "message": {"id": "m", "usage": usage}}, "message_start")
        first += event({"type": "content_block_start", "index": 0, "content_block": {"type": "text"}})
        first += event({"type": "ping"}, "ping")
        delta = {"type": "message_delta", "delta": {"stop_reason": "max_tokens"}, "usage": {"output_tokens": 3}}
        last = event({"type": "content_block_stop", "index": 0}) + event(delta, "message_delta")
        return first, last + event({"type": "message_stop"}, "message_stop")


async def main(port: str, dialect: str = "openai", host: str = "127.0.0.1") -> None:
    server = EngineServer(dialect)
    server.asleep = False
    await server.start(int(port), host)
    await asyncio.Event().wait()


if __name__ == "__main__":
    asyncio.run(main(*sys.argv[1:]))
