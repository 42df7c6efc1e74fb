"""The OpenAI shapes: a request body checked and made ready for an engine, errors, and the ``tokenworks`` object."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

import msgspec

from tokenworks.core.errors import BadRequest, TokenworksError
from tokenworks.core.units import money_text, stu_text
from tokenworks.core.words import Request
from tokenworks.exchange.words import Settlement

TEMPLATE_TOKENS_MAX = 64
"""Tokens that a chat template adds around one message, at most."""
CHOICES_MAX = 128
MESSAGES_MAX = 10_000
_ROLES = ("system", "developer", "user", "assistant", "tool", "function")

Endpoint = Literal["chat", "text"]
_encode = msgspec.json.Encoder().encode


def error_body(error: TokenworksError) -> dict[str, Any]:
    """The OpenAI error shape, with a hint beside the message."""
    body = {"message": error.message, "type": error.kind, "param": error.param, "code": error.code}
    return {"error": body | ({"hint": error.hint} if error.hint else {})}


def parse_request(endpoint: Endpoint, body: bytes, receipt: str, arrived_ns: int) -> Request:
    """Check a body and make it ready for an engine. Raises BadRequest naming the parameter that is wrong."""
    try:
        asked = msgspec.json.decode(body)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise BadRequest(f"the body is not valid JSON: {error}", hint="send one JSON object") from None
    if not isinstance(asked, dict):
        raise BadRequest("the body must be a JSON object")
    model = _typed(asked, "model", str, "a string naming a model")
    if not model:
        raise BadRequest("no model is named", param="model", hint="GET /v1/models lists what is served here")
    if asked.get("grammar") is not None:
        # An engine that cannot read a grammar prints it into its log, where nothing of a client's may stand.
        raise BadRequest("grammar is not taken", param="grammar", hint="use response_format with a json_schema")
    stream = bool(_typed(asked, "stream", bool, "true or false") or False)
    options = _typed(asked, "stream_options", dict, "an object") or {}
    choices = _integer(asked, "n", low=1, high=CHOICES_MAX) or 1
    best_of = _integer(asked, "best_of", low=1, high=CHOICES_MAX) or 1
    output_max = _integer(asked, "max_completion_tokens", low=1) or _integer(asked, "max_tokens", low=0)
    input_max = _chat_input(asked) if endpoint == "chat" else _text_input(asked)
    asked["stream"] = stream
    if stream:
        asked["stream_options"] = {**options, "include_usage": True}
    elif options:
        raise BadRequest("stream_options only goes with stream: true", param="stream_options")
    return Request(
        id=receipt,
        endpoint=endpoint,
        model=model,
        body=_encode(asked),
        stream=stream,
        show_usage=bool(options.get("include_usage")),
        input_max=input_max,
        output_max=output_max,
        choices=max(choices, best_of),
        needs=_needs(asked),
        arrived_ns=arrived_ns,
    )


def with_output(request: Request, output_max: int) -> Request:
    """The request with another limit on output tokens, in its body too."""
    asked = msgspec.json.decode(request.body)
    name = "max_completion_tokens" if asked.get("max_completion_tokens") is not None else "max_tokens"
    asked[name] = output_max
    return msgspec.structs.replace(request, body=_encode(asked), output_max=output_max, clamped=True)


def _typed(asked: Mapping[str, Any], name: str, kind: type, what: str) -> Any:
    value = asked.get(name)
    if value is not None and not isinstance(value, kind):
        raise BadRequest(f"{name} must be {what}", param=name)
    return value


def _integer(asked: Mapping[str, Any], name: str, low: int, high: int = 1 << 31) -> int | None:
    value = asked.get(name)
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, int) or not low <= value <= high:
        raise BadRequest(f"{name} must be a whole number from {low} to {high}", param=name)
    return value


def _chat_input(asked: Mapping[str, Any]) -> int:
    messages = asked.get("messages")
    if not isinstance(messages, list) or not messages:
        raise BadRequest("messages must be a list with at least one message", param="messages")
    if len(messages) > MESSAGES_MAX:
        raise BadRequest(f"more than {MESSAGES_MAX} messages", param="messages")
    for number, message in enumerate(messages):
        if not isinstance(message, dict) or message.get("role") not in _ROLES:
            raise BadRequest(f"messages[{number}] needs a role: {', '.join(_ROLES)}", param=f"messages[{number}].role")
        if not isinstance(message.get("content"), str | list | None):
            raise BadRequest(f"messages[{number}].content must be text or parts", param=f"messages[{number}].content")
    # A token of byte-level BPE is at least one byte, and JSON is never shorter than the text in it.
    tools = len(_encode(asked["tools"])) if asked.get("tools") else 0
    return len(_encode(messages)) + tools + TEMPLATE_TOKENS_MAX * len(messages)


def _text_input(asked: Mapping[str, Any]) -> int:
    prompt = asked.get("prompt")
    if isinstance(prompt, str) and prompt:
        return len(prompt.encode()) + TEMPLATE_TOKENS_MAX
    if isinstance(prompt, list) and {type(part) for part in prompt} in ({str}, {int}):
        return len(_encode(prompt)) + TEMPLATE_TOKENS_MAX * len(prompt)
    raise BadRequest("prompt must be text, a list of texts or a list of tokens, and not empty", param="prompt")


def _needs(asked: Mapping[str, Any]) -> frozenset[str]:
    needs = set()
    if asked.get("tools"):
        needs.add("tools")
    response_format = asked.get("response_format")
    if isinstance(response_format, dict) and response_format.get("type") in ("json_schema", "json_object"):
        needs.add("json_schema")
    if asked.get("logprobs"):
        needs.add("logprobs")
    messages = asked.get("messages")
    for message in messages if isinstance(messages, list) else ():
        parts = message.get("content") if isinstance(message, dict) else None
        if isinstance(parts, list) and any(isinstance(p, dict) and p.get("type") == "image_url" for p in parts):
            needs.add("images")
    return frozenset(needs)


def receipt_object(settled: Settlement) -> dict[str, Any]:
    """The ``tokenworks`` object beside the usage: what the client may know the moment the answer ends."""
    charged = settled.nano - settled.loss_nano
    made: dict[str, Any] = {
        "receipt": settled.receipt,
        "stu": stu_text(settled.ustu - settled.loss_ustu),
        "ustu": settled.ustu - settled.loss_ustu,
        "price": money_text(charged, settled.currency),
        "price_nano": charged,
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
    return members + comma + b'"tokenworks":' + _encode(receipt_object(settled)) + b"}"


def event(data: bytes) -> bytes:
    """One server-sent event."""
    return b"data: " + data + b"\n\n"


def error_event(error: TokenworksError) -> bytes:
    """An error in the middle of a stream, as the official SDKs understand it."""
    return event(_encode(error_body(error)))


def usage_event(raw: bytes, settled: Settlement) -> bytes:
    """The engine's usage event with the ``tokenworks`` object in it."""
    _, _, data = raw.strip().partition(b"data:")
    return event(with_receipt(data.strip(), settled))
