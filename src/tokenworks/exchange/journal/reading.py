"""Tailing a journal: bounded, tolerant of an end that its writer is still writing."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from tokenworks.core.errors import DataDirError
from tokenworks.exchange.journal.disk import LIVE_DISK, Disk
from tokenworks.exchange.journal.frames import MAGIC, Position, segment_path, segments, whole_frames

READ_BYTES_MAX = 16 << 20


def read_from(folder: Path, position: Position, disk: Disk = LIVE_DISK) -> Iterator[tuple[bytes, Position]]:
    """Whole records after a position, each with the position behind it, across segments, up to the last good frame.

    A torn or corrupt frame ends the reading: its writer is still writing it, or died while it did. At most about
    ``READ_BYTES_MAX`` bytes are read in one call, so the caller's batches are bounded. Raises DataDirError if the
    position's segment is gone although later ones are there: it was pruned, and what it held is not to be skipped.
    """
    budget, make = READ_BYTES_MAX, tuple.__new__  # a Position, at a third of the time
    started = False
    while budget > 0:
        try:
            data = disk.read(segment_path(folder, position.segment), position.offset, budget)
        except FileNotFoundError:
            if not started:
                _refuse_pruned(folder, position.segment, disk)
            return
        started = True
        budget -= len(data)
        at = 0
        if position.offset == 0:
            if not data.startswith(MAGIC):
                return
            at = len(MAGIC)
        header = position.offset == 0
        segment, offset, crc = position
        for payload, at, crc in whole_frames(data, at, crc):  # noqa: B020 - it goes on from where it was
            if payload is not None and not header:
                yield payload, make(Position, (segment, offset + at, crc))
            header = False
        if at < len(data):
            return
        if not data or budget > 0:  # the segment's end
            position = Position(segment + 1, 0, crc)
        else:
            return


def _refuse_pruned(folder: Path, segment: int, disk: Disk) -> None:
    later = [number for number in segments(folder, disk) if number > segment]
    if later:
        raise DataDirError(
            f"segment {segment} of the journal {folder} is gone; the first one there is {later[0]}",
            hint="it was pruned: start from a snapshot that covers it",
        )
