"""Adapter for Ollama. It keeps no queue figures: load is our own count; what it says is whether the model is loaded.

It unloads a model by itself (after 5 minutes unless told otherwise), which is seen here as falling asleep. Source:
Ollama docs/api.md (``/api/ps``, ``keep_alive``), docs/faq.md (503 when its queue is full).
"""

from __future__ import annotations

import msgspec

from tokenworks.core.errors import EngineDown, EngineFailed
from tokenworks.engine.adapter import Load
from tokenworks.engine.openai_compatible import OpenAICompatible


class _Model(msgspec.Struct):
    name: str = ""
    model: str = ""


class _Loaded(msgspec.Struct):
    models: list[_Model] | None = None


class Ollama(OpenAICompatible):
    """Any Ollama server; tokens go through its OpenAI-compatible routes."""

    _health_path = "/api/version"
    """The server is up. Its model loads with the first request, or by ``wake``."""

    async def load(self) -> Load | None:
        """See ``Engine.load``: ``GET /api/ps``."""
        try:
            loaded = msgspec.json.decode(await self.asked("GET", "/api/ps"), type=_Loaded).models or []
        except msgspec.DecodeError as error:
            raise EngineFailed("its /api/ps is not what Ollama says there") from error
        ours = _tagged(self.upstream_model or "")
        return Load(asleep=not any(ours in (_tagged(each.name), _tagged(each.model)) for each in loaded))

    async def sleep(self) -> bool:
        """See ``Engine.sleep``: an empty request that keeps the model for 0 s."""
        await self._generate(b',"keep_alive":0}')
        return True

    async def wake(self) -> None:
        """See ``Engine.wake``: an empty request loads the model, for as long as the server is set to keep it."""
        await self._generate(b"}")

    async def _generate(self, end: bytes) -> None:
        name = msgspec.json.encode(self.upstream_model)
        try:
            await self.asked("POST", "/api/generate", b'{"model":' + name + end, patient=True)
        except EngineFailed as error:
            raise EngineDown(f"The model cannot be loaded or unloaded: {error.message}") from error


def _tagged(name: str) -> str:
    return name if ":" in name else f"{name}:latest"
