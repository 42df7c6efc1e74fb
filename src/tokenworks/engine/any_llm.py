"""Adapter for the long tail of providers, through the library any-llm (``pip install 'tokenworks[any-llm]'``).

The replica's ``upstream_model`` is any-llm's own name, like ``mistral:mistral-small-latest``; the library brings each
provider's client. Only chat passes. Nothing can be asked beside the tokens, so such a replica is known by its answers.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable
from typing import Any

import msgspec

from tokenworks.core.errors import BadRequest, EngineDown, EngineFailed, TokenworksError
from tokenworks.core.steps import in_task
from tokenworks.core.words import Request, Usage
from tokenworks.engine.adapter import Completion, Engine, Timing
from tokenworks.engine.events import Reader
from tokenworks.engine.reports import error_of
from tokenworks.engine.usage import read

_STATUS = {
    "RateLimitError": 429,
    "ModelNotFoundError": 404,
    **dict.fromkeys(("AuthenticationError", "MissingApiKeyError"), 401),
    **dict.fromkeys(("ContextLengthExceededError", "InvalidRequestError", "UnsupportedParameterError"), 400),
}
_OURS = ("model", "stream")


class AnyLLM(Engine):
    """One provider behind the library. Raises EngineDown when the library is not installed."""

    def __init__(self, upstream_model: str, *, api_key: str | None = None, url: str | None = None) -> None:
        try:
            from any_llm import AnyLLM as Library
        except ImportError as error:
            raise EngineDown("any-llm is not installed", hint="pip install 'tokenworks[any-llm]'") from error
        provider, model = Library.split_model_provider(upstream_model)
        asked: dict[str, Any] = {"api_key": api_key, "api_base": url, "unified_exceptions": True}
        try:
            # It is the router that tries again, elsewhere.
            self._client: Any = Library.create(provider, **asked, max_retries=0)
        except TypeError:  # a provider whose client has no such setting
            self._client = Library.create(provider, **asked)
        self._model = model

    async def stream(self, request: Request) -> ChunkStream:
        return ChunkStream(aiter(await self._ask(request)))

    async def complete(self, request: Request) -> Completion:
        answer = await self._ask(request)
        if not getattr(answer, "choices", None):
            raise EngineFailed("The provider's answer has no choices.")
        body = msgspec.json.encode(answer.model_dump(mode="json", exclude_none=True) | {"model": request.model})
        return Completion(body=body, usage=_usage(answer))

    async def _ask(self, request: Request) -> Any:
        if request.endpoint != "chat":
            raise BadRequest(f"{request.model} answers chat only", param="model")
        asked = msgspec.json.decode(request.body)
        for name in _OURS:
            asked.pop(name, None)
        await in_task()  # what its client is made of asks for one
        try:
            return await self._client.acompletion(model=self._model, stream=request.stream, **asked)
        except Exception as error:
            raise _ours(error) from error

    async def close(self) -> None:
        """See ``Adapter.close``. The library has no word for it; most of its clients have."""
        with contextlib.suppress(Exception):
            await self._client.client.close()


class ChunkStream:
    """A TokenStream over the library's chunks, written as events again."""

    def __init__(self, chunks: AsyncIterator[Any]) -> None:
        self._chunks = chunks
        self._flowing = asyncio.Event()
        self._flowing.set()
        self._finished = False
        self.chunks = 0
        self.usage: Usage | None = None
        self.timing: Timing | None = None
        self.held: list[bytes] = []

    async def relay(self, sink: Callable[[bytes], None], chunks_max: int) -> bool:
        while self.chunks < chunks_max:
            await self._flowing.wait()
            try:
                chunk = await anext(self._chunks)
            except StopAsyncIteration:
                if not self._finished:  # some clients take a broken connection for the end
                    raise EngineFailed("The provider's answer ended before it was finished.") from None
                return True
            except Exception as error:
                raise _ours(error, begun=True) from error
            data = chunk.model_dump_json(exclude_none=True).encode()
            self.usage = _usage(chunk) or self.usage
            self.chunks += Reader.output.search(data) is not None
            event = b"data: " + data + b"\n\n"
            if chunk.choices:
                self._finished |= any(choice.finish_reason is not None for choice in chunk.choices)
                sink(event)
            else:
                self.held.append(event)
        return False

    def pause(self) -> None:
        self._flowing.clear()

    def resume(self) -> None:
        self._flowing.set()

    async def abort(self) -> None:
        close = getattr(self._chunks, "aclose", None)
        if close is not None:
            with contextlib.suppress(Exception):
                await close()


def _usage(answer: Any) -> Usage | None:
    """The library reports in OpenAI's shape, whoever the provider is."""
    return None if answer.usage is None else read("openai", answer.usage.model_dump(mode="json")).usage


def _ours(error: Exception, *, begun: bool = False) -> TokenworksError:
    """The library's errors in our words. What came to no connection at all may be tried elsewhere."""
    kind, message = type(error).__name__, str(getattr(error, "message", "") or error)
    status = _STATUS.get(kind) or getattr(error, "status_code", None)
    if status is None:
        cause = type(getattr(error, "original_exception", None) or error).__name__
        reached = begun or not ("Connect" in cause or "Timeout" in cause)
        return EngineFailed(f"The provider failed: {message}") if reached else EngineDown(f"Not reached: {message}")
    code = "context_length_exceeded" if kind == "ContextLengthExceededError" else None
    after = getattr(error, "retry_after", None)
    headers = [(b"retry-after", str(after).encode())] if after else []
    return error_of(status, msgspec.json.encode({"error": {"message": message, "code": code}}), headers)
