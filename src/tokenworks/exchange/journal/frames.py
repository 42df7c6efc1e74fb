"""The format of a journal on disk.

Per writer and epoch there is a folder of segments ``000001.twj``, ``000002.twj`` and so on::

    segment = b"TWJ2"  frame(header)  { frame(record) | mark }
    frame   = length u32 | crc u32 | payload                    (little endian)
    mark    = length u32, highest bit set | crc u32 | payload

The CRC-32 of a frame starts from the CRC of the frame before it, so a lost, torn or moved frame is found. The header
of a segment carries the last CRC and the SHA-256 of the whole segment before. A mark says up to where its segment had
been synced when the mark was written: what is broken before that place is damage; what is broken behind the last mark
may be the torn end that a loss of power leaves, where unsynced writes survive in any selection.
"""

from __future__ import annotations

import struct
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import msgspec

from tokenworks.exchange.journal.disk import Disk

MAGIC = b"TWJ2"
RECORD_BYTES_MAX = 8 << 20
SUFFIX = ".twj"
NO_SHA256 = bytes(32)
"""What the first segment carries: there is none before it."""
FRAME = struct.Struct("<II")
_MARK_BIT = 1 << 31
_MARK = struct.Struct("<12sQI")
_MARK_MAGIC = bytes.fromhex("f19d5457 4a6d61726bfe00d3")
_MARK_SEED = 0xFFFFFFFF
"""Turns the chain before a mark is summed, so that no flipped bit makes a mark of a record."""


class Position(NamedTuple):
    """A place in a journal: the segment's number, the offset in bytes after a frame, and the CRC chain there."""

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
    previous_sha256: bytes


Frame = tuple[bytes | None, int, int]
"""A whole frame that was read: its payload (None: a mark), the offset behind it, its CRC."""


def journal_folder(data: Path, writer: str, epoch: int) -> Path:
    """Where a writer's epoch keeps its segments."""
    return data / "journal" / writer / f"{epoch:08d}"


def segment_path(folder: Path, segment: int) -> Path:
    """Where a segment lies."""
    return folder / f"{segment:06d}{SUFFIX}"


def segments(folder: Path, disk: Disk) -> list[int]:
    """The numbers of the segments that are there, in order. A folder that is not there has none. Raises OSError."""
    stems = [name.removesuffix(SUFFIX) for name in disk.names(folder) if name.endswith(SUFFIX)]
    return sorted(int(stem) for stem in stems if stem.isdigit())


def record_frame(payload: bytes, crc: int) -> tuple[bytes, int]:
    """A record or header as a frame behind the frame with that CRC, and its own CRC."""
    crc = zlib.crc32(payload, crc)
    return FRAME.pack(len(payload), crc) + payload, crc


def mark_frame(synced: Position, crc: int) -> tuple[bytes, int]:
    """A mark behind the frame with that CRC: ``synced.segment`` is safe on the disk up to ``synced.offset``."""
    payload = _MARK.pack(_MARK_MAGIC, synced.offset, _mark_check(synced.segment, synced.offset))
    crc = zlib.crc32(payload, crc ^ _MARK_SEED)
    return FRAME.pack(_MARK_BIT | len(payload), crc) + payload, crc


def _mark_check(segment: int, offset: int) -> int:
    return zlib.crc32(_MARK_MAGIC + struct.pack("<QQ", segment, offset))


def whole_frames(data: bytes, at: int, crc: int) -> Iterator[Frame]:
    """The whole and right frames from an offset on, behind the frame with that CRC, up to the first that is not."""
    unpack, crc32, size = FRAME.unpack_from, zlib.crc32, len(data)
    while (start := at + FRAME.size) <= size:
        length, expected = unpack(data, at)
        payload = None
        if length & _MARK_BIT:
            at = start + _MARK.size
            mark = length ^ _MARK_BIT == _MARK.size and at <= size
            if not mark or crc32(data[start:at], crc ^ _MARK_SEED) != expected:
                return
        else:
            at = start + length
            if not 0 < length <= RECORD_BYTES_MAX or at > size:
                return
            payload = data[start:at]
            if crc32(payload, crc) != expected:
                return
        crc = expected
        yield payload, at, crc


def marked_as_synced(data: bytes, at: int, segment: int) -> int:
    """The greatest offset that the marks behind ``at`` say was synced; 0 if there is none.

    A mark has a checksum of its own, so it is found also where the chain before it is broken.
    """
    greatest = 0
    while (at := data.find(_MARK_MAGIC, at)) >= 0:
        if at + _MARK.size <= len(data):
            _, offset, check = _MARK.unpack_from(data, at)
            if check == _mark_check(segment, offset):
                greatest = max(greatest, offset)
        at += len(_MARK_MAGIC)
    return greatest
