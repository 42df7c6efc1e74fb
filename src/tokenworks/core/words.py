"""The words that several floors speak. No floor imports upward, because what travels between them is defined here.

All are frozen values. Integers carry their unit in the name (see ``core.units``). None means unknown, which is not 0.
"""

from __future__ import annotations

from enum import StrEnum
from typing import Literal, TypeVar

import msgspec

AnyWord = TypeVar("AnyWord", bound=msgspec.Struct)
LAYERS = ("power", "site", "device", "engine", "exchange", "brain", "agents")
"""The seven floors from the ground up, as they stand on a receipt."""


class Provenance(StrEnum):
    """Where a number comes from. An estimate is never dressed as a measurement."""

    MEASURED = "measured"
    """Read from an instrument: a meter, a clock, a counter of our own."""
    METERED = "metered by engine"
    """Counted by the engine and reported by it."""
    MODELLED = "modelled"
    """Computed from a model and its inputs."""
    LISTED = "listed"
    """Taken from a data sheet, a tariff, a price list or a statistic."""


class Word(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Base of all words."""


def like(of: msgspec.Struct, kind: type[AnyWord], **more: object) -> AnyWord:
    """A word of another kind: what they have in common, and more."""
    shared = {name: getattr(of, name) for name in kind.__struct_fields__ if hasattr(of, name)}
    return kind(**shared | more)


class Sourced(Word, frozen=True):
    """One number with its provenance; ``source`` says who said so, ``error_permille`` how far off it may be."""

    value: int
    provenance: Provenance
    source: str | None = None
    error_permille: int | None = None


BUCKETS = ("input", "cached_input", "cache_write", "output", "reasoning", "image", "audio", "video")


class Usage(Word, frozen=True, gc=False):
    """Native tokens in disjoint buckets: they add up, nothing is in two of them.

    ``certainty``: ``exact`` when the engine reported it, ``counted`` when we counted chunks because no report came,
    ``none`` when nothing was delivered.
    """

    input: int = 0
    cached_input: int = 0
    cache_write: int = 0
    output: int = 0
    reasoning: int = 0
    image: int = 0
    audio: int = 0
    video: int = 0
    certainty: Literal["exact", "counted", "none"] = "exact"

    def counts(self) -> tuple[tuple[str, int], ...]:
        """The buckets that are not empty, in their fixed order."""
        counts = msgspec.structs.astuple(self)  # the buckets are its first fields, in this order
        return tuple([(bucket, count) for bucket, count in zip(BUCKETS, counts, strict=False) if count])

    def by_place(self) -> list[tuple[int, int]]:
        """(place in ``BUCKETS``, count) of those that are not empty; cheap for text."""
        found = [(0, self.input), (3, self.output)]
        if self.cached_input or self.cache_write or self.reasoning or self.image or self.audio or self.video:
            counts = msgspec.structs.astuple(self)
            found = [(at, counts[at]) for at in range(len(BUCKETS)) if counts[at]]
        return found

    def total(self) -> int:
        """All native tokens."""
        seen = self.input + self.cached_input + self.cache_write
        return seen + self.output + self.reasoning + self.image + self.audio + self.video


class Amount(Word, frozen=True):
    """What something costs on two of the three books: standard tokens and money."""

    ustu: int
    nano: int


Endpoint = Literal["chat", "text", "embeddings", "messages", "responses"]
"""What kind of answer is asked for: chat and text completions, embeddings, Anthropic's Messages, OpenAI's responses."""


class Request(Word, frozen=True, kw_only=True):
    """What floor 7 asks the floors below to do; ``body`` is what the engine will read, already checked."""

    id: str
    """The receipt's id: one request, one receipt."""
    endpoint: Endpoint
    model: str
    body: bytes
    stream: bool
    show_usage: bool
    """The client asked to see usage in the stream."""
    input_max: int
    """No tokenizer of byte-level BPE makes more tokens than this of the prompt."""
    output_max: int | None
    """Tokens the client allows for all choices together; None: not said."""
    choices: int
    clamped: bool = False
    """``output_max`` is not what the client asked for but what its budget affords."""
    model_asked: str = ""
    """What the client named, when the account's overage rule has another model serve it."""
    lane: Literal["", "slow"] = ""
    """Slow: it waited, by the account's overage rule, for a slot that nobody wanted."""
    needs: frozenset[str]
    """Capabilities that the model must have: "tools", "json_schema", "logprobs", "images", and the endpoints
    "embeddings", "messages" and "responses"."""
    arrived_ns: int


class Candidate(Word, frozen=True, array_like=True, gc=False):
    """One replica as the router saw it, with every term of its price in nano-currency."""

    replica: str
    site: str
    model: str
    terms_nano: dict[str, int]
    total_nano: int


class Decision(Word, frozen=True, array_like=True, gc=False):
    """Who serves a request, and why."""

    chosen: Candidate
    alternatives: tuple[Candidate, ...] = ()
    """The next best, best first; at most three."""
    refused: dict[str, str] = {}
    """Replicas that hard limits left out, and which limit."""
    decide_ns: int = 0


class Demand(Word, frozen=True):
    """What one replica asks of devices. Floor 3 places it and never learns which model it is."""

    name: str
    memory_mb: int
    """Of each device, in millions of bytes."""
    count: int = 1
    """Devices, all alike; more than one (tensor parallel) takes whole cards."""
    share_permille: int = 1_000
    """Of the compute of the device; 1,000 is a whole card."""
    gflops: int = 0
    """Dense BF16 speed that its share must have at least."""
    near: Literal["any", "node", "link"] = "any"
    """How close its devices must be: anywhere, in one machine, on one fast interconnect."""
    backends: frozenset[str] = frozenset()
    """Software stacks that it can run on ("cuda", "rocm", "cann"); empty: any."""


class Work(Word, frozen=True, array_like=True, gc=False):
    """What one request did to one slice; the sink of floor 2 splits the meter by these."""

    receipt: str
    replica: str
    site: str
    slice: str
    start_ns: int
    """The engine began with the prompt (after its queue)."""
    first_ns: int | None
    """The first token was there; None: none came."""
    end_ns: int
    """The last token was made, or the abort confirmed."""
    input_tokens: int
    output_tokens: int
    cached_tokens: int = 0
    """Of the input: those whose prefill a cache spared."""


class Delivery(Word, frozen=True, array_like=True, gc=False):
    """How the answer ended, seen from floor 7 and floor 4."""

    ending: Literal["complete", "client_gone", "engine_failed", "refused", "budget_spent"]
    chunks: int
    """Events of the stream that carried output: our own count, the second witness."""
    queued_ns: int | None = None
    prefill_ns: int | None = None
    decode_ns: int | None = None
    ttft_ns: int | None = None
    total_ns: int = 0
    timing: Provenance = Provenance.MEASURED


class Limit(Word, frozen=True):
    """A bound on a site's power in [start, end), milliwatts at its meter: floor 1 states it, the brain answers."""

    site: str
    event: str
    """The grid event that it comes from."""
    start_ns: int
    end_ns: int
    max_mw: int | None = None
    """None: no upper bound."""
    min_mw: int = 0
    """More than 0: the grid asks for load."""
    firm: bool = True
    """It must be kept whatever the cost; otherwise it is worth what the event pays."""


class EnergyLine(Word, frozen=True, kw_only=True, array_like=True, gc=False):
    """One request's part of one interval on its site."""

    receipt: str
    energy_mj: int
    energy_nano: int | None
    overhead_mj: int
    overhead_nano: int | None
    carbon_ug: int | None
    """Of energy and overhead together, location-based."""
    slice_ns: int
    """Seconds of the slice that were this request's, in nanoseconds: concurrent requests share them."""
    device_nano: int | None
    market_ug: int | None = None
    """Of energy and overhead together, by contract and hour (market-based). None: not counted."""
    water_ul: int | None = None
    """Microlitres that the site's cooling evaporated and drained for this."""
    embodied_ug: int | None = None
    """Of making the hardware: its part of the slice's time."""
    ended: bool
    """The request ended in this interval: its energy record is final."""


FIGURES = EnergyLine.__struct_fields__[1:-1]
"""What an EnergyLine counts, in this order: everything between whose it is and whether it ended."""


CORRECTABLE = 60
"""So many of a site's last intervals can still be corrected."""


class ServiceLine(Word, frozen=True):
    """What running the house itself took in one interval: the processor time of a floor of the gateway."""

    layer: str
    cpu_ns: int
    energy_mj: int
    energy_nano: int | None
    carbon_ug: int | None


class Interval(Word, frozen=True):
    """One closed interval of a site: every millijoule of the meter has exactly one place.

    ``sum(requests.energy_mj) + idle_mj + sum(services.energy_mj) + overhead_mj + residual_mj == meter_mj``.
    ``overhead_mj`` is the whole facility overhead; the shares on the request lines are parts of it. The same holds for
    money: request energy, idle, services and overhead sum to ``bill_nano``.

    Nothing is rewritten: what was learnt later is another Interval of the same time, with ``corrects`` counting up from
    1, whose figures are differences; all of them together are what is known.
    """

    site: str
    supply: str
    start_ns: int
    end_ns: int
    meter_mj: int
    meter: Provenance
    scale_ppm: int
    """Meter over model, in parts per million: the quality of the model. 1,000,000 without a meter."""
    requests: tuple[EnergyLine, ...]
    services: tuple[ServiceLine, ...]
    idle_mj: int
    idle_nano: int | None
    overhead_mj: int
    overhead_nano: int | None
    residual_mj: int
    bill_nano: int | None
    carbon_ug: int | None
    idle_device_nano: int | None
    """Depreciation of slice time that nobody used."""
    mix_permille: dict[str, int] = {}
    """Sources of the energy, as far as known."""
    corrects: int = 0
    """0: the first entry of its time; more: a correction of it."""
    market_ug: int | None = None
    water_ul: int | None = None
    idle_embodied_ug: int | None = None
    """Of making the hardware, for the slice time that nobody used."""
    reserved_mj: dict[str, int] = {}
    """Of ``idle_mj``: that of slices that somebody reserved, by name."""
    scales_ppm: dict[str, int] = {}
    """By metered server: what its meter says over what its boards and the model said."""
    quality_permille: int = 0
    """Of the meter's energy, the part that readings placed: without the residual, without what a model stands in for,
    and only as far as the sensors saw the time."""
    notes: tuple[str, ...] = ()
    """What was wrong with meters or model, a sentence each."""
