"""Files that only their owner can read, written whole or not at all and synced; and files that are locks."""

from __future__ import annotations

import contextlib
import fcntl
import os
import stat
import threading
from collections.abc import Iterator
from pathlib import Path

from tokenworks.core.errors import DataDirError

PRIVATE_BYTES_MAX = 16_384


@contextlib.contextmanager
def _beside(path: Path, content: bytes) -> Iterator[Path]:
    """The content in a synced file of its own, which is gone afterwards unless it was renamed."""
    temporary = path.with_name(f".{path.name}.{threading.get_native_id()}")
    try:
        fd = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
        with os.fdopen(fd, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        yield temporary
    finally:
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)


def write_private(path: Path, content: bytes) -> None:
    """Write a file, over the one that is there. Raises OSError."""
    with _beside(path, content) as temporary:
        temporary.replace(path)


def create_private(path: Path, content: bytes) -> None:
    """Write a new file. Raises DataDirError, also when it is there already.

    A lost signing key ends a log, so an existing one is never replaced: the finished file is linked to its name, which
    fails where something stands.
    """
    try:
        with _beside(path, content) as temporary:
            os.link(temporary, path)
        folder = os.open(path.parent, os.O_RDONLY | os.O_CLOEXEC)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)
    except FileExistsError:
        raise DataDirError(f"{path} is there already", hint="a log's key is never overwritten") from None
    except OSError as error:
        raise DataDirError(f"cannot write {path}: {error.strerror}") from error


def read_private(path: Path) -> bytes:
    """Raises DataDirError when it cannot be read, or when others than its owner can read it."""
    try:
        with path.open("rb") as file:
            if stat.S_IMODE(os.fstat(file.fileno()).st_mode) & 0o077:
                raise DataDirError(f"others can read {path}", hint=f"chmod 600 {path}, and think about a new key")
            return file.read(PRIVATE_BYTES_MAX)
    except OSError as error:
        raise DataDirError(f"cannot read {path}: {error.strerror}") from error


@contextlib.contextmanager
def locked(path: Path, taken: str, hint: str | None = None) -> Iterator[None]:
    """Hold a lock file, which has the id of this process. Raises DataDirError: ``taken``, with the holder's id for {}.

    Raises OSError when the file cannot be made.
    """
    with path.open("a+") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            file.seek(0)
            raise DataDirError(taken.replace("{}", file.read().strip() or "unknown"), hint=hint) from None
        file.truncate(0)
        file.write(str(os.getpid()))
        file.flush()
        yield


@contextlib.contextmanager
def socket_address(path: Path) -> Iterator[str]:
    """A Unix socket's address is at most 107 bytes: a longer path is reached through its open folder."""
    if len(os.fsencode(path)) < 100:
        yield str(path)
        return
    folder = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        yield f"/proc/self/fd/{folder}/{path.name}"
    finally:
        os.close(folder)
