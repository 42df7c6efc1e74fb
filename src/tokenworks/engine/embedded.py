"""The driver of the embedded engine: fetch the model, start llama.cpp in a child process, keep it up."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import secrets
import sys
from asyncio.subprocess import PIPE, Process
from pathlib import Path

import msgspec

from tokenworks.core.clock import Clock
from tokenworks.core.errors import EngineDown, TokenworksError
from tokenworks.core.units import NS_PER_S
from tokenworks.engine.drivers import CONNECTIONS_SPARE, Pace, checked
from tokenworks.engine.llamacpp import LlamaCpp
from tokenworks.engine.llamacpp_child import Ready, Settings
from tokenworks.engine.models import model_named
from tokenworks.engine.openai_compatible import CONTROL_CONNECTIONS_MAX
from tokenworks.engine.pull import Report, pull
from tokenworks.engine.record import Replica
from tokenworks.engine.replica import came_up, may_start, started, stopped, went_down

log = logging.getLogger(__name__)

HOST = "127.0.0.1"
LOG_BYTES_MAX = 1 << 20
"""A replica's log; beyond it the log moves to ``.log.1``, over the one before."""


class Child:
    """One process of the embedded engine, its lifeline and its log."""

    def __init__(self, process: Process, log_path: Path) -> None:
        self._process = process
        self._log_path = log_path
        self.pid = process.pid
        self.ended = asyncio.create_task(process.wait())
        """Done when the process is gone; its result is the exit status."""

    @classmethod
    async def start(cls, settings: Settings, log_path: Path) -> Child:
        """Spawn it and hand it its settings. Raises OSError when that cannot be done."""
        log_path.parent.mkdir(parents=True, exist_ok=True)
        with log_path.open("ab") as log:
            process = await asyncio.create_subprocess_exec(
                sys.executable, "-m", "tokenworks.engine.llamacpp_child",
                stdin=PIPE, stdout=PIPE, stderr=log,
                start_new_session=True,  # Ctrl-C in the terminal is for us; we tell our children ourselves
            )  # fmt: skip
        child = cls(process, log_path)
        assert process.stdin is not None
        process.stdin.write(msgspec.json.encode(settings) + b"\n")
        return child

    async def port(self) -> int:
        """Where it listens, as soon as it says so. Raises EngineDown when it ends instead."""
        assert self._process.stdout is not None
        line = await self._process.stdout.readline()
        if not line:
            status = await self.ended
            raise EngineDown(f"The engine ended while loading (exit status {status}).", hint=f"see {self._log_path}")
        return msgspec.json.decode(line, type=Ready).port

    async def stop(self, patience_s: float) -> None:
        """Cut the lifeline; kill it, and only it, if it does not leave by itself."""
        if self._process.stdin is not None:
            self._process.stdin.close()
        done, _ = await asyncio.wait({self.ended}, timeout=patience_s)
        if not done:
            self.kill()
            await self.ended

    def kill(self) -> None:
        """End it at once: it hangs."""
        with contextlib.suppress(ProcessLookupError):
            self._process.kill()

    def trim_log(self) -> None:
        """Move a log that has grown too large aside. The child appends, so it goes on in the emptied file."""
        with contextlib.suppress(OSError):
            if self._log_path.stat().st_size > LOG_BYTES_MAX:
                self._log_path.with_suffix(".log.1").write_bytes(self._log_path.read_bytes()[-LOG_BYTES_MAX:])
                with self._log_path.open("r+b") as log:
                    log.truncate(0)


class EmbeddedDriver:
    """Keeps one child process per replica, and starts it again after a pause when it fails."""

    def __init__(self, clock: Clock, pace: Pace, log_dir: Path, cache: Path, report: Report) -> None:
        self._clock, self._pace, self._log_dir, self._cache, self._report = clock, pace, log_dir, cache, report
        self._pulling = asyncio.Lock()

    async def run(self, replica: Replica) -> None:
        """See ``Driver.run``."""
        try:
            while True:
                pause_ns = replica.life.next_try_ns - self._clock.now_ns()
                if not may_start(replica.life, self._clock.now_ns()):
                    await self._clock.sleep(pause_ns / NS_PER_S)
                    continue
                replica.turn(started)
                try:
                    replica.why = await self._live(replica)
                except TokenworksError as error:
                    replica.why = f"({error})"
                except Exception as error:  # whatever it was, a replica without a driver would never come back
                    replica.why = f"({type(error).__name__}: {error})"
                    log.exception("replica %s", replica.spec.name)
                replica.restarts += 1
                replica.turn(went_down)
        finally:
            replica.turn(stopped)

    async def _live(self, replica: Replica) -> str:
        """One life of the process, from its start to its end; returns what ended it."""
        spec = replica.spec
        model = model_named(spec.upstream_model or spec.model)
        async with self._pulling:  # replicas of one model need one download
            path = await asyncio.to_thread(pull, model, self._cache, self._report)
        settings = _settings(replica, path)
        child = await Child.start(settings, self._log_dir / f"{spec.name}.log")
        adapter: LlamaCpp | None = None
        try:
            async with asyncio.timeout(self._pace.load_s_max):
                adapter = LlamaCpp(
                    f"http://{HOST}:{await child.port()}",
                    api_key=settings.api_key,
                    connections_max=spec.slots + replica.waiting_max + CONNECTIONS_SPARE,
                )
                while not await checked(adapter, self._pace.health_timeout_s):
                    await self._clock.sleep(self._pace.load_poll_s)
            replica.speaks_through(adapter)
            replica.why = ""
            replica.turn(came_up)
            return await self._watch(child, adapter)
        finally:
            replica.speaks_through(None)
            # Shielded: a cancelled driver still leaves no process and no socket behind.
            await asyncio.shield(_end(child, adapter, self._pace.stop_s))

    async def _watch(self, child: Child, adapter: LlamaCpp) -> str:
        """Until the process ends or hangs; a hung one is killed."""
        missed = 0
        while missed < self._pace.missed_max:
            done, _ = await asyncio.wait({child.ended}, timeout=self._pace.health_s)
            if done:
                return f"(the engine's process ended with status {child.ended.result()})"
            healthy = await checked(adapter, self._pace.health_timeout_s)
            missed = 0 if healthy else missed + 1
            child.trim_log()
        child.kill()
        return f"(the engine missed {missed} health checks and was killed)"


async def _end(child: Child, adapter: LlamaCpp | None, patience_s: float) -> None:
    if adapter is not None:
        await adapter.close()
    await child.stop(patience_s)


def _settings(replica: Replica, model_path: Path) -> Settings:
    spec = replica.spec
    connections_max = spec.slots + replica.waiting_max + CONNECTIONS_SPARE
    return Settings(
        model_path=str(model_path),
        alias=spec.model,
        host=HOST,
        port=0,
        slots=spec.slots,
        context_tokens=spec.context_tokens,
        threads=spec.threads,
        http_threads=connections_max + 2 * CONTROL_CONNECTIONS_MAX,
        # Loopback is open to every user of this machine: a key of this process's own keeps them out.
        api_key=secrets.token_hex(16),
    )
