"""Clients that send too much, too slowly or nonsense: each is told why, is hung up on, and harms nobody."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

import pytest
from tests.support.house import KEY, Script, World
from tests.support.lane import chunked, gateway, get, request, until

from tokenworks.agents import lane

House = Callable[..., World]


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> int:
    """Bodies of 4,000 bytes at most."""
    monkeypatch.setattr(lane, "BODY_BYTES_MAX", 4_000)
    return 4_000


async def test_bytes_that_are_no_http(house: House) -> None:
    """400 as JSON, then the connection ends, and the reason can be read even while the client is still sending."""
    async with gateway(house(Script())) as g:
        for raw in (
            b"\x16\x03\x01\x02\x00\x01\x00",
            b"hello\r\n\r\n",
            b"GET\r\n\r\n",
            b"POST /v1/chat/completions HTTP/9.9\r\n\r\n",
            b"GET / HTTP/1.1\r\nA b\r\n\r\n",
            b"GET / HTTP/1.1\r\n: b\r\n\r\n",
            b"POST / HTTP/1.1\r\nContent-Length: x\r\n\r\n",
            b"POST / HTTP/1.1\r\nContent-Length: 5\r\nContent-Length: 6\r\n\r\n",
            b"POST / HTTP/1.1\r\nContent-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n",
            b"POST / HTTP/1.1\r\nContent-Length: 99999999999999999999\r\n\r\n",
            b"GET http://[ HTTP/1.1\r\n\r\n",
            request()[:40] + b"\x00" + request()[40:],
        ):
            client = (await g.client()).send(raw, b"x" * 300_000)
            [answer] = await client.all()
            assert (answer.status, answer.code) == (400, "bad_request"), raw
            assert answer.headers["connection"] == "close"


@pytest.mark.parametrize(
    "flood",
    [
        b"X-A: " + b"y" * 400_000,
        b"X-A: y\r\n" * 1_000,
        b"X-A: y\r\n" * 129 + b"\r\n",
        b"y" * 400_000,
    ],
)
async def test_heads_are_bounded(house: House, flood: bytes) -> None:
    """In bytes and in lines, for token routes and others, whatever comes in how many packets."""
    async with gateway(house(script := Script())) as g:
        for start in (request(head_only=True)[:-2], get()[:-2]):
            client = await g.client()
            client.send(start)
            for at in range(0, len(flood), 10_000):
                client.send(flood[at : at + 10_000])
                await asyncio.sleep(0)
            [answer] = await client.all()
            assert (answer.status, answer.code) == (400, "bad_request")
        many = (f"X-{number}: y" for number in range(100))
        assert (await g.ask(request("tag", *many))).text == "tag"
        assert (await g.ask(request("tag", "X: " + "y" * 60_000))).text == "tag"
        assert script.asked == 2


async def test_trailers_are_bounded(house: House) -> None:
    """What may follow a body in chunks is no way round the limit."""
    async with gateway(house(script := Script())) as g:
        for flood in (b"X-A: " + b"y" * 400_000, b"X-A: y\r\n" * 200 + b"\r\n"):
            client = await g.client()
            client.send(chunked("tag")[:-2])
            for at in range(0, len(flood), 50_000):
                client.send(flood[at : at + 50_000])
                await asyncio.sleep(0.001)
            [answer] = await client.all()
            assert answer.status == 400
        assert script.asked == 0


async def test_an_announced_body_that_is_too_large(house: House, small: int) -> None:
    """413 at once; the client may go on sending and can still read it, then the connection ends."""
    async with gateway(house(script := Script())) as g:
        big = request("x" * small)
        client = (await g.client()).send(big[:300])
        answer = await client.answer()
        assert (answer.status, answer.code) == (413, "request_too_large")
        assert answer.headers["connection"] == "close"
        client.send(big[300:])
        assert await client.closed()
        client = (await g.client()).send(big, request("behind"))
        assert [answer.status for answer in await client.all()] == [413], "nothing more is answered here"
        expect = (await g.client()).send(request("x" * small, "Expect: 100-continue", head_only=True))
        assert (await expect.answer()).status == 413
        assert expect.hints == []
        behind = (await g.client()).send(request("first"), big)
        assert (await behind.answer()).text == "first"
        assert (await behind.answer()).status == 413
        assert await behind.closed()
        assert script.asked == 1
        assert (await g.ask(request("x" * (small - 200)))).status == 200


async def test_a_body_in_chunks_that_is_too_large(house: House, small: int) -> None:
    """It is known only when it has come; the answer does not wait for an end that may never be."""
    async with gateway(house(script := Script())) as g:
        big = chunked("x" * small * 3, size=500)
        client = (await g.client()).send(big[: small + 1_000])
        answer = await client.answer()
        assert (answer.status, answer.code) == (413, "request_too_large")
        client.send(big[small + 1_000 :])
        assert await client.closed()
        whole = (await g.client()).send(request("first"), big)
        assert [answer.status for answer in await whole.all()] == [200, 413]
        assert script.asked == 1


@pytest.mark.parametrize(
    "part",
    [
        b"POST /",
        request(head_only=True)[:-2],
        request(head_only=True) + b'{"model"',
        chunked(size=1_000)[:-30],
        chunked()[:-2],
    ],
)
async def test_slowloris(house: House, part: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
    """The time for a request runs from its first byte, whatever drips in; then 408, and the connection ends."""
    monkeypatch.setattr(lane, "RECEIVE_S", 0.1)
    async with gateway(house(script := Script())) as g:
        client = await g.client()
        if part.startswith(b"POST /v1"):
            assert (await client.send(request("tag")).answer()).text == "tag"
        client.send(part)
        dripping = asyncio.create_task(drip(client.writer))
        [answer] = await client.all()
        assert (answer.status, answer.code) == (408, "request_timeout")
        dripping.cancel()
        assert script.asked == part.startswith(b"POST /v1")


async def drip(writer: asyncio.StreamWriter) -> None:
    while True:
        await asyncio.sleep(0.03)
        writer.write(b"1")


async def test_slow_bodies_of_other_routes(house: House, monkeypatch: pytest.MonkeyPatch) -> None:
    """They are hung up on too: an app that waits for the rest, and a client that was answered already."""
    monkeypatch.setattr(lane, "RECEIVE_S", 0.1)
    world = house(Script())
    async with gateway(world) as g:
        monkeypatch.setattr(type(g.config.app), "_administrator", lambda *_: None)
        waiting = (await g.client()).send(get("/v1/admin/x", "Content-Length: 9", method="POST"), b"{")
        assert await waiting.closed()
        answered = (await g.client()).send(get("/v1/nothing", "Content-Length: 9", method="PUT"), b"{")
        assert [answer.status for answer in await answered.all()] == [404], "no second answer to one request"


async def test_a_refused_body_is_not_waited_for_forever(
    house: House, small: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """413 was said; the rest never comes: the connection ends, and nothing is said twice."""
    monkeypatch.setattr(lane, "RECEIVE_S", 0.1)
    async with gateway(house(Script())) as g:
        client = (await g.client()).send(request("x" * small)[:300])
        assert [answer.status for answer in await client.all()] == [413]


async def test_idle_connections_are_kept_for_a_while(house: House, monkeypatch: pytest.MonkeyPatch) -> None:
    """Before the first request and between requests; an answer that takes longer is no idleness."""
    monkeypatch.setattr(lane, "RECEIVE_S", 0.15)
    monkeypatch.setattr(lane, "KEEP_S", 0.15)
    async with gateway(house(script := Script())) as g:
        client, silent = await g.client(), await g.client()
        for _ in range(3):
            assert (await client.send(request("tag")).answer()).text == "tag"
            await asyncio.sleep(0.06)
        assert await silent.closed()
        script.gate.clear()
        client.send(request("tag", stream=True))
        await asyncio.sleep(0.4)
        script.gate.set()
        assert (await client.answer()).text == "tag" * 3
        assert await client.closed()


@pytest.mark.parametrize("garbage", [b"\x00\x01garbage\r\n\r\n", b"X" * 400_000, b"GET / HTTP/1.1\r\nA b\r\n\r\n"])
@pytest.mark.parametrize("kinds", ["lane", "stream", "asgi", "lane lane asgi", "asgi stream"])
async def test_garbage_after_good_requests_cuts_no_answer(house: House, garbage: bytes, kinds: str) -> None:
    """All good ones are answered, however the packets fall; then the connection ends."""
    makes = {"lane": request("t"), "stream": request("t", stream=True), "asgi": get("/v1/receipts/t")}
    good = [makes[kind] for kind in kinds.split()]
    async with gateway(house(Script())) as g:
        for apart in (False, True):
            client = (await g.client()).send(*good)
            if apart:
                await asyncio.sleep(0.001)
            answers = await client.send(garbage).all()
            if apart and answers[-1].status == 400:  # it came when all was answered
                answers.pop()
            assert [answer.status for answer in answers] == [200] * len(good)


async def test_a_flood_of_requests_whose_answers_nobody_reads(house: House) -> None:
    """Neither answers nor requests pile up here: the client's own socket is full, and it has to wait."""
    async with gateway(house(script := Script())) as g:
        client = await g.client(rcvbuf=4_096)
        flood = request(key="tw-wrong") * 2_000
        writing = asyncio.create_task(write_on(client.writer, flood, 40))
        await until(lambda: g.lanes[0].flow.write_paused)
        before = (-1, -1)
        while before != (now := (len(g.lanes[0].pipeline), g.lanes[0].transport.get_write_buffer_size())):
            before = now
            await asyncio.sleep(0.05)
        assert not writing.done()
        assert now[0] < 3_000
        assert now[1] < 200_000
        for _ in range(4_000):
            assert (await client.answer()).status == 401
        writing.cancel()
        client.reset()
        await until(lambda: not g.server.server_state.connections)
        assert script.asked == 0


async def write_on(writer: asyncio.StreamWriter, data: bytes, times: int) -> None:
    for _ in range(times):
        writer.write(data)
        await writer.drain()


async def test_too_many_keys_in_one_head(house: House) -> None:
    """The first key counts, and no header can be smuggled behind it."""
    async with gateway(house(Script())) as g:
        assert (await g.ask(request("tag", "Authorization: Bearer tw-wrong"))).status == 401
        assert (
            await g.ask(request("tag", "X-API-Key: tw-wrong", f"Authorization: Bearer {KEY}", key=None))
        ).status == 401
