"""What engines report in OpenAI's shapes, in our words: usage and errors. Pure functions."""

from __future__ import annotations

import msgspec

from tokenworks.core.errors import BadRequest, ContextTooLong, EngineDown, EngineFailed, TokenworksError
from tokenworks.core.words import Usage

MESSAGE_CHARS_MAX = 500
"""An engine's message goes to the client who caused it; it need not be long."""

_TOO_LONG = ("exceed_context_size_error", "context_length_exceeded")


def usage_of(report: object) -> Usage | None:
    """OpenAI's ``usage`` object as disjoint buckets. None when a number is missing, negative or contradicts another."""
    if not isinstance(report, dict):
        return None
    prompt, made = _count(report, "prompt_tokens"), _count(report, "completion_tokens")
    cached = _count(report.get("prompt_tokens_details"), "cached_tokens", 0)
    reasoning = _count(report.get("completion_tokens_details"), "reasoning_tokens", 0)
    if prompt is None or made is None or cached is None or reasoning is None or cached > prompt or reasoning > made:
        return None
    return Usage(input=prompt - cached, cached_input=cached, output=made - reasoning, reasoning=reasoning)


def _count(report: object, name: str, absent: int | None = None) -> int | None:
    value = report.get(name) if isinstance(report, dict) else None
    if value is None:
        return absent
    return value if isinstance(value, int) and not isinstance(value, bool) and value >= 0 else None


def error_of(status: int, body: bytes) -> TokenworksError:
    """The error that an answer other than 200 stands for, told by whose fault it is.

    A wrong credential or path of ours is never the client's mistake, and an engine that is too busy did nothing yet.
    """
    details = _details(body)
    message = _text(details)
    if status in (429, 503):
        return EngineDown(f"The engine is too busy or not ready (HTTP {status}).")
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
    prompt, room = _count(details, "n_prompt_tokens"), _count(details, "n_ctx")
    if prompt is None or room is None:
        return ContextTooLong(message or None)
    return ContextTooLong(f"The prompt has {prompt} tokens; this model's context holds {room}, answer included.")
