"""The front door over HTTP: a Starlette app for everything but tokens, which take the fast lane (``lane.py``)."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any

import msgspec
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import Request as HttpRequest
from starlette.responses import Response
from starlette.routing import Route
from starlette.types import Message, Receive, Scope, Send

from tokenworks import __version__
from tokenworks.agents.answers import error_body
from tokenworks.agents.cycle import error_headers
from tokenworks.agents.heads import BODY_BYTES_MAX, TOKEN_ROUTES, bearer
from tokenworks.agents.life import House
from tokenworks.core.errors import BadRequest, BodyTooLarge, NotAllowed, NotFound, TokenworksError, nearest
from tokenworks.exchange.desk import Identity

GATEWAYS_ONLY = ("lease", "describe_site", "hello")
"""What the ledger hears from gateways alone."""
CallLedger = Callable[..., Awaitable[Any]]
Status = Callable[[], dict[str, Any]]
PostEvent = Callable[[str | None, bytes], dict[str, Any]]
"""Takes an event of the grid in: for which site, and the body."""
_encode = msgspec.json.Encoder().encode


def json_response(value: object, status: int = 200, headers: dict[str, str] | None = None) -> Response:
    """JSON by msgspec, which speaks our words."""
    return Response(_encode(value), status, headers, "application/json")


def error_response(error: TokenworksError) -> Response:
    """The OpenAI error shape, its receipt when it has one, and Retry-After where waiting helps."""
    return json_response(error_body(error), error.status, error_headers(error))


async def read_body(scope: Scope, receive: Receive) -> bytes | None:
    """The whole body, or None when the client left. Raises BodyTooLarge at the bound, before reading on."""
    headers: list[tuple[bytes, bytes]] = scope["headers"]
    announced = next((value for name, value in headers if name == b"content-length"), b"0")
    too_large = BodyTooLarge(f"the body is larger than {BODY_BYTES_MAX >> 20} MiB", hint="send a shorter prompt")
    if announced.isdigit() and int(announced) > BODY_BYTES_MAX:
        raise too_large
    parts, size = [], 0
    while True:
        message: Message = await receive()
        if message["type"] == "http.disconnect":
            return None
        part = message.get("body", b"")
        size += len(part)
        if size > BODY_BYTES_MAX:
            raise too_large
        parts.append(part)
        if not message.get("more_body", False):
            return b"".join(parts)


class FrontDoor:
    """All routes of one gateway."""

    def __init__(
        self, house: House, call_ledger: CallLedger, status: Status, journal_bytes: Callable[[], int],
        post_event: PostEvent | None = None,
    ) -> None:  # fmt: skip
        self.house, self._call_ledger, self._status, self._journal_bytes = house, call_ledger, status, journal_bytes
        self._post_event = post_event
        self._app = Starlette(
            routes=[
                Route("/healthz", self._healthz),
                Route("/metrics", self._metrics),
                Route("/v1/models", self._models),
                Route("/v1/receipts/{id}", self._receipt),
                Route("/v1/status", self._status_page),
                Route("/v1/grid-events", self._grid_events, methods=["POST"]),
                Route("/v1/organization/usage/completions", self._usage_page),
                Route("/v1/organization/costs", self._costs_page),
                Route("/v1/admin/openapi.json", self._openapi),
                Route("/v1/admin/{office}", self._admin, methods=["POST"]),
            ],
            exception_handlers={TokenworksError: self._on_error, HTTPException: self._on_http_error},
        )

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """The ASGI entry."""
        if scope["type"] in ("http", "lifespan"):
            await self._app(scope, receive, send)

    async def _healthz(self, _: HttpRequest) -> Response:
        ready = self._ready()
        return json_response(
            {"status": "ok" if ready else "no replica can serve", "ready": ready}, 200 if ready else 503
        )

    async def _metrics(self, _: HttpRequest) -> Response:
        house = self.house
        page = house.metrics.page(house.replicas, self._ready(), house.desk.open_holds, self._journal_bytes())
        return Response(page, media_type="text/plain; version=0.0.4; charset=utf-8")

    def _ready(self) -> list[str]:
        return [name for name, replica in self.house.replicas.items() if replica.ready]

    def _who(self, request: HttpRequest) -> Identity:
        return self.house.desk.identify(bearer(request.scope["headers"]))

    async def _models(self, request: HttpRequest) -> Response:
        self._who(request)
        listed = [
            {
                "id": model,
                "object": "model",
                "created": 0,
                "owned_by": "tokenworks",
                "ready": any(offer.load.ready and not offer.away for offer in offers),
                "context_tokens": max(offer.context_tokens for offer in offers),
                "capabilities": sorted({capability for offer in offers for capability in offer.capabilities}),
            }
            for model, offers in sorted(self.house.offers.items())
        ]
        return json_response({"object": "list", "data": listed})

    async def _receipt(self, request: HttpRequest) -> Response:
        who = self._who(request)
        operator = who.key.role == "admin"
        found = await self._call_ledger(
            "receipt",
            receipt=request.path_params["id"],
            account=None if operator else who.account.id,
            operator=operator,
        )
        return json_response(found)

    def _administrator(self, request: HttpRequest) -> None:
        if self._who(request).key.role != "admin":
            raise NotAllowed("only an administrator's key may do that")

    async def _admin(self, request: HttpRequest) -> Response:
        self._administrator(request)
        name = request.path_params["office"]
        if name in GATEWAYS_ONLY:
            raise NotFound(f"there is no office {name!r} for administrators")
        body = await read_body(request.scope, request.receive)
        try:
            params = msgspec.json.decode(body or b"{}", type=dict[str, Any])
        except (msgspec.DecodeError, RecursionError) as error:
            raise BadRequest(f"the body is no JSON object: {error}") from None
        try:
            return json_response(await self._call_ledger(name, **params))
        except OverflowError:
            raise BadRequest("a number in the body is too large", hint="below 2^63") from None

    async def _openapi(self, request: HttpRequest) -> Response:
        self._administrator(request)
        return json_response(await self._call_ledger("describe"))

    async def _usage_page(self, request: HttpRequest) -> Response:
        return await self._organization(request, "organization_usage", ("bucket_width", "limit", "page"))

    async def _costs_page(self, request: HttpRequest) -> Response:
        return await self._organization(request, "organization_costs", ("limit", "page"))

    async def _organization(self, request: HttpRequest, office: str, optional: tuple[str, ...]) -> Response:
        """OpenAI's pages of usage and costs: the query string as the ledger's parameters, its text as the answer."""
        self._administrator(request)
        query = request.query_params
        params: dict[str, Any] = {name: query[name] for name in optional if name in query}
        for name in ("start_time", "end_time", "limit"):
            if name in query:
                if not query[name].isascii() or not query[name].isdigit() or len(query[name]) > 12:
                    raise BadRequest(f"{name} must be a whole number of at most 12 digits", param=name)
                params[name] = int(query[name])
        if "start_time" not in params:
            raise BadRequest("start_time is missing", param="start_time", hint="seconds since 1970")
        groups = query.getlist("group_by") + query.getlist("group_by[]")
        text = await self._call_ledger(office, **params, **({"group_by": groups} if groups else {}))
        return Response(text, media_type="application/json")

    async def _grid_events(self, request: HttpRequest) -> Response:
        self._administrator(request)
        body = await read_body(request.scope, request.receive)
        if self._post_event is None:
            raise NotFound("no grid events are taken here")
        return json_response(self._post_event(request.query_params.get("site"), body or b""), 202)

    async def _status_page(self, request: HttpRequest) -> Response:
        self._administrator(request)
        return json_response({"version": __version__, **self._status()})

    async def _on_error(self, _: HttpRequest, error: Exception) -> Response:
        assert isinstance(error, TokenworksError)
        self.house.metrics.refused(error.code)
        return error_response(error)

    async def _on_http_error(self, request: HttpRequest, error: Exception) -> Response:
        assert isinstance(error, HTTPException)
        token_routes = [route.decode() for route in TOKEN_ROUTES]
        paths = [*token_routes, "/v1/models", "/v1/receipts/{id}", "/healthz", "/metrics", "/v1/status"]
        near = nearest(request.url.path, paths)
        if error.status_code == 405 or request.url.path in token_routes:
            wrong = TokenworksError(
                f"{request.method} is not allowed on {request.url.path}", hint="token routes take POST"
            )
            wrong.status, wrong.code, wrong.kind = 405, "method_not_allowed", "invalid_request_error"
            return error_response(wrong)
        return error_response(
            NotFound(f"there is no {request.url.path} here", hint=f"did you mean {near}?" if near else None)
        )
