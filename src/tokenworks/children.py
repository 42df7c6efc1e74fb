"""Child processes of a grid that must always run: its ledger and its other gateways."""

from __future__ import annotations

import asyncio
from asyncio.subprocess import Process
from pathlib import Path

from tokenworks.core.clock import Clock
from tokenworks.device.tools import spawn

PAUSE_S_MIN = 0.1
PAUSE_S_MAX = 5.0
STEADY_NS = 60_000_000_000
"""One that ran for so long may start again at once."""


class Kept:
    """A module of ours in a process of its own, started again with growing pauses whenever it ends."""

    def __init__(self, clock: Clock, log: Path, *command: str, stdout: int | None = None) -> None:
        self._clock, self._log, self._command, self._stdout = clock, log, command, stdout
        self._process: Process | None = None
        self._ending = False
        self.restarts = 0

    async def start(self) -> Process:
        """Start it."""
        self._process = await spawn(*self._command, log=self._log, stdout=self._stdout)
        return self._process

    @property
    def pid(self) -> int | None:
        """Its process id."""
        return self._process.pid if self._process else None

    async def attend(self, process: Process) -> None:
        """Whatever there is to do until it has ended."""
        await process.wait()

    async def keep(self) -> None:
        """Start it again when it ends, until it is told to end."""
        pause_s = PAUSE_S_MIN
        while self._process is not None:
            began_ns = self._clock.now_ns()
            await self.attend(self._process)
            if self._clock.now_ns() - began_ns > STEADY_NS:
                pause_s = PAUSE_S_MIN
            if not self._ending:
                await self._clock.sleep(pause_s)
            if self._ending:
                return
            pause_s = min(2 * pause_s, PAUSE_S_MAX)
            self.restarts += 1
            await self.start()

    async def stop(self, patience_s: float = 10) -> None:
        """Close its lifeline and wait; the ledger has read all journals by then."""
        self._ending = True
        if self._process is None or self._process.stdin is None:
            return
        self._process.stdin.close()
        try:
            async with asyncio.timeout(patience_s):
                await self._process.wait()
        except TimeoutError:
            self._process.kill()
            await self._process.wait()
