"""A stream that comes too fast is read a little more rarely; one that comes as tokens are made is never held back."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from hypothesis import given
from hypothesis import strategies as st

from tokenworks.engine.http import Pool, next_block
from tokenworks.engine.pace import BY_PACE, PACE_S, Pace
from tokenworks.engine.server import Server

HEAD = b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n"
EVENTS = 40


async def stream(gap_s: float) -> list[bytes]:
    """The packets in which a stream arrives that an engine sends with such gaps."""

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(HEAD)
        for number in range(EVENTS):
            writer.write(b"4\r\n%04d\r\n" % number)
            await writer.drain()
            await asyncio.sleep(gap_s)
        writer.write(b"0\r\n\r\n")
        await writer.drain()
        writer.close()

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    pool, packets = Pool(Server("127.0.0.1", server.sockets[0].getsockname()[1])), list[bytes]()
    async with asyncio.timeout(20):
        response = await pool.request("GET", "/")
        response.receive(lambda blocks: packets.append(b"".join(blocks)))
        while not response.complete:
            await response.more()
        assert await next_block(response) == b""
    await pool.close()
    server.close()
    await server.wait_closed()
    return packets


async def test_what_comes_too_fast_is_one_packet() -> None:
    """Nothing is lost or reordered, and there are far fewer packets than events."""
    packets = await stream(0)
    assert b"".join(packets) == b"".join(b"%04d" % number for number in range(EVENTS))
    assert len(packets) < EVENTS / 2


async def test_tokens_are_not_held_back() -> None:
    """With the gaps that engines make every event is handed on by itself."""
    packets = await stream(PACE_S * 4)
    assert b"".join(packets) == b"".join(b"%04d" % number for number in range(EVENTS))
    assert len(packets) > EVENTS * 0.8  # a machine that is busy with other things may let two come together


class Line:
    """A connection that counts its reasons."""

    def __init__(self) -> None:
        self.why = self.times = 0

    def pause(self, why: int) -> None:
        self.why |= why
        self.times += 1

    def resume(self, why: int) -> None:
        self.why &= ~why


@given(st.lists(st.integers(0, 3), min_size=1, max_size=20))
def test_all_that_wait_go_on_at_the_same_time(turns: list[int]) -> None:
    """None is forgotten, whenever it was slowed down; one timer serves them all."""
    loop, pace, lines = asyncio.new_event_loop(), Pace(), [Line() for _ in range(4)]
    later: list[tuple[float, Callable[[], None]]] = []
    loop.call_later = lambda delay, call, *_, **__: later.append((delay, call))  # type: ignore[assignment,method-assign]
    for which in turns:
        if not lines[which].why:
            pace.slow(lines[which], loop)
    assert [line.why for line in lines] == [BY_PACE if number in turns else 0 for number in range(4)]
    [(delay, call)] = later
    assert delay == PACE_S
    call()
    assert not any(line.why for line in lines)
    pace.slow(lines[0], loop)
    assert len(later) == 2
    loop.close()
