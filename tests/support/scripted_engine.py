"""A scripted engine over HTTP: a continuous batch of known pace, and a server for any other behaviour."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

HEAD = b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\nconnection: close\r\n\r\n"
Answer = Callable[[dict[str, Any], asyncio.StreamWriter], Any]


def event(value: object) -> bytes:
    return f"data: {json.dumps(value)}\n\n".encode()


class Engine:
    """A continuous batch: an iteration lasts a constant, more for each sequence, more for each prompt word."""

    def __init__(self, iteration_s: float, slots: int) -> None:
        self.iteration_s, self.slots = iteration_s, slots
        self.waiting: list[tuple[int, asyncio.Queue[bool]]] = []
        self.running: list[asyncio.Queue[bool]] = []
        self.bodies: list[dict[str, Any]] = []

    async def run(self) -> None:
        while True:
            free = self.slots - len(self.running)
            new, self.waiting = self.waiting[:free], self.waiting[free:]
            if not (new or self.running):
                await asyncio.sleep(0.0005)
                continue
            words = sum(count for count, _ in new)
            await asyncio.sleep(self.iteration_s * (1 + 0.25 * len(self.running) + 0.02 * words))
            self.running += [queue for _, queue in new]
            for queue in self.running:
                queue.put_nowait(True)

    async def __call__(self, body: dict[str, Any], writer: asyncio.StreamWriter) -> None:
        self.bodies.append(body)
        words, queue = len(body["messages"][0]["content"].split()), asyncio.Queue[bool]()
        self.waiting.append((words, queue))
        writer.write(HEAD)
        for n in range(body["max_tokens"]):
            await queue.get()
            if n == body["max_tokens"] - 1:
                self.running.remove(queue)
            writer.write(event({"choices": [{"index": 0, "delta": {"content": "x"}}]}))
        usage = {"prompt_tokens": words, "completion_tokens": body["max_tokens"]}
        writer.write(event({"choices": [], "usage": usage}) + b"data: [DONE]\n\n")


@asynccontextmanager
async def serving(answer: Answer) -> AsyncIterator[str]:
    """Its URL; ``answer`` gets the body of each POST."""

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        head = await reader.readuntil(b"\r\n\r\n")
        if head.startswith(b"GET"):
            writer.write(b"HTTP/1.1 404 No\r\ncontent-length: 0\r\nconnection: close\r\n\r\n")
            writer.close()
            return
        length = next(line for line in head.lower().split(b"\r\n") if line.startswith(b"content-length:"))
        body = json.loads(await reader.readexactly(int(length.split(b":")[1])))
        try:
            await answer(body, writer)
            await writer.drain()
        except ConnectionError:
            pass
        finally:
            writer.close()

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    try:
        yield f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
    finally:
        server.close()
        await asyncio.sleep(0.01)
