from __future__ import annotations

import asyncio
import socket
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from aiohttp.web_exceptions import NotAppKeyWarning
from openleadr import OpenADRServer

from tokenworks.core.clock import WallClock
from tokenworks.power.events import GridEvent
from tokenworks.power.openadr import EVENTS_MAX, OpenAdr, events_of

START = datetime(2026, 11, 21, 12, tzinfo=UTC)
NS = int(START.timestamp()) * 10**9
HOUR = timedelta(hours=1)


def raw(name: str, kind: str, payloads: list[float], **more: Any) -> dict[str, Any]:
    intervals = [{"duration": HOUR, "signal_payload": payload, "uid": n} for n, payload in enumerate(payloads)]
    return {
        "event_descriptor": {"event_id": "e", "event_status": "far"},
        "active_period": {"dtstart": START, "duration": len(payloads) * HOUR},
        "event_signals": [{"signal_name": name, "signal_type": kind, "intervals": intervals, **more}],
    }


@pytest.mark.parametrize(
    ("message", "targets"),
    [
        (raw("SIMPLE", "level", [2]), [{"cut_permille": 250}]),
        (raw("LOAD_CONTROL", "x-loadControlCapacity", [0.75]), [{"cap_mw": 3_000}]),
        (raw("LOAD_DISPATCH", "setpoint", [2.5], measurement={"scale": "k"}), [{"cap_mw": 2_500_000}]),
        (raw("simple", "level", [1, 0, 3]), [{"cut_permille": 100}, {"cut_permille": 500}]),
    ],
)
def test_signals_become_events(message: dict[str, Any], targets: list[dict[str, int]]) -> None:
    """After the standard: levels, shares of capacity and set-points are caps or cuts, one event per interval."""
    found = events_of(message, 7, 4_000)
    assert [
        {k: v for k, v in (("cap_mw", e.cap_mw), ("cut_permille", e.cut_permille)) if v is not None} for e in found
    ] == targets
    assert {event.id for event in found} == ({"e"} if len(found) == 1 else {"e", "e.2"})
    assert [event.received_ns for event in found] == [7] * len(found)
    assert found[0].start_ns == NS
    assert found[-1].start_ns == NS + (len(message["event_signals"][0]["intervals"]) - 1) * 3_600 * 10**9


def test_a_cancelled_message_is_a_cancelled_event() -> None:
    """After changes of mind: the event comes again and says that it is over."""
    message = raw("SIMPLE", "level", [1])
    message["event_descriptor"]["event_status"] = "cancelled"
    assert [event.cancelled for event in events_of(message, 0, 0)] == [True]


@pytest.mark.parametrize(
    "message",
    [
        raw("ELECTRICITY_PRICE", "price", [0.2]),
        raw("SIMPLE", "level", [9]),
        raw("SIMPLE", "level", [1] * (EVENTS_MAX + 1)),
        {**raw("SIMPLE", "level", [1]), "event_signals": []},
    ],
)
def test_what_is_not_understood_is_not_guessed(message: dict[str, Any]) -> None:
    """After wishful reading: unknown signals and levels, endless and empty events are refused."""
    with pytest.raises((ValueError, LookupError)):
        events_of(message, 0, 1)


@asynccontextmanager
async def vtn(port: int, answers: list[tuple[str, str]], *payloads: tuple[str, str, float]) -> AsyncIterator[None]:
    """A real VTN on loopback with one event per payload."""
    server = OpenADRServer(vtn_id="UTILITY", http_port=port, requested_poll_freq=timedelta(seconds=1))

    async def register(_: object) -> tuple[str, str]:
        return "ven-1", "registration-1"

    async def answered(ven_id: str, event_id: str, opt_type: str) -> None:
        answers.append((event_id, opt_type))

    server.add_handler("on_create_party_registration", register)
    for number, (name, kind, payload) in enumerate(payloads):
        interval = {"dtstart": datetime.now(UTC) + HOUR, "duration": HOUR, "signal_payload": payload}
        server.add_event(
            ven_id="ven-1", signal_name=name, signal_type=kind, intervals=[interval], callback=answered,
            event_id=f"event-{number}",
        )  # fmt: skip
    await server.run()
    try:
        yield
    finally:
        await server.stop()


async def until(said: Callable[[], bool], within_s: float = 8) -> None:
    async with asyncio.timeout(within_s):
        while not said():  # noqa: ASYNC110 - what is waited for happens in a library
            await asyncio.sleep(0.01)


@pytest.mark.filterwarnings(f"ignore::{NotAppKeyWarning.__module__}.{NotAppKeyWarning.__name__}")
async def test_a_real_vtn_that_comes_goes_and_comes_back(capsys: pytest.CaptureFixture[str]) -> None:
    """After the utility: events arrive and are answered, an unknown signal is declined, silence is shown within its
    bound, and when the VTN is back so are we."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    heard: list[GridEvent] = []
    answers: list[tuple[str, str]] = []
    ven = OpenAdr(f"http://127.0.0.1:{port}/OpenADR2/Simple/2.0b", "factory", 4_000_000, WallClock(), heard.append)
    task = asyncio.create_task(ven.run())
    try:
        await until(lambda: ven.state == "lost")  # it is not there yet
        signals = (("LOAD_CONTROL", "x-loadControlCapacity", 0.75), ("ELECTRICITY_PRICE", "price", 0.2))
        async with vtn(port, answers, *signals):
            await until(lambda: len(answers) == 2 and ven.state == "up")
            assert [(event.id, event.kind, event.cap_mw) for event in heard] == [("event-0", "curtail", 3_000_000)]
            assert dict(answers) == {"event-0": "optIn", "event-1": "optOut"}
            assert ven.refused == 1
            last = ven.heard_ns
        await until(lambda: ven.state == "lost")
        assert last is not None
        assert (ven.heard_ns or 0) >= last
        async with vtn(port, answers, ("SIMPLE", "level", 3)):
            await until(lambda: len(answers) == 3)
            assert heard[-1].cut_permille == 500
    finally:
        task.cancel()
        with suppress(asyncio.CancelledError):
            await task
    capsys.readouterr()


async def test_a_vtn_that_talks_nonsense_is_lost_and_nothing_breaks() -> None:
    """After liars: whatever answers there, an unreadable VTN is shown as lost and tried again."""
    asked = 0

    async def babble(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal asked
        await reader.readuntil(b"\r\n\r\n")
        asked += 1
        answer = [b"", b"<oadrPayload/>", b"\xff\x00"][asked % 3]
        writer.write(b"HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Length: %d\r\n\r\n" % len(answer) + answer)
        await writer.drain()
        writer.close()

    server = await asyncio.start_server(babble, "127.0.0.1", 0)
    port = server.sockets[0].getsockname()[1]
    heard: list[GridEvent] = []
    ven = OpenAdr(f"http://127.0.0.1:{port}", "factory", 1, WallClock(), heard.append)
    task = asyncio.create_task(ven.run())
    try:
        await until(lambda: asked >= 3)
        assert ven.state == "lost"
        assert (heard, ven.heard_ns, task.done()) == ([], None, False)
    finally:
        task.cancel()
        with suppress(asyncio.CancelledError):
            await task
        server.close()
        await server.wait_closed()
