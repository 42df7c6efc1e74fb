"""The few words a journal says to a disk, and the live disk that passes them on to the operating system."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Protocol


class Disk(Protocol):
    """Everything a journal asks of the operating system. Each verb raises OSError as the kernel would."""

    def make_folder(self, folder: Path) -> None:
        """Make a folder and what is missing above it, so that it survives a loss of power. FileExistsError: it is."""

    def names(self, folder: Path) -> list[str]:
        """The names in a folder, in no order; none if there is no such folder."""

    def sync_folder(self, folder: Path) -> None:
        """On return the folder's entries survive a loss of power."""

    def create(self, path: Path) -> int:
        """A new file, open for appending, as a descriptor. Raises FileExistsError if there is one."""

    def open(self, path: Path) -> int:
        """A file that is there, as a descriptor for writing at its end. Raises FileNotFoundError."""

    def write(self, fd: int, data: bytes) -> int:
        """Write at the end of the file; returns how many bytes were taken, which may be fewer than given."""

    def fdatasync(self, fd: int) -> None:
        """On return what was written survives a loss of power."""

    def truncate(self, fd: int, size: int) -> None:
        """Cut the file to a size in bytes."""

    def close(self, fd: int) -> None:
        """Give the descriptor back."""

    def remove(self, path: Path) -> None:
        """Take a file away."""

    def remove_folder(self, folder: Path) -> None:
        """Take an empty folder away."""

    def read(self, path: Path, offset: int, size: int) -> bytes:
        """Up to ``size`` bytes from an offset; fewer at the end of the file. Raises FileNotFoundError."""


class LiveDisk:
    """The operating system's files."""

    def make_folder(self, folder: Path) -> None:
        """Make it and sync each folder above that got a new entry."""
        missing = [above for above in folder.parents if not above.exists()]
        folder.mkdir(parents=True, exist_ok=False)
        for made in (folder, *missing):
            self.sync_folder(made.parent)

    def names(self, folder: Path) -> list[str]:
        """The names in a folder."""
        try:
            return os.listdir(folder)  # noqa: PTH208 - names, not paths
        except FileNotFoundError:
            return []

    def sync_folder(self, folder: Path) -> None:
        """Sync it as the file that it is."""
        fd = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            os.fsync(fd)
        finally:
            os.close(fd)

    def create(self, path: Path) -> int:
        """A new file that only its owner may read."""
        return os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_APPEND | os.O_CLOEXEC, 0o600)

    def open(self, path: Path) -> int:
        """One open()."""
        return os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CLOEXEC)

    def write(self, fd: int, data: bytes) -> int:
        """One write()."""
        return os.write(fd, data)

    def fdatasync(self, fd: int) -> None:
        """One fdatasync()."""
        os.fdatasync(fd)

    def truncate(self, fd: int, size: int) -> None:
        """One ftruncate()."""
        os.ftruncate(fd, size)

    def close(self, fd: int) -> None:
        """One close()."""
        os.close(fd)

    def remove(self, path: Path) -> None:
        """One unlink()."""
        path.unlink()

    def remove_folder(self, folder: Path) -> None:
        """One rmdir()."""
        folder.rmdir()

    def read(self, path: Path, offset: int, size: int) -> bytes:
        """Open, seek, read, close."""
        with path.open("rb") as file:
            file.seek(offset)
            return file.read(size)


LIVE_DISK: Disk = LiveDisk()
