"""Adapter for Anthropic's API, a cloud that speaks only Messages.

Requests in that shape pass untouched. Chat requests are translated on their way there, answers and streams on their way
back; what Messages cannot express is refused rather than dropped. Source: Anthropic Messages API reference and
"OpenAI SDK compatibility" (2023-06-01).
"""

from __future__ import annotations

from typing import Any

import msgspec

from tokenworks.core.errors import BadRequest, TokenworksError
from tokenworks.core.words import Request
from tokenworks.engine.adapter import Completion
from tokenworks.engine.body import members, with_member
from tokenworks.engine.events import MessagesReader, Reader
from tokenworks.engine.openai_compatible import OpenAICompatible
from tokenworks.engine.translate import ChatReader, to_chat, to_messages

VERSION = "2023-06-01"


class _Count(msgspec.Struct):
    input_tokens: int


class Anthropic(OpenAICompatible):
    """The cloud behind a key."""

    _health_path = "/v1/models"

    def __init__(self, url: str, **settings: Any) -> None:
        super().__init__(url, **settings)
        self._limited = True
        self._heads = dict.fromkeys(self._heads, self._heads["messages"])

    def credentials(self, api_key: str) -> list[tuple[str, str]]:
        return [("x-api-key", api_key), ("anthropic-version", VERSION)]

    def reader(self, request: Request) -> Reader:
        return MessagesReader() if request.endpoint == "messages" else ChatReader(request)

    def body_for(self, request: Request) -> bytes:
        if request.endpoint == "messages":
            return super().body_for(request)
        if request.endpoint != "chat":
            raise BadRequest(f"{request.model} answers chat and messages only", param="model")
        try:
            return with_member(to_messages(request), "model", self.upstream_model or request.model)
        except (KeyError, TypeError, AttributeError) as error:
            raise BadRequest(f"the request is not one of chat: {error!r}") from None

    async def complete(self, request: Request) -> Completion:
        if request.endpoint != "chat":
            return await super().complete(request)
        asked = msgspec.structs.replace(request, endpoint="messages", body=self.body_for(request))
        answer = await super().complete(asked)
        return msgspec.structs.replace(answer, body=to_chat(answer.body, request))

    async def count_input(self, request: Request) -> int | None:
        """``POST /v1/messages/count_tokens``, which costs nothing. None when it does not answer."""
        try:
            asked = members(self.body_for(request))
            for name in ("max_tokens", "stream", "temperature", "top_p", "stop_sequences", "metadata"):
                asked.pop(name, None)
            status, said = await self.control("POST", "/v1/messages/count_tokens", msgspec.json.encode(asked))
            return msgspec.json.decode(said, type=_Count).input_tokens if status == 200 else None
        except (TokenworksError, msgspec.DecodeError):
            return None
