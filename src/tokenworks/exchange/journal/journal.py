"""The only writer of a journal's folder. What an append promises is its policy:

``written``: on return the record is with the kernel and survives the death of this process (kill -9).
``durable``: the same, and ``await durable(position)`` returns when it survives a loss of power.
``fast``: on return the record is in memory; a death of this process may take the last milliseconds with it.
``off``: nothing is recorded, so nobody is billed; only for measuring what the books cost.

Under each policy groups of records are synced behind the appends. A sync that failed may have thrown away what it was
to save, and the next one would report success all the same; so after one the journal has failed, for good: appends and
waiters get ExchangeDown, and a restart begins a new epoch with a new folder.
"""

from __future__ import annotations

import asyncio
import contextlib
import threading
from pathlib import Path
from typing import Literal

from tokenworks.core.errors import DataDirError, ExchangeDown
from tokenworks.exchange.journal.committer import NEVER, Committer
from tokenworks.exchange.journal.disk import LIVE_DISK, Disk
from tokenworks.exchange.journal.frames import (
    NO_SHA256,
    RECORD_BYTES_MAX,
    START,
    Header,
    Position,
    mark_frame,
    record_frame,
)
from tokenworks.exchange.journal.segment import OpenSegment, SyncFailed
from tokenworks.exchange.journal.waiters import Waiters

Policy = Literal["written", "durable", "fast", "off"]
SEGMENT_BYTES_MAX = 64 << 20
UNSYNCED_BYTES_MAX = 32 << 20
_FULL, _FAILED = "is the disk full?", "check the disk, then restart: a new journal begins"


class Journal:
    """``append`` is for one thread; the committer's thread syncs behind it. Raises DataDirError if the folder exists.

    ``unsynced_bytes_max`` bounds what the policies durable and fast leave unsynced. Without ``committer`` there is no
    thread, and whoever made the journal calls ``commit``.
    """

    def __init__(
        self,
        folder: Path,
        writer: str,
        epoch: int,
        policy: Policy = "written",
        *,
        unsynced_bytes_max: int = UNSYNCED_BYTES_MAX,
        disk: Disk = LIVE_DISK,
        committer: bool = True,
    ) -> None:
        self._folder, self._writer, self._epoch, self._disk = folder, writer, epoch, disk
        self.policy: Policy = policy
        try:
            disk.make_folder(folder)
        except FileExistsError:
            hint = "is another grid using this data?"
            raise DataDirError(f"the journal {folder} exists already", hint=hint) from None
        except OSError as error:
            raise DataDirError(f"cannot write the journal {folder}: {error.strerror}") from error
        self._unsynced_bytes_max = NEVER if policy == "written" else unsynced_bytes_max
        self._buffer: list[tuple[bytes, Position]] | None = [] if policy == "fast" else None
        self._down: tuple[str, str | None] | None = None
        """Message and hint, once the journal takes nothing more."""
        self._torn = False
        """A failed write may have left a part of a frame behind the last record."""
        self._committing = threading.Lock()
        """Held by whoever writes the buffer, syncs, or changes or closes the segment; not by an append."""
        # Written by the appender: after its write, first position, then bytes, then records. Read in the other order.
        self._bytes = self._records = 0
        self._synced_bytes = self._synced_records = 0
        self._flushed_bytes = self._flushed_records = 0
        self._bytes_limit = self._unsynced_bytes_max
        self._waiters = Waiters(START)
        self._segment = self._open_segment(Position(0, 0, 0), None)
        self._position = self._flushed = self._synced = self._marked = self._segment.begin
        self._waiters.wake(self._synced)
        self._closed = False
        self._committer = Committer(self, patient=policy == "written")
        if committer:
            self._committer.start()

    @property
    def position(self) -> Position:
        """Just after the last record."""
        return self._position

    @property
    def synced(self) -> Position:
        """Every record up to here survives a loss of power."""
        return self._synced

    @property
    def failed(self) -> bool:
        """It takes nothing more: a sync failed, or it is closed."""
        return self._down is not None

    @property
    def appended_records(self) -> int:
        """So far."""
        return self._records

    @property
    def synced_records(self) -> int:
        """How many survive a loss of power."""
        return self._synced_records

    def append(self, payload: bytes) -> Position:
        """Add one record; what holds on return is the policy. Raises ExchangeDown: then it is not in the journal."""
        if not payload or len(payload) > RECORD_BYTES_MAX:
            raise ValueError(f"a record has 1 to {RECORD_BYTES_MAX} bytes")
        if self.policy == "off":
            return self._position
        if self._torn or self._down is not None:
            self._repair()
        if self._position.offset >= SEGMENT_BYTES_MAX:
            self._next_segment()
        segment, offset, crc = self._position
        synced = self._synced
        if synced is self._marked:
            frame, crc = record_frame(payload, crc)
        else:
            mark, crc = mark_frame(synced, crc)
            frame, crc = record_frame(payload, crc)
            frame = mark + frame
        total = self._bytes + len(frame)
        if total > self._bytes_limit:
            raise ExchangeDown("the disk cannot keep up with the journal", hint="wait a little, or use a faster disk")
        position = Position(segment, offset + len(frame), crc)
        if self._buffer is None:
            self._write(frame)
        else:
            self._buffer.append((frame, position))
        self._marked = synced
        self._position = position
        self._bytes = total
        self._records = records = self._records + 1
        if records >= self._committer.wake_at:
            self._committer.wake()
        return position

    async def durable(self, position: Position | None = None) -> None:
        """Return when the records up to a position, or all so far, survive a loss of power. Raises ExchangeDown.

        A record whose wait ends with ExchangeDown may or may not be in the journal after a restart.
        """
        position = self._position if position is None else position
        if position > self._position:
            raise ValueError("nothing was appended there yet")
        future = self._waiters.wait(position, asyncio.get_running_loop())
        if future is not None:
            await future

    def commit(self) -> bool:
        """Make all records so far survive a loss of power; False if the disk refuses. The committer's thread does."""
        with self._committing:
            return self._commit()

    def close(self) -> None:
        """Sync, mark the end as synced, and close. Closing twice does nothing; who still waits gets ExchangeDown."""
        if self._closed:
            return
        self._closed = True
        if self._committer.stop():  # otherwise a sync hangs, and the segment is left to it
            with self._committing:
                if self._commit() and self._synced is not self._marked:
                    self._mark_end()
                self._segment.close()
        self._fail("the journal is closed", None)

    def _write(self, frame: bytes) -> None:
        segment = self._segment
        try:
            written = self._disk.write(segment.fd, frame)
            if written < len(frame):
                segment.write_all(frame[written:])
        except OSError as error:
            self._torn = True
            with contextlib.suppress(OSError):
                self._cut(self._position)
            raise ExchangeDown(f"cannot write the journal: {error.strerror}", hint=_FULL) from error

    def _repair(self) -> None:
        """Before an append: is there a way on? Raises ExchangeDown."""
        if self._down is not None:
            raise ExchangeDown(self._down[0], hint=self._down[1])
        if self._buffer is not None:  # the committer tries again; until then nothing more is taken
            raise ExchangeDown("cannot write the journal", hint=_FULL)
        try:
            self._cut(self._position)
        except OSError as error:
            raise ExchangeDown(f"cannot repair the journal: {error.strerror}") from error

    def _cut(self, end: Position) -> None:
        self._segment.cut(end)
        self._torn = False

    def _next_segment(self) -> None:
        """Only a segment that is whole and synced gets a successor. Raises ExchangeDown; then all is as before."""
        with self._committing:
            if not self._commit():
                message, hint = self._down or ("cannot write the journal", _FULL)
                raise ExchangeDown(message, hint=hint)
            old, end = self._segment, self._position
            self._segment = self._open_segment(end, old)
            # Every record before is synced. Marks speak of their own segment, and in this one there is nothing yet.
            self._position = self._flushed = self._synced = self._marked = self._segment.begin
            self._waiters.wake(self._synced)
            old.close()

    def _open_segment(self, end: Position, previous: OpenSegment | None) -> OpenSegment:
        try:
            sha256 = previous.sha256(end) if previous else NO_SHA256
            header = Header(self._writer, self._epoch, end.segment + 1, end.crc, sha256)
            return OpenSegment(self._disk, self._folder, header)
        except OSError as error:
            if isinstance(error, SyncFailed):
                self._sync_failed(error)
            raise ExchangeDown(f"cannot write the journal: {error.strerror}", hint=_FULL) from error

    def _commit(self) -> bool:
        """With the lock, as everything below."""
        if self._down is not None:
            return False
        if self._buffer is None:
            records, total, position = self._records, self._bytes, self._position
        elif self._flush(self._buffer):
            records, total, position = self._flushed_records, self._flushed_bytes, self._flushed
        else:
            return False
        return records == self._synced_records or self._sync(position, total, records)

    def _flush(self, buffer: list[tuple[bytes, Position]]) -> bool:
        """Write the buffer; what the appender adds meanwhile stays for the next time. False: all of it stays."""
        batch = buffer[:]
        data = b"".join([frame for frame, _ in batch])
        try:
            if self._torn:
                self._cut(self._flushed)
            self._segment.write_all(data)
        except OSError:
            self._torn = True
            return False
        if batch:
            del buffer[: len(batch)]
            self._flushed = batch[-1][1]
            self._flushed_records += len(batch)
            self._flushed_bytes += len(data)
        return True

    def _sync(self, position: Position, total: int, records: int) -> bool:
        try:
            self._segment.sync()
        except SyncFailed as error:
            self._sync_failed(error)
            return False
        self._synced_records, self._synced_bytes = records, total
        self._bytes_limit = total + self._unsynced_bytes_max
        self._synced = position
        self._waiters.wake(position)
        self._segment.hash_behind(position)
        return True

    def _sync_failed(self, error: SyncFailed) -> None:
        self._fail(f"the disk failed to sync the journal: {error.strerror}", _FAILED)

    def _fail(self, message: str, hint: str | None) -> None:
        self._down = self._down or (message, hint)
        self._waiters.fail(*self._down)

    def _mark_end(self) -> None:
        """Say in the file that all of it was synced, so that damage to its last records is told from a torn end."""
        mark, _ = mark_frame(self._synced, self._position.crc)
        with contextlib.suppress(OSError):  # the records are safe without it
            if self._torn:
                self._cut(self._position)
            self._segment.write_all(mark)
            self._segment.sync()
