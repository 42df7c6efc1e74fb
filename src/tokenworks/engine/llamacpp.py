"""Adapter for llama.cpp's server: its timings, exact counting of a prompt, and its reports for several choices.

Seen with xllamacpp 2026.10.11549: an answer with several choices (or several prompts) has the usage of the first one
only, a stream has one report per choice, each for itself. Both are put right here.
"""

from __future__ import annotations

import asyncio

import msgspec

from tokenworks.core.errors import EngineFailed, TokenworksError
from tokenworks.core.words import Request, Usage
from tokenworks.engine.adapter import Completion, Load, Timing
from tokenworks.engine.event import Event
from tokenworks.engine.events import Reader
from tokenworks.engine.exposition import LLAMACPP, load_of
from tokenworks.engine.openai_compatible import OpenAICompatible
from tokenworks.engine.usage import Shape

TEXTS_MAX = 128
"""Texts counted for one answer; more choices than that are nobody's honest request."""


class _Ask(msgspec.Struct):
    """What a request asks several times."""

    prompt: str | list[object] | None = None
    n: int | None = None

    def prompts(self) -> list[object]:
        """Texts or lists of tokens; a bare list of tokens is one prompt."""
        if not isinstance(self.prompt, list):
            return [self.prompt] if self.prompt is not None else []
        return [self.prompt] if self.prompt and isinstance(self.prompt[0], int) else self.prompt


class _Text(msgspec.Struct):
    content: str | None = None


class _Choice(msgspec.Struct):
    index: int = 0
    text: str | None = None
    message: _Text | None = None


class _Tokens(msgspec.Struct):
    tokens: list[object]


class _Templated(msgspec.Struct):
    prompt: str


class _Slot(msgspec.Struct):
    n_ctx: int
    is_processing: bool
    n_prompt_tokens: int = 0


class LlamaReader(Reader):
    """Adds up the reports of a stream's choices, so that the last one holds all that the stream has used."""

    shape: Shape = "llamacpp"

    def __init__(self, request: Request) -> None:
        self._text = request.endpoint == "text"
        ask = _ask(request) if self._text else None
        self._per_prompt = (ask.n if ask else None) or 1
        self._several = request.choices > 1 or (ask is not None and len(ask.prompts()) > 1)
        self._usage: Usage | None = None
        self._timing: Timing | None = None

    def usage(self, event: Event) -> Usage | None:
        """What the stream has used so far: answers add up, a prompt shared by several choices counts once."""
        own = super().usage(event)
        before = self._usage
        if own is None or not self._several:
            return own
        new_prompt = self._index(event) % self._per_prompt == 0 if self._text else before is None
        before = before or Usage()
        self._usage = Usage(
            input=before.input + (own.input if new_prompt else 0),
            cached_input=before.cached_input + (own.cached_input if new_prompt else 0),
            output=before.output + own.output,
            reasoning=before.reasoning + own.reasoning,
        )
        return self._usage

    def timing(self, event: Event) -> Timing | None:
        """What the engine measured; choices run side by side, so the longest one stands for all."""
        own, before = super().timing(event), self._timing
        if own is None or not self._several:
            return own
        if before is not None:
            own = Timing(
                prefill_ns=max(own.prefill_ns or 0, before.prefill_ns or 0),
                decode_ns=max(own.decode_ns or 0, before.decode_ns or 0),
            )
        self._timing = own
        return own

    @staticmethod
    def _index(event: Event) -> int:
        return msgspec.json.decode(event.choices[0], type=_Choice).index if event.choices else 0


def _ask(request: Request) -> _Ask:
    try:
        return msgspec.json.decode(request.body, type=_Ask)
    except msgspec.DecodeError:  # the engine will say what is wrong with it
        return _Ask()


class LlamaCpp(OpenAICompatible):
    """The adapter of the embedded engine, and of any llama-server."""

    def reader(self, request: Request) -> Reader:
        return LlamaReader(request) if request.endpoint in ("chat", "text") else super().reader(request)

    async def load(self) -> Load | None:
        """See ``Engine.load``: ``GET /metrics``, and how full the busy slots are. None where metrics are off."""
        status, page = await self.control("GET", "/metrics")
        if status != 200:
            return None
        load = load_of(page, LLAMACPP)
        status, said = await self.control("GET", "/slots")
        if status != 200 or load.kv_permille is not None:
            return load
        try:
            slots = msgspec.json.decode(said, type=list[_Slot])
        except msgspec.DecodeError as error:
            raise EngineFailed("its /slots is not what llama.cpp says there") from error
        used = sum(min(slot.n_prompt_tokens, slot.n_ctx) for slot in slots if slot.is_processing)
        return msgspec.structs.replace(load, kv_permille=1000 * used // max(1, sum(slot.n_ctx for slot in slots)))

    async def complete(self, request: Request) -> Completion:
        """See ``Adapter.complete``. Several choices are counted with the engine's own tokenizer."""
        answer = await super().complete(request)
        ask = _ask(request)
        if request.choices == 1 and len(ask.prompts()) <= 1:
            return answer
        return msgspec.structs.replace(answer, usage=await self._counted(request, answer))

    async def count_input(self, request: Request) -> int | None:
        """The prompt after the chat template, tokenized by the engine. None when it cannot say."""
        try:
            if request.endpoint == "text":
                return await self._count(_ask(request).prompts())
            status, said = await self.control("POST", "/apply-template", request.body)
            return await self._count([msgspec.json.decode(said, type=_Templated).prompt]) if status == 200 else None
        except (TokenworksError, msgspec.DecodeError):
            return None

    async def _counted(self, request: Request, answer: Completion) -> Usage | None:
        choices = msgspec.json.decode(answer.body, type=Event).choices or []
        read = [msgspec.json.decode(choice, type=_Choice) for choice in choices]
        texts = [choice.text or (choice.message.content if choice.message else None) or "" for choice in read]
        try:
            prompt, made = await asyncio.gather(self.count_input(request), self._count(list(texts)))
        except (TokenworksError, msgspec.DecodeError):
            prompt = made = None
        if prompt is None or made is None:
            return answer.usage
        return Usage(input=prompt, output=made, certainty="counted")

    async def _count(self, texts: list[object]) -> int | None:
        if len(texts) > TEXTS_MAX:
            return None
        total = 0
        for text in texts:
            if isinstance(text, str):
                body = msgspec.json.encode({"content": text, "add_special": True, "parse_special": True})
                status, said = await self.control("POST", "/tokenize", body)
                if status != 200:
                    return None
                total += len(msgspec.json.decode(said, type=_Tokens).tokens)
            elif isinstance(text, list):
                total += len(text)
            else:
                return None
        return total
