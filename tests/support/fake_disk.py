"""A disk in memory that fails as disks do. For simulations and tests; the same seed, the same fate.

It models the page cache. ``kill`` is the death of the process: descriptors are gone, everything written is there. At
``power_loss`` each write that was not synced survives, is dropped, is torn at any byte or leaves zeros, one by one, so
that a later write may survive an earlier one; an entry of a folder that was not synced may be gone, or be there again.
A failed ``fdatasync`` decides in the same way what reached the disk, and the next one does not try again.

Faults are ordered with ``fail`` (the next calls of a verb raise), ``room_bytes`` (then ENOSPC) and ``short_writes``.
"""

from __future__ import annotations

import errno
import os
import threading
from pathlib import Path
from typing import Literal

Verb = Literal["create", "open", "write", "fdatasync", "truncate", "remove", "read", "sync_folder"]
_Change = tuple[int, bytes | None]
"""An offset and what was written there; or a size and None: the file was cut to it."""
_WORD = (1 << 64) - 1


class _File:
    """What a file holds for whoever reads it, what of it is on the disk, and what changed in between."""

    def __init__(self) -> None:
        self.cache, self.platter = bytearray(), bytearray()
        self.unsynced: list[_Change] = []


def _apply(content: bytearray, change: _Change) -> None:
    offset, data = change
    if data is None:
        del content[offset:]
        return
    content.extend(bytes(max(0, offset - len(content))))
    content[offset : offset + len(data)] = data


class FakeDisk:
    """A ``Disk``. May be used by several threads."""

    def __init__(self, seed: int = 0) -> None:
        self._state = seed & _WORD
        self._lock = threading.RLock()
        self._folders: set[Path] = set()
        self._entries: dict[Path, _File] = {}
        self._synced_entries: dict[Path, _File] = {}
        self._open: dict[int, _File] = {}
        self._next_fd = 1000
        self._failures: dict[str, list[int]] = {}
        self.room_bytes: int | None = None
        """Bytes that writes may still take before ENOSPC; None: as many as they want."""
        self.failed_syncs = 0
        """What they were to save is in the cache only, and no later sync tries again."""
        self.short_writes = 0
        """So many of the next writes take only a part of what they are given."""

    # --- what goes wrong ----------------------------------------------------------------------------------------------

    def fail(self, verb: Verb, error: int = errno.EIO, times: int = 1) -> None:
        """The next calls of a verb raise OSError with this number. A write that fails may have taken a part."""
        with self._lock:
            self._failures.setdefault(verb, []).extend([error] * times)

    def heal(self) -> None:
        """Take back the faults that were ordered and have not happened."""
        with self._lock:
            self._failures.clear()
            self.room_bytes, self.short_writes = None, 0

    def kill(self) -> None:
        """The process dies, the machine goes on."""
        with self._lock:
            self._open.clear()

    def power_loss(self) -> None:
        """The machine dies and starts again: what is on the platter is what there is."""
        with self._lock:
            self.kill()
            for path in sorted(self._entries.keys() | self._synced_entries.keys()):
                now, then = self._entries.get(path), self._synced_entries.get(path)
                fate = now if now is then or self._choose(2) else then
                self._entries.pop(path, None)
                if fate is not None:
                    self._entries[path] = fate
            for path in sorted(self._entries):
                file = self._entries[path]
                self._settle(file)
                file.cache = bytearray(file.platter)
            self._synced_entries = dict(self._entries)

    def _choose(self, options: int) -> int:
        """One of 0 to options - 1, by the seed (splitmix64)."""
        self._state = (self._state + 0x9E3779B97F4A7C15) & _WORD
        word = (self._state ^ self._state >> 30) * 0xBF58476D1CE4E5B9 & _WORD
        word = (word ^ word >> 27) * 0x94D049BB133111EB & _WORD
        return (word ^ word >> 31) % options

    def _settle(self, file: _File) -> None:
        """Each unsynced change reaches the platter, or does not, or in part."""
        for offset, data in file.unsynced:
            fate = self._choose(4)
            if data is None or fate == 0:
                if fate < 2:
                    _apply(file.platter, (offset, data))
            elif fate == 1:
                _apply(file.platter, (offset, data[: self._choose(len(data) + 1)]))
            elif fate == 2 and offset + len(data) > len(file.platter):  # the size was written, the content was not
                file.platter.extend(bytes(offset + len(data) - len(file.platter)))
        file.unsynced.clear()

    def _may_fail(self, verb: Verb) -> None:
        if waiting := self._failures.get(verb):
            number = waiting.pop(0)
            raise OSError(number, os.strerror(number))

    def _file(self, fd: int) -> _File:
        if fd not in self._open:
            raise OSError(errno.EBADF, os.strerror(errno.EBADF))
        return self._open[fd]

    def _at(self, path: Path) -> _File:
        if path not in self._entries:
            raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), str(path))
        return self._entries[path]

    # --- the verbs of a disk ------------------------------------------------------------------------------------------

    def make_folder(self, folder: Path) -> None:
        """Make it; a folder is never lost."""
        with self._lock:
            if folder in self._folders:
                raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST), str(folder))
            self._folders.add(folder)

    def names(self, folder: Path) -> list[str]:
        """The names in a folder."""
        with self._lock:
            return [path.name for path in self._entries if path.parent == folder]

    def sync_folder(self, folder: Path) -> None:
        """Its entries are as they are now, also after a loss of power."""
        with self._lock:
            self._may_fail("sync_folder")
            others = {path: file for path, file in self._synced_entries.items() if path.parent != folder}
            own = {path: file for path, file in self._entries.items() if path.parent == folder}
            self._synced_entries = others | own

    def create(self, path: Path) -> int:
        """A new, empty file."""
        with self._lock:
            self._may_fail("create")
            if path in self._entries:
                raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST), str(path))
            self._next_fd += 1
            self._entries[path] = self._open[self._next_fd] = _File()
            return self._next_fd

    def open(self, path: Path) -> int:
        """A file that is there."""
        with self._lock:
            self._may_fail("open")
            self._next_fd += 1
            self._open[self._next_fd] = self._at(path)
            return self._next_fd

    def write(self, fd: int, data: bytes) -> int:
        """Into the page cache, as far as there is room."""
        with self._lock:
            file, taken = self._file(fd), len(data)
            if data and self._failures.get("write"):
                taken = self._choose(taken)
            elif taken > 1 and self.short_writes > 0:
                self.short_writes -= 1
                taken = 1 + self._choose(taken - 1)
            if self.room_bytes is not None:
                taken = min(taken, self.room_bytes)
                self.room_bytes -= taken
            if taken:
                change = (len(file.cache), data[:taken])
                file.unsynced.append(change)
                _apply(file.cache, change)
            self._may_fail("write")
            if data and not taken:
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            return taken

    def fdatasync(self, fd: int) -> None:
        """What was written is on the platter. After a failure it is anyone's guess, and not tried again."""
        with self._lock:
            file = self._file(fd)
            try:
                self._may_fail("fdatasync")
            except OSError:
                self.failed_syncs += 1
                self._settle(file)
                raise
            for change in file.unsynced:
                _apply(file.platter, change)
            file.unsynced.clear()

    def truncate(self, fd: int, size: int) -> None:
        """Cut the file, in the cache."""
        with self._lock:
            file = self._file(fd)
            self._may_fail("truncate")
            file.unsynced.append((size, None))
            _apply(file.cache, (size, None))

    def close(self, fd: int) -> None:
        """Give the descriptor back; this syncs nothing."""
        with self._lock:
            self._file(fd)
            del self._open[fd]

    def remove(self, path: Path) -> None:
        """Take the entry away, in the cache."""
        with self._lock:
            self._may_fail("remove")
            self._at(path)
            del self._entries[path]

    def remove_folder(self, folder: Path) -> None:
        """Take an empty folder away."""
        with self._lock:
            if self.names(folder):
                raise OSError(errno.ENOTEMPTY, os.strerror(errno.ENOTEMPTY), str(folder))
            self._folders.remove(folder)

    def read(self, path: Path, offset: int, size: int) -> bytes:
        """What the page cache holds."""
        with self._lock:
            self._may_fail("read")
            return bytes(self._at(path).cache[offset : offset + size])

    def change(self, path: Path, content: bytes) -> None:
        """Put other content where a file is, in cache and platter: a bit that flipped, or a hand that meddled."""
        with self._lock:
            file = self._at(path)
            file.cache, file.platter = bytearray(content), bytearray(content)
            file.unsynced.clear()
