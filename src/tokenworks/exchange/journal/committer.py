"""The thread that commits groups of records behind an append that never takes a lock.

The appender counts a record and then looks at ``wake_at``; the committer sets ``wake_at`` and then looks at the count.
Whatever the interleaving, one of the two sees the other, so no record is left without a commit. In between, the
appender only compares two integers.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from datetime import timedelta
from typing import Protocol

GROUP_RECORDS_MAX = 256
GROUP_WAIT_S = timedelta(milliseconds=2).total_seconds()
PATIENT_RECORDS_MAX = 4_096
PATIENT_WAIT_S = timedelta(milliseconds=100).total_seconds()
RETRY_WAIT_S = timedelta(milliseconds=50).total_seconds()
"""Between tries of a disk that refuses a write, for example because it is full."""
STOP_WAIT_S = 10
NEVER = 1 << 63


class Group(Protocol):
    """What is committed: counts that only grow."""

    @property
    def appended_records(self) -> int:
        """Records so far."""

    @property
    def synced_records(self) -> int:
        """How many of them are safe on the disk."""

    @property
    def failed(self) -> bool:
        """No commit will ever succeed again."""

    def commit(self) -> bool:
        """Make those appended so far safe; False if that was refused."""


class Committer:
    """Commits at most ``GROUP_WAIT_S`` after the first record of a group, or when it has ``GROUP_RECORDS_MAX``.

    Where nobody waits for the disk (``patient``) groups are larger, because each commit takes the appender's processor.
    """

    def __init__(self, group: Group, patient: bool = False) -> None:
        self._group = group
        self._records_max, self._wait_s = (
            (PATIENT_RECORDS_MAX, PATIENT_WAIT_S) if patient else (GROUP_RECORDS_MAX, GROUP_WAIT_S)
        )
        self._event = threading.Event()
        self._stopping = False
        self._thread: threading.Thread | None = None
        self.wake_at = NEVER
        """The appender calls ``wake`` once its count of records has reached this."""

    def start(self) -> None:
        """Begin."""
        self._thread = threading.Thread(target=self._run, name="journal-sync", daemon=True)
        self._thread.start()

    def wake(self) -> None:
        """A group has begun or is full. Once is enough: the committer sets ``wake_at`` again when it sleeps again."""
        self.wake_at = NEVER
        self._event.set()

    def stop(self) -> bool:
        """Do no further commit. False: the one in progress hangs in the disk."""
        self._stopping = True
        self._event.set()
        if self._thread is None:
            return True
        self._thread.join(timeout=STOP_WAIT_S)
        return not self._thread.is_alive()

    def _run(self) -> None:
        while not self._stopping and not self._group.failed:
            base = self._group.synced_records
            self._sleep(base + 1, self._event.wait)
            if self._group.appended_records == base:
                continue
            self._sleep(base + self._records_max, lambda: self._event.wait(self._wait_s))
            if not self._group.commit():
                self._sleep(NEVER, lambda: self._event.wait(RETRY_WAIT_S))

    def _sleep(self, wake_at: int, wait: Callable[[], bool]) -> None:
        """Sleep until there are that many records. The order of the first three steps is what loses no wake-up."""
        self._event.clear()
        self.wake_at = wake_at
        if self._group.appended_records < wake_at and not self._stopping:
            wait()
        self.wake_at = NEVER
