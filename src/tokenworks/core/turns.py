"""Long work on a processor that others need sooner."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from typing import TypeVar

T = TypeVar("T")
TURN = 8
"""Things of some ten microseconds each that are done before others may go first."""


def in_turns(things: Iterable[T], turn: int = TURN) -> Iterator[T]:
    """The same things; before every ``turn`` of them whoever else wants this processor goes first.

    A kernel without forced preemption lets a process compute to its next tick, milliseconds later, whatever its
    priority and whoever wakes up meanwhile; a gateway beside the ledger would stand still for that long.
    """
    for number, thing in enumerate(things):
        if number % turn == 0:
            os.sched_yield()
        yield thing
