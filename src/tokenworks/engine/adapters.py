"""Which adapter speaks to which engine."""

from __future__ import annotations

from tokenworks.core.errors import GridFileError
from tokenworks.engine.adapter import Engine
from tokenworks.engine.anthropic import Anthropic
from tokenworks.engine.any_llm import AnyLLM
from tokenworks.engine.llamacpp import LlamaCpp
from tokenworks.engine.ollama import Ollama
from tokenworks.engine.openai_compatible import OpenAICompatible
from tokenworks.engine.record import Replica
from tokenworks.engine.replica import Address, EngineKind
from tokenworks.engine.sglang import SGLang
from tokenworks.engine.vllm import VLLMAdapter

CONNECTIONS_SPARE = 8
"""Connections beyond slots and waiting places: those that close while new ones open."""
KINDS: dict[EngineKind, type[OpenAICompatible]] = {
    "openai": OpenAICompatible,
    "llamacpp": LlamaCpp,
    "vllm": VLLMAdapter,
    "sglang": SGLang,
    "ollama": Ollama,
    "anthropic": Anthropic,
}


def adapter_for(replica: Replica, url: str | None = None, api_key: str | None = None) -> Engine:
    """The adapter of a replica's engine, at ``url`` or where the grid file says.

    Raises GridFileError when that is no URL, EngineDown when the engine needs an extra that is not installed.
    """
    spec = replica.spec
    replica.address = Address(url=url, api_key=api_key)
    model, key = spec.upstream_model or spec.model, api_key or spec.api_key
    if spec.engine == "any-llm":
        return AnyLLM(model, api_key=key, url=spec.url)
    try:
        return KINDS[spec.engine](
            url or spec.url or "",
            api_key=key,
            upstream_model=model,
            connections_max=spec.slots + replica.waiting_max + CONNECTIONS_SPARE,
        )
    except ValueError as error:
        raise GridFileError(f"replica {spec.name!r}: {error}", hint='url = "http://host:port"') from error
