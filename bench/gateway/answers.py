"""Is this answer the one that the request's number demands? Gateways may re-encode JSON and cut HTTP chunks anew."""

from __future__ import annotations

import msgspec
from bench.gateway.words import CHUNKS, Mode, text, tokens

FULL_EVERY = 16
"""Of the streams, one in so many is decoded event by event; of the others the pieces are counted."""


class Wrong(Exception):
    """An answer is not what it must be; the message says how."""


class _Details(msgspec.Struct):
    cached_tokens: int | None = None


class _Usage(msgspec.Struct):
    prompt_tokens: int
    completion_tokens: int
    total_tokens: int
    prompt_tokens_details: _Details | None = None


class _Part(msgspec.Struct):
    content: str | None = None


class _Choice(msgspec.Struct):
    message: _Part | None = None
    delta: _Part | None = None


class _Receipt(msgspec.Struct):
    ustu: int


class _Answer(msgspec.Struct):
    choices: list[_Choice] = []
    usage: _Usage | None = None
    tokenworks: _Receipt | None = None


_decode = msgspec.json.Decoder(_Answer).decode


def check(response: bytes, number: int, mode: Mode) -> int:
    """The STU in millionths that the answer's ``tokenworks`` object names, or 0. Raises Wrong."""
    if response[9:12] != b"200":
        raise Wrong(f"status {response[9:12].decode('latin-1')}: {response[-300:]!r}")
    head, _, body = response.partition(b"\r\n\r\n")
    if b"chunked" in head.lower():
        body = dechunked(body)
    try:
        answer = _decode(body) if mode == "whole" else _report(body, number)
    except msgspec.DecodeError as error:
        raise Wrong(f"{error}: {body[-300:]!r}") from None
    if mode == "whole" and (not answer.choices or _content(answer) != text(number, mode)):
        raise Wrong(f"another text: {body[:300]!r}")
    used, said = tokens(number, mode), answer.usage
    if said is None:
        raise Wrong(f"no usage: {body[-300:]!r}")
    if (said.prompt_tokens, said.completion_tokens) != (used.prompt, used.completion):
        raise Wrong(f"usage {said}, not {used}")
    if answer.tokenworks is None:
        return 0
    if answer.tokenworks.ustu != used.ustu:
        raise Wrong(f"{answer.tokenworks.ustu} millionths of STU, not {used.ustu}")
    return used.ustu


def dechunked(body: bytes) -> bytes:
    """The content of a chunked body. Raises Wrong when it is not whole."""
    parts: list[bytes] = []
    at = 0
    while True:
        line = body.find(b"\r\n", at)
        try:
            size = int(body[at:line].partition(b";")[0], 16)
        except ValueError:
            raise Wrong(f"no chunk size at {at}: {body[at : at + 40]!r}") from None
        at = line + 2 + size + 2
        if not size:
            return b"".join(parts)
        parts.append(body[line + 2 : at - 2])


def _content(answer: _Answer) -> str:
    part = answer.choices[0].message or answer.choices[0].delta
    return (part.content if part else None) or ""


def _report(body: bytes, number: int) -> _Answer:
    """The stream's usage event, after the stream was seen to be whole."""
    if not body.rstrip().endswith(b"data: [DONE]"):
        raise Wrong(f"a stream without its end mark: {body[-200:]!r}")
    pieces = body.count(b'" w')
    if b'"#%012d"' % number not in body or pieces != CHUNKS - 1:
        raise Wrong(f"a stream of another request, or {pieces} of {CHUNKS - 1} pieces")
    if number % FULL_EVERY == 0:
        answers = [_decode(event[6:]) for event in body.split(b"\n\n") if event.startswith(b"data: {")]
        told = "".join(_content(answer) for answer in answers if answer.choices)
        if told != text(number, "stream"):
            raise Wrong(f"another text: {told!r}")
    for event in reversed(body.rsplit(b"\n\n", 6)):
        if event.startswith(b"data: {") and b'"prompt_tokens"' in event:
            return _decode(event[6:])
    raise Wrong(f"no usage in the last events: {body[-400:]!r}")
