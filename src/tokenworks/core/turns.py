"""Long work on a processor that others need sooner."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from typing import TypeVar

T = TypeVar("T")
TURN = 8
"""Things of some ten microseconds each that are done before others may go first."""


def in_turns(things: Sequence[T], turn: int = TURN) -> Iterator[Sequence[T]]:
    """The same things, ``turn`` at a time; before each turn whoever else wants this processor goes first.

    A kernel without forced preemption lets a process compute to its next tick, milliseconds later, whatever its
    priority and whoever wakes up meanwhile; a gateway beside the ledger would stand still for that long.
    """
    for start in range(0, len(things), turn):
        os.sched_yield()
        yield things[start : start + turn]
