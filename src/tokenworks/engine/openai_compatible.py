"""Adapter for any server that speaks OpenAI's endpoints over HTTP, and Anthropic's Messages where it has them."""

from __future__ import annotations

from tokenworks.core.errors import EngineDown, EngineFailed, TokenworksError
from tokenworks.core.words import Endpoint, Request
from tokenworks.engine.adapter import Completion, Engine, Load
from tokenworks.engine.body import with_member
from tokenworks.engine.event import decoded
from tokenworks.engine.events import MessagesReader, Reader, Relay, ResponsesReader, Sink
from tokenworks.engine.http import CONNECTIONS_MAX, Headers, Pool, Response, read
from tokenworks.engine.rate import room_of
from tokenworks.engine.reports import error_of
from tokenworks.engine.server import server_of

COMPLETION_BYTES_MAX = 64 << 20
ERROR_BYTES_MAX = 65_536
CONTROL_S = 5.0
"""How long questions beside the tokens (health, counting) may take to be answered."""
CONTROL_CONNECTIONS_MAX = 4
PATHS: dict[Endpoint, str] = {
    "chat": "/v1/chat/completions",
    "text": "/v1/completions",
    "embeddings": "/v1/embeddings",
    "messages": "/v1/messages",
    "responses": "/v1/responses",
}
_JSON: Headers = (("content-type", "application/json"),)


class Stream(Relay):
    """A TokenStream over one HTTP answer."""

    async def relay(self, sink: Sink, chunks_max: int) -> bool:
        self.begin(sink, chunks_max)
        while (over := self.over()) is None:
            await self.more()
        return over

    async def abort(self) -> None:
        self.give_up()


class OpenAICompatible(Engine):
    """The generic adapter: a URL, perhaps a key, perhaps another name for the model."""

    _health_path = "/health"

    def __init__(
        self,
        url: str,
        *,
        api_key: str | None = None,
        upstream_model: str | None = None,
        connections_max: int = CONNECTIONS_MAX,
    ) -> None:
        server, self._prefix = server_of(url)
        headers = self.credentials(api_key) if api_key else []
        self.upstream_model = upstream_model
        self._limited = server.tls is not None
        """Clouds count our requests and say in their answers what is left."""
        self._room: Load | None = None
        self._pool = Pool(server, connections_max=connections_max, headers=headers)
        self._heads = {
            endpoint: self._pool.head("POST", self._prefix + path, _JSON) for endpoint, path in PATHS.items()
        }
        # Health and counting have connections of their own: they must not wait behind tokens.
        self._control = Pool(
            server, connections_max=CONTROL_CONNECTIONS_MAX, headers=headers,
            connect_s=CONTROL_S, first_byte_s=CONTROL_S, idle_s=CONTROL_S,
        )  # fmt: skip

    async def stream(self, request: Request) -> Stream:
        response = await self._ask(request)
        if not response.header(b"content-type").startswith(b"text/event-stream"):
            response.abort()
            raise EngineFailed("The engine did not stream although it was asked to.")
        return Stream(response, self.reader(request))

    async def complete(self, request: Request) -> Completion:
        response = await self._ask(request)
        body = (response.take() if response.complete else None) or await read(response, COMPLETION_BYTES_MAX)
        event, reader = decoded(body), self.reader(request)
        if request.endpoint in ("chat", "text") and event.choices is None:
            raise EngineFailed("The engine's answer has no choices.")
        return Completion(body=body, usage=reader.usage(event), timing=reader.timing(event))

    async def load(self) -> Load | None:
        """See ``Engine.load``: what the provider's rate limit leaves, as of the last answer."""
        return self._room

    def heard(self) -> int | None:
        return self._pool.heard()

    def credentials(self, api_key: str) -> list[tuple[str, str]]:
        """The headers that carry a key."""
        return [("authorization", f"Bearer {api_key}")]

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
        if request.endpoint == "messages":
            return MessagesReader()
        return ResponsesReader() if request.endpoint == "responses" else Reader()

    async def control(self, method: str, path: str, body: bytes = b"", *, patient: bool = False) -> tuple[int, bytes]:
        """A question beside the tokens (``patient``: one that moves a model): status and body.

        Raises EngineDown or EngineFailed.
        """
        pool = self._pool if patient else self._control
        response = await pool.request(method, self._prefix + path, body, _JSON)
        return response.status, await read(response, COMPLETION_BYTES_MAX)

    async def does(self, path: str, body: bytes = b"") -> bool:
        """Whether the engine did what is asked of it by a POST that moves a model."""
        try:
            return (await self.control("POST", path, body, patient=True))[0] == 200
        except EngineFailed:
            return False

    async def asked(self, method: str, path: str, body: bytes = b"", *, patient: bool = False) -> bytes:
        """As ``control``; raises EngineFailed for any other answer than 200."""
        status, said = await self.control(method, path, body, patient=patient)
        if status != 200:
            raise EngineFailed(f"{method} {path.partition('?')[0]} answers with HTTP {status}")
        return said

    def body_for(self, request: Request) -> bytes:
        """What is sent. Raises BadRequest for what this engine cannot be asked."""
        if self.upstream_model is None or self.upstream_model == request.model:
            return request.body
        return with_member(request.body, "model", self.upstream_model)

    async def _ask(self, request: Request) -> Response:
        response = await self._pool.ask(self._heads[request.endpoint], self.body_for(request))
        if response.status != 200:
            try:
                said = await read(response, ERROR_BYTES_MAX)
            except (EngineDown, EngineFailed):
                said = b""
            raise error_of(response.status, said, response.headers)
        if self._limited:
            self._room = room_of(response.headers)
        return response
