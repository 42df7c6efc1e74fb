"""The real embedded engine with the real small model, through the fleet."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import subprocess
import sys
import textwrap
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, Literal

import msgspec
import pytest
import pytest_asyncio

from tokenworks.core.clock import WallClock
from tokenworks.core.errors import BadRequest, ContextTooLong, EngineFailed
from tokenworks.core.words import Request
from tokenworks.engine.adapter import TokenStream
from tokenworks.engine.fleet import Fleet, Pace, Replica
from tokenworks.engine.llamacpp import LlamaCpp
from tokenworks.engine.pull import model_cache
from tokenworks.engine.replica import ReplicaSpec, State
from tokenworks.engine.sse import Splitter

pytestmark = [pytest.mark.engine, pytest.mark.asyncio(loop_scope="module")]

MODEL = "smollm2-135m-instruct"
SPEC = ReplicaSpec(name="one", model=MODEL, site="here", slice="here/cpu", slots=2, context_tokens=512)
READY_S = 120.0
"""The first time the model has to be fetched."""


@asynccontextmanager
async def running(tmp: Path, spec: ReplicaSpec = SPEC, pace: Pace | None = None) -> AsyncIterator[Fleet]:
    fleet = Fleet([spec], WallClock(), tmp / "logs", model_cache(), pace=pace)
    await fleet.start()
    try:
        assert await fleet.wait_ready(READY_S), fleet.replicas[spec.name].why
        yield fleet
    finally:
        await fleet.stop()


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def replica(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Replica]:
    """One engine for all tests that leave it as they found it."""
    async with running(tmp_path_factory.mktemp("engine")) as fleet:
        yield fleet.replicas["one"]


def ask(text: str = "Say hi.", *, stream: bool = False, choices: int = 1, **fields: Any) -> Request:
    body: dict[str, Any] = {"model": MODEL, "messages": [{"role": "user", "content": text}], "max_tokens": 12, **fields}
    return asking(body, "chat", stream, choices)


def asking(body: dict[str, Any], endpoint: Literal["chat", "text"], stream: bool, choices: int = 1) -> Request:
    if stream:
        body |= {"stream": True, "stream_options": {"include_usage": True}}
    if choices > 1:
        body["n"] = choices
    return Request(
        id="r", endpoint=endpoint, model=MODEL, body=msgspec.json.encode(body), stream=stream, show_usage=True,
        input_max=1000, output_max=body.get("max_tokens"), choices=choices, needs=frozenset(), arrived_ns=0,
    )  # fmt: skip


async def streamed(replica: Replica, request: Request) -> tuple[list[dict[str, Any]], TokenStream]:
    """The events that a client gets, and what the stream has found out at its end."""
    stream, got = await replica.adapter.stream(request), list[bytes]()
    assert await stream.relay(got.append, 10_000)
    events = Splitter().split(b"".join(got))
    assert b"".join(events) == b"".join(got), "whole events"
    return [json.loads(event[6:]) for event in events], stream


def newest_child() -> int:
    """The process id of the engine started last, found as an operator would: by its parent and its command."""
    found = subprocess.run(
        ["pgrep", "-P", str(os.getpid()), "-f", "tokenworks.engine.llamacpp_child"], capture_output=True, text=True
    )
    return max(map(int, found.stdout.split()))


def gone(pid: int) -> bool:
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0]
    except (FileNotFoundError, ProcessLookupError):
        return True
    return state == "Z"


async def until(true: Any, seconds: float) -> float:
    """Wait for a condition; how long it took."""
    began = time.monotonic()
    while not true():
        assert time.monotonic() - began < seconds, "it did not happen in time"
        await asyncio.sleep(0.01)
    return time.monotonic() - began


async def test_a_whole_answer_has_usage_and_timing(replica: Replica) -> None:
    """What the engine made, how many tokens that was and how long it took, in our words."""
    done = await replica.adapter.complete(ask("Name a colour.", temperature=0))
    answer = json.loads(done.body)
    assert answer["model"] == MODEL
    assert done.usage is not None
    assert done.usage.certainty == "exact"
    assert done.usage.total() == answer["usage"]["total_tokens"]
    assert done.timing is not None
    assert done.timing.prefill_ns
    assert done.timing.decode_ns
    replica.observe(done.usage, done.timing)
    assert replica.decode_tps is not None


async def test_a_stream_is_whole_events_with_usage_at_the_end(replica: Replica) -> None:
    """Every event is passed on as it came; the usage is held, the end mark ends it, output is counted."""
    events, stream = await streamed(replica, ask("Count from one to ten.", stream=True, temperature=0))
    assert all(event["choices"] for event in events)
    assert stream.usage is not None
    assert stream.timing is not None
    [held] = stream.held
    assert json.loads(held[6:])["usage"]["completion_tokens"] == stream.usage.output
    text = "".join(event["choices"][0]["delta"].get("content") or "" for event in events)
    assert text.isascii(), "ASCII text: one event a token, and the token that ends the answer has none"
    assert stream.usage.output - 1 <= stream.chunks <= stream.usage.output


async def test_a_text_completion_streams_too(replica: Replica) -> None:
    """The older endpoint reports usage in its last event with a choice, which must not be hidden."""
    body = {"model": MODEL, "prompt": "The sea is", "max_tokens": 6, "temperature": 0}
    events, stream = await streamed(replica, asking(body, "text", stream=True))
    assert stream.held == []
    assert [event["usage"]["completion_tokens"] for event in events if event.get("usage")] == [6]
    assert stream.usage is not None
    assert stream.usage.output == 6
    assert stream.chunks == 6


async def test_several_choices_are_all_counted(replica: Replica) -> None:
    """llama.cpp reports the first choice only; the books get all of them."""
    request = ask(stream=True, choices=2, max_tokens=6, logit_bias=[["<|im_end|>", False]])
    _, stream = await streamed(replica, request)
    assert stream.usage is not None
    assert stream.usage.output == 12
    assert stream.usage.input + stream.usage.cached_input == 33
    whole = await replica.adapter.complete(ask(choices=2, max_tokens=6, temperature=0))
    assert whole.usage is not None
    assert (whole.usage.certainty, whole.usage.input) == ("counted", 33)
    assert whole.usage.output > 6


async def test_logprobs_come_through(replica: Replica) -> None:
    """A capability that the catalogue promises."""
    done = await replica.adapter.complete(ask(logprobs=True, top_logprobs=2, max_tokens=3))
    content = json.loads(done.body)["choices"][0]["logprobs"]["content"]
    assert len(content[0]["top_logprobs"]) == 2
    assert content[0]["logprob"] <= 0


async def test_a_json_schema_is_kept(replica: Replica) -> None:
    """Even a model that cannot reason answers in the shape that was asked for."""
    schema = {"type": "object", "properties": {"age": {"type": "integer"}}, "required": ["age"]}
    shape = {"type": "json_schema", "json_schema": {"name": "a", "schema": schema, "strict": True}}
    done = await replica.adapter.complete(ask("How old?", response_format=shape, max_tokens=40, temperature=0))
    assert isinstance(json.loads(json.loads(done.body)["choices"][0]["message"]["content"])["age"], int)


async def test_a_seed_repeats(replica: Replica) -> None:
    """The same seed gives the same text."""
    texts = [
        json.loads((await replica.adapter.complete(ask(seed=7, temperature=0.9))).body)["choices"][0]["message"]
        for _ in range(2)
    ]
    assert texts[0] == texts[1]


async def test_the_prompt_can_be_counted_beforehand(replica: Replica) -> None:
    """The engine's own count of a prompt is what it reports afterwards."""
    request = ask("What is a watt?")
    counted = await replica.adapter.count_input(request)
    usage = (await replica.adapter.complete(request)).usage
    assert usage is not None
    assert counted == usage.input + usage.cached_input
    assert await replica.adapter.count_input(asking({"prompt": ["The sea", [1, 2, 3]]}, "text", stream=False)) == 5


async def test_too_long_a_prompt_is_the_clients_mistake(replica: Replica) -> None:
    """Each slot has the context that was asked for, and what is beyond it is refused with both numbers."""
    with pytest.raises(ContextTooLong, match=r"has 6\d\d tokens.* holds 512"):
        await replica.adapter.stream(ask("word " * 600, stream=True))
    assert (await replica.adapter.complete(ask("word " * 400, max_tokens=1))).usage
    with pytest.raises(BadRequest, match="must be between"):
        await replica.adapter.complete(ask(choices=9))


async def test_an_abort_frees_the_slot(replica: Replica) -> None:
    """Nobody pays for tokens that nobody waits for: the engine stops within a second."""
    adapter = replica.adapter
    assert isinstance(adapter, LlamaCpp)

    async def busy() -> bool:
        return any(slot["is_processing"] for slot in json.loads((await adapter.control("GET", "/slots"))[1]))

    stream = await adapter.stream(ask("Tell a long story.", stream=True, max_tokens=450, ignore_eos=True))
    assert not await stream.relay(lambda _: None, 1)
    assert await busy()
    await stream.abort()
    began = time.monotonic()
    while await busy():
        assert time.monotonic() - began < 1
        await asyncio.sleep(0.02)
    with pytest.raises(EngineFailed, match="given up"):
        await stream.relay(lambda _: None, 450)


async def test_a_stranger_without_the_key_is_refused(replica: Replica) -> None:
    """Other users of this machine cannot use the engine behind the gateway's back."""
    ours = replica.adapter
    assert isinstance(ours, LlamaCpp)
    stranger = LlamaCpp(f"http://127.0.0.1:{ours._pool._server.port}", api_key="guess")
    assert await stranger.healthy()
    with pytest.raises(EngineFailed, match="credential"):
        await stranger.complete(ask())
    await stranger.close()


async def test_a_killed_engine_breaks_its_streams_and_comes_back(tmp_path: Path) -> None:
    """kill -9 in the middle of a stream: the stream fails, the fleet starts the engine again by itself."""
    async with running(tmp_path) as fleet:
        replica = fleet.replicas["one"]
        stream = await replica.adapter.stream(ask("Tell a long story.", stream=True, max_tokens=450, ignore_eos=True))
        await stream.relay(lambda _: None, 1)
        os.kill(newest_child(), signal.SIGKILL)
        with pytest.raises(EngineFailed):
            await stream.relay(lambda _: None, 450)
        await until(lambda: replica.life.state is State.FAILED, 1)
        assert await fleet.wait_ready(10)
        assert (replica.restarts, replica.life.failures) == (1, 1)
        assert (await replica.adapter.complete(ask())).usage


async def test_a_hung_engine_is_killed_and_comes_back(tmp_path: Path) -> None:
    """A process that is there but does not answer is as good as dead, and is made so."""
    pace = Pace(health_s=0.1, health_timeout_s=0.3, missed_max=2)
    async with running(tmp_path, pace=pace) as fleet:
        replica, hung = fleet.replicas["one"], newest_child()
        os.kill(hung, signal.SIGSTOP)
        await until(lambda: replica.life.state is State.FAILED, 5)
        assert gone(hung)
        assert "missed 2 health checks" in replica.why
        assert await fleet.wait_ready(10)


async def test_stopping_leaves_nothing(tmp_path: Path) -> None:
    """After stop() there is no process, and the log holds no prompt."""
    async with running(tmp_path) as fleet:
        child = newest_child()
        await fleet.replicas["one"].adapter.complete(ask("xyzzy", max_tokens=2))
        with pytest.raises(ContextTooLong):
            await fleet.replicas["one"].adapter.complete(ask("xyzzy " * 600))
        log = tmp_path / "logs" / "one.log"
        await until(lambda: "exceeds the available context size" in log.read_text(), 5)
    assert gone(child)
    assert fleet.replicas["one"].life.state is State.COLD
    assert "xyzzy" not in log.read_text()


async def test_an_external_engine_is_watched(replica: Replica, tmp_path: Path) -> None:
    """An engine that somebody else runs is served under another name while it answers, and not when it is gone."""
    ours = replica.adapter
    assert isinstance(ours, LlamaCpp)
    async with running(tmp_path) as other:
        inner = other.replicas["one"].adapter
        assert isinstance(inner, LlamaCpp)
        key = inner._pool._fixed.split("Bearer ")[1].strip()
        spec = msgspec.structs.replace(
            SPEC, name="far", model="renamed", upstream_model=MODEL, driver="external", api_key=key,
            url=f"http://127.0.0.1:{inner._pool._server.port}/v1",
        )  # fmt: skip
        async with running(tmp_path, spec, Pace(external_s=0.05, missed_max=2)) as fleet:
            far = fleet.replicas["far"]
            request = msgspec.structs.replace(ask(), model="renamed")
            assert (await far.adapter.complete(request)).usage
            await other.stop()
            await until(lambda: far.life.state is State.FAILED, 5)
    assert far.life.state is State.COLD


@pytest.mark.parametrize("when", ["loading", "ready"])
async def test_a_killed_parent_leaves_no_orphan(tmp_path: Path, when: str) -> None:
    """kill -9 of the gateway, even while the model loads: the engine is gone within a second."""
    script = textwrap.dedent(
        """
        from __future__ import annotations
        import asyncio, sys
        from pathlib import Path
        from tokenworks.core.clock import WallClock
        from tokenworks.engine.fleet import Fleet
        from tokenworks.engine.pull import model_cache
        from tokenworks.engine.replica import ReplicaSpec

        async def main(logs, when):
            spec = ReplicaSpec(name="o", model="smollm2-135m-instruct", site="s", slice="s", slots=1, context_tokens=64)
            fleet = Fleet([spec], WallClock(), Path(logs), model_cache())
            await fleet.start()
            if when == "ready":
                await fleet.wait_ready(60)
            print("up", flush=True)
            await asyncio.sleep(60)

        asyncio.run(main(*sys.argv[1:]))
        """
    )
    parent = subprocess.Popen([sys.executable, "-c", script, str(tmp_path), when], stdout=subprocess.PIPE)
    try:
        assert parent.stdout is not None
        await asyncio.to_thread(parent.stdout.readline)
        await until(lambda: children_of(parent.pid), 10)
        (child,) = children_of(parent.pid)
        if when == "loading":
            await asyncio.sleep(0.15)
        parent.kill()
        parent.wait()
        await until(lambda: gone(child), 1)
    finally:
        parent.kill()
        parent.wait()
        assert parent.stdout is not None
        parent.stdout.close()


def children_of(pid: int) -> list[int]:
    found = subprocess.run(["pgrep", "-P", str(pid)], capture_output=True, text=True)
    return [int(child) for child in found.stdout.split()]
