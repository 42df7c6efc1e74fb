"""One contract for all adapters, each against a scripted server that speaks its engine's dialect."""

from __future__ import annotations

import asyncio
import json
import tempfile
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import msgspec
import pytest
from tests.support.engine_server import CACHED, KEY, MODEL, PROMPT, WORDS, EngineServer

from tokenworks.core.clock import ManualClock
from tokenworks.core.errors import (
    BadRequest,
    ContextTooLong,
    EngineDown,
    EngineFailed,
    GridFileError,
    TokenworksError,
)
from tokenworks.core.words import Endpoint, Request, Usage
from tokenworks.engine.adapter import Engine, Load, TokenStream
from tokenworks.engine.adapters import adapter_for
from tokenworks.engine.any_llm import AnyLLM
from tokenworks.engine.record import Replica
from tokenworks.engine.replica import ReplicaSpec
from tokenworks.engine.reports import TooBusy

ENGINES = ("openai", "unix", "llamacpp", "vllm", "sglang", "ollama", "anthropic", "any-llm")
"""``unix`` is an openai engine at a Unix socket."""
HTTP = ENGINES[:-1]
every = pytest.mark.parametrize("kind", ENGINES)
every_http = pytest.mark.parametrize("kind", HTTP)


def spec_for(kind: Any, url: str, **fields: Any) -> ReplicaSpec:
    model = f"openai:{MODEL}" if kind == "any-llm" else MODEL
    url = f"{url}/v1" if kind == "any-llm" else url
    base = ReplicaSpec(
        name="r", model="served", site="s", slice="", slots=2, context_tokens=64, driver="external",
        engine="openai" if kind == "unix" else kind, url=url, upstream_model=model, api_key=KEY,
    )  # fmt: skip
    return msgspec.structs.replace(base, **fields)


@asynccontextmanager
async def speaking(kind: str, key: str = KEY) -> AsyncIterator[tuple[EngineServer, Engine]]:
    server = EngineServer("openai" if kind in ("any-llm", "unix") else kind, KEY)
    with tempfile.TemporaryDirectory() as folder:
        await (server.start_at(Path(folder) / "engine.sock") if kind == "unix" else server.start())
        engine = adapter_for(Replica(spec_for(kind, server.url, api_key=key), ManualClock()))
        try:
            yield server, engine
        finally:
            await engine.close()
            await server.stop()


def ask(text: str = "hi", *, stream: bool = False, endpoint: Endpoint = "chat", **fields: Any) -> Request:
    body = {"model": "served", "messages": [{"role": "user", "content": text}], "max_tokens": 9} | fields
    if stream:
        body |= {"stream": True} | ({"stream_options": {"include_usage": True}} if endpoint == "chat" else {})
    return Request(
        id="r", endpoint=endpoint, model="served", body=json.dumps(body).encode(), stream=stream, show_usage=True,
        input_max=9, output_max=9, choices=1, needs=frozenset(), arrived_ns=5 * 10**9,
    )  # fmt: skip


async def until(true: Any, seconds: float = 2.0) -> None:
    async with asyncio.timeout(seconds):
        while not true():  # noqa: ASYNC110  # the condition is anything, and nobody tells when it holds
            await asyncio.sleep(0.005)


def text_of(events: list[bytes]) -> str:
    found = []
    for raw in b"".join(events).split(b"\n\n"):
        if raw.startswith(b"data: {"):
            choices = json.loads(raw[6:])["choices"]
            found += [choice["delta"].get("content") or "" for choice in choices]
    return "".join(found)


def exact(usage: Usage | None) -> tuple[int, int, int]:
    assert usage is not None
    assert usage.certainty == "exact"
    return usage.input, usage.cached_input, usage.output


@every
async def test_a_whole_answer_is_one_of_chat_with_its_usage(kind: str) -> None:
    """Whatever the engine's own words are, the client reads chat and the books read disjoint buckets."""
    async with speaking(kind) as (server, engine):
        done = await engine.complete(ask())
        answer = json.loads(done.body)
        assert answer["choices"][0]["message"]["content"] == "".join(WORDS)
        assert answer["usage"]["total_tokens"] == PROMPT + len(WORDS)
        assert exact(done.usage) == (PROMPT - CACHED, CACHED, len(WORDS))
        assert (done.timing is not None) == (kind == "llamacpp")
        assert server.seen[-1][1]["model"] == MODEL, "the engine's own name for the model"


@every
async def test_a_stream_is_chat_and_its_report_is_held(kind: str) -> None:
    """Text comes as it is made; the usage waits for the books, and no end mark is passed on."""
    async with speaking(kind) as (_, engine):
        events: list[bytes] = []
        stream = await engine.stream(ask(stream=True))
        assert await stream.relay(events.append, 10**9)
        assert text_of(events) == "".join(WORDS)
        assert b"[DONE]" not in b"".join(events)
        assert stream.chunks == len(WORDS)
        assert exact(stream.usage) == (PROMPT - CACHED, CACHED, len(WORDS))
        assert [json.loads(raw[6:])["usage"]["prompt_tokens"] for raw in stream.held] == [PROMPT]
        ends = [json.loads(raw[6:])["choices"][0].get("finish_reason") for raw in b"".join(events).split(b"\n\n")[:-1]]
        assert ends[-1] == ("length" if kind == "anthropic" else "stop")


@every
async def test_a_stream_stops_at_its_hold_and_goes_on(kind: str) -> None:
    """When the hold is used up nothing more is taken until it has grown, and nothing is lost."""
    async with speaking(kind) as (_, engine):
        events: list[bytes] = []
        stream = await engine.stream(ask(stream=True))
        reach = 1
        while not await stream.relay(events.append, reach):
            reach = stream.chunks + 1
        assert text_of(events) == "".join(WORDS)


async def begun(engine: Engine, **fields: Any) -> tuple[TokenStream, asyncio.Task[bool]]:
    stream = await engine.stream(ask("slow", stream=True, **fields))
    got: list[bytes] = []
    relaying = asyncio.create_task(stream.relay(got.append, 10**9))
    await until(lambda: len(got) > 2, 10)
    return stream, relaying


@every
async def test_whoever_leaves_stops_the_engine(kind: str) -> None:
    """A client that hangs up ends the work on its tokens, streamed or not."""
    async with speaking(kind) as (server, engine):
        stream, relaying = await begun(engine)
        relaying.cancel()
        await asyncio.gather(relaying, return_exceptions=True)
        await stream.abort()
        await until(lambda: server.running == 0)
        whole = asyncio.create_task(engine.complete(ask("slow")))
        await until(lambda: server.running == 1)
        whole.cancel()
        await asyncio.gather(whole, return_exceptions=True)
        await until(lambda: server.running == 0)
        assert server.aborted == 2


@every
@pytest.mark.parametrize(
    ("said", "kind_of_error"),
    [("too long", ContextTooLong), ("wrong", BadRequest), ("busy", TooBusy), ("boom", EngineFailed)],
)
@pytest.mark.parametrize("stream", [False, True])
async def test_errors_are_told_by_whose_fault_they_are(
    kind: str, said: str, kind_of_error: type[TokenworksError], stream: bool
) -> None:
    """A client hears of its own mistakes, the router of an engine that is busy and for how long."""
    async with speaking(kind) as (_, engine):
        with pytest.raises(kind_of_error) as caught:
            await (engine.stream if stream else engine.complete)(ask(said, stream=stream))
        assert type(caught.value) is kind_of_error
        if said == "busy":
            assert caught.value.retry_after_s == 7


@every
async def test_a_wrong_key_is_our_mistake(kind: str) -> None:
    """The client must not be told that its key is wrong: the one between us and the engine is."""
    async with speaking(kind, key="sk-wrong") as (_, engine):
        with pytest.raises(EngineFailed, match="credential"):
            await engine.complete(ask())


async def read(engine: Engine, stream: bool) -> None:
    if stream:
        await (await engine.stream(ask(stream=True))).relay(lambda _: None, 10**9)
    else:
        await engine.complete(ask())


@every
async def test_garbage_breaks_and_silence_is_told(kind: str) -> None:
    """HTML instead of an answer, a stream that breaks off, a server that is gone."""
    async with speaking(kind) as (server, engine):
        with pytest.raises(EngineFailed):
            await (await engine.stream(ask("cut", stream=True))).relay(lambda _: None, 10**9)
        server.broken = "garbage"
        for stream in (False, True):
            with pytest.raises(EngineFailed):
                await read(engine, stream)
        await server.stop()
        with pytest.raises(EngineDown):
            await engine.complete(ask())
        assert await engine.healthy() == (kind == "any-llm"), "any-llm has nobody to ask"


LOADS: dict[str, Load | None] = {
    "openai": None,
    "unix": None,
    "any-llm": None,
    "llamacpp": Load(running=1, waiting=0, kv_permille=500, prefix_hit_permille=250),
    "vllm": Load(running=1, waiting=0, kv_permille=500, prefix_hit_permille=250, asleep=False),
    "sglang": Load(running=1, waiting=0, kv_permille=500, prefix_hit_permille=250),
    "ollama": Load(asleep=False),
    "anthropic": Load(requests_left=41),
}


@every
async def test_load_is_one_word(kind: str) -> None:
    """Each engine's own figures in the same four numbers; what it does not say is absent."""
    async with speaking(kind) as (server, engine):
        server.asleep = False
        assert await engine.healthy()
        stream, relaying = await begun(engine)
        assert await engine.load() == LOADS[kind]
        relaying.cancel()
        await asyncio.gather(relaying, return_exceptions=True)
        await stream.abort()


@pytest.mark.parametrize("kind", ["vllm", "sglang", "llamacpp"])
async def test_nonsense_in_metrics_is_refused(kind: str) -> None:
    """A KV use of 7.5, or NaN requests, is not passed on as a number."""
    async with speaking(kind) as (server, engine):
        server.broken = "nonsense"
        with pytest.raises(EngineFailed, match="its metrics say"):
            await engine.load()


@every
async def test_sleep_and_wake(kind: str) -> None:
    """Those that can let go of their memory do, and are back when wake returns; the others say that they cannot."""
    async with speaking(kind) as (server, engine):
        server.asleep = False
        able = await engine.sleep()
        assert able == server.asleep == (kind in ("vllm", "sglang", "ollama"))
        if kind in ("vllm", "ollama"):
            load = await engine.load()
            assert load is not None
            assert load.asleep
        await engine.wake()
        assert not server.asleep
        assert await engine.healthy()


@every
async def test_a_prompt_is_counted_where_the_engine_can(kind: str) -> None:
    """Exact counting without making a token; None elsewhere, and where the engine fails."""
    async with speaking(kind) as (server, engine):
        counted = await engine.count_input(ask())
        assert counted == (PROMPT if kind in ("llamacpp", "vllm", "anthropic") else None)
        await server.stop()
        assert await engine.count_input(ask()) is None


@every_http
async def test_silence_can_be_seen(kind: str) -> None:
    """Nothing is heard while nobody waits; while an answer comes the number moves; a hung engine's stands still."""
    async with speaking(kind) as (server, engine):
        assert engine.heard() is None
        stream, relaying = await begun(engine)
        before = engine.heard()
        await until(lambda: engine.heard() != before)
        relaying.cancel()
        await asyncio.gather(relaying, return_exceptions=True)
        await stream.abort()
        await until(lambda: server.running == 0)
        server.broken = "hang"
        hung = asyncio.create_task(engine.complete(ask()))
        await until(lambda: server.running == 1)
        assert engine.heard() == 0
        await engine.close()
        with pytest.raises(EngineDown, match="closed on our side"):
            await hung  # nothing had come: somebody else may be asked


async def test_sglang_without_metrics_is_asked_for_its_loads() -> None:
    """From 0.5.7 on the same figures are at /v1/loads, one entry a rank."""
    async with speaking("sglang") as (server, engine):

        async def control(path: str, body: Any) -> tuple[int, Any] | None:
            rank = {"num_running_reqs": 2, "num_waiting_reqs": 1, "token_usage": 0.25, "cache_hit_rate": 0.5, "dp": 0}
            if path == "/v1/loads":
                return 200, {"loads": [rank, rank | {"token_usage": server.made + 0.5}]}
            return None

        server._sglang_control = control  # type: ignore[method-assign]
        assert await engine.load() == Load(running=4, waiting=2, kv_permille=500, prefix_hit_permille=500)
        server.made = 1
        with pytest.raises(EngineFailed, match="cannot be"):
            await engine.load()


async def test_a_model_that_ollama_does_not_have() -> None:
    """It cannot be woken, and that is not the client's mistake."""
    server = await EngineServer("ollama").start()
    engine = adapter_for(Replica(spec_for("ollama", server.url, upstream_model="other"), ManualClock()))
    with pytest.raises(EngineDown, match="HTTP 404"):
        await engine.wake()
    await engine.close()
    await server.stop()


async def test_messages_pass_through_to_anthropic_untouched() -> None:
    """A client that speaks Messages is not translated, in either direction."""
    async with speaking("anthropic") as (server, engine):
        done = await engine.complete(ask(endpoint="messages"))
        assert json.loads(done.body)["type"] == "message"
        assert exact(done.usage) == (PROMPT - CACHED, CACHED, len(WORDS))
        events: list[bytes] = []
        stream = await engine.stream(ask(endpoint="messages", stream=True))
        assert await stream.relay(events.append, 10**9)
        assert events[0].startswith(b"event: message_start")
        assert exact(stream.usage) == (PROMPT - CACHED, CACHED, len(WORDS))
        with pytest.raises(BadRequest, match="chat and messages"):
            await engine.complete(ask(endpoint="embeddings"))
        assert "x-api-key" not in json.dumps(server.seen)


async def test_what_cannot_be_an_adapter() -> None:
    """A URL that is none is the grid file's mistake; any-llm answers chat only."""
    with pytest.raises(GridFileError, match="not an http"):
        adapter_for(Replica(spec_for("openai", "ftp://x"), ManualClock()))
    async with speaking("any-llm") as (_, engine):
        assert isinstance(engine, AnyLLM)
        with pytest.raises(BadRequest, match="chat only"):
            await engine.complete(ask(endpoint="messages"))
