"""Long work on a processor that others need sooner."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from typing import TypeVar

T = TypeVar("T")
TURN = 8
"""Things done, each of some microseconds, before others may go first."""


def in_turns(things: Iterable[T]) -> Iterator[T]:
    """The same things; now and then whoever else wants this processor goes first.

    A kernel without forced preemption lets a process compute to its next tick, milliseconds later, whatever its
    priority and whoever wakes up meanwhile; a gateway beside the ledger would stand still for that long.
    """
    for number, thing in enumerate(things):
        if number % TURN == 0:
            os.sched_yield()
        yield thing
