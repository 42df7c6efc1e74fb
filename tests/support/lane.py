"""The real server with the real fast lane on a loopback port, and clients that write raw bytes."""

from __future__ import annotations

import asyncio
import json
import logging
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any, NamedTuple

import httptools
import uvicorn
from tests.support.house import KEY, MODEL, World

from tokenworks.agents.app import FrontDoor
from tokenworks.agents.lane import Lane, lane

PATIENCE_S = 5.0


class Answer(NamedTuple):
    """One answer as it came."""

    status: int
    headers: dict[str, str]
    body: bytes

    @property
    def json(self) -> Any:
        return json.loads(self.body)

    @property
    def text(self) -> str:
        """What the model said, whole or streamed."""
        if self.headers["content-type"] == "application/json":
            return str(self.json["choices"][0]["message"]["content"])
        events = [line[6:] for line in self.body.split(b"\n") if line.startswith(b"data: {")]
        deltas = [json.loads(event)["choices"] for event in events]
        return "".join(choices[0]["delta"]["content"] for choices in deltas if choices)

    @property
    def code(self) -> str:
        """What went wrong."""
        return str(self.json["error"]["code"])


def request(
    text: str = "hi",
    *headers: str,
    stream: bool = False,
    path: str = "/v1/chat/completions",
    version: str = "1.1",
    key: str | None = KEY,
    head_only: bool = False,
    **fields: object,
) -> bytes:
    """A request for tokens, as bytes."""
    asked = {"model": MODEL, "messages": [{"role": "user", "content": text}], "max_tokens": 5, "stream": stream}
    body = json.dumps(asked | fields).encode()
    lines = [f"POST {path} HTTP/{version}", "Host: gateway", f"Content-Length: {len(body)}", *headers]
    if key is not None:
        lines.append(f"Authorization: Bearer {key}")
    return "\r\n".join([*lines, "", ""]).encode() + (b"" if head_only else body)


def chunked(text: str = "hi", *headers: str, size: int = 7, tail: str = "", **fields: object) -> bytes:
    """The same in chunks of ``size`` bytes; ``tail`` are trailers."""
    whole = request(text, *headers, **fields)  # type: ignore[arg-type]  # as request says
    head, _, body = whole.partition(b"\r\n\r\n")
    kept = [line for line in head.split(b"\r\n") if not line.startswith(b"Content-Length")]
    parts = [body[at : at + size] for at in range(0, len(body), size)]
    coded = b"".join(b"%x\r\n%b\r\n" % (len(part), part) for part in parts)
    return b"\r\n".join([*kept, b"Transfer-Encoding: chunked", b"", coded]) + b"0\r\n" + tail.encode() + b"\r\n"


def get(path: str = "/v1/models", *headers: str, method: str = "GET") -> bytes:
    """A request that does not take the fast lane."""
    return "\r\n".join([f"{method} {path} HTTP/1.1", "Host: g", f"x-api-key: {KEY}", *headers, "", ""]).encode()


class Client:
    """One connection. Reads answers one by one, with a parser of its own."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader, self.writer = reader, writer
        self._parser = httptools.HttpResponseParser(self)
        self._answers: list[Answer] = []
        self.hints: list[int] = []
        """Statuses of interim answers."""
        self.seen = bytearray()
        """What has come of the answer that is not whole yet."""
        self._status, self._headers, self._complete = 0, dict[str, str](), False

    def send(self, *parts: bytes) -> Client:
        self.writer.write(b"".join(parts))
        return self

    async def answer(self) -> Answer:
        """The next one. Raises EOFError when the server closes instead."""
        async with asyncio.timeout(PATIENCE_S):
            while not self._answers:
                data = await self._reader.read(65_536)
                if not data:
                    self._end()
                    continue
                self._parser.feed_data(data)
        return self._answers.pop(0)

    async def part(self, least: int = 1) -> None:
        """Wait until so much of a body has come."""
        async with asyncio.timeout(PATIENCE_S):
            while len(self.seen) < least:
                data = await self._reader.read(65_536)
                if not data:
                    raise EOFError
                self._parser.feed_data(data)

    async def all(self) -> list[Answer]:
        """All answers until the server closes."""
        found = []
        try:
            while True:
                found.append(await self.answer())
        except EOFError:
            return found

    def _end(self) -> None:
        if not self._status or self._complete:
            raise EOFError
        if "content-length" in self._headers or "transfer-encoding" in self._headers:
            raise ConnectionError(f"cut in the middle of an answer, after {self.seen[-200:]!r}")
        self._complete = True
        self._answers.append(Answer(self._status, self._headers, bytes(self.seen)))

    async def closed(self) -> bool:
        """The server hangs up, and says nothing more before."""
        return await self.all() == []

    def close(self) -> None:
        self.writer.close()

    def reset(self) -> None:
        """Gone without a word more: a reset, as a killed client's machine sends it."""
        raw: socket.socket = self.writer.get_extra_info("socket")
        raw.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\x01\x00\x00\x00\x00\x00\x00\x00")
        self.writer.transport.abort()

    # What the parser says.

    def on_message_begin(self) -> None:
        self.seen, self._headers, self._complete = bytearray(), {}, False

    def on_header(self, name: bytes, value: bytes) -> None:
        self._headers[name.decode().lower()] = value.decode()

    def on_headers_complete(self) -> None:
        self._status = self._parser.get_status_code()

    def on_body(self, body: bytes) -> None:
        self.seen += body

    def on_message_complete(self) -> None:
        self._complete = True
        if self._status < 200:
            self.hints.append(self._status)
        else:
            self._answers.append(Answer(self._status, self._headers, bytes(self.seen)))
            self.seen = bytearray()


class Gateway:
    """A listening house: the protocol as uvicorn would make it, without uvicorn's clock of 0.1 s."""

    def __init__(self, world: World, grace_s: int) -> None:
        self.world = world
        self.crashes: list[dict[str, Any]] = []
        """Exceptions that reached the event loop itself."""
        self._listener = socket.create_server(("127.0.0.1", 0), backlog=512)
        self.port = self._listener.getsockname()[1]
        self.asked: list[tuple[str, dict[str, Any]]] = []
        self._make = lane(world.house)
        self.config = uvicorn.Config(
            FrontDoor(world.house, self._ledger, dict, lambda: 0),
            http=self._make,  # type: ignore[arg-type]  # as in grid.py
            ws="none", lifespan="off", log_level="warning", access_log=False, server_header=False,
            timeout_graceful_shutdown=grace_s,
        )  # fmt: skip
        self.server = uvicorn.Server(self.config)
        """Only ``serve`` runs it."""
        self.lanes: list[Lane] = []
        self._clients: list[Client] = []
        self._running: asyncio.Task[None] | asyncio.Server | None = None

    async def _ledger(self, office: str, **params: Any) -> Any:
        await asyncio.sleep(0)
        self.asked.append((office, params))
        return {"office": office, **params}

    def _lane(self) -> Lane:
        self.lanes.append(self._make(config=self.config, server_state=self.server.server_state, app_state={}))
        return self.lanes[-1]

    async def listen(self) -> None:
        """Without the server."""
        self.config.load()
        self._running = await asyncio.get_running_loop().create_server(self._lane, sock=self._listener)

    async def serve(self) -> None:
        """With the server, but not its signal handlers."""
        self.server.config.load()
        self.server.lifespan = self.config.lifespan_class(self.config)
        self._running = asyncio.create_task(self.server._serve([self._listener]))
        await until(lambda: self.server.started)

    async def client(self, rcvbuf: int | None = None) -> Client:
        """A new connection; with a small buffer it is a slow reader."""
        raw = socket.socket()
        raw.setblocking(False)
        if rcvbuf is not None:
            raw.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, rcvbuf)
        try:
            await asyncio.get_running_loop().sock_connect(raw, ("127.0.0.1", self.port))
        except OSError:
            raw.close()
            raise
        made = Client(*await asyncio.open_connection(sock=raw, limit=65_536))
        self._clients.append(made)
        return made

    async def ask(self, *parts: bytes) -> Answer:
        """One request on a connection of its own."""
        client = await self.client()
        found = await client.send(*parts).answer()
        client.close()
        return found

    async def end(self) -> None:
        for client in self._clients:
            client.close()
        self.server.should_exit = True  # what SIGTERM does
        async with asyncio.timeout(PATIENCE_S):
            if isinstance(self._running, asyncio.Task):
                await self._running
            elif self._running is not None:
                self._running.close()
                self._listener.close()
        await until(lambda: not self.server.server_state.connections and not self.server.server_state.tasks)


@asynccontextmanager
async def gateway(world: World, grace_s: int | None = None, logged: int = 0) -> AsyncIterator[Gateway]:
    """A gateway over this house, with a whole server when there is a time of grace.

    Afterwards nothing is left of any request, and nothing went wrong unseen: ``logged`` errors are expected.
    """
    made, log = Gateway(world, grace_s or 1), Errors()
    asyncio.get_running_loop().set_exception_handler(lambda _, context: made.crashes.append(context))
    await (made.listen() if grace_s is None else made.serve())
    logging.getLogger("uvicorn.error").addHandler(log)
    try:
        yield made
    finally:
        await made.end()
        logging.getLogger("uvicorn.error").removeHandler(log)
    world.check_nothing_is_left()
    assert not made.crashes, made.crashes
    assert len(log.said) == logged, log.said


class Errors(logging.Handler):
    """Collects what the server thinks is an error."""

    def __init__(self) -> None:
        super().__init__(logging.ERROR)
        self.said: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.said.append(self.format(record))


async def until(true: Any, seconds: float = PATIENCE_S) -> None:
    """Wait for a condition; a bound, not a timing assertion."""
    async with asyncio.timeout(seconds):
        while not true():  # noqa: ASYNC110  # conditions of all kinds
            await asyncio.sleep(0.002)
