"""Reading load from an engine's Prometheus page. Names changed with versions: the first one that is there counts.

Engines lie, mostly by mistake: a page without one known series, or with a value that cannot be, is refused as a whole,
and the router goes on with its own counts.

Sources: vLLM docs "Production Metrics" (0.4 to 0.32), SGLang docs "Production Metrics" and 0.5 sources, llama.cpp
server README; text format of Prometheus, version 0.0.4.
"""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from typing import NamedTuple

from tokenworks.core.errors import EngineFailed
from tokenworks.engine.adapter import Load

KV_MOST = 1.001
"""A share; the last digit may be rounded up."""
COUNT_MOST = 1e9
"""No engine has more requests than this."""


class Dialect(NamedTuple):
    """Where an engine says what. Names of one figure stand newest first."""

    running: tuple[str, ...]
    waiting: tuple[str, ...]
    also_waiting: tuple[str, ...] = ()
    """Requests in further queues, added to those waiting."""
    kv: tuple[str, ...] = ()
    hits: tuple[tuple[str, str], ...] = ()
    """Counters: tokens found in the cache, and tokens looked up."""
    fresh: tuple[tuple[str, str], ...] = ()
    """Counters: tokens found in the cache, and tokens that had to be computed."""
    hit_rate: tuple[str, ...] = ()
    awake: tuple[str, ...] = ()
    """1 for the state that ``awake`` in its labels names."""


def load_of(page: bytes, dialect: Dialect) -> Load:
    """The load that a page states. Raises EngineFailed when it states none, or what cannot be."""
    known = _series(page)
    if not any(name in known for name in (*dialect.running, *dialect.waiting)):
        raise EngineFailed("its metrics have none of the series that this engine is known for")
    kv, waiting = _first(known, dialect.kv), _count(known, dialect.waiting)
    if kv and max(kv) > KV_MOST:
        raise EngineFailed(f"its metrics say that {max(kv):g} of its memory for keys and values is used")
    swapped = _count(known, dialect.also_waiting) or 0
    return Load(
        running=_count(known, dialect.running),
        waiting=None if waiting is None else waiting + swapped,
        kv_permille=round(1000 * max(kv)) if kv else None,  # of several ranks the fullest one refuses first
        prefix_hit_permille=_hit_rate(known, dialect),
        asleep=_asleep(known, dialect),
    )


def _series(page: bytes) -> dict[str, list[tuple[str, float]]]:
    """Samples by name, as (labels, value). Raises EngineFailed for a value that is no number or below 0."""
    found: dict[str, list[tuple[str, float]]] = {}
    for name, labels, text in _SAMPLE.findall(page):
        key = name.decode()
        try:
            value = float(text)
        except ValueError:
            value = math.nan
        if key in _KNOWN and not 0 <= value < math.inf:
            raise EngineFailed(f"its metrics say {key} {text.decode(errors='replace')[:20]}")
        found.setdefault(key, []).append((labels.decode(errors="replace"), value))
    return found


def _first(known: dict[str, list[tuple[str, float]]], names: Sequence[str]) -> list[float]:
    name = next((name for name in names if name in known), None)
    return [] if name is None else [value for _, value in known[name]]


def _count(known: dict[str, list[tuple[str, float]]], names: Sequence[str]) -> int | None:
    values = _first(known, names)
    if not values:
        return None
    if sum(values) > COUNT_MOST:
        raise EngineFailed(f"its metrics say {sum(values):g} requests")
    return round(sum(values))


def _hit_rate(known: dict[str, list[tuple[str, float]]], dialect: Dialect) -> int | None:
    for pairs, whole in ((dialect.hits, False), (dialect.fresh, True)):
        for hit_name, of_name in pairs:
            hits, of = sum(_first(known, [hit_name])), sum(_first(known, [of_name]))
            if of_name in known and (of := of + hits if whole else of):
                if hits > of:
                    raise EngineFailed(f"its metrics say {hits:g} hits of {of:g} tokens")
                return round(1000 * hits / of)
    rates = _first(known, dialect.hit_rate)
    return round(1000 * min(1.0, sum(rates) / len(rates))) if rates else None


def _asleep(known: dict[str, list[tuple[str, float]]], dialect: Dialect) -> bool | None:
    states = [sample for name in dialect.awake for sample in known.get(name, ()) if "awake" in sample[0]]
    return not any(value for _, value in states) if states else None


VLLM = Dialect(
    running=("vllm:num_requests_running",),
    waiting=("vllm:num_requests_waiting",),
    also_waiting=("vllm:num_requests_swapped",),  # before 0.11.1
    kv=("vllm:kv_cache_usage_perc", "vllm:gpu_cache_usage_perc"),  # the second before 0.9.2
    hits=(
        ("vllm:prefix_cache_hits_total", "vllm:prefix_cache_queries_total"),
        ("vllm:gpu_prefix_cache_hits_total", "vllm:gpu_prefix_cache_queries_total"),
    ),
    hit_rate=("vllm:gpu_prefix_cache_hit_rate",),
    awake=("vllm:engine_sleep_state",),
)
SGLANG = Dialect(
    running=("sglang:num_running_reqs",),
    waiting=("sglang:num_queue_reqs",),
    kv=("sglang:token_usage",),
    hit_rate=("sglang:cache_hit_rate",),
)
LLAMACPP = Dialect(
    running=("llamacpp:requests_processing",),
    waiting=("llamacpp:requests_deferred",),
    kv=("llamacpp:kv_cache_usage_ratio",),  # until 2025
    fresh=(("llamacpp:prompt_tokens_cached_total", "llamacpp:prompt_tokens_total"),),
)
_KNOWN = {
    name
    for dialect in (VLLM, SGLANG, LLAMACPP)
    for field in dialect
    for entry in field
    for name in (entry if isinstance(entry, tuple) else (entry,))
}
_SAMPLE = re.compile(rb"^(%b)(\{.*\})?[ \t]+(\S+)" % "|".join(sorted(_KNOWN)).encode(), re.MULTILINE)
