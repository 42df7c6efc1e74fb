"""Processes on cores: started pinned, watched through ``/proc``, ended by id."""

from __future__ import annotations

import contextlib
import os
import resource
import signal
import socket
import subprocess
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

STOP_S = 15.0
LEDGER_NICE = 10


class Cores(NamedTuple):
    """Who runs where. The gateway has its core to itself, whatever the machine."""

    gateway: int
    mock: int
    load: int
    ledger: int


def cores() -> Cores:
    """Two cores: the gateway on one, everything else on the other. More: mock, load and ledger apart as far as they go.

    Raises SystemExit on a machine of one core.
    """
    free = sorted(os.sched_getaffinity(0), reverse=True)  # the first core has the system's own work
    if len(free) < 2:
        raise SystemExit("bench-gateway needs two cores: one for the gateway, one for all else")
    others = free[1:]
    return Cores(free[0], others[0], others[1 % len(others)], others[2 % len(others)])


def many_files() -> int:
    """Let this process and its children open as many files as the system allows; returns how many."""
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    return hard


def free_port() -> int:
    """A port that nobody has now."""
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        port: int = found.getsockname()[1]
        return port


@contextlib.contextmanager
def on_core(core: int) -> Iterator[None]:
    """What is started inside runs on that core, with all its threads and children."""
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {core})
    try:
        yield
    finally:
        os.sched_setaffinity(0, before)


def move(pid: int, core: int, nice: int) -> None:
    """Put a running process with its threads on another core, behind others by ``nice``."""
    for task in Path(f"/proc/{pid}/task").iterdir():
        os.sched_setaffinity(int(task.name), {core})
        os.setpriority(os.PRIO_PROCESS, int(task.name), nice)


@contextlib.contextmanager
def running(
    command: Sequence[str], core: int, log: Path, env: Mapping[str, str] | None = None, cwd: Path | None = None
) -> Iterator[subprocess.Popen[bytes]]:
    """A process pinned to a core, its output in ``log``; with it ends its whole process group."""
    with log.open("ab") as out, on_core(core):
        process = subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=out, stderr=out, cwd=cwd,
            env={**os.environ, **(env or {})}, start_new_session=True,
        )  # fmt: skip
    try:
        yield process
    finally:
        stop(process)


def stop(process: subprocess.Popen[bytes]) -> None:
    """Ask it to end, wait, then end what is left of its group."""
    if process.poll() is None:
        process.send_signal(signal.SIGTERM)
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(STOP_S)
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()


def tree(pid: int) -> list[int]:
    """A process and all that it started."""
    found = [pid]
    with contextlib.suppress(OSError):
        for task in Path(f"/proc/{pid}/task").iterdir():
            for child in (task / "children").read_text().split():
                found += tree(int(child))
    return found


def rss_mb(*pids: int) -> float:
    """Resident memory of these processes, in MB; one that has ended has none."""
    pages = 0
    for pid in pids:
        with contextlib.suppress(OSError):
            pages += int(Path(f"/proc/{pid}/statm").read_text().split()[1])
    return round(pages * resource.getpagesize() / 1e6, 1)


def cpu_s(*pids: int) -> float:
    """Processor seconds of these processes so far: user and system time of all their threads."""
    ticks = 0
    for pid in pids:
        with contextlib.suppress(OSError):
            fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
            ticks += int(fields[11]) + int(fields[12])
    return ticks / os.sysconf("SC_CLK_TCK")


def tail(log: Path, lines: int = 2) -> str:
    """The end of a log, on one line, for saying why something is absent."""
    with contextlib.suppress(OSError):
        said = [line.strip() for line in log.read_text(errors="replace").splitlines() if line.strip()]
        return " / ".join(said[-lines:])[-200:]
    return ""


def wait_until(seconds: float, pause_s: float = 0.1) -> Iterator[None]:
    """Turns of a waiting loop until the time is over."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        yield
        time.sleep(pause_s)
