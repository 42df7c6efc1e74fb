"""What the mock engine and the load generator agree on, so that every answer can be checked.

A request carries a number in its prompt. The number alone decides the answer: its text, and the tokens it used. So a
lost, doubled, cut or foreign answer is seen at once, and the books can be compared with what must be in them.
"""

from __future__ import annotations

import re
from functools import lru_cache
from typing import Literal, NamedTuple

import msgspec

MODEL = "bench"
CHUNKS = 64
"""Events with text in one stream."""
OUTPUT_MAX = 128
"""``max_tokens`` of every request; no answer uses more."""
NUMBER = re.compile(rb"#(\d{12})")
IDLE = b"and then stay silent"
"""A prompt with these words gets a stream that never goes on after its first event."""
Mode = Literal["whole", "stream", "idle"]
_CYCLE = 97 * 8 * 61 * 7
_STORY = "The grid hums, the meters turn, and every token is counted once. " * 2
_PROMPT = "Tell a story of the utility that never lost a token. " * 6


class Tokens(NamedTuple):
    """What one answer used; ``prompt`` includes ``cached``."""

    prompt: int
    cached: int
    completion: int

    @property
    def ustu(self) -> int:
        """Millionths of a standard token at the rates of the benchmark's grid file: 1, 0.1 and 4 a token."""
        return (self.prompt - self.cached) * 1_000_000 + self.cached * 100_000 + self.completion * 4_000_000


def tokens(number: int, mode: Mode) -> Tokens:
    """The tokens that request ``number`` uses."""
    return _tokens(number % _CYCLE, mode)


@lru_cache(maxsize=1 << 16)
def _tokens(number: int, mode: Mode) -> Tokens:
    completion = 1 + number % 61 if mode == "whole" else CHUNKS + number % 7
    return Tokens(11 + number % 97, number % 8, completion)


def text(number: int, mode: Mode) -> str:
    """The answer to request ``number``."""
    if mode == "whole":
        return f"#{number:012d} {_STORY}"
    return f"#{number:012d}" + "".join(f" w{piece:02d}" for piece in range(1, CHUNKS))


def body(mode: Mode) -> tuple[bytes, bytes]:
    """A request's JSON before and after the twelve digits of its number."""
    asked: dict[str, object] = {"model": MODEL, "max_tokens": OUTPUT_MAX}
    prompt = _PROMPT + (IDLE.decode() if mode == "idle" else "")
    asked["messages"] = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": f"{prompt} #NUMBER"}]
    if mode != "whole":
        asked |= {"stream": True, "stream_options": {"include_usage": True}}
    before, _, after = msgspec.json.encode(asked).partition(b"NUMBER")
    return before, after
