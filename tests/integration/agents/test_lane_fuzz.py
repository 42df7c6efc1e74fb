"""Any bytes in any packets: the gateway never crashes, never hangs, and never tells one client what another asked."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import re
from collections.abc import Callable

import uvloop
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tests.support.house import OTHER_KEY, Script, World
from tests.support.lane import Gateway, chunked, gateway, get, request

House = Callable[..., World]
MARK = re.compile(rb"mark\d+")
PIECES = (
    b"\r\n", b"\r\n\r\n", b"\n", b"\x00", b"0\r\n\r\n", b"GET / HTTP/1.1\r\n", b"Transfer-Encoding: chunked\r\n",
    b"Content-Length: 3\r\n", b"Expect: 100-continue\r\n", b"Connection: close\r\n", b"Upgrade: h2c\r\n", b"HTTP/1.0",
    b"Connection: upgrade\r\nUpgrade: h2c\r\n\r\n", b"HEAD", b"POST /v1/chat/completions HTTP/1.1\r\n",
    b"ffffffffff\r\n",
)  # fmt: skip

FIRST = (request("mark0"), request("mark0" * 9), request("mark0", stream=True))
"""Whole, and with the same head but for its length."""


def whole(mark: str) -> st.SearchStrategy[bytes]:
    """A good request that carries the mark."""
    return st.sampled_from(
        [
            request(mark),
            request(mark, stream=True),
            chunked(mark, size=11),
            request(mark, "Expect: 100-continue"),
            request(mark, "Connection: upgrade", "Upgrade: h2c"),
            request(mark, "Connection: close"),
            request(mark, version="1.0"),
            request(mark, "Idempotency-Key: same", stream=True),
            get(f"/v1/receipts/{mark}"),
            get("/healthz", method="HEAD"),
            get(f"/v1/{mark}", "Content-Length: 3", method="PUT") + b"abc",
        ]
    )


@st.composite
def attacks(draw: st.DrawFn) -> tuple[list[bytes], bytes, list[int]]:
    """Good requests, broken in places, with noise between; and where packets end. Often the connection begins with one
    or two packets that are whole requests with the same head, as clients do: then heads are remembered."""
    first = draw(st.lists(st.sampled_from(FIRST), max_size=2))
    kept = draw(st.booleans())  # a head that is known meets its like, broken
    parts = []
    for good in draw(st.lists(st.sampled_from(FIRST) if first and kept else whole("mark0"), min_size=1, max_size=4)):
        at = draw(st.integers(0, len(good)))
        noise = draw(st.sampled_from(PIECES) | st.binary(min_size=1, max_size=8))
        broken = [good[:at], good[:at] + noise + good[at:], good[:at] + noise + good[at + len(noise) :], noise]
        parts.append(draw(st.sampled_from([good, good, *broken])))
    data = b"".join(parts)
    return first, data, draw(st.lists(st.integers(0, len(data)), max_size=6))


async def attack(g: Gateway, first: list[bytes], data: bytes, cuts: list[int], mark: str, shut: bool) -> None:
    """One attacker and, in the middle of it, somebody who only asks."""
    attacker, other = await g.client(), await g.client()
    for good in first:
        answer = await attacker.send(good).answer()
        assert (answer.status, set(MARK.findall(answer.body))) == (200, {b"mark0"})
    for number, (start, end) in enumerate(itertools.pairwise(sorted([0, len(data), *cuts]))):
        if not attacker.writer.is_closing():  # it may have been hung up on
            attacker.send(data[start:end])
        if number == len(cuts) // 2:
            other.send(request(mark, key=OTHER_KEY, stream=number % 2 == 1))
        await asyncio.sleep(0)
    if shut and not attacker.writer.is_closing():
        attacker.writer.write_eof()
    answer = await other.answer()
    assert (answer.status, set(MARK.findall(answer.body))) == (200, {mark.encode()})
    other.close()
    if not shut:
        attacker.close()
        return
    said = b""
    async with asyncio.timeout(5):
        with contextlib.suppress(OSError):  # a reset is an end too
            while part := await attacker._reader.read(65_536):
                said += part
    assert said == b"" or said.startswith(b"HTTP/1.1 ")
    assert set(MARK.findall(said)) <= {b"mark0"}
    assert b" 500 " not in said
    attacker.close()


def test_any_bytes_in_any_packets(house: House) -> None:
    """Exceptions in the loop, errors in the log and anything left over fail in ``gateway`` itself."""
    marks = itertools.count(1)
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        stack = contextlib.AsyncExitStack()

        async def start() -> Gateway:
            return await stack.enter_async_context(gateway(house(Script())))

        g = runner.run(start())

        @settings(max_examples=350, deadline=None, database=None, suppress_health_check=list(HealthCheck))
        @given(attacks(), st.booleans())
        def run(made: tuple[list[bytes], bytes, list[int]], shut: bool) -> None:
            runner.run(attack(g, *made, f"mark{next(marks)}", shut))

        try:
            run()
        finally:
            runner.run(stack.aclose())
