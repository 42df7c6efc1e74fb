"""Looking at a whole journal: is it what its writer wrote, where does it end, and what of it may go."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import msgspec

from tokenworks.core.errors import DataDirError
from tokenworks.exchange.journal.disk import LIVE_DISK, Disk
from tokenworks.exchange.journal.frames import (
    FRAME,
    MAGIC,
    NO_SHA256,
    START,
    Header,
    Position,
    marked_as_synced,
    segment_path,
    segments,
    whole_frames,
)

_READ_CHUNK_BYTES = 16 << 20


class BadPlace(NamedTuple):
    """Where a journal is damaged, and how."""

    segment: int
    offset: int
    reason: str


class VerifyReport(NamedTuple):
    """What a journal holds. Counts are of what is whole, before the first bad place."""

    segments: int
    records: int
    bytes: int
    """Of whole frames, headers and marks included."""
    torn_bytes: int
    """Behind the last whole frame of the last segment, and never synced: what a death leaves. It is no damage."""
    torn_at: int
    """Where those bytes begin in it."""
    end: Position
    """Behind the last record; behind the first header when there is none; START when there is nothing."""
    bad: BadPlace | None


class _Walk:
    """The state of a walk over the segments."""

    def __init__(self, folder: Path, disk: Disk) -> None:
        self.folder, self.disk = folder, disk
        self.records = self.bytes = self.torn = self.torn_at = self.segments = 0
        self.end = START
        self.chain: int | None = None
        self.sha256: bytes | None = None
        self.first: Header | None = None

    def run(self, since: int) -> BadPlace | None:
        numbers = [number for number in segments(self.folder, self.disk) if number >= since]
        for number in numbers:
            expected = numbers[0] + self.segments
            if number != expected:
                return BadPlace(expected, 0, "the segment is missing")
            data = b"".join(_chunks(self.disk, segment_path(self.folder, number)))
            if bad := self.segment(number, data, last=number == numbers[-1]):
                return bad
            self.segments += 1
            self.sha256 = hashlib.sha256(data).digest()
        return None

    def segment(self, number: int, data: bytes, last: bool) -> BadPlace | None:
        header = _header(data)
        if header is None:
            return self.broken(number, 0, data, last)
        if bad := self.header(number, header):
            return bad
        at, crc = len(MAGIC), header.previous_crc
        headed = False
        for payload, at, crc in whole_frames(data, at, crc):  # noqa: B020 - it goes on from where it was
            if payload is not None:
                self.records += headed
                if headed or self.end == START:
                    self.end = Position(number, at, crc)
                headed = True
        self.chain = crc
        self.bytes += at
        return self.broken(number, at, data, last) if at < len(data) else None

    def header(self, number: int, header: Header) -> BadPlace | None:
        """A header that is whole may still be of another journal or another place."""
        self.first = self.first or header
        name, above = self.folder.name, self.folder.parent.name
        if (header.writer, header.epoch) != (self.first.writer, self.first.epoch):
            return BadPlace(number, 0, "its header names another writer or epoch than the segments before")
        if name.isdigit() and (above, int(name)) != (header.writer, header.epoch):
            return BadPlace(number, 0, "its header names another writer or epoch than its folder")
        if header.segment != number:
            return BadPlace(number, 0, f"its header is of segment {header.segment}")
        if header.previous_crc != (self.chain or 0) and (self.chain is not None or number == 1):
            return BadPlace(number, 0, "it does not follow the segment before: the chain of checksums is broken")
        if header.previous_sha256 != (self.sha256 or NO_SHA256) and (self.sha256 is not None or number == 1):
            return BadPlace(number - 1, 0, "the segment is not the one that its successor saw: its SHA-256 differs")
        return None

    def broken(self, number: int, at: int, data: bytes, last: bool) -> BadPlace | None:
        """Is a frame that is not whole damage, or the torn end of what was never synced?"""
        if not last:
            return BadPlace(number, at, "a frame is broken, although a later segment follows")
        if marked_as_synced(data, at, number) > at:
            return BadPlace(number, at, "a frame is broken that had been synced")
        self.torn, self.torn_at = len(data) - at, at
        return None


def _chunks(disk: Disk, path: Path) -> Iterator[bytes]:
    offset = 0
    while data := disk.read(path, offset, _READ_CHUNK_BYTES):
        yield data
        offset += len(data)


def _header(data: bytes) -> Header | None:
    """The header of a segment, if its frame is whole by the chain that it names itself."""
    if not data.startswith(MAGIC) or len(data) < len(MAGIC) + FRAME.size:
        return None
    start = len(MAGIC) + FRAME.size
    try:
        length, _ = FRAME.unpack_from(data, len(MAGIC))
        header = msgspec.msgpack.decode(data[start : start + length], type=Header)
    except msgspec.MsgspecError:
        return None
    payload, _, _ = next(whole_frames(data, len(MAGIC), header.previous_crc), (None, 0, 0))
    return header if payload is not None else None


def verify(folder: Path, disk: Disk = LIVE_DISK, since: int = 1) -> VerifyReport:
    """Check every frame, the order of the segments, their headers, and the SHA-256 of each but the last.

    Of a pruned journal, and with ``since``, the first segment is taken as it says it is; its successors must follow it.
    Raises DataDirError if it cannot be read.
    """
    walk = _Walk(folder, disk)
    try:
        try:
            bad = walk.run(since)
        except FileNotFoundError:  # it was pruned while we looked: look again at what is left
            walk = _Walk(folder, disk)
            bad = walk.run(since)
    except OSError as error:
        raise DataDirError(f"cannot read the journal {folder}: {error.strerror}") from error
    return VerifyReport(walk.segments, walk.records, walk.bytes, walk.torn, walk.torn_at, walk.end, bad)


def recover(folder: Path, disk: Disk = LIVE_DISK, since: int = 1, *, dead: bool = True) -> Position:
    """Make a journal safe before it is the last word on its epoch; returns where it ends, as ``read_from`` does.

    What its writer wrote survives a loss of power from here on, and of a ``dead`` writer the torn end is cut away: it
    was never synced. Only segments from ``since`` on are looked at. Raises DataDirError when the disk refuses, or, with
    segment and offset, when the journal is damaged: a segment is missing in the middle, a segment before the last is
    not whole, or a frame is broken that had been synced. A last segment that is missing as a whole cannot be seen.
    """
    report = verify(folder, disk, since)
    if report.bad is not None:
        segment, offset, reason = report.bad
        raise DataDirError(
            f"the journal {folder} is damaged in segment {segment} at offset {offset}: {reason}",
            hint="restore that segment from a copy; what follows it cannot be trusted without it",
        )
    try:
        for number in segments(folder, disk)[-1:]:  # the others were synced before their successors began
            fd = disk.open(segment_path(folder, number))
            try:
                if dead and report.torn_bytes:
                    disk.truncate(fd, report.torn_at)
                disk.fdatasync(fd)
            finally:
                disk.close(fd)
            disk.sync_folder(folder)
    except OSError as error:
        raise DataDirError(f"cannot sync the journal {folder}: {error.strerror}") from error
    return report.end


def prune(folder: Path, below: int, disk: Disk = LIVE_DISK) -> int:
    """Remove the segments below a number, and the folder when none is left; returns how many.

    The oldest goes first, so that what is left is always without a gap. Raises DataDirError.
    """
    removed = 0
    try:
        numbers = segments(folder, disk)
        for number in numbers:
            if number < below:
                disk.remove(segment_path(folder, number))
                disk.sync_folder(folder)
                removed += 1
        if removed == len(numbers):
            disk.remove_folder(folder)
    except OSError as error:
        raise DataDirError(f"cannot prune the journal {folder}: {error.strerror}") from error
    return removed
