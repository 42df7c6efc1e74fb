"""Calibrating engines over HTTP: scripted ones of known pace, and ones that do not serve."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import pytest
from tests.support.scripted_engine import HEAD, Answer, Engine, event, serving

from tokenworks.core.clock import WallClock
from tokenworks.core.errors import BadRequest, TokenworksError
from tokenworks.engine import calibrate as module
from tokenworks.engine.calibrate import Probe, calibrate, together
from tokenworks.engine.openai_compatible import OpenAICompatible
from tokenworks.engine.perf.calibrated import Calibration, Target


@asynccontextmanager
async def probing(answer: Answer) -> AsyncIterator[Probe]:
    async with serving(answer) as url:
        engine = OpenAICompatible(url)
        try:
            yield Probe(engine, WallClock(), "m")
        finally:
            await engine.close()


async def calibrated(engine: Engine, streams: int = 4, **options: Any) -> Calibration:
    said: list[str] = []
    running = asyncio.create_task(engine.run())
    try:
        async with probing(engine) as probe:
            found = await calibrate(probe, Target(model="m"), said.append, streams=streams, **options)
    finally:
        running.cancel()
    assert said[0].startswith("  0%")
    return found


async def test_a_slow_and_a_fast_engine_are_told_apart(monkeypatch: pytest.MonkeyPatch) -> None:
    """Three times the pace gives a third of the speed; loads kept out of the fit are predicted."""
    monkeypatch.setattr(module, "CHECK_OUTPUT", 16)
    fast, slow = await calibrated(Engine(0.001, 4)), await calibrated(Engine(0.003, 4))
    assert 1.5 < fast.decode_tps / slow.decode_tps < 4
    assert slow.decode_tps == pytest.approx(1 / (1.25 * 0.003), rel=0.5)
    assert (slow.seats, [len(check.users) for check in slow.checks]) == (4, [1, 4])
    assert slow.held_out_error < 0.5
    assert all(check.power_mw is None for check in slow.checks)


async def test_seats_are_seen_and_power_is_read(monkeypatch: pytest.MonkeyPatch) -> None:
    """An engine with two slots shows two, whatever is sent; a meter of 50 W (as it counts) gives 50 W."""
    monkeypatch.setattr(module, "CHECK_OUTPUT", 8)
    clock = WallClock()
    begin_ns = clock.now_ns()
    found = await calibrated(Engine(0.002, 2), streams=4, meter=lambda: 1 + (clock.now_ns() - begin_ns) // 20)
    assert found.seats == 2
    assert all(check.power_mw == pytest.approx(50_000, rel=0.02) for check in found.checks)


async def test_a_parameter_that_an_engine_refuses_is_left_out() -> None:
    """Not every server knows ignore_eos."""
    engine = Engine(0.001, 2)

    async def picky(body: dict[str, Any], writer: asyncio.StreamWriter) -> None:
        if "ignore_eos" in body:
            writer.write(b'HTTP/1.1 400 Bad\r\ncontent-length: 31\r\n\r\n{"error":{"message":"unknown"}}\n')
        else:
            await engine(body, writer)

    running = asyncio.create_task(engine.run())
    try:
        async with probing(picky) as probe:
            await probe.first(5)
            answers = await probe.group(2, 10, 12)
    finally:
        running.cancel()
    assert [answer.asked.output for answer in answers] == [12, 12]
    assert all("ignore_eos" not in body for body in engine.bodies)
    assert list(together(answers))


def whole(said: bytes, head: bytes = HEAD) -> Answer:
    async def answer(_: dict[str, Any], writer: asyncio.StreamWriter) -> None:
        writer.write(head + said)

    return answer


async def silent(_: dict[str, Any], writer: asyncio.StreamWriter) -> None:
    await asyncio.sleep(0.5)


FAILING = b"HTTP/1.1 500 No\r\ncontent-length: 0\r\n\r\n"
TOKEN = event({"choices": [{"index": 0, "delta": {"content": "x"}}]})


@pytest.mark.parametrize(
    ("answer", "why"),
    [
        (whole(b"", FAILING), "500"),
        (whole(b"", b"\x00\x01 garbage \r\n\r\n"), "HTTP"),
        (whole(b"data: }{\n\n"), ""),
        (whole(b"data: [DONE]\n\n"), "no output"),
        (whole(TOKEN + b"data: [DONE]\n\n"), "usage"),
        (whole(TOKEN), "ended before"),
        (whole(b"", b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n"), "did not stream"),
        (silent, "no answer to a short question within 0.2 s"),
    ],
)
async def test_an_engine_that_does_not_serve_gives_one_error(answer: Answer, why: str) -> None:
    """It names the engine and what it did, and nothing is written."""
    async with probing(answer) as probe:
        with pytest.raises(TokenworksError, match="cannot calibrate http://e: ") as caught:
            await calibrate(probe, Target(model="m", url="http://e"), lambda _: None, patience_s=0.2)
    assert why in caught.value.message


async def test_an_engine_too_slow_for_the_budget_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    """Not a guess from half of the measurements."""
    monkeypatch.setattr(module, "BUDGET_S", 0.3)
    with pytest.raises(TokenworksError, match="too slow"):
        await calibrated(Engine(0.01, 2))
    with pytest.raises(BadRequest, match="1 to 256"):
        await calibrated(Engine(0.01, 2), streams=0)
