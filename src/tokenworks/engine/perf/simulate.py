"""A load on one replica, run through the iteration clock: what users would see and what the devices would do."""

from __future__ import annotations

from collections.abc import Mapping
from functools import lru_cache
from statistics import fmean, quantiles

from msgspec.structs import replace

from tokenworks.core.errors import BadRequest
from tokenworks.core.words import Word
from tokenworks.engine.perf.clock import Clock, Done, Job, Limits, Pace
from tokenworks.engine.perf.iteration import BOTTLENECKS, TERMS, Batch, Coefficients, Work, seconds
from tokenworks.engine.perf.plan import Plan
from tokenworks.engine.perf.shipped import Shipped, shipped

LENGTHS = (0.8, 1.0)
"""Requests have lengths between these parts of the nominal one, as in the measured runs (random range ratio 0.8)."""
CHUNK = 8192
"""Tokens of an iteration, the usual setting of servers for large devices."""
ROUNDS = 10
"""Requests per concurrent user, as in the measured runs."""
CONCURRENCY_MAX = 16_384
HOST_BYTES_S = 32e9
"""From the host's memory to a device: sixteen lanes of PCIe 4."""


class Load(Word, frozen=True):
    """A closed loop: so many users, each sending its next request when the last one is answered."""

    concurrency: int
    isl: int
    osl: int
    prefix_hit: float = 0.0
    """Part of each prompt whose cache is there already."""
    lora_swap: float = 0.0
    """Part of the requests that need an adapter which has to be fetched from the host first."""
    lora_rank: int = 16

    def __post_init__(self) -> None:
        if not (1 <= self.concurrency <= CONCURRENCY_MAX and min(self.isl, self.osl, self.lora_rank) >= 1):
            raise BadRequest(f"a load has lengths of at least 1 and 1 to {CONCURRENCY_MAX} users, not {self}")
        if not (0 <= self.prefix_hit <= 1 and 0 <= self.lora_swap <= 1):
            raise BadRequest("prefix hits and adapter swaps are parts of 1")


class Figures(Word, frozen=True):
    """What came out; times in seconds, as a user sees them."""

    tpot_s: float
    ttft_s: float
    """Mean over all requests, the first burst of a closed loop included."""
    ttft_p50_s: float
    ttft_p90_s: float
    output_tokens_s: float
    """Of the whole replica, prompt to end."""
    iteration_s: float
    batch: Batch
    """The mean iteration."""
    parts: Mapping[str, float]
    """Seconds of it, by the names of BOTTLENECKS."""
    power_w: float | None
    """Of all devices; None when their board power is unknown."""


class WorkPace:
    """The pace of a plan under fitted coefficients."""

    def __init__(self, work: Work, coefficients: Coefficients) -> None:
        self._work, self._scale = work, coefficients.of(work.plan.engine)
        self.per_context = self._seconds(Batch(sequences=0, context=1)) - self._seconds(Batch(sequences=0, context=0))
        self.base = lru_cache(4096)(self._base)

    def _seconds(self, batch: Batch) -> float:
        return sum(part * scale for part, scale in zip(self._work.terms(batch), self._scale, strict=True))

    def _base(self, sequences: int, prompt: int, prompt_context: float) -> float:
        return self._seconds(Batch(sequences=sequences, context=0, prompt=prompt, prompt_context=prompt_context))


def jobs(load: Load, swap_s: float = 0.0) -> list[Job]:
    """All requests of a closed loop, arrivals not yet known; lengths evenly spread, the same every time.

    The multiples of two irrational numbers, modulo 1, fill the unit square evenly (Kronecker's sequence with the
    inverses of the plastic number), so a short run sees the same mix as a long one.
    """
    low, high = LENGTHS
    made = []
    for n in range(load.concurrency * ROUNDS):
        spread = [low + (high - low) * (n * step % 1.0) for step in (0.7548776662466927, 0.5698402909980532)]
        prompt, output = max(1, round(load.isl * spread[0])), max(1, round(load.osl * spread[1]))
        load_s = swap_s if int((n + 1) * load.lora_swap) > int(n * load.lora_swap) else 0.0
        hit = int(prompt * load.prefix_hit)
        made.append(Job(id=n, arrival_s=0.0, prompt=prompt, output=output, hit=hit, load_s=load_s))
    return made


def closed_loop(pace: Pace, limits: Limits, load: Load, swap_s: float = 0.0) -> tuple[list[Done], Clock]:
    """Every request of ``load``, in the order of finishing, and the clock that it ran on."""
    clock, left, done = Clock(pace, limits), iter(jobs(load, swap_s)), list[Done]()
    for _, job in zip(range(load.concurrency), left, strict=False):
        clock.submit(job)
    while finished := clock.advance(float("inf")):
        done += finished
        for one, job in zip(finished, left, strict=False):
            clock.submit(replace(job, arrival_s=one.end_s))
    return done, clock


def limits(load: Load, sequences: int) -> Limits:
    """Of a replica with room for so many requests of this load."""
    seats = min(load.concurrency, sequences)
    return Limits(seats=seats, cache_tokens=sequences * (load.isl + load.osl), chunk_tokens=max(CHUNK, 2 * seats))


def activity(terms: tuple[float, ...], parts: Mapping[str, float]) -> tuple[float, float]:
    """Shares of an iteration: what is no overhead, and what arithmetic would need at data-sheet speed."""
    at, whole = dict(zip(TERMS, terms, strict=True)), sum(parts.values())
    compute = sum(at[term] for kind in ("decode compute", "prefill compute") for term in BOTTLENECKS[kind])
    overhead = parts["per-layer overhead"] + parts["per-sequence overhead"]
    return 1 - overhead / whole, min(1.0, compute / whole)


def energies(
    once_s: float, context: float, context_s: float, prompt: float, prompt_s: float, decode_mw: float, prompt_mw: float
) -> dict[str, int]:
    """Fields of a site's ``SliceLoad``, from an iteration with so many tokens before it and in prompts. What is neither
    a prompt's nor a context's own (weights, overheads, talk between devices) is streaming."""
    return {
        "stream_mw": round(decode_mw * once_s / (once_s + context * context_s + prompt * prompt_s)),
        "prefill_nj": round(prompt_mw * prompt_s * 1e6),
        "context_nj": round(decode_mw * context_s * 1e6),
    }


def usual_tokens(context_tokens: int) -> int:
    """Of a prompt and of an answer, as in published measurements; less where they do not fit into the context."""
    return max(1, min(1_024, context_tokens // 2))


def modelled(plan: Plan, slots: int, context_tokens: int, idle_mw: int, busy_mw: int) -> dict[str, int]:
    """``energies`` of a full, steady batch of usual requests; ``busy_mw``, at most, is above idle."""
    tokens, made = usual_tokens(context_tokens), shipped()
    work, context = Work(plan=plan, typical_context=1.5 * tokens), 1.5 * tokens * slots

    def iteration(batch: Batch) -> tuple[dict[str, float], float]:
        parts = seconds(work, batch, made.iteration)
        share = made.power.share(*activity(work.terms(batch), parts))
        return parts, max(0.0, (idle_mw + busy_mw) * share - idle_mw)

    decode, decode_mw = iteration(Batch(sequences=slots, context=context))
    prompt, prompt_mw = iteration(Batch(sequences=0, context=0, prompt=tokens, prompt_context=tokens**2 / 2))
    once_s, prompt_s = sum(decode.values()) - decode["kv"], prompt["prefill compute"] / tokens
    return energies(once_s, context, decode["kv"] / context, slots, prompt_s, decode_mw, prompt_mw)


def simulate(plan: Plan, load: Load, shipped: Shipped) -> Figures:
    """Run ``load`` on one replica. Raises BadRequest when the model, or one request, does not fit the devices."""
    work = Work(plan=plan, typical_context=load.isl + load.osl / 2)
    room = limits(load, max(1, plan.sequences_max(load.isl + load.osl)))
    swap_s = plan.shape.adapter_bytes(load.lora_rank) / plan.tp / HOST_BYTES_S
    done, clock = closed_loop(WorkPace(work, shipped.iteration), room, load, swap_s)
    batch, end_s = clock.tally.batch(), max(one.end_s for one in done)
    parts = seconds(work, batch, shipped.iteration)
    iteration_s = sum(parts.values())
    front = shipped.front.get(plan.engine, shipped.front["any"])
    added = front.wait_s + front.iterations * iteration_s + shipped.front_token_s * load.isl
    first = [one.ttft_s + added for one in done]
    deciles = quantiles(first, n=10, method="inclusive")
    share = shipped.power.share(*activity(work.terms(batch), parts))
    return Figures(
        tpot_s=fmean(one.tpot_s for one in done), ttft_s=fmean(first), ttft_p50_s=deciles[4], ttft_p90_s=deciles[8],
        output_tokens_s=sum(one.job.output for one in done) / end_s, iteration_s=iteration_s, batch=batch,
        parts=parts, power_w=plan.device.board_w and plan.device.board_w * plan.gpus * share,
    )  # fmt: skip
