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

ERROR = "#/components/schemas/Error"
PERIOD_S_MAX = 366 * 86_400
"""Longest period of one question: every aggregate has a bound in time."""


def _question(
    service: LedgerService, start_time: int, end_time: int | None, group_by: list[str] | None, limit: int | None,
    page: str | None,
) -> tuple[Asked, Iterator[dict[str, Any]]]:  # fmt: skip
    """What is asked, and what was sold in its period, page by page. Raises BadRequest."""
    end = service.clock.now_ns() // NS_PER_S + 1 if end_time is None else end_time
    if not 0 <= start_time < end or end - start_time > PERIOD_S_MAX:
        raise BadRequest("start_time comes before end_time, and at most a year before it", param="start_time")

    def pages() -> Iterator[dict[str, Any]]:
        after: str | None = ""
        while after is not None:
            yield (found := sold(service, None, start_time * NS_PER_S, end * NS_PER_S, after or None))
            after = found["next"]

    asked = Asked(start_time=start_time, end_time=end, group_by=group_by or (), limit=limit, page=page)
    return asked, pages()


def organization_usage(
    service: LedgerService, start_time: int, end_time: int | None = None, bucket_width: str = "1d",
    group_by: list[str] | None = None, limit: int | None = None, page: str | None = None,
) -> str:  # fmt: skip
    """Token counts per bucket of time, in OpenAI's shape, as JSON text. Times are seconds since 1970."""
    asked, pages = _question(service, start_time, end_time, group_by, limit, page)
    rows = (row for part in pages for row in part["rows"])
    return encode(usage_page(rows, bucket_width=bucket_width, **asked)).decode()


def organization_costs(
    service: LedgerService, start_time: int, end_time: int | None = None, group_by: list[str] | None = None,
    limit: int | None = None, page: str | None = None,
) -> str:  # fmt: skip
    """Money per day, in OpenAI's shape, as JSON text."""
    asked, pages = _question(service, start_time, end_time, group_by, limit, page)
    found = list(pages)
    rows, beside = [row for part in found for row in part["rows"]], found[0]
    more = {"purchases": beside["purchases"], "credits_": beside["credits"], "currency": service.store.currency()}
    return encode(costs_page(rows, known={}, **more, **asked)).decode()


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
        paths[f"/v1/admin/{name}"] = {"post": {
            "operationId": name,
            "summary": inspect.cleandoc(office.__doc__ or "").splitlines()[0],
            "requestBody": {"required": bool(required), **_json(body)},
            "responses": {
                "200": {"description": "The answer.", **_json({})},
                "default": {"description": "What is wrong, in OpenAI's error shape.", **_json({"$ref": ERROR})},
            },
        }}  # fmt: skip
    said = {"type": "object", "required": ["message", "type", "code"]}
    error = {"type": "object", "properties": {"error": said}, "required": ["error"]}
    schemes = {"key": {"type": "http", "scheme": "bearer"}}
    return {
        "openapi": "3.1.0", "info": {"title": "Tokenworks administration", "version": "1"}, "security": [{"key": []}],
        "paths": paths, "components": {"schemas": {"Error": error, **schemas}, "securitySchemes": schemes},
    }  # fmt: skip


def _json(schema: dict[str, Any]) -> dict[str, Any]:
    return {"content": {"application/json": {"schema": schema}}}
