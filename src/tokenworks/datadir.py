"""The data directory: where a grid keeps what must last. Only its owner can read it.

::

    version        format of this directory
    lock           held by the running grid; its process id
    run.json       where the running grid listens
    gateway-N.lock held by a gateway process beside the first
    keys.json      the administrator's key and the first account's key
    prices.json    all cards and books of the grid that runs or last ran
    ledger.db      the ledger's view            (the ledger process only)
    store          where that view is instead, when it is in PostgreSQL
    ledger.sock    where the ledger is asked
    gateway-N.sock where several gateway processes reach each other
    journal/       the truth: one folder per writer and epoch; what the view has for good leaves in time
    logs/          of the child processes; beside them, ``.door``, where the embedded ones listen
    calibrations/  what ``tokenworks calibrate`` measured
    devices.json   what ``tokenworks device list`` saw last
"""

from __future__ import annotations

import errno
import os
from contextlib import AbstractContextManager
from pathlib import Path

import msgspec

from tokenworks.core import files
from tokenworks.core.errors import DataDirError
from tokenworks.core.files import write_private

FORMAT = 1


class Keys(msgspec.Struct, frozen=True):
    """The keys that the first start made."""

    admin_key: str
    account: str
    key: str
    currency: str
    """Of this directory's books: amounts in another are refused."""


class Run(msgspec.Struct, frozen=True):
    """A running grid."""

    url: str
    pid: int
    started_ns: int


def data_directory() -> Path:
    """``TOKENWORKS_DATA``, or ``tokenworks`` in the user's data directory."""
    named = os.environ.get("TOKENWORKS_DATA")
    if named:
        return Path(named).expanduser().absolute()
    base = os.environ.get("XDG_DATA_HOME") or "~/.local/share"
    return Path(base).expanduser().absolute() / "tokenworks"


def _cannot(what: str, error: OSError) -> DataDirError:
    hint = "free some space on that disk" if error.errno in (errno.ENOSPC, errno.EDQUOT) else "set TOKENWORKS_DATA"
    return DataDirError(f"cannot {what}: {error.strerror}", hint=hint)


def prepare(data: Path) -> None:
    """Make the directory ready for this version. Raises DataDirError, changing nothing, when it is of a newer one."""
    try:
        data.mkdir(parents=True, exist_ok=True, mode=0o700)
        version = data / "version"
        found = version.read_text().strip() if version.exists() else ""
    except OSError as error:
        raise _cannot(f"use the data directory {data}", error) from error
    if found and found != str(FORMAT):
        newer = found.isdigit() and int(found) > FORMAT
        raise DataDirError(
            f"the data directory {data} has format {found!r}, this version of Tokenworks knows {FORMAT}",
            hint="run the newer version that wrote it, or set TOKENWORKS_DATA" if newer else "set TOKENWORKS_DATA",
        )
    try:
        data.chmod(0o700)
        (data / "journal").mkdir(exist_ok=True)
        (data / "logs").mkdir(exist_ok=True)
        if not found:
            write_private(version, f"{FORMAT}\n".encode())
    except OSError as error:
        raise _cannot(f"write in the data directory {data}", error) from error


def locked(data: Path) -> AbstractContextManager[None]:
    """One running grid per data directory. Raises DataDirError naming the process that has it."""
    taken = f"a grid is running already with the data directory {data} (process {{}})"
    return files.locked(data / "lock", taken, "stop it, or set TOKENWORKS_DATA to another directory")


def read_keys(data: Path) -> Keys | None:
    """The keys of the first start; None when there was none yet."""
    try:
        return msgspec.json.decode((data / "keys.json").read_bytes(), type=Keys)
    except FileNotFoundError:
        return None
    except (OSError, msgspec.DecodeError) as error:
        raise DataDirError(f"cannot read {data / 'keys.json'}: {error}") from error


def save_keys(data: Path, keys: Keys) -> None:
    """Keep the keys of the first start. Raises DataDirError."""
    try:
        write_private(data / "keys.json", msgspec.json.format(msgspec.json.encode(keys)) + b"\n")
    except OSError as error:
        raise _cannot("store the first keys", error) from error


def currency_of(data: Path) -> str:
    """The currency of the books. Raises DataDirError before the first start."""
    keys = read_keys(data)
    if keys is None:
        raise DataDirError(f"there is no grid in {data}", hint="start one: tokenworks up")
    return keys.currency


def save_store(data: Path, store: str | None) -> None:
    """Note where the ledger's tables are, for commands that read the books while no grid runs."""
    if store is None:
        (data / "store").unlink(missing_ok=True)
    else:
        write_private(data / "store", store.encode())


def read_run(data: Path) -> Run | None:
    """The running grid, or None: no file, or its process is gone."""
    try:
        run = msgspec.json.decode((data / "run.json").read_bytes(), type=Run)
        os.kill(run.pid, 0)
    except (OSError, msgspec.DecodeError):
        return None
    return run
