"""The fast lane as HTTP sees it: raw bytes over a real socket, in every shape that HTTP/1.1 allows, and others."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable
from itertools import pairwise

import pytest
from tests.support.house import KEY, Script, World
from tests.support.lane import Client, chunked, gateway, get, request, until

House = Callable[..., World]
POST = "/v1/chat/completions"


async def test_one_after_the_other(house: House) -> None:
    """Whole and streamed answers on one connection, which stays open; each carries its receipt and a date."""
    async with gateway(house(Script())) as g:
        client = await g.client()
        receipts = set()
        for number in range(6):
            answer = await client.send(request(f"q{number}", stream=number % 2 == 1)).answer()
            assert (answer.status, answer.text) == (200, f"q{number}" * (3 if number % 2 else 1))
            assert "connection" not in answer.headers
            assert "date" in answer.headers or not g.server.server_state.default_headers
            receipts.add(answer.headers["x-tokenworks-receipt"])
        assert receipts == {settled.receipt for settled in g.world.settlements()}


KINDS: dict[str, Callable[[str], bytes]] = {
    "lane": request,
    "stream": lambda tag: request(tag, stream=True),
    "chunked": chunked,
    "asgi": lambda tag: get(f"/v1/receipts/{tag}"),
    "asgi-body": lambda tag: get(f"/v1/{tag}", "Content-Length: 9", method="PUT") + b'{"a": 12}',
}


def check(kind: str, tag: str, status: int, body: bytes) -> None:
    assert tag.encode() in body, (kind, body)
    assert status == (404 if kind == "asgi-body" else 200)


@pytest.mark.parametrize("packets", ["each", "all in one", "cut in the middle"])
@pytest.mark.parametrize(
    "kinds",
    [
        ["lane"] * 5,
        ["asgi"] * 4,
        ["stream", "stream", "lane"],
        ["lane", "asgi", "lane", "asgi", "lane"],
        ["asgi", "lane", "asgi-body", "stream", "asgi"],
        ["stream", "asgi", "asgi-body", "lane", "asgi-body"],
        ["chunked", "asgi-body", "asgi-body", "chunked", "lane"],
    ],
)
async def test_pipelined_requests_are_answered_in_their_order(house: House, kinds: list[str], packets: str) -> None:
    """Lane and ASGI alternate on one connection, whatever packets the requests come in."""
    async with gateway(house(Script())) as g:
        client = await g.client()
        parts = [KINDS[kind](f"tag{number}x") for number, kind in enumerate(kinds)]
        whole = b"".join(parts)
        if packets == "each":
            cuts = parts
        elif packets == "all in one":
            cuts = [whole]
        else:
            cuts = [whole[start:end] for start, end in pairwise(range(0, len(whole) + 150, 150))]
        for cut in cuts:
            client.send(cut)
            await asyncio.sleep(0.002)
        for number, kind in enumerate(kinds):
            answer = await client.answer()
            check(kind, f"tag{number}x", answer.status, answer.body)


async def test_a_body_that_comes_while_another_request_runs_stays_with_its_own(house: House) -> None:
    """Lane, ASGI, ASGI with a body: the body arrives when the one before it has just begun."""
    async with gateway(house(script := Script())) as g:
        script.gate.clear()
        head = get("/v1/tag3", "Content-Length: 9", method="PUT")
        client = (await g.client()).send(request("tag1"), get("/v1/receipts/tag2"), head)
        await until(lambda: script.asked == 1)
        client.send(b'{"a": 12}', request("tag4"))
        script.gate.set()
        statuses = [(await client.answer()).status for _ in range(4)]
        assert statuses == [200, 200, 404, 200]


@pytest.mark.parametrize("make", [request, chunked])
async def test_every_split_of_a_request_means_the_same(house: House, make: Callable[..., bytes]) -> None:
    """The packet may end after any byte of head or body."""
    raw = make("tag", "X-Long: " + "y" * 40)
    async with gateway(house(Script())) as g:
        client = await g.client()
        # Small packets stay apart because the server gets a turn of the loop between them.
        for at in range(1, len(raw)):
            client.send(raw[:at])
            await asyncio.sleep(0)
            await asyncio.sleep(0)
            answer = await client.send(raw[at:]).answer()
            assert (answer.status, answer.text) == (200, "tag")
        for at in range(len(raw)):
            client.send(raw[at : at + 1])
            await asyncio.sleep(0)
        assert (await client.answer()).text == "tag"


async def test_100_continue(house: House) -> None:
    """A client that waits for leave to send gets it, also behind another request; one that does not wait is served."""
    async with gateway(house(script := Script())) as g:
        expect = request("tag", "Expect: 100-continue")
        head, body = expect.split(b"\r\n\r\n")
        client = (await g.client()).send(head + b"\r\n\r\n")
        await hinted(client, 1)
        assert (await client.send(body).answer()).text == "tag"
        script.gate.clear()
        client.send(request("first"), head + b"\r\n\r\n")
        await until(lambda: script.asked == 2)
        script.gate.set()
        assert (await client.answer()).text == "first"
        await hinted(client, 2)
        assert (await client.send(body).answer()).text == "tag"
        assert (await client.send(expect).answer()).text == "tag"
        ten = request("tag", "Expect: 100-continue", version="1.0")
        old = (await g.client()).send(ten)
        assert (await old.answer()).text == "tag"
        assert old.hints == [], "HTTP/1.0 knows no interim answers"


async def hinted(client: Client, times: int) -> None:
    """Wait for an interim answer; no other may come."""
    async with asyncio.timeout(5):
        while len(client.hints) < times:
            data = await client._reader.read(1000)
            assert data
            client._parser.feed_data(data)
    assert client.hints == [100] * times
    assert client._answers == []


@pytest.mark.parametrize("stream", [False, True])
async def test_http_1_0_and_connection_close(house: House, stream: bool) -> None:
    """The answer says that it is the last and the server hangs up after it; HTTP/1.0 gets no chunks."""
    async with gateway(house(Script())) as g:
        for raw in (
            request("tag", version="1.0", stream=stream),
            request("tag", "Connection: close", stream=stream),
            request("tag", "Connection: close", stream=stream) + request("another"),
            request("tag", "Connection: keep-alive", version="1.0", stream=stream),
        ):
            answers = await (await g.client()).send(raw).all()
            assert [answer.text for answer in answers] == ["tag" * (3 if stream else 1)]
            assert answers[0].headers["connection"] == "close"
            assert ("transfer-encoding" in answers[0].headers) == (stream and b"HTTP/1.1" in raw)


async def test_targets_in_all_their_forms(house: House) -> None:
    """Absolute URLs, queries and percent-encoded letters name the same route."""
    async with gateway(house(Script())) as g:
        client = await g.client()
        for path in (
            POST + "?api-version=2",
            "http://gateway" + POST,
            "/v1/ch%61t/completions",
            POST + "?",
            POST + "#x",
        ):
            answer = await client.send(request("tag", path=path)).answer()
            assert (answer.status, answer.text) == (200, "tag"), path
        for path in (POST + "/", "/V1/chat/completions", "/v1/chat/completions%00", "/"):
            assert (await client.send(request("tag", path=path)).answer()).status == 404, path
        text = await client.send(request(path="/v1/completions", prompt="tag")).answer()
        assert text.status == 200


async def test_other_methods_are_not_allowed(house: House) -> None:
    """Token routes take POST; the connection survives the question."""
    async with gateway(house(Script())) as g:
        client = await g.client()
        for method in ("GET", "PUT", "DELETE", "OPTIONS"):
            answer = await client.send(get(POST, method=method)).answer()
            assert (answer.status, answer.code) == (405, "method_not_allowed")
        assert (await client.send(request("tag")).answer()).text == "tag"
        other = await g.client()
        other.send(get(POST, "Connection: close", method="HEAD"))
        head = await other._reader.read()
        assert head.startswith(b"HTTP/1.1 405")
        assert head.endswith(b"\r\n\r\n"), "HEAD has no body"


@pytest.mark.parametrize("key", [None, "tw-wrong", ""])
async def test_who_has_no_key_is_told_so(house: House, key: str | None) -> None:
    """The error is JSON in OpenAI's shape, or Anthropic's for its own route, and the connection is kept."""
    async with gateway(house(script := Script())) as g:
        client = await g.client()
        answer = await client.send(request(key=key)).answer()
        assert (answer.status, answer.code) == (401, "invalid_api_key")
        answer = await client.send(request(key=key, path="/v1/messages")).answer()
        assert answer.json["type"] == "error"
        for scheme in ("bearer", "BEARER", "Bearer "):
            assert (
                await client.send(request("tag", f"authorization: {scheme} {KEY}", key=None)).answer()
            ).status == 200
        assert (await client.send(request("tag", f"X-API-Key: {KEY}", key=None)).answer()).status == 200
        assert script.asked == 4


async def test_a_trailer_is_no_header(house: House) -> None:
    """What comes after the body cannot bring a key."""
    async with gateway(house(Script())) as g:
        client = await g.client()
        late = chunked("tag", key=None, tail=f"Authorization: Bearer {KEY}\r\n")
        assert (await client.send(late).answer()).status == 401
        assert (await client.send(chunked("tag", tail="X-A: b\r\n")).answer()).text == "tag"


async def test_an_upgrade_is_not_taken(house: House) -> None:
    """h2c and websocket are offered in vain, as some clients do with every request: the answer is plain HTTP/1.1."""
    upgrade = ("Connection: Upgrade, HTTP2-Settings", "Upgrade: h2c", "HTTP2-Settings: AAMAAABkAAQCAAAAAAIAAAAA")
    async with gateway(house(Script())) as g:
        client = await g.client()
        for make in (request, chunked):
            for more in (upgrade, ("Connection: Upgrade", "Upgrade: websocket")):
                raw = make("tag", *more)
                for part in (raw[:40], raw[40:-9], raw[-9:]):
                    client.send(part)
                    await asyncio.sleep(0.001)
                assert (await client.answer()).text == "tag"
        for path, status in (("/v1/models", 200), (POST, 405)):
            client.send(get(path, *upgrade), request("behind", *upgrade))
            assert (await client.answer()).status == status
            assert (await client.answer()).text == "behind"
        for raw in (b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", b"CONNECT a:80 HTTP/1.1\r\nHost: a\r\n\r\n"):
            assert [answer.status for answer in await (await g.client()).send(raw).all()] == [400]


async def test_errors_before_the_engine_keep_the_connection(house: House) -> None:
    """What is wrong with one body says nothing about the next."""
    async with gateway(house(script := Script())) as g:
        client = await g.client()
        for fields, status in (({"model": None}, 400), ({"model": "other"}, 404), ({"messages": []}, 400)):
            answer = await client.send(request(**fields)).answer()
            assert answer.status == status
            assert "connection" not in answer.headers
        empty = f"POST {POST} HTTP/1.1\r\nHost: g\r\nx-api-key: {KEY}\r\n\r\n".encode()
        assert (await client.send(empty).answer()).status == 400
        assert (await client.send(request("tag")).answer()).text == "tag"
        assert script.asked == 1


async def test_a_bug_of_ours_is_told_without_its_details(house: House) -> None:
    """500 as JSON, and the connection ends; in mid-stream it is cut, so that nobody takes it for whole."""
    world = house(script := Script(0, RuntimeError))
    async with gateway(world, logged=2) as g:
        answer = (await (await g.client()).send(request()).all())[0]
        assert (answer.status, answer.code) == (500, "internal_error")
        assert "scripted" not in answer.body.decode()
        script.fail_at = 2
        client = (await g.client()).send(request(stream=True))
        with pytest.raises(ConnectionError, match="cut in the middle"):
            await client.answer()


async def test_the_other_routes_still_read_their_bodies(house: House) -> None:
    """An order to the ledger goes the ASGI way with its body, whole and in chunks."""
    async with gateway(house(Script())) as g:
        admin = json.dumps({"name": "x"}).encode()
        head = get("/v1/admin/describe", f"Content-Length: {len(admin)}", method="POST")
        client = await g.client()
        for _ in range(2):
            answer = await client.send(head + admin).answer()
            assert (answer.status, answer.code) == (403, "not_allowed")
