"""Clients that leave, that close one side, that read slowly, and a server that is told to stop: no token is made in
vain, none is lost, and memory does not grow."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

import pytest
from tests.support.house import Script, World
from tests.support.lane import gateway, get, request, until

from tokenworks.agents import lane
from tokenworks.core.errors import EngineDown, EngineFailed
from tokenworks.engine.openai_compatible import OpenAICompatible
from tokenworks.exchange.words import Settle

House = Callable[..., World]
STREAM_HEAD = b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n"


class Upstream:
    """An engine behind a socket: it streams as fast as it is read."""

    def __init__(self, events: int, size: int) -> None:
        self.events, self.sent, self.cut = events, 0, 0
        text = json.dumps({"choices": [{"delta": {"content": "x" * size}}]}, separators=(",", ":"))
        self._event = self._chunk(b"data: " + text.encode() + b"\n\n")
        usage = {"prompt_tokens": 7, "completion_tokens": events}
        self._end = self._chunk(b"data: " + json.dumps({"choices": [], "usage": usage}).encode() + b"\n\n")
        self._end += self._chunk(b"data: [DONE]\n\n") + b"0\r\n\r\n"

    @staticmethod
    def _chunk(data: bytes) -> bytes:
        return b"%x\r\n%b\r\n" % (len(data), data)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while head := await reader.readuntil(b"\r\n\r\n"):
                await reader.readexactly(int(head.lower().split(b"content-length:")[1].split(b"\r\n")[0]))
                writer.write(STREAM_HEAD)
                for _ in range(self.events):
                    writer.write(self._event)
                    await writer.drain()
                    self.sent += 1
                writer.write(self._end)
        except ConnectionError:
            self.cut += 1
        except asyncio.IncompleteReadError:
            pass
        finally:
            writer.close()

    @asynccontextmanager
    async def adapter(self) -> AsyncIterator[OpenAICompatible]:
        server = await asyncio.start_server(self._serve, "127.0.0.1", 0)
        adapter = OpenAICompatible(f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}")
        try:
            yield adapter
        finally:
            await adapter.close()
            server.close()
            await asyncio.sleep(0.01)


async def test_a_slow_reader_stops_the_engine(house: House) -> None:
    """Forty megabytes for a client that does not read stay where they are made. Then it reads, and gets them all."""
    upstream = Upstream(2_000, 20_000)
    async with upstream.adapter() as adapter, gateway(house(adapter)) as g:
        client = (await g.client(rcvbuf=100_000)).send(request(stream=True, max_tokens=4_000))
        await until(lambda: g.lanes and g.lanes[0].flow.write_paused)
        before = -1
        while before != upstream.sent:
            before = upstream.sent
            await asyncio.sleep(0.1)
        assert upstream.sent * 20_000 < 20_000_000, "it was told to stop, but for what the sockets hold"
        assert g.lanes[0].transport.get_write_buffer_size() < 600_000
        body = (await client.answer()).body
        found, end = body.count(b'"content"'), body[-14:]
        assert (found, end) == (2_000, b"data: [DONE]\n\n")
        [settled] = g.world.settlements()
        assert (settled.usage.output, settled.delivery.chunks) == (2_000, 2_000)


async def test_a_slow_reader_that_leaves_stops_the_engine_for_good(house: House) -> None:
    """It reads nothing and hangs up: the engine is cut, what was made until then is billed as counted."""
    upstream = Upstream(2_000, 20_000)
    async with upstream.adapter() as adapter, gateway(house(adapter)) as g:
        client = (await g.client(rcvbuf=100_000)).send(request(stream=True, max_tokens=4_000))
        await until(lambda: g.lanes and g.lanes[0].flow.write_paused)
        client.reset()
        await until(lambda: upstream.cut == 1, 1)
        await until(g.world.settlements)
        [settled] = g.world.settlements()
        assert settled.delivery.ending == "client_gone"
        assert 0 < settled.usage.output == settled.delivery.chunks < 2_000


async def test_a_client_that_never_reads_is_given_up(house: House, monkeypatch: pytest.MonkeyPatch) -> None:
    """A slot of the engine is not held for somebody who takes nothing for a long time."""
    monkeypatch.setattr(lane, "KEEP_S", 0.1)
    monkeypatch.setattr(lane, "RECEIVE_S", 0.1)
    upstream = Upstream(2_000, 20_000)
    async with upstream.adapter() as adapter, gateway(house(adapter)) as g:
        (await g.client(rcvbuf=100_000)).send(request(stream=True, max_tokens=4_000))
        await until(lambda: upstream.cut == 1)
        await until(g.world.settlements)
        assert [settled.delivery.ending for settled in g.world.settlements()] == ["client_gone"]


@pytest.mark.parametrize("how", ["close", "reset"])
@pytest.mark.parametrize(("stream", "gate_at"), [(False, 1), (True, 0), (True, 1), (True, 3)])
async def test_who_leaves_frees_the_engine_within_a_second(house: House, how: str, stream: bool, gate_at: int) -> None:
    """While it waits for a whole answer, for the first token, or in the silence between two tokens."""
    script = Script()
    script.gate_at = gate_at
    script.gate.clear()
    async with gateway(house(script)) as g:
        client = (await g.client()).send(request(stream=stream))
        await until(lambda: script.asked == 1)
        if gate_at == 3:
            await client.part()
        client.close() if how == "close" else client.reset()
        await until(lambda: g.world.replicas["r0"].running == 0, 1)
        assert script.aborted == (1 if stream and gate_at else 0)
        [settled] = g.world.settlements()
        assert settled.delivery.ending == "client_gone"
        assert settled.delivery.chunks == (2 if gate_at == 3 else 0)


@pytest.mark.parametrize("stream", [False, True])
async def test_half_closed_clients_get_their_answers(house: House, stream: bool) -> None:
    """Who has said all may still listen: also through long pauses, several requests and other routes."""
    script = Script()
    async with gateway(house(script)) as g:
        for parts in (
            [request("t0", stream=stream)],
            [request("t0", stream=stream, version="1.0")],
            [get("/v1/receipts/t0")],
            [request("t0", stream=stream), get("/v1/receipts/t1"), request("t2")],
            [get("/v1/receipts/t0"), request("t1", stream=stream)],
            [request("t0", stream=stream), request("never whole")[:-5]],
        ):
            script.gate.clear()
            client = (await g.client()).send(*parts)
            asked = script.asked + (parts[0].startswith(b"POST"))
            await until(lambda asked=asked: script.asked == asked)
            client.writer.write_eof()
            await asyncio.sleep(0.25 if parts[-1].endswith(b"}") and len(parts) == 1 else 0.02)
            script.gate.set()
            answers = await client.all()
            assert [answer.status for answer in answers] == [200] * sum(b"never" not in part for part in parts)
            assert all(b"t%d" % number in answer.body for number, answer in enumerate(answers))
        idle = await g.client()
        idle.writer.write_eof()
        assert await idle.closed()


@pytest.mark.parametrize("stream", [False, True])
async def test_another_replica_answers_before_the_first_byte(house: House, stream: bool) -> None:
    """The client sees nothing of it: one answer, one receipt, one settlement."""
    down, up = Script(0, EngineDown), Script()
    async with gateway(house(down, up)) as g:
        answer = await g.ask(request("tag", stream=stream))
        assert answer.text == "tag" * (3 if stream else 1)
        assert (down.asked, up.asked) == (1, 1)
        [settled] = g.world.settlements()
        assert settled.receipt == answer.headers["x-tokenworks-receipt"]


async def test_all_replicas_down(house: House) -> None:
    """503 with a time to wait and the receipt of nothing; the connection is kept."""
    async with gateway(house(Script(0, EngineDown), Script(0, EngineDown))) as g:
        client = await g.client()
        for stream in (False, True):
            answer = await client.send(request(stream=stream)).answer()
            assert (answer.status, answer.code) == (503, "engine_unavailable")
            assert answer.headers["retry-after"] == "2"
            assert answer.headers["x-tokenworks-receipt"]
        assert all(settled.nano == 0 for settled in g.world.settlements())


async def test_an_engine_that_fails_in_mid_stream(house: House) -> None:
    """What came is delivered, the error is the last event, no other replica is asked, and the connection is kept."""
    broken, spare = Script(3, EngineFailed), Script()
    async with gateway(house(broken, spare)) as g:
        client = await g.client()
        answer = await client.send(request("tag", stream=True)).answer()
        events = answer.body.strip().split(b"\n\n")
        assert (answer.status, len(events)) == (200, 3)
        assert json.loads(events[2][6:])["error"]["code"] == "engine_failed"
        assert spare.asked == 0
        broken.fail_at = None
        assert (await client.send(request("tag")).answer()).text == "tag"


async def test_the_drain(house: House) -> None:
    """SIGTERM: new connections are refused and idle ones closed; what is answered or arrives is not cut."""
    script = Script()
    async with gateway(house(script), grace_s=5) as g:
        idle, used = await g.client(), await g.client()
        assert (await used.send(request("tag")).answer()).text == "tag"
        script.gate_at = 2
        script.gate.clear()
        streaming = (await g.client()).send(request("tag", stream=True))
        waiting = (await g.client()).send(request("one", stream=True), get("/v1/receipts/two"), request("three"))
        arriving = (await g.client()).send(request("tag")[:-9])
        await streaming.part()
        await waiting.part()
        g.server.should_exit = True
        assert await idle.closed()
        assert await used.closed()
        with pytest.raises(ConnectionRefusedError):
            await g.client()
        arriving.send(request("tag")[-9:])
        assert (await arriving.answer()).text == "tag"
        assert await arriving.closed()
        await asyncio.sleep(0.1)
        script.gate.set()
        [answer] = await streaming.all()
        assert answer.text == "tag" * 3
        assert [answer.status for answer in await waiting.all()] == [200] * 3
        began = time.monotonic()
        await g.end()
        assert time.monotonic() - began < 1, "the server does not wait for the time of grace to be over"


async def test_the_time_of_grace_ends(house: House) -> None:
    """A stream that goes on too long is cut, so that nobody takes it for whole, and billed for what was delivered."""
    script = Script()
    script.gate_at = 2
    script.gate.clear()
    async with gateway(house(script), grace_s=1, logged=1) as g:
        client = (await g.client()).send(request("tag", stream=True))
        await client.part()
        g.server.should_exit = True
        with pytest.raises(ConnectionError, match="cut in the middle"):
            await client.answer()
    [settled] = [c.settlement for c in g.world.commands() if isinstance(c, Settle)]
    assert (settled.delivery.ending, settled.delivery.chunks) == ("client_gone", 1)
