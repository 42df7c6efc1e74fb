"""Adapter for any server that speaks OpenAI's chat and text completions over HTTP.

The stream is passed on byte for byte. Ordinary delta events are not decoded: whether one carries output, usage or an
error is read off its bytes, which is safe because a quote inside a JSON string is always escaped, so a key with its
quotes cannot be part of the text that a model made.
"""

from __future__ import annotations

import re
import ssl
from collections import deque
from urllib.parse import urlsplit

import msgspec

from tokenworks.core.errors import EngineDown, EngineFailed, TokenworksError
from tokenworks.core.words import Request, Usage
from tokenworks.engine.adapter import Chunk, Completion, Timing
from tokenworks.engine.http import CONNECTIONS_MAX, Headers, Pool, Response
from tokenworks.engine.reports import error_of, message_of, usage_of
from tokenworks.engine.sse import Splitter, payload

COMPLETION_BYTES_MAX = 64 << 20
ERROR_BYTES_MAX = 65_536
CONTROL_S = 5.0
"""How long questions beside the tokens (health, counting) may take to be answered."""
CONTROL_CONNECTIONS_MAX = 4
PATHS = {"chat": "/v1/chat/completions", "text": "/v1/completions"}
_JSON: Headers = (("content-type", "application/json"),)
_OUTPUT = re.compile(
    rb'"(?:content|text|reasoning_content|reasoning|refusal)"\s*:\s*"(?!")'
    rb'|"tool_calls"\s*:\s*\[\s*\{|"function_call"\s*:\s*\{'
)
_USAGE = re.compile(rb'"usage"\s*:\s*\{')
_TIMINGS = b'"timings"'


class Event(msgspec.Struct):
    """The part of an event or answer that the books need."""

    choices: list[msgspec.Raw] | None = None
    usage: object = None
    timings: object = None
    error: object = None


class Reader:
    """Turns the raw events of one stream into chunks. Engines differ in what ``usage`` and ``timing`` they report."""

    def read(self, raw: bytes) -> Chunk | None:
        """The chunk, or None for an event that means nothing. Raises EngineFailed when it reports an error."""
        if b'"error"' not in raw and not raw.startswith((b"error", b"event: error")):
            # The cheap way out, nearly always: a delta. ``"content":"`` is how llama.cpp and vLLM write one.
            at = raw.find(b'"content":"')
            if at > 0 and raw[at + 11 : at + 12] != b'"' and b'"usage"' not in raw and _TIMINGS not in raw:
                return Chunk(raw, output=True)
        return self._read_carefully(raw)

    def usage(self, event: Event) -> Usage | None:
        """What the stream has used so far."""
        return usage_of(event.usage)

    def timing(self, event: Event) -> Timing | None:
        """What the engine measured."""
        return None

    def _read_carefully(self, raw: bytes) -> Chunk | None:
        data = payload(raw)
        if data == b"[DONE]":
            return Chunk(raw, done=True)
        if data == b"null":  # llama.cpp begins a text stream of several prompts with this; no client understands it
            return None
        if raw.startswith((b"error:", b"event: error")):  # the first is how llama.cpp once named the field
            raise EngineFailed(message_of(data or raw[6:].strip()) or "The engine reported an error.")
        chunk = Chunk(raw, output=_OUTPUT.search(data) is not None)
        reports = _USAGE.search(data) is not None
        if reports or _TIMINGS in data or b'"error"' in data:
            event = _decode(data)
            if event.error:
                raise EngineFailed(message_of(data) or "The engine reported an error.")
            chunk.timing = self.timing(event)
            if reports:
                chunk.usage = self.usage(event)
                chunk.usage_only = not event.choices
        return chunk


def _decode(data: bytes) -> Event:
    try:
        return msgspec.json.decode(data, type=Event)
    except msgspec.DecodeError as error:
        raise EngineFailed("The engine sent something that is not an answer.") from error


class Stream:
    """A TokenStream over one HTTP answer."""

    def __init__(self, response: Response, reader: Reader) -> None:
        self._response = response
        self._reader = reader
        self._splitter = Splitter()
        self._events: deque[bytes] = deque()  # bounded: what one block of the response held
        self._done = False

    def __aiter__(self) -> Stream:
        return self

    async def __anext__(self) -> Chunk:
        if self._done:
            raise StopAsyncIteration
        try:
            chunk = None
            while chunk is None:
                while not self._events:
                    await self._fill()
                chunk = self._reader.read(self._events.popleft())
        except EngineFailed:
            self._response.abort()
            raise
        if chunk.done:
            self._done = True
            self._response.detach()
        return chunk

    async def _fill(self) -> None:
        block = await self._response.next_block()
        if not block:
            raise EngineFailed("The engine's answer ended before its end mark.")
        self._events.extend(self._splitter.feed(block))

    async def abort(self) -> None:
        """Close the connection at once; no effect after the end."""
        if not self._done:
            self._response.abort()


class OpenAICompatible:
    """The generic adapter: a URL, perhaps a key, perhaps another name for the model."""

    def __init__(
        self,
        url: str,
        *,
        api_key: str | None = None,
        upstream_model: str | None = None,
        connections_max: int = CONNECTIONS_MAX,
    ) -> None:
        parts = urlsplit(url)
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise ValueError(f"{url!r} is not an http or https URL")
        secure = parts.scheme == "https"
        tls = ssl.create_default_context() if secure else None
        port = parts.port or (443 if secure else 80)
        headers = [("authorization", f"Bearer {api_key}")] if api_key else []
        # People write the base URL with and without /v1; the paths bring their own.
        self._prefix = parts.path.rstrip("/").removesuffix("/v1")
        self._upstream_model = upstream_model
        self._pool = Pool(parts.hostname, port, connections_max=connections_max, headers=headers, tls=tls)
        # Health and counting have connections of their own: they must not wait behind tokens.
        self._control = Pool(
            parts.hostname, port, connections_max=CONTROL_CONNECTIONS_MAX, headers=headers, tls=tls,
            connect_s=CONTROL_S, first_byte_s=CONTROL_S, idle_s=CONTROL_S,
        )  # fmt: skip
        self._health_path = "/health"

    async def stream(self, request: Request) -> Stream:
        """See ``Adapter.stream``."""
        response = await self._ask(request)
        if not response.header(b"content-type").startswith(b"text/event-stream"):
            response.abort()
            raise EngineFailed("The engine did not stream although it was asked to.")
        return Stream(response, self.reader(request))

    async def complete(self, request: Request) -> Completion:
        """See ``Adapter.complete``."""
        response = await self._ask(request)
        body = await response.read(COMPLETION_BYTES_MAX)
        event, reader = _decode(body), self.reader(request)
        return Completion(body=body, usage=reader.usage(event), timing=reader.timing(event))

    async def count_input(self, request: Request) -> int | None:
        """OpenAI's protocol has no way to ask."""
        return None

    async def healthy(self) -> bool:
        """``GET /health``, or ``GET /v1/models`` where there is no such path."""
        try:
            status = (await self.control("GET", self._health_path))[0]
            if status in (401, 403, 404, 405) and self._health_path == "/health":
                self._health_path = "/v1/models"
                status = (await self.control("GET", self._health_path))[0]
        except TokenworksError:
            return False
        return status == 200

    async def close(self) -> None:
        """Close all connections; streams in the middle break."""
        await self._pool.close()
        await self._control.close()

    def reader(self, request: Request) -> Reader:
        """What reads the reports in this request's answer."""
        return Reader()

    async def control(self, method: str, path: str, body: bytes = b"") -> tuple[int, bytes]:
        """A question beside the tokens: status and body. Raises EngineDown or EngineFailed."""
        response = await self._control.request(method, self._prefix + path, body, _JSON)
        return response.status, await response.read(COMPLETION_BYTES_MAX)

    async def _ask(self, request: Request) -> Response:
        body = request.body
        if self._upstream_model is not None and self._upstream_model != request.model:
            body = _renamed(body, self._upstream_model)
        response = await self._pool.request("POST", self._prefix + PATHS[request.endpoint], body, _JSON)
        if response.status != 200:
            try:
                said = await response.read(ERROR_BYTES_MAX)
            except (EngineDown, EngineFailed):
                said = b""
            raise error_of(response.status, said)
        return response


def _renamed(body: bytes, model: str) -> bytes:
    fields = msgspec.json.decode(body, type=dict[str, msgspec.Raw])  # everything else stays as it was written
    fields["model"] = msgspec.Raw(msgspec.json.encode(model))
    return msgspec.json.encode(fields)
