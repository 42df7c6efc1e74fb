"""The usage normaliser: what engines and providers report, in disjoint buckets that add up. Pure functions.

The trap is that the same words mean different sums. OpenAI, vLLM and llama.cpp count cached tokens inside
``prompt_tokens`` and reasoning inside ``completion_tokens``; Anthropic's ``input_tokens`` leaves out what was read from
or written to its cache; Ollama leaves a count out when it is 0. A report that contradicts itself bills nobody: it is
refused with a reason, and the caller falls back to its own count.

Sources: OpenAI API reference (chat and responses ``usage``), Anthropic Messages ``usage``, vLLM ``UsageInfo``,
llama.cpp server README (``timings``), Ollama docs/api.md.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Literal, NamedTuple

from tokenworks.core.words import Usage

Shape = Literal["openai", "anthropic", "vllm", "llamacpp", "ollama"]
COUNT_MAX = 1 << 40
"""No request has more tokens of one kind; a larger number is no count, and would not fit the books."""
_MEDIA = ("image", "audio", "video")
OLLAMA_PROMPT_UNKNOWN = "prompt_eval_count is absent: the prompt was cached, its length is unknown and not billed"


class Reading(NamedTuple):
    """What a report says. ``reason``: why there is no usage, or what it leaves out."""

    usage: Usage | None
    reason: str | None = None


class _Unusable(Exception):
    """Why a report cannot be used."""


def read(shape: Shape, report: object) -> Reading:
    """The report as disjoint buckets of native tokens, certainty ``exact``. Never raises, whatever JSON the report is.

    ``report`` is the usage object itself, or the answer that has it under ``usage`` (llama.cpp: ``timings``).
    """
    if not isinstance(report, dict):
        return Reading(None, "there is no report")
    try:
        usage = _SHAPES[shape](report)
    except _Unusable as why:
        return Reading(None, str(why))
    absent = shape == "ollama" and report.get("prompt_eval_count") is None
    return Reading(usage, OLLAMA_PROMPT_UNKNOWN if absent else None)


def _part(report: Mapping[str, Any], name: str) -> Mapping[str, Any]:
    """A nested object; absent or null is an empty one."""
    value = report.get(name)
    if value is None:
        return {}
    if not isinstance(value, dict):
        raise _Unusable(f"{name} is not an object")
    return value


def _count(report: Mapping[str, Any], name: str, absent: int | None = None) -> int:
    value = report.get(name)
    if value is None:
        if absent is None:
            raise _Unusable(f"{name} is missing")
        return absent
    if not isinstance(value, int) or isinstance(value, bool) or not 0 <= value <= COUNT_MAX:
        raise _Unusable(f"{name} is not a count of tokens")
    return value


def _agree(stated: int, found: int, what: str) -> None:
    if stated != found:
        raise _Unusable(f"{what} says {stated} where the parts are {found}")


def _openai(report: Mapping[str, Any]) -> Usage:
    """Chat's and responses' shape, also vLLM's."""
    report = _part(report, "usage") or report
    prompt, made, total = report.get("prompt_tokens"), report.get("completion_tokens"), report.get("total_tokens")
    if len(report) == 3 and type(prompt) is type(made) is type(total) is int and total == prompt + made:
        # Most reports are just these three.
        return Usage(input=_count(report, "prompt_tokens"), output=_count(report, "completion_tokens"))
    responses = "prompt_tokens" not in report and "input_tokens" in report
    prompt_name, made_name = ("input_tokens", "output_tokens") if responses else ("prompt_tokens", "completion_tokens")
    prompt, made = _count(report, prompt_name), _count(report, made_name)
    if "total_tokens" in report:
        _agree(_count(report, "total_tokens", prompt + made), prompt + made, "total_tokens")
    details, made_details = _part(report, f"{prompt_name}_details"), _part(report, f"{made_name}_details")
    cached, written = _count(details, "cached_tokens", 0), _count(details, "cache_write_tokens", 0)
    image, audio, video = (_count(details, f"{kind}_tokens", 0) for kind in _MEDIA)
    reasoning = _count(made_details, "reasoning_tokens", 0)
    plain = prompt - cached - written - image - audio - video
    if plain < 0:
        raise _Unusable(f"the details of {prompt_name} exceed it")
    if reasoning > made:
        raise _Unusable(f"reasoning_tokens exceeds {made_name}")
    return Usage(
        input=plain,
        cached_input=cached,
        cache_write=written,
        output=made - reasoning,
        reasoning=reasoning,
        image=image,
        audio=audio,
        video=video,
    )


def _anthropic(report: Mapping[str, Any]) -> Usage:
    report = _part(report, "usage") or report
    written = _count(report, "cache_creation_input_tokens", 0)
    lifetimes = _part(report, "cache_creation")
    if lifetimes:
        # The split by lifetime; either it or the sum may be there, and both must say the same.
        parts = sum(_count(lifetimes, name, 0) for name in ("ephemeral_5m_input_tokens", "ephemeral_1h_input_tokens"))
        if report.get("cache_creation_input_tokens") is not None:
            _agree(written, parts, "cache_creation_input_tokens")
        written = parts
    return Usage(
        input=_count(report, "input_tokens"),
        cached_input=_count(report, "cache_read_input_tokens", 0),
        cache_write=written,
        output=_count(report, "output_tokens"),
    )


def _llamacpp(report: Mapping[str, Any]) -> Usage:
    """``timings`` count what was processed and what was reused; with a ``usage`` beside them both must agree."""
    timings = _part(report, "timings") or report
    if "predicted_n" not in timings:  # some servers time an answer without counting it
        return _openai(report)
    cached, fresh = _count(timings, "cache_n", 0), _count(timings, "prompt_n")
    made = _count(timings, "predicted_n")
    usage = _part(report, "usage")
    if not usage:
        return Usage(input=fresh, cached_input=cached, output=made)
    told = _openai(usage)
    _agree(told.output + told.reasoning, made, "completion_tokens")
    if "cache_n" not in timings:  # older servers count the reused tokens nowhere but in the difference
        cached = told.total() - made - fresh
        if cached < 0:
            raise _Unusable("prompt_n exceeds prompt_tokens")
    _agree(told.total() - made, fresh + cached, "prompt_tokens")
    if told.cached_input and told.cached_input != cached:
        raise _Unusable("cached_tokens and cache_n differ")
    return Usage(input=fresh, cached_input=cached, output=told.output, reasoning=told.reasoning)


def _ollama(report: Mapping[str, Any]) -> Usage:
    """Both counts are left out when they are 0; with neither, or before the last chunk, there is no report."""
    if report.get("done") is False:
        raise _Unusable("the answer is not done")
    if report.get("prompt_eval_count") is None and report.get("eval_count") is None:
        raise _Unusable("prompt_eval_count and eval_count are missing")
    return Usage(input=_count(report, "prompt_eval_count", 0), output=_count(report, "eval_count", 0))


_SHAPES: dict[str, Callable[[Mapping[str, Any]], Usage]] = {
    "openai": _openai,
    "vllm": _openai,
    "llamacpp": _llamacpp,
    "anthropic": _anthropic,
    "ollama": _ollama,
}
