"""One connection, the same head again and again: parsed once, it is not parsed anew, and means what it says now."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import Callable, Iterable

import msgspec
import pytest
from tests.support.house import HASH, KEY, KEY_ID, OTHER_HASH, OTHER_ID, OTHER_KEY, Script, World
from tests.support.lane import Answer, chunked, gateway, get, request, until

from tokenworks.agents.heads import Head
from tokenworks.agents.lane import Lane
from tokenworks.agents.overage import Served
from tokenworks.curtail import Order
from tokenworks.exchange.words import Account, Budget, Directory, Key

House = Callable[..., World]
LATER = "X-Tokenworks-Deferrable: true"


@pytest.fixture
def again(monkeypatch: pytest.MonkeyPatch) -> list[bytes]:
    """The bodies that came with a head that was remembered."""
    found: list[bytes] = []
    taken = Lane._again

    def spy(self: Lane, head: Head, body: bytes) -> None:
        found.append(body)
        taken(self, head, body)

    monkeypatch.setattr(Lane, "_again", spy)
    return found


def directory(limit_nano: int | None = None, revoked_ns: int | None = None, ended_ns: int | None = None) -> Directory:
    """The world's, with another limit on the leaf of its key."""
    whole = 10**12
    return Directory(
        accounts=(Account(id="a", name="a", opened_ns=0), Account(id="b", name="b", opened_ns=0)),
        budgets=(
            Budget(id="root", account="a", parent=None, name="", limit_ustu=None, limit_nano=whole),
            Budget(
                id="leaf", account="a", parent="root", name="", limit_ustu=None, limit_nano=limit_nano,
                closed_ns=ended_ns,
            ),
            Budget(id="other", account="b", parent=None, name="", limit_ustu=None, limit_nano=whole),
        ),
        keys=(
            Key(id=KEY_ID, hash=HASH, account="a", budget="leaf", role="user", made_ns=0, revoked_ns=revoked_ns),
            Key(id=OTHER_ID, hash=OTHER_HASH, account="b", budget="other", role="user", made_ns=0),
        ),
    )  # fmt: skip


def booked(world: World, answers: Iterable[Answer], *, replayed: int = 0) -> None:
    """The books have each of these answers once, and nothing else."""
    receipts = [a.headers["x-tokenworks-receipt"] for a in answers if a.status == 200]
    settled = [settlement.receipt for settlement in world.settlements()]
    assert len(set(receipts)) == len(receipts) - replayed
    assert sorted(set(receipts)) == sorted(settled)


async def test_bodies_and_lengths_alternate(house: House, again: list[bytes]) -> None:
    """Whole and streamed, short and long: each gets its own answer, and only the first is parsed."""
    async with gateway(house(Script())) as g:
        client = await g.client()
        answers = []
        for number in range(40):
            text = f"mark{number}" + "é" * (number * 97 % 4000)
            answers.append(await client.send(request(text, stream=number % 3 == 1)).answer())
            assert answers[-1].text == text * (3 if number % 3 == 1 else 1)
        assert len(again) == 39
        booked(g.world, answers)


async def test_a_key_that_is_revoked_meanwhile_is_refused(house: House, again: list[bytes]) -> None:
    """The head is remembered, not the right to be served: what the ledger last said counts for each."""
    async with gateway(house(script := Script())) as g:
        client = await g.client()
        answers = []
        for learned in (None, directory(), directory(revoked_ns=1), None, directory(), directory(revoked_ns=1)):
            if learned is not None:
                g.world.desk.learn(learned)
            answers.append(await client.send(request("tag")).answer())
        assert [answer.status for answer in answers] == [200, 200, 401, 401, 200, 401]
        assert {answer.code for answer in answers if answer.status == 401} == {"invalid_api_key"}
        assert (len(again), script.asked) == (5, 3)
        booked(g.world, answers)


async def test_an_account_that_is_gone_is_refused(house: House, again: list[bytes]) -> None:
    """Its key is not in the directory any more; another key on this connection still is, and pays for itself."""
    async with gateway(house(Script())) as g:
        client = await g.client()
        answers = [await client.send(request("one")).answer()]
        left = msgspec.structs.replace(directory(), keys=directory().keys[1:])
        g.world.desk.learn(left)
        answers += [await client.send(request("two", key=key)).answer() for key in (KEY, OTHER_KEY, OTHER_KEY, KEY)]
        assert [answer.status for answer in answers] == [200, 401, 200, 200, 401]
        assert [settled.account for settled in g.world.settlements()] == ["a", "b", "b"]
        assert len(again) == 2
        booked(g.world, answers)


async def test_a_budget_that_is_changed_meanwhile_counts(house: House, again: list[bytes]) -> None:
    """Without a limit, with one that nothing was leased of, closed, and open again."""
    async with gateway(house(script := Script())) as g:
        client = await g.client()
        answers = []
        for learned in (directory(), directory(limit_nano=10**12), directory(ended_ns=1), directory()):
            g.world.desk.learn(learned)
            answers += [await client.send(request("tag")).answer() for _ in range(2)]
        assert [answer.status for answer in answers] == [200, 200, 402, 402, 402, 402, 200, 200]
        assert (len(again), script.asked) == (7, 4)
        booked(g.world, answers)


@pytest.mark.parametrize("how", ["one packet", "while it is answered", "cut"])
async def test_pipelined_behind_a_remembered_head(house: House, again: list[bytes], how: str) -> None:
    """Two in one packet, another while the first is still answered, one and a half: all in their order."""
    async with gateway(house(script := Script())) as g:
        client = await g.client()
        answers = [await client.send(request("mark0")).answer()]
        for round_ in range(5):
            first, second = f"mark{round_}first", f"mark{round_}second"
            script.gate.clear()
            asked = script.asked
            if how == "one packet":
                client.send(request(first), request(second))
            elif how == "cut":
                client.send(request(first), request(second)[:-9])
            else:
                client.send(request(first))
            await until(lambda asked=asked: script.asked == asked + 1)
            client.send({"one packet": b"", "cut": request(second)[-9:]}.get(how, request(second)))
            await asyncio.sleep(0.001)
            script.gate.set()
            answers += [await client.answer(), await client.answer()]
            assert [answer.text for answer in answers[-2:]] == [first, second]
            for text in (f"mark{round_}third", f"mark{round_}fourth"):
                answers.append(await client.send(request(text)).answer())
                assert answers[-1].text == text
        assert len(again) >= 5
        booked(g.world, answers)


async def test_one_that_is_told_at_once_does_not_overtake(house: House, again: list[bytes]) -> None:
    """Its head is known and its body is nonsense, but the request before it is still answered."""
    async with gateway(house(script := Script())) as g:
        client = await g.client()
        answers = [await client.send(request("mark")).answer()]
        script.gate.clear()
        client.send(request("first"))
        await until(lambda: script.asked == 2)
        client.send(request("second", model="none"))
        await asyncio.sleep(0.005)
        script.gate.set()
        answers += [await client.answer(), await client.answer()]
        assert [answer.status for answer in answers] == [200, 200, 404]
        assert len(again) == 1
        booked(g.world, answers)


async def test_lane_and_asgi_alternate(house: House, again: list[bytes]) -> None:
    """What goes another way is between two with the same head; the second one is still known."""
    async with gateway(house(Script())) as g:
        client = await g.client()
        answers = []
        for number in range(8):
            answers.append(await client.send(request(f"mark{number}")).answer())
            assert answers[-1].text == f"mark{number}"
            other = get(f"/v1/mark{number}", "Content-Length: 3", method="PUT") + b"abc"
            found = await client.send(get(f"/v1/receipts/mark{number}") if number % 2 else other).answer()
            assert (found.status, f"mark{number}".encode() in found.body) == (200 if number % 2 else 404, True)
        assert len(again) == 7
        booked(g.world, answers)


@pytest.mark.parametrize("behind", ["one packet", "rest of a body"])
async def test_an_order_before_a_request_is_not_taken_for_it(house: House, again: list[bytes], behind: str) -> None:
    """Both posts have as many headers, and the packet began with the first: what is remembered is no mix of them."""
    order = get("/v1/admin/describe", "Content-Length: 2", method="POST") + b"{}"
    text = f"X: y\r\nx-api-key: {KEY}"
    async with gateway(house(script := Script())) as g:
        client = await g.client()
        asked = request("tag", text, key=None)
        plain = asked.replace(b"X: y\r\n", b"")
        assert plain.count(b"\r\n") == order.count(b"\r\n")
        if behind == "one packet":
            client.send(order, plain)
        else:
            client.send(order[:-1])
            await asyncio.sleep(0.002)
            client.send(order[-1:], plain)
        assert [(await client.answer()).status for _ in range(2)] == [403, 200]
        assert (await client.send(order).answer()).status == 403
        assert (await client.send(plain).answer()).text == "tag"
        assert (script.asked, again) == (2, [])


async def test_a_body_in_several_packets(house: House, again: list[bytes]) -> None:
    """The head is the same, but the packet is not the whole request: the parser reads it, wherever it is cut."""
    async with gateway(house(Script())) as g:
        client = await g.client()
        raw = request("mark")
        answers = [await client.send(raw).answer()]
        for at in range(1, len(raw), 3):
            client.send(raw[:at])
            await asyncio.sleep(0)
            await asyncio.sleep(0)
            answers.append(await client.send(raw[at:]).answer())
            if at % 2:
                answers.append(await client.send(request(f"mark{at}")).answer())
        assert {answer.status for answer in answers} == {200}
        assert again
        booked(g.world, answers)


@pytest.mark.parametrize("last", ["1.0", "close", "1.0 keep-alive"])
async def test_the_last_request_of_a_connection(house: House, again: list[bytes], last: str) -> None:
    """HTTP/1.0 and ``Connection: close`` are other heads: the server hangs up after their answer, as ever."""
    extra = {"1.0": (), "close": ("Connection: close",), "1.0 keep-alive": ("Connection: keep-alive",)}[last]
    async with gateway(house(Script())) as g:
        client = await g.client()
        answers = [await client.send(request(f"mark{number}")).answer() for number in range(3)]
        final = request("final", *extra, version="1.1" if last == "close" else "1.0")
        answers += await client.send(final).all()
        assert [answer.text for answer in answers] == ["mark0", "mark1", "mark2", "final"]
        assert answers[-1].headers["connection"] == "close"
        assert len(again) == 2
        booked(g.world, answers)


async def test_an_idempotency_key_between(house: House, again: list[bytes]) -> None:
    """It is never remembered: the same key gets the same answer; without it each is served and billed."""
    async with gateway(house(script := Script())) as g:
        client = await g.client()
        plain, keyed = request("mark"), request("mark", "Idempotency-Key: k")
        answers = [await client.send(raw).answer() for raw in (plain, keyed, keyed, plain, plain, keyed, keyed, plain)]
        assert {answer.text for answer in answers} == {"mark"}
        replays = ["idempotent-replayed" in answer.headers for answer in answers]
        assert replays == [False, False, True, False, False, True, True, False]
        assert (script.asked, len(again)) == (5, 1)
        booked(g.world, answers, replayed=3)


async def test_whether_it_can_wait_is_remembered(
    house: House, again: list[bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The header that says so belongs to its own head only."""
    said: list[bool] = []

    async def admitted(found: Served, *, deferrable: bool) -> Served:
        said.append(deferrable)
        return found

    async with gateway(house(Script())) as g:
        overflow = g.world.house.overflow
        overflow.orders = {"elsewhere": Order(event="e", max_mw=1, firm=True, end_ns=2**62, step=1, since_ns=0)}
        monkeypatch.setattr(overflow, "admitted", admitted)
        client = await g.client()
        later, now = request("tag", LATER), request("tag")
        answers = [await client.send(raw).answer() for raw in (later, later, now, now, later)]
        assert said == [True, True, False, False, True]
        assert len(again) == 2
        booked(g.world, answers)


async def test_errors_and_answers_alternate(house: House, again: list[bytes]) -> None:
    """Bad JSON, an unknown model, a body that is none: each is told to whoever sent it, and the next is served."""
    async with gateway(house(script := Script())) as g:
        client = await g.client()
        good = request("mark")
        head = good[: good.index(b"Content-Length: ")]
        tail = good[good.index(b"\r\n", len(head)) : good.index(b"\r\n\r\n") + 4]

        def raw(body: bytes) -> bytes:
            return head + b"Content-Length: %d" % len(body) + tail + body

        answers = []
        bodies = [(raw(b"{nonsense"), 400), (raw(b""), 400), (raw(b"[]"), 400), (request("x", model="none"), 404)]
        assert raw(good[good.index(b"\r\n\r\n") + 4 :]) == good
        for number, (bad, status) in enumerate(bodies * 2):
            answers.append(await client.send(request(f"mark{number}")).answer())
            assert answers[-1].text == f"mark{number}"
            failed = await client.send(bad).answer()
            assert failed.status == status
            assert "connection" not in failed.headers
        assert (script.asked, len(again)) == (8, 15)
        booked(g.world, answers)


@pytest.mark.parametrize("other", [
    pytest.param(lambda: chunked("other"), id="chunked"),
    pytest.param(lambda: request("other", "Expect: 100-continue"), id="expect"),
    pytest.param(lambda: request("other", "Connection: upgrade", "Upgrade: h2c"), id="upgrade"),
    pytest.param(lambda: b"\r\n" + request("other"), id="an empty line first"),
    pytest.param(lambda: request("other", "X: " + "x" * 5000), id="long"),
])  # fmt: skip
async def test_what_is_not_remembered_is_served_as_ever(
    house: House, again: list[bytes], other: Callable[[], bytes]
) -> None:
    """In every shape, twice, and the known head forgotten or known again behind it."""
    async with gateway(house(Script())) as g:
        client = await g.client()
        answers = []
        for _ in range(2):
            for raw, text in ((request("mark"), "mark"), (request("mark"), "mark"), (other(), "other")):
                answers += [await client.send(raw).answer(), await client.send(raw).answer()]
                assert [answer.text for answer in answers[-2:]] == [text] * 2
        assert set(again) == {request("mark").partition(b"\r\n\r\n")[2]}
        booked(g.world, answers)


@pytest.mark.parametrize("stream", [False, True])
async def test_a_client_that_goes_in_the_middle_leaves_nothing(house: House, again: list[bytes], stream: bool) -> None:
    """At every step of an answer; what is left of it is checked by ``gateway`` itself."""
    async with gateway(house(script := Script())) as g:
        for reset, wait_s in itertools.product((False, True), (0.0, 0.001)):
            script.gate.set()
            client = await g.client()
            assert (await client.send(request("first", stream=stream)).answer()).status == 200
            script.gate.clear()
            asked = script.asked
            client.send(request("second", stream=stream))
            await until(lambda asked=asked: script.asked == asked + 1)
            await asyncio.sleep(wait_s)
            client.reset() if reset else client.close()
        script.gate.set()
        await until(lambda: not g.server.server_state.tasks)
        assert len(again) == 4
        assert {len(g.world.settlements())} == {8}


async def test_answers_go_to_whoever_asked(house: House, again: list[bytes]) -> None:
    """Many connections at once, each with its own marks in its own order."""
    async with gateway(house(Script())) as g:

        async def one(name: str) -> list[Answer]:
            client, found = await g.client(), []
            for number in range(12):
                key = KEY if number % 6 < 3 else OTHER_KEY
                text = f"{name}mark{number}" + "x" * (number * 31)
                found.append(await client.send(request(text, key=key, stream=number % 4 == 3)).answer())
                assert found[-1].text == text * (3 if number % 4 == 3 else 1)
            return found

        each = await asyncio.gather(*[one(f"client{number}") for number in range(12)])
        assert len(again) == 12 * 8
        booked(g.world, itertools.chain(*each))
        accounts = [settled.account for settled in g.world.settlements()]
        assert accounts.count("a") == accounts.count("b") == 72


async def test_nothing_is_served_behind_the_last_answer(house: House) -> None:
    """A bug of ours ends the connection: the request behind it is neither asked of an engine nor billed."""
    async with gateway(house(script := Script(0, RuntimeError)), logged=1) as g:
        client = (await g.client()).send(request("first"), request("second"))
        assert [answer.status for answer in await client.all()] == [500]
        assert script.asked == 1
