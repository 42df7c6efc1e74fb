"""The HTTP client against a small loopback server that answers what the test wrote down."""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta
from ipaddress import IPv4Address
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from tokenworks.core.errors import EngineDown, EngineFailed
from tokenworks.core.files import socket_address
from tokenworks.engine.http import Pool, next_block, read
from tokenworks.engine.server import Server as At
from tokenworks.engine.server import server_of
from tokenworks.engine.wire import BUFFER_BYTES_MAX

OK = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nhi"
CHUNKED = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\nContent-Type: text/event-stream\r\n\r\n"

Answer = Callable[[int, asyncio.StreamWriter], Awaitable[None]]


class Server:
    """Counts connections and requests; ``answer(n, writer)`` answers the n-th request of all."""

    def __init__(self, answer: Answer) -> None:
        self.answer = answer
        self.connections = self.requests = 0
        self.heads: list[bytes] = []
        self.port = 0
        self.gone = asyncio.Event()

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connections += 1
        try:
            while head := await reader.readuntil(b"\r\n\r\n"):
                self.heads.append(head)
                length = next((line for line in head.split(b"\r\n") if line.startswith(b"content-length:")), b":0")
                await reader.readexactly(int(length.split(b":")[1]))
                self.requests += 1
                await self.answer(self.requests, writer)
                await writer.drain()
        except (asyncio.IncompleteReadError, ConnectionError):
            self.gone.set()
        finally:
            writer.close()


@asynccontextmanager
async def served(answer: Answer, **options: float) -> AsyncIterator[tuple[Server, Pool]]:
    server = Server(answer)
    listener = await asyncio.start_server(server.serve, "127.0.0.1", 0)
    server.port = listener.sockets[0].getsockname()[1]
    pool = Pool(At("127.0.0.1", server.port), headers=[("authorization", "Bearer k")], **options)  # type: ignore[arg-type]
    try:
        yield server, pool
    finally:
        await pool.close()
        listener.close()
        await asyncio.sleep(0.01)


def says(*parts: bytes, close: bool = False, pause_s: float = 0.0) -> Answer:
    async def answer(_: int, writer: asyncio.StreamWriter) -> None:
        for part in parts:
            writer.write(part)
            await asyncio.sleep(pause_s)
        if close:
            writer.close()

    return answer


async def test_a_connection_is_kept_and_reused() -> None:
    """A second request costs no second handshake, and carries the pool's headers."""
    async with served(says(OK)) as (server, pool):
        for _ in range(3):
            response = await pool.request("POST", "/x", b"body")
            assert (response.status, await read(response, 10)) == (200, b"hi")
            assert response.complete
        assert (server.connections, server.requests) == (1, 3)
        assert server.heads[0].startswith(b"POST /x HTTP/1.1\r\nhost: 127.0.0.1:")
        assert b"\r\nauthorization: Bearer k\r\ncontent-length: 4\r\n" in server.heads[0]


async def test_many_share_few_connections() -> None:
    """Whoever takes over a connection in the very moment another request ends on it is woken too."""
    async with served(says(OK), connections_max=3) as (server, pool):

        async def ask() -> None:
            for _ in range(200):
                response = await pool.request("GET", "/")
                assert await read(response, 10) == b"hi"

        async with asyncio.timeout(20):
            await asyncio.gather(*(ask() for _ in range(3)))
        assert server.requests == 600
        assert server.connections <= 3


async def test_chunks_come_as_they_are_sent() -> None:
    """A stream is not held back until it is complete, however its bytes are cut."""
    pieces = [CHUNKED, b"5\r\nhel", b"lo\r\n", b"3\r\n wo\r\n", b"0\r\n\r\n"]
    async with served(says(*pieces, pause_s=0.01)) as (server, pool):
        response = await pool.request("POST", "/")
        assert response.header(b"content-type") == b"text/event-stream"
        assert [await next_block(response) for _ in range(4)] == [b"hel", b"lo", b" wo", b""]
        assert response.complete
        await read(await pool.request("GET", "/"), 100)
        assert server.connections == 1


async def test_an_answer_may_end_with_its_connection() -> None:
    """No length and no chunks: the end of the connection is the end of the body, and it is not used again."""
    async with served(says(b"HTTP/1.1 200 OK\r\n\r\nall", close=True)) as (server, pool):
        for _ in range(2):
            assert await read(await pool.request("GET", "/"), 100) == b"all"
        assert server.connections == 2


async def test_a_server_may_ask_for_closing() -> None:
    """Connection: close is obeyed."""
    close = b"HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Length: 2\r\n\r\nhi"
    async with served(says(close)) as (server, pool):
        for _ in range(2):
            assert await read(await pool.request("GET", "/"), 100) == b"hi"
        assert server.connections == 2


async def test_an_interim_answer_is_skipped() -> None:
    """100 Continue is not the answer."""
    async with served(says(b"HTTP/1.1 100 Continue\r\n\r\n" + OK)) as (_, pool):
        assert (await pool.request("GET", "/")).status == 200


async def test_a_stale_connection_is_replaced_once() -> None:
    """The server hung up while the connection rested: the request goes out again on a fresh one, unseen."""

    async def answer(number: int, writer: asyncio.StreamWriter) -> None:
        if number == 2:
            writer.close()
        else:
            writer.write(OK)

    async with served(answer) as (server, pool):
        for _ in range(2):
            assert await read(await pool.request("POST", "/", b"b"), 10) == b"hi"
        assert (server.connections, server.requests) == (2, 3)


async def test_a_fresh_connection_without_an_answer_is_down() -> None:
    """Nothing came, and it was not staleness: somebody else can be asked, we do not try for ever."""
    async with served(says(close=True)) as (server, pool):
        with pytest.raises(EngineDown, match="without an answer"):
            await pool.request("GET", "/")
        assert server.requests == 1


async def test_an_old_connection_is_not_trusted() -> None:
    """One that rested longer than the server may keep it is closed instead of used."""
    async with served(says(OK), keep_s=0.02) as (server, pool):
        for _ in range(2):
            await read(await pool.request("GET", "/"), 10)
            await asyncio.sleep(0.05)
        assert server.connections == 2


@pytest.mark.parametrize(
    "parts",
    [(CHUNKED, b"5\r\nhel"), (b"HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\n", b"hel"), (CHUNKED, b"5\r\nhelXX\r\n")],
)
async def test_a_break_in_the_body_is_a_failure(parts: tuple[bytes, ...]) -> None:
    """What came is handed out, then the failure is raised: a cut answer never looks complete."""
    got = list[bytes]()

    async def read_on() -> None:
        while True:
            got.append(await next_block(response))

    async with served(says(*parts, pause_s=0.02, close=True)) as (_, pool):
        response = await pool.request("GET", "/")
        with pytest.raises(EngineFailed):
            await read_on()
        assert b"".join(got).startswith(b"hel")
        assert not response.complete


async def test_abort_closes_the_socket_at_once() -> None:
    """The engine sees a client that left, and whoever waits for the answer hears of it."""
    async with served(says(CHUNKED, b"2\r\nhi\r\n")) as (server, pool):
        response = await pool.request("GET", "/")
        assert await next_block(response) == b"hi"
        waiting = asyncio.create_task(next_block(response))
        await asyncio.sleep(0.01)
        response.abort()
        with pytest.raises(EngineFailed, match="given up"):
            await waiting
        await asyncio.wait_for(server.gone.wait(), 1)


async def test_a_cancelled_request_leaves_no_socket() -> None:
    """Cancelling while the engine is silent closes the connection too."""
    async with served(says()) as (server, pool):
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(pool.request("GET", "/"), 0.05)
        await asyncio.wait_for(server.gone.wait(), 1)


@pytest.mark.parametrize(
    "flood",
    [b"".join(b"X-%d: y\r\n" % i for i in range(2000)), b"X: " + b"y" * 200_000, b"\x00\x01 not http at all\r\n\r\n"],
)
async def test_a_flood_of_headers_is_stopped(flood: bytes) -> None:
    """Neither many headers nor an endless one nor something else than HTTP fills the memory."""
    start = b"" if flood.startswith(b"\x00") else b"HTTP/1.1 200 OK\r\n"
    async with served(says(start + flood)) as (_, pool):
        with pytest.raises(EngineFailed, match="headers are too long"):
            await pool.request("GET", "/")


async def test_silence_has_its_limits() -> None:
    """Before the first byte it means down, in the middle it means failed."""
    async with served(says(), first_byte_s=0.05) as (_, pool):
        with pytest.raises(EngineDown, match="in time"):
            await pool.request("GET", "/")
    async with served(says(CHUNKED), idle_s=0.05) as (_, pool):
        response = await pool.request("GET", "/")
        with pytest.raises(EngineFailed, match="silent"):
            await next_block(response)


async def test_nobody_there_is_down() -> None:
    """A refused connection is the clearest case."""
    async with served(says()) as (server, _):
        port = server.port
    pool = Pool(At("127.0.0.1", port))
    with pytest.raises(EngineDown, match=f"127.0.0.1:{port}"):
        await pool.request("GET", "/")
    await pool.close()
    with pytest.raises(EngineDown, match="closed on our side"):
        await pool.request("GET", "/")


@pytest.mark.parametrize("deep", [False, True])
async def test_a_unix_socket_is_a_server_too(tmp_path: Path, deep: bool) -> None:
    """Kept and reused like any connection, however long its path is; who is not there is named by it."""
    path = tmp_path / ("d" * 120 if deep else "d") / "engine.sock"
    path.parent.mkdir()
    server = Server(says(OK))
    with socket_address(path) as address:
        listener = await asyncio.start_unix_server(server.serve, address)
    where, prefix = server_of(f"unix://{path}")
    pool = Pool(where)
    for _ in range(2):
        assert await read(await pool.request("POST", "/x", b"body"), 10) == b"hi"
    assert (server.connections, server.requests, prefix) == (1, 2, "")
    assert server.heads[0].startswith(b"POST /x HTTP/1.1\r\nhost: localhost\r\n")
    await pool.close()
    listener.close()
    path.unlink(missing_ok=True)
    with pytest.raises(EngineDown, match=f"unix://{path}: No such file"):
        await Pool(where).request("GET", "/")


def certificate(folder: Path) -> Path:
    """A new key and a certificate of 127.0.0.1 by itself, in one file."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "127.0.0.1")])
    now = datetime.now(UTC)
    made = x509.CertificateBuilder(name, name, key.public_key(), x509.random_serial_number(), now, now + timedelta(1))
    alone = x509.SubjectAlternativeName([x509.IPAddress(IPv4Address("127.0.0.1"))])
    signed = made.add_extension(alone, critical=False).sign(key, hashes.SHA256())
    pem = serialization.Encoding.PEM
    private = key.private_bytes(pem, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    file = folder / "server.pem"
    file.write_bytes(private + signed.public_bytes(pem))
    return file


async def test_https_is_encrypted_and_its_server_proven(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A server whose certificate nobody vouches for gets no request; with one that is known it is all as without."""
    file = certificate(tmp_path)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(file)
    server = Server(says(CHUNKED, b"2\r\nhi\r\n", b"0\r\n\r\n", pause_s=0.01))
    listener = await asyncio.start_server(server.serve, "127.0.0.1", 0, ssl=context)
    url = f"https://127.0.0.1:{listener.sockets[0].getsockname()[1]}/base/v1"
    monkeypatch.delenv("SSL_CERT_FILE", raising=False)
    stranger = Pool(server_of(url)[0])
    with pytest.raises(EngineDown, match="certificate"):
        await stranger.request("POST", "/x", b"body")
    monkeypatch.setenv("SSL_CERT_FILE", str(file))
    where, prefix = server_of(url)
    pool = Pool(where)
    for _ in range(2):
        assert await read(await pool.request("POST", prefix + "/x", b"body"), 10) == b"hi"
    assert (server.connections, server.requests) == (1, 2)
    assert server.heads[0].startswith(b"POST /base/x HTTP/1.1\r\n")
    await stranger.close()
    await pool.close()
    listener.close()


async def test_connections_are_bounded() -> None:
    """The pool does not queue: one request too many is told so at once."""
    async with served(says(CHUNKED), connections_max=1) as (_, pool):
        response = await pool.request("GET", "/")
        with pytest.raises(EngineDown, match="All 1 connections"):
            await pool.request("GET", "/")
        response.abort()


async def test_a_slow_reader_stops_the_sender() -> None:
    """What waits for a slow consumer is bounded; nothing is lost when it reads on."""
    block = b"x" * 65_536
    total = 400

    async def answer(_: int, writer: asyncio.StreamWriter) -> None:
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % (len(block) * total))
        for _i in range(total):
            writer.write(block)
            await writer.drain()

    async with served(answer) as (_, pool):
        response = await pool.request("GET", "/")
        await asyncio.sleep(0.2)
        assert response._size < BUFFER_BYTES_MAX * 2.1
        assert len(await read(response, len(block) * total)) == len(block) * total


async def test_too_large_an_answer_is_refused() -> None:
    """read() has a bound, and what is beyond it is not fetched."""
    async with served(says(OK)) as (_, pool):
        response = await pool.request("GET", "/")
        with pytest.raises(EngineFailed, match="larger than 1 bytes"):
            await read(response, 1)


async def test_a_detached_end_gives_the_connection_back() -> None:
    """After the end mark nobody reads on, and the connection is there for the next request all the same."""
    async with served(says(CHUNKED, b"2\r\nhi\r\n", b"0\r\n\r\n", pause_s=0.02)) as (server, pool):
        response = await pool.request("GET", "/")
        await next_block(response)
        response.detach()
        await asyncio.sleep(0.06)
        await read(await pool.request("GET", "/"), 10)
        assert server.connections == 1


async def test_a_head_cannot_be_smuggled() -> None:
    """A line break in a path or a header is a programming error, never a second request."""
    pool = Pool(At("127.0.0.1", 1))
    with pytest.raises(ValueError, match="line break"):
        await pool.request("GET", "/\r\nx: y")
    with pytest.raises(ValueError, match="line break"):
        Pool(At("h", 1), headers=[("a", "b\r\nc: d")])
