"""Files that only their owner can read: the log's signing key and its secret. Neither is ever overwritten."""

from __future__ import annotations

import contextlib
import os
import stat
from pathlib import Path

from tokenworks.core.errors import DataDirError

PRIVATE_BYTES_MAX = 16_384


def create_private(path: Path, content: bytes) -> None:
    """Write a new file, whole or not at all, and synced. Raises DataDirError, also when it is there already.

    A lost signing key ends a log, so an existing one is never replaced: the finished file is linked to its name, which
    fails where something stands.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        temporary.unlink(missing_ok=True)
        fd = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        with os.fdopen(fd, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
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
    finally:
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)


def read_private(path: Path) -> bytes:
    """Raises DataDirError when it cannot be read, or when others than its owner can read it."""
    try:
        with path.open("rb") as file:
            if stat.S_IMODE(os.fstat(file.fileno()).st_mode) & 0o077:
                raise DataDirError(f"others can read {path}", hint=f"chmod 600 {path}, and think about a new key")
            return file.read(PRIVATE_BYTES_MAX)
    except OSError as error:
        raise DataDirError(f"cannot read {path}: {error.strerror}") from error
