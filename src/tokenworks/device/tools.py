"""What this floor does to processes: run a vendor's tool, hold a child to its slice, measure what it takes.

A vendor's tool may hang in its driver or print without end: it costs at most ``SECONDS_MAX`` and ``OUTPUT_BYTES_MAX``.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import resource
import shutil
import signal
import subprocess
import sys
import tempfile
from asyncio.subprocess import PIPE, Process
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import IO, NamedTuple

from tokenworks.core.units import NS_PER_S
from tokenworks.device.discovery import read_text
from tokenworks.device.slices import Limits, Took

SECONDS_MAX, OUTPUT_BYTES_MAX, SAID_CHARS_MAX = 10.0, 4 << 20, 200
ENDLESS = "did not end within"
LINE_BYTES_MAX = 16 << 20  # of what a child of ours says
RUNAWAY_BYTES = 1 << 30  # mapped but never touched: stacks and reserves of some hundred threads


class Ran(NamedTuple):
    """What came of one command."""

    out: str
    trouble: str | None = None
    """None: it ended well."""
    absent: bool = False
    """There is no such command here."""


Run = Callable[[Sequence[str]], Ran]


def run_tool(argv: Sequence[str], *, seconds_max: float = SECONDS_MAX) -> Ran:
    """Run one command, with this interpreter for ``python``. Never raises, never waits longer than it says."""
    path = sys.executable if argv[0] == "python" else shutil.which(argv[0])
    if path is None:
        return Ran("", f"{argv[0]} is not installed", absent=True)
    # Files instead of pipes: nothing needs to be read while it runs, and the kernel bounds what it may write. The shell
    # sets that bound, in blocks of 512 bytes, before the tool is there: its own children must have it too.
    bounded = ["/bin/sh", "-c", 'ulimit -f "$0" && exec "$@"', str(OUTPUT_BYTES_MAX // 512), path, *argv[1:]]
    with tempfile.TemporaryFile() as out, tempfile.TemporaryFile() as err:
        try:
            process = subprocess.Popen(
                bounded, stdin=subprocess.DEVNULL, stdout=out, stderr=err,
                start_new_session=True, env={**os.environ, "LC_ALL": "C"},
            )  # fmt: skip
        except OSError as error:
            return Ran("", f"{argv[0]} cannot be started: {error.strerror}")
        try:
            status = process.wait(seconds_max)
        except subprocess.TimeoutExpired:
            with contextlib.suppress(OSError):
                os.killpg(process.pid, signal.SIGKILL)
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(1.0)  # one that waits inside its driver does not even die: it is left behind
            return Ran("", f"{argv[0]} {ENDLESS} {seconds_max:g} s")
        text, said = _text(out), _text(err).strip()
    if len(text) >= OUTPUT_BYTES_MAX or status == -signal.SIGXFSZ:
        return Ran("", f"{argv[0]} printed more than {OUTPUT_BYTES_MAX >> 20} MiB")
    if status:
        last = (said or text.strip()).splitlines()[-1:] or ["and said nothing"]
        return Ran(text, f"{argv[0]} ended with status {status}: {last[0][:SAID_CHARS_MAX]}")
    return Ran(text)


def _text(file: IO[bytes]) -> str:
    file.seek(0)
    return file.read(OUTPUT_BYTES_MAX).decode(errors="replace")


async def spawn(*command: str, log: Path, stdout: int | None = None, env: Mapping[str, str] = {}) -> Process:
    """Start a module of ours in a session of its own; its standard input is its lifeline. Raises OSError."""
    with log.open("ab") as file:
        return await asyncio.create_subprocess_exec(
            sys.executable, "-m", *command, stdin=PIPE, stdout=stdout or file, stderr=file,
            env={**os.environ, **env}, start_new_session=True, limit=LINE_BYTES_MAX,
        )  # fmt: skip


def enforce(pid: int, limits: Limits) -> None:
    """Hold a process that has just been started, and all that it will start, to its processors and memory.

    What it maps beyond twice its memory and ``RUNAWAY_BYTES`` the kernel refuses at once; what it really uses is
    measured (``took``), because half of what an engine maps it never touches. Raises OSError when it is gone.
    """
    if limits.cpus:
        os.sched_setaffinity(pid, limits.cpus)
    if limits.memory_bytes is not None:
        most = 2 * limits.memory_bytes + RUNAWAY_BYTES
        resource.prlimit(pid, resource.RLIMIT_DATA, (most, most))


def took(pid: int) -> Took | None:
    """Memory in use and processor time of a process, as its kernel counts them; None: it is gone."""
    pages, stat = read_text(f"/proc/{pid}/statm"), read_text(f"/proc/{pid}/stat")
    if not pages or not stat:
        return None
    ticks = sum(map(int, stat.rpartition(")")[2].split()[11:13]))  # proc(5): utime, stime; the name may hold blanks
    return Took(
        memory_bytes=int(pages.split()[1]) * resource.getpagesize(), cpu_ns=ticks * NS_PER_S // os.sysconf("SC_CLK_TCK")
    )
