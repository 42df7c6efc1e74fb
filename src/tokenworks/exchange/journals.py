"""All journals of one data directory, in the hands of the one process that applies them."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from contextlib import ExitStack
from pathlib import Path

from tokenworks.core.errors import DataDirError
from tokenworks.core.files import locked
from tokenworks.exchange.journal import LIVE_DISK, journal_folder, prune, recover, segment_path
from tokenworks.exchange.journal.frames import segments
from tokenworks.exchange.state import Source

COUNTED_BYTES_MIN = 1 << 20
"""A smaller segment counts as this much, so that a bound on bytes is one on files as well."""
ALL = 1 << 63
"""Below this number are all segments of a journal."""


def journals(data: Path) -> list[Source]:
    """Writer and epoch of those on disk, in order."""
    root = data / "journal"
    folders = [f for writer in root.iterdir() if writer.is_dir() for f in writer.iterdir()] if root.is_dir() else []
    return sorted((folder.parent.name, int(folder.name)) for folder in folders if folder.name.isdigit())


def lacks(source: Source) -> DataDirError:
    """What the store has not got can no longer be read: the books would have a hole."""
    return DataDirError(
        f"the journal of {source[0]}, epoch {source[1]}, is gone in part, and the store has not got it either",
        hint="restore the ledger's database from a backup that is not older than the oldest journal",
    )


class Journals:
    """Raises DataDirError when another process has them."""

    def __init__(self, data: Path) -> None:
        self._data, self._lock = data, ExitStack()
        self.damaged: dict[Source, str] = {}
        """Those that could not be made safe, and why. They are read on once somebody mended them."""
        try:
            self._lock.enter_context(
                locked(data / "ledger.lock", "another process keeps the books of this data directory")
            )
        except OSError as error:
            raise DataDirError(f"cannot use {data}: {error.strerror}") from error

    def close(self) -> None:
        """Let go of them."""
        self._lock.close()

    def folder(self, source: Source) -> Path:
        """Where one lies."""
        return journal_folder(self._data, *source)

    def there(self) -> list[Source]:
        """Those on disk, in order."""
        return journals(self._data)

    def next_epoch(self, writer: str, known: Collection[Source]) -> int:
        """One that this writer never had, by what is on disk and what is known."""
        return max([0, *(epoch for name, epoch in (*self.there(), *known) if name == writer)]) + 1

    def refuse_gap(self, writer: str, known: Collection[Source]) -> None:
        """Raises DataDirError when epochs of a writer were pruned that the store does not know: it is too old."""
        epochs = [epoch for name, epoch in self.there() if name == writer]
        last = max((epoch for name, epoch in known if name == writer), default=0)
        if epochs and epochs[0] > last + 1:
            raise lacks((writer, last + 1))

    def make_safe(self, source: Source, since: int, *, dead: bool) -> bool:
        """See that what was read of one outlasts a loss of power; False: it is damaged, or the disk refuses."""
        try:
            recover(self.folder(source), since=since, dead=dead)
        except DataDirError as error:
            self.damaged[source] = str(error)
            return False
        self.damaged.pop(source, None)
        return True

    def prune(self, booked: Mapping[Source, int], keep_bytes: int) -> int:
        """Remove the oldest segments until so many bytes are left of those that may go; returns how many went.

        ``booked`` says below which segment all of a journal is in the store for good. Raises DataDirError.
        """
        sealed = []
        for source, below in booked.items():
            folder = self.folder(source)
            for number in segments(folder, LIVE_DISK):
                if number < below:
                    found = segment_path(folder, number).stat()
                    sealed.append((found.st_mtime_ns, folder, number, max(found.st_size, COUNTED_BYTES_MIN)))
        too_much = sum(size for *_, size in sealed) - keep_bytes
        last: dict[Path, int] = {}
        for _, folder, number, size in sorted(sealed):
            if too_much <= 0:
                break
            last[folder] = max(number, last.get(folder, 0))
            too_much -= size
        return sum(prune(folder, number + 1) for folder, number in last.items())
