"""Adapter for SGLang: load from its metrics or ``/v1/loads``, release and resume of its memory.

Metrics need ``--enable-metrics``, sleeping needs ``--enable-memory-saver``. Sources: SGLang docs "Production Metrics",
its HTTP server of 0.5.23.
"""

from __future__ import annotations

import msgspec

from tokenworks.core.errors import EngineFailed
from tokenworks.engine.adapter import Load
from tokenworks.engine.exposition import SGLANG, load_of
from tokenworks.engine.openai_compatible import OpenAICompatible


class _Rank(msgspec.Struct):
    num_running_reqs: int = 0
    num_waiting_reqs: int = 0
    token_usage: float = 0.0
    cache_hit_rate: float | None = None


class _Loads(msgspec.Struct):
    loads: list[_Rank]


class SGLang(OpenAICompatible):
    """Any SGLang server, from 0.4 on."""

    _metrics = True

    async def load(self) -> Load | None:
        """See ``Engine.load``: ``GET /metrics``; where metrics are off, ``GET /v1/loads`` (from 0.5.7 on)."""
        if self._metrics:
            status, page = await self.control("GET", "/metrics")
            if status == 200:
                return load_of(page, SGLANG)
            self._metrics = status != 404
        status, said = await self.control("GET", "/v1/loads")
        if status != 200:
            return None
        try:
            ranks = msgspec.json.decode(said, type=_Loads).loads
        except msgspec.DecodeError as error:
            raise EngineFailed("its /v1/loads is not what SGLang says there") from error
        usage, hits = [rank.token_usage for rank in ranks], [rank.cache_hit_rate for rank in ranks]
        if any(min(r.num_running_reqs, r.num_waiting_reqs) < 0 or not 0 <= r.token_usage <= 1 for r in ranks):
            raise EngineFailed("its /v1/loads says what cannot be")
        known = [rate for rate in hits if rate is not None]
        return Load(
            running=sum(rank.num_running_reqs for rank in ranks),
            waiting=sum(rank.num_waiting_reqs for rank in ranks),
            kv_permille=round(1000 * max(usage)) if usage else None,
            prefix_hit_permille=round(1000 * sum(known) / len(known)) if known else None,
        )

    async def sleep(self) -> bool:
        """See ``Engine.sleep``. A server without the memory saver answers with an error."""
        return await self.does("/release_memory_occupation", b"{}")

    async def wake(self) -> None:
        await self.asked("POST", "/resume_memory_occupation", b"{}", patient=True)
