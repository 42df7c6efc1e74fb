"""A child process that makes tokens: its first orders, its lifeline, its log and its end."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
from asyncio.subprocess import PIPE, Process
from collections.abc import Callable
from pathlib import Path

import msgspec

from tokenworks.core.errors import EngineDown
from tokenworks.core.words import Word
from tokenworks.device.discovery import read_text
from tokenworks.device.slices import Limits, Took
from tokenworks.device.tools import enforce, spawn, took
from tokenworks.engine.adapter import Engine
from tokenworks.engine.drivers import Held
from tokenworks.engine.llamacpp_child import Ready

LOG_BYTES_MAX = 1 << 20
"""A replica's log; beyond it the log moves to ``.log.1``, over the one before."""


class Child(Held):
    """A module of ours that runs an engine: it reads its orders as one line, tells its port, and lives while we do."""

    def __init__(self, process: Process, log_path: Path) -> None:
        self._process = process
        self._log_path = log_path
        self.pid = process.pid
        self._gone = asyncio.create_task(process.wait())

    @classmethod
    async def start(cls, module: str, orders: Word, log_path: Path, limits: Limits) -> Child:
        """Spawn it, hold it to its slice and hand it its orders. Raises OSError when that cannot be done."""
        log_path.parent.mkdir(parents=True, exist_ok=True)
        process = await spawn(module, log=log_path, stdout=PIPE, env=limits.env)
        child = cls(process, log_path)
        enforce(process.pid, limits)  # it waits for its orders: nothing of it escapes
        assert process.stdin is not None
        process.stdin.write(msgspec.json.encode(orders) + b"\n")
        return child

    async def reached(self, reach: Callable[[int], Engine], patience_s: float) -> Child:
        """Itself, as soon as it says on which port it listens. Raises EngineDown when it ends instead."""
        try:
            assert self._process.stdout is not None
            line = await self._process.stdout.readline()
            if not line:
                raise EngineDown(await self.ended(), hint=f"see {self._log_path}")
            self.engine = reach(msgspec.json.decode(line, type=Ready).port)
        except BaseException:
            await asyncio.shield(self.stop(patience_s))
            raise
        return self

    async def ended(self) -> str:
        """Wait until it is gone, and say how."""
        return f"the engine's process ended with status {await asyncio.shield(self._gone)}"

    async def stop(self, patience_s: float) -> None:
        """Cut the lifeline; kill it and all of its own children if they do not leave by themselves."""
        if self._process.stdin is not None:
            self._process.stdin.close()
        await asyncio.wait({self._gone}, timeout=patience_s)
        self.kill()
        await self._gone

    def kill(self) -> None:
        """End it and all of its own children at once."""
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.pid, signal.SIGKILL)

    def look(self) -> Took | None:
        """What it and its children take now. A log that has grown too large is moved aside on the way."""
        self._trim_log()
        found = [measured for pid in self._session() if (measured := took(pid)) is not None]
        if not found:
            return None
        return Took(memory_bytes=sum(t.memory_bytes for t in found), cpu_ns=sum(t.cpu_ns for t in found))

    def _session(self) -> list[int]:
        """All processes of its session."""
        pids = [int(entry.name) for entry in Path("/proc").iterdir() if entry.name.isdecimal()]
        return [pid for pid in pids if _session_of(pid) == self.pid]

    def _trim_log(self) -> None:
        """The child appends, so it goes on in the emptied file."""
        with contextlib.suppress(OSError):
            if self._log_path.stat().st_size > LOG_BYTES_MAX:
                self._log_path.with_suffix(".log.1").write_bytes(self._log_path.read_bytes()[-LOG_BYTES_MAX:])
                with self._log_path.open("r+b") as log:
                    log.truncate(0)


def _session_of(pid: int) -> int | None:
    """proc(5): the sixth field; the name before it may hold blanks."""
    stat = read_text(f"/proc/{pid}/stat")
    return int(stat.rpartition(")")[2].split()[3]) if stat else None
