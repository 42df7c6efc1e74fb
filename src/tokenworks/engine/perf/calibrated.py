"""The pace of one engine, fitted to what was measured on it; and where its time goes against its device's limits.

Seen from outside, an iteration takes a constant (weights, and what a layer costs), a part for each sequence, for each
token of context and for each prompt token. That is the model of ``iteration.py`` with what cannot be told apart from
outside added up, and linear in the same way, so the iteration clock runs it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from statistics import fmean, median

from tokenworks.core.words import Provenance, Word
from tokenworks.engine.perf.clock import Clock, Done, Job, Limits
from tokenworks.engine.perf.iteration import BOTTLENECKS, OVERHEADS, TERMS, Batch, Work
from tokenworks.engine.perf.robust_fit import Prior, Row, fit, predicted
from tokenworks.engine.perf.simulate import energies, usual_tokens

CHUNK = 2048
"""Tokens of one iteration: the default of llama.cpp (``n_batch``), and of vLLM on most devices."""
CACHE_TOKENS = 1 << 40
"""Admission is by seats: how much cache an engine has does not show from outside."""
STARTING_TOKENS = 256
"""The prompt for which a router's first speeds are given."""
PRIOR_ROWS = 0.02
"""The starts of the fit are guesses, held only where the measurements say nothing."""
SCALE = 0.05
"""Of a logarithm: measurements further off than this count as odd."""


class Speed(Word, frozen=True):
    """Seconds of an iteration for each unit of its work, and seconds that each request spends outside of them."""

    iteration_s: float
    """Once: reading the weights, and what the layers cost."""
    sequence_s: float
    """For each sequence that decodes."""
    context_s: float
    """For each token before these."""
    prompt_s: float
    """For each prompt token."""
    attention_s: float
    """For each token before those."""
    request_s: float


class Seen(Word, frozen=True):
    """One measured stretch of time and the work in it, in the order of Speed's fields."""

    seconds: float
    amounts: tuple[float, float, float, float, float, float]

    def row(self) -> Row:
        """For the fit."""
        return Row(measured=self.seconds, pieces=tuple((a, (n,)) for n, a in enumerate(self.amounts) if a))


class Asked(Word, frozen=True):
    """The lengths of one request, in tokens."""

    prompt: int
    cached: int
    """Of the prompt, leading tokens whose cache was there."""
    output: int


class Figures(Word, frozen=True):
    """What a load came to."""

    tokens_s: float
    """Output of all streams, from the first request to the last answer's end."""
    tpot_s: float
    ttft_s: float
    """Means over requests."""


class Part(Word, frozen=True):
    """Where time goes: seconds of a mean iteration, and what the device's limit alone would take."""

    name: str
    seconds: float
    limit_s: float | None = None
    """None: overhead has no limit, or the limit is unknown."""


class Check(Word, frozen=True):
    """A load that was kept out of the fit: users who each send their next request when the last is answered."""

    users: Sequence[Sequence[Asked]]
    measured: Figures
    predicted: Figures
    batch: Batch
    """The mean iteration, as predicted."""
    parts: tuple[Part, ...] = ()
    power_mw: int | None = None
    """Of what the site's meter counts; None: there is no meter."""

    def error(self, name: str) -> float:
        """Of one of Figures: predicted / measured - 1."""
        measured: float = getattr(self.measured, name)
        return float(getattr(self.predicted, name)) / measured - 1 if measured else 0.0


class Target(Word, frozen=True):
    """What is measured; None: unknown."""

    model: str
    url: str | None = None
    """Of an engine elsewhere; None: the embedded one."""
    engine: str | None = None
    """Name and version, as it says itself."""
    device: str | None = None
    threads: int | None = None


class Calibration(Word, frozen=True):
    """What was measured on one engine."""

    target: Target
    made: str
    """When, UTC."""
    speed: Speed
    measurements: int
    fit_error: float
    """Median relative error on the measurements that were fitted."""
    seats: int
    """Streams that were seen to be worked on at once."""
    streams: int
    """The most that were sent at once: with as many seats there may be more."""
    checks: tuple[Check, ...]
    provenance: Provenance = Provenance.MEASURED

    @property
    def held_out_error(self) -> float:
        """The worst error of tokens a second over the loads that were kept out of the fit."""
        return max(abs(check.error("tokens_s")) for check in self.checks)

    @property
    def prefill_tps(self) -> float:
        """Prompt tokens a second of a lone request."""
        tokens, speed = STARTING_TOKENS, self.speed
        whole = speed.iteration_s + tokens * speed.prompt_s + tokens * tokens / 2 * speed.attention_s
        return tokens / whole

    @property
    def decode_tps(self) -> float:
        """Output tokens a second of a lone request."""
        return 1 / (self.speed.iteration_s + self.speed.sequence_s + STARTING_TOKENS * self.speed.context_s)

    def energies(self, slots: int, context_tokens: int, busy_mw: int) -> dict[str, int]:
        """As ``simulate.modelled``; what a device draws for which kind of work does not show from outside."""
        tokens, speed = usual_tokens(context_tokens), self.speed
        once_s, prompt_s = speed.iteration_s + speed.sequence_s * slots, speed.prompt_s + speed.attention_s * tokens / 2
        return energies(once_s, 1.5 * tokens * slots, speed.context_s, slots, prompt_s, busy_mw, busy_mw)

    def about(self) -> str:
        """For a receipt."""
        where = " ".join(filter(None, (self.target.url, self.target.engine)))
        return f"calibrated {self.made[:10]} on {where}, {self.held_out_error:.0%} off on loads kept out of the fit"


class SpeedPace:
    """The pace for the iteration clock."""

    def __init__(self, speed: Speed) -> None:
        self._speed = speed
        self.per_context = speed.context_s

    def base(self, sequences: int, prompt: int, prompt_context: float) -> float:
        speed = self._speed
        own = speed.iteration_s + speed.sequence_s * sequences
        return own + speed.prompt_s * prompt + speed.attention_s * prompt_context


def fit_speed(seen: Sequence[Seen]) -> tuple[Speed, float]:
    """Robust, and the median error on what was fitted. Needs stretches with prompts and without."""
    lone = min(s.seconds / s.amounts[0] for s in seen if not s.amounts[3])
    prompt = min(s.seconds / s.amounts[3] for s in seen if s.amounts[3])
    starts = (0.6 * lone, 0.1 * lone, 1e-5 * lone, prompt, 1e-4 * prompt, 1e-3)
    rows = [one.row() for one in seen]
    found = fit(rows, [Prior(start=start, rows=PRIOR_ROWS) for start in starts], SCALE, rounds=200)
    off = median(abs(predicted(row, found) / row.measured - 1) for row in rows)
    return Speed(**dict(zip(Speed.__struct_fields__, found, strict=True))), off


def replay(speed: Speed, seats: int, users: Sequence[Sequence[Asked]]) -> tuple[Figures, Batch]:
    """What a closed loop of these requests would come to, and its mean iteration."""
    clock = Clock(SpeedPace(speed), Limits(seats=seats, cache_tokens=CACHE_TOKENS, chunk_tokens=max(CHUNK, 2 * seats)))
    left = [iter(user) for user in users]

    def send(user: int, at_s: float) -> None:
        for one in left[user]:
            arrival_s = at_s + speed.request_s
            clock.submit(
                Job(id=user, arrival_s=arrival_s, prompt=one.prompt, output=one.output, hit=min(one.cached, one.prompt))
            )
            return

    for user in range(len(users)):
        send(user, 0.0)
    done: list[Done] = []
    while finished := clock.advance(float("inf")):
        done += finished
        for one in finished:
            send(one.job.id, one.end_s)
    figures = Figures(
        tokens_s=sum(one.job.output for one in done) / max(one.end_s for one in done),
        tpot_s=fmean(one.tpot_s for one in done),
        ttft_s=fmean(one.ttft_s for one in done) + speed.request_s,
    )
    return figures, clock.tally.batch()


def limits_of(work: Work, batch: Batch, weight_bytes: float | None = None) -> dict[str, float]:
    """Seconds that an iteration takes at the device's limits, by BOTTLENECKS; overheads have none.

    ``weight_bytes``: the true size of the weights, when it is known better than from the shape and the precision.
    """
    parts = dict(zip(TERMS, work.terms(batch), strict=True))
    if weight_bytes is not None:
        parts["weights"] *= weight_bytes / work.plan.weight_bytes
    known = {name: [term for term in terms if term not in OVERHEADS] for name, terms in BOTTLENECKS.items()}
    return {name: sum(parts[term] for term in terms if term != "dequantise") for name, terms in known.items() if terms}


def bottlenecks(speed: Speed, batch: Batch, limits: Mapping[str, float] | None) -> tuple[Part, ...]:
    """Where an iteration's time goes. Without limits, weights and overheads cannot be told apart.

    What a device must take by its limit counts as that work; the rest of the same measured part is overhead.
    """
    once, each = speed.iteration_s, speed.sequence_s * batch.sequences
    kv = speed.context_s * batch.context
    prefill = speed.prompt_s * batch.prompt + speed.attention_s * batch.prompt_context
    if limits is None:
        named = {"weights, per layer": once, "kv": kv, "prefill": prefill, "per sequence": each}
        return tuple(Part(name=name, seconds=took) for name, took in named.items())
    weights = min(once, limits["weights"])
    compute = min(each, limits["decode compute"])
    sent = min(each - compute, limits["communication"])
    worked = {
        "weights": weights, "kv": kv, "decode compute": compute, "prefill compute": prefill, "communication": sent,
    }  # fmt: skip
    over = {"per-layer overhead": once - weights, "per-sequence overhead": each - compute - sent}
    return tuple(Part(name=name, seconds=took, limit_s=limits.get(name)) for name, took in (worked | over).items())
