"""Answers as clients read them: the receipt beside the usage, the last events of a stream, and errors."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import msgspec

from tokenworks.core.errors import TokenworksError
from tokenworks.core.units import money_text, stu_text
from tokenworks.core.words import Endpoint, Request
from tokenworks.exchange.words import Settlement

_encode = msgspec.json.Encoder().encode
DONE = b"data: [DONE]\n\n"


def error_body(error: TokenworksError, endpoint: Endpoint = "chat") -> dict[str, Any]:
    """The OpenAI error shape, with a hint beside the message; Anthropic's for its own endpoint."""
    hint = {"hint": error.hint} if error.hint else {}
    if endpoint == "messages":
        return {"type": "error", "error": {"type": error.kind, "message": error.message, "code": error.code} | hint}
    return {"error": {"message": error.message, "type": error.kind, "param": error.param, "code": error.code} | hint}


def receipt_object(settled: Settlement) -> dict[str, Any]:
    """The ``tokenworks`` object beside the usage: what the client may know the moment the answer ends."""
    ustu, nano = settled.ustu - settled.loss_ustu, settled.nano - settled.loss_nano
    made: dict[str, Any] = {
        "receipt": settled.receipt,
        "stu": stu_text(ustu),
        "ustu": ustu,
        "price": money_text(nano, settled.currency),
        "price_nano": nano,
    }
    if settled.estimate is not None:
        made["energy_mj"] = settled.estimate.energy_mj + settled.estimate.overhead_mj
        if settled.estimate.carbon_ug is not None:
            made["carbon_ug"] = settled.estimate.carbon_ug
        made["energy_status"] = "provisional"
        made["energy_provenance"] = "modelled"
    return made


def with_receipt(body: bytes, settled: Settlement) -> bytes:
    """A JSON object as the engine wrote it, with the ``tokenworks`` member added at its end and nothing re-encoded."""
    end = body.rstrip()
    if not end.endswith(b"}"):
        return body
    members = end[:-1].rstrip()
    comma = b"" if members.endswith(b"{") else b","
    return b'%b%b"tokenworks":%b}' % (members, comma, _encode(receipt_object(settled)))


def error_event(error: TokenworksError, endpoint: Endpoint = "chat") -> bytes:
    """An error in the middle of a stream, as the official SDKs understand it."""
    name = b"" if endpoint in ("chat", "text") else b"event: error\n"
    body = error_body(error, endpoint)
    if endpoint == "responses":
        body = {**body["error"], "type": "error"}
    return name + b"data: " + _encode(body) + b"\n\n"


def is_error(event: bytes) -> bool:
    """Whether it is one of ``error_event``."""
    return event.startswith((b'data: {"error":', b"event: error\n"))


def last_events(request: Request, held: Sequence[bytes], settled: Settlement) -> bytes:
    """What a stream ends with, once the books have it: the events that report the usage, with the receipt in them."""
    if request.endpoint in ("chat", "text"):
        return b"".join([_with_receipt(raw, settled) for raw in held if request.show_usage]) + DONE
    return b"".join([_with_receipt(raw, settled) if at == 0 else raw for at, raw in enumerate(held)])


def _with_receipt(raw: bytes, settled: Settlement) -> bytes:
    name, _, data = raw.strip().partition(b"data:")
    return name + b"data: " + with_receipt(data.strip(), settled) + b"\n\n"
