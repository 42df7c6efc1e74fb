"""Offices for other programs: OpenAI's organization pages, and the description of all offices as OpenAPI."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator
from typing import Any, get_type_hints

import msgspec

from tokenworks.core.errors import BadRequest
from tokenworks.core.units import NS_PER_S
from tokenworks.exchange.exports.openai_usage import Asked, costs_page, encode, usage_page
from tokenworks.exchange.offices.reading import sold
from tokenworks.exchange.service import LedgerService

PERIOD_S_MAX = 366 * 86_400
"""Longest period of one question: every aggregate has a bound in time."""


def _period_ns(service: LedgerService, start_time: int, end_time: int | None) -> tuple[int, int]:
    end = service.clock.now_ns() // NS_PER_S + 1 if end_time is None else end_time
    if not 0 <= start_time < end or end - start_time > PERIOD_S_MAX:
        raise BadRequest("start_time comes before end_time, and at most a year before it", param="start_time")
    return start_time * NS_PER_S, end * NS_PER_S


def _sold(service: LedgerService, since_ns: int, until_ns: int) -> Iterator[dict[str, Any]]:
    after: str | None = None
    while True:
        page = sold(service, since_ns=since_ns, until_ns=until_ns, after=after)
        yield page
        after = page["next"]
        if after is None:
            return


def organization_usage(
    service: LedgerService,
    start_time: int,
    end_time: int | None = None,
    bucket_width: str = "1d",
    group_by: list[str] | None = None,
    limit: int | None = None,
    page: str | None = None,
) -> str:
    """Token counts per bucket of time, in OpenAI's shape, as JSON text. Times are seconds since 1970."""
    since_ns, until_ns = _period_ns(service, start_time, end_time)
    rows = (row for part in _sold(service, since_ns, until_ns) for row in part["rows"])
    asked = Asked(start_time=start_time, end_time=until_ns // NS_PER_S, group_by=group_by or (), limit=limit, page=page)
    return encode(usage_page(rows, bucket_width=bucket_width, **asked)).decode()


def organization_costs(
    service: LedgerService,
    start_time: int,
    end_time: int | None = None,
    group_by: list[str] | None = None,
    limit: int | None = None,
    page: str | None = None,
) -> str:
    """Money per day, in OpenAI's shape, as JSON text."""
    since_ns, until_ns = _period_ns(service, start_time, end_time)
    found = list(_sold(service, since_ns, until_ns))
    rows = [row for part in found for row in part["rows"]]
    purchases, credits_ = found[0]["purchases"], found[0]["credits"]
    asked = Asked(start_time=start_time, end_time=until_ns // NS_PER_S, group_by=group_by or (), limit=limit, page=page)
    currency = service.store.currency()
    made = costs_page(rows, known={}, currency=currency, purchases=purchases, credits_=credits_, **asked)
    return encode(made).decode()


def openapi(offices: dict[str, Callable[..., Any]]) -> dict[str, Any]:
    """The administration API as an OpenAPI 3.1 document: one POST per office, its parameters from its signature."""
    paths: dict[str, Any] = {}
    schemas: dict[str, Any] = {}
    for name, office in offices.items():
        hints = get_type_hints(office)
        properties, required = {}, []
        for parameter in list(inspect.signature(office).parameters.values())[1:]:
            template = "#/components/schemas/{name}"
            (properties[parameter.name],), more = msgspec.json.schema_components(
                [hints[parameter.name]], ref_template=template
            )
            schemas |= more
            if parameter.default is inspect.Parameter.empty:
                required.append(parameter.name)
        body = {"type": "object", "properties": properties, "required": required, "additionalProperties": False}
        paths[f"/v1/admin/{name}"] = {
            "post": {
                "operationId": name,
                "summary": inspect.cleandoc(office.__doc__ or "").splitlines()[0],
                "requestBody": {"required": bool(required), "content": {"application/json": {"schema": body}}},
                "responses": {
                    "200": {"description": "The answer.", "content": {"application/json": {"schema": {}}}},
                    "default": {
                        "description": "What is wrong, in OpenAI's error shape.",
                        "content": {"application/json": {"schema": {"$ref": "#/components/schemas/Error"}}},
                    },
                },
            }
        }
    error = {
        "type": "object",
        "properties": {"error": {"type": "object", "required": ["message", "type", "code"]}},
        "required": ["error"],
    }
    return {
        "openapi": "3.1.0",
        "info": {"title": "Tokenworks administration", "version": "1"},
        "security": [{"key": []}],
        "paths": paths,
        "components": {
            "schemas": {"Error": error, **schemas},
            "securitySchemes": {"key": {"type": "http", "scheme": "bearer"}},
        },
    }
