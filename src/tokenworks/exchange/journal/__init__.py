"""The journal: append-only segments of framed, chained records. What it holds happened; everything else is a view.

``frames`` is the format, ``journal`` the only writer of a folder with its three policies, ``committer`` the thread that
syncs groups of records behind it, ``waiters`` who wants to hear of that, ``reading`` and ``check`` the readers. All
of them reach the operating system through a ``disk``.
"""

from __future__ import annotations

from tokenworks.exchange.journal.check import VerifyReport, prune, recover, verify
from tokenworks.exchange.journal.disk import LIVE_DISK, Disk, LiveDisk
from tokenworks.exchange.journal.frames import (
    RECORD_BYTES_MAX,
    START,
    Header,
    Position,
    journal_folder,
    segment_path,
)
from tokenworks.exchange.journal.journal import SEGMENT_BYTES_MAX, UNSYNCED_BYTES_MAX, Journal, Policy
from tokenworks.exchange.journal.reading import read_from

__all__ = [
    "START",
    "Position",
    "Journal",
    "Policy",
    "Header",
    "journal_folder",
    "segment_path",
    "read_from",
    "recover",
    "verify",
    "VerifyReport",
    "prune",
    "Disk",
    "LiveDisk",
    "LIVE_DISK",
    "RECORD_BYTES_MAX",
    "SEGMENT_BYTES_MAX",
    "UNSYNCED_BYTES_MAX",
]
