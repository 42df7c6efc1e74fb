"""Requests as clients send them: checked, and made ready for an engine without writing them anew.

Sources: OpenAI API reference (chat, completions, embeddings, responses), Anthropic Messages API reference.
"""

from __future__ import annotations

from typing import Any

import msgspec

from tokenworks.agents.asked import ABSENT, Asked, decode_asked, decode_messages
from tokenworks.core.errors import BadRequest
from tokenworks.core.words import Endpoint, Request
from tokenworks.engine.body import members, with_member

TEMPLATE_TOKENS_MAX = 64
"""Tokens that a chat template adds around one message, at most."""
CHOICES_MAX = 128
MESSAGES_MAX = 10_000
TOKENS_MAX = 1 << 31
_ROLES = frozenset(("system", "developer", "user", "assistant", "tool", "function"))
_ROLES_TEXT = ", ".join(sorted(_ROLES))
_NEEDS = {name: frozenset((name,)) for name in ("embeddings", "messages", "responses")}
_NOTHING = frozenset[str]()
_EMPTY = (b"", b"null", b"[]", b"{}", b'""', b"false", b"0")
_LIMITS: dict[Endpoint, tuple[str, ...]] = {
    "chat": ("max_completion_tokens", "max_tokens"),
    "text": ("max_tokens",),
    "embeddings": (),
    "messages": ("max_tokens",),
    "responses": ("max_output_tokens",),
}
"""What limits the output, the first one given."""
_SAID: dict[Endpoint, str] = {
    "chat": "messages",
    "text": "prompt",
    "embeddings": "input",
    "messages": "messages",
    "responses": "input",
}
"""Which member has the input."""


def parse_request(endpoint: Endpoint, body: bytes, receipt: str, arrived_ns: int) -> Request:
    """Check a body and make it ready for an engine. Raises BadRequest naming the parameter that is wrong."""
    try:
        asked = decode_asked(body)
    except msgspec.ValidationError:
        raise BadRequest("the body must be a JSON object") from None
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise BadRequest(f"the body is not valid JSON: {error}", hint="send one JSON object") from None
    model, stream, options = asked.model, asked.stream, asked.stream_options
    if model is not None and not isinstance(model, str):
        raise BadRequest("model must be a string naming a model", param="model")
    if not model:
        raise BadRequest("no model is named", param="model", hint="GET /v1/models lists what is served here")
    if not isinstance(stream, bool | None):
        raise BadRequest("stream must be true or false", param="stream")
    if not isinstance(options, dict | None):
        raise BadRequest("stream_options must be an object", param="stream_options")
    if options and not stream:
        raise BadRequest("stream_options only goes with stream: true", param="stream_options")
    _refuse(asked)
    output_max = 0 if endpoint == "embeddings" else _output_max(endpoint, asked)
    choices = 1
    if asked.n is not None or asked.best_of is not None:
        choices = max(_whole(asked.n, "n", 1, CHOICES_MAX) or 1, _whole(asked.best_of, "best_of", 1, CHOICES_MAX) or 1)
    said = bytes(getattr(asked, _SAID[endpoint]))
    input_max, prompts = _input_max(endpoint, asked, said)
    if endpoint == "text":  # each prompt gets answers of its own
        choices *= prompts
    show_usage = bool(options and options.get("include_usage"))
    if stream and not show_usage and endpoint in ("chat", "text"):
        body = _reporting(body, options)
    return Request(
        id=receipt,
        endpoint=endpoint,
        model=model,
        body=body,
        stream=bool(stream),
        show_usage=show_usage,
        input_max=input_max,
        output_max=output_max,
        choices=choices,
        needs=_needs(endpoint, asked, said),
        arrived_ns=arrived_ns,
    )


def _refuse(asked: Asked) -> None:
    """What is taken by no engine here."""
    if asked.grammar is asked.previous_response_id is asked.background is ABSENT:
        return
    if not _empty(asked.grammar):
        # An engine that cannot read a grammar prints it into its log, where nothing of a client's may stand.
        raise BadRequest("grammar is not taken", param="grammar", hint="use response_format with a json_schema")
    for name in ("previous_response_id", "background"):
        if not _empty(getattr(asked, name)):
            raise BadRequest(f"{name} is not taken: responses are not stored here", param=name, hint="send all input")


def _reporting(body: bytes, options: dict[str, Any] | None) -> bytes:
    """The body of a stream that also reports its usage, which nobody but us asked for."""
    if not options:
        return body.rstrip()[:-1] + b',"stream_options":{"include_usage":true}}'
    return with_member(body, "stream_options", {**options, "include_usage": True})


def with_output(request: Request, output_max: int) -> Request:
    """The request with another limit on output tokens, in its body too."""
    names = _LIMITS[request.endpoint]
    given = members(request.body)
    name = next((name for name in names if not _empty(given.get(name, ABSENT))), names[-1])
    body = with_member(request.body, name, output_max)
    return msgspec.structs.replace(request, body=body, output_max=output_max, clamped=True)


def with_model(request: Request, model: str) -> Request:
    """The request for another model, in its body too."""
    return msgspec.structs.replace(request, body=with_member(request.body, "model", model), model=model)


def _empty(raw: msgspec.Raw) -> bool:
    return bytes(raw) in _EMPTY


def _whole(value: object, name: str, low: int, high: int = TOKENS_MAX) -> int | None:
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, int) or not low <= value <= high:
        raise BadRequest(f"{name} must be a whole number from {low} to {high}", param=name)
    return value


def _output_max(endpoint: Endpoint, asked: Asked) -> int | None:
    for name in _LIMITS[endpoint]:
        value: object = getattr(asked, name)
        if value is not None:
            return _whole(value, name, 0 if name == "max_tokens" and endpoint != "messages" else 1)
    if endpoint == "messages":
        raise BadRequest("max_tokens is missing", param="max_tokens", hint="Anthropic's Messages need it")
    return None


def _input_max(endpoint: Endpoint, asked: Asked, said: bytes) -> tuple[int, int]:
    """The most tokens of the input, and how many prompts it is.

    A token of byte-level BPE is at least one byte, and JSON is never shorter than the text in it.
    """
    if endpoint in ("text", "embeddings"):
        return _prompt_max(said, _SAID[endpoint])
    around = 0
    for beside in (asked.tools, asked.system, asked.instructions):
        if beside is not ABSENT:
            around += len(bytes(beside))
    if endpoint == "responses":
        if said[:1] not in (b'"', b"[") or said in _EMPTY:
            raise BadRequest("input must be text or a list of items, and not empty", param="input")
        return len(said) + around + TEMPLATE_TOKENS_MAX * (1 + said.count(b'"role"') + said.count(b'"type"')), 1
    return _messages_max(said) + around, 1


def _messages_max(raw: bytes) -> int:
    try:
        messages = decode_messages(raw or b"null")
    except msgspec.ValidationError as error:
        place = str(error).partition("$[")[2].partition("]")[0]
        if not place.isdigit():
            raise _no_messages() from None
        raise _no_role(int(place)) from None
    if not messages:
        raise _no_messages()
    if len(messages) > MESSAGES_MAX:
        raise BadRequest(f"more than {MESSAGES_MAX} messages", param="messages")
    for number, message in enumerate(messages):
        if not isinstance(message.role, str) or message.role not in _ROLES:
            raise _no_role(number)
        if bytes(message.content)[:1] not in (b'"', b"[", b"n", b""):
            raise BadRequest(f"messages[{number}].content must be text or parts", param=f"messages[{number}].content")
    return len(raw) + TEMPLATE_TOKENS_MAX * len(messages)


def _no_messages() -> BadRequest:
    return BadRequest("messages must be a list with at least one message", param="messages")


def _no_role(number: int) -> BadRequest:
    return BadRequest(f"messages[{number}] needs a role: {_ROLES_TEXT}", param=f"messages[{number}].role")


def _prompt_max(raw: bytes, name: str) -> tuple[int, int]:
    """Text, a list of texts, a list of tokens (which is one prompt), or a list of such lists."""
    prompt = msgspec.json.decode(raw) if raw else None
    if isinstance(prompt, str) and prompt:
        return len(raw) + TEMPLATE_TOKENS_MAX, 1
    if isinstance(prompt, list):
        kinds = {type(part) for part in prompt}
        if kinds == {list}:
            kinds = {type(token) for part in prompt for token in part}
            kinds = kinds if kinds == {int} else set()
        if kinds in ({str}, {int}):
            return len(raw) + TEMPLATE_TOKENS_MAX * len(prompt), 1 if isinstance(prompt[0], int) else len(prompt)
    raise BadRequest(
        f"{name} must be text, a list of texts or a list of tokens, and not empty",
        param=name,
    )


def _needs(endpoint: Endpoint, asked: Asked, said: bytes) -> frozenset[str]:
    needs = _NEEDS.get(endpoint, _NOTHING)
    if asked.tools is not ABSENT and not _empty(asked.tools):
        needs |= {"tools"}
    shaped = asked.response_format if endpoint != "responses" else asked.text
    if shaped is not ABSENT and (b'"json_schema"' in bytes(shaped) or b'"json_object"' in bytes(shaped)):
        needs |= {"json_schema"}
    if asked.logprobs is not ABSENT and not _empty(asked.logprobs):
        needs |= {"logprobs"}
    if endpoint in ("text", "embeddings"):
        said = bytes(asked.messages)
    if b'image"' not in said and b'image_url"' not in said:
        return needs
    if b'"image_url"' in said or b'"input_image"' in said or (endpoint == "messages" and b'"image"' in said):
        needs |= {"images"}
    return needs
