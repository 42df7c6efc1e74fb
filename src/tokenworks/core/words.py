"""The words that several floors speak. No floor imports upward, because what travels between them is defined here.

All are frozen values. Integers carry their unit in the name (see ``core.units``). None means unknown, which is not 0.
"""

from __future__ import annotations

from enum import StrEnum
from typing import Literal

import msgspec

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


class Sourced(Word, frozen=True):
    """One number with its provenance; ``source`` says who said so, ``error_permille`` how far off it may be."""

    value: int
    provenance: Provenance
    source: str | None = None
    error_permille: int | None = None


BUCKETS = ("input", "cached_input", "cache_write", "output", "reasoning", "image", "audio", "video")


class Usage(Word, frozen=True):
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

    def total(self) -> int:
        """All native tokens."""
        return sum(count for _, count in self.counts())


class Amount(Word, frozen=True):
    """What something costs on two of the three books: standard tokens and money."""

    ustu: int
    nano: int


class Request(Word, frozen=True, kw_only=True):
    """What floor 7 asks the floors below to do; ``body`` is what the engine will read, already checked."""

    id: str
    """The receipt's id: one request, one receipt."""
    endpoint: Literal["chat", "text"]
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
    needs: frozenset[str]
    """Capabilities that the model must have: "tools", "json_schema", "logprobs", "images"."""
    arrived_ns: int


class Candidate(Word, frozen=True):
    """One replica as the router saw it, with every term of its price in nano-currency."""

    replica: str
    site: str
    model: str
    terms_nano: dict[str, int]
    total_nano: int


class Decision(Word, frozen=True):
    """Who serves a request, and why."""

    chosen: Candidate
    alternatives: tuple[Candidate, ...] = ()
    """The next best, best first; at most three."""
    refused: dict[str, str] = {}
    """Replicas that hard limits left out, and which limit."""
    decide_ns: int = 0


class Work(Word, frozen=True):
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


class Delivery(Word, frozen=True):
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


class EnergyLine(Word, frozen=True):
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
    ended: bool
    """The request ended in this interval: its energy record is final."""


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
