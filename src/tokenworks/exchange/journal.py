"""The journal: append-only segments of framed, chained records. What it holds happened; everything else is a view.

On disk, per writer and epoch, a folder of segments ``000001.twj``, ``000002.twj`` and so on::

    segment = b"TWJ1"  frame(header)  frame(record) ...
    frame   = length u32 | crc u32 | payload          (little endian)

The CRC-32 of a frame starts from the CRC of the frame before it, so a lost, torn or moved frame is found, and the
header of a segment carries the last CRC of the segment before. Policy ``written``: ``append`` returns after write(), so
a record survives the death of its process; a thread commits groups of records to the disk (fdatasync) behind it.
"""

from __future__ import annotations

import contextlib
import os
import struct
import threading
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import msgspec

from tokenworks.core.errors import DataDirError, ExchangeDown

MAGIC = b"TWJ1"
SEGMENT_BYTES_MAX = 64 << 20
RECORD_BYTES_MAX = 8 << 20
GROUP_RECORDS_MAX = 256
GROUP_WAIT_S = 0.002
READ_BYTES_MAX = 16 << 20
_FRAME = struct.Struct("<II")


class Position(NamedTuple):
    """A place in a journal: the segment's number, the offset after a frame, and the CRC chain there."""

    segment: int
    offset: int
    crc: int


START = Position(1, 0, 0)


class Header(msgspec.Struct, frozen=True):
    """First frame of a segment."""

    writer: str
    epoch: int
    segment: int
    previous_crc: int


def _frame(payload: bytes, crc: int) -> tuple[bytes, int]:
    crc = zlib.crc32(payload, crc)
    return _FRAME.pack(len(payload), crc) + payload, crc


def journal_folder(data: Path, writer: str, epoch: int) -> Path:
    """Where a writer's epoch keeps its segments."""
    return data / "journal" / writer / f"{epoch:08d}"


def segment_path(folder: Path, segment: int) -> Path:
    """Where a segment lies."""
    return folder / f"{segment:06d}.twj"


class Journal:
    """The only writer of one folder. ``append`` may be called from one thread; a second thread syncs behind it."""

    def __init__(self, folder: Path, writer: str, epoch: int) -> None:
        self._folder, self._writer, self._epoch = folder, writer, epoch
        try:
            folder.mkdir(parents=True, exist_ok=False)
        except FileExistsError:
            raise DataDirError(
                f"the journal {folder} exists already", hint="is another grid using this data?"
            ) from None
        except OSError as error:
            raise DataDirError(f"cannot write the journal {folder}: {error.strerror}") from error
        self._fd = -1
        self._position = Position(0, 0, 0)
        self._dirty = threading.Condition()
        self._unsynced = 0
        self._closed = False
        self._torn = False
        """A failed write has left a part of a frame behind the last record."""
        self.sync_failures = 0
        self._open_segment()
        self._syncer = threading.Thread(target=self._sync_groups, name="journal-sync", daemon=True)
        self._syncer.start()

    @property
    def position(self) -> Position:
        """Just after the last record."""
        return self._position

    def _open_segment(self) -> None:
        number, previous = self._position.segment + 1, self._position.crc
        path = segment_path(self._folder, number)
        header, crc = _frame(msgspec.msgpack.encode(Header(self._writer, self._epoch, number, previous)), previous)
        fd = -1
        try:
            fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_APPEND | os.O_CLOEXEC, 0o600)
            _write_all(fd, MAGIC + header)
            _sync_folder(self._folder)
        except OSError as error:
            if fd >= 0:
                os.close(fd)
                with contextlib.suppress(OSError):
                    path.unlink()
            raise ExchangeDown(f"cannot write the journal: {error.strerror}", hint="is the disk full?") from error
        old, self._fd = self._fd, fd
        self._position = Position(number, len(MAGIC) + len(header), crc)
        if old >= 0:
            try:
                os.fdatasync(old)
            except OSError:
                self.sync_failures += 1
            finally:
                os.close(old)

    def append(self, payload: bytes) -> Position:
        """Write one record. On return it survives the death of this process. Raises ExchangeDown, writing nothing."""
        if not payload or len(payload) > RECORD_BYTES_MAX:
            raise ValueError(f"a record has 1 to {RECORD_BYTES_MAX} bytes")
        if self._closed:
            raise ExchangeDown("the journal is closed")
        if self._torn:
            self._cut()
        if self._position.offset >= SEGMENT_BYTES_MAX:
            with self._dirty:
                self._open_segment()
        at = self._position
        frame, crc = _frame(payload, at.crc)
        try:
            _write_all(self._fd, frame)
        except OSError as error:
            self._torn = True
            with contextlib.suppress(ExchangeDown):
                self._cut()
            raise ExchangeDown(f"cannot write the journal: {error.strerror}", hint="is the disk full?") from error
        self._position = Position(at.segment, at.offset + len(frame), crc)
        self._unsynced += 1
        if self._unsynced == 1 or self._unsynced >= GROUP_RECORDS_MAX:
            with self._dirty:
                self._dirty.notify()
        return self._position

    def _cut(self) -> None:
        """Take away what a failed write left: the next record follows the last good one. Raises ExchangeDown."""
        try:
            os.ftruncate(self._fd, self._position.offset)
        except OSError as error:
            raise ExchangeDown(f"cannot repair the journal: {error.strerror}") from error
        self._torn = False

    def _sync_groups(self) -> None:
        while True:
            with self._dirty:
                self._dirty.wait_for(lambda: self._unsynced > 0 or self._closed, timeout=1.0)
                if self._closed and self._unsynced == 0:
                    return
                if 0 < self._unsynced < GROUP_RECORDS_MAX and not self._closed:
                    self._dirty.wait_for(lambda: self._unsynced >= GROUP_RECORDS_MAX or self._closed, GROUP_WAIT_S)
                if self._unsynced == 0:
                    continue
                self._unsynced = 0
                fd = os.dup(self._fd)
            try:
                os.fdatasync(fd)
            except OSError:
                self.sync_failures += 1
            finally:
                os.close(fd)

    def close(self) -> None:
        """Sync and close. Closing twice does nothing."""
        if self._closed:
            return
        with self._dirty:
            self._closed = True
            self._dirty.notify()
        self._syncer.join(timeout=10)
        os.close(self._fd)
        self._fd = -1


def _write_all(fd: int, data: bytes) -> None:
    written = os.write(fd, data)
    while written < len(data):
        written += os.write(fd, data[written:])


def _sync_folder(folder: Path) -> None:
    fd = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def read_from(folder: Path, position: Position) -> Iterator[tuple[bytes, Position]]:
    """Whole records after a position, each with the position behind it, across segments, up to the last good frame.

    A torn or corrupt frame ends the reading: its writer is still writing it, or died while it did. At most about
    ``READ_BYTES_MAX`` bytes are read in one call, so the caller's batches are bounded.
    """
    budget = READ_BYTES_MAX
    while budget > 0:
        path = segment_path(folder, position.segment)
        try:
            with path.open("rb") as file:
                file.seek(position.offset)
                data = file.read(budget)
        except FileNotFoundError:
            return
        budget -= len(data)
        view, at = memoryview(data), 0
        if position.offset == 0:
            if len(data) < len(MAGIC) or data[: len(MAGIC)] != MAGIC:
                return
            at = len(MAGIC)
        header = position.offset == 0
        while (record := _next_frame(view, at, position.crc)) is not None:
            payload, at, crc = record
            position = Position(position.segment, position.offset, crc)
            if not header:
                yield bytes(payload), Position(position.segment, position.offset + at, crc)
            header = False
        position = Position(position.segment, position.offset + at, position.crc)
        following = Position(position.segment + 1, 0, position.crc)
        if at < len(data) or not segment_path(folder, following.segment).exists():
            return
        position = following


def _next_frame(view: memoryview, at: int, crc: int) -> tuple[memoryview, int, int] | None:
    if len(view) - at < _FRAME.size:
        return None
    length, expected = _FRAME.unpack_from(view, at)
    end = at + _FRAME.size + length
    if not 0 < length <= RECORD_BYTES_MAX or end > len(view):
        return None
    payload = view[at + _FRAME.size : end]
    return (payload, end, expected) if zlib.crc32(payload, crc) == expected else None
