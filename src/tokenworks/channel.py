"""What the first gateway process and the others say to each other, in lines of JSON over the child's own pipes.

Down a worker's standard input: one Brief, then a Told whenever something has changed. Up its standard output: one Heard
a tick. Nobody else can read or write there.
"""

from __future__ import annotations

from typing import Any, Literal

import msgspec

from tokenworks.compose import Plan
from tokenworks.core.words import Word, Work
from tokenworks.curtail import Order
from tokenworks.engine.mirror import ReplicaNow, Use
from tokenworks.moments import Moment

TICK_S = 0.2
LAG_S = 1
"""So long after its end an interval is closed where there are workers: by then they have told of their works."""
BUFFER_BYTES_MAX = 1 << 20
"""What may wait in a pipe before no more is put in."""
STEPS_MAX = 5_000
"""Steps in one line."""


class Brief(Word, frozen=True):
    """What a worker is started with."""

    name: str
    host: str
    port: int
    data: str
    anchor_ns: int
    """The first process's, so that all tell the same time."""
    plan: Plan


class Told(Word, frozen=True):
    """What has changed for a worker."""

    replicas: tuple[ReplicaNow, ...] = ()
    orders: dict[str, Order] = {}
    """By site: what it does about a limit on its power."""
    moments: dict[str, Moment] = {}
    """By site, where anything of it changes."""
    others: dict[str, Any] = {}
    """What status shows of the grid's other processes."""
    leave: bool = False
    """Let what runs end, and then end."""


class Step(Word, frozen=True):
    """A work went on; before its end only its beginning is known."""

    to: Literal["begun", "ended", "forgotten"]
    work: Work

    @property
    def key(self) -> tuple[str, str]:
        """Its name at its site."""
        return self.work.receipt, self.work.replica


class Heard(Word, frozen=True):
    """What has happened at a worker since it last said something."""

    uses: dict[str, Use]
    """By replica."""
    requests: int
    """Settled since it started."""
    open_holds: int
    services: dict[str, int]
    """Processor time [ns] by floor."""
    steps: tuple[Step, ...]
    waiting: int = 0
    """Requests held back: in the slow lane, or while the grid asks for less power."""


def line(word: Word) -> bytes:
    """As it travels."""
    return msgspec.json.encode(word) + b"\n"
