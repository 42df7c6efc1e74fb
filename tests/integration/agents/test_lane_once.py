"""``Idempotency-Key`` over HTTP: one answer and one bill, however often the request is sent."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

import pytest
from tests.support.house import OTHER_KEY, Script, World
from tests.support.lane import Answer, Gateway, gateway, request, until

from tokenworks.agents import once
from tokenworks.core.errors import EngineFailed

House = Callable[..., World]


def keyed(text: str, name: str = "k", **fields: object) -> bytes:
    return request(text, f"Idempotency-Key: {name}", **fields)  # type: ignore[arg-type]  # as request says


def replayed(answer: Answer) -> bool:
    return answer.headers.get("idempotent-replayed") == "true"


@pytest.mark.parametrize("stream", [False, True])
async def test_the_same_request_gets_the_same_answer(house: House, stream: bool) -> None:
    """Byte for byte, with the same receipt; only a header tells that it was said before."""
    async with gateway(house(script := Script())) as g:
        first = await g.ask(keyed("tag", stream=stream))
        client = await g.client()
        for _ in range(2):
            again = await client.send(keyed("tag", stream=stream)).answer()
            assert (again.status, again.body) == (200, first.body)
            assert again.headers["x-tokenworks-receipt"] == first.headers["x-tokenworks-receipt"]
            assert replayed(again)
            assert again.headers["content-type"] == first.headers["content-type"]
        assert not replayed(first)
        assert script.asked == 1
        assert len(g.world.settlements()) == 1


async def test_another_request_under_the_same_key_is_refused(house: House) -> None:
    """Another body, or the same on another route; another key is another request."""
    async with gateway(house(script := Script())) as g:
        client = await g.client()
        assert (await client.send(keyed("tag")).answer()).status == 200
        for other in (keyed("other"), keyed("tag", max_tokens=6), keyed("tag", path="/v1/completions", prompt="tag")):
            answer = await client.send(other).answer()
            assert (answer.status, answer.code) == (422, "idempotency_key_reused")
        assert not replayed(await client.send(keyed("tag", "k2")).answer())
        assert (await client.send(keyed("tag", "k", version="1.1")).answer()).text == "tag"
        assert (await client.send(request("tag", "Idempotency-Key: k", key="tw-wrong")).answer()).status == 401
        assert script.asked == 2


@pytest.mark.parametrize("stream", [False, True])
async def test_duplicates_at_the_same_time_are_one_call(house: House, stream: bool) -> None:
    """They wait for the first; one that asks something else is refused without waiting."""
    script = Script()
    script.gate.clear()
    async with gateway(house(script)) as g:
        asking = [asyncio.create_task(g.ask(keyed("tag", stream=stream))) for _ in range(6)]
        await until(lambda: script.asked == 1)
        assert (await g.ask(keyed("other"))).status == 422
        await asyncio.sleep(0.02)
        script.gate.set()
        answers = await asyncio.gather(*asking)
        assert {answer.body for answer in answers} == {answers[0].body}
        assert sum(map(replayed, answers)) == 5
        assert script.asked == 1


@pytest.mark.parametrize(("fail_at", "stream"), [(0, False), (0, True), (3, True)])
async def test_what_failed_is_not_kept(house: House, fail_at: int, stream: bool) -> None:
    """The next try is a new request; also when the failure was the last event of a stream."""
    script = Script(fail_at, EngineFailed)
    async with gateway(house(script)) as g:
        first = await g.ask(keyed("tag", stream=stream))
        assert b"engine_failed" in first.body
        script.fail_at = None
        second = await g.ask(keyed("tag", stream=stream))
        assert second.text == "tag" * (3 if stream else 1)
        assert not replayed(second)
        assert second.headers["x-tokenworks-receipt"] != first.headers["x-tokenworks-receipt"]
        assert replayed(await g.ask(keyed("tag", stream=stream)))


async def test_when_the_first_leaves_the_next_in_line_is_served(house: House) -> None:
    """A waiting duplicate is not lost with the client that came first, and the others wait for it."""
    script = Script()
    script.gate.clear()
    async with gateway(house(script)) as g:
        first = (await g.client()).send(keyed("tag", stream=True))
        await until(lambda: script.asked == 1)
        asking = [asyncio.create_task(g.ask(keyed("tag", stream=True))) for _ in range(3)]
        await asyncio.sleep(0.02)
        first.reset()
        await until(lambda: script.asked == 2)
        script.gate.set()
        answers = await asyncio.gather(*asking)
        assert [answer.text for answer in answers] == ["tag" * 3] * 3
        assert script.asked == 2


@pytest.mark.parametrize("key", ["", "x" * 256])
async def test_keys_have_a_length(house: House, key: str) -> None:
    """An empty one is a mistake of the client, a long one an attack on our memory."""
    async with gateway(house(Script())) as g:
        answer = await g.ask(keyed("tag", key))
        assert (answer.status, answer.json["error"]["param"]) == (400, "Idempotency-Key")
        assert (await g.ask(keyed("tag", "x" * 255))).status == 200


def memory(g: Gateway) -> once.Once:
    return g.lanes[0]._once


def check_sum(kept: once.Once) -> None:
    assert kept._bytes == sum(answer.size for answer in kept._answers.values())
    assert not kept._open


async def test_the_memory_is_bounded(house: House, monkeypatch: pytest.MonkeyPatch) -> None:
    """In answers and in bytes the oldest go first; what is under way is never forgotten."""
    script = Script()
    async with gateway(house(script)) as g:
        size = len((await g.ask(request("0"))).body)
        monkeypatch.setattr(once, "ANSWERS_MAX", 3)
        for key in "abcd":
            await g.ask(keyed("0", key))
        assert not replayed(await g.ask(keyed("0", "a")))
        assert replayed(await g.ask(keyed("0", "d")))
        check_sum(memory(g))
        monkeypatch.setattr(once, "BYTES_MAX", 2 * size + size // 2)
        script.gate.clear()
        slow = asyncio.create_task(g.ask(keyed("slow", "slow", stream=True)))
        asked = script.asked
        await until(lambda: script.asked == asked + 1)
        script.gate_at = -1
        for key in "efgh":
            await g.ask(keyed("0", key))
        double = asyncio.create_task(g.ask(keyed("slow", "slow", stream=True)))
        await asyncio.sleep(0.02)
        assert len(memory(g)._answers) == 2
        script.gate.set()
        assert replayed(await double)
        assert not replayed(await slow)
        check_sum(memory(g))
        monkeypatch.setattr(once, "BYTES_MAX", 0)
        assert (await g.ask(keyed("0", "z"))).status == 200
        assert memory(g)._bytes == 0


async def test_a_very_long_answer_is_not_kept(house: House, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is served, and the same request is a new one."""
    monkeypatch.setattr(once, "ANSWER_BYTES_MAX", 200)
    script = Script()
    script.padding = "x" * 300
    async with gateway(house(script)) as g:
        for stream in (False, True):
            answers = [await g.ask(keyed("tag", f"k{stream}", stream=stream)) for _ in range(2)]
            assert not any(map(replayed, answers))
            assert answers[0].text == answers[1].text
        assert script.asked == 4
        check_sum(memory(g))


async def test_answers_are_forgotten_in_time(house: House, monkeypatch: pytest.MonkeyPatch) -> None:
    """After a day the key is free again, for any body."""
    async with gateway(house(script := Script())) as g:
        await g.ask(keyed("tag"))
        monkeypatch.setattr(once, "KEEP_NS", 0)
        assert (await g.ask(keyed("other"))).text == "other"
        assert script.asked == 2
        check_sum(memory(g))


async def test_keys_belong_to_an_account(house: House) -> None:
    """The same key and body from somebody else is somebody else's request."""
    async with gateway(house(script := Script())) as g:
        first, other = await g.ask(keyed("tag")), await g.ask(keyed("tag", key=OTHER_KEY))
        assert not replayed(other)
        assert other.headers["x-tokenworks-receipt"] != first.headers["x-tokenworks-receipt"]
        assert (await g.ask(keyed("mine", key=OTHER_KEY))).status == 422
        assert replayed(await g.ask(keyed("tag")))
        assert script.asked == 2
