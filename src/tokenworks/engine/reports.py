"""The errors that engines report in OpenAI's shape, in our words. Pure functions."""

from __future__ import annotations

from math import ceil

import msgspec

from tokenworks.core.errors import BadRequest, ContextTooLong, EngineDown, EngineFailed, TokenworksError
from tokenworks.engine.rate import Headers, retry_after_s

MESSAGE_CHARS_MAX = 500
"""An engine's message goes to the client who caused it; it need not be long."""

_TOO_LONG = ("exceed_context_size_error", "context_length_exceeded")


class NothingCame(EngineDown):
    """The engine closed the connection without an answer."""


class TooBusy(EngineDown):
    """The engine takes no more requests for the moment."""


def error_of(status: int, body: bytes, headers: Headers = ()) -> TokenworksError:
    """The error that an answer other than 200 stands for, told by whose fault it is.

    A wrong credential or path of ours is never the client's mistake, and an engine that is too busy did nothing yet.
    """
    details = _details(body)
    message = _text(details)
    if status in (429, 503, 529):  # the last is Anthropic's
        busy = TooBusy(f"The engine is too busy or not ready (HTTP {status}).")
        if (pause_s := retry_after_s(headers)) is not None:
            busy.retry_after_s = ceil(pause_s)
        return busy
    if status in (401, 403):
        return EngineFailed(f"The engine refused our credential (HTTP {status}).", hint="check the replica's api_key")
    if status in (404, 405):
        return EngineFailed(f"The engine has no such model or path (HTTP {status}).", hint="check the replica's url")
    if status in (400, 413) and _is_too_long(details, message):
        return _too_long(details, message)
    if 400 <= status < 500:
        return BadRequest(message or f"The engine refused the request (HTTP {status}).")
    return EngineFailed(f"The engine failed (HTTP {status}){': ' + message if message else '.'}")


def message_of(body: bytes) -> str:
    """The message in an error body, or nothing."""
    return _text(_details(body))


def _details(body: bytes) -> dict[str, object]:
    try:
        said = msgspec.json.decode(body)
    except (msgspec.DecodeError, RecursionError):
        return {}
    if not isinstance(said, dict):
        return {}
    inner = said.get("error")
    if isinstance(inner, dict):
        return inner
    return {"message": inner} if isinstance(inner, str) else said


def _text(details: dict[str, object]) -> str:
    message = details.get("message") or details.get("detail")
    return message[:MESSAGE_CHARS_MAX] if isinstance(message, str) else ""


def _is_too_long(details: dict[str, object], message: str) -> bool:
    return (
        details.get("type") in _TOO_LONG
        or details.get("code") in _TOO_LONG
        or "maximum context length" in message  # vLLM says it in the text only
    )


def _too_long(details: dict[str, object], message: str) -> ContextTooLong:
    prompt, room = details.get("n_prompt_tokens"), details.get("n_ctx")
    if not isinstance(prompt, int) or not isinstance(room, int):
        return ContextTooLong(message or None)
    return ContextTooLong(f"The prompt has {prompt} tokens; this model's context holds {room}, answer included.")
