"""The segment that a journal writes now: its file, and the hash of what is in it."""

from __future__ import annotations

import contextlib
import errno
import hashlib
from pathlib import Path

import msgspec

from tokenworks.exchange.journal.disk import Disk
from tokenworks.exchange.journal.frames import MAGIC, Header, Position, record_frame, segment_path

HASH_BEHIND_BYTES = 1 << 20


class SyncFailed(OSError):
    """What was to be saved may be lost, also if the next sync reports success."""


class OpenSegment:
    """A new segment with its header, its name safe on the disk. Raises SyncFailed, or OSError leaving no file."""

    def __init__(self, disk: Disk, folder: Path, header: Header) -> None:
        frame, crc = record_frame(msgspec.msgpack.encode(header), header.previous_crc)
        self.begin = Position(header.segment, len(MAGIC) + len(frame), crc)
        """Behind the header."""
        self._disk, self._path = disk, segment_path(folder, header.segment)
        self._sha256, self._hashed = hashlib.sha256(), 0
        self.fd = disk.create(self._path)
        try:
            self.write_all(MAGIC + frame)
            try:
                disk.sync_folder(folder)
            except OSError as error:
                raise SyncFailed(error.errno, error.strerror) from error
        except OSError:
            self.close()
            with contextlib.suppress(OSError):
                disk.remove(self._path)
                disk.sync_folder(folder)  # or it might be there again, and seem to follow a segment that goes on
            raise

    def write_all(self, data: bytes) -> None:
        """Write on, however little the disk takes at a time. Raises OSError: a part may have been written."""
        written = 0
        while written < len(data):
            written += self._disk.write(self.fd, data[written:] if written else data)

    def cut(self, end: Position) -> None:
        """Take away what a failed write left: the next record follows the last good one. Raises OSError."""
        self._disk.truncate(self.fd, end.offset)

    def sync(self) -> None:
        """On return all that was written survives a loss of power. Raises SyncFailed."""
        try:
            self._disk.fdatasync(self.fd)
        except OSError as error:
            raise SyncFailed(error.errno, error.strerror) from error

    def hash_behind(self, end: Position) -> None:
        """Hash what has come together, by reading back what the kernel holds: so it costs an append nothing."""
        if end.offset - self._hashed >= HASH_BEHIND_BYTES:
            with contextlib.suppress(OSError):  # sha256() reads what is missing, and tells
                self.sha256(end)

    def sha256(self, end: Position) -> bytes:
        """The SHA-256 of all up to a position. Raises OSError."""
        while self._hashed < end.offset:
            data = self._disk.read(self._path, self._hashed, min(end.offset - self._hashed, HASH_BEHIND_BYTES))
            if not data:
                raise OSError(errno.EIO, "the file is shorter than what was written")
            self._sha256.update(data)
            self._hashed += len(data)
        return self._sha256.digest()

    def close(self) -> None:
        """Give the descriptor back. Whoever closes has synced, so an error takes nothing away and is not told."""
        with contextlib.suppress(OSError):
            self._disk.close(self.fd)
