"""A replica's life: what it is meant to be, the states it goes through, and nothing that touches a process.

        started          came_up          stopped (from any state)
cold ------------> loading ------> ready ------> cold
                      |              |  ^
                      +--went_down---+  +--came_up (a request woke it)-- asleep <--fell_asleep-- ready
                                     +--> failed --started (after a pause)--> loading
"""

from __future__ import annotations

from enum import StrEnum
from typing import Literal

import msgspec

from tokenworks.core.units import NS_PER_MS, NS_PER_S
from tokenworks.core.words import Word
from tokenworks.device.slices import Limits

BACKOFF_FIRST_NS = 500 * NS_PER_MS
BACKOFF_NS_MAX = 30 * NS_PER_S
STEADY_NS = 60 * NS_PER_S
"""A replica that was ready for this long has shown that it works: earlier failures are forgotten."""


class State(StrEnum):
    """Where a replica stands; a ready one gets requests, and one asleep is woken by them."""

    COLD = "cold"
    LOADING = "loading"
    READY = "ready"
    ASLEEP = "asleep"
    FAILED = "failed"


DriverKind = Literal["embedded", "external", "process", "ray"]
EngineKind = Literal["openai", "llamacpp", "vllm", "sglang", "ollama", "anthropic", "any-llm"]


class ReplicaSpec(Word, frozen=True):
    """One replica as the grid file asks for it."""

    name: str
    model: str
    """The name under which it is served."""
    site: str
    slice: str
    slots: int
    """Requests worked on at the same time."""
    context_tokens: int
    """Prompt and answer of one request together."""
    capabilities: frozenset[str] = frozenset()
    driver: DriverKind = "embedded"
    engine: EngineKind = "llamacpp"
    """What it speaks."""
    url: str | None = None
    """Where an external engine listens."""
    command: tuple[str, ...] = ()
    """What starts the engine, for the drivers ``process`` and ``ray``; ``{port}`` and ``{model}`` are filled in."""
    sleep_after_ns: int | None = None
    """Without a request for so long it goes to sleep; None: never."""
    resources_milli: dict[str, int] = {}
    """What a Ray node must have for each card, in thousandths: ``CPU``, ``GPU``, ``memory``, or a name of one's own."""
    cluster: str = "auto"
    """The address of the Ray cluster."""
    threads: int = 1
    upstream_model: str | None = None
    """The engine's own name of the model (embedded: the catalogue's); None: the same."""
    api_key: str | None = None
    limits: Limits = Limits()
    """What holds its process to its slice."""
    booked: dict[str, tuple[int, int]] = {}
    """Of devices of this machine, by id: threads (thousandths of a card) and bytes of memory."""
    cards: int = 1
    """Cards that work together for it (tensor parallel); ``resources_milli`` are those of one."""
    prefill_tps: float | None = None
    decode_tps: float | None = None
    """Tokens a second of a lone request, from a calibration: what is known before it has served anything."""
    gateways: int = 1
    """Processes of this grid that speak to it."""

    def __repr__(self) -> str:
        # The key of an engine must not come into a log by way of a repr.
        return f"ReplicaSpec({self.name!r}, model={self.model!r}, site={self.site!r}, driver={self.driver!r})"


class Life(Word, frozen=True):
    """The state of one replica at one moment."""

    state: State = State.COLD
    since_ns: int = 0
    failures: int = 0
    """In a row, without a steady time between them."""
    next_try_ns: int = 0


def may_start(life: Life, now_ns: int) -> bool:
    """It is down, and its pause after a failure is over."""
    return life.state is State.COLD or (life.state is State.FAILED and now_ns >= life.next_try_ns)


def started(life: Life, now_ns: int) -> Life:
    """Its process was started, or its first health check sent. Raises ValueError when it is already up."""
    if life.state not in (State.COLD, State.FAILED):
        raise ValueError(f"a replica that is {life.state} cannot be started")
    return msgspec.structs.replace(life, state=State.LOADING, since_ns=now_ns)


def came_up(life: Life, now_ns: int) -> Life:
    """It answered a health check: ready, unless it is ready already."""
    return life if life.state is State.READY else msgspec.structs.replace(life, state=State.READY, since_ns=now_ns)


def went_down(life: Life, now_ns: int) -> Life:
    """It ended, stopped answering or could not be woken: failed, with a pause that doubles at each failure."""
    steady = life.state is State.READY and now_ns - life.since_ns >= STEADY_NS
    failures = 1 if steady else life.failures + 1
    # The exponent is bounded, or a replica that fails for years would make the number huge before min() sees it.
    pause_ns = min(BACKOFF_FIRST_NS << min(failures - 1, 16), BACKOFF_NS_MAX)
    return Life(state=State.FAILED, since_ns=now_ns, failures=failures, next_try_ns=now_ns + pause_ns)


def fell_asleep(life: Life, now_ns: int) -> Life:
    """It has let go of its device until a request wakes it. Raises ValueError unless it was ready."""
    if life.state is not State.READY:
        raise ValueError(f"a replica that is {life.state} cannot fall asleep")
    return msgspec.structs.replace(life, state=State.ASLEEP, since_ns=now_ns)


def stopped(life: Life, now_ns: int) -> Life:
    """It ended because we wanted it to."""
    return msgspec.structs.replace(life, state=State.COLD, since_ns=now_ns, next_try_ns=0)


class Address(Word, frozen=True):
    """How an engine that a driver began is reached."""

    url: str | None
    api_key: str | None

    def __repr__(self) -> str:
        return f"Address({self.url!r})"  # its key must not come into a log
