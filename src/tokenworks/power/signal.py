"""Signals: step functions over UTC.

A step has a start and an end of its own, so 5-, 15- and 60-minute steps mix freely and a gap is the absence of a step:
what is asked of it is None, never 0. Values are integers in the unit that the holder's name says.
"""

from __future__ import annotations

from typing import NamedTuple, Protocol

import numpy as np
import numpy.typing as npt

Ints = npt.NDArray[np.int64]
EVER_NS = 1 << 62
"""Year 2116: the end of a step that has none."""


class Piece(NamedTuple):
    """One step of what was asked for; ``value`` None: not known there."""

    start_ns: int
    end_ns: int
    value: int | None


class Steps(Protocol):
    """The port: anything with a value for every moment, or a gap. Signals are, and tariffs, and sums of both."""

    def over(self, start_ns: int, end_ns: int) -> list[Piece]:
        """Pieces that cover [start, end) in order, without overlap, gaps included."""


def at(steps: Steps, instant_ns: int) -> int | None:
    """The value at an instant."""
    return steps.over(instant_ns, instant_ns + 1)[0].value


def weighed(steps: Steps, start_ns: int, end_ns: int) -> int | None:
    """The integral over [start, end): values times nanoseconds, exact. None when a part of it is not known."""
    total = 0
    for begin, finish, value in steps.over(start_ns, end_ns):
        if value is None:
            return None
        total += value * (finish - begin)
    return total


def mean(steps: Steps, start_ns: int, end_ns: int) -> int | None:
    """The mean over [start, end), rounded half up. None when a part of it is not known."""
    total = weighed(steps, start_ns, end_ns)
    return None if total is None else (2 * total + end_ns - start_ns) // (2 * (end_ns - start_ns))


class Signal:
    """A step function: step i has ``values[i]`` in [``starts[i]``, ``ends[i]``), nanoseconds UTC.

    Raises ValueError when the steps are not in order, overlap or have no length.
    """

    __slots__ = ("ends", "starts", "values")

    def __init__(self, starts: npt.ArrayLike, ends: npt.ArrayLike, values: npt.ArrayLike) -> None:
        self.starts: Ints = np.asarray(starts, dtype=np.int64)
        self.ends: Ints = np.asarray(ends, dtype=np.int64)
        self.values: Ints = np.asarray(values, dtype=np.int64)
        if not self.starts.shape == self.ends.shape == self.values.shape or self.starts.ndim != 1:
            raise ValueError("a signal needs as many starts as ends and values")
        if np.any(self.starts >= self.ends) or np.any(self.ends[:-1] > self.starts[1:]):
            raise ValueError("the steps of a signal must have a length, be in order and not overlap")

    @classmethod
    def constant(cls, value: int) -> Signal:
        """The same value for ever."""
        return cls([-EVER_NS], [EVER_NS], [value])

    def over(self, start_ns: int, end_ns: int) -> list[Piece]:
        """As ``Steps`` says. O(log n + steps touched)."""
        first = int(np.searchsorted(self.ends, start_ns, side="right"))
        last = int(np.searchsorted(self.starts, end_ns, side="left"))
        starts, ends = self.starts[first:last].tolist(), self.ends[first:last].tolist()
        if starts:
            starts[0], ends[-1] = max(starts[0], start_ns), min(ends[-1], end_ns)
        pieces, reached = list[Piece](), start_ns
        for piece in map(Piece, starts, ends, self.values[first:last].tolist()):
            if piece.start_ns > reached:
                pieces.append(Piece(reached, piece.start_ns, None))
            pieces.append(piece)
            reached = piece.end_ns
        if reached < end_ns:
            pieces.append(Piece(reached, end_ns, None))
        return pieces
